//! The native protocol at a node: what a client's bytes ask, and the bytes of what it is told.
//!
//! Nothing else in the node knows how a client's frames look.

use crate::kv::{Client, Command, Operation, check_key};
use crate::limits::Limits;
use crate::wire::{self, Answer, AnswerFrame, FrameError, Request, RequestFrame};
use bytes::Bytes;

/// Reads a client's frame.
///
/// # Errors
/// If it is none: whoever sends such does not speak the protocol.
pub fn read(body: &[u8]) -> Result<RequestFrame, FrameError> {
    wire::decode(body)
}

/// The answer to the request that the client knows by this number.
#[must_use]
pub fn answer(id: u64, answer: Answer) -> Bytes {
    wire::encode(&AnswerFrame { id, answer })
}

/// What nobody has asked for just now: a connection is told of something that it watches.
#[must_use]
pub fn news(answer: Answer) -> Bytes {
    const UNASKED: u64 = 0;
    self::answer(UNASKED, answer)
}

/// Checks a request where it enters: its form and its sizes. What is wrong here is wrong everywhere. Where a client brings it, and not
/// another node, it is written into it whose session is opened or closed: the client that the connection was admitted for.
pub fn check(
    request: &mut Request,
    client: Option<&Client>,
    limits: &Limits,
) -> Result<Option<Command>, String> {
    match request {
        Request::Command { envelope: bytes, .. } => {
            let Command { mut envelope, operation } =
                Command::decode(bytes).map_err(|error| error.to_string())?;
            operation.check(limits).map_err(|error| error.to_string())?;
            if envelope.not_after.is_some() || matches!(operation, Operation::Get { .. }) {
                return Err("in crash mode no request is void by itself, and no read is ordered".to_string());
            }
            if let Some(client) = client {
                let is_named = matches!(operation, Operation::Open | Operation::Close);
                let whose = is_named.then_some(*client);
                if envelope.client != whose {
                    envelope.client = whose;
                    *bytes = envelope.encode();
                }
            }
            Ok(Some(Command { envelope, operation }))
        }
        Request::Get { key, .. } => check_key(key, limits).map(|()| None).map_err(|error| error.to_string()),
        // What is signed is judged by the state machine of every replica.
        Request::Status | Request::Submit { .. } | Request::Watch { .. } => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Envelope, Write};

    #[test]
    fn what_is_malformed_or_too_large_is_refused_where_it_enters() {
        let limits = Limits { key_bytes_max: 4, value_bytes_max: 4 };
        let mut nonsense =
            Request::Command { group: crate::ring::GroupId(1), envelope: Bytes::from_static(&[9, 9]) };
        assert!(check(&mut nonsense, None, &limits).unwrap_err().contains("not a request"));
        let consistency = wire::Consistency::Linearizable;
        let mut long =
            Request::Get { group: crate::ring::GroupId(1), key: Bytes::from_static(b"12345"), consistency };
        assert!(check(&mut long, None, &limits).unwrap_err().contains("1 to 4 bytes"));
    }

    #[test]
    fn a_session_is_opened_and_closed_for_the_key_of_the_connection_whatever_the_client_says() {
        let group = crate::ring::GroupId(1);
        let (mine, other) = ([1; 32], [2; 32]);
        let ask = |operation| Envelope::new(crate::kv::RequestId::default(), 1, &operation);
        let write = ask(Operation::Write(Write::put("k", "v")));
        let (open, close) = (ask(Operation::Open), ask(Operation::Close));
        for (said, meant) in [
            (open.clone().of(other), open.of(mine)),
            (close.clone().of(other), close.of(mine)),
            (write.clone().of(other), write),
        ] {
            let mut request = Request::Command { group, envelope: said.encode() };
            let Command { envelope, .. } =
                check(&mut request, Some(&mine), &Limits::default()).unwrap().unwrap();
            assert_eq!(envelope, meant);
            assert_eq!(request, Request::Command { group, envelope: meant.encode() });
            // Another node has looked at the key already.
            let mut request = Request::Command { group, envelope: said.encode() };
            let Command { envelope, .. } = check(&mut request, None, &Limits::default()).unwrap().unwrap();
            assert_eq!(envelope, said);
        }
    }

    #[test]
    fn what_only_byzantine_mode_has_is_refused() {
        let group = crate::ring::GroupId(1);
        let ask = |operation| Envelope::new(crate::kv::RequestId::default(), 1, &operation);
        let read = ask(Operation::Get { key: Bytes::from_static(b"k") });
        let void = Envelope { not_after: Some(7), ..ask(Operation::Open) };
        for envelope in [read, void] {
            let mut request = Request::Command { group, envelope: envelope.encode() };
            assert!(check(&mut request, None, &Limits::default()).unwrap_err().contains("in crash mode"));
        }
    }
}
