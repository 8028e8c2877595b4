//! A disk that is made again from a trace of system calls: at any point of it, what may be there after a power cut.
//!
//! Pessimistic where file systems differ: a write is safe when its file is synced, a name when its directory is. What is
//! not safe may be there or not, in any combination, and a write may be there in part.

use std::collections::BTreeMap;
use std::path::Path;

/// One recorded system call.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Create(String),
    Write(String, usize, Vec<u8>),
    Truncate(String, usize),
    Sync(String),
    Rename(String, String),
    Remove(String),
    MakeDirectory(String),
}

/// Reads the recorder's trace. The process may have ended while one of its threads was recording a call: that call is
/// the last, and is left out.
pub(crate) fn read_trace(path: &Path) -> Vec<Call> {
    let bytes = std::fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    std::iter::from_fn(|| read_call(&mut rest)).collect()
}

fn read_call(rest: &mut &[u8]) -> Option<Call> {
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at_checked(count)?;
        *rest = left;
        Some(taken)
    };
    let kind = take(1)?[0];
    let length = u32::from_ne_bytes(take(4)?.try_into().unwrap());
    let path = String::from_utf8(take(length as usize)?.to_vec()).unwrap();
    let offset = u64::from_ne_bytes(take(8)?.try_into().unwrap()) as usize;
    let length = u32::from_ne_bytes(take(4)?.try_into().unwrap());
    let data = take(length as usize)?.to_vec();
    Some(match kind {
        b'C' => Call::Create(path),
        b'W' => Call::Write(path, offset, data),
        b'T' => Call::Truncate(path, offset),
        b'S' => Call::Sync(path),
        b'R' => Call::Rename(path, String::from_utf8(data).unwrap()),
        b'U' => Call::Remove(path),
        b'M' => Call::MakeDirectory(path),
        _ => panic!("an unknown kind of call"),
    })
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    safe: Vec<u8>,
    /// Changes that are not synced, with their place in the order of all.
    unsafe_changes: Vec<(u64, Change)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(String, usize),
    Move(String, String, usize),
    Remove(String),
}

/// Which of the unsynced names and writes are there after the cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Survivors {
    pub(crate) names: bool,
    pub(crate) writes: Writes,
}

/// Writes are counted over all files, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Writes {
    None,
    All,
    Only(usize),
    AllBut(usize),
    /// All, but of the last one only the first half.
    TornFront,
    /// All, but of the last one only the second half.
    TornBack,
    /// Each sector of 512 bytes as chance wills it.
    Sectors(u64),
}

/// Which paths a lying disk does not sync.
pub(crate) type Lie = fn(&str) -> bool;

/// A disk at one point of a trace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    safe_names: BTreeMap<String, usize>,
    unsafe_names: Vec<NameChange>,
    changes: u64,
    /// Syncs of such paths do nothing: the disk lies, and the test must notice.
    pub(crate) lies_about: Option<Lie>,
}

/// Files by path.
pub(crate) type Image = BTreeMap<String, Vec<u8>>;

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Disk {
    /// A disk on which these files are safe.
    pub(crate) fn holding(image: &Image) -> Self {
        let mut disk = Self::default();
        for (path, bytes) in image {
            disk.inodes.push(Inode { safe: bytes.clone(), unsafe_changes: Vec::new() });
            disk.names.insert(path.clone(), disk.inodes.len() - 1);
        }
        disk.safe_names = disk.names.clone();
        disk
    }

    pub(crate) fn take(&mut self, call: &Call) {
        match call {
            Call::Create(path) => {
                self.inodes.push(Inode::default());
                self.names.insert(path.clone(), self.inodes.len() - 1);
                self.unsafe_names.push(NameChange::Add(path.clone(), self.inodes.len() - 1));
            }
            Call::Write(path, offset, data) => self.change(path, Change::Write(*offset, data.clone())),
            Call::Truncate(path, length) => self.change(path, Change::Truncate(*length)),
            Call::Sync(path) if self.lies_about.is_some_and(|lies| lies(path)) => {}
            Call::Sync(path) => self.sync(path),
            Call::Rename(from, to) => {
                let inode = self.names.remove(from).expect("what is renamed exists");
                self.names.insert(to.clone(), inode);
                self.unsafe_names.push(NameChange::Move(from.clone(), to.clone(), inode));
            }
            Call::Remove(path) => {
                self.names.remove(path);
                self.unsafe_names.push(NameChange::Remove(path.clone()));
            }
            Call::MakeDirectory(_) => {}
        }
    }

    fn change(&mut self, path: &str, change: Change) {
        // A file that was removed while it was open may still be written, to no effect.
        let Some(inode) = self.names.get(path) else { return };
        self.changes += 1;
        self.inodes[*inode].unsafe_changes.push((self.changes, change));
    }

    fn sync(&mut self, path: &str) {
        if let Some(inode) = self.names.get(path) {
            let inode = &mut self.inodes[*inode];
            for (_, change) in std::mem::take(&mut inode.unsafe_changes) {
                apply(&mut inode.safe, &change);
            }
            return;
        }
        let (here, elsewhere) = std::mem::take(&mut self.unsafe_names).into_iter().partition(|change| {
            let (NameChange::Add(name, _) | NameChange::Move(_, name, _) | NameChange::Remove(name)) = change;
            folder(name) == path
        });
        self.unsafe_names = elsewhere;
        let here: Vec<NameChange> = here;
        here.iter().for_each(|change| rename(&mut self.safe_names, change));
    }

    /// How many writes are not synced.
    pub(crate) fn unsafe_writes(&self) -> usize {
        self.inodes.iter().map(|inode| inode.unsafe_changes.len()).sum()
    }

    pub(crate) fn has_unsafe_names(&self) -> bool {
        !self.unsafe_names.is_empty()
    }

    /// What is there after a cut with these survivors.
    pub(crate) fn image(&self, survivors: Survivors) -> Image {
        let mut names = self.safe_names.clone();
        if survivors.names {
            self.unsafe_names.iter().for_each(|change| rename(&mut names, change));
        }
        let mut order: Vec<u64> =
            self.inodes.iter().flat_map(|inode| inode.unsafe_changes.iter().map(|(at, _)| *at)).collect();
        order.sort_unstable();
        let survives = |at: u64, change: &Change| {
            let index = order.binary_search(&at).expect("every change is in the order");
            let is_last = index + 1 == order.len();
            match survivors.writes {
                Writes::None => Vec::new(),
                Writes::Only(only) if index != only => Vec::new(),
                Writes::AllBut(missing) if index == missing => Vec::new(),
                Writes::TornFront if is_last => part(change, |at, length| at < length / 2),
                Writes::TornBack if is_last => part(change, |at, length| at >= length / 2),
                Writes::Sectors(seed) => {
                    part(change, |byte, _| mix(seed ^ at ^ ((byte as u64 / 512) << 20)).is_multiple_of(2))
                }
                Writes::All | Writes::Only(_) | Writes::AllBut(_) | Writes::TornFront | Writes::TornBack => {
                    vec![change.clone()]
                }
            }
        };
        let content = |inode: &Inode| {
            let mut bytes = inode.safe.clone();
            for (at, change) in &inode.unsafe_changes {
                survives(*at, change).iter().for_each(|change| apply(&mut bytes, change));
            }
            bytes
        };
        names.into_iter().map(|(path, inode)| (path, content(&self.inodes[inode]))).collect()
    }
}

fn rename(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Add(name, inode) => drop(names.insert(name.clone(), *inode)),
        NameChange::Move(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        NameChange::Remove(name) => drop(names.remove(name)),
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Truncate(length) => bytes.resize(*length, 0),
        Change::Write(offset, data) => {
            let end = offset + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(data);
        }
    }
}

/// Runs of the bytes of a write that the rule keeps.
fn part(change: &Change, keeps: impl Fn(usize, usize) -> bool) -> Vec<Change> {
    let Change::Write(offset, data) = change else { return vec![change.clone()] };
    let mut parts = Vec::new();
    let mut start = None;
    for at in 0..=data.len() {
        let is_kept = at < data.len() && keeps(at, data.len());
        match start {
            None if is_kept => start = Some(at),
            Some(from) if !is_kept => {
                parts.push(Change::Write(offset + from, data[from..at].to_vec()));
                start = None;
            }
            _ => {}
        }
    }
    parts
}

fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}
