//! What clients ask, and their signatures.
//!
//! A client signs once for everything that it sends together: a [`Bundle`]. The signature covers the Merkle root over
//! the requests, so each request can be shown to a third party alone, with its [`Tree::path`]. A signature says who asked
//! and what, not in which order.
//!
//! A request is named by client, session and number ([`RequestName`]); what its operation means is not known here.
//!
//! Bytes of a bundle: client 32 | signature 64 | count u16 | count times (length u32 | request).
//! Bytes of a request: session 16 | number 8 | ack_below 8 | not_after 8 | flags 1 | operation. Flags: 1, the outcome is to be
//! shown to others; 2, the epoch ends.
//! All numbers are big-endian, every field but the last has a fixed width: there is one encoding of each value.

use crate::pbft::sign::{ClientKey, ClientSigner, Domain, Keyring, Signature};
use crate::types::{Digest, Timestamp};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

/// Requests in one bundle.
pub const BUNDLE_REQUESTS_MAX: usize = 1024;

/// Names a request. Whoever signs two different requests with one name gets one of them executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestName {
    /// The client.
    pub client: ClientKey,
    /// Its session, or its own choice for the opening of one.
    pub session: u128,
    /// Counts the requests of the session.
    pub number: u64,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRequest {
    /// Whose it is.
    pub name: RequestName,
    /// The client needs no outcome below this number any more.
    pub ack_below: u64,
    /// Void once the ordered time is later.
    pub not_after: Timestamp,
    /// Whether the client wants to show the outcome to others.
    pub wants_proof: bool,
    /// Whether the epoch ends with the slot that orders this: a stop-sign. Only the cluster's administrator may ask for it.
    pub ends_epoch: bool,
    /// What is asked; opaque here. Of a stop-sign, what the next epoch is.
    pub operation: Bytes,
}

/// Why bytes are not a bundle that may be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BundleError {
    /// Not the bytes of a bundle.
    #[error("not a bundle of 1 to {BUNDLE_REQUESTS_MAX} requests")]
    Malformed,
    /// The client is not admitted, or did not sign this.
    #[error("not signed by a client that is admitted to this cluster")]
    Signature,
    /// Only the cluster's administrator ends an epoch.
    #[error("only the administrator of the cluster ends an epoch")]
    NotAdministrator,
}

const BUNDLE_HEADER: usize = 32 + 64 + 2;
const REQUEST_HEADER: usize = 16 + 8 + 8 + 8 + 1;
const WANTS_PROOF: u8 = 1;
const ENDS_EPOCH: u8 = 2;

/// Requests of one client under one signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    bytes: Bytes,
    client: ClientKey,
    signature: Signature,
    requests: Vec<Bytes>,
}

impl Bundle {
    /// Signs requests as one bundle. The client of each name is the signer's.
    #[must_use]
    pub fn sign(domain: &Domain, signer: &ClientSigner, requests: &[SignedRequest]) -> Self {
        assert!((1..=BUNDLE_REQUESTS_MAX).contains(&requests.len()), "a bundle has 1 to 1024 requests");
        let client = signer.name();
        let requests: Vec<Bytes> = requests.iter().map(encode_request).collect();
        let root = root_of(&leaves(&client, &requests));
        let signature = signer.sign(domain, root);
        let size = requests.iter().map(|request| 4 + request.len()).sum::<usize>();
        let mut bytes = BytesMut::with_capacity(BUNDLE_HEADER + size);
        bytes.put_slice(&client.0);
        bytes.put_slice(&signature.0);
        bytes.put_u16(u16::try_from(requests.len()).expect("at most 1024"));
        for request in &requests {
            bytes.put_u32(u32::try_from(request.len()).expect("a request is smaller than a message"));
            bytes.put_slice(request);
        }
        Self { bytes: bytes.freeze(), client, signature, requests }
    }

    /// Reads a bundle; whether it is signed is another question.
    pub fn parse(bytes: Bytes) -> Result<Self, BundleError> {
        let mut rest = bytes.clone();
        if rest.len() < BUNDLE_HEADER {
            return Err(BundleError::Malformed);
        }
        let client = ClientKey(rest.split_to(32).as_ref().try_into().expect("32 bytes"));
        let signature = Signature(rest.split_to(64).as_ref().try_into().expect("64 bytes"));
        let count = usize::from(rest.get_u16());
        if !(1..=BUNDLE_REQUESTS_MAX).contains(&count) || rest.len() < count * (4 + REQUEST_HEADER) {
            return Err(BundleError::Malformed);
        }
        let mut requests = Vec::with_capacity(count);
        for _ in 0..count {
            let length = rest.try_get_u32().map_err(|_| BundleError::Malformed)? as usize;
            if length < REQUEST_HEADER || rest.len() < length {
                return Err(BundleError::Malformed);
            }
            let request = rest.split_to(length);
            if request[REQUEST_HEADER - 1] > (WANTS_PROOF | ENDS_EPOCH) {
                return Err(BundleError::Malformed);
            }
            requests.push(request);
        }
        if rest.is_empty() {
            Ok(Self { bytes, client, signature, requests })
        } else {
            Err(BundleError::Malformed)
        }
    }

    /// The first name and the signature that these bytes have if they are a bundle; nothing is said about the rest.
    pub(super) fn peek(bytes: &[u8]) -> Option<(RequestName, Signature)> {
        let client = ClientKey(bytes.get(..32)?.try_into().ok()?);
        let signature = Signature(bytes.get(32..96)?.try_into().ok()?);
        let request = bytes.get(BUNDLE_HEADER + 4..)?;
        (request.len() >= REQUEST_HEADER).then(|| (name_of(client, request), signature))
    }

    /// Whose these bytes would be, if they are a bundle; nothing is said about the rest.
    #[must_use]
    pub fn claimed_client(bytes: &[u8]) -> Option<ClientKey> {
        Self::peek(bytes).map(|(name, _)| name.client)
    }

    /// Whether an admitted client signed this, and may ask for it.
    pub fn verify(&self, keyring: &Keyring) -> Result<(), BundleError> {
        self.verify_root(keyring, self.root())
    }

    /// The same, for a caller that has the bundle's root already.
    pub(super) fn verify_root(&self, keyring: &Keyring, root: Digest) -> Result<(), BundleError> {
        if self.ends_epoch() && keyring.administrator() != Some(self.client) {
            Err(BundleError::NotAdministrator)
        } else if keyring.verify_client(&self.client, root, &self.signature) {
            Ok(())
        } else {
            Err(BundleError::Signature)
        }
    }

    /// Whether the epoch ends with the slot that orders this.
    #[must_use]
    pub fn ends_epoch(&self) -> bool {
        self.requests.iter().any(|request| request[REQUEST_HEADER - 1] & ENDS_EPOCH != 0)
    }

    /// What the signature covers.
    #[must_use]
    pub fn root(&self) -> Digest {
        root_of(&leaves(&self.client, &self.requests))
    }

    /// The exact bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whose requests these are.
    #[must_use]
    pub fn client(&self) -> ClientKey {
        self.client
    }

    /// The signature; a bundle has no other.
    #[must_use]
    pub fn signature(&self) -> Signature {
        self.signature
    }

    /// How many requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Never: a bundle has at least one request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The requests, in the order in which they were signed.
    pub fn requests(&self) -> impl Iterator<Item = SignedRequest> + '_ {
        self.requests.iter().map(|request| decode_request(self.client, request))
    }

    /// The names of the requests.
    pub fn names(&self) -> impl Iterator<Item = RequestName> + '_ {
        self.requests.iter().map(|request| name_of(self.client, request))
    }
}

fn encode_request(request: &SignedRequest) -> Bytes {
    let mut bytes = BytesMut::with_capacity(REQUEST_HEADER + request.operation.len());
    bytes.put_u128(request.name.session);
    bytes.put_u64(request.name.number);
    bytes.put_u64(request.ack_below);
    bytes.put_u64(request.not_after.0);
    let ends_epoch = if request.ends_epoch { ENDS_EPOCH } else { 0 };
    bytes.put_u8(u8::from(request.wants_proof) | ends_epoch);
    bytes.put_slice(&request.operation);
    bytes.freeze()
}

fn decode_request(client: ClientKey, bytes: &Bytes) -> SignedRequest {
    let mut rest = bytes.clone();
    assert!(rest.len() >= REQUEST_HEADER, "checked when the bundle was read");
    let name = RequestName { client, session: rest.get_u128(), number: rest.get_u64() };
    let (ack_below, not_after, flags) = (rest.get_u64(), Timestamp(rest.get_u64()), rest.get_u8());
    let (wants_proof, ends_epoch) = (flags & WANTS_PROOF != 0, flags & ENDS_EPOCH != 0);
    SignedRequest { name, ack_below, not_after, wants_proof, ends_epoch, operation: rest }
}

fn name_of(client: ClientKey, mut bytes: &[u8]) -> RequestName {
    RequestName { client, session: bytes.get_u128(), number: bytes.get_u64() }
}

fn leaves(client: &ClientKey, requests: &[Bytes]) -> Vec<Digest> {
    requests.iter().map(|request| leaf_of(&[&client.0, request])).collect()
}

/// The hash of a leaf; its parts must be told apart by their widths.
#[must_use]
pub fn leaf_of(parts: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[0]);
    for part in parts {
        hasher.update(part);
    }
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
thread_local! {
    /// Inner nodes that this thread has hashed.
    static HASHED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn inner_of(left: &Digest, right: &Digest) -> Digest {
    #[cfg(test)]
    HASHED.set(HASHED.get() + 1);
    let mut bytes = [0; 65];
    bytes[0] = 1;
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    Digest(*blake3::hash(&bytes).as_bytes())
}

fn level_above(level: &[Digest]) -> Vec<Digest> {
    let join = |pair: &[Digest]| match pair {
        [left, right] => inner_of(left, right),
        single => single[0],
    };
    level.chunks(2).map(join).collect()
}

/// The Merkle root over leaves, with different prefixes for leaves and inner nodes (RFC 6962, section 2.1). A node without
/// a sibling moves up as it is.
#[must_use]
pub fn root_of(leaves: &[Digest]) -> Digest {
    assert!(!leaves.is_empty(), "a tree has a leaf");
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = level_above(&level);
    }
    level[0]
}

/// A whole Merkle tree over leaves, for whoever shows many of them: each node is hashed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The leaves, then every level above them; the root is alone in the last.
    levels: Vec<Vec<Digest>>,
}

impl Tree {
    /// The tree over these leaves.
    #[must_use]
    pub fn over(leaves: Vec<Digest>) -> Self {
        assert!(!leaves.is_empty(), "a tree has a leaf");
        let mut levels = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            levels.push(level_above(level));
        }
        Self { levels }
    }

    /// What [`root_of`] says of the same leaves.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.levels[self.levels.len() - 1][0]
    }

    /// How many leaves.
    #[must_use]
    pub fn count(&self) -> usize {
        self.levels[0].len()
    }

    /// What must be known besides a leaf to compute the root: its siblings, from below.
    #[must_use]
    pub fn path(&self, index: usize) -> Vec<Digest> {
        assert!(index < self.count(), "the leaf is in the tree");
        let sibling = |(height, level): (usize, &Vec<Digest>)| level.get((index >> height) ^ 1).copied();
        self.levels.iter().enumerate().filter_map(sibling).collect()
    }
}

/// The root that a leaf and its path lead to, in a tree of `count` leaves; none if the path has the wrong length.
#[must_use]
pub fn root_from_path(leaf: Digest, mut index: usize, mut count: usize, path: &[Digest]) -> Option<Digest> {
    let mut path = path.iter();
    let mut node = leaf;
    if index >= count {
        return None;
    }
    while count > 1 {
        if index ^ 1 < count {
            let sibling = path.next()?;
            node = if index.is_multiple_of(2) { inner_of(&node, sibling) } else { inner_of(sibling, &node) };
        }
        index /= 2;
        count = count.div_ceil(2);
    }
    path.next().is_none().then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;
    use ed25519_dalek::SigningKey;

    fn domain() -> Domain {
        Domain { cluster: Digest([7; 32]), group: 3, epoch: Epoch(1) }
    }

    fn request(number: u64) -> SignedRequest {
        SignedRequest {
            name: RequestName { client: ClientSigner::new(&[5; 32]).name(), session: 9, number },
            ack_below: 1,
            not_after: Timestamp(77),
            wants_proof: number == 2,
            ends_epoch: number == 3,
            operation: Bytes::from(format!("op {number}")),
        }
    }

    #[test]
    fn a_bundle_comes_back_as_it_was_signed() {
        let signer = ClientSigner::new(&[5; 32]);
        let requests: Vec<SignedRequest> = (1..=5).map(request).collect();
        let bundle = Bundle::sign(&domain(), &signer, &requests);
        let read = Bundle::parse(bundle.bytes().clone()).unwrap();
        assert_eq!(read.requests().collect::<Vec<_>>(), requests);
        assert_eq!(read.names().map(|name| name.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let keyring = Keyring::new(domain(), &[], [signer.name()]).unwrap();
        assert_eq!(read.verify(&keyring), Err(BundleError::NotAdministrator), "there is a stop-sign in it");
        assert_eq!(read.verify(&keyring.with_administrator(signer.name()).unwrap()), Ok(()));
        let read = Bundle::sign(&domain(), &signer, &[request(1), request(2)]);
        let strangers = Keyring::new(domain(), &[], []).unwrap();
        assert_eq!(read.verify(&strangers), Err(BundleError::Signature));
        let elsewhere = Keyring::new(Domain { group: 4, ..domain() }, &[], [signer.name()]).unwrap();
        assert_eq!(read.verify(&elsewhere), Err(BundleError::Signature));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let signer = ClientSigner::new(&[5; 32]);
        let keyring = Keyring::new(domain(), &[], [signer.name()]).unwrap();
        let bundle = Bundle::sign(&domain(), &signer, &[request(1), request(2)]);
        let is_accepted = |bytes: Vec<u8>| {
            Bundle::parse(Bytes::from(bytes)).is_ok_and(|bundle| bundle.verify(&keyring).is_ok())
        };
        assert!(is_accepted(bundle.bytes().to_vec()));
        for bit in 0..bundle.bytes().len() * 8 {
            let mut bytes = bundle.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_accepted(bytes), "bit {bit}");
        }
        assert!((0..bundle.bytes().len()).all(|length| !is_accepted(bundle.bytes()[..length].to_vec())));
        let mut huge = bundle.bytes().to_vec();
        huge[96..98].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(Bundle::parse(Bytes::from(huge)), Err(BundleError::Malformed));
        let longer = [bundle.bytes().as_ref(), &[0]].concat();
        assert!(!is_accepted(longer), "nothing may follow");
    }

    #[test]
    fn each_leaf_proves_itself_and_no_other() {
        for count in 1..=17usize {
            let leaves: Vec<Digest> = (0..count).map(|index| leaf_of(&[&[index as u8]])).collect();
            let tree = Tree::over(leaves.clone());
            let root = tree.root();
            assert_eq!(root, root_of(&leaves));
            for (index, leaf) in leaves.iter().copied().enumerate() {
                let path = tree.path(index);
                assert_eq!(root_from_path(leaf, index, count, &path), Some(root));
                let other = leaf_of(&[b"other"]);
                assert_ne!(root_from_path(other, index, count, &path), Some(root));
                for wrong in (0..count).filter(|wrong| *wrong != index) {
                    assert_ne!(root_from_path(leaf, wrong, count, &path), Some(root));
                }
                let longer = [path.as_slice(), &[root]].concat();
                assert_eq!(root_from_path(leaf, index, count, &longer), None);
            }
        }
    }

    #[test]
    fn the_proofs_of_all_leaves_cost_one_tree() {
        let leaves: Vec<Digest> = (0..1_000u64).map(|index| leaf_of(&[&index.to_be_bytes()])).collect();
        HASHED.set(0);
        let tree = Tree::over(leaves);
        let paths: Vec<Vec<Digest>> = (0..tree.count()).map(|index| tree.path(index)).collect();
        assert_eq!((paths.len(), HASHED.get()), (1_000, 999));
    }

    #[test]
    fn only_a_key_of_the_right_client_signs_its_requests() {
        let (one, two) = (ClientSigner::new(&[5; 32]), ClientSigner::new(&[6; 32]));
        assert_ne!(one.name(), two.name());
        assert_eq!(SigningKey::from_bytes(&[5; 32]).verifying_key().to_bytes(), one.name().0);
    }
}
