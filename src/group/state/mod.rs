//! The state of a group on this node's disk: brought up to date, given to a replica that lags, taken when this one does.
//!
//! * [`tree`]: what is on its way to the tree. [`checkpoint`]: what was applied goes there, and the log behind it goes.
//! * [`pressure`]: what gathers in memory until the disk has it is bounded. [`retain`]: how much of the log others may still need.
//! * [`give`] and [`transfer`]: a whole state for another replica. [`take`] and [`install`]: one from another replica.

pub(super) mod checkpoint;
pub(super) mod give;
pub(super) mod install;
pub(super) mod pressure;
pub(super) mod retain;
pub(super) mod take;
pub(super) mod transfer;
pub(super) mod tree;

pub(super) use give::Giving;
pub(super) use install::Install;
pub(super) use pressure::Pressure;
pub(super) use retain::Retention;
pub(super) use take::Taking;
pub(super) use tree::{Purpose, Tree};
