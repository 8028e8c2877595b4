//! When the write-ahead log is rewritten, so that it holds what is still needed and nothing else.

use super::NodeCore;
use crate::error::StorageError;
use crate::group::Group;
use crate::storage::CommitId;
use tetrachord_consensus::Ticks;

/// A log that has not grown for so long may be rewritten, if it holds more than twice what is kept for lagging replicas,
/// and this much besides.
const LOG_IDLE_MILLIS: u64 = 5_000;
const LOG_IDLE_BYTES: u64 = 1 << 20;

/// Where the rewriting of the log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Idle,
    /// Groups bring their trees up to date.
    Hastened(Ticks),
    /// The replacing commit is on its way.
    Submitted(CommitId),
}

/// When the log is rewritten, and where that stands.
#[derive(Debug)]
pub(super) struct LogRewrite {
    pub(super) stage: Stage,
    /// When it has grown to so many bytes.
    pub(super) above_bytes: u64,
    /// Its bytes, and since when they have been the same.
    grown: (u64, Ticks),
}

impl LogRewrite {
    /// A log that is rewritten when it has grown to so many bytes.
    pub(super) fn above(bytes: u64) -> Self {
        Self { stage: Stage::Idle, above_bytes: bytes, grown: (0, Ticks(0)) }
    }
}

/// So much is divided among those that need these bytes: nobody gets less than another who gets less than it needs, and what nobody needs
/// is divided evenly, for whoever needs more soon. Who needs nothing gets what it would if it did.
fn shares(bytes: usize, needs: &[usize]) -> Vec<usize> {
    let mut needy: Vec<usize> = (0..needs.len()).filter(|index| needs[*index] > 0).collect();
    needy.sort_by_key(|index| needs[*index]);
    let count = needy.len().max(1);
    let (mut shares, mut left) = (vec![bytes / count; needs.len()], bytes);
    for (done, index) in needy.iter().enumerate() {
        shares[*index] = needs[*index].min(left / (count - done));
        left -= shares[*index];
    }
    needy.iter().for_each(|index| shares[*index] += left / count);
    shares
}

impl NodeCore {
    /// Whether the log has not grown for a while and holds much more than is kept for lagging replicas: then rewriting it
    /// costs nobody anything, and disk and the next start gain.
    fn is_log_idle(&mut self) -> bool {
        let bytes = self.storage.log_bytes();
        if bytes != self.rewrite.grown.0 {
            self.rewrite.grown = (bytes, self.now);
        }
        if self.now.since(self.rewrite.grown.1) < LOG_IDLE_MILLIS {
            return false;
        }
        let kept: usize = self.groups.iter().map(Group::retain_bytes).sum();
        bytes > 2 * kept as u64 + LOG_IDLE_BYTES
    }

    /// The groups in which somebody lags share what a node keeps for such replicas. Those that need little leave it to the others.
    pub(super) fn share_pins(&mut self) {
        let needs: Vec<usize> = self.groups.iter().map(Group::lacked_bytes).collect();
        let shares = shares(self.settings.group.pinned_bytes, &needs);
        for (group, share) in self.groups.touch_all().zip(shares) {
            group.set_pinned_bytes_max(share);
        }
    }

    /// Rewrites the log when it has grown too long: trees first, then one commit with the state of every engine.
    pub(super) fn compact_if_ready(&mut self) -> Result<(), StorageError> {
        const PATIENCE_MILLIS: u64 = 1_000;
        let is_idle = self.is_log_idle();
        match self.rewrite.stage {
            Stage::Idle if self.storage.log_bytes() > self.rewrite.above_bytes || is_idle => {
                self.rewrite.stage = Stage::Hastened(self.now);
                for group in self.groups.touch_all() {
                    group.hasten_checkpoint(self.storage.as_ref())?;
                }
            }
            // A node that has just started knows of nothing that it may drop, however long its log is.
            Stage::Hastened(_) if !self.groups.iter().any(Group::has_gained) => {
                for group in self.groups.touch_all() {
                    group.hasten_checkpoint(self.storage.as_ref())?;
                }
            }
            Stage::Hastened(since) => {
                let is_ready = self.groups.iter().all(Group::is_checkpointed);
                if is_ready || self.now.since(since) >= PATIENCE_MILLIS {
                    // What was logged before must be in an earlier commit: this one stands for all of it.
                    self.submit(false);
                    for group in self.groups.touch_all() {
                        group.compact(self.storage.as_ref())?;
                    }
                    self.submit(true);
                    self.rewrite.stage = Stage::Submitted(self.last_commit);
                }
            }
            Stage::Idle | Stage::Submitted(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_need_little_leave_it_to_the_others() {
        assert_eq!(shares(100, &[0, 0]), [100, 100], "whoever needs it first");
        assert_eq!(shares(100, &[0, 7, 0]), [100, 100, 100]);
        assert_eq!(shares(100, &[10, 500]), [10, 90]);
        assert_eq!(shares(100, &[500, 10, 500]), [45, 10, 45]);
        assert_eq!(shares(100, &[10, 20]), [45, 55], "what nobody needs yet is there for whoever needs more");
        assert_eq!(shares(100, &[10, 20, 0]).iter().take(2).sum::<usize>(), 100);
        assert_eq!(shares(0, &[10, 0]), [0, 0]);
        for seed in 0..1_000usize {
            let needs: Vec<usize> = (1..=seed % 7).map(|index| seed * index * 7_919 % 100).collect();
            let given: usize = shares(200, &needs)
                .iter()
                .zip(&needs)
                .filter(|(_, need)| **need > 0)
                .map(|(share, _)| share)
                .sum();
            assert!(given <= 200, "{needs:?}");
        }
    }
}
