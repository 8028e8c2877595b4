//! The two names by which an answer finds its way back to whoever asked. Every part of a node may know them; none holds a handle to another.

/// A client's connection to this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The node's name for a request that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);
