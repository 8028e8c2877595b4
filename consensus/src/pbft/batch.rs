//! What one slot orders: a time and bundles of requests, or nothing.
//!
//! A batch is known by the digest of its exact bytes. Those bytes are what is hashed, voted for, stored and sent again;
//! nothing is ever encoded anew.
//!
//! Bytes: version 1 | time u64 | count u16 | count times (length u32 | bundle). The null batch has no bytes; its digest is
//! [`Digest::ZERO`], and it is voted for, certified and compared like any other.

use crate::codec::PROPOSAL_BYTES_MAX;
use crate::pbft::request::{Bundle, BundleError, RequestName};
use crate::types::{Digest, LogBase, Timestamp};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bundles in one batch.
pub const BATCH_BUNDLES_MAX: usize = 1024;

/// Requests in one batch.
pub const BATCH_REQUESTS_MAX: usize = 1024;

/// Bytes of one batch, unless it is a single request; a window of batches is kept.
pub const BATCH_BYTES_MAX: usize = 256 << 10;

/// Whether bundles may be one batch of so many bytes. Whoever proposes keeps to it, and nobody accepts or reads anything else.
#[must_use]
fn is_within_limits(bytes: usize, bundles: &[Bundle]) -> bool {
    let requests: usize = bundles.iter().map(Bundle::len).sum();
    let bytes_max = if requests == 1 { PROPOSAL_BYTES_MAX } else { BATCH_BYTES_MAX };
    requests <= BATCH_REQUESTS_MAX && bytes <= bytes_max
}

/// Whether a bundle may be ordered at all: whether it can be a batch by itself.
#[must_use]
pub fn may_be_ordered(bundle: &Bundle) -> bool {
    is_within_limits(HEADER + 4 + bundle.bytes().len(), std::slice::from_ref(bundle))
}

/// Bytes that a bundle takes in a batch.
#[must_use]
pub(super) fn bytes_in_batch(bundle: &Bundle) -> usize {
    4 + bundle.bytes().len()
}

const VERSION: u8 = 1;
pub(super) const HEADER: usize = 1 + 8 + 2;

/// A batch that was read from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
    digest: Digest,
    time: Option<Timestamp>,
    bundles: Vec<Bundle>,
}

impl Batch {
    /// The batch that orders nothing.
    #[must_use]
    pub fn null() -> Self {
        Self { bytes: Bytes::new(), digest: Digest::ZERO, time: None, bundles: Vec::new() }
    }

    /// A batch of bundles, stamped with the time of who proposes it.
    #[must_use]
    pub fn new(time: Timestamp, bundles: Vec<Bundle>) -> Self {
        assert!((1..=BATCH_BUNDLES_MAX).contains(&bundles.len()), "a batch has bundles");
        let size: usize = bundles.iter().map(|bundle| 4 + bundle.bytes().len()).sum();
        let mut bytes = BytesMut::with_capacity(HEADER + size);
        bytes.put_u8(VERSION);
        bytes.put_u64(time.0);
        bytes.put_u16(u16::try_from(bundles.len()).expect("at most 1024"));
        for bundle in &bundles {
            bytes.put_u32(u32::try_from(bundle.bytes().len()).expect("a bundle is smaller than a message"));
            bytes.put_slice(bundle.bytes());
        }
        assert!(is_within_limits(bytes.len(), &bundles), "who gathers bundles keeps the limits");
        let bytes = bytes.freeze();
        Self { digest: digest_of(&bytes), bytes, time: Some(time), bundles }
    }

    /// Reads a batch from its bytes; whether its requests are signed is another question.
    pub fn parse(bytes: Bytes) -> Result<Self, BundleError> {
        let (time, bundles) = read(&bytes)?;
        Ok(Self { digest: digest_of(&bytes), bytes, time, bundles })
    }

    /// The requests of a batch whose digest is known: it is not hashed again.
    pub fn bundles_of(bytes: &Bytes) -> Result<Vec<Bundle>, BundleError> {
        read(bytes).map(|(_, bundles)| bundles)
    }

    /// How many bundles these bytes say they have, if they are a batch.
    pub(super) fn count_of(bytes: &[u8]) -> usize {
        let count = bytes.get(HEADER - 2..HEADER).map_or(0, |mut count| usize::from(count.get_u16()));
        count.min(BATCH_BUNDLES_MAX)
    }

    /// The exact bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The log up to this batch, if it is decided behind what is given. Fields of the chain hash have fixed widths.
    pub(super) fn ends(&self, before: LogBase) -> LogBase {
        let slot = before.slot.next();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&before.chain.0).update(&slot.0.to_be_bytes()).update(&self.digest.0);
        // A null batch has no time: log time stands still.
        let time = self.time.unwrap_or_default().max(before.time);
        LogBase {
            slot,
            chain: Digest(*hasher.finalize().as_bytes()),
            time,
            sealed: self.ends_epoch().is_some(),
        }
    }

    /// Bytes that it takes in memory, about: its own, and what was read from them.
    pub(super) fn memory(&self) -> usize {
        let requests: usize = self.bundles.iter().map(Bundle::len).sum();
        let read = self.bundles.len() * size_of::<Bundle>() + requests * size_of::<Bytes>();
        size_of::<Self>() + self.bytes.len() + read
    }

    /// What the batch is known by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its proposer's clock; the null batch has none.
    #[must_use]
    pub fn time(&self) -> Option<Timestamp> {
        self.time
    }

    /// The bundles, in order.
    #[must_use]
    pub fn bundles(&self) -> &[Bundle] {
        &self.bundles
    }

    /// What the next epoch is, if the epoch ends with this batch.
    #[must_use]
    pub fn ends_epoch(&self) -> Option<Bytes> {
        let mut stop_signs =
            self.bundles.iter().filter(|bundle| bundle.ends_epoch()).flat_map(Bundle::requests);
        stop_signs.find(|request| request.ends_epoch).map(|request| request.operation)
    }

    /// The names of all requests.
    pub fn names(&self) -> impl Iterator<Item = RequestName> + '_ {
        self.bundles.iter().flat_map(Bundle::names)
    }
}

fn read(bytes: &Bytes) -> Result<(Option<Timestamp>, Vec<Bundle>), BundleError> {
    if bytes.is_empty() {
        return Ok((None, Vec::new()));
    }
    let mut rest = bytes.clone();
    if bytes.len() > PROPOSAL_BYTES_MAX || rest.len() < HEADER || rest.get_u8() != VERSION {
        return Err(BundleError::Malformed);
    }
    let (time, count) = (Timestamp(rest.get_u64()), usize::from(rest.get_u16()));
    if !(1..=BATCH_BUNDLES_MAX).contains(&count) {
        return Err(BundleError::Malformed);
    }
    let mut bundles = Vec::new();
    for _ in 0..count {
        let length = rest.try_get_u32().map_err(|_| BundleError::Malformed)? as usize;
        if rest.len() < length {
            return Err(BundleError::Malformed);
        }
        bundles.push(Bundle::parse(rest.split_to(length))?);
    }
    let is_whole = rest.is_empty() && is_within_limits(bytes.len(), &bundles);
    if is_whole { Ok((Some(time), bundles)) } else { Err(BundleError::Malformed) }
}

/// The digest of a batch's bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    if bytes.is_empty() { Digest::ZERO } else { Digest(*blake3::hash(bytes).as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pbft::request::SignedRequest;
    use crate::pbft::sign::{ClientSigner, Domain, Keyring};
    use crate::types::Epoch;

    fn bundle(domain: &Domain, number: u64) -> Bundle {
        let signer = ClientSigner::toy(1);
        let name = RequestName { client: signer.name(), session: 1, number };
        let operation = Bytes::from_static(b"op");
        let request = SignedRequest {
            name,
            ack_below: 1,
            not_after: Timestamp(9),
            wants_proof: false,
            ends_epoch: false,
            operation,
        };
        Bundle::sign(domain, &signer, &[request])
    }

    #[test]
    fn a_batch_is_its_bytes() {
        let domain = Domain { cluster: Digest::ZERO, group: 1, epoch: Epoch(1) };
        let batch = Batch::new(Timestamp(5), vec![bundle(&domain, 1), bundle(&domain, 2)]);
        assert_eq!(Batch::parse(batch.bytes().clone()), Ok(batch.clone()));
        assert_eq!(batch.names().map(|name| name.number).collect::<Vec<_>>(), [1, 2]);
        let verify = |clients| {
            let keyring = Keyring::toy(domain, 4, clients);
            batch.bundles().iter().try_for_each(|bundle| bundle.verify(&keyring))
        };
        assert_eq!(verify(2), Ok(()));
        assert_eq!(verify(1), Err(BundleError::Signature));
        for length in 1..batch.bytes().len() {
            assert!(Batch::parse(batch.bytes().slice(..length)).is_err());
        }
    }

    #[test]
    fn the_null_batch_has_a_digest_that_no_bytes_have() {
        assert_eq!(Batch::parse(Bytes::new()), Ok(Batch::null()));
        assert_ne!(digest_of(b"x"), Batch::null().digest());
    }

    #[test]
    fn a_batch_has_so_many_requests_and_bytes_whoever_proposes_it() {
        let domain = Domain { cluster: Digest::ZERO, group: 1, epoch: Epoch(1) };
        let signer = ClientSigner::toy(1);
        let bundle = |numbers: std::ops::Range<u64>, bytes: usize| {
            let request = |number| SignedRequest {
                name: RequestName { client: signer.name(), session: 1, number },
                ack_below: 1,
                not_after: Timestamp(9),
                wants_proof: false,
                ends_epoch: false,
                operation: Bytes::from(vec![7; bytes]),
            };
            Bundle::sign(&domain, &signer, &numbers.map(request).collect::<Vec<_>>())
        };
        // What a primary that keeps no limit proposes.
        let raw = |bundles: &[Bundle]| {
            let mut bytes = BytesMut::new();
            bytes.put_u8(VERSION);
            bytes.put_u64(5);
            bytes.put_u16(bundles.len() as u16);
            for bundle in bundles {
                bytes.put_u32(bundle.bytes().len() as u32);
                bytes.put_slice(bundle.bytes());
            }
            Batch::parse(bytes.freeze()).is_ok()
        };
        assert!(raw(&[bundle(0..1_000, 0), bundle(1_000..1_024, 0)]));
        assert!(!raw(&[bundle(0..1_000, 0), bundle(1_000..1_025, 0)]), "requests");
        assert!(raw(&[bundle(0..1, BATCH_BYTES_MAX / 2), bundle(1..2, BATCH_BYTES_MAX / 3)]));
        assert!(!raw(&[bundle(0..1, BATCH_BYTES_MAX / 2), bundle(1..2, BATCH_BYTES_MAX / 2)]), "bytes");
        let (large, several) = (bundle(0..1, 2 << 20), bundle(0..2, 200 << 10));
        assert!(
            raw(std::slice::from_ref(&large)) && may_be_ordered(&large),
            "one request alone may be large"
        );
        assert!(!raw(std::slice::from_ref(&several)) && !may_be_ordered(&several));
    }
}
