//! One node: a pure core that decides, and a shell that acts.

pub mod core;
mod pool;
pub mod roster;
pub mod run;

#[cfg(test)]
mod tests;
