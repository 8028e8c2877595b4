//! From a node's address to one that can be dialled.

use crate::ring::Address;
use std::net::SocketAddr;

/// Looks a name up. Of several addresses that a socket of this kind can reach, `turn` says which; an error says why there is none.
pub(super) async fn look_up(address: &Address, is_ipv6: bool, turn: usize) -> Result<SocketAddr, String> {
    let Some(name) = address.name() else { return Ok(address.to_bind()) };
    let found = tokio::net::lookup_host((name, address.port())).await;
    let found = found.map_err(|error| format!("the name {name} is not known: {error}"))?;
    let found: Vec<SocketAddr> = found.filter(|address| is_ipv6 || address.is_ipv4()).collect();
    match found.as_slice() {
        [] => Err(format!("the name {name} has no address that can be reached from here")),
        some => Ok(some[turn % some.len()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_as_the_socket_needs_them() {
        let local: Address = "localhost:7".parse().unwrap();
        assert_eq!(look_up(&local, false, 3).await, Ok("127.0.0.1:7".parse().unwrap()));
        let plain: Address = "10.0.0.1:7".parse().unwrap();
        assert_eq!(look_up(&plain, true, 0).await, Ok("10.0.0.1:7".parse().unwrap()));
        let unknown: Address = "no.such.name.invalid:7".parse().unwrap();
        assert!(look_up(&unknown, true, 0).await.unwrap_err().contains("no.such.name.invalid"));
    }
}
