//! Byzantine mode: how long answers usually take, and from when on a request is shown to all replicas.

use std::time::Duration;

/// A request without an answer is shown to all replicas after so many times what is usual, and again after each further such
/// time; within these bounds. Sooner, and a short stall would make everybody pay for nothing; later, and a primary could be
/// slow unseen.
const SHOW_AFTER_USUAL: u32 = 10;
const SHOW_AFTER_MIN: Duration = Duration::from_millis(150);
pub(super) const SHOW_AFTER_MAX: Duration = Duration::from_millis(400);

/// It follows better times at once and worse ones slowly: a primary that turns slow must not become what is usual.
#[derive(Debug)]
pub(super) struct Usual(Duration);

impl Default for Usual {
    fn default() -> Self {
        Self(SHOW_AFTER_MAX)
    }
}

impl Usual {
    pub(super) fn note(&mut self, took: Duration) {
        let before = self.0;
        let after = if took < before {
            before - (before - took) / 4
        } else {
            before + (took - before).min(before) / 256
        };
        self.0 = after.max(Duration::from_micros(1));
    }

    pub(super) fn show_after(&self) -> Duration {
        (SHOW_AFTER_USUAL * self.0).clamp(SHOW_AFTER_MIN, SHOW_AFTER_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_follows_better_times_at_once_and_worse_ones_slowly() {
        let mut usual = Usual::default();
        assert_eq!(usual.show_after(), SHOW_AFTER_MAX);
        (0..40).for_each(|_| usual.note(Duration::from_millis(15)));
        let quick = usual.show_after();
        assert!((Duration::from_millis(150)..Duration::from_millis(160)).contains(&quick), "{quick:?}");
        (0..50).for_each(|_| usual.note(Duration::from_millis(300)));
        assert!(usual.show_after() < Duration::from_millis(200), "a slow primary is noticed");
        (0..2_000).for_each(|_| usual.note(Duration::from_millis(300)));
        assert_eq!(usual.show_after(), SHOW_AFTER_MAX, "in the end it is what is usual");
        (0..40).for_each(|_| usual.note(Duration::from_millis(1)));
        assert_eq!(usual.show_after(), SHOW_AFTER_MIN);
    }
}
