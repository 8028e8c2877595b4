//! A small pool of threads that check signatures, so that the node's loop never does.
//!
//! In which order is for [`Checks`] to say. Jobs are taken several at a time, and the verdicts of those that were taken together
//! come back together.

use super::checks::{Checks, Line};
use crate::ring::TenureId;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use tetrachord_consensus::pbft::{Rejected, Unverified, Verified, Verifier};

/// A check to be done.
pub(super) type Job = (TenureId, Box<Unverified>);

/// What became of it.
pub(super) type Verdict = (TenureId, Result<Verified, Rejected>);

/// Signatures that a thread checks before it looks for what is more urgent, unless a single job has more.
const TAKEN_MAX: u32 = 32;

#[derive(Debug, Default)]
struct Queue {
    checks: Checks<Job>,
    is_closed: bool,
}

impl Queue {
    /// What a thread does next.
    fn take(&mut self) -> Vec<Job> {
        let (mut taken, mut cost) = (Vec::new(), 0);
        while cost < TAKEN_MAX
            && let Some((more, job)) = self.checks.next_job()
        {
            cost += more;
            taken.push(job);
        }
        taken
    }
}

/// The pool. Dropping it ends its threads.
#[derive(Debug)]
pub(super) struct Pool(Arc<(Mutex<Queue>, Condvar)>);

impl Pool {
    /// Starts the threads. Each has verifiers of its own; what they remember of valid signatures is not shared. Each set of
    /// verdicts is reported; `None` if a thread has ended, and the node must stop: what it held will never be judged.
    pub(super) fn start(
        threads: usize,
        verifiers: &BTreeMap<TenureId, Verifier>,
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
    pub(super) fn push(&self, jobs: impl IntoIterator<Item = (Line, Job)>) {
        let (queue, is_filled) = &*self.0;
        let mut queue = queue.lock().expect("never held while panicking");
        for (line, job) in jobs {
            queue.checks.push(line, job.1.cost(), job);
        }
        drop(queue);
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
    mut verifiers: BTreeMap<TenureId, Verifier>,
    report: &impl Fn(Option<Vec<Verdict>>),
) {
    let (queue, is_filled) = shared;
    loop {
        let taken = {
            let locked = queue.lock().expect("never held while panicking");
            let mut locked = is_filled
                .wait_while(locked, |queue| queue.checks.is_empty() && !queue.is_closed)
                .expect("never held while panicking");
            if locked.is_closed {
                return;
            }
            let taken = locked.take();
            if !locked.checks.is_empty() {
                is_filled.notify_one();
            }
            taken
        };
        let check = |(tenure, job): Job| {
            let verifier = verifiers.get_mut(&tenure)?;
            Some((tenure, verifier.verify(*job)))
        };
        report(Some(taken.into_iter().filter_map(check).collect()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::GroupId;
    use crate::ring::NodeId;
    use crate::shares::{Account, ClientId};
    use bytes::Bytes;
    use tetrachord_consensus::pbft::{
        Bundle, ClientSigner, Config, Domain, Keyring, Message, Options, Own, Replica, RequestName,
        SignedRequest, Signer, SubmitId, Window, message::Vote, sign::Statement,
    };
    use tetrachord_consensus::{
        ByzantineQuorum, Digest, Effect, Engine, Epoch, Event, Mutation, ReplicaId, Slot, Ticks, Timestamp,
        View, codec,
    };

    const DOMAIN: Domain = Domain { cluster: Digest([1; 32]), group: 1, epoch: Epoch(1) };
    const TENURE: TenureId = TenureId { group: GroupId(1), epoch: 1 };
    const CLIENT: Line = Line::Bundles(Account::Client(ClientId([1; 32])));

    fn take_jobs(replica: &mut Replica) -> Vec<Job> {
        let jobs = replica.take_effects().into_iter().filter_map(|effect| match effect {
            Effect::Own(Own::Verify(job)) => Some((TENURE, job)),
            _ => None,
        });
        jobs.collect()
    }

    /// Bundles of an admitted client, each with a bit of its signature turned over.
    fn wrongly_signed(replica: &mut Replica, count: u64) -> Vec<Job> {
        let client = ClientSigner::toy(1);
        for number in 0..count {
            let name = RequestName { client: client.name(), session: 1, number };
            let (ack_below, not_after, operation) = (0, Timestamp(2_000_000), Bytes::new());
            let (wants_proof, ends_epoch) = (false, false);
            let request = SignedRequest { name, ack_below, not_after, wants_proof, ends_epoch, operation };
            let mut bytes = Bundle::sign(&DOMAIN, &client, &[request]).bytes().to_vec();
            bytes[40] ^= 1;
            let (id, bundle) = (SubmitId(number), Bytes::from(bytes));
            replica.submit(id, bundle, false);
        }
        take_jobs(replica)
    }

    fn commit(replica: &mut Replica) -> Vec<Job> {
        let (signer, view, slot, digest) = (ReplicaId(2), View(0), Slot(1), Digest([9; 32]));
        let signature = Signer::toy(signer, DOMAIN).sign(Statement::Commit(view, slot, digest));
        let vote = Vote { signer, view, slot, digest, signature };
        let message = codec::encode(&Message::Commit(vote));
        replica.step(Event::Receive { from: signer, message });
        take_jobs(replica)
    }

    /// How many of two thousand bundles that wait are checked before a COMMIT that waits in this line.
    fn bundles_before_a_commit(line: Line) -> usize {
        let quorum = ByzantineQuorum::new(4).unwrap();
        let config = Config { epoch: Epoch(1), quorum, window: Window::default() };
        let signer = Signer::toy(ReplicaId(0), DOMAIN);
        let nothing = Vec::<Vec<u8>>::new();
        let mut replica =
            Replica::recover(config, Options::default(), signer, nothing, Some(Default::default())).unwrap();
        replica.step(Event::Tick { now: Ticks(1), wall: Timestamp(1_000_000) });
        let bundles = wrongly_signed(&mut replica, 2_000);
        let votes = commit(&mut replica);
        assert_eq!((bundles.len(), votes.len()), (2_000, 1));
        let verifier = Verifier::new(Arc::new(Keyring::toy(DOMAIN, 4, 2)), config, Mutation::None);
        let (sender, receiver) = std::sync::mpsc::channel();
        let report = move |verdicts| drop(sender.send(verdicts));
        let pool = Pool::start(1, &BTreeMap::from([(TENURE, verifier)]), report).unwrap();
        let bundles = bundles.into_iter().map(|job| (CLIENT, job));
        pool.push(bundles.chain(votes.into_iter().map(|job| (line, job))));
        let verdicts = std::iter::from_fn(|| receiver.recv().unwrap()).flatten();
        verdicts.take_while(|(_, result)| result.is_err()).count()
    }

    #[test]
    fn a_commit_is_checked_before_all_bundles_that_wait() {
        assert_eq!(bundles_before_a_commit(Line::Replica(NodeId(3))), 0);
        assert_eq!(bundles_before_a_commit(CLIENT), 2_000, "with one line for all it would come last");
    }
}
