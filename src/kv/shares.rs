//! How much of a group's memory each client may hold: sessions, and outcomes that are remembered for retries.
//!
//! A client may hold a sixteenth of what the others leave free. One alone gets much, and the fuller the group, the less anybody gets
//! more: behind `n` clients that hold all they may, 15/16 to the power of `n` is free, so that it takes more than 128 of them to leave
//! nothing for the next. The rule needs no list of clients and no clock: every replica comes to the same verdict.
//!
//! What was taken while others held less is not taken back: a share is asked for where something is added.
//!
//! What a client holds follows from the sessions, and is not stored.

use super::operation::Client;
use crate::limits::{CLIENT_SHARE, OUTCOME_BYTES, OUTCOMES_BYTES_MAX, SESSIONS_MAX};
use std::collections::BTreeMap;

/// What a client holds of a group's memory, or all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Sessions, with those that are closed and not forgotten yet.
    pub sessions: u64,
    /// Bytes of remembered outcomes.
    pub bytes: u64,
}

/// A client holds as much as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exceeded {
    pub(super) held: u64,
    pub(super) max: u64,
}

/// Who holds how much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    all: Held,
    of_clients: BTreeMap<Client, Held>,
}

impl Shares {
    /// Whether the client may hold another session.
    pub(super) fn may_open(&self, client: &Client) -> Result<(), Exceeded> {
        judge(self.of(client).sessions, 1, self.all.sessions, SESSIONS_MAX)
    }

    /// Whether another outcome may be remembered for the client.
    pub(super) fn may_remember(&self, client: &Client) -> Result<(), Exceeded> {
        judge(self.of(client).bytes, OUTCOME_BYTES, self.all.bytes, OUTCOMES_BYTES_MAX)
    }

    /// Whether so little is remembered that another outcome may be, whoever asks: even one client that holds all of it holds less
    /// than its share.
    pub(super) fn have_plenty(&self) -> bool {
        self.all.bytes + OUTCOME_BYTES <= OUTCOMES_BYTES_MAX / (CLIENT_SHARE + 1)
    }

    /// What a client holds.
    pub(super) fn of(&self, client: &Client) -> Held {
        self.of_clients.get(client).copied().unwrap_or_default()
    }

    /// What all clients hold together.
    #[cfg(test)]
    pub(super) fn all(&self) -> Held {
        self.all
    }

    /// What each client holds that holds anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Client, &Held)> {
        self.of_clients.iter()
    }

    /// The client holds so much more.
    pub(super) fn add(&mut self, client: Client, more: Held) {
        for held in [&mut self.all, self.of_clients.entry(client).or_default()] {
            held.sessions += more.sessions;
            held.bytes += more.bytes;
        }
    }

    /// The client holds so much less.
    pub(super) fn remove(&mut self, client: &Client, less: Held) {
        let of_client = self.of_clients.get_mut(client).expect("what is given back was held");
        for held in [&mut self.all, &mut *of_client] {
            held.sessions -= less.sessions;
            held.bytes -= less.bytes;
        }
        if *of_client == Held::default() {
            self.of_clients.remove(client);
        }
    }
}

/// Whether somebody who holds so much of all that is held may hold so much more.
fn judge(held: u64, more: u64, all: u64, limit: u64) -> Result<(), Exceeded> {
    // A state that another build made may hold more than the limit.
    let left_by_others = limit.saturating_sub(all - held);
    let max = left_by_others / CLIENT_SHARE;
    if held + more <= max { Ok(()) } else { Err(Exceeded { held, max }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SESSION: Held = Held { sessions: 1, bytes: 0 };
    const OUTCOME: Held = Held { sessions: 0, bytes: OUTCOME_BYTES };

    fn take_all(shares: &mut Shares, client: u8) -> u64 {
        while shares.may_open(&[client; 32]).is_ok() {
            shares.add([client; 32], SESSION);
        }
        shares.of(&[client; 32]).sessions
    }

    #[test]
    fn it_takes_many_clients_that_hold_all_they_may_to_leave_nothing_for_the_next() {
        let mut shares = Shares::default();
        let taken: Vec<u64> = (0..128).map(|client| take_all(&mut shares, client)).collect();
        assert_eq!((taken[0], taken[1]), (SESSIONS_MAX / 16, SESSIONS_MAX * 15 / 256));
        assert!(taken[63] > 60 && taken[127] == 1, "{taken:?}");
        // Who came first holds more than it would get now, and gets nothing more.
        let refused = shares.may_open(&[0; 32]).unwrap_err();
        assert!(refused.held == taken[0] && refused.max < 300, "{refused:?}");
    }

    #[test]
    fn outcomes_have_shares_like_sessions() {
        let mut shares = Shares::default();
        let (greedy, other) = ([1; 32], [2; 32]);
        while shares.may_remember(&greedy).is_ok() {
            shares.add(greedy, OUTCOME);
        }
        assert_eq!(shares.of(&greedy).bytes, OUTCOMES_BYTES_MAX / 16);
        assert!(!shares.have_plenty() && shares.may_remember(&other).is_ok());
        shares.remove(&greedy, Held { sessions: 0, bytes: OUTCOMES_BYTES_MAX / 16 });
        assert_eq!(shares, Shares::default());
    }

    proptest! {
        /// However greedy clients come and go, what is free is what the essay says.
        #[test]
        fn many_greedy_clients_leave_the_power_of_their_number(
            steps in proptest::collection::vec((0u8..24, any::<bool>(), 1u64..6_000), 1..200)
        ) {
            let mut shares = Shares::default();
            let mut model: BTreeMap<u8, u64> = BTreeMap::new();
            for (client, takes, count) in steps {
                let held = model.entry(client).or_default();
                for _ in 0..count {
                    if takes && shares.may_open(&[client; 32]).is_ok() {
                        shares.add([client; 32], SESSION);
                        *held += 1;
                    } else if !takes && *held > 0 {
                        shares.remove(&[client; 32], SESSION);
                        *held -= 1;
                    } else {
                        break;
                    }
                }
                prop_assert_eq!(shares.of(&[client; 32]).sessions, *held);
                prop_assert_eq!(shares.all().sessions, model.values().sum::<u64>());
                let clients = i32::try_from(model.values().filter(|held| **held > 0).count()).unwrap();
                let free = (SESSIONS_MAX - shares.all().sessions) as f64;
                prop_assert!(free >= SESSIONS_MAX as f64 * (15.0f64 / 16.0).powi(clients));
                prop_assert_eq!(shares.may_open(&[99; 32]), Ok(()));
            }
        }

        /// The short cut says yes only where the rule does.
        #[test]
        fn plenty_is_within_every_share(all in 0..OUTCOMES_BYTES_MAX / 16, part in 0..=100u64) {
            let mut shares = Shares::default();
            let own = all / 100 * part;
            shares.add([1; 32], Held { sessions: 1, bytes: own });
            shares.add([2; 32], Held { sessions: 1, bytes: all - own });
            if shares.have_plenty() {
                prop_assert_eq!(shares.may_remember(&[1; 32]), Ok(()));
                prop_assert_eq!(shares.may_remember(&[2; 32]), Ok(()));
            }
        }
    }
}
