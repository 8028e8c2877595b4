//! Leaving a view and entering the next.
//!
//! Castro and Liskov, OSDI 1999, section 4.4, with signatures. What follows from the view changes is computed in
//! [`super::new_view`], by every replica for itself.
//!
//! A certificate of a slot stays until a newer one for that slot is complete, through any number of views that fail:
//! entering a view erases none. A VIEW-CHANGE is sent again until its view begins ([`super::catch_up`]), always as the
//! bytes that were written down first.

use crate::codec;
use crate::mutation::mutated;
use crate::pbft::evidence::Evidence;
use crate::pbft::message::{Message, NewView, NewViewBody, ViewChange, ViewChangeBody, Vote, body_digest};
use crate::pbft::new_view::{Plan, plan};
use crate::pbft::record::Record;
use crate::pbft::replica::Replica;
use crate::pbft::sign::{Signature, Statement};
use crate::types::{Digest, ReplicaId, Slot, View};
use bytes::Bytes;

impl Replica {
    /// Leaves every view below this one.
    pub(super) fn leave_for(&mut self, view: View) {
        assert!(view > self.view, "views only grow");
        self.view = view;
        self.is_active = false;
        self.new_view = None;
        self.suspicion.new_view_deadline = None;
        self.suspicion.waiting = None;
        self.slots.values_mut().for_each(crate::pbft::slot::SlotState::leave_view);
        if mutated!(self.options, ForgetPrepared) {
            self.slots.values_mut().for_each(|state| state.prepared = None);
        }
        let (message, body) = self.make_view_change(view);
        let token = self.record(&Record::Left(message.clone()));
        self.view_changes.insert(self.me, (message.clone(), body));
        self.broadcast(&Message::ViewChange(message), Some(token));
        self.count_view_changes();
    }

    /// What this replica brings into a view.
    pub(super) fn make_view_change(&self, view: View) -> (ViewChange, ViewChangeBody) {
        let above = self.slots.range(self.stable_slot().next()..);
        let in_window = above.filter(|(slot, _)| self.config.is_in_window(self.stable_slot(), **slot));
        let prepared = in_window.filter_map(|(_, state)| state.prepared.clone()).collect();
        let body = ViewChangeBody { stable: self.checkpoints.stable.clone(), prepared };
        let bytes = codec::encode(&body);
        let signature = self.sign(Statement::ViewChange(view, body_digest(&bytes)));
        (ViewChange { signer: self.me, view, body: bytes, signature }, body)
    }

    /// A verified VIEW-CHANGE.
    pub(super) fn on_view_change(&mut self, message: ViewChange, body: ViewChangeBody) {
        let known = self.view_changes.get(&message.signer).map(|(known, _)| known.clone());
        if let Some(known) = known.filter(|known| known.view >= message.view) {
            if known.view == message.view && known.body != message.body {
                self.convict(Evidence::ViewChanges { one: known, other: message });
            }
            return;
        }
        if message.view < self.view || message.view == self.view && self.is_active {
            return;
        }
        self.view_changes.insert(message.signer, (message, body));
        self.join_others();
        self.count_view_changes();
    }

    /// One honest replica at least has left: go with it, no further than it went.
    fn join_others(&mut self) {
        let ahead =
            self.view_changes.values().map(|(message, _)| message.view).filter(|view| *view > self.view);
        let views: Vec<View> = ahead.collect();
        if views.len() >= self.config.quorum.one_honest() {
            let smallest = views.into_iter().min().expect("there are some");
            self.leave_for(smallest);
        }
    }

    /// With view changes of a quorum the new primary must begin the view, in time. The time runs when a quorum has left the
    /// views below, for this one or a later one: whoever went on does not repeat that it was here, and if only those who
    /// ask for exactly this view counted, a lost message could leave two parts of the group waiting for one another.
    pub(super) fn count_view_changes(&mut self) {
        if self.is_active {
            return;
        }
        if self.primary() == self.me && self.waiting_for(self.view).len() >= self.quorum() {
            return self.begin_view();
        }
        let gone = self.view_changes.values().filter(|(message, _)| message.view >= self.view).count();
        if self.suspicion.new_view_deadline.is_none() && gone >= self.quorum() {
            self.suspicion.new_view_deadline = Some(self.now.plus(self.patience()));
        }
    }

    fn waiting_for(&self, view: View) -> Vec<ReplicaId> {
        let of_view = self.view_changes.iter().filter(|(_, (message, _))| message.view == view);
        of_view.map(|(signer, _)| *signer).collect()
    }

    /// The new primary: its own view change, those of others up to a quorum, and what follows from them.
    fn begin_view(&mut self) {
        let view = self.view;
        let others = self.waiting_for(view).into_iter().filter(|signer| *signer != self.me);
        let mut chosen: Vec<ReplicaId> = others.take(self.quorum() - 1).chain([self.me]).collect();
        chosen.sort_unstable();
        let (view_changes, bodies): (Vec<ViewChange>, Vec<ViewChangeBody>) =
            chosen.iter().map(|signer| self.view_changes[signer].clone()).unzip();
        let plan = match plan(&bodies) {
            Ok(plan) => plan,
            Err(found) => return self.fail(format!("two batches were prepared in one view: {found:?}")),
        };
        let sign = |(slot, digest)| (slot, digest, self.sign(Statement::PrePrepare(view, slot, digest)));
        let proposals: Vec<_> = plan.proposals.iter().copied().map(sign).collect();
        let signatures: Vec<Signature> = proposals.iter().map(|(_, _, signature)| *signature).collect();
        let body: Bytes = codec::encode(&NewViewBody { view_changes, proposals });
        let signature = self.sign(Statement::NewView(view, body_digest(&body)));
        let message = NewView { view, body, signature };
        let token = self.record(&Record::Entered(message.clone()));
        self.broadcast(&Message::NewView(message.clone()), Some(token));
        self.enter(message, plan, &signatures);
    }

    /// A verified NEW-VIEW: it follows from its view changes.
    pub(super) fn on_new_view(&mut self, message: NewView, plan: Plan, signatures: &[Signature]) {
        let is_news = message.view > self.view || message.view == self.view && !self.is_active;
        if is_news && self.config.primary(message.view) != self.me {
            self.record(&Record::Entered(message.clone()));
            self.enter(message, plan, signatures);
        }
    }

    fn enter(&mut self, message: NewView, plan: Plan, signatures: &[Signature]) {
        let view = message.view;
        assert!(view > self.view || !self.is_active, "a view begins once");
        if view > self.view {
            self.slots.values_mut().for_each(crate::pbft::slot::SlotState::leave_view);
        }
        self.view = view;
        self.is_active = true;
        self.new_view = Some(message);
        self.suspicion.new_view_deadline = None;
        self.view_changes.retain(|_, (other, _)| other.view > view);
        let started_at = plan.stable.as_ref().map_or(Slot::ZERO, |stable| stable.slot);
        self.first_fresh = first_fresh(&plan);
        if let Some(stable) = plan.stable {
            self.adopt_stable(stable);
        }
        let last = self.first_fresh.previous();
        self.next = last.max(self.stable_slot()).next();
        self.custody.requeue();
        self.suspicion.pace.restart(self.now);
        self.start_waiting();
        if self.stable_slot() > started_at {
            // Others count these slots as done only when they see the proof.
            let certificate = self.checkpoints.stable.clone().expect("a later checkpoint has a certificate");
            self.broadcast(&Message::Stable(certificate), None);
        }
        for ((slot, digest), signature) in plan.proposals.into_iter().zip(signatures) {
            let signer = self.primary();
            self.propose_again(Vote { signer, view, slot, digest, signature: *signature });
        }
    }

    /// A slot that the view begins with. It is voted for like any other, also where it was executed before; one below the
    /// stable checkpoint is done.
    pub(super) fn propose_again(&mut self, vote: Vote) {
        if vote.slot <= self.stable_slot() {
            return;
        }
        let state = self.slots.entry(vote.slot).or_default();
        if state.decided.is_some_and(|known| known != vote.digest) {
            // What was learnt by certificate may be of a view above this one, which comes late and can decide nothing any more.
            if state.committed.as_ref().is_some_and(|certificate| certificate.view > vote.view) {
                return;
            }
            return self.fail(format!("slot {} was decided, and a valid view says otherwise", vote.slot));
        }
        if state.batch(vote.digest).is_some() {
            return self.accept(vote);
        }
        state.awaited = Some(vote);
        self.want_batch(vote.slot, vote.digest);
    }
}

/// The first slot behind those that a view begins with.
fn first_fresh(plan: &Plan) -> Slot {
    let stable = plan.stable.as_ref().map_or(Slot::ZERO, |stable| stable.slot);
    plan.proposals.last().map_or(stable, |(slot, _)| *slot).next()
}

/// What a view began with, read back from a NEW-VIEW that was checked before it was written down.
pub(super) fn reopen(message: &NewView) -> (Slot, Vec<(Slot, Digest, Signature)>) {
    let body: NewViewBody = codec::decode(&message.body).expect("it was checked and the log is checksummed");
    let read = |other: &ViewChange| codec::decode::<ViewChangeBody>(&other.body).expect("it was checked");
    let bodies: Vec<ViewChangeBody> = body.view_changes.iter().map(read).collect();
    let plan = plan(&bodies).expect("a view that began follows from its view changes");
    (first_fresh(&plan), body.proposals)
}
