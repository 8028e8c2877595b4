//! Where a plan is carried out.

pub mod sim;
