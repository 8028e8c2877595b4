//! Who may have signatures checked: in Byzantine mode a check is the first work that a client can make a node do.
//!
//! Each account has a share of what may be under way ([`Shares`]). Whoever brings bundles that are not signed is left out for a
//! while, longer each time: what it brings meanwhile is refused without a look. Others do not notice, also on the same node. An
//! account is the key of a connection, never the name in a bundle: that anybody can write there.

use crate::shares::{Account, Shares};
use crate::ticket::Ticket;
use std::collections::BTreeMap;
use tetrachord_consensus::Ticks;

/// Bundles that a node checks for all at a time, and their bytes.
const CHECKS_MAX: usize = 4 << 10;
const BYTES_MAX: usize = 32 << 20;

/// Whoever brought what is not signed is left out for so long, in milliseconds; twice as long each time, and no longer than the
/// second. After that long without another it begins anew.
const LEFT_OUT_MILLIS: u64 = 500;
const LEFT_OUT_MILLIS_MAX: u64 = 60_000;

/// Why a bundle is not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// Too many are being checked for this account or for all.
    Busy,
    /// Those that it brought lately did not hold.
    LeftOut,
}

#[derive(Clone, Copy, Debug)]
struct LeftOut {
    until: Ticks,
    times: u32,
}

/// What is being checked for whom.
#[derive(Debug)]
pub(super) struct Askers {
    checks: Shares,
    bytes: Shares,
    in_check: BTreeMap<Ticket, (Account, usize)>,
    left_out: BTreeMap<Account, LeftOut>,
    /// A defect, in tests of the tests: whoever comes first has everything, and nobody is left out.
    is_first_come: bool,
    pub(super) now: Ticks,
}

impl Askers {
    pub(super) fn new(is_first_come: bool) -> Self {
        Self {
            checks: Shares::of(CHECKS_MAX),
            bytes: Shares::of(BYTES_MAX),
            in_check: BTreeMap::new(),
            left_out: BTreeMap::new(),
            is_first_come,
            now: Ticks(0),
        }
    }

    /// Whether a bundle of so many bytes may be checked; it counts until [`Self::release`].
    pub(super) fn admit(&mut self, ticket: Ticket, account: Account, bytes: usize) -> Result<(), Denied> {
        if self.is_first_come {
            return Ok(());
        }
        if self.left_out.get(&account).is_some_and(|out| self.now < out.until) {
            return Err(Denied::LeftOut);
        }
        if !self.checks.take(account, 1) {
            return Err(Denied::Busy);
        }
        if !self.bytes.take(account, bytes) {
            self.checks.give_back(account, 1);
            return Err(Denied::Busy);
        }
        self.in_check.insert(ticket, (account, bytes));
        Ok(())
    }

    /// Who answers for a bundle that is being checked.
    pub(super) fn account(&self, ticket: Ticket) -> Option<Account> {
        self.in_check.get(&ticket).map(|(account, _)| *account)
    }

    /// A bundle is checked, or will not be.
    pub(super) fn release(&mut self, ticket: Ticket) -> Option<Account> {
        let (account, bytes) = self.in_check.remove(&ticket)?;
        self.checks.give_back(account, 1);
        self.bytes.give_back(account, bytes);
        Some(account)
    }

    /// A bundle did not hold. Returns for how many milliseconds its account is left out from now on; those that were under way
    /// with it change nothing more.
    pub(super) fn refute(&mut self, ticket: Ticket) -> Option<(Account, u64)> {
        let account = self.release(ticket)?;
        let out = self.left_out.entry(account).or_insert(LeftOut { until: Ticks(0), times: 0 });
        if self.now < out.until {
            return None;
        }
        if self.now.since(out.until) >= LEFT_OUT_MILLIS_MAX {
            out.times = 0;
        }
        let millis = (LEFT_OUT_MILLIS << out.times.min(16)).min(LEFT_OUT_MILLIS_MAX);
        out.times += 1;
        out.until = self.now.plus(millis);
        Some((account, millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::ClientId;

    fn client(number: u8) -> Account {
        Account::Client(ClientId([number; 32]))
    }

    #[test]
    fn no_client_has_all_checks_under_way() {
        let mut askers = Askers::new(false);
        let taken = (0..10_000).take_while(|at| askers.admit(Ticket(*at), client(1), 100).is_ok()).count();
        assert_eq!(taken, CHECKS_MAX / 2);
        assert_eq!(askers.admit(Ticket(20_000), client(1), 100), Err(Denied::Busy));
        assert_eq!(askers.admit(Ticket(20_001), client(2), 100), Ok(()));
        (0..10_000).for_each(|at| _ = askers.release(Ticket(at)));
        assert_eq!(askers.release(Ticket(0)), None, "once");
        let large = |at: u64| (Ticket(at), client(3), 2 << 20);
        let admit = |askers: &mut Askers, (ticket, account, bytes)| askers.admit(ticket, account, bytes);
        let taken = (0..100).take_while(|at| admit(&mut askers, large(*at)).is_ok()).count();
        assert!(taken * (2 << 20) <= BYTES_MAX / 2 && taken >= 7, "{taken}");
        assert_eq!(askers.admit(Ticket(200), client(2), 2 << 20), Ok(()));
        assert_eq!(askers.account(Ticket(200)), Some(client(2)));
    }

    #[test]
    fn whoever_brings_what_is_not_signed_is_left_out_longer_each_time() {
        let mut askers = Askers::new(false);
        let (bad, good) = (client(1), client(2));
        let mut ticket = 0;
        let mut lasted = Vec::new();
        for _ in 0..10 {
            (0..3).for_each(|at| askers.admit(Ticket(ticket + at), bad, 100).unwrap());
            askers.admit(Ticket(ticket + 3), good, 100).unwrap();
            let (account, millis) = askers.refute(Ticket(ticket)).unwrap();
            assert_eq!(account, bad);
            // What was under way with it adds nothing.
            assert_eq!(askers.refute(Ticket(ticket + 1)), None);
            assert_eq!(askers.refute(Ticket(ticket + 2)), None);
            askers.release(Ticket(ticket + 3)).unwrap();
            ticket += 4;
            askers.now = askers.now.plus(millis - 1);
            assert_eq!(askers.admit(Ticket(ticket), bad, 100), Err(Denied::LeftOut));
            assert_eq!(askers.admit(Ticket(ticket), good, 100), Ok(()), "others do not notice");
            askers.release(Ticket(ticket)).unwrap();
            askers.now = askers.now.plus(1);
            lasted.push(millis);
        }
        assert_eq!(lasted, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        askers.now = askers.now.plus(LEFT_OUT_MILLIS_MAX);
        askers.admit(Ticket(ticket), bad, 100).unwrap();
        assert_eq!(askers.refute(Ticket(ticket)), Some((bad, LEFT_OUT_MILLIS)), "long ago is forgiven");
    }
}
