//! Who is who: ed25519 keys as TLS identities, without certificates.

use ed25519_dalek::SigningKey;
#[cfg(feature = "server")]
use rustls::DistinguishedName;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
#[cfg(feature = "server")]
use rustls::server::{
    AlwaysResolvesServerRawPublicKeys,
    danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// What stands before the 32 bytes of an ed25519 key in its `SubjectPublicKeyInfo` (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What stands before the 32 bytes of an ed25519 secret in PKCS #8 (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// An ed25519 public key. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// Why text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Not 64 hexadecimal digits.
    #[error("a key is 64 hexadecimal digits, this has {0} characters or others among them")]
    Form(usize),
    /// Not a point that may be a key.
    #[error("these digits are not a valid ed25519 public key, or a weak one")]
    Weak,
    /// The TLS library does not take it.
    #[error("the TLS library refuses the key: {0}")]
    Tls(String),
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for PublicKey {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl FromStr for PublicKey {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let bytes = parse_hex(text)?;
        match ed25519_dalek::VerifyingKey::from_bytes(&bytes) {
            Ok(key) if !key.is_weak() => Ok(Self(bytes)),
            _ => Err(IdentityError::Weak),
        }
    }
}

fn parse_hex(text: &str) -> Result<[u8; 32], IdentityError> {
    let form = || IdentityError::Form(text.len());
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(form());
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| form())?;
    }
    Ok(bytes)
}

/// A secret key and what it proves.
#[derive(Clone)]
pub struct Identity {
    seed: [u8; 32],
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public())
    }
}

impl Identity {
    /// The identity with this secret.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { seed }
    }

    /// A new identity from the system's randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self { seed })
    }

    /// Reads a secret written by [`Self::secret_hex`].
    pub fn from_secret_hex(text: &str) -> Result<Self, IdentityError> {
        parse_hex(text.trim()).map(Self::from_seed)
    }

    /// The secret as 64 hexadecimal digits, for a key file.
    #[must_use]
    pub fn secret_hex(&self) -> String {
        self.seed.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The secret itself, for signing what is not a handshake.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.seed
    }

    /// What others know this identity by.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(SigningKey::from_bytes(&self.seed).verifying_key().to_bytes())
    }

    /// A secret for other uses, derived so that it says nothing about this one.
    #[cfg(feature = "server")]
    #[must_use]
    pub(super) fn derive(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.seed)
    }

    fn certified(&self) -> Result<Arc<CertifiedKey>, IdentityError> {
        let pkcs8 = [&PKCS8_PREFIX[..], &self.seed].concat();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
        let key = rustls::crypto::ring::sign::any_supported_type(&der).map_err(tls)?;
        let spki = [&SPKI_PREFIX[..], &self.public().0].concat();
        Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)))
    }
}

fn tls(error: impl fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

/// The key that the other end of a connection has proved.
#[cfg(feature = "server")]
pub(super) fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    key_of(identity.first()?)
}

fn key_of(spki: &CertificateDer<'_>) -> Option<PublicKey> {
    spki.as_ref().strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(PublicKey)
}

/// Accepts exactly the keys of a set.
#[derive(Debug)]
struct Pinned {
    keys: BTreeSet<PublicKey>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, spki: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        match key_of(spki) {
            Some(key) if self.keys.contains(&key) => Ok(()),
            Some(key) => {
                tracing::warn!(%key, "refused a key that the genesis record does not name");
                Err(rustls::Error::General("the key is not known in this cluster".to_string()))
            }
            None => Err(rustls::Error::General("not an ed25519 raw public key".to_string())),
        }
    }

    fn verify(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken here".to_string())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        spki: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(spki).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, spki, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(feature = "server")]
impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        spki: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(spki).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, spki, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// TLS for the side that is dialled: it speaks the given protocols with the given keys.
#[cfg(feature = "server")]
pub(super) fn server_crypto(
    identity: &Identity,
    keys: BTreeSet<PublicKey>,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::crypto::rustls::QuicServerConfig, IdentityError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Arc::new(Pinned { keys, provider: Arc::clone(&provider) });
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(pinned)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.certified()?)));
    config.alpn_protocols = protocols;
    quinn::crypto::rustls::QuicServerConfig::try_from(config).map_err(tls)
}

/// TLS for the side that dials: it expects exactly this key and speaks one of these protocols.
pub(super) fn client_crypto(
    identity: &Identity,
    expected: PublicKey,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::crypto::rustls::QuicClientConfig, IdentityError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Arc::new(Pinned { keys: BTreeSet::from([expected]), provider: Arc::clone(&provider) });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.certified()?)));
    config.alpn_protocols = protocols;
    quinn::crypto::rustls::QuicClientConfig::try_from(config).map_err(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_round_trip_through_text() {
        let identity = Identity::from_seed([7; 32]);
        assert_eq!(identity.public().to_string().parse(), Ok(identity.public()));
        assert_eq!(Identity::from_secret_hex(&identity.secret_hex()).unwrap().public(), identity.public());
        assert!(identity.certified().is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused_with_what_is_wrong() {
        assert_eq!("abc".parse::<PublicKey>(), Err(IdentityError::Form(3)));
        assert_eq!("zz".repeat(32).parse::<PublicKey>(), Err(IdentityError::Form(64)));
        let small_order = format!("01{}", "00".repeat(31));
        assert_eq!(small_order.parse::<PublicKey>(), Err(IdentityError::Weak));
    }
}
