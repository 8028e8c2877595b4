//! The replicated state of one group, and what others may know of it.

use super::operation::Client;
use super::overlay::{Cache, Overlay, Pending};
use super::parts::Parts;
use super::reached::Reached;
use super::reply::Reply;
use super::sessions::Sessions;
use super::shares::Held;
use super::state_root::StateRoot;
use crate::error::StorageError;
use crate::limits::Limits;
use crate::ring::Tenure;
use crate::storage::Storage;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a state machine holds its clients to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Sizes.
    pub limits: Limits,
    /// The broken variant in which a client may hold all sessions: a test must notice.
    pub ignores_shares: bool,
    /// The broken variant in which nobody remembers that a request was cancelled.
    pub forgets_cancels: bool,
    /// The broken variant that keeps sessions in memory only.
    pub forgets_sessions: bool,
    /// The broken variant whose root does not cover what clients were answered.
    pub leaves_out_sessions: bool,
}

impl From<Limits> for Rules {
    fn from(limits: Limits) -> Self {
        Self {
            limits,
            ignores_shares: false,
            forgets_cancels: false,
            forgets_sessions: false,
            leaves_out_sessions: false,
        }
    }
}

/// The replicated state of one group. What it does with a slot is in [`super::apply`].
#[derive(Debug)]
pub struct Machine {
    /// Which group it is of, in which epoch, and what that holds.
    pub(super) tenure: Arc<Tenure>,
    pub(super) rules: Rules,
    pub(super) reached: Reached,
    pub(super) sessions: Sessions,
    pub(super) fresh: Overlay,
    /// Checkpoints that are being written, the oldest first.
    pub(super) frozen: VecDeque<Overlay>,
    /// In Byzantine mode, the rows of all of them: the tree does not hold them yet, and the next root builds on them.
    pub(super) pending: Pending,
    pub(super) cache: Cache,
    pub(super) is_dirty: bool,
    /// In Byzantine mode, what a checkpoint's root is made of.
    pub(super) root: Option<StateRoot>,
}

/// Clean records that one group keeps in memory, in bytes.
const CACHE_BYTES: usize = 4 << 20;

impl Machine {
    /// Reads a group's state back; a group that was never written starts empty.
    pub fn load(
        storage: &dyn Storage,
        tenure: Arc<Tenure>,
        rules: impl Into<Rules>,
    ) -> Result<Self, StorageError> {
        let (reached, rules) = (Reached::load(storage, &tenure)?, rules.into());
        let group = tenure.group();
        let empty = Self::empty(tenure, rules);
        if rules.forgets_sessions {
            return Ok(Self { reached, ..empty });
        }
        let sessions = Sessions::load(storage, group)?.under(rules);
        Ok(Self { reached, sessions, ..empty })
    }

    /// A state that nothing was applied to, whatever is stored.
    #[must_use]
    pub fn empty(tenure: Arc<Tenure>, rules: impl Into<Rules>) -> Self {
        let rules = rules.into();
        Self {
            reached: Reached::beginning(&tenure),
            tenure,
            rules,
            sessions: Sessions::default().under(rules),
            fresh: Overlay::default(),
            frozen: VecDeque::new(),
            pending: Pending::default(),
            cache: Cache::new(CACHE_BYTES),
            is_dirty: false,
            root: None,
        }
    }

    /// The same state, with a root that is kept from now on; in Byzantine mode from the first slot.
    pub fn with_root(self, storage: &dyn Storage) -> Result<Self, StorageError> {
        let root = StateRoot::load(storage, self.parts())?;
        Ok(Self { root: Some(root), ..self })
    }

    /// The root of the state that was last frozen for a checkpoint, if nothing was applied since.
    #[must_use]
    pub fn state_root(&self) -> Option<[u8; 32]> {
        self.root.as_ref().filter(|_| !self.is_dirty).map(|root| root.digest(&self.tenure, &self.reached))
    }

    /// In Byzantine mode, the hashes of the state that the tree holds, if it holds what was last frozen.
    #[must_use]
    pub fn root_of_tree(&self) -> Option<&StateRoot> {
        self.root.as_ref().filter(|_| self.frozen.is_empty())
    }

    /// How the state is cut to be hashed.
    #[must_use]
    pub fn parts(&self) -> Parts {
        Parts::from(&*self.tenure).without_sessions(self.rules.leaves_out_sessions)
    }

    /// How far the state has come.
    #[must_use]
    pub fn reached(&self) -> &Reached {
        &self.reached
    }

    /// How many sessions are remembered.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// What each client holds of the group's memory that holds anything.
    pub fn held(&self) -> impl Iterator<Item = (&Client, &Held)> {
        self.sessions.shares().iter()
    }

    /// Which group it is of, in which epoch, and what that holds.
    #[must_use]
    pub fn tenure(&self) -> &Arc<Tenure> {
        &self.tenure
    }

    /// What a client is told that opens a session now, if it is refused: what an opening would be told that is applied next, with this
    /// time. The state does not change.
    #[must_use]
    pub fn refusal_to_open(&self, client: &Client, time: u64) -> Option<Reply> {
        self.sessions.refusal_to_open(client, self.session_time_at(time))
    }
}
