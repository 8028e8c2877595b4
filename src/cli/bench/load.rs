//! The clients of a run: when each request should begin, and what it asks.

use super::Workload;
use super::tally::{End, Moments, Tally};
use crate::client::Client;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A client that was refused at once rests for so long: a loop of refusals would measure itself.
const REST: Duration = Duration::from_millis(1);

/// When requests should begin, in microseconds since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Each client's when its request before has ended.
    Closed,
    /// So many a second, whatever becomes of those before.
    Open { per_second: u64 },
    /// So many in all, as in a closed loop.
    Total(u64),
}

/// What all clients of a run share.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) workload: Workload,
    pub(super) keys: u64,
    pub(super) value_bytes: usize,
    pub(super) pace: Pace,
    started: Instant,
    /// Nothing begins after this.
    until: u64,
    turns: AtomicU64,
    tally: Mutex<Tally>,
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A request that should begin then.
    Begin(u64),
    /// One that should have begun then, and cannot any more.
    TooLate(u64),
    Stop,
}

impl Load {
    pub(super) fn new(
        (workload, pace): (Workload, Pace),
        (keys, value_bytes): (u64, usize),
        until: u64,
        tally: Tally,
    ) -> Self {
        let (turns, tally) = (AtomicU64::new(0), Mutex::new(tally));
        Self { workload, keys, value_bytes, pace, started: Instant::now(), until, turns, tally }
    }

    /// Microseconds since the run began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) async fn sleep_until(&self, moment: u64) {
        let left = Duration::from_micros(moment.saturating_sub(self.now()));
        if !left.is_zero() {
            tokio::time::sleep(left).await;
        }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("never held while panicking")
    }

    /// Requests that have begun.
    pub(super) fn begun(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    fn next(&self, turn: u64, now: u64) -> Next {
        match self.pace {
            Pace::Total(total) if turn >= total => Next::Stop,
            Pace::Total(_) => Next::Begin(now),
            Pace::Closed if now >= self.until => Next::Stop,
            Pace::Closed => Next::Begin(now),
            Pace::Open { per_second } => {
                let intended = u128::from(turn) * 1_000_000 / u128::from(per_second);
                let intended = u64::try_from(intended).unwrap_or(u64::MAX);
                match intended >= self.until {
                    true => Next::Stop,
                    false if now >= self.until => Next::TooLate(intended),
                    false => Next::Begin(intended),
                }
            }
        }
    }

    /// One client, to the end of the run.
    pub(super) async fn work(&self, client: Client, seed: u64) {
        let mut random = seed | 1;
        let mut value = vec![b'v'; self.value_bytes];
        loop {
            let turn = self.turns.fetch_add(1, Ordering::Relaxed);
            let intended = match self.next(turn, self.now()) {
                Next::Stop => return,
                Next::TooLate(intended) => {
                    self.tally().note_not_sent(intended);
                    continue;
                }
                Next::Begin(intended) => intended,
            };
            self.sleep_until(intended).await;
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let sent = self.now();
            let end = self.ask(&client, turn, random, &mut value).await;
            let is_done = end == End::Done;
            self.tally().note(Moments { intended, sent, ended: self.now() }, end);
            if !is_done {
                tokio::time::sleep(REST).await;
            }
        }
    }

    async fn ask(&self, client: &Client, turn: u64, random: u64, value: &mut [u8]) -> End {
        let mut chosen = (random >> 33) % self.keys;
        if self.workload == Workload::Fill {
            chosen = turn % self.keys;
            // Another value each time, as in life.
            let text = turn.to_string();
            let length = text.len().min(value.len());
            value[..length].copy_from_slice(&text.as_bytes()[..length]);
        }
        let key = format!("bench:{chosen:08}");
        let is_put = match self.workload {
            Workload::Put | Workload::Fill => true,
            Workload::Mixed => random >> 63 == 0,
            Workload::Get => false,
        };
        if is_put { client.put(&key, &*value).await.into() } else { client.get(&key).await.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pace: Pace) -> Load {
        let tally = Tally::new(1_000_000..2_000_000).unwrap();
        Load::new((Workload::Put, pace), (10, 10), 2_000_000, tally)
    }

    #[test]
    fn an_open_loop_begins_when_it_should_whatever_became_of_those_before() {
        let open = load(Pace::Open { per_second: 4 });
        assert_eq!(open.next(3, 0), Next::Begin(750_000));
        assert_eq!(open.next(3, 1_900_000), Next::Begin(750_000), "late, and its clock runs since then");
        assert_eq!(open.next(7, 2_000_000), Next::TooLate(1_750_000));
        assert_eq!(open.next(8, 0), Next::Stop);
        assert_eq!(open.next(u64::MAX, 0), Next::Stop);
    }

    #[test]
    fn a_closed_loop_begins_when_the_one_before_has_ended() {
        let closed = load(Pace::Closed);
        assert_eq!(
            (closed.next(9, 1_500_000), closed.next(9, 2_000_000)),
            (Next::Begin(1_500_000), Next::Stop)
        );
        let total = load(Pace::Total(9));
        assert_eq!((total.next(8, 9_000_000), total.next(9, 0)), (Next::Begin(9_000_000), Next::Stop));
    }
}
