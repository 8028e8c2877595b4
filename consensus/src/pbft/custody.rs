//! Requests that wait to be ordered, in the order in which they came, at every replica.
//!
//! The primary proposes from here; a backup watches from here that the primary does. What matters is the *name* of a
//! request: whatever was executed under it, the wait is over. (A client that signs two requests with one name would else
//! leave some replicas waiting for ever, and take a view from an honest primary.)
//!
//! Bounded by bytes, for each client and for all: a client may hold an eighth of what is left free. Clients take turns: whoever asks
//! much waits for its own, and not for that the others.

use crate::mutation::mutated;
use crate::pbft::batch::{BATCH_BUNDLES_MAX, BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, HEADER, bytes_in_batch};
use crate::pbft::config::Options;
use crate::pbft::request::{Bundle, RequestName};
use crate::pbft::sign::{ClientKey, Signature};
use crate::types::{Ticks, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Names a bundle in custody; grows with arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Arrival(u64);

#[derive(Clone, Debug)]
struct Kept {
    bundle: Arc<Bundle>,
    open: BTreeSet<RequestName>,
    void_after: Timestamp,
    is_proposed: bool,
    /// When this replica told the primary of this view of it.
    told_at: Option<Ticks>,
}

/// What became of a bundle that was brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Kept.
    New,
    /// All of it waits already.
    Known,
    /// There is no room, for this client or at all.
    Full,
}

/// What may be proposed: of each client in the order in which it came, and of one client after the other.
#[derive(Clone, Debug, Default)]
struct Queue {
    /// A client whose line is empty keeps it.
    lines: BTreeMap<ClientKey, VecDeque<Arrival>>,
    /// The clients in whose lines something waits.
    turns: VecDeque<ClientKey>,
}

impl Queue {
    fn push(&mut self, client: ClientKey, arrival: Arrival) {
        let line = self.lines.entry(client).or_default();
        if line.is_empty() {
            self.turns.push_back(client);
        }
        line.push_back(arrival);
    }

    fn front(&self) -> Option<Arrival> {
        self.lines.get(self.turns.front()?)?.front().copied()
    }

    /// What is in front goes. Unless it was void, its client has had its turn.
    fn pop(&mut self, is_void: bool) {
        let Some(client) = self.turns.pop_front() else { return };
        let line = self.lines.get_mut(&client).expect("whoever has a turn has a line");
        line.pop_front();
        match (line.is_empty(), is_void) {
            (true, _) => {}
            (false, true) => self.turns.push_front(client),
            (false, false) => self.turns.push_back(client),
        }
    }

    /// What nobody waits for any more leaves the front of a client's line: backups propose nothing, and would keep all of it.
    fn drop_void(&mut self, client: &ClientKey, waits: impl Fn(Arrival) -> bool) {
        let Some(line) = self.lines.get_mut(client).filter(|line| !line.is_empty()) else { return };
        while line.front().is_some_and(|arrival| !waits(*arrival)) {
            line.pop_front();
        }
        if line.is_empty() {
            self.turns.retain(|other| other != client);
        }
    }

    fn clear(&mut self) {
        self.lines.values_mut().for_each(VecDeque::clear);
        self.turns.clear();
    }
}

/// Waiting requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Custody {
    kept: BTreeMap<Arrival, Kept>,
    by_name: BTreeMap<RequestName, Arrival>,
    queue: Queue,
    by_client: BTreeMap<ClientKey, usize>,
    bytes: usize,
    last: u64,
    pub(super) now: Ticks,
    /// Bundles that were executed lately, by signature, and when: their outcomes are on the way.
    recent: BTreeMap<Signature, Ticks>,
    recent_order: VecDeque<(Ticks, Signature)>,
}

const RECENT_MAX: usize = 4 << 10;

/// For how long a bundle that was executed is not taken for new, in milliseconds: then whoever asks again has lost the answer.
/// What is passed on is taken sooner than what a client brings. Else a replica could take what the primary does not, and somebody
/// who shows executed requests to backups alone could take views from honest primaries.
fn ignored_for(is_passed_on: bool, options: &Options) -> u64 {
    if mutated!(options, IgnorePassedOn) {
        return if is_passed_on { u64::MAX } else { 0 };
    }
    options.request_ticks / if is_passed_on { 4 } else { 2 }
}

impl Custody {
    /// Takes a bundle whose signature was checked, brought by its client or passed on, unless it was executed lately.
    pub(super) fn take(&mut self, bundle: Arc<Bundle>, is_passed_on: bool, options: &Options) -> Taken {
        let is_late = self.is_recent(&bundle.signature(), ignored_for(is_passed_on, options));
        let open: BTreeSet<RequestName> =
            bundle.names().filter(|name| !self.by_name.contains_key(name)).collect();
        if open.is_empty() || is_late {
            return Taken::Known;
        }
        let size = bundle.bytes().len();
        let of_client = self.by_client.get(&bundle.client()).copied().unwrap_or(0);
        if of_client + size > self.room_for_one(options) || self.bytes + size > options.custody_bytes {
            return Taken::Full;
        }
        self.last += 1;
        let arrival = Arrival(self.last);
        self.by_name.extend(open.iter().map(|name| (*name, arrival)));
        *self.by_client.entry(bundle.client()).or_default() += size;
        self.bytes += size;
        let client = bundle.client();
        let void_after = bundle.requests().map(|request| request.not_after).max().unwrap_or_default();
        self.kept.insert(arrival, Kept { bundle, open, void_after, is_proposed: false, told_at: None });
        self.queue.push(client, arrival);
        Taken::New
    }

    /// The primary was told of what came last, or of this.
    pub(super) fn told(&mut self, arrival: Option<Arrival>) {
        let now = self.now;
        if let Some(kept) = self.kept.get_mut(&arrival.unwrap_or(Arrival(self.last))) {
            kept.told_at.get_or_insert(now);
        }
    }

    /// A client may hold as much as is left free besides, up to its own bound: who holds most is the first that gets no more, and those
    /// who take all they can leave room for others, less for each but always some.
    fn room_for_one(&self, options: &Options) -> usize {
        let free = options.custody_bytes.saturating_sub(self.bytes);
        if mutated!(options, FirstComeCustody) {
            options.client_bytes
        } else {
            options.client_bytes.min(free)
        }
    }

    /// Requests that were executed, under whatever digest: nobody waits for them any more. Returns since when the primary had
    /// known of them from here.
    pub(super) fn executed(&mut self, bundle: &Bundle) -> Option<Ticks> {
        let mut told_at = None;
        self.recent.insert(bundle.signature(), self.now);
        self.recent_order.push_back((self.now, bundle.signature()));
        if self.recent_order.len() > RECENT_MAX
            && let Some((at, oldest)) = self.recent_order.pop_front()
            && self.recent.get(&oldest) == Some(&at)
        {
            self.recent.remove(&oldest);
        }
        for name in bundle.names() {
            if self.by_name.is_empty() {
                break;
            }
            if let Some(arrival) = self.by_name.remove(&name) {
                let kept = self.kept.get_mut(&arrival).expect("a name leads to its bundle");
                kept.open.remove(&name);
                told_at = told_at.or(kept.told_at);
                if kept.open.is_empty() {
                    self.drop_bundle(arrival);
                }
            }
        }
        told_at
    }

    /// Whether bytes that a replica passes on claim to be a bundle that would not be taken: one that waits already, or was
    /// executed lately. They are not worth a check.
    pub(super) fn knows(&self, bytes: &[u8], options: &Options) -> bool {
        Bundle::peek(bytes).is_some_and(|(name, signature)| {
            let kept = self.by_name.get(&name).and_then(|arrival| self.kept.get(arrival));
            kept.is_some_and(|kept| kept.bundle.signature() == signature)
                || self.is_recent(&signature, ignored_for(true, options))
        })
    }

    fn is_recent(&self, signature: &Signature, millis: u64) -> bool {
        self.recent.get(signature).is_some_and(|at| self.now.since(*at) < millis)
    }

    /// Requests that were proposed in this view.
    pub(super) fn proposed(&mut self, names: impl Iterator<Item = RequestName>) {
        for name in names {
            if let Some(kept) = self.by_name.get(&name).and_then(|arrival| self.kept.get_mut(arrival)) {
                kept.is_proposed = true;
            }
        }
    }

    /// The next bundles to propose, up to the limits; at least one if one waits.
    pub(super) fn next_bundles(&mut self, options: &Options) -> Vec<Bundle> {
        let mut bundles: Vec<Bundle> = Vec::new();
        let (mut requests, mut bytes) = (0, HEADER);
        let requests_max = options.batch_requests.min(BATCH_REQUESTS_MAX);
        let bytes_max = options.batch_bytes.min(BATCH_BYTES_MAX);
        while let Some(arrival) = self.queue.front() {
            let Some(kept) = self.kept.get_mut(&arrival).filter(|kept| !kept.is_proposed) else {
                self.queue.pop(true);
                continue;
            };
            let (more_requests, more_bytes) = (kept.bundle.len(), bytes_in_batch(&kept.bundle));
            let is_full = requests + more_requests > requests_max
                || bytes + more_bytes > bytes_max
                || bundles.len() >= BATCH_BUNDLES_MAX;
            if is_full && !bundles.is_empty() {
                break;
            }
            kept.is_proposed = true;
            bundles.push(kept.bundle.as_ref().clone());
            (requests, bytes) = (requests + more_requests, bytes + more_bytes);
            self.queue.pop(false);
        }
        bundles
    }

    /// Whether anything waits to be proposed.
    pub(super) fn has_queued(&mut self) -> bool {
        while let Some(arrival) = self.queue.front() {
            if self.kept.get(&arrival).is_some_and(|kept| !kept.is_proposed) {
                return true;
            }
            self.queue.pop(true);
        }
        false
    }

    /// A view begins: whatever waits may be proposed anew.
    pub(super) fn requeue(&mut self) {
        self.kept.values_mut().for_each(|kept| (kept.is_proposed, kept.told_at) = (false, None));
        self.queue.clear();
        for (arrival, kept) in &self.kept {
            self.queue.push(kept.bundle.client(), *arrival);
        }
    }

    /// A state of others was taken, in which some of it may be executed: since when the primary has known of it says nothing any more.
    pub(super) fn forget_told(&mut self) {
        self.kept.values_mut().for_each(|kept| kept.told_at = None);
    }

    /// The bundle that waits longest.
    pub(super) fn oldest(&self) -> Option<Arrival> {
        self.kept.first_key_value().map(|(arrival, _)| *arrival)
    }

    /// The bytes of a bundle.
    pub(super) fn bytes_of(&self, arrival: Arrival) -> Option<bytes::Bytes> {
        self.kept.get(&arrival).map(|kept| kept.bundle.bytes().clone())
    }

    /// Drops what is void at this ordered time.
    pub(super) fn expire(&mut self, time: Timestamp) {
        let is_void = |kept: &Kept| kept.void_after < time;
        let void: Vec<Arrival> =
            self.kept.iter().filter(|(_, kept)| is_void(kept)).map(|(arrival, _)| *arrival).collect();
        for arrival in void {
            self.drop_bundle(arrival);
        }
    }

    /// How many bundles wait.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    fn drop_bundle(&mut self, arrival: Arrival) {
        let kept = self.kept.remove(&arrival).expect("only what is kept is dropped");
        for name in &kept.open {
            self.by_name.remove(name);
        }
        let (client, size) = (kept.bundle.client(), kept.bundle.bytes().len());
        self.queue.drop_void(&client, |arrival| self.kept.contains_key(&arrival));
        self.bytes -= size;
        let of_client = self.by_client.get_mut(&client).expect("a kept bundle is counted");
        *of_client -= size;
        if *of_client == 0 {
            self.by_client.remove(&client);
        }
        assert!(!self.kept.is_empty() || self.bytes == 0, "the count covers every bundle");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pbft::request::SignedRequest;
    use crate::pbft::sign::{ClientSigner, Domain};
    use crate::types::{Digest, Epoch};
    use bytes::Bytes;

    fn bundle(client: u8, numbers: &[u64], operation: &'static [u8]) -> Arc<Bundle> {
        let domain = Domain { cluster: Digest::ZERO, group: 1, epoch: Epoch(1) };
        let signer = ClientSigner::toy(client);
        let request = |number: &u64| SignedRequest {
            name: RequestName { client: signer.name(), session: 1, number: *number },
            ack_below: 1,
            not_after: Timestamp(100),
            wants_proof: false,
            ends_epoch: false,
            operation: Bytes::from_static(operation),
        };
        let requests: Vec<SignedRequest> = numbers.iter().map(request).collect();
        Arc::new(Bundle::sign(&domain, &signer, &requests))
    }

    #[test]
    fn a_name_is_cleared_whatever_was_executed_under_it() {
        let (mut custody, options) = (Custody::default(), Options::default());
        assert_eq!(custody.take(bundle(1, &[1, 2], b"a"), false, &options), Taken::New);
        assert_eq!(custody.take(bundle(1, &[2], b"b"), false, &options), Taken::Known);
        let known =
            |custody: &Custody, bundle: Arc<Bundle>| custody.knows(bundle.bytes(), &Options::default());
        assert!(known(&custody, bundle(1, &[1, 2], b"a")) && !known(&custody, bundle(1, &[2], b"b")));
        custody.executed(&bundle(1, &[1, 2], b"other"));
        assert_eq!((custody.len(), custody.oldest(), custody.bytes), (0, None, 0));
        assert!(custody.queue.front().is_none(), "backups keep nothing of what they never propose");
        let late = bundle(1, &[1, 2], b"other");
        assert!(!custody.knows(&late.bytes()[..100], &options) && !custody.knows(&[], &options));
        // What a replica takes for new, its primary takes too, although it executed it a little later.
        for (millis, is_passed_on, taken) in [
            (499, true, Taken::Known),
            (500, true, Taken::New),
            (999, false, Taken::Known),
            (1_000, false, Taken::New),
        ] {
            let mut custody = custody.clone();
            custody.now = Ticks(millis);
            assert_eq!(known(&custody, Arc::clone(&late)), millis < 500);
            assert_eq!(custody.take(Arc::clone(&late), is_passed_on, &options), taken, "after {millis} ms");
        }
    }

    #[test]
    fn what_is_proposed_is_not_proposed_again_until_a_view_begins() {
        let (mut custody, options) =
            (Custody::default(), Options { batch_requests: 3, ..Options::default() });
        for number in [1, 3, 5] {
            custody.take(bundle(1, &[number, number + 1], b"a"), false, &options);
        }
        assert_eq!(custody.next_bundles(&options).len(), 1, "two bundles have four requests");
        custody.proposed(bundle(1, &[3], b"a").names());
        assert_eq!(custody.next_bundles(&options).len(), 1);
        assert!(!custody.has_queued());
        custody.requeue();
        assert!(custody.has_queued());
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let (mut custody, options) =
            (Custody::default(), Options { batch_requests: 4, ..Options::default() });
        for number in 1..=50 {
            custody.take(bundle(1, &[number], b"a"), false, &options);
        }
        (1..=2).for_each(|number| _ = custody.take(bundle(2, &[number], b"a"), false, &options));
        let next = |custody: &mut Custody| -> Vec<(u8, u64)> {
            let bundles = custody.next_bundles(&options);
            let names = bundles.iter().flat_map(|bundle| bundle.names().collect::<Vec<_>>());
            names.map(|name| (name.client.0[0], name.number)).collect()
        };
        assert_eq!(next(&mut custody), [(1, 1), (2, 1), (1, 2), (2, 2)]);
        custody.take(bundle(3, &[1], b"a"), false, &options);
        assert_eq!(next(&mut custody), [(1, 3), (3, 1), (1, 4), (1, 5)]);
        // What others propose passes no turn.
        custody.proposed(bundle(1, &[6], b"a").names());
        assert_eq!(next(&mut custody)[0], (1, 7));
        custody.requeue();
        assert_eq!(next(&mut custody), [(1, 1), (2, 1), (3, 1), (1, 2)]);
    }

    /// Takes bundles of a client until there is no room; returns how many.
    fn fill(custody: &mut Custody, client: u8, options: &Options) -> usize {
        (1..100u64)
            .filter(|number| custody.take(bundle(client, &[*number], b"a"), false, options) == Taken::New)
            .count()
    }

    #[test]
    fn one_client_cannot_take_all_the_room_and_time_ends_every_wait() {
        let small = bundle(1, &[1], b"a").bytes().len();
        let mut custody = Custody::default();
        let options = Options { client_bytes: 2 * small, custody_bytes: 60 * small, ..Options::default() };
        assert_eq!(fill(&mut custody, 1, &options), 2);
        assert_eq!(custody.take(bundle(2, &[1], b"a"), false, &options), Taken::New);
        custody.expire(Timestamp(100));
        assert_eq!(custody.len(), 3);
        custody.expire(Timestamp(101));
        assert_eq!((custody.len(), custody.bytes), (0, 0));
    }

    #[test]
    fn clients_that_take_what_they_can_leave_room_for_one_more() {
        let small = bundle(1, &[1], b"a").bytes().len();
        let options = Options { client_bytes: 80 * small, custody_bytes: 640 * small, ..Options::default() };
        for (greedy, room) in [(1, 40), (4, 25), (8, 10)] {
            let mut custody = Custody::default();
            (1..=greedy).for_each(|client| _ = fill(&mut custody, client, &options));
            let found = fill(&mut custody, 100, &options);
            assert!(found >= room, "beside {greedy}: {found}");
        }
    }
}
