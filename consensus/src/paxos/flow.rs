//! How much may be on its way to one replica.
//!
//! Everything that goes from one node to another goes through one queue, heartbeats and other groups' messages too. A leader cannot see how
//! fast the link is, and what it sends at once everything else waits behind: a window of megabytes on a slow link holds up
//! heartbeats for longer than an election takes. So it begins with little, sends more as what it sent arrives, and less when its
//! heartbeats are slow to be answered, that is, when they wait.
//!
//! What has arrived is not durable yet. That is bounded by itself, because it takes memory, not time on the link: a slow disk does not
//! make the window smaller.

use crate::types::Slot;
use std::collections::VecDeque;

/// Bytes that may be on their way at first: half a second at a megabit a second, a millisecond at half a gigabit.
const WINDOW_START_BYTES: usize = 64 << 10;

/// Bytes that may be on their way however slow the link is.
const WINDOW_MIN_BYTES: usize = 16 << 10;

/// Messages to one replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The last slot and the bytes of each message that is not known to be durable, oldest first.
    messages: VecDeque<(Slot, usize)>,
    /// Bytes of all of them.
    bytes: usize,
    /// How many of the oldest have arrived.
    arrived: usize,
    /// Bytes of the others.
    on_way_bytes: usize,
    window_bytes: usize,
    /// The shortest time, in milliseconds, in which a heartbeat was answered.
    fastest: u64,
    /// What the window may grow by until the next heartbeat is answered.
    growth_bytes: usize,
}

impl Flow {
    /// Nothing was sent yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            bytes: 0,
            arrived: 0,
            on_way_bytes: 0,
            window_bytes: WINDOW_START_BYTES,
            fastest: u64::MAX,
            growth_bytes: 0,
        }
    }

    /// Whether nothing is under way, or not durable yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes that may be sent now. `bytes_max` bounds the window, and what is not durable.
    #[must_use]
    pub fn room(&self, bytes_max: usize) -> usize {
        let on_way = self.window_bytes.min(bytes_max).saturating_sub(self.on_way_bytes);
        on_way.min(bytes_max.saturating_sub(self.bytes))
    }

    /// Entries up to `last` were sent.
    pub fn sent(&mut self, last: Slot, bytes: usize) {
        self.messages.push_back((last, bytes));
        self.bytes += bytes;
        self.on_way_bytes += bytes;
    }

    /// Entries up to `slot` have arrived: as much may be sent again, and as much more, unless heartbeats wait already.
    pub fn arrived(&mut self, slot: Slot, bytes_max: usize) {
        while let Some(&(_, bytes)) = self.messages.get(self.arrived).filter(|(last, _)| *last <= slot) {
            self.arrived += 1;
            self.on_way_bytes -= bytes;
            let room = bytes_max.saturating_sub(self.window_bytes);
            let growth = bytes.min(self.growth_bytes).min(room);
            self.growth_bytes -= growth;
            self.window_bytes += growth;
        }
    }

    /// Entries up to `slot` need not be sent again.
    pub fn done(&mut self, slot: Slot, bytes_max: usize) {
        self.arrived(slot, bytes_max);
        while let Some(&(_, bytes)) = self.messages.front().filter(|(last, _)| *last <= slot) {
            self.messages.pop_front();
            self.bytes -= bytes;
            self.arrived -= 1;
        }
        assert!(self.arrived <= self.messages.len(), "what has arrived was sent");
    }

    /// Everything that was under way is given up.
    pub fn give_up(&mut self) {
        self.messages.clear();
        (self.bytes, self.arrived, self.on_way_bytes) = (0, 0, 0);
    }

    /// Something was lost: less is sent at a time.
    pub fn shrink(&mut self) {
        self.window_bytes = (self.window_bytes / 2).max(WINDOW_MIN_BYTES);
    }

    /// A heartbeat was answered after so many milliseconds. What it took longer than the fastest one it has waited behind others; that
    /// should be a small part of an election timeout. The first one may have waited too.
    ///
    /// Until it waits, the window doubles; then the link is full, and a larger window only makes the queue longer.
    pub fn measure(&mut self, millis: u64, election_ticks: u64) {
        let is_first = self.fastest == u64::MAX;
        self.fastest = self.fastest.min(millis);
        let waited = if is_first { millis.min(election_ticks / 4) } else { millis - self.fastest };
        if waited > election_ticks / 4 {
            self.shrink();
        }
        self.growth_bytes = match waited {
            _ if waited <= election_ticks / 16 => self.window_bytes,
            _ if waited <= election_ticks / 8 => self.window_bytes / 8,
            _ => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 8 << 20;

    #[test]
    fn the_window_grows_with_what_arrives_and_shrinks_when_heartbeats_wait() {
        let mut flow = Flow::new();
        assert_eq!(flow.room(MAX), 64 << 10);
        flow.sent(Slot(1), 40 << 10);
        flow.sent(Slot(2), 40 << 10);
        assert_eq!(flow.room(MAX), 0);
        flow.measure(20, 400);
        flow.arrived(Slot(1), MAX);
        assert_eq!(flow.room(MAX), (104 - 40) << 10, "as much again, and as much more");
        flow.arrived(Slot(2), MAX);
        assert_eq!(flow.room(MAX), 128 << 10, "it has doubled, and no other heartbeat was answered yet");
        flow.measure(75, 400);
        flow.sent(Slot(3), 40 << 10);
        flow.arrived(Slot(3), MAX);
        assert_eq!(flow.room(MAX), 128 << 10, "a heartbeat waited: no growth");
        flow.measure(130, 400);
        assert_eq!(flow.room(MAX), 64 << 10, "it waited for long");
        for _ in 0..9 {
            flow.measure(200, 400);
        }
        assert_eq!(flow.room(MAX), WINDOW_MIN_BYTES);
        flow.measure(20, 400);
        flow.sent(Slot(4), 10);
        flow.done(Slot(4), MAX);
        assert_eq!(flow.room(MAX), WINDOW_MIN_BYTES + 10);
    }

    #[test]
    fn what_has_arrived_and_is_not_durable_is_bounded_by_itself() {
        let mut flow = Flow::new();
        flow.measure(1, 400);
        for slot in 1..=20 {
            flow.sent(Slot(slot), 50 << 10);
            flow.arrived(Slot(slot), 1 << 20);
            flow.measure(1, 400);
        }
        assert_eq!(flow.window_bytes, 1 << 20);
        assert_eq!(flow.room(1 << 20), (1 << 20) - (1000 << 10));
        flow.done(Slot(20), 1 << 20);
        assert_eq!((flow.room(1 << 20), flow.is_empty()), (1 << 20, true));
        flow.sent(Slot(21), 1);
        flow.give_up();
        assert!(flow.is_empty());
    }
}
