//! Where tests are carried out.

pub mod real;
pub mod sim;

/// Which world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whole nodes in virtual time.
    Sim,
    /// Processes, sockets and disks.
    Real,
}
