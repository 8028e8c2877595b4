//! Where a request goes: to the replica here, to the node that leads, or back with word of where its key is. All of it is decided here.
//!
//! The atlas says where to try; whether the group really owns the key is decided by its state machine. Whoever asks names the group that it
//! believes to own the key: if that is another one, it is told where the key is, because its session is in the wrong group.
//!
//! A request is passed on once: what another node passes on is served here or refused, so none goes round.

use crate::kv::Operation;
use crate::ring::{Atlas, GroupId, NodeId, Place, Position};
use crate::wire::{Consistency, Request};

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// It is for the node itself.
    Node,
    /// To the replica of this group that is here.
    Here(GroupId),
    /// To this node, which leads the group.
    Leader(GroupId, NodeId),
    /// To any node that has a replica of the group: none is here.
    Elsewhere(GroupId),
    /// Nowhere: whoever asked is told that the key is there.
    Moved(Place),
    /// Nowhere for now: nobody leads the group, as far as is known here.
    NoLeader,
    /// Nowhere: it was passed on to a node that has no replica of the group.
    NotHere,
    /// Nowhere: it names a group that does not exist.
    Nowhere,
}

/// What a node knows of a group that it has a replica of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Whether the replica may vote yet: one that may not knows nothing, not even what is old.
    pub may_vote: bool,
}

/// What a node knows of itself and of its groups.
pub struct View<'a, F: Fn(GroupId) -> Option<Replica>> {
    /// The node.
    pub me: NodeId,
    /// Where to try.
    pub atlas: &'a Atlas,
    /// What is known of the replica here, if there is one.
    pub replica: F,
}

impl<F: Fn(GroupId) -> Option<Replica>> View<'_, F> {
    /// Where a request goes. A command comes with its operation; `is_passed_on` tells whether another node has brought it.
    #[must_use]
    pub fn route(&self, request: &Request, operation: Option<&Operation>, is_passed_on: bool) -> Route {
        let (group, key) = match request {
            Request::Get { group, key, .. } => (*group, Some(key)),
            Request::Command { group, .. } => (*group, operation.and_then(Operation::key)),
            // What is signed is signed for its group, and judged by it.
            Request::Submit { group, .. } => (*group, None),
            Request::Status | Request::Watch { .. } => return Route::Node,
        };
        match key.map(|key| self.atlas.owner(Position::of_key(key))) {
            Some(owner) if owner.group() != group => Route::Moved(owner.clone()),
            Some(_) => self.within(group, request, is_passed_on),
            None if self.atlas.group(group).is_some() => self.within(group, request, is_passed_on),
            None => Route::Nowhere,
        }
    }

    fn within(&self, group: GroupId, request: &Request, is_passed_on: bool) -> Route {
        let is_served_by_any = match request {
            Request::Get { consistency, .. } => *consistency != Consistency::Linearizable,
            // Signed requests are kept by every replica that they are brought to; the primary is not trusted to.
            Request::Submit { .. } => true,
            Request::Command { .. } | Request::Status | Request::Watch { .. } => false,
        };
        match (self.replica)(group) {
            None if is_passed_on => Route::NotHere,
            None => Route::Elsewhere(group),
            Some(replica) if !replica.may_vote => Route::NoLeader,
            Some(_) if is_served_by_any || is_passed_on => Route::Here(group),
            Some(Replica { leader: Some(node), .. }) if node == self.me => Route::Here(group),
            Some(Replica { leader: Some(node), .. }) => Route::Leader(group, node),
            Some(Replica { leader: None, .. }) => Route::NoLeader,
        }
    }
}

/// Which of these nodes is asked, in turn: one to which there is a link, if there is any.
#[must_use]
pub fn choose(nodes: &[NodeId], turn: u64, is_linked: impl Fn(NodeId) -> bool) -> Option<NodeId> {
    let first = usize::try_from(turn % nodes.len().max(1) as u64).expect("a small remainder");
    let mut in_turn = nodes.iter().cycle().skip(first).take(nodes.len()).copied();
    in_turn.find(|node| is_linked(*node)).or(nodes.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Envelope, RequestId, SessionId, Write};
    use crate::ring::found_without_keys;
    use bytes::Bytes;

    const ME: NodeId = NodeId(2);

    fn atlas() -> Atlas {
        Atlas::founded(&found_without_keys(4, 3, 3))
    }

    fn command(group: GroupId, operation: &Operation) -> Request {
        let request = RequestId { session: SessionId(1), number: 1 };
        Request::Command { group, envelope: Envelope::new(request, 1, operation).encode() }
    }

    /// Where these go from a node that has a replica of every group.
    fn route(atlas: &Atlas, request: &Request, operation: Option<&Operation>) -> Route {
        let replica = |_| Some(Replica { leader: Some(ME), may_vote: true });
        View { me: ME, atlas, replica }.route(request, operation, false)
    }

    #[test]
    fn keys_decide_and_openings_name_their_group() {
        let atlas = atlas();
        let key = Bytes::from_static(b"some key");
        let owner = atlas.owner(Position::of_key(&key)).clone();
        let other = GroupId(owner.group().0 % 4 + 1);
        let ask = |group, operation: &Operation| route(&atlas, &command(group, operation), Some(operation));
        for operation in
            [Operation::Write(Write::Delete { key: key.clone() }), Operation::Cancel { key: key.clone() }]
        {
            assert_eq!(ask(owner.group(), &operation), Route::Here(owner.group()));
            assert_eq!(ask(other, &operation), Route::Moved(owner.clone()));
            assert_eq!(ask(GroupId(99), &operation), Route::Moved(owner.clone()));
        }
        let consistency = Consistency::Eventual;
        let read = |group| route(&atlas, &Request::Get { group, key: key.clone(), consistency }, None);
        assert_eq!(read(owner.group()), Route::Here(owner.group()));
        assert_eq!(read(other), Route::Moved(owner));
        assert_eq!(ask(GroupId(2), &Operation::Open), Route::Here(GroupId(2)));
        assert_eq!(ask(GroupId(99), &Operation::Open), Route::Nowhere);
        assert_eq!(route(&atlas, &Request::Status, None), Route::Node);
    }

    #[test]
    fn who_leads_decides_and_nothing_is_passed_on_twice() {
        let atlas = atlas();
        let (group, other) = (GroupId(1), NodeId(3));
        let open = (command(group, &Operation::Open), Some(&Operation::Open));
        let signed = (Request::Submit { group, bundle: Bytes::new() }, None);
        let ask = |(request, operation): &(Request, Option<&Operation>), known, is_passed_on| {
            let replica = |_| known;
            View { me: ME, atlas: &atlas, replica }.route(request, *operation, is_passed_on)
        };
        let here = |leader, may_vote| Some(Replica { leader, may_vote });
        for (known, from_client, passed_on) in [
            (here(Some(ME), true), Route::Here(group), Route::Here(group)),
            (here(Some(other), true), Route::Leader(group, other), Route::Here(group)),
            (here(None, true), Route::NoLeader, Route::Here(group)),
            (here(Some(ME), false), Route::NoLeader, Route::NoLeader),
            (None, Route::Elsewhere(group), Route::NotHere),
        ] {
            assert_eq!((ask(&open, known, false), ask(&open, known, true)), (from_client, passed_on));
        }
        let is_kept = ask(&signed, here(Some(other), true), false);
        assert_eq!(is_kept, Route::Here(group), "every replica keeps what is signed");
        assert_eq!(ask(&signed, here(Some(other), false), false), Route::NoLeader);
    }

    #[test]
    fn reads_that_need_no_leader_are_served_by_any_replica() {
        let atlas = atlas();
        let key = Bytes::from_static(b"some key");
        let group = atlas.owner(Position::of_key(&key)).group();
        for (consistency, is_here) in [
            (Consistency::Linearizable, false),
            (Consistency::Session { at_least: 7 }, true),
            (Consistency::Eventual, true),
        ] {
            let request = Request::Get { group, key: key.clone(), consistency };
            for leader in [None, Some(NodeId(3))] {
                let replica = |_| Some(Replica { leader, may_vote: true });
                let route = View { me: ME, atlas: &atlas, replica }.route(&request, None, false);
                assert_eq!(route == Route::Here(group), is_here, "{consistency:?} with {leader:?}");
            }
        }
    }

    #[test]
    fn nodes_are_asked_in_turn_those_first_to_which_there_is_a_link() {
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let turns = |is_linked: fn(NodeId) -> bool| (0..4).map(move |turn| choose(&nodes, turn, is_linked));
        let of = |numbers: [u128; 4]| numbers.map(|number| Some(NodeId(number))).to_vec();
        assert_eq!(turns(|_| true).collect::<Vec<_>>(), of([1, 2, 3, 1]));
        assert_eq!(turns(|node| node != NodeId(2)).collect::<Vec<_>>(), of([1, 3, 3, 1]));
        assert_eq!(turns(|_| false).collect::<Vec<_>>(), of([1, 1, 1, 1]), "somebody must be asked");
        assert_eq!(choose(&[], 5, |_| true), None);
    }
}
