//! A small pool of threads that check signatures, so that the node's loop never does.
//!
//! Jobs are taken in order, several at a time, and the verdicts of those that were taken together come back together.
//! What waits is bounded by who asks: an engine has so many bytes of each peer, and of all clients, under way.

use crate::ring::GroupId;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use tetrachord_consensus::pbft::{Rejected, Unverified, Verified, Verifier};

/// A check to be done.
pub(super) type Job = (GroupId, Box<Unverified>);

/// What became of it.
pub(super) type Verdict = (GroupId, Result<Verified, Rejected>);

/// Jobs that a thread takes at a time.
const TAKEN_MAX: usize = 32;

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

/// The pool. Dropping it ends its threads.
#[derive(Debug)]
pub(super) struct Pool(Arc<(Mutex<Queue>, Condvar)>);

impl Pool {
    /// Starts the threads. Each has verifiers of its own; what they remember of valid signatures is not shared. Each set of
    /// verdicts is reported; `None` if a thread has ended, and the node must stop: what it held will never be judged.
    pub(super) fn start(
        threads: usize,
        verifiers: &BTreeMap<GroupId, Verifier>,
        report: impl Fn(Option<Vec<Verdict>>) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        for index in 0..threads {
            let (shared, verifiers, report) = (Arc::clone(&shared), verifiers.clone(), report.clone());
            let work = move || {
                if catch_unwind(AssertUnwindSafe(|| work(&shared, verifiers, &report))).is_err() {
                    report(None);
                }
            };
            std::thread::Builder::new().name(format!("verify-{index}")).spawn(work)?;
        }
        Ok(Self(shared))
    }

    /// Queues jobs; one lock and one wake-up for all of them.
    pub(super) fn push(&self, jobs: impl IntoIterator<Item = Job>) {
        let (queue, is_filled) = &*self.0;
        queue.lock().expect("never held while panicking").jobs.extend(jobs);
        is_filled.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (queue, is_filled) = &*self.0;
        queue.lock().expect("never held while panicking").is_closed = true;
        is_filled.notify_all();
    }
}

fn work(
    shared: &(Mutex<Queue>, Condvar),
    mut verifiers: BTreeMap<GroupId, Verifier>,
    report: &impl Fn(Option<Vec<Verdict>>),
) {
    let (queue, is_filled) = shared;
    loop {
        let taken: Vec<Job> = {
            let locked = queue.lock().expect("never held while panicking");
            let mut locked = is_filled
                .wait_while(locked, |queue| queue.jobs.is_empty() && !queue.is_closed)
                .expect("never held while panicking");
            if locked.is_closed {
                return;
            }
            let count = locked.jobs.len().min(TAKEN_MAX);
            let taken = locked.jobs.drain(..count).collect();
            if !locked.jobs.is_empty() {
                is_filled.notify_one();
            }
            taken
        };
        let check = |(group, job): Job| {
            let verifier = verifiers.get_mut(&group)?;
            Some((group, verifier.verify(*job)))
        };
        report(Some(taken.into_iter().filter_map(check).collect()));
    }
}
