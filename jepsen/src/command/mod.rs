//! The commands of `tetrachord-jepsen`.

pub(crate) mod list;
pub(crate) mod sim;
pub(crate) mod test;

/// Something else than a promise is wrong: a run that shows nothing, or one that could not be carried out.
pub(crate) const FAILURE: u8 = 1;

/// A promise was broken.
pub(crate) const VIOLATION: u8 = 7;
