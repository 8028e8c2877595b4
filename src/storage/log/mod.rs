//! The write-ahead log of a node: frames in preallocated segment files, one barrier a frame.
//!
//! # Invariants
//!
//! * A frame is written only after the frame before it is durable. So a frame that does not verify and has a later one
//!   behind it was acknowledged and is rotten; only one with nothing behind it may be a torn tail.
//! * A segment whose header says *base* begins with a frame that stands for everything before it. Segments below the
//!   last such segment whose first frame verifies are void.
//! * A name is durable before the first frame in its file is reported: the directory is synced when a segment begins.
//! * An error of any call is final: nothing is written afterwards, nothing is retried.
//!
//! # Why files of our own
//!
//! Overwriting blocks that were written before costs one `fdatasync` without a journal commit; the tail is ours to judge,
//! where sled takes a damaged log for a torn one and comes back shorter without a word (`docs/decisions`, 6). Segments are
//! filled with zeros when they are made, and used again after their frames are void.
//!
//! What is not here: who waits for the barrier, and the witness that remembers what was durable ([`super::disk`]).

pub(super) mod frame;

use crate::error::StorageError;
use crate::ring::StoreId;
use crate::storage::LogRecord;
use bytes::Bytes;
use frame::{FRAMES_START, LogEnd, Payload, Place, SegmentHeader};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Void segments that are kept to be used again.
const SPARES_MAX: usize = 2;

/// A segment that is open for appending.
#[derive(Debug)]
struct Segment {
    file: File,
    place: Place,
    /// Where the next frame begins.
    at: usize,
    capacity: usize,
}

/// The open log.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    store: StoreId,
    segment_bytes: usize,
    current: Segment,
    /// The segment that begins with the base frame.
    base_sequence: u64,
    first_sequence: u64,
    spares: Vec<PathBuf>,
    end: LogEnd,
    bytes: u64,
}

/// What a log held when it was opened.
#[derive(Debug, Default)]
pub(super) struct ReadLog {
    /// Every record behind the base, in order.
    pub(super) records: Vec<LogRecord>,
    /// Every frame that verified, in order.
    pub(super) frames: Vec<LogEnd>,
    /// The last frame that the base stands for.
    pub(super) base: LogEnd,
}

impl Log {
    /// Makes an empty log; whatever the directory held is void.
    pub(super) fn create(dir: &Path, store: StoreId, segment_bytes: usize) -> Result<Self, StorageError> {
        std::fs::create_dir_all(dir).map_err(|error| StorageError::io("make the log's directory", error))?;
        for (_, path) in segments_in(dir)? {
            std::fs::remove_file(path).map_err(|error| StorageError::io("remove a void segment", error))?;
        }
        let mut spares = spares_in(dir, segment_bytes)?;
        let header = SegmentHeader { store, sequence: 1, is_base: true, before: LogEnd::default() };
        let current = begin_segment(dir, &mut spares, &header, segment_bytes)?;
        current.file.sync_all().map_err(|error| StorageError::io("sync the first segment", error))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            store,
            segment_bytes,
            current,
            base_sequence: 1,
            first_sequence: 1,
            spares,
            end: LogEnd::default(),
            bytes: 0,
        })
    }

    /// Whether a directory holds a log to which something was ever written.
    pub(super) fn was_used(dir: &Path) -> Result<bool, StorageError> {
        let mut is_used = false;
        for (_, path) in segments_in(dir)? {
            let bytes =
                std::fs::read(path).map_err(|error| StorageError::io("read a segment of the log", error))?;
            is_used |= bytes.get(FRAMES_START..).is_some_and(|frames| frames.iter().any(|byte| *byte != 0));
        }
        Ok(is_used)
    }

    /// Reads and verifies the log. Everything that was read is durable when this returns.
    pub(super) fn open(
        dir: &Path,
        store: StoreId,
        segment_bytes: usize,
    ) -> Result<(Self, ReadLog), StorageError> {
        let segments = load_segments(dir, store)?;
        let (read, current) = read_log(&segments, store)?;
        for unborn in segments.iter().filter(|segment| segment.sequence > current.sequence) {
            std::fs::remove_file(&unborn.path)
                .map_err(|error| StorageError::io("remove a segment that was never begun", error))?;
        }
        for path in segments.iter().filter(|segment| segment.sequence <= current.sequence) {
            let synced = File::open(&path.path).and_then(|file| file.sync_all());
            synced.map_err(|error| StorageError::io("sync the log after reading it", error))?;
        }
        sync_directory(dir)?;
        let found = segments.iter().find(|segment| segment.sequence == current.sequence);
        let found = found.expect("the current segment was read");
        let file = OpenOptions::new().read(true).write(true).open(&found.path);
        let file = file.map_err(|error| StorageError::io("open the last segment", error))?;
        let place = Place { store, sequence: current.sequence };
        let capacity = found.bytes.len();
        let end = read.frames.last().copied().unwrap_or(read.base);
        let log = Self {
            dir: dir.to_path_buf(),
            store,
            segment_bytes,
            current: Segment { file, place, at: current.at, capacity },
            base_sequence: current.base_sequence,
            first_sequence: segments.first().map_or(1, |segment| segment.sequence),
            spares: spares_in(dir, segment_bytes)?,
            end,
            bytes: read.records.iter().map(|record| record.body.len() as u64).sum(),
        };
        Ok((log, read))
    }

    /// The last frame. It is durable.
    pub(super) fn end(&self) -> LogEnd {
        self.end
    }

    /// Bytes of frames since the base.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the next frame; it is durable when this returns. A base frame stands for everything before it.
    pub(super) fn append(&mut self, payload: Payload, is_base: bool) -> Result<(), StorageError> {
        assert!(!payload.is_empty(), "a frame holds something");
        let frame_bytes = payload.frame_bytes();
        let is_used = self.current.at > FRAMES_START;
        if is_base || is_used && self.current.at + frame_bytes > self.current.capacity {
            self.roll(is_base)?;
        }
        let segment = &mut self.current;
        let frame = payload.into_frame(segment.place, &mut self.end);
        assert_eq!(frame.len(), frame_bytes, "a frame has the size that was made room for");
        let write = segment.file.write_all_at(&frame, segment.at as u64);
        write.map_err(|error| StorageError::io("append to the write-ahead log", error))?;
        segment.file.sync_data().map_err(|error| StorageError::io("sync the write-ahead log", error))?;
        segment.at += frame_bytes;
        self.bytes += frame_bytes as u64;
        Ok(())
    }

    fn roll(&mut self, is_base: bool) -> Result<(), StorageError> {
        let sequence = self.current.place.sequence + 1;
        let header = SegmentHeader { store: self.store, sequence, is_base, before: self.end };
        self.current = begin_segment(&self.dir, &mut self.spares, &header, self.segment_bytes)?;
        if is_base {
            self.base_sequence = sequence;
            self.bytes = 0;
        }
        Ok(())
    }

    /// Gives the files of void segments free to be used again. Only after a base frame is durable, and after the
    /// witness knows of it.
    pub(super) fn recycle(&mut self) -> Result<(), StorageError> {
        assert!(self.base_sequence < self.current.place.sequence || self.current.at > FRAMES_START);
        for sequence in self.first_sequence..self.base_sequence {
            let path = segment_path(&self.dir, sequence);
            let spare = self.dir.join(format!("spare-{sequence:020}"));
            let is_reusable = self.spares.len() < SPARES_MAX
                && !self.spares.contains(&spare)
                && std::fs::metadata(&path).is_ok_and(|data| data.len() == self.segment_bytes as u64);
            let done = if is_reusable { std::fs::rename(&path, &spare) } else { std::fs::remove_file(&path) };
            match done {
                Ok(()) if is_reusable => self.spares.push(spare),
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(StorageError::io("give a void segment free", error)),
            }
        }
        self.first_sequence = self.base_sequence;
        Ok(())
    }

    /// Makes the next segment's file ahead of its need, so that no commit waits for it.
    pub(super) fn prepare(&mut self) -> Result<(), StorageError> {
        if self.spares.is_empty() && self.current.at > self.current.capacity / 2 {
            let path = self.dir.join(format!("spare-{:020}", self.current.place.sequence + 1));
            make_file(&path, self.segment_bytes)?;
            self.spares.push(path);
        }
        Ok(())
    }
}

fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:020}.seg"))
}

/// Makes a file of zeros and syncs it: overwriting it later changes no metadata.
fn make_file(path: &Path, bytes: usize) -> Result<File, StorageError> {
    let io = |error: std::io::Error| StorageError::io("make a segment of the log", error);
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).map_err(io)?;
    let zeros = vec![0; bytes.min(1 << 20)];
    for at in (0..bytes).step_by(zeros.len()) {
        file.write_all_at(&zeros[..zeros.len().min(bytes - at)], at as u64).map_err(io)?;
    }
    file.sync_all().map_err(io)?;
    Ok(file)
}

/// Puts a segment under its name, with its header. The name is durable when this returns; the header becomes so with the
/// first frame.
fn begin_segment(
    dir: &Path,
    spares: &mut Vec<PathBuf>,
    header: &SegmentHeader,
    segment_bytes: usize,
) -> Result<Segment, StorageError> {
    let io = |error: std::io::Error| StorageError::io("begin a segment of the log", error);
    let path = segment_path(dir, header.sequence);
    let file = match spares.pop() {
        Some(spare) => {
            std::fs::rename(&spare, &path).map_err(io)?;
            OpenOptions::new().read(true).write(true).open(&path).map_err(io)?
        }
        None => make_file(&path, segment_bytes)?,
    };
    file.write_all_at(&header.encode(), 0).map_err(io)?;
    sync_directory(dir)?;
    let capacity = usize::try_from(file.metadata().map_err(io)?.len()).expect("segments are small");
    let place = Place { store: header.store, sequence: header.sequence };
    Ok(Segment { file, place, at: FRAMES_START, capacity })
}

pub(super) fn sync_directory(dir: &Path) -> Result<(), StorageError> {
    let synced = File::open(dir).and_then(|file| file.sync_all());
    synced.map_err(|error| StorageError::io("sync a directory", error))
}

/// Files that end in `.seg`, with the number before it, in order.
fn segments_in(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StorageError> {
    let mut found: Vec<(u64, PathBuf)> = names_in(dir)?
        .into_iter()
        .filter_map(|name| Some((name.strip_suffix(".seg")?.parse().ok()?, dir.join(&name))))
        .collect();
    found.sort();
    Ok(found)
}

/// Files to be used again. One of another size was not finished, or made under other settings: it goes.
fn spares_in(dir: &Path, segment_bytes: usize) -> Result<Vec<PathBuf>, StorageError> {
    let io = |error: std::io::Error| StorageError::io("look at a spare segment", error);
    let mut spares = Vec::new();
    for path in names_in(dir)?.iter().filter(|name| name.starts_with("spare-")).map(|name| dir.join(name)) {
        if std::fs::metadata(&path).map_err(io)?.len() == segment_bytes as u64 {
            spares.push(path);
        } else {
            std::fs::remove_file(&path).map_err(io)?;
        }
    }
    Ok(spares)
}

fn names_in(dir: &Path) -> Result<Vec<String>, StorageError> {
    let io = |error: std::io::Error| StorageError::io("list the log's directory", error);
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let names: Result<Vec<String>, _> =
        entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().to_string())).collect();
    let mut names = names.map_err(io)?;
    names.sort();
    Ok(names)
}

/// A segment file as it was found.
#[derive(Debug)]
struct Found {
    sequence: u64,
    path: PathBuf,
    bytes: Bytes,
    header: Option<SegmentHeader>,
}

impl Found {
    /// Whether everything before it is void: it says so, and what it begins with is there.
    fn is_base(&self, store: StoreId) -> bool {
        let place = Place { store, sequence: self.sequence };
        self.header.as_ref().is_some_and(|header| {
            let is_first = header.before == LogEnd::default();
            header.is_base
                && (is_first || frame::read(&self.bytes, FRAMES_START, place, &header.before).is_some())
        })
    }
}

fn load_segments(dir: &Path, store: StoreId) -> Result<Vec<Found>, StorageError> {
    let mut segments = Vec::new();
    for (sequence, path) in segments_in(dir)? {
        let io = |error: std::io::Error| StorageError::io("read a segment of the log", error);
        forget_cached_pages(&path);
        let bytes = Bytes::from(std::fs::read(&path).map_err(io)?);
        let header = SegmentHeader::decode(&bytes)
            .filter(|header| header.sequence == sequence && header.store == store);
        segments.push(Found { sequence, path, bytes, header });
    }
    Ok(segments)
}

/// After a kill the kernel may hold bytes that never reached the disk. The advice is about speed to the kernel and about
/// honesty to us; a kernel that ignores it loses nothing, for what was read is synced before it counts.
pub(super) fn forget_cached_pages(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// Where appending goes on.
#[derive(Clone, Copy, Debug)]
struct Current {
    sequence: u64,
    base_sequence: u64,
    at: usize,
}

/// Walks the segments from the last base on. See the module's invariants for what is a torn tail and what is rot.
fn read_log(segments: &[Found], store: StoreId) -> Result<(ReadLog, Current), StorageError> {
    let damaged =
        |sequence: u64, reason: &str| StorageError::corrupt(format!("segment {sequence} of the log"), reason);
    let Some(start) = segments.iter().rposition(|segment| segment.is_base(store)) else {
        let reason = "no segment begins the log; its first frame is damaged or missing";
        return Err(StorageError::corrupt("the write-ahead log", reason));
    };
    let base_sequence = segments[start].sequence;
    let first = segments[start].header.as_ref().expect("a base has a header");
    let mut read = ReadLog { base: first.before, ..ReadLog::default() };
    let mut end = first.before;
    let mut current = Current { sequence: base_sequence, base_sequence, at: FRAMES_START };
    for (index, segment) in segments[start..].iter().enumerate() {
        let place = Place { store, sequence: segment.sequence };
        let is_next = segment.sequence == base_sequence + index as u64;
        let is_born = segment.header.as_ref().is_some_and(|header| {
            // A base whose first frame is not there was never begun.
            header.before == end && (index == 0 || !header.is_base)
        });
        if !is_next || !is_born {
            let is_last = start + index + 1 == segments.len();
            let is_behind = segment.header.as_ref().is_some_and(|header| header.before.number > end.number);
            let has_more = frame::find_later(&segment.bytes, FRAMES_START, place, end.number + 1).is_some();
            if is_next && is_last && !is_behind && !has_more {
                break;
            }
            return Err(damaged(segment.sequence, "acknowledged frames before it are damaged or missing"));
        }
        let mut at = FRAMES_START;
        while let Some(frame) = frame::read(&segment.bytes, at, place, &end) {
            (end, at) = (frame.end, frame.next);
            read.frames.push(end);
            read.records.extend(frame.records);
        }
        if let Some(later) = frame::find_later(&segment.bytes, at, place, end.number + 1) {
            let reason = format!(
                "frame {} is damaged, but frame {later} was written after it was acknowledged",
                end.number + 1
            );
            return Err(damaged(segment.sequence, &reason));
        }
        current = Current { sequence: segment.sequence, base_sequence, at };
    }
    Ok((read, current))
}

#[cfg(test)]
mod tests;
