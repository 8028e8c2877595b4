//! The judge: what Tetrachord promises is attacked here, by workloads that ask and nemeses that break things.
//!
//! * [`workload`]: what clients do, and so what the checkers of `tetrachord-checker` can refute.
//! * [`nemesis`]: what goes wrong.
//! * [`plan`]: what one seed makes of both.
//! * [`world::sim`]: whole nodes, the very core of production, in one thread: virtual time, a network and disks that fail as
//!   the plan says. One seed replays everything, on any machine.
//! * [`world::real`]: processes with hosts, disks and clocks of their own, as far as the machine permits.
//! * [`trial`]: one run in the real world, and its report.
//! * [`sweep`]: many seeds, what they came to, and a failing one made smaller.
#![deny(missing_docs)]

pub mod nemesis;
pub mod plan;
pub mod random;
pub mod sweep;
pub mod trial;
pub mod workload;
pub mod world;
