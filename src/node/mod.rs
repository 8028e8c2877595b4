//! One node: a pure core that decides, and a shell that acts.

mod askers;
pub mod checks;
pub mod core;
mod face;
mod forwards;
mod frames;
mod pool;
pub mod roster;
pub mod run;
mod status;
mod tenures;

#[cfg(test)]
mod tests;
