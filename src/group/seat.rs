//! What votes in one epoch: an engine, and the rule that nothing it says leaves before what that rests on is durable.

use super::driver::{Driver, Records};
use tetrachord_consensus::{Effect, Engine, ReplicaId};

/// A replica's seat in one epoch of its group.
pub(super) struct Seat {
    pub(super) engine: Box<dyn Engine + Send>,
    pub(super) driver: Driver,
    /// Who leads, as the engine has said last.
    pub(super) leader: Option<ReplicaId>,
}

impl Seat {
    pub(super) fn of(engine: Box<dyn Engine + Send>) -> Self {
        Self { engine, driver: Driver::default(), leader: None }
    }

    /// What is to be done, in order: records wait here for the next commit, and messages that rest on them for its end.
    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        let driver = &mut self.driver;
        let rest = |effect| match effect {
            Effect::Persist { records, token, promises, is_whole } => {
                driver.persist(Records { records, promises, is_whole }, token);
                None
            }
            Effect::Send { to, message, after } => {
                let (to, message) = driver.send(to, message, after)?;
                Some(Effect::Send { to, message, after: None })
            }
            effect => Some(effect),
        };
        self.engine.take_effects().into_iter().filter_map(rest).collect()
    }
}
