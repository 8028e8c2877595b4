//! One message as a frame, and back.

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The body is not a message.
    #[error("malformed message: {0}")]
    Malformed(String),
}

const LENGTH_BYTES: usize = 4;

/// A message with its length in front.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    let start = vec![0; LENGTH_BYTES];
    let bytes =
        postcard::to_extend(message, start).expect("writing to memory cannot fail and every length is known");
    let mut bytes = BytesMut::from(Bytes::from(bytes));
    let length = u32::try_from(bytes.len() - LENGTH_BYTES).expect("limits keep messages below 4 GiB");
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    bytes.freeze()
}

/// Reads one message from a frame's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|error| FrameError::Malformed(error.to_string()))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Malformed("bytes follow the message".to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::GroupId;
    use crate::wire::{Consistency, PeerMessage, Request, RequestFrame};
    use proptest::prelude::*;

    fn request() -> RequestFrame {
        let request = Request::Get {
            group: GroupId(1),
            key: Bytes::from_static(b"key"),
            consistency: Consistency::Linearizable,
        };
        RequestFrame { id: 7, request }
    }

    #[test]
    fn a_frame_is_its_length_and_its_message() {
        let frame = encode(&request());
        assert_eq!(u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize, frame.len() - 4);
        assert_eq!(decode::<RequestFrame>(&frame[4..]).unwrap(), request());
        for length in 4..frame.len() {
            assert!(decode::<RequestFrame>(&frame[4..length]).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<RequestFrame>(&bytes);
            let _ = decode::<PeerMessage>(&bytes);
            let bytes = Bytes::from(bytes);
            let _ = crate::kv::Command::decode(&bytes);
            let _ = crate::kv::Batch::inputs(bytes);
        }

        #[test]
        fn every_flipped_bit_gives_another_message_or_an_error(bit in 0usize..64) {
            let mut bytes = encode(&request())[4..].to_vec();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(decode::<RequestFrame>(&bytes).ok(), Some(request()));
        }
    }
}
