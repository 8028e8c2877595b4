//! The commands of `tetrachord-jepsen`.

pub(crate) mod list;
pub(crate) mod sim;
pub(crate) mod test;

use std::io::{ErrorKind, Write};

/// Something else than a promise is wrong: a run that shows nothing, or one that could not be carried out.
pub(crate) const FAILURE: u8 = 1;

/// A promise was broken.
pub(crate) const VIOLATION: u8 = 7;

/// Prints a line. Who does not take it still has the exit code, which is never lost for want of a reader.
pub(crate) fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            remark(&format!("cannot write to standard output: {error}"));
        }
        _ => {}
    }
}

/// Says something beside, as far as somebody listens.
pub(crate) fn remark(text: &str) {
    // There is no third place to say that nobody listens here either.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A line on standard output.
macro_rules! say {
    ($($words:tt)*) => { $crate::command::print_line(&format!($($words)*)) };
}
pub(crate) use say;
