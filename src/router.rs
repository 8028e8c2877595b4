//! Which group owns what a request is about.
//!
//! The map says where to try; whether the group really owns the key is decided by its state machine.

use crate::kv::Operation;
use crate::ring::{GroupId, Position, RingMap};
use crate::wire::Request;

/// The group that a request is for; `None` if it is for the node itself, or names a group that does not exist.
#[must_use]
pub fn group_of(ring: &RingMap, request: &Request, operation: Option<&Operation>) -> Option<GroupId> {
    match (request, operation.and_then(Operation::key)) {
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
    use crate::kv::{Envelope, RequestId, SessionId, Write};
    use bytes::Bytes;

    #[test]
    fn keys_decide_and_openings_name_their_group() {
        let ring = RingMap::even(4, 3, 3);
        let key = Bytes::from_static(b"some key");
        let owner = ring.owner(Position::of_key(&key)).id;
        let request = RequestId { session: SessionId(1), number: 1 };
        let ask = |group, operation: &Operation| {
            let envelope = Envelope::new(request, 1, operation).encode();
            group_of(&ring, &Request::Command { group: GroupId(group), envelope }, Some(operation))
        };
        assert_eq!(ask(99, &Operation::Write(Write::Delete { key: key.clone() })), Some(owner));
        assert_eq!(ask(99, &Operation::Cancel { key }), Some(owner));
        assert_eq!(ask(2, &Operation::Open), Some(GroupId(2)));
        assert_eq!(ask(99, &Operation::Open), None);
    }
}
