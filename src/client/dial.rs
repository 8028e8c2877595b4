//! Opening connections. One dial for each node at a time, however many wait for it; it goes on when they have lost their patience,
//! so that what was done for it is not lost: where hundreds of clients begin at once, a handshake may take seconds, and to give it
//! up and begin anew would keep all of them busy and connect none.
//!
//! A node that is down is silent. A dial that hears nothing is given up soon and begun anew, because a node that comes back hears a
//! new one sooner than the old one sends again. One that is answered may take long. Between dials there is a rest, longer after
//! more failures and different for every client.

use super::connection::Open;
use crate::transport::LinkError;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// A dial that hears nothing for so long is given up; the longest after several failures, because whoever has too much to do is
/// silent as well.
const SILENCE_MIN: Duration = Duration::from_millis(600);
const SILENCE_DOUBLINGS: u32 = 2;

/// One that was answered may take so long.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(8);

/// The longest rest before the second dial, and the longest of all.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_DOUBLINGS: u32 = 2;

/// What a dial came to; none while it goes on.
pub(super) type Dialled = Option<Result<Arc<Open>, LinkError>>;

/// The connection to a node, or the attempt to open one.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    open: Option<Arc<Open>>,
    dialling: Option<watch::Receiver<Dialled>>,
    failures: u32,
}

/// What there is of a connection.
#[derive(Debug)]
pub(super) enum Found {
    /// It is open.
    Open(Arc<Open>),
    /// Somebody opens it.
    Dialling(watch::Receiver<Dialled>),
    /// Nobody does: the caller is to, after so many failures, and to tell.
    Nothing(watch::Sender<Dialled>, u32),
}

impl Slot {
    /// The connection, if it is open.
    pub(super) fn open(&self) -> Option<Arc<Open>> {
        let state = self.0.lock().expect("never held while panicking");
        state.open.as_ref().filter(|open| !open.is_closed()).map(Arc::clone)
    }

    /// The connection, or who opens it.
    pub(super) fn find(&self) -> Found {
        let mut state = self.0.lock().expect("never held while panicking");
        if let Some(open) = state.open.as_ref().filter(|open| !open.is_closed()) {
            return Found::Open(Arc::clone(open));
        }
        state.open = None;
        // One whose dial ended without a word has nobody who opens it.
        if let Some(dialling) = state.dialling.as_ref().filter(|dialling| dialling.has_changed().is_ok()) {
            return Found::Dialling(dialling.clone());
        }
        let (sender, receiver) = watch::channel(None);
        state.dialling = Some(receiver);
        Found::Nothing(sender, state.failures)
    }

    /// A dial has ended.
    pub(super) fn dialled(&self, sender: &watch::Sender<Dialled>, result: Result<Arc<Open>, LinkError>) {
        {
            let mut state = self.0.lock().expect("never held while panicking");
            state.dialling = None;
            state.open = result.as_ref().ok().cloned();
            state.failures = if result.is_ok() { 0 } else { state.failures.saturating_add(1) };
        }
        // Nobody waits any more: fine.
        let _ = sender.send(Some(result));
    }
}

/// How long a dial may hear nothing after so many failures.
pub(super) fn silence(failures: u32) -> Duration {
    SILENCE_MIN * (1 << failures.min(SILENCE_DOUBLINGS))
}

/// How long to rest before a dial after so many failures, as chance wills it.
pub(super) fn rest(failures: u32, chance: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let longest = REST_MIN * (1 << (failures - 1).min(REST_DOUBLINGS));
    longest.mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> LinkError {
        LinkError::Unreachable { address: "127.0.0.1:1".parse().unwrap(), reason: "silence".to_string() }
    }

    #[tokio::test]
    async fn who_comes_while_a_node_is_dialled_waits_for_the_same_dial() {
        let slot = Slot::default();
        let Found::Nothing(sender, 0) = slot.find() else { panic!("nobody dials yet") };
        let waiting: Vec<_> = (0..500)
            .map(|_| match slot.find() {
                Found::Dialling(dialled) => dialled,
                other => panic!("{other:?}"),
            })
            .collect();
        slot.dialled(&sender, Err(unreachable()));
        for mut dialled in waiting {
            let told = dialled.wait_for(Option::is_some).await.unwrap().clone();
            assert_eq!(told.unwrap().unwrap_err(), unreachable());
        }
        assert!(matches!(slot.find(), Found::Nothing(_, 1)), "the next one dials anew, after one failure");
    }

    #[test]
    fn a_dial_that_ended_without_a_word_keeps_nobody_waiting() {
        let slot = Slot::default();
        let Found::Nothing(sender, _) = slot.find() else { panic!("nobody dials yet") };
        drop(sender);
        assert!(matches!(slot.find(), Found::Nothing(..)));
    }

    #[test]
    fn dials_are_further_apart_and_more_patient_after_failures() {
        assert_eq!(rest(0, u32::MAX), Duration::ZERO, "the first is made at once");
        let longest: Vec<u128> =
            [1, 2, 3, 4, 1_000].map(|failures| rest(failures, u32::MAX).as_millis()).into();
        assert_eq!(longest, [100, 200, 400, 400, 400]);
        assert!(rest(3, u32::MAX / 2) < rest(3, u32::MAX), "not all at the same time");
        let silences: Vec<u128> = [0, 1, 2, u32::MAX].map(|failures| silence(failures).as_millis()).into();
        assert_eq!(silences, [600, 1_200, 2_400, 2_400]);
    }
}
