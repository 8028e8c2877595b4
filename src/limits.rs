//! Every bound of the system in one place, with the reason for each, and their relations proved at compile time.

mod few;

pub(crate) use few::few;

/// Bytes of a key that a cluster may allow at most. A key is part of several stored keys, and a page of sled must
/// hold 16 records.
pub const KEY_BYTES_CAP: usize = 4 << 10;

/// Bytes of a value that a cluster may allow at most. An entry must carry at least one command in one message.
pub const VALUE_BYTES_CAP: usize = 1 << 20;

/// Bytes of a value that `incr` takes for a number: a longer one is none, so that it need not be read.
pub const NUMBER_BYTES_MAX: usize = 64;

/// As many openings of a store before the present one are named, and kept. A node that fails at each start, with a second between,
/// needs a quarter of an hour for them.
pub const OPENINGS_MAX: usize = 1_023;

/// Bytes of one stored record, key included. Larger values are cut: sled keeps pages above 131,052 bytes in files of
/// their own that it never syncs, and a page holds up to 16 records.
pub const RECORD_BYTES_MAX: usize = 7_000;

/// Bytes of one frame between nodes.
pub const PEER_FRAME_BYTES_MAX: usize = 5 << 20;

/// Bytes of one frame from a client: one command with the largest key and value.
pub const CLIENT_FRAME_BYTES_MAX: usize = VALUE_BYTES_CAP * 2 + KEY_BYTES_CAP + (4 << 10);

/// Messages of groups in one frame between nodes. Few: each costs work, and frames are what a node counts before it looks at them.
pub const FRAME_BODIES_MAX: usize = 32;

/// Commands in one batch.
pub const BATCH_COMMANDS_MAX: usize = 1024;

/// Requests of a client that one slot can have answered, in Byzantine mode.
pub const SLOT_REQUESTS_MAX: usize = tetrachord_consensus::pbft::batch::BATCH_REQUESTS_MAX;

/// Hashes from one of them to the root of all.
pub const PROOF_PATH_MAX: usize = 1 + SLOT_REQUESTS_MAX.ilog2() as usize;

/// Bytes of one batch; a batch always takes at least one command.
pub const BATCH_BYTES_MAX: usize = 512 << 10;

/// Batches that a leader proposes before it waits for one to be applied; what arrives meanwhile gathers into the next.
pub const BATCHES_IN_FLIGHT_MAX: usize = 8;

/// Commands that wait in a group for their turn. More are told that the group is busy.
pub const QUEUED_COMMANDS_MAX: usize = 16 << 10;

/// Bytes of commands that wait in a group for their turn.
pub const QUEUED_BYTES_MAX: usize = 32 << 20;

/// Bytes of requests that wait in a node for their client's turn. Of one client they are what others leave free at most.
pub const WAITING_BYTES_MAX: usize = 64 << 20;

/// Requests that one connection may have open.
pub const OPEN_PER_CONNECTION_MAX: usize = 4096;

/// Requests that a node may have open.
pub const OPEN_REQUESTS_MAX: usize = 64 << 10;

/// Requests of one session that may be unacknowledged at a time.
pub const SESSION_WINDOW: u64 = 1024;

/// Sessions that one group remembers, of all clients.
pub const SESSIONS_MAX: u64 = 64 << 10;

/// What a remembered outcome counts in bytes, whatever its reply: replies are small.
pub const OUTCOME_BYTES: u64 = 64;

/// Bytes of outcomes that are remembered for one session: a full window. Then it gets nothing new until the client acknowledges.
pub const SESSION_OUTCOMES_BYTES_MAX: u64 = SESSION_WINDOW * OUTCOME_BYTES;

/// Bytes of outcomes that one group remembers, of all clients.
pub const OUTCOMES_BYTES_MAX: u64 = 256 << 20;

/// A client may hold one part in so many of what the others leave free of a group's sessions, and of its remembered outcomes.
pub const CLIENT_SHARE: u64 = 16;

/// A client that holds as many sessions as it may loses the one that was silent longest, if that was for so long, in log time.
/// Microseconds.
pub const SESSION_IDLE_MICROS: u64 = 600 * 1_000_000;

/// That a session is used is noted only this often, in log time, so that a busy one costs little. Microseconds.
pub const SESSION_GRAIN_MICROS: u64 = 60 * 1_000_000;

/// One step of log time, from one slot to the next, counts for sessions as this much at most. Log time may leap: the cluster was down,
/// or clocks were put right. Whoever was active a moment before the leap has not been silent. Microseconds.
pub const SESSION_STEP_MICROS_MAX: u64 = 600 * 1_000_000;

/// A session that was silent for this long, in log time without its leaps, is forgotten. Microseconds.
pub const SESSION_RETENTION_MICROS: u64 = 3600 * 1_000_000;

/// Byzantine mode: a signed request may be good for so long, in log time; less than a session is remembered. Microseconds.
pub const REQUEST_VALID_MICROS_MAX: u64 = tetrachord_consensus::pbft::NOT_AFTER_MICROS_MAX;

/// Byzantine mode: bytes of values that the reads of one slot may answer. Reads are small to ask and large to answer; more
/// of them are told to ask again. One client gets at most half of what the others leave.
pub const READ_BYTES_PER_SLOT_MAX: usize = 16 << 20;

/// Byzantine mode: bytes of outcomes in one frame to a client, unless a single one is larger.
pub const OUTCOMES_FRAME_BYTES: usize = 1 << 20;

/// Written state that is kept in memory before it is written to the tree, in bytes for all groups of a node. Twice
/// as much, and a leader proposes nothing new until the tree has caught up; four times as much, and a follower acknowledges
/// nothing new: memory is bounded by the speed of the disk, not by that of the clients. In Byzantine mode checkpoints lie at fixed
/// slots: there what waits is bounded by the window, by [`OVERLAY_BYTES_STREAMING_MAX`] for checkpoints on their way to the
/// tree, and by what a replica keeps of decided slots that it cannot execute yet.
pub const OVERLAY_BYTES_MAX: usize = 8 << 20;

/// In crash mode the log in memory may take so many times as much above what is kept for lagging replicas; then the tree is
/// brought up to date, however small the state that waits for it: keys that are written over and over fill the log alone.
pub const LOG_OVERLAYS_MAX: usize = 4;

/// The same as [`OVERLAY_BYTES_MAX`] while a snapshot streams and nothing may be written to the tree, for state and in crash mode
/// for the log; above it the transfer is given up.
pub const OVERLAY_BYTES_STREAMING_MAX: usize = 32 << 20;

/// Bytes of the log that one node keeps, for all its groups, for replicas that are there and lag, or are given a whole state, unless its
/// settings say otherwise: as much as gathers at most while a state streams, and as much again for the time until it is in
/// place. It is in memory, and in the log on disk.
pub const PINNED_BYTES: u64 = 2 * OVERLAY_BYTES_STREAMING_MAX as u64;

/// Written state reaches the tree at least this often, in milliseconds.
pub const CHECKPOINT_MILLIS: u64 = 2_000;

/// Bytes of state writes that reach the tree as one job, unless a single batch is larger.
pub const STATE_JOB_BYTES_MAX: usize = 16 << 20;

/// Bytes of rows in one piece of a snapshot.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;

/// Pieces of a snapshot that are sent ahead of the receiver's acknowledgements.
pub const SNAPSHOT_WINDOW: u64 = 4;

/// A snapshot transfer without progress for this long is given up, in milliseconds.
pub const SNAPSHOT_PATIENCE_MILLIS: u64 = 20_000;

/// Byzantine mode: whoever gives a whole state has so many milliseconds to begin with, and [`SOURCE_BYTES_PER_SECOND`].
pub const SOURCE_PATIENCE_MILLIS: u64 = 3_000;

/// Byzantine mode: besides, a second for so many bytes of the parts that held and of the one that is under way. A liar can cost
/// no more than that; where links are slower, patience grows. For receivers that keep others waiting it is the same.
pub const SOURCE_BYTES_PER_SECOND: u64 = 1 << 20;

/// Every so many slots replicas compare a digest of what they applied.
pub const DIGEST_INTERVAL_SLOTS: u64 = 256;

/// Byzantine mode: a checkpoint is made every so many slots, and agreement runs so many slots ahead of a stable one.
pub const WINDOW: tetrachord_consensus::pbft::Window =
    tetrachord_consensus::pbft::Window { interval: 128, length: 256 };

/// Byzantine mode: bytes of one batch. Smaller than in crash mode, because a window of them is kept.
pub const SIGNED_BATCH_BYTES_MAX: usize = tetrachord_consensus::pbft::batch::BATCH_BYTES_MAX;

/// Groups that one cluster may have.
pub const GROUPS_MAX: usize = 1024;

/// Places that an answer tells of when a key has moved.
pub const MOVED_PLACES_MAX: usize = 16;

/// Nodes that one cluster may have.
pub const NODES_MAX: usize = 256;

const _: () = assert!(
    REQUEST_VALID_MICROS_MAX < SESSION_RETENTION_MICROS / 2,
    "a request that is played again finds its session, or is void"
);
const _: () = assert!(
    REQUEST_VALID_MICROS_MAX + SESSION_GRAIN_MICROS < SESSION_IDLE_MICROS
        && SESSION_IDLE_MICROS < SESSION_RETENTION_MICROS,
    "no request of a session that makes room for another is still good"
);
const _: () = assert!(SESSION_OUTCOMES_BYTES_MAX == 64 << 10, "what is remembered for a session is bounded");
const _: () = assert!(KEY_BYTES_CAP + 64 < RECORD_BYTES_MAX, "a stored record has room for its key");
const _: () = assert!(
    NUMBER_BYTES_MAX + KEY_BYTES_CAP + 128 < RECORD_BYTES_MAX,
    "a number lies in the first record of its key"
);
const _: () =
    assert!(16 * RECORD_BYTES_MAX < 131_052, "a page of sled holds 16 records without a file of its own");
const _: () = assert!(
    CLIENT_FRAME_BYTES_MAX + 1024 < tetrachord_consensus::codec::PROPOSAL_BYTES_MAX,
    "the largest command fits into a proposal"
);
const _: () = assert!(
    tetrachord_consensus::codec::ENCODED_BYTES_MAX + 1024 < PEER_FRAME_BYTES_MAX,
    "the largest consensus message fits into a frame"
);
const _: () = assert!(
    OUTCOMES_FRAME_BYTES + VALUE_BYTES_CAP + (64 << 10) < PEER_FRAME_BYTES_MAX,
    "outcomes fit into a frame, the last of them however large"
);
const _: () =
    assert!(SNAPSHOT_CHUNK_BYTES + 2 * VALUE_BYTES_CAP < PEER_FRAME_BYTES_MAX, "a snapshot piece fits");

/// Limits that change what a command does. They are fixed in the genesis record: replicas that disagreed on them
/// would diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest key, in bytes.
    pub key_bytes_max: usize,
    /// Largest value, in bytes.
    pub value_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { key_bytes_max: KEY_BYTES_CAP, value_bytes_max: VALUE_BYTES_CAP }
    }
}
