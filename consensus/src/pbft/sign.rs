//! Who says what: statements, the bytes that are signed for them, and the keys.
//!
//! Every signature covers a string of fixed-width fields: a label, what kind of statement it is, the cluster, the group,
//! the epoch, the signer, two numbers and a digest. No lengths and no variable-width numbers: two different statements
//! never give the same string, and a signature given for one is worth nothing for another (domain separation).
//!
//! Only `verify_strict` is used, never batch verification: every correct replica must come to the same verdict
//! ([RFC 8032] leaves cases open; `docs/decisions` says more). Weak keys are refused where keys are read.
//!
//! [RFC 8032]: https://www.rfc-editor.org/rfc/rfc8032

use crate::types::{Digest, Epoch, ReplicaId, Slot, View};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

/// An ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sig-{:02x}{:02x}", self.0[0], self.0[1])
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (left, right): (&[u8; 32], &[u8; 32]) = halves(&self.0);
        (left, right).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (left, right) = <([u8; 32], [u8; 32])>::deserialize(deserializer)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&left);
        bytes[32..].copy_from_slice(&right);
        Ok(Self(bytes))
    }
}

fn halves(bytes: &[u8; 64]) -> (&[u8; 32], &[u8; 32]) {
    let (left, right) = bytes.split_at(32);
    (left.try_into().expect("half of 64 is 32"), right.try_into().expect("half of 64 is 32"))
}

/// A client's public key: its name in Byzantine mode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientKey(pub [u8; 32]);

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c-{:02x}{:02x}", self.0[0], self.0[1])
    }
}

/// What a replica or a client states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Statement {
    /// A primary proposes this batch for this slot.
    PrePrepare(View, Slot, Digest),
    /// A backup holds that batch, and no other, for this slot in this view.
    Prepare(View, Slot, Digest),
    /// A replica durably holds the proof that the batch was prepared.
    Commit(View, Slot, Digest),
    /// After this slot the state has this root.
    Checkpoint(Slot, Digest),
    /// A VIEW-CHANGE message with this digest.
    ViewChange(View, Digest),
    /// A NEW-VIEW message with this digest.
    NewView(View, Digest),
    /// Executing this slot had the outcomes under this root.
    Outcomes(Slot, Digest),
}

/// Where a statement is made. Nothing signed in one place is valid in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Domain {
    /// A digest that names the cluster.
    pub cluster: Digest,
    /// The group's number.
    pub group: u128,
    /// The epoch of the signer.
    pub epoch: Epoch,
}

const LABEL: &[u8; 14] = b"tetrachord/v2/";
const STRING_BYTES: usize = LABEL.len() + 1 + 32 + 16 + 8 + 1 + 8 + 8 + 32;
const REQUEST_STRING_BYTES: usize = LABEL.len() + 1 + 32 + 16 + 32 + 32;

impl Domain {
    /// The string that is signed.
    #[must_use]
    pub fn string(&self, signer: ReplicaId, statement: Statement) -> [u8; STRING_BYTES] {
        let (tag, first, second, digest) = match statement {
            Statement::PrePrepare(view, slot, digest) => (1, view.0, slot.0, digest),
            Statement::Prepare(view, slot, digest) => (2, view.0, slot.0, digest),
            Statement::Commit(view, slot, digest) => (3, view.0, slot.0, digest),
            Statement::Checkpoint(slot, root) => (4, 0, slot.0, root),
            Statement::ViewChange(view, digest) => (5, view.0, 0, digest),
            Statement::NewView(view, digest) => (6, view.0, 0, digest),
            Statement::Outcomes(slot, root) => (7, 0, slot.0, root),
        };
        let mut out = Fields { bytes: [0; STRING_BYTES], at: 0 };
        out.put(LABEL).put(&[tag]).put(&self.cluster.0).put(&self.group.to_be_bytes());
        out.put(&self.epoch.0.to_be_bytes()).put(&[signer.0]);
        out.put(&first.to_be_bytes()).put(&second.to_be_bytes()).put(&digest.0);
        assert_eq!(out.at, STRING_BYTES, "every field has its width");
        out.bytes
    }

    /// The string that a client signs for a bundle of requests to this group. It does not name the epoch: a request
    /// outlives the membership that was asked first.
    #[must_use]
    pub fn request_string(&self, client: &ClientKey, root: Digest) -> [u8; REQUEST_STRING_BYTES] {
        let mut out = Fields { bytes: [0; REQUEST_STRING_BYTES], at: 0 };
        out.put(LABEL).put(&[64]).put(&self.cluster.0).put(&self.group.to_be_bytes());
        out.put(&client.0).put(&root.0);
        assert_eq!(out.at, REQUEST_STRING_BYTES, "every field has its width");
        out.bytes
    }
}

struct Fields<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Fields<N> {
    fn put(&mut self, field: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
        self
    }
}

/// Why bytes are not a usable public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an ed25519 public key, or a weak one that anyone can sign for")]
pub struct KeyError;

/// A checked public key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Ed25519(Box<VerifyingKey>),
    /// Tests that explore many schedules use a keyed hash, which anyone could forge and nobody does.
    #[cfg(feature = "mutants")]
    Toy([u8; 32]),
}

impl Key {
    fn ed25519(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        match VerifyingKey::from_bytes(bytes) {
            Ok(key) if !key.is_weak() => Ok(Self::Ed25519(Box::new(key))),
            _ => Err(KeyError),
        }
    }

    fn verifies(&self, string: &[u8], signature: &Signature) -> bool {
        match self {
            Self::Ed25519(key) => {
                let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
                key.verify_strict(string, &signature).is_ok()
            }
            #[cfg(feature = "mutants")]
            Self::Toy(name) => toy_signature(name, string) == *signature,
        }
    }
}

#[cfg(feature = "mutants")]
fn toy_signature(name: &[u8; 32], string: &[u8]) -> Signature {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(blake3::keyed_hash(name, string).as_bytes());
    Signature(bytes)
}

/// A secret key.
#[derive(Clone)]
enum Secret {
    Ed25519(Box<SigningKey>),
    #[cfg(feature = "mutants")]
    Toy([u8; 32]),
}

impl Secret {
    fn sign(&self, string: &[u8]) -> Signature {
        match self {
            Self::Ed25519(key) => Signature(key.sign(string).to_bytes()),
            #[cfg(feature = "mutants")]
            Self::Toy(name) => toy_signature(name, string),
        }
    }
}

/// Signs a replica's statements.
#[derive(Clone)]
pub struct Signer {
    me: ReplicaId,
    domain: Domain,
    secret: Secret,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("me", &self.me).field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Signer {
    /// The signer of one replica, from the 32 bytes of its secret.
    #[must_use]
    pub fn new(me: ReplicaId, domain: Domain, secret: &[u8; 32]) -> Self {
        Self { me, domain, secret: Secret::Ed25519(Box::new(SigningKey::from_bytes(secret))) }
    }

    /// A signer whose signatures cost little and prove nothing, for tests that explore many schedules.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn toy(me: ReplicaId, domain: Domain) -> Self {
        Self { me, domain, secret: Secret::Toy([me.0; 32]) }
    }

    /// Whose statements are signed.
    #[must_use]
    pub fn me(&self) -> ReplicaId {
        self.me
    }

    /// Signs a statement.
    #[must_use]
    pub fn sign(&self, statement: Statement) -> Signature {
        self.secret.sign(&self.domain.string(self.me, statement))
    }
}

/// Signs a client's requests.
#[derive(Clone)]
pub struct ClientSigner {
    name: ClientKey,
    secret: Secret,
}

impl fmt::Debug for ClientSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientSigner({:?})", self.name)
    }
}

impl ClientSigner {
    /// The signer of one client, from the 32 bytes of its secret.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(secret);
        Self { name: ClientKey(key.verifying_key().to_bytes()), secret: Secret::Ed25519(Box::new(key)) }
    }

    /// A signer whose signatures cost little and prove nothing, for tests.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn toy(number: u8) -> Self {
        Self { name: ClientKey([number; 32]), secret: Secret::Toy([number; 32]) }
    }

    /// The client's name.
    #[must_use]
    pub fn name(&self) -> ClientKey {
        self.name
    }

    pub(super) fn sign(&self, domain: &Domain, root: Digest) -> Signature {
        self.secret.sign(&domain.request_string(&self.name, root))
    }
}

/// The client of [`Keyring::toy`] that may end the epoch.
#[cfg(feature = "mutants")]
pub const TOY_ADMINISTRATOR: u8 = 200;

/// The public keys of a group and of the clients that may ask it.
#[derive(Clone, Debug)]
pub struct Keyring {
    domain: Domain,
    replicas: Vec<Key>,
    clients: BTreeMap<ClientKey, Key>,
    administrator: Option<ClientKey>,
}

impl Keyring {
    /// The keyring of a group; a weak or malformed key is an error.
    pub fn new(
        domain: Domain,
        replicas: &[[u8; 32]],
        clients: impl IntoIterator<Item = ClientKey>,
    ) -> Result<Self, KeyError> {
        let replicas = replicas.iter().map(Key::ed25519).collect::<Result<_, _>>()?;
        let clients = clients.into_iter().map(|client| Ok((client, Key::ed25519(&client.0)?)));
        let clients = clients.collect::<Result<_, KeyError>>()?;
        Ok(Self { domain, replicas, clients, administrator: None })
    }

    /// The same, with a client that may end the epoch besides asking for what all may.
    pub fn with_administrator(mut self, administrator: ClientKey) -> Result<Self, KeyError> {
        self.clients.insert(administrator, Key::ed25519(&administrator.0)?);
        self.administrator = Some(administrator);
        Ok(self)
    }

    /// Who may end the epoch.
    #[must_use]
    pub fn administrator(&self) -> Option<ClientKey> {
        self.administrator
    }

    /// The keyring for [`Signer::toy`] and [`ClientSigner::toy`]; toy client [`TOY_ADMINISTRATOR`] may end the epoch.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn toy(domain: Domain, n: u8, clients: u8) -> Self {
        let clients = (0..clients).chain([TOY_ADMINISTRATOR]);
        Self {
            domain,
            replicas: (0..n).map(|index| Key::Toy([index; 32])).collect(),
            clients: clients.map(|index| (ClientKey([index; 32]), Key::Toy([index; 32]))).collect(),
            administrator: Some(ClientKey([TOY_ADMINISTRATOR; 32])),
        }
    }

    /// Where these keys sign.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether this replica made this statement.
    #[must_use]
    pub fn verify(&self, signer: ReplicaId, statement: Statement, signature: &Signature) -> bool {
        let key = self.replicas.get(usize::from(signer.0));
        key.is_some_and(|key| key.verifies(&self.domain.string(signer, statement), signature))
    }

    /// Whether this client, if it is one of those that may ask, signed requests with this root.
    #[must_use]
    pub fn verify_client(&self, client: &ClientKey, root: Digest, signature: &Signature) -> bool {
        let key = self.clients.get(client);
        key.is_some_and(|key| key.verifies(&self.domain.request_string(client, root), signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> Domain {
        Domain { cluster: Digest([7; 32]), group: 3, epoch: Epoch(1) }
    }

    #[test]
    fn a_signature_holds_for_one_statement_of_one_replica_in_one_place() {
        let signer = Signer::new(ReplicaId(1), domain(), &[9; 32]);
        let key = SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes();
        let ring = |domain| Keyring::new(domain, &[key, key], []).unwrap();
        let digest = Digest([1; 32]);
        let statement = Statement::Prepare(View(1), Slot(2), digest);
        let signature = signer.sign(statement);
        assert!(ring(domain()).verify(ReplicaId(1), statement, &signature));
        let others = [
            Statement::Commit(View(1), Slot(2), digest),
            Statement::PrePrepare(View(1), Slot(2), digest),
            Statement::Prepare(View(2), Slot(1), digest),
            Statement::Prepare(View(1), Slot(3), digest),
            Statement::Prepare(View(1), Slot(2), Digest::ZERO),
            Statement::Checkpoint(Slot(2), digest),
        ];
        assert!(others.iter().all(|other| !ring(domain()).verify(ReplicaId(1), *other, &signature)));
        assert!(!ring(domain()).verify(ReplicaId(0), statement, &signature), "the signer is in the string");
        for other in [
            Domain { group: 4, ..domain() },
            Domain { epoch: Epoch(2), ..domain() },
            Domain { cluster: Digest::ZERO, ..domain() },
        ] {
            assert!(!ring(other).verify(ReplicaId(1), statement, &signature));
        }
        assert!(!ring(domain()).verify(ReplicaId(9), statement, &signature), "no such replica");
    }

    #[test]
    fn weak_keys_are_refused_where_they_are_read() {
        let mut small_order = [0; 32];
        small_order[0] = 1;
        assert_eq!(Keyring::new(domain(), &[small_order], []).err(), Some(KeyError));
        assert_eq!(Keyring::new(domain(), &[], [ClientKey(small_order)]).err(), Some(KeyError));
    }

    #[test]
    fn signatures_survive_the_round_trip() {
        let signature = Signature(std::array::from_fn(|index| index as u8));
        let bytes = crate::codec::encode(&signature);
        assert_eq!(crate::codec::decode::<Signature>(&bytes), Ok(signature));
        assert_eq!(bytes.len(), 65, "no length is spent on a fixed width");
    }
}
