//! Histories of a key-value store, and the judge that says whether they are linearizable.
//!
//! A history is what clients saw: when they called, when they were answered, what the answer was. It is linearizable
//! if every operation can be given one moment between its call and its answer so that, in the order of these moments,
//! every answer is right (Herlihy and Wing 1990).
//!
//! * [`history`]: what was seen, and how it is written down: JSON lines, one operation a line.
//! * [`value`]: texts and numbers, compared exactly.
//! * [`linearizability`]: the search, key by key.
//! * [`counterexample`]: the smallest part that fails, in words.
//! * [`report`]: the same as a picture, one self-contained HTML page.
//!
//! It knows nothing of Tetrachord: any store whose history can be written down can be judged.
#![deny(missing_docs)]

mod beginning;
pub mod counterexample;
pub mod history;
mod line;
pub mod linearizability;
mod model;
pub mod report;
pub mod value;
mod words;

pub use counterexample::Counterexample;
pub use history::{Action, History, HistoryError, Operation};
pub use linearizability::{Judgement, Limits, Verdict, check};
pub use value::{Number, Value};
