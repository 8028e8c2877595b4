//! What votes in one epoch: an engine of one of the two orders, and the rule that nothing it says leaves before what that rests on is
//! durable ([`super::driver`]).

use super::driver::{Driver, Records};
use bytes::Bytes;
use tetrachord_consensus::{Decided, Effect, Engine, EngineStatus, Event, Reached, ReplicaId, paxos, pbft};

/// An engine.
pub(super) enum Order {
    /// Replicas crash.
    Paxos(Box<paxos::Replica>),
    /// Replicas lie.
    Pbft(Box<pbft::Replica>),
}

/// A replica's seat in one epoch of its group.
pub(super) struct Seat {
    order: Order,
    pub(super) driver: Driver,
    /// Who leads, as the engine has said last.
    pub(super) leader: Option<ReplicaId>,
}

/// What the group must do, of what an engine asks for: the rest is between the engine and the driver.
pub(super) enum Due {
    /// A message that may leave now.
    Send { to: ReplicaId, message: Bytes },
    /// Apply the entry.
    Apply(Decided),
    /// Another leads, or none.
    LeaderChanged { leader: Option<ReplicaId> },
    /// Stop.
    Fatal { reason: String },
    /// What only crash mode has.
    Paxos(paxos::Own),
    /// What only Byzantine mode has.
    Pbft(pbft::Own),
}

impl Seat {
    pub(super) fn of(order: Order) -> Self {
        Self { order, driver: Driver::default(), leader: None }
    }

    /// Tells the engine what happened.
    pub(super) fn step(&mut self, event: Event) {
        match &mut self.order {
            Order::Paxos(replica) => replica.step(event),
            Order::Pbft(replica) => replica.step(event),
        }
    }

    /// What is to be done, in order: records wait here for the next commit, and messages that rest on them for its end.
    pub(super) fn take_due(&mut self) -> Vec<Due> {
        match &mut self.order {
            Order::Paxos(replica) => gate(&mut self.driver, replica.take_effects(), Due::Paxos),
            Order::Pbft(replica) => gate(&mut self.driver, replica.take_effects(), Due::Pbft),
        }
    }

    /// The engine of crash mode, if it is one.
    pub(super) fn paxos(&mut self) -> Option<&mut paxos::Replica> {
        match &mut self.order {
            Order::Paxos(replica) => Some(replica),
            Order::Pbft(_) => None,
        }
    }

    /// The same, to look at.
    pub(super) fn as_paxos(&self) -> Option<&paxos::Replica> {
        match &self.order {
            Order::Paxos(replica) => Some(replica),
            Order::Pbft(_) => None,
        }
    }

    /// The engine of Byzantine mode, if it is one.
    pub(super) fn pbft(&mut self) -> Option<&mut pbft::Replica> {
        match &mut self.order {
            Order::Paxos(_) => None,
            Order::Pbft(replica) => Some(replica),
        }
    }

    /// The same, to look at.
    pub(super) fn as_pbft(&self) -> Option<&pbft::Replica> {
        match &self.order {
            Order::Paxos(_) => None,
            Order::Pbft(replica) => Some(replica),
        }
    }

    pub(super) fn status(&self) -> EngineStatus {
        match &self.order {
            Order::Paxos(replica) => Engine::status(replica.as_ref()),
            Order::Pbft(replica) => Engine::status(replica.as_ref()),
        }
    }

    pub(super) fn is_leader(&self) -> bool {
        match &self.order {
            Order::Paxos(replica) => replica.is_leader(),
            Order::Pbft(replica) => replica.is_primary(),
        }
    }

    pub(super) fn log_bytes(&self) -> usize {
        match &self.order {
            Order::Paxos(replica) => replica.log_bytes(),
            Order::Pbft(replica) => replica.log_bytes(),
        }
    }

    pub(super) fn reached(&self, replica: ReplicaId) -> Option<Reached> {
        match &self.order {
            Order::Paxos(engine) => engine.reached(replica),
            Order::Pbft(engine) => engine.reached(replica),
        }
    }
}

fn gate<Own>(driver: &mut Driver, effects: Vec<Effect<Own>>, own: impl Fn(Own) -> Due) -> Vec<Due> {
    let due = |effect| match effect {
        Effect::Persist { records, token, promises, is_whole } => {
            driver.persist(Records { records, promises, is_whole }, token);
            None
        }
        Effect::Send { to, message, after } => {
            driver.send(to, message, after).map(|(to, message)| Due::Send { to, message })
        }
        Effect::Apply(decided) => Some(Due::Apply(decided)),
        Effect::LeaderChanged { leader } => Some(Due::LeaderChanged { leader }),
        // The state machine has seen the stop-sign, as the last that is applied.
        Effect::EpochEnded { .. } => None,
        Effect::Fatal { reason } => Some(Due::Fatal { reason }),
        Effect::Own(asked) => Some(own(asked)),
    };
    effects.into_iter().filter_map(due).collect()
}
