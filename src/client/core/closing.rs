//! The end of a client: what is open is waited for, then the groups forget its sessions.

use super::calls::{ENDED, Stage, What};
use super::sessions::Place;
use super::timers::Timer;
use super::{CallId, Core, Done};
use crate::client::outcome::{NotClosed, Refusal};
use crate::ring::GroupId;
use std::collections::{BTreeMap, BTreeSet};

/// Sessions that are being closed.
#[derive(Debug, Default)]
pub(super) struct Closing {
    callers: BTreeSet<CallId>,
    pending: BTreeSet<GroupId>,
    failed: BTreeMap<GroupId, String>,
}

impl Core {
    /// The client ends. Whoever asks again meanwhile waits for the same.
    pub(super) fn begin_close(&mut self, id: CallId) {
        self.is_ended = true;
        self.calls.get_mut(&id).expect("an open call").stage = Stage::Closing;
        let groups = self.sessions.groups();
        let is_first = self.closing.is_none();
        let closing = self.closing.get_or_insert_default();
        closing.callers.insert(id);
        // What has failed meanwhile is asked again.
        let again = groups.iter().filter(|group| closing.failed.remove(group).is_some() || is_first);
        let again: Vec<GroupId> = again.copied().collect();
        closing.pending.extend(again);
        let refusal = Refusal::Invalid(ENDED.to_string());
        self.refuse_greeting(&refusal);
        for group in groups {
            for waiting in self.sessions.take_waiting(group) {
                self.refuse(waiting, refusal.clone());
            }
            self.progress_closing(group);
        }
        self.conclude_closing();
    }

    /// The group's session is closed as soon as nothing is open in it.
    pub(super) fn progress_closing(&mut self, group: GroupId) {
        let Some(closing) = self.closing.as_mut().filter(|closing| closing.pending.contains(&group)) else {
            return;
        };
        match self.sessions.of(group).place {
            Place::Nowhere => {
                closing.pending.remove(&group);
                self.conclude_closing();
            }
            Place::Opening(_) => {}
            Place::Open(_) => {
                if let Some(request) = self.sessions.end(group) {
                    let deadline = self.now.at.saturating_add(self.setup.options.deadline);
                    let end = self.begin(What::End(request), Some(group), deadline);
                    self.order(end);
                }
            }
        }
    }

    /// What the group said when it was asked to close the session.
    pub(super) fn end_answered(&mut self, end: CallId, said: Result<(), String>) {
        let call = self.remove(end);
        let group = call.group();
        let What::End(request) = call.what else { unreachable!("it was asked to end a session") };
        match said {
            Ok(()) => self.sessions.expired(group, request.session),
            Err(reason) => {
                self.sessions.not_ended(group);
                if let Some(closing) = &mut self.closing {
                    closing.failed.insert(group, reason);
                }
            }
        }
        if let Some(closing) = &mut self.closing {
            closing.pending.remove(&group);
        }
        self.conclude_closing();
    }

    /// Requests that are still open are waited for no longer.
    pub(super) fn stop_waiting_for_requests(&mut self) {
        let Some(closing) = &mut self.closing else { return };
        for group in std::mem::take(&mut closing.pending) {
            if self.sessions.is_ending(group) {
                closing.pending.insert(group);
            } else {
                closing.failed.insert(group, "a request is still open".to_string());
            }
        }
        self.conclude_closing();
    }

    /// Whoever asked for the end waits for it no more.
    pub(super) fn leave_closing(&mut self, id: CallId) {
        if let Some(closing) = &mut self.closing {
            closing.callers.remove(&id);
        }
    }

    fn conclude_closing(&mut self) {
        let Some(closing) = self.closing.take_if(|closing| closing.pending.is_empty()) else { return };
        let groups: Vec<GroupId> = closing.failed.keys().copied().collect();
        let reason = closing.failed.into_values().next_back().unwrap_or_default();
        let result = if groups.is_empty() { Ok(()) } else { Err(NotClosed { groups, reason }) };
        for caller in closing.callers {
            self.timers.clear(Timer::Call(caller));
            self.finish(caller, Done::Closed(result.clone()));
        }
    }
}
