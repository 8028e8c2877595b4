//! Where frames begin and end in a stream.

use bytes::{Buf, Bytes, BytesMut};

/// How long the next frame says it is.
pub(super) fn frame_bytes(buffer: &BytesMut) -> Option<usize> {
    buffer.get(..4).map(|mut length| length.get_u32_le() as usize)
}

/// The next whole frame of a stream: a length in four bytes, little-endian, then so many bytes.
pub(super) fn take_frame(buffer: &mut BytesMut, bytes_max: usize) -> Option<Result<Bytes, usize>> {
    let bytes = frame_bytes(buffer)?;
    if bytes > bytes_max {
        return Some(Err(bytes));
    }
    if buffer.len() < 4 + bytes {
        return None;
    }
    buffer.advance(4);
    Some(Ok(buffer.split_to(bytes).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let stream =
            [&5u32.to_le_bytes()[..], b"first", &0u32.to_le_bytes(), &6u32.to_le_bytes(), b"second"].concat();
        for cut in 0..stream.len() {
            let mut buffer = BytesMut::from(&stream[..cut]);
            let mut bodies = Vec::new();
            while let Some(body) = take_frame(&mut buffer, 100) {
                bodies.push(body.unwrap());
            }
            buffer.extend_from_slice(&stream[cut..]);
            while let Some(body) = take_frame(&mut buffer, 100) {
                bodies.push(body.unwrap());
            }
            assert_eq!(bodies, [&b"first"[..], b"", b"second"]);
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_arrives() {
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert_eq!(take_frame(&mut buffer, 100), Some(Err(u32::MAX as usize)));
    }
}
