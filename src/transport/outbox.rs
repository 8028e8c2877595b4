//! Frames that wait to be written to one stream.

use bytes::Bytes;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Queue {
    frames: Vec<Bytes>,
    bytes: usize,
    /// Bytes that were taken and are being written.
    writing: usize,
    is_open: bool,
}

/// A bounded queue of frames with one reader.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    queue: Arc<Mutex<Queue>>,
    filled: Arc<Notify>,
    bytes_max: usize,
    /// Bytes that wait or are being written, here and in all outboxes that share the count.
    total: Arc<AtomicUsize>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits to be written.
    Queued,
    /// Nobody writes; it is gone.
    Closed,
    /// Too much waits already; it is gone.
    Full,
}

impl Outbox {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self::counted(bytes_max, Arc::default())
    }

    /// An outbox whose bytes count in a total, too.
    pub(super) fn counted(bytes_max: usize, total: Arc<AtomicUsize>) -> Self {
        Self { queue: Arc::default(), filled: Arc::default(), bytes_max, total }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of the lock panics while it holds it")
    }

    /// Begins anew: what waited for an earlier connection is dropped.
    pub(super) fn open(&self) {
        self.begin(Queue { is_open: true, ..Queue::default() });
    }

    /// Ends: nothing is queued any more, and the reader is told.
    pub(super) fn close(&self) {
        self.begin(Queue::default());
        self.filled.notify_one();
    }

    fn begin(&self, queue: Queue) {
        let before = std::mem::replace(&mut *self.queue(), queue);
        self.total.fetch_sub(before.bytes + before.writing, Ordering::Relaxed);
    }

    /// Bytes that wait or are being written.
    #[cfg(feature = "server")]
    pub(super) fn bytes(&self) -> usize {
        let queue = self.queue();
        queue.bytes + queue.writing
    }

    pub(super) fn push(&self, frame: Bytes) -> Pushed {
        let mut queue = self.queue();
        if !queue.is_open {
            return Pushed::Closed;
        }
        if queue.bytes + frame.len() > self.bytes_max && !queue.frames.is_empty() {
            return Pushed::Full;
        }
        queue.bytes += frame.len();
        self.total.fetch_add(frame.len(), Ordering::Relaxed);
        queue.frames.push(frame);
        drop(queue);
        self.filled.notify_one();
        Pushed::Queued
    }

    /// Waits for frames and takes all of them; what was taken before is written. `None` when the outbox is closed.
    pub(super) async fn take(&self) -> Option<Vec<Bytes>> {
        loop {
            {
                let mut queue = self.queue();
                if !queue.is_open {
                    return None;
                }
                self.total.fetch_sub(std::mem::take(&mut queue.writing), Ordering::Relaxed);
                if !queue.frames.is_empty() {
                    queue.writing = std::mem::take(&mut queue.bytes);
                    return Some(std::mem::take(&mut queue.frames));
                }
            }
            self.filled.notified().await;
        }
    }
}

/// Writes what comes until the outbox is closed or the stream fails.
pub(super) async fn write_frames(outbox: Outbox, mut stream: quinn::SendStream) {
    while let Some(mut frames) = outbox.take().await {
        if stream.write_all_chunks(&mut frames).await.is_err() {
            return;
        }
    }
    let _ = stream.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_outbox_drops_the_newest_and_a_closed_one_everything() {
        let outbox = Outbox::new(10);
        assert_eq!(outbox.push(Bytes::from_static(b"x")), Pushed::Closed);
        outbox.open();
        assert_eq!(outbox.push(Bytes::from(vec![0; 20])), Pushed::Queued, "one frame always fits");
        assert_eq!(outbox.push(Bytes::from_static(b"x")), Pushed::Full);
        outbox.open();
        assert_eq!(outbox.push(Bytes::from_static(b"x")), Pushed::Queued, "a new connection begins empty");
        outbox.close();
        assert_eq!(outbox.push(Bytes::from_static(b"x")), Pushed::Closed);
    }

    #[test]
    fn what_waits_is_counted_until_it_is_written() {
        let total = Arc::new(AtomicUsize::new(0));
        let (one, two) = (Outbox::counted(100, Arc::clone(&total)), Outbox::counted(100, Arc::clone(&total)));
        let count = || total.load(Ordering::Relaxed);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        one.open();
        two.open();
        one.push(Bytes::from(vec![0; 10]));
        two.push(Bytes::from(vec![0; 7]));
        assert_eq!((count(), one.bytes()), (17, 10));
        runtime.block_on(one.take()).unwrap();
        one.push(Bytes::from(vec![0; 5]));
        assert_eq!((count(), one.bytes()), (22, 15), "what is being written is still there");
        runtime.block_on(one.take()).unwrap();
        assert_eq!((count(), one.bytes()), (12, 5));
        one.close();
        two.close();
        assert_eq!(count(), 0);
    }
}
