//! From a node's address to one that can be dialled.
//!
//! A name service may be slow, or silent. Whoever asked it cannot take the question back: a thread waits for the answer. So of one name
//! one question is under way at a time, and meanwhile the address that worked last is dialled.

use crate::ring::Address;
use std::net::SocketAddr;
use std::time::Duration;

type Found = Result<Vec<SocketAddr>, String>;

#[cfg(feature = "server")]
type Question = std::pin::Pin<Box<dyn Future<Output = Found> + Send>>;

/// How long an answer is waited for, where another address is known and where none is.
#[cfg(feature = "server")]
const PATIENCE_KNOWN: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(10);

/// All addresses of a name that a socket of this kind can reach; at least one.
async fn find(name: String, port: u16, is_ipv6: bool) -> Found {
    let found = tokio::net::lookup_host((name.as_str(), port)).await;
    let found = found.map_err(|error| format!("the name {name} is not known: {error}"))?;
    let found: Vec<SocketAddr> = found.filter(|address| is_ipv6 || address.is_ipv4()).collect();
    if found.is_empty() {
        return Err(format!("the name {name} has no address that can be reached from here"));
    }
    Ok(found)
}

/// Where to dial, once. Of several addresses `turn` says which; an error says why there is none.
pub(super) async fn look_up(address: &Address, is_ipv6: bool, turn: usize) -> Result<SocketAddr, String> {
    let Some(name) = address.name() else { return Ok(address.to_bind()) };
    let found = tokio::time::timeout(PATIENCE, find(name.to_string(), address.port(), is_ipv6)).await;
    let found = found.unwrap_or_else(|_| Err(format!("nobody says where {name} is")))?;
    Ok(found[turn % found.len()])
}

/// Where to dial one node, over and over.
#[cfg(feature = "server")]
pub(super) struct LookUp {
    address: Address,
    under_way: Option<Question>,
    /// Where the node was reached last.
    reached: Option<SocketAddr>,
    /// How often it was not reached.
    turn: usize,
}

#[cfg(feature = "server")]
impl LookUp {
    /// Nothing is known of it.
    pub(super) fn new(address: Address) -> Self {
        Self { address, under_way: None, reached: None, turn: 0 }
    }

    /// Where to dial now; an error says why that is not known.
    pub(super) async fn next(&mut self, is_ipv6: bool) -> Result<SocketAddr, String> {
        let Some(name) = self.address.name() else { return Ok(self.address.to_bind()) };
        let ask = || Box::pin(find(name.to_string(), self.address.port(), is_ipv6)) as Question;
        let question = self.under_way.get_or_insert_with(ask);
        let patience = if self.reached.is_some() { PATIENCE_KNOWN } else { PATIENCE };
        let found = match tokio::time::timeout(patience, question).await {
            Ok(found) => {
                self.under_way = None;
                found
            }
            Err(_) => Err(format!("nobody says where {name} is; it is still asked for")),
        };
        match found {
            Ok(found) => Ok(found[self.turn % found.len()]),
            Err(reason) => self.reached.ok_or(reason),
        }
    }

    /// The node was reached there.
    pub(super) fn reached(&mut self, at: SocketAddr) {
        self.reached = Some(at);
    }

    /// The node was not reached: if its name has several addresses, another one is tried.
    pub(super) fn failed(&mut self) {
        self.turn = self.turn.wrapping_add(1);
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

    /// A name service that falls silent takes nobody away who was there before.
    #[tokio::test]
    async fn what_was_reached_last_is_dialled_while_nobody_answers() {
        let at: SocketAddr = "10.0.0.9:7".parse().unwrap();
        let mut look_up = LookUp::new("n1.example.com:7".parse().unwrap());
        look_up.reached(at);
        for _ in 0..2 {
            look_up.under_way.get_or_insert_with(|| Box::pin(std::future::pending()));
            assert_eq!(look_up.next(true).await, Ok(at));
            assert!(look_up.under_way.is_some(), "the same question goes on");
        }
        look_up.under_way = Some(Box::pin(async { Err("not known".to_string()) }));
        assert_eq!((look_up.next(true).await, look_up.under_way.is_none()), (Ok(at), true));
        let several: Vec<SocketAddr> = ["10.0.0.1:7", "10.0.0.2:7"].map(|text| text.parse().unwrap()).into();
        for (expected, is_reached) in [(0, false), (1, true), (1, false), (0, true)] {
            let answer = several.clone();
            look_up.under_way = Some(Box::pin(async { Ok(answer) }));
            assert_eq!(look_up.next(true).await, Ok(several[expected]));
            if is_reached { look_up.reached(several[expected]) } else { look_up.failed() }
        }
    }
}
