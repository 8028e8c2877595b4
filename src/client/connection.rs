//! An open connection to a node: requests with their numbers, and who waits for which answer.

use super::collect::Collectors;
use super::hints::Hints;
use crate::ring::NodeId;
use crate::transport::ClientLink;
use crate::wire::{self, Answer, AnswerFrame, Request, RequestFrame, RetryReason};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot};

type Waiting = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Answer>>>>>;

/// An open connection and who waits on it.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) link: ClientLink,
    waiting: Waiting,
    last_id: AtomicU64,
}

impl Open {
    /// Takes a connection over: what comes from the node goes to who waits for it.
    pub(super) fn new(
        node: NodeId,
        link: ClientLink,
        frames: mpsc::Receiver<Bytes>,
        collectors: Arc<Collectors>,
        hints: Arc<Hints>,
    ) -> Self {
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));
        tokio::spawn(hand_out(node, frames, Arc::clone(&waiting), collectors, hints));
        Self { link, waiting, last_id: AtomicU64::new(0) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.link.is_closed()
    }

    /// Sends a request whose answer nobody waits for; false if the connection does not take it.
    pub(super) fn cast(&self, request: &Request) -> bool {
        self.send(self.next_id(), request)
    }

    /// Sends a request. Its number, and its answer once that comes; none if the connection is gone or does not take it.
    pub(super) fn ask(&self, request: &Request) -> Option<(u64, oneshot::Receiver<Answer>)> {
        let (id, (sender, answer)) = (self.next_id(), oneshot::channel());
        self.waiting.lock().expect("never held while panicking").as_mut()?.insert(id, sender);
        if self.send(id, request) {
            return Some((id, answer));
        }
        self.forget(id);
        None
    }

    /// Nobody waits for the answer any more.
    pub(super) fn forget(&self, id: u64) {
        if let Some(waiting) = self.waiting.lock().expect("never held while panicking").as_mut() {
            waiting.remove(&id);
        }
    }

    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn send(&self, id: u64, request: &Request) -> bool {
        self.link.send(wire::encode(&RequestFrame { id, request: request.clone() }))
    }
}

/// Gives each answer to who waits for it; when the connection ends, everybody is told.
async fn hand_out(
    node: NodeId,
    mut frames: mpsc::Receiver<Bytes>,
    waiting: Waiting,
    collectors: Arc<Collectors>,
    hints: Arc<Hints>,
) {
    while let Some(body) = frames.recv().await {
        let Ok(AnswerFrame { id, answer }) = wire::decode::<AnswerFrame>(&body) else {
            break;
        };
        if let Answer::Outcomes { group, slot, replies } = answer {
            // What comes as the answer to a request may have been passed on, and be another node's words.
            if id == 0 {
                collectors.take(node, group, slot, replies);
            }
            continue;
        }
        if let Answer::Kept { group, leader } = answer {
            hints.note(node, group, leader);
        }
        let mut waiting = waiting.lock().expect("never held while panicking");
        match waiting.as_mut().and_then(|waiting| waiting.remove(&id)) {
            // Nobody waits any more: fine.
            Some(sender) => drop(sender.send(answer)),
            None => match answer {
                Answer::Refused { error: reason } | Answer::Unavailable { reason } => {
                    hints.note_refusal(node, &reason);
                }
                Answer::Retry { reason: RetryReason::Busy, .. } => {
                    hints.note_refusal(node, "too much waits here");
                }
                _ => {}
            },
        }
    }
    waiting.lock().expect("never held while panicking").take();
}
