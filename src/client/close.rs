//! Ending a client: the groups forget its sessions at once, which makes room for others of the same key.

use super::outcome::unexpected;
use super::sessions::Slot;
use super::signed::{Ask, Signed};
use super::{Client, OF_THE_CONNECTION, Step, refusal_of};
use crate::kv::{Command, Failure, Operation, Reply, RequestId};
use crate::ring::GroupId;
use crate::wire::{Answer, Request};
use std::sync::Arc;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Why sessions of a client stay open at some groups.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("sessions stay open in {groups:?}, where they are forgotten after an hour of silence: {reason}")]
pub struct NotClosed {
    /// The groups.
    pub groups: Vec<GroupId>,
    /// What one of them came to.
    pub reason: String,
}

impl Client {
    /// Ends this client and all its clones. What is asked from now on is refused. What is open is waited for, for no longer than its
    /// own deadline. Then the groups forget the client's sessions: what is Unknown by then has been applied, or never will be.
    ///
    /// Asked again it goes on with what stayed open, if anything did. A client that is dropped without it leaves its sessions to be
    /// forgotten after an hour of silence; until then they count in the share of its key.
    pub async fn close(&self) -> Result<(), NotClosed> {
        let mut tasks = JoinSet::new();
        for (group, slot) in self.inner.sessions.end() {
            let client = self.clone();
            tasks.spawn(async move { client.close_session(group, &slot).await.map_err(|why| (group, why)) });
        }
        let (mut groups, mut reason) = (Vec::new(), String::new());
        for (group, why) in tasks.join_all().await.into_iter().filter_map(Result::err) {
            groups.push(group);
            reason = why;
        }
        groups.sort_unstable();
        if groups.is_empty() { Ok(()) } else { Err(NotClosed { groups, reason }) }
    }

    async fn close_session(&self, group: GroupId, slot: &Slot) -> Result<(), String> {
        // Whoever opens a session just now holds the lock.
        let mut slot = slot.lock().await;
        let Some(session) = slot.as_ref().map(Arc::clone) else { return Ok(()) };
        let Some(request) = session.end(Instant::now() + self.inner.options.deadline).await else {
            return Err("a request is still open".to_string());
        };
        let reply = match &self.inner.signed {
            Some(signed) => self.ask_to_close_signed(signed, group, request).await?,
            None => self.ask_to_close(group, request).await?,
        };
        match reply {
            // One that is unknown there needs no closing.
            Reply::Closed | Reply::Failed(Failure::SessionExpired) => {
                *slot = None;
                Ok(())
            }
            Reply::Failed(failure) => Err(failure.to_string()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask_to_close(&self, group: GroupId, request: RequestId) -> Result<Reply, String> {
        let mut attempts = self.attempts();
        let (ring, _) = self.ring(&mut attempts).await.map_err(|refusal| refusal.to_string())?;
        let command = Command::Close { request, client: OF_THE_CONNECTION };
        let request = Request::Command { group, command: command.encode() };
        loop {
            match self.attempt(&ring, group, &request, &mut attempts).await {
                Step::Answer(Answer::Reply { reply, .. }) => return Ok(reply),
                Step::GaveUp => return Err(attempts.last),
                step => {
                    if let Some(refusal) = refusal_of(step) {
                        return Err(refusal.to_string());
                    }
                }
            }
        }
    }

    async fn ask_to_close_signed(
        &self,
        signed: &Signed,
        group: GroupId,
        request: RequestId,
    ) -> Result<Reply, String> {
        let asked_at = Instant::now();
        let deadline = asked_at + self.inner.options.deadline;
        let ask = Ask { operation: &Operation::Close, ack_below: request.number, keyring: None, deadline };
        match signed.call(&self.inner.links, group, request, ask).await {
            Some(agreed) => Ok(agreed.reply),
            None => Err(self.no_agreement(group, asked_at)),
        }
    }
}
