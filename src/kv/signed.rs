//! Byzantine mode: what a signed request means.
//!
//! Clients may lie, and whoever proposed the batch too: nothing was checked before but the signature. Each request is
//! judged here, by the state and ordered time alone, so every replica comes to the same verdict:
//!
//! * it is void after the time that its client set, and before a time that is too far ahead: a signed request is good for
//!   minutes, a session is remembered for longer, so a request that is played again never applies again;
//! * a session belongs to the client that opened it;
//! * sizes are within the limits.

use super::command::{Failure, Reply, RequestId, SessionId, Write, check_key};
use super::sessions::Lookup;
use super::{Command, Machine, Slot, digest64};
use crate::error::StorageError;
use crate::limits::REQUEST_VALID_MICROS_MAX;
use crate::ring::Position;
use crate::storage::Storage;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A client's public key: its name.
pub type Client = [u8; 32];

/// What a signed request asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Opens a session; its name follows from client and nonce, so asking twice opens one.
    Open,
    /// Changes one key.
    Write(Write),
    /// Reads one key, in order with all changes.
    Get {
        /// The key.
        key: Bytes,
    },
}

impl Operation {
    /// The operation's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(
            postcard::to_stdvec(self).expect("writing to memory cannot fail and every length is known"),
        )
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::take_from_bytes(bytes)
            .ok()
            .filter(|(_, rest): &(_, &[u8])| rest.is_empty())
            .map(|(found, _)| found)
    }
}

/// A request whose signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRequest {
    /// Who asks.
    pub client: Client,
    /// Which request of which session; for an opening, the client's choice of 128 bits and 0.
    pub request: RequestId,
    /// The client has the outcomes of all requests below this number.
    pub ack_below: u64,
    /// Void once the log's time is later, in microseconds.
    pub not_after: u64,
    /// The encoded [`Operation`].
    pub operation: Bytes,
}

impl Machine {
    /// Applies the next slot and returns what each request answers, in order.
    ///
    /// An error means that a stored record could not be read; the replica must stop, its state is behind the log now.
    pub fn apply_signed(
        &mut self,
        storage: &dyn Storage,
        slot: &Slot,
        requests: &[SignedRequest],
    ) -> Result<Vec<Reply>, StorageError> {
        let mut hasher = self.begin_slot(slot);
        let mut replies = Vec::with_capacity(requests.len());
        for request in requests {
            let reply = self.apply_request(storage, request)?;
            hasher.update(&postcard::to_stdvec(&reply).expect("writing to memory cannot fail"));
            replies.push(reply);
        }
        self.end_slot(&hasher);
        Ok(replies)
    }

    fn apply_request(
        &mut self,
        storage: &dyn Storage,
        request: &SignedRequest,
    ) -> Result<Reply, StorageError> {
        let time = self.applied.time;
        if time > request.not_after {
            return Ok(Reply::Failed(Failure::TooLate { not_after: request.not_after, time }));
        }
        if request.not_after - time > REQUEST_VALID_MICROS_MAX {
            return Ok(Reply::Failed(Failure::TooEarly { not_after: request.not_after, time }));
        }
        let Some(operation) = Operation::decode(&request.operation) else {
            return Ok(Reply::Failed(Failure::Malformed));
        };
        if operation == Operation::Open {
            let id = self.session_of(&request.client, request.request.session.0);
            return Ok(self.sessions.open_for(id, request.client, time));
        }
        let (id, number) = (request.request.session, request.request.number);
        if self.sessions.owner(id) != Some(request.client) {
            return Ok(Reply::Failed(Failure::SessionExpired));
        }
        let digest = digest64(&request.operation);
        match self.sessions.lookup(id, number, request.ack_below, digest, time) {
            Lookup::Known(reply) => return Ok(reply),
            Lookup::Refused(failure) => return Ok(Reply::Failed(failure)),
            Lookup::Fresh => {}
        }
        let reply = match &operation {
            Operation::Get { key } => self.read_in_order(storage, key)?,
            Operation::Write(write) => self.write_in_order(storage, write, request)?,
            Operation::Open => unreachable!("answered above"),
        };
        // A read is not remembered: asked again, it reads again, and the client takes answers of one slot only.
        let is_outcome = !matches!(&reply, Reply::Failed(failure) if !failure.is_outcome());
        if is_outcome && matches!(operation, Operation::Write(_)) {
            self.sessions.remember(id, number, digest, reply.clone());
        }
        Ok(reply)
    }

    fn read_in_order(&mut self, storage: &dyn Storage, key: &Bytes) -> Result<Reply, StorageError> {
        if check_key(key, &self.limits).is_err() {
            return Ok(Reply::Failed(Failure::Malformed));
        }
        match self.get(storage, key) {
            Ok(found) => Ok(Reply::Value { found: found.map(|found| (found.version, found.value)) }),
            Err(None) => Ok(Reply::Failed(Failure::WrongGroup)),
            Err(Some(error)) => Err(error),
        }
    }

    fn write_in_order(
        &mut self,
        storage: &dyn Storage,
        write: &Write,
        request: &SignedRequest,
    ) -> Result<Reply, StorageError> {
        let command =
            Command::Write { request: request.request, ack_below: request.ack_below, write: write.clone() };
        if command.check(&self.limits).is_err() {
            return Ok(Reply::Failed(Failure::Malformed));
        }
        let position = Position::of_key(write.key());
        if !self.range().contains(position) {
            return Ok(Reply::Failed(Failure::WrongGroup));
        }
        self.apply_write(storage, position, write)
    }

    /// The name of a client's session. A signed opening is void long before its session can be forgotten, so the name of a
    /// forgotten session never comes back.
    fn session_of(&self, client: &Client, nonce: u128) -> SessionId {
        let mut hasher = blake3::Hasher::new_derive_key("tetrachord v1 session of a client");
        hasher.update(client).update(&nonce.to_be_bytes()).update(&self.group.0.to_be_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        SessionId(u128::from_be_bytes(id))
    }
}
