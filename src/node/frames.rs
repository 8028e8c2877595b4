//! What groups say to other nodes, gathered: one frame for each node and class carries what all groups have to say to it.
//!
//! Invariant: what is said to one node in one class stays in order. A frame takes no more once it is long, so that a large message
//! makes none larger that would have gone by itself.

use super::face::{Class, NodeEffect};
use crate::limits::FRAME_BODIES_MAX;
use crate::ring::NodeId;
use crate::wire::{self, GroupBody, PeerMessage};
use std::collections::BTreeMap;

/// Bytes of messages that share a frame; a longer message goes alone.
const SHARED_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
struct Waiting {
    said: Vec<GroupBody>,
    bytes: usize,
}

/// What is to be said.
#[derive(Debug, Default)]
pub(super) struct Frames {
    full: Vec<NodeEffect>,
    waiting: BTreeMap<(NodeId, Class), Waiting>,
}

impl Frames {
    /// A replica says this to one of its group.
    pub(super) fn push(&mut self, to: NodeId, class: Class, said: GroupBody) {
        let waiting = self.waiting.entry((to, class)).or_default();
        let has_room =
            waiting.bytes + said.body.len() <= SHARED_BYTES_MAX && waiting.said.len() < FRAME_BODIES_MAX;
        if !has_room && !waiting.said.is_empty() {
            self.full.push(send(to, class, std::mem::take(waiting)));
        }
        waiting.bytes += said.body.len();
        waiting.said.push(said);
    }

    /// The frames, those to one node and of one class in order.
    pub(super) fn take(mut self) -> Vec<NodeEffect> {
        self.full.extend(self.waiting.into_iter().map(|((to, class), waiting)| send(to, class, waiting)));
        self.full
    }
}

fn send(to: NodeId, class: Class, waiting: Waiting) -> NodeEffect {
    NodeEffect::Send { to, class, frame: wire::encode(&PeerMessage::Groups(waiting.said)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{GroupId, TenureId};
    use bytes::Bytes;

    fn said(group: u128, bytes: usize) -> GroupBody {
        GroupBody { tenure: TenureId { group: GroupId(group), epoch: 1 }, body: Bytes::from(vec![7; bytes]) }
    }

    /// Of each frame: to whom, in which class, and which groups speak.
    fn told(frames: Frames) -> Vec<(u128, Class, Vec<u128>)> {
        let told = |effect| {
            let NodeEffect::Send { to, class, frame } = effect else { panic!("only frames are sent") };
            let Ok(PeerMessage::Groups(said)) = wire::decode(&frame[4..]) else {
                panic!("as it was written")
            };
            (to.0, class, said.iter().map(|said| said.tenure.group.0).collect())
        };
        frames.take().into_iter().map(told).collect()
    }

    #[test]
    fn all_groups_share_a_frame_to_each_node_and_class() {
        let mut frames = Frames::default();
        for (to, class, group) in [
            (2, Class::Bulk, 1),
            (2, Class::Consensus, 1),
            (3, Class::Consensus, 1),
            (2, Class::Consensus, 2),
            (2, Class::Consensus, 1),
        ] {
            frames.push(NodeId(to), class, said(group, 10));
        }
        let expected =
            [(2, Class::Consensus, vec![1, 2, 1]), (2, Class::Bulk, vec![1]), (3, Class::Consensus, vec![1])];
        assert_eq!(told(frames), expected);
    }

    #[test]
    fn a_long_message_goes_alone_and_the_order_stays() {
        let mut frames = Frames::default();
        for (group, bytes) in [(1, 10), (2, 1 << 20), (3, 10), (4, SHARED_BYTES_MAX - 10), (5, 1)] {
            frames.push(NodeId(2), Class::Consensus, said(group, bytes));
        }
        let groups: Vec<_> = told(frames).into_iter().map(|(.., groups)| groups).collect();
        assert_eq!(groups, [vec![1], vec![2], vec![3, 4], vec![5]]);
        let mut many = Frames::default();
        (0..=FRAME_BODIES_MAX as u128).for_each(|group| many.push(NodeId(2), Class::Bulk, said(group, 0)));
        assert_eq!(
            told(many).iter().map(|(.., groups)| groups.len()).collect::<Vec<_>>(),
            [FRAME_BODIES_MAX, 1]
        );
    }
}
