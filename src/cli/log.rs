//! The log of a process: lines to standard error, written by a thread of its own.
//!
//! Whoever logs only queues a line. Standard error may be a pipe whose reader is gone or hangs, or a file on a full disk: what
//! cannot be written, or waits behind too much, is lost and counted, and the log says how much as soon as it can. Nobody
//! waits for it but the process at its end, and that not for long.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of lines that may wait.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// How long the end of the process waits for what was said last.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
    is_writing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The log also tells of panics: it takes none for a reason to be silent.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes lines, whatever becomes of them. Clones are the same log.
#[derive(Clone, Debug)]
pub(super) struct Log(Arc<Shared>);

impl Log {
    /// A log to standard error.
    pub(super) fn to_standard_error() -> Self {
        Self::to(io::stderr())
    }

    fn to(out: impl Write + Send + 'static) -> Self {
        let log = Self(Arc::default());
        let shared = Arc::clone(&log.0);
        // Without a thread there is no log; nothing else is missing.
        let _ = std::thread::Builder::new().name("log".to_string()).spawn(move || write_lines(&shared, out));
        log
    }

    /// Queues lines, each with its end.
    pub(super) fn line(&self, line: Vec<u8>) {
        let mut queue = self.0.queue();
        if queue.bytes + line.len() > WAITING_BYTES_MAX {
            queue.lost += 1;
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.0.filled.notify_one();
    }

    /// Waits until everything was written, or for as long as the end of a process may take.
    pub(super) fn finish(&self) {
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        // What is not written by then is lost.
        drop(self.0.emptied.wait_timeout_while(self.0.queue(), LAST_WORDS, is_busy));
    }

    /// Panics are told in the log too.
    pub(super) fn tell_panics(&self) {
        let log = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("?");
            let trace = std::backtrace::Backtrace::capture();
            let trace = match trace.status() {
                std::backtrace::BacktraceStatus::Captured => format!("{trace}\n"),
                _ => String::new(),
            };
            log.line(format!("thread '{name}' {panic}\n{trace}").into_bytes());
        }));
    }
}

/// One event, as the log takes it.
#[derive(Debug)]
pub(super) struct Line {
    log: Log,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.log.line(std::mem::take(&mut self.bytes));
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { log: self.clone(), bytes: Vec::new() }
    }
}

/// Writes what comes, for as long as the process lives.
fn write_lines(shared: &Shared, mut out: impl Write) {
    // Lines that were lost since the last that was written, and why.
    let (mut lost, mut reason) = (0u64, String::new());
    loop {
        let (lines, not_taken) = {
            let mut queue = shared.queue();
            queue.is_writing = false;
            if queue.lines.is_empty() {
                shared.emptied.notify_all();
            }
            let waited = shared.filled.wait_while(queue, |queue| queue.lines.is_empty());
            let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
            queue.is_writing = true;
            queue.bytes = 0;
            (std::mem::take(&mut queue.lines), std::mem::take(&mut queue.lost))
        };
        for line in lines {
            let note = match lost {
                0 => Vec::new(),
                lost => format!("\n{lost} lines of the log are lost: {reason}\n").into_bytes(),
            };
            match out.write_all(&[note, line].concat()).and_then(|()| out.flush()) {
                Ok(()) => lost = 0,
                Err(error) => (lost, reason) = (lost + 1, error.to_string()),
            }
        }
        if not_taken > 0 {
            (lost, reason) = (lost + not_taken, "they were not written fast enough".to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes lines, or fails, as it is told.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            if disk.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Disk {
        fn is_full(&self, is_full: bool) {
            self.0.lock().unwrap().1 = is_full;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
        }
    }

    fn say(log: &Log, text: &str) {
        log.line(format!("{text}\n").into_bytes());
        log.finish();
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_the_log_goes_on_when_it_can() {
        let disk = Disk::default();
        let log = Log::to(disk.clone());
        say(&log, "one");
        disk.is_full(true);
        say(&log, "two");
        say(&log, "three");
        disk.is_full(false);
        say(&log, "four");
        say(&log, "five");
        let text = disk.text();
        assert!(text.starts_with("one\n\n2 lines of the log are lost: "), "{text}");
        assert!(text.ends_with("\nfour\nfive\n"), "{text}");
    }

    #[test]
    fn a_writer_that_hangs_costs_bounded_memory_and_no_time() {
        let (hung, writer) = io::pipe().unwrap();
        let log = Log::to(writer);
        // More than a pipe holds: from then on nothing is taken.
        log.line(vec![b'x'; WAITING_BYTES_MAX]);
        while !log.0.queue().is_writing {
            std::thread::yield_now();
        }
        for _ in 0..100 {
            log.line(vec![b'x'; 64 << 10]);
        }
        let queue = log.0.queue();
        assert_eq!((queue.bytes, queue.lost), (WAITING_BYTES_MAX, 100 - 16));
        drop(queue);
        log.finish();
        drop(hung);
    }
}
