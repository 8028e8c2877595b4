//! Requests as they are ordered, and several of them as one proposal.
//!
//! An envelope says whose request it is, under which name, and carries the operation as bytes. Both modes have the same: what
//! Byzantine mode alone knows, who signed and until when it is good, is missing in crash mode.
//!
//! Bytes of an envelope: format u8, now 1 | all but the operation as postcard writes it | the operation. Bytes of a batch, any number of
//! times: length u32 | what it is u8, 0 for a request | that. Big-endian.

use super::operation::{Client, Operation, OperationError, RequestId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who asks. In Byzantine mode whoever signed. In crash mode only whoever opens or closes a session: the node that has admitted the
    /// client's connection says so, whatever the client says.
    pub client: Option<Client>,
    /// Which request of which session; for an opening, the client's choice of 128 bits and 0; for a read any name that the client has
    /// not used before.
    pub request: RequestId,
    /// The client has the outcomes of all requests below this number and will not ask for them again.
    pub ack_below: u64,
    /// Not before the request with this number of the same session.
    pub after: Option<u64>,
    /// Byzantine mode: void once the log's time is later, in microseconds.
    pub not_after: Option<u64>,
    /// The encoded [`Operation`].
    pub operation: Bytes,
}

#[derive(Serialize, Deserialize)]
struct Head {
    client: Option<Client>,
    request: RequestId,
    ack_below: u64,
    after: Option<u64>,
    not_after: Option<u64>,
}

const FORMAT: u8 = 1;

impl Head {
    /// What an envelope begins with, and room for its operation.
    fn encode(&self, operation: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + operation);
        bytes.push(FORMAT);
        postcard::to_extend(self, bytes).expect("writing to memory cannot fail")
    }
}

impl Envelope {
    /// A request of crash mode.
    #[must_use]
    pub fn new(request: RequestId, ack_below: u64, operation: &Operation) -> Self {
        let operation = operation.encode();
        Self { client: None, request, ack_below, after: None, not_after: None, operation }
    }

    /// The same request of a client.
    #[must_use]
    pub fn of(self, client: Client) -> Self {
        Self { client: Some(client), ..self }
    }

    /// The envelope's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Self { client, request, ack_below, after, not_after, .. } = *self;
        let head = Head { client, request, ack_below, after, not_after };
        let mut bytes = head.encode(self.operation.len());
        bytes.extend_from_slice(&self.operation);
        Bytes::from(bytes)
    }

    /// The bytes of [`Self::new`], at once.
    #[must_use]
    pub fn bytes_of(request: RequestId, ack_below: u64, operation: &Operation) -> Bytes {
        let head = Head { client: None, request, ack_below, after: None, not_after: None };
        Bytes::from(operation.append_to(head.encode(0)))
    }

    /// Reads an envelope; never panics. The operation is not looked at.
    pub fn decode(bytes: &Bytes) -> Result<Self, OperationError> {
        let malformed = |why: String| OperationError::Malformed(why);
        let (format, body) = bytes.split_first().ok_or_else(|| malformed("it is empty".to_string()))?;
        if *format != FORMAT {
            return Err(malformed(format!(
                "it has format {format}, and this cluster understands {FORMAT}: use a program of the cluster's version"
            )));
        }
        let (head, operation): (Head, &[u8]) =
            postcard::take_from_bytes(body).map_err(|error| malformed(error.to_string()))?;
        let Head { client, request, ack_below, after, not_after } = head;
        Ok(Self { client, request, ack_below, after, not_after, operation: bytes.slice_ref(operation) })
    }
}

/// A request of crash mode whose operation was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The request.
    pub envelope: Envelope,
    /// What it asks.
    pub operation: Operation,
}

impl Command {
    /// Reads a request and what it asks; never panics.
    pub fn decode(bytes: &Bytes) -> Result<Self, OperationError> {
        let envelope = Envelope::decode(bytes)?;
        let operation = Operation::decode(&envelope.operation)?;
        Ok(Self { envelope, operation })
    }
}

/// What is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A client's request.
    Request(Envelope),
}

const REQUEST: u8 = 0;
const ITEM_HEADER: usize = 4 + 1;

/// Several requests as one proposal of crash mode.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: BytesMut,
    requests: usize,
}

impl Batch {
    /// Adds an encoded [`Envelope`].
    pub fn push(&mut self, envelope: &[u8]) {
        self.bytes.reserve(ITEM_HEADER + envelope.len());
        self.bytes.put_u32(u32::try_from(envelope.len()).expect("a request fits into a frame"));
        self.bytes.put_u8(REQUEST);
        self.bytes.put_slice(envelope);
        self.requests += 1;
    }

    /// How many requests it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// The bytes of the batch so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The proposal.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        self.bytes.freeze()
    }

    /// What a proposal asks, in order. Bytes that are no batch, no envelope, or of a kind that nobody knows, mean the same to every
    /// replica: nothing.
    #[must_use]
    pub fn inputs(mut proposal: Bytes) -> Vec<Input> {
        let mut inputs = Vec::new();
        while proposal.has_remaining() {
            let (Ok(length), Ok(kind)) = (proposal.try_get_u32(), proposal.try_get_u8()) else {
                return Vec::new();
            };
            let length = length as usize;
            if length > proposal.len() {
                return Vec::new();
            }
            let item = proposal.split_to(length);
            if kind == REQUEST
                && let Ok(envelope) = Envelope::decode(&item)
            {
                inputs.push(Input::Request(envelope));
            }
        }
        inputs
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation::{SessionId, Write};
    use super::*;

    fn envelope(number: u64) -> Envelope {
        let operation = Operation::Write(Write::put("key", "value"));
        Envelope::new(RequestId { session: SessionId(1), number }, 1, &operation)
    }

    #[test]
    fn envelopes_and_batches_survive_the_round_trip() {
        let (one, other) = (envelope(2), envelope(3).of([7; 32]));
        let whole = Envelope { after: Some(1), not_after: Some(u64::MAX), ..other.clone() };
        let write = Operation::decode(&one.operation).unwrap();
        assert_eq!(Envelope::bytes_of(one.request, one.ack_below, &write), one.encode());
        for envelope in [&one, &other, &whole] {
            assert_eq!(Envelope::decode(&envelope.encode()).as_ref(), Ok(envelope));
        }
        let mut batch = Batch::default();
        [&one, &other].into_iter().for_each(|envelope| batch.push(&envelope.encode()));
        assert_eq!((batch.len(), batch.is_empty()), (2, false));
        let proposal = batch.freeze();
        assert_eq!(Batch::inputs(proposal.clone()), [Input::Request(one), Input::Request(other)]);
        for length in 0..proposal.len() {
            assert!(Batch::inputs(proposal.slice(..length)).len() < 2, "{length}");
        }
    }

    #[test]
    fn what_is_no_request_means_nothing() {
        let bytes = envelope(2).encode();
        // The operation is the rest, whatever it is.
        let head = bytes.len() - envelope(2).operation.len();
        for length in 0..head {
            assert!(Envelope::decode(&bytes.slice(..length)).is_err(), "{length}");
        }
        let newer = Bytes::from([&[9], &bytes[1..]].concat());
        assert!(Envelope::decode(&newer).unwrap_err().to_string().contains("format 9"));
        let mut batch = Batch::default();
        batch.push(&newer);
        batch.push(&bytes);
        let proposal = batch.freeze();
        assert_eq!(Batch::inputs(proposal.clone()), [Input::Request(envelope(2))]);
        let mut unknown = BytesMut::from(proposal.as_ref());
        unknown[4 + newer.len() + 1 + 4] = 77;
        assert_eq!(Batch::inputs(unknown.freeze()), []);
        assert_eq!(Batch::inputs(Bytes::from_static(&[0, 0, 0, 9, 0, 1])), []);
    }
}
