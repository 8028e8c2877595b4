//! One node: a pure core that decides, and a shell that acts.

pub mod core;
pub mod run;

#[cfg(test)]
mod tests;
