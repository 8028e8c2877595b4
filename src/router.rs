//! Where a request goes.
//!
//! The atlas says where to try; whether the group really owns the key is decided by its state machine. Whoever asks names the group that it
//! believes to own the key: if that is another one, it is told where the key is, because its session is in the wrong group.

use crate::kv::Operation;
use crate::ring::{Atlas, GroupId, Place, Position};
use crate::wire::Request;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this group.
    Group(GroupId),
    /// Nowhere: whoever asked is told that the key is there.
    Moved(Place),
    /// Nowhere: it names a group that does not exist.
    Nowhere,
    /// It is for the node itself.
    Node,
}

/// Where a request goes. A command comes with its operation.
#[must_use]
pub fn route(atlas: &Atlas, request: &Request, operation: Option<&Operation>) -> Route {
    let (group, key) = match request {
        Request::Get { group, key, .. } => (*group, Some(key)),
        Request::Command { group, .. } => (*group, operation.and_then(Operation::key)),
        // What is signed is signed for its group, and judged by it.
        Request::Submit { group, .. } => (*group, None),
        Request::Status | Request::Watch { .. } => return Route::Node,
    };
    match key.map(|key| atlas.owner(Position::of_key(key))) {
        Some(owner) if owner.group() != group => Route::Moved(owner.clone()),
        Some(_) => Route::Group(group),
        None if atlas.group(group).is_some() => Route::Group(group),
        None => Route::Nowhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Envelope, RequestId, SessionId, Write};
    use crate::ring::found_without_keys;
    use crate::wire::Consistency;
    use bytes::Bytes;

    #[test]
    fn keys_decide_and_openings_name_their_group() {
        let atlas = Atlas::founded(&found_without_keys(4, 3, 3));
        let key = Bytes::from_static(b"some key");
        let owner = atlas.owner(Position::of_key(&key)).clone();
        let other = GroupId(owner.group().0 % 4 + 1);
        let request = RequestId { session: SessionId(1), number: 1 };
        let ask = |group, operation: &Operation| {
            let envelope = Envelope::new(request, 1, operation).encode();
            route(&atlas, &Request::Command { group, envelope }, Some(operation))
        };
        for operation in
            [Operation::Write(Write::Delete { key: key.clone() }), Operation::Cancel { key: key.clone() }]
        {
            assert_eq!(ask(owner.group(), &operation), Route::Group(owner.group()));
            assert_eq!(ask(other, &operation), Route::Moved(owner.clone()));
            assert_eq!(ask(GroupId(99), &operation), Route::Moved(owner.clone()));
        }
        let consistency = Consistency::Eventual;
        let read = |group| route(&atlas, &Request::Get { group, key: key.clone(), consistency }, None);
        assert_eq!(read(owner.group()), Route::Group(owner.group()));
        assert_eq!(read(other), Route::Moved(owner));
        assert_eq!(ask(GroupId(2), &Operation::Open), Route::Group(GroupId(2)));
        assert_eq!(ask(GroupId(99), &Operation::Open), Route::Nowhere);
        assert_eq!(route(&atlas, &Request::Status, None), Route::Node);
    }
}
