//! The batches of one slot by their digests. Nearly always there is one, so a list takes far less memory than maps would, of which each
//! begins with room for eleven.

use crate::pbft::batch::Batch;
use crate::types::Digest;
use std::sync::Arc;

/// A batch, and whether the vote log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Body {
    batch: Arc<Batch>,
    is_recorded: bool,
}

/// See the module's essay. The null batch is never among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bodies(Vec<Body>);

impl Bodies {
    fn find(&self, digest: Digest) -> Option<&Body> {
        self.0.iter().find(|body| body.batch.digest() == digest)
    }

    pub(super) fn get(&self, digest: Digest) -> Option<&Arc<Batch>> {
        self.find(digest).map(|body| &body.batch)
    }

    pub(super) fn contains(&self, digest: Digest) -> bool {
        self.find(digest).is_some()
    }

    /// Keeps a batch; what the log holds of it stays as it was.
    pub(super) fn insert(&mut self, batch: Arc<Batch>) {
        if !self.contains(batch.digest()) {
            self.0.reserve_exact(1);
            self.0.push(Body { batch, is_recorded: false });
        }
    }

    /// The vote log holds this batch from now on. Whether it is here and the log did not hold it before.
    pub(super) fn note_recorded(&mut self, digest: Digest) -> bool {
        let body = self.0.iter_mut().find(|body| body.batch.digest() == digest);
        body.is_some_and(|body| !std::mem::replace(&mut body.is_recorded, true))
    }

    /// The log begins anew, and holds none.
    pub(super) fn forget_recorded(&mut self) {
        self.0.iter_mut().for_each(|body| body.is_recorded = false);
    }

    pub(super) fn retain(&mut self, is_kept: impl Fn(Digest) -> bool) {
        self.0.retain(|body| is_kept(body.batch.digest()));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Batch>> {
        self.0.iter().map(|body| &body.batch)
    }
}
