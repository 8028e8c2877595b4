//! What happened: a hash of every event, and words if somebody wants to read them.

use super::Event;
use super::network::Parcel;
use tetrachord::group::{Overheard, overhear};
use tetrachord::ring::GroupId;
use tetrachord::wire::{self, AnswerFrame, PeerMessage};
use tetrachord_consensus::{codec, paxos, pbft};

pub(super) struct Trace {
    hasher: blake3::Hasher,
    lines: Option<Vec<String>>,
    moment: u64,
}

impl Trace {
    pub(super) fn new(wants_lines: bool) -> Self {
        Self { hasher: blake3::Hasher::new(), lines: wants_lines.then(Vec::new), moment: 0 }
    }

    pub(super) fn event(&mut self, moment: u64, event: &Event) {
        self.moment = moment;
        let mut head = [0; 17];
        head[..8].copy_from_slice(&moment.to_be_bytes());
        let (kind, who) = match event {
            Event::Tick { node, .. } => (0, *node),
            Event::Barrier { node, .. } => (1, *node),
            Event::StateWritten { node, .. } => (2, *node),
            Event::Checked { node, .. } => (3, *node),
            Event::Arrives(parcel) => (4, parcel.receiver()),
            Event::Patience { client } => (5, *client),
            Event::Strike => (6, 0),
            Event::Resume { node, .. } => (7, *node),
            Event::Begin { client } => (8, *client),
            Event::Restart { node } => (9, *node),
            Event::Link { node, .. } => (10, *node),
            Event::Greed => (11, 0),
            Event::Flood { node, .. } => (12, *node),
            Event::ShowAgain => (13, 0),
            Event::Wake { machine } => (14, *machine),
            Event::Dialled { machine, .. } => (15, *machine),
            Event::NotDialled { machine, .. } => (16, *machine),
            Event::Lost { connection } => (17, usize::try_from(connection.0).expect("few connections")),
            Event::Gone { node, .. } => (18, *node),
        };
        head[8] = kind;
        head[9..].copy_from_slice(&(who as u64).to_be_bytes());
        self.hasher.update(&head);
        if let Event::Arrives(parcel) = event {
            self.hasher.update(parcel.frame());
        }
        match event {
            Event::Tick { .. } => {}
            Event::Arrives(parcel) => self.note(|| describe(parcel)),
            event => self.note(|| format!("{event:?}")),
        }
    }

    pub(super) fn wants_lines(&self) -> bool {
        self.lines.is_some()
    }

    /// Something that is worth to be read, but no event.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.3} ms  {}", self.moment as f64 / 1e3, line()));
        }
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}

fn describe(parcel: &Parcel) -> String {
    let hash = &blake3::hash(parcel.frame()).to_hex()[..8];
    let bytes = parcel.frame().len();
    let body = parcel.frame().get(4..).unwrap_or_default();
    match parcel {
        Parcel::Peer { from, to, class, .. } => {
            format!("{from} -> {to} {class:?} {bytes} bytes {hash} {}", short(describe_peer(body)))
        }
        Parcel::Request { to, client, .. } => format!("client {client} -> {to} {bytes} bytes {hash}"),
        Parcel::Answer { from, client, .. } => {
            let answer = wire::decode::<AnswerFrame>(body);
            let answer = answer.map_or("nonsense".to_string(), |answer| format!("{:?}", answer.answer));
            format!("{from} -> client {client} {}", short(answer))
        }
    }
}

/// What nodes say to one another, as far as it is about ordering.
fn describe_peer(body: &[u8]) -> String {
    let Ok(PeerMessage::Groups(said)) = wire::decode(body) else { return String::new() };
    said.iter().map(|said| describe_said(said.tenure.group, &said.body)).collect::<Vec<_>>().join("; ")
}

fn describe_said(group: GroupId, body: &[u8]) -> String {
    let message = match overhear(body) {
        Overheard::Engine(message) => message,
        Overheard::TakesParts(parts) => return format!("{group} asks for {parts} parts of a state"),
        Overheard::Other => return format!("{group} state"),
    };
    // A message of one protocol may be readable as one of the other; which one is spoken is the same in all of a run.
    match (codec::decode::<paxos::Message>(&message), codec::decode::<pbft::Message>(&message)) {
        (Ok(message), Err(_)) => format!("{group} {message:?}"),
        (Err(_), Ok(message)) => format!("{group} {message:?}"),
        (Ok(one), Ok(other)) => format!("{group} {one:?}, or {other:?}"),
        (Err(_), Err(_)) => format!("{group} nonsense"),
    }
}

/// A line stays a line.
fn short(mut text: String) -> String {
    text.truncate(text.char_indices().nth(160).map_or(text.len(), |(at, _)| at));
    text
}
