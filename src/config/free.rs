//! Addresses of this machine for a cluster that somebody tries.
//!
//! A node that is killed comes back at the same address. Meanwhile its port must not go to somebody else, and the one who hands out
//! ports is the system: any program that asks for "some port" may get it. So these come from below those that it hands out.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below it live the services of a machine.
const LOWEST: u16 = 10_000;
/// Where systems that do not say it hand out ports from: the lowest of those in use (RFC 6056 section 3.2 has the customs).
const HANDED_OUT_FROM: u16 = 32_768;

/// `count` addresses on loopback whose ports nobody uses just now, and none of which is given to whoever asks for any port.
///
/// # Errors
/// If there are not so many.
pub fn free_addresses(count: usize) -> std::io::Result<Vec<SocketAddr>> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let end = handed_out_from().max(LOWEST + 1);
    // Programs that ask at the same time begin in different places, and so does one that asks twice.
    let asked = ASKED.fetch_add(1, Ordering::Relaxed).wrapping_mul(16);
    let start = std::process::id().wrapping_mul(127).wrapping_add(asked);
    let span = u32::from(end - LOWEST);
    let ports = (0..span).filter_map(|step| u16::try_from(start.wrapping_add(step) % span).ok());
    let free = ports.filter_map(|port| UdpSocket::bind((Ipv4Addr::LOCALHOST, LOWEST + port)).ok());
    // All are held until the last is found.
    let held: Vec<UdpSocket> = free.take(count).collect();
    if held.len() < count {
        let reason = format!("of the ports {LOWEST} to {end} only {} are free, of {count}", held.len());
        return Err(std::io::Error::other(reason));
    }
    held.iter().map(UdpSocket::local_addr).collect()
}

/// The first port of those that the system hands out by itself.
fn handed_out_from() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(HANDED_OUT_FROM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_addresses_are_different_and_not_for_everybody() {
        let (some, more) = (free_addresses(40).unwrap(), free_addresses(4).unwrap());
        let all: std::collections::BTreeSet<u16> =
            some.iter().chain(&more).map(|address| address.port()).collect();
        assert!(all.iter().all(|port| *port >= LOWEST && *port < handed_out_from().max(LOWEST + 1)));
        assert_eq!(
            some.iter().map(|address| address.port()).collect::<std::collections::BTreeSet<_>>().len(),
            40
        );
    }
}
