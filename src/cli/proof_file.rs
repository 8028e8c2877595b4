//! A proof as a file. Everything that is no small number is a string: other programs read numbers as floats, which hold 53 bits, and
//! a proof of which one bit has changed proves nothing.

use super::bytes::{hex, unhex};
use super::output::bytes_json;
use crate::kv::{Operation, Reply, RequestId, SessionId};
use crate::proof::{OutcomeProof, Proof};
use crate::ring::GroupId;
use anyhow::Context;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tetrachord_consensus::pbft::Signature;
use tetrachord_consensus::{Digest, ReplicaId};

const VERSION: u32 = 3;

/// A proof that a key had a value, or that there was no such key, with the name of the cluster.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProofFile {
    version: u32,
    pub(crate) cluster: String,
    group: GroupId,
    key: Text,
    /// None if there was no such key.
    found: Option<Found>,
    /// The ordered time of the read, in microseconds since 1970; decimal.
    time_us: String,
    /// Who asked, in hexadecimal.
    client: String,
    /// Which request: the session in hexadecimal, the number in decimal.
    session: String,
    number: String,
    signed: Vec<Signed>,
}

/// Bytes: text as it is, anything else in hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    text: String,
    encoding: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Found {
    value: Text,
    /// Decimal.
    version: String,
}

/// What one replica signed: digests and the signature in hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    replica: u32,
    /// Decimal.
    slot: String,
    index: u32,
    count: u32,
    path: Vec<String>,
    signature: String,
}

impl Text {
    fn of(bytes: &[u8]) -> Self {
        let (text, encoding) = bytes_json(bytes);
        Self { text: text.as_str().unwrap_or_default().to_string(), encoding: encoding.to_string() }
    }

    fn bytes(self) -> anyhow::Result<Bytes> {
        match self.encoding.as_str() {
            "utf8" => Ok(Bytes::from(self.text)),
            "hex" => unhex(&self.text).context("it is not hexadecimal"),
            other => anyhow::bail!("the encoding {other:?} is neither utf8 nor hex"),
        }
    }
}

fn fixed<const N: usize>(text: &str, what: &str) -> anyhow::Result<[u8; N]> {
    let bytes = unhex(text).and_then(|bytes| <[u8; N]>::try_from(&bytes[..]).ok());
    bytes.with_context(|| format!("{what}: {} hexadecimal digits are expected", 2 * N))
}

fn decimal(text: &str, what: &str) -> anyhow::Result<u64> {
    text.parse().with_context(|| format!("{what}: a decimal number is expected, as a string"))
}

impl ProofFile {
    /// A proof of what a key was.
    pub(crate) fn of(cluster: String, proof: &Proof) -> anyhow::Result<Self> {
        let (Operation::Get { key }, Reply::Value { found, time }) = (&proof.operation, &proof.reply) else {
            anyhow::bail!("the proof is not about a value that was read");
        };
        let signed = proof.proofs.iter().map(|told| Signed {
            replica: told.signer.0.into(),
            slot: told.slot.to_string(),
            index: told.index,
            count: told.count,
            path: told.path.iter().map(|digest| hex(&digest.0)).collect(),
            signature: hex(&told.signature.0),
        });
        let found = found.as_ref();
        Ok(Self {
            version: VERSION,
            cluster,
            group: proof.group,
            key: Text::of(key),
            found: found
                .map(|(version, value)| Found { value: Text::of(value), version: version.to_string() }),
            time_us: time.to_string(),
            client: hex(&proof.client),
            session: hex(&proof.request.session.0.to_be_bytes()),
            number: proof.request.number.to_string(),
            signed: signed.collect(),
        })
    }

    /// The proof, if it is one that this build can judge.
    pub(crate) fn proof(self) -> anyhow::Result<Proof> {
        anyhow::ensure!(
            self.version == VERSION,
            "proof version {} is not supported, this build reads {VERSION}",
            self.version
        );
        let found = self.found.map(|found| {
            anyhow::Ok((
                decimal(&found.version, "found.version")?,
                found.value.bytes().context("found.value")?,
            ))
        });
        let session = SessionId(u128::from_be_bytes(fixed(&self.session, "session")?));
        Ok(Proof {
            group: self.group,
            client: fixed(&self.client, "client")?,
            request: RequestId { session, number: decimal(&self.number, "number")? },
            operation: Operation::Get { key: self.key.bytes().context("key")? },
            reply: Reply::Value { found: found.transpose()?, time: decimal(&self.time_us, "time_us")? },
            proofs: self.signed.into_iter().map(Signed::proof).collect::<Result<_, _>>()?,
        })
    }
}

impl Signed {
    fn proof(self) -> anyhow::Result<OutcomeProof> {
        let path = self.path.iter().map(|text| fixed(text, "signed.path").map(Digest));
        Ok(OutcomeProof {
            signer: ReplicaId(
                self.replica.try_into().context("signed.replica: no group has so many replicas")?,
            ),
            slot: decimal(&self.slot, "signed.slot")?,
            index: self.index,
            count: self.count,
            path: path.collect::<Result<_, _>>()?,
            signature: Signature(fixed(&self.signature, "signed.signature")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn proof() -> Proof {
        Proof {
            group: GroupId(u128::MAX),
            client: [0xfe; 32],
            request: RequestId { session: SessionId(u128::MAX - 1), number: u64::MAX - 1 },
            operation: Operation::Get { key: Bytes::from_static(b"\xff\x00key") },
            reply: Reply::Value { found: Some((u64::MAX - 2, Bytes::from_static(b"7"))), time: u64::MAX - 3 },
            proofs: vec![OutcomeProof {
                signer: ReplicaId(3),
                slot: u64::MAX - 4,
                index: u32::MAX - 1,
                count: u32::MAX,
                path: vec![Digest([9; 32]), Digest([1; 32])],
                signature: Signature([0xab; 64]),
            }],
        }
    }

    /// What programs do that have no numbers but floats.
    fn through_floats(value: &mut Value) {
        match value {
            Value::Number(number) => {
                let float = number.as_f64().unwrap();
                assert!(float.fract() == 0.0);
                *value = format!("{float}").parse::<u64>().unwrap().into();
            }
            Value::Array(values) => values.iter_mut().for_each(through_floats),
            Value::Object(fields) => fields.values_mut().for_each(through_floats),
            _ => {}
        }
    }

    #[test]
    fn a_proof_survives_programs_that_have_only_floats() {
        let file = ProofFile::of("c".to_string(), &proof()).unwrap();
        let mut value = serde_json::to_value(&file).unwrap();
        through_floats(&mut value);
        let read: ProofFile = serde_json::from_value(value).unwrap();
        assert_eq!(read.proof().unwrap(), proof());
        let absent = Proof { reply: Reply::Value { found: None, time: 5 }, ..proof() };
        assert_eq!(ProofFile::of("c".to_string(), &absent).unwrap().proof().unwrap(), absent);
    }

    #[test]
    fn what_is_no_proof_is_said_by_its_field() {
        let wrong = |change: &dyn Fn(&mut ProofFile)| {
            let mut file = ProofFile::of("c".to_string(), &proof()).unwrap();
            change(&mut file);
            format!("{:#}", file.proof().unwrap_err())
        };
        assert!(wrong(&|file| file.version = 1).contains("version 1"));
        assert!(wrong(&|file| file.client = "00".to_string()).contains("client: 64 hexadecimal digits"));
        assert!(wrong(&|file| file.key.encoding = "utf16".to_string()).contains("key: the encoding"));
        assert!(wrong(&|file| file.signed[0].replica = 70_000).contains("signed.replica"));
        assert!(wrong(&|file| file.signed[0].slot = "1.8e19".to_string()).contains("signed.slot"));
        let write = Proof { reply: Reply::Put { version: 1 }, ..proof() };
        assert!(ProofFile::of("c".to_string(), &write).is_err());
    }
}
