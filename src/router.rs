//! Which group owns what a request is about.
//!
//! The map says where to try; whether the group really owns the key is decided by its state machine.

use crate::kv::Command;
use crate::ring::{GroupId, Position, RingMap};
use crate::wire::Request;

/// The group that a request is for; `None` if it is for the node itself, or names a group that does not exist.
#[must_use]
pub fn group_of(ring: &RingMap, request: &Request, command: Option<&Command>) -> Option<GroupId> {
    match (request, command.and_then(Command::key)) {
        (Request::Get { key, .. }, _) => Some(ring.owner(Position::of_key(key)).id),
        (Request::Command { .. }, Some(key)) => Some(ring.owner(Position::of_key(key)).id),
        (Request::Command { group, .. }, None) => ring.group(*group).map(|place| place.id),
        (Request::Submit { group, .. }, _) => ring.group(*group).map(|place| place.id),
        (Request::Status | Request::Watch { .. }, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{RequestId, SessionId, Write};
    use bytes::Bytes;

    #[test]
    fn keys_decide_and_openings_name_their_group() {
        let ring = RingMap::even(4, 3, 3);
        let key = Bytes::from_static(b"some key");
        let owner = ring.owner(Position::of_key(&key)).id;
        let request = RequestId { session: SessionId(1), number: 1 };
        let command = Command::Write { request, ack_below: 1, write: Write::Delete { key: key.clone() } };
        let wrong_guess = Request::Command { group: GroupId(99), command: command.encode() };
        assert_eq!(group_of(&ring, &wrong_guess, Some(&command)), Some(owner));
        let open = Command::Open { nonce: 1, client: [1; 32] };
        let ask = |group| Request::Command { group: GroupId(group), command: open.encode() };
        assert_eq!(group_of(&ring, &ask(2), Some(&open)), Some(GroupId(2)));
        assert_eq!(group_of(&ring, &ask(99), Some(&open)), None);
    }
}
