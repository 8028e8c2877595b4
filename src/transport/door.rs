//! Who may shake hands: strangers have no key that they could be counted by.
//!
//! A handshake costs the node memory and a signature before it knows who is there. So there are only so many at a time, of one
//! address fewer, and from addresses that may be made up fewer still: whoever comes then has to show first that answers reach
//! it, which costs the node nothing. Who finds no room is not answered, and asks again by itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Handshakes at a time.
const HANDSHAKES_MAX: usize = 1024;

/// Of one address.
const OF_ADDRESS_MAX: usize = 256;

/// While there are more than this, addresses must be proved. Fewer than [`OF_ADDRESS_MAX`]: nobody takes another's room by
/// using its address.
const UNPROVED_MAX: usize = 128;

/// A handshake takes a few round trips.
pub(super) const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(3);

/// Counts handshakes.
#[derive(Clone, Debug, Default)]
pub(super) struct Door(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// What whoever knocks is told.
#[derive(Debug)]
pub(super) enum Knock {
    /// Shake hands.
    Enter(Handshake),
    /// Come again with a proof that answers reach this address.
    ProveAddress,
    /// Nothing.
    Ignored,
}

/// A handshake that is counted as long as it takes.
#[derive(Debug)]
pub(super) struct Handshake {
    door: Door,
    address: IpAddr,
}

impl Door {
    fn knocking(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.0.lock().expect("never held while panicking")
    }

    /// Somebody wants to shake hands.
    pub(super) fn knock(&self, address: IpAddr, is_proved: bool) -> Knock {
        let address = network_of(address);
        let mut knocking = self.knocking();
        let all: usize = knocking.values().sum();
        if !is_proved && all >= UNPROVED_MAX {
            return Knock::ProveAddress;
        }
        let of_address = knocking.get(&address).map_or(0, |count| *count);
        if all >= HANDSHAKES_MAX || of_address >= OF_ADDRESS_MAX {
            return Knock::Ignored;
        }
        knocking.insert(address, of_address + 1);
        Knock::Enter(Handshake { door: self.clone(), address })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut knocking = self.door.knocking();
        let of_address = knocking.get_mut(&self.address).expect("it was counted");
        *of_address -= 1;
        if *of_address == 0 {
            knocking.remove(&self.address);
        }
    }
}

/// Whoever has one address of an IPv6 network has them all.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(of: u32) -> IpAddr {
        IpAddr::from(of.to_be_bytes())
    }

    #[test]
    fn one_address_cannot_keep_the_others_out() {
        let door = Door::default();
        let mut held = Vec::new();
        while let Knock::Enter(handshake) = door.knock(address(1), true) {
            held.push(handshake);
        }
        assert_eq!(held.len(), OF_ADDRESS_MAX);
        assert!(matches!(door.knock(address(2), true), Knock::Enter(_)));
        held.pop();
        assert!(matches!(door.knock(address(1), true), Knock::Enter(_)));
    }

    #[test]
    fn addresses_that_may_be_made_up_must_be_proved_when_it_gets_crowded() {
        let door = Door::default();
        let enter = |from: u32, is_proved: bool| match door.knock(address(from), is_proved) {
            Knock::Enter(handshake) => Some(handshake),
            _ => None,
        };
        let mut held: Vec<Handshake> = (0..).map_while(|from| enter(from, false)).collect();
        assert_eq!(held.len(), UNPROVED_MAX);
        assert!(matches!(door.knock(address(9_999), false), Knock::ProveAddress));
        held.extend((10_000..).map_while(|from| enter(from, true)));
        assert_eq!(held.len(), HANDSHAKES_MAX);
        drop(held);
        assert!(door.knocking().is_empty());
        assert!(enter(1, false).is_some());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::2:3"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
