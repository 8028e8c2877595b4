//! Which group owns what a request is about.
//!
//! The atlas says where to try; whether the group really owns the key is decided by its state machine.

use crate::kv::Operation;
use crate::ring::{Atlas, GroupId, Position};
use crate::wire::Request;

/// The group that a request is for; `None` if it is for the node itself, or names a group that does not exist.
#[must_use]
pub fn group_of(atlas: &Atlas, request: &Request, operation: Option<&Operation>) -> Option<GroupId> {
    match (request, operation.and_then(Operation::key)) {
        (Request::Get { key, .. }, _) => Some(atlas.owner(Position::of_key(key)).group()),
        (Request::Command { .. }, Some(key)) => Some(atlas.owner(Position::of_key(key)).group()),
        (Request::Command { group, .. }, None) => atlas.group(*group).map(|place| place.group()),
        (Request::Submit { group, .. }, _) => atlas.group(*group).map(|place| place.group()),
        (Request::Status | Request::Watch { .. }, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Envelope, RequestId, SessionId, Write};
    use crate::ring::found_without_keys;
    use bytes::Bytes;

    #[test]
    fn keys_decide_and_openings_name_their_group() {
        let atlas = Atlas::founded(&found_without_keys(4, 3, 3));
        let key = Bytes::from_static(b"some key");
        let owner = atlas.owner(Position::of_key(&key)).group();
        let request = RequestId { session: SessionId(1), number: 1 };
        let ask = |group, operation: &Operation| {
            let envelope = Envelope::new(request, 1, operation).encode();
            group_of(&atlas, &Request::Command { group: GroupId(group), envelope }, Some(operation))
        };
        assert_eq!(ask(99, &Operation::Write(Write::Delete { key: key.clone() })), Some(owner));
        assert_eq!(ask(99, &Operation::Cancel { key }), Some(owner));
        assert_eq!(ask(2, &Operation::Open), Some(GroupId(2)));
        assert_eq!(ask(99, &Operation::Open), None);
    }
}
