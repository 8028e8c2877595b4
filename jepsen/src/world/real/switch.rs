//! The switch between the hosts: every packet of every node goes through this thread, which forwards it, or loses, delays, doubles
//! or holds it back, as the rules of the moment say. What it does is what it counts, so an effect is never assumed.
//!
//! Hosts are numbered; the last one is that of the clients. Partitions cut nodes off from one another, never from clients.

use crate::nemesis::Nemesis;
use crate::nemesis::partition::Cut;
use crate::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tun_rs::AsyncDevice;

/// Packets that wait for their time at most; more are lost.
const WAITING_MAX: usize = 20_000;

/// What happens to packets now, and what has happened to them.
pub(super) struct Rules {
    cut: BTreeMap<(usize, usize), Nemesis>,
    at_work: BTreeSet<Nemesis>,
    random: Random,
    effects: BTreeMap<Nemesis, u64>,
    last: BTreeMap<(usize, usize), Instant>,
    waiting: usize,
}

impl Rules {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            cut: BTreeMap::new(),
            at_work: BTreeSet::new(),
            random: Random::new(seed),
            effects: BTreeMap::new(),
            last: BTreeMap::new(),
            waiting: 0,
        }
    }

    pub(super) fn cut(&mut self, nemesis: Nemesis, cut: Cut) {
        self.cut = cut.into_iter().map(|pair| (pair, nemesis)).collect();
    }

    pub(super) fn begin(&mut self, nemesis: Nemesis) {
        self.at_work.insert(nemesis);
    }

    pub(super) fn end(&mut self, nemesis: Nemesis) {
        self.at_work.remove(&nemesis);
        self.cut.retain(|_, by| *by != nemesis);
    }

    pub(super) fn effect(&self, nemesis: Nemesis) -> u64 {
        self.effects.get(&nemesis).copied().unwrap_or(0)
    }

    fn happens(&mut self, nemesis: Nemesis, per_mille: u64) -> bool {
        let happens = self.at_work.contains(&nemesis) && self.random.per_mille(per_mille);
        if happens {
            self.count(nemesis);
        }
        happens
    }

    fn count(&mut self, nemesis: Nemesis) {
        *self.effects.entry(nemesis).or_default() += 1;
    }

    /// When a packet is to arrive: never, once, or twice.
    fn route(&mut self, from: usize, to: usize, now: Instant) -> Vec<Instant> {
        if let Some(nemesis) = self.cut.get(&(from, to)).copied() {
            self.count(nemesis);
            return Vec::new();
        }
        if self.happens(Nemesis::Loss, 100) {
            return Vec::new();
        }
        let mut moment = now;
        if self.happens(Nemesis::Delay, 300) {
            moment += Duration::from_millis(self.random.between(20, 120));
        }
        // What comes late makes others behind it late too, unless packets may overtake.
        let link = self.last.entry((from, to)).or_insert(now);
        moment = moment.max(*link);
        *link = moment;
        if self.happens(Nemesis::Reordering, 200) {
            moment += Duration::from_millis(self.random.between(1, 20));
        }
        let mut moments = vec![moment];
        if self.happens(Nemesis::Duplication, 200) {
            moments.push(moment + Duration::from_millis(self.random.below(10)));
        }
        moments
    }
}

/// A running switch; it ends with this value.
pub(super) struct Switch {
    rules: Arc<Mutex<Rules>>,
    _stop: oneshot::Sender<()>,
}

impl Switch {
    /// Takes the devices of all hosts, those of the nodes first, and begins to forward. `host_of` tells by the last byte of an
    /// address, and by how many nodes there are, whose it is.
    pub(super) fn start(
        runtime: Runtime,
        devices: Vec<AsyncDevice>,
        host_of: fn(u8, usize) -> Option<usize>,
        rules: Rules,
    ) -> anyhow::Result<Self> {
        let rules = Arc::new(Mutex::new(rules));
        let (stop, stopped) = oneshot::channel::<()>();
        let devices: Vec<Arc<AsyncDevice>> = devices.into_iter().map(Arc::new).collect();
        let shared = Arc::clone(&rules);
        let run = move || {
            runtime.block_on(async move {
                for from in 0..devices.len() {
                    tokio::spawn(forward(from, devices.clone(), host_of, Arc::clone(&shared)));
                }
                // Ends when the sender is dropped.
                let _ = stopped.await;
            });
        };
        std::thread::Builder::new().name("switch".to_string()).spawn(run)?;
        Ok(Self { rules, _stop: stop })
    }

    pub(super) fn rules(&self) -> MutexGuard<'_, Rules> {
        lock(&self.rules)
    }
}

fn lock(rules: &Mutex<Rules>) -> MutexGuard<'_, Rules> {
    rules.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves the packets that one host sends, until its device is gone.
async fn forward(
    from: usize,
    devices: Vec<Arc<AsyncDevice>>,
    host_of: fn(u8, usize) -> Option<usize>,
    rules: Arc<Mutex<Rules>>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = devices[from].recv(&mut buffer).await {
        let packet = &buffer[..length];
        let nodes = devices.len() - 1;
        let Some(to) = last_of_destination(packet).and_then(|last| host_of(last, nodes)) else { continue };
        let now = Instant::now();
        let moments = lock(&rules).route(from, to, now);
        for moment in moments {
            if moment <= now {
                // A host that takes no more loses packets, as any host does.
                let _ = devices[to].send(packet).await;
            } else {
                deliver_later(packet.to_vec(), Arc::clone(&devices[to]), moment, &rules);
            }
        }
    }
}

fn deliver_later(packet: Vec<u8>, device: Arc<AsyncDevice>, moment: Instant, rules: &Arc<Mutex<Rules>>) {
    {
        let mut rules = lock(rules);
        if rules.waiting >= WAITING_MAX {
            return;
        }
        rules.waiting += 1;
    }
    let rules = Arc::clone(rules);
    tokio::spawn(async move {
        tokio::time::sleep_until(moment).await;
        let _ = device.send(&packet).await;
        lock(&rules).waiting -= 1;
    });
}

/// The last byte of the address that an IPv4 packet goes to.
fn last_of_destination(packet: &[u8]) -> Option<u8> {
    const VERSION_4: u8 = 4;
    const LAST_BYTE: usize = 19;
    (packet.first()? >> 4 == VERSION_4).then(|| packet.get(LAST_BYTE).copied())?
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    fn rules() -> (Rules, Instant) {
        (Rules::new(7), Instant::now())
    }

    #[test]
    fn what_is_cut_off_never_arrives_and_is_counted() {
        let (mut rules, now) = rules();
        rules.cut(Nemesis::OneWay, Cut::from([(0, 1)]));
        assert_eq!(rules.route(0, 1, now), Vec::new());
        assert_eq!(rules.route(1, 0, now), vec![now]);
        assert_eq!(rules.effect(Nemesis::OneWay), 1);
        rules.end(Nemesis::OneWay);
        assert_eq!(rules.route(0, 1, now), vec![now]);
    }

    #[test]
    fn without_reordering_packets_of_a_link_keep_their_order() {
        let (mut rules, now) = rules();
        rules.begin(Nemesis::Delay);
        let moments: Vec<Instant> = (0..100).flat_map(|_| rules.route(0, 1, now)).collect();
        assert!(moments.is_sorted() && moments[99] > now);
        assert!((10..60).contains(&rules.effect(Nemesis::Delay)));
    }

    #[test]
    fn each_disturbance_does_what_it_is_called() {
        let (mut rules, now) = rules();
        rules.begin(Nemesis::Loss);
        let lost = (0..1_000).filter(|_| rules.route(0, 1, now).is_empty()).count();
        assert_eq!(rules.effect(Nemesis::Loss), lost as u64);
        assert!((50..200).contains(&lost), "{lost}");
        rules.end(Nemesis::Loss);
        rules.begin(Nemesis::Duplication);
        let doubled = (0..1_000).filter(|_| rules.route(0, 1, now).len() == 2).count();
        assert_eq!(rules.effect(Nemesis::Duplication), doubled as u64);
        rules.end(Nemesis::Duplication);
        rules.begin(Nemesis::Reordering);
        let moments: Vec<Instant> = (0..100).flat_map(|_| rules.route(0, 1, now)).collect();
        assert!(!moments.is_sorted(), "some overtake");
    }

    #[test]
    fn destinations_are_read_from_packets() {
        let mut packet = [0; 28];
        (packet[0], packet[19]) = (0x45, 3);
        assert_eq!(last_of_destination(&packet), Some(3));
        packet[0] = 0x60;
        assert_eq!(last_of_destination(&packet), None, "another version");
        assert_eq!(last_of_destination(&packet[..10]), None);
        assert_eq!(last_of_destination(&[]), None);
    }
}
