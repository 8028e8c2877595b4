//! What each nemesis does to the real world, and how it is undone.

use super::{RealWorld, data_of};
use crate::nemesis::{Nemesis, partition};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tetrachord_consensus::quorum::liars;

/// One strike of a nemesis, not mended yet.
#[derive(Clone, Debug)]
pub struct Strike {
    /// Which.
    pub nemesis: Nemesis,
    /// Nodes that it struck; none if it struck the network between them.
    pub nodes: Vec<usize>,
    /// What it did, for people.
    pub words: String,
    /// A promise that was broken at once, if one was.
    pub broken: Option<String>,
}

/// A node that must refuse to run does so within this time.
const REFUSAL: Duration = Duration::from_secs(10);

impl RealWorld {
    /// Breaks something.
    pub fn strike(&mut self, nemesis: Nemesis) -> anyhow::Result<Strike> {
        let nodes = match nemesis {
            nemesis if nemesis.is_of_network() || nemesis == Nemesis::Lies => Vec::new(),
            Nemesis::PowerCut => (0..self.nodes.len()).collect(),
            Nemesis::WipedDisk | Nemesis::BitFlip => vec![self.random.index(self.nodes.len())],
            // The same ones in a whole run: more than f that are wrong about the time, or the state, are more than is survived.
            Nemesis::Rot => vec![self.nodes.len() - 1],
            Nemesis::ClockJump if self.is_byzantine => vec![self.nodes.len() - 1],
            _ => self.some_nodes(),
        };
        let mut words = format!("{}: {}", nemesis.name(), in_words(&nodes));
        let mut broken = None;
        match nemesis {
            Nemesis::Kill => {
                for index in &nodes {
                    let killed = self.kill_node(*index)?;
                    self.count_effect(nemesis, u64::from(killed));
                }
            }
            Nemesis::PowerCut => self.cut_power(&nodes)?,
            Nemesis::Pause => {
                for index in &nodes {
                    self.nodes[*index].process.pause()?;
                }
            }
            Nemesis::SlowDisk => {
                for index in &nodes {
                    self.disks[*index].freeze()?;
                }
            }
            Nemesis::DiskFull => {
                let to_the_last = self.random.coin();
                for index in &nodes {
                    let is_full = self.disks[*index].fill(to_the_last)?;
                    self.count_effect(nemesis, u64::from(is_full));
                }
                words += if to_the_last { " (full)" } else { " (almost full)" };
            }
            Nemesis::WipedDisk => broken = self.wipe(nodes[0])?,
            Nemesis::BitFlip => self.flip(nodes[0])?,
            Nemesis::ClockJump => words += &self.jump(&nodes)?,
            Nemesis::Rot => self.rot(nodes[0])?,
            Nemesis::Lies => words = format!("lies: {}", in_words(&self.liars())),
            nemesis if nemesis.is_partition() => words = self.cut_network(nemesis),
            disturbance => {
                self.rules(|rules| rules.begin(disturbance));
                words = format!("{}: everywhere", nemesis.name());
            }
        }
        Ok(Strike { nemesis, nodes, words, broken })
    }

    /// Undoes a strike. What ended comes back.
    pub fn mend(&mut self, strike: &Strike) -> anyhow::Result<()> {
        for index in &strike.nodes {
            match strike.nemesis {
                Nemesis::Pause => {
                    let stood = self.nodes[*index].process.resume()?;
                    self.count_effect(Nemesis::Pause, u64::try_from(stood.as_millis())?);
                }
                Nemesis::SlowDisk => {
                    let stood = self.disks[*index].thaw()?;
                    self.count_effect(Nemesis::SlowDisk, u64::try_from(stood.as_millis())?);
                }
                Nemesis::DiskFull => {
                    self.disks[*index].make_room()?;
                    // A node whose write failed has ended, as it must.
                    if self.nodes[*index].process.ended().is_some() {
                        self.remember_lies(*index);
                    }
                }
                Nemesis::ClockJump => {
                    self.nodes[*index].clock.as_ref().map_or(Ok(()), |clock| clock.set(0))?
                }
                _ => {}
            }
            self.start_node(*index)?;
        }
        if strike.nemesis.is_of_network() {
            self.rules(|rules| rules.end(strike.nemesis));
        }
        Ok(())
    }

    /// Whether a node that ends during this strike does what it must.
    #[must_use]
    pub fn may_end(strike: &Strike, index: usize) -> bool {
        strike.nemesis == Nemesis::DiskFull && strike.nodes.contains(&index)
    }

    fn count_effect(&mut self, nemesis: Nemesis, effect: u64) {
        *self.effects.entry(nemesis).or_default() += effect;
    }

    /// Mostly a minority, often with a leader in it; sometimes all.
    fn some_nodes(&mut self) -> Vec<usize> {
        let count = self.nodes.len();
        if self.random.per_mille(150) {
            return (0..count).collect();
        }
        let minority = if self.is_byzantine { liars(count) } else { (count - 1) / 2 };
        let wanted = 1 + self.random.index(minority.max(1));
        let first = match (self.random.coin(), self.a_leader()) {
            (true, Some(leader)) => leader,
            _ => self.random.index(count),
        };
        (0..wanted).map(|turn| (first + turn) % count).collect()
    }

    fn a_leader(&mut self) -> Option<usize> {
        let leads = |index: &usize| {
            self.status(*index).is_some_and(|status| status.groups.iter().any(|group| group.is_leader))
        };
        let leaders: Vec<usize> = (0..self.nodes.len()).filter(leads).collect();
        (!leaders.is_empty()).then(|| leaders[self.random.index(leaders.len())])
    }

    fn cut_power(&mut self, nodes: &[usize]) -> anyhow::Result<()> {
        for index in nodes {
            self.kill_node(*index)?;
        }
        for index in nodes {
            let has_lost = self.disks[*index].cut()?;
            self.count_effect(Nemesis::PowerCut, u64::from(has_lost));
        }
        Ok(())
    }

    fn cut_network(&mut self, nemesis: Nemesis) -> String {
        let cut = partition::draw(nemesis, self.nodes.len(), &mut self.random);
        let pairs: Vec<String> = cut.iter().map(|(from, to)| format!("n{}>n{}", from + 1, to + 1)).collect();
        self.rules(|rules| rules.cut(nemesis, cut));
        format!("{}: cut {}", nemesis.name(), pairs.join(" "))
    }

    fn rules(&self, change: impl FnOnce(&mut super::switch::Rules)) {
        let hosts = self.hosts.as_ref().expect("nemeses of the network have hosts");
        change(&mut hosts.rules());
    }

    fn jump(&mut self, nodes: &[usize]) -> anyhow::Result<String> {
        let seconds = i64::try_from(self.random.below(7_200))? - 3_600;
        for index in nodes {
            let Some(clock) = &self.nodes[*index].clock else { continue };
            clock.set(seconds)?;
            let is_seen = clock.seen_offset()?.abs_diff(seconds) <= 2 && seconds.abs() > 2;
            self.count_effect(Nemesis::ClockJump, u64::from(is_seen));
        }
        Ok(format!(" ({seconds:+} s)"))
    }

    /// The disk of a node is taken away: it must refuse to run, and say so. Then it gets its own disk back; it has promised
    /// nothing meanwhile. What is wrong, if it runs.
    fn wipe(&mut self, index: usize) -> anyhow::Result<Option<String>> {
        self.kill_node(index)?;
        let data = data_of(&self.nodes[index].file);
        let aside = data.with_file_name("data-aside");
        match self.disks.get_mut(index) {
            Some(disk) => disk.unmount()?,
            None => {
                std::fs::rename(&data, &aside)?;
                std::fs::create_dir(&data)?;
            }
        }
        self.start_node(index)?;
        let status = self.nodes[index].process.wait_for_end(REFUSAL);
        let words = self.nodes[index].process.last_words();
        self.nodes[index].process.kill()?;
        match self.disks.get_mut(index) {
            Some(disk) => disk.mount()?,
            None => {
                std::fs::remove_dir_all(&data)?;
                std::fs::rename(&aside, &data)?;
            }
        }
        let has_refused = status.is_some_and(|status| !status.success()) && words.contains("wiped");
        self.count_effect(Nemesis::WipedDisk, u64::from(has_refused));
        Ok((!has_refused).then(|| format!("n{} does not refuse to run on an empty disk: {words}", index + 1)))
    }

    /// A bit of what a node has written down is turned over while it does not run: it must not take that for a log that ended early, or
    /// for its own word. Once it has refused to run, it gets the bit back. Segments are used again, and a bit of an earlier use means
    /// nothing: a node that is not disturbed by it goes on, and is judged like the others.
    fn flip(&mut self, index: usize) -> anyhow::Result<()> {
        self.kill_node(index)?;
        let file = log_of(&data_of(&self.nodes[index].file))?;
        let before = std::fs::read(&file)?;
        let written: Vec<usize> = (FRAMES_START..before.len()).filter(|at| before[*at] != 0).collect();
        anyhow::ensure!(!written.is_empty(), "{} holds no frame", file.display());
        let at = written[self.random.index(written.len())];
        let mut after = before.clone();
        after[at] ^= 1 << self.random.index(8);
        std::fs::write(&file, after)?;
        self.start_node(index)?;
        let status = self.nodes[index].process.wait_for_end(REFUSAL);
        let words = self.nodes[index].process.last_words();
        if status.is_some_and(|status| !status.success()) && words.contains("damaged") {
            self.count_effect(Nemesis::BitFlip, 1);
            std::fs::write(&file, before)?;
        }
        Ok(())
    }

    /// Changes bytes of the state of a node that does not run.
    fn rot(&mut self, index: usize) -> anyhow::Result<()> {
        self.kill_node(index)?;
        let file = tree_of(&data_of(&self.nodes[index].file))?;
        let mut bytes = std::fs::read(&file)?;
        let (from, to) = (bytes.len() / 8, bytes.len() * 7 / 8);
        let step = 7 + self.random.index(60);
        bytes[from..to].iter_mut().step_by(step).for_each(|byte| *byte ^= 0x5a);
        std::fs::write(&file, bytes)?;
        self.start_node(index)
    }
}

/// The file of the newest tree of applied state.
fn tree_of(data: &Path) -> anyhow::Result<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(data)?.collect::<Result<_, _>>()?;
    let number = |path: &PathBuf| {
        path.file_name()?
            .to_str()?
            .strip_prefix("tree-")?
            .parse::<u64>()
            .ok()
            .filter(|_| path.join("whole").exists())
    };
    let trees = entries.into_iter().map(|entry| entry.path()).filter_map(|path| Some((number(&path)?, path)));
    let newest = trees.max().ok_or_else(|| anyhow::anyhow!("{} holds no tree", data.display()))?;
    Ok(newest.1.join("db"))
}

/// Where frames begin in a segment of the log.
const FRAMES_START: usize = 4096;

/// The newest segment of the log, with the latest that the node promised.
fn log_of(data: &Path) -> anyhow::Result<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(data.join("log"))?.collect::<Result<_, _>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let segments = paths.filter(|path| path.extension().is_some_and(|end| end == "seg"));
    segments.max().ok_or_else(|| anyhow::anyhow!("{} holds no log", data.display()))
}

fn in_words(nodes: &[usize]) -> String {
    nodes.iter().map(|index| format!("n{}", index + 1)).collect::<Vec<_>>().join(", ")
}
