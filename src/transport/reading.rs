//! Frames out of a stream.
//!
//! What a client sends takes memory before it is a frame that can be judged: what QUIC keeps for the reader, and a frame that
//! is only half here. Both are bounded by an [`Allowance`], whose larger part all connections of a key share.

use super::clients::Share;
use super::endpoint::{Frame, Inbound, Shared};
use super::frames::{frame_bytes, take_frame};
use super::protocol::FIRST_WINDOW;
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Bytes that QUIC keeps unread of a client that makes use of it, as far as its key's share goes.
const CLIENT_WINDOW_MAX: u32 = 1 << 20;

/// A frame up to this size may be half here without being counted.
const SMALL_FRAME_BYTES: usize = 16 << 10;

/// A larger one must be whole within this time once it was given room: its key's others wait for that room.
const FRAME_PATIENCE: Duration = Duration::from_secs(20);

/// What one connection of a client may have under way.
pub(super) struct Allowance {
    connection: quinn::Connection,
    share: Arc<Share>,
    window: u32,
    /// Bytes read since the window last grew.
    read: usize,
    windows: Vec<OwnedSemaphorePermit>,
    frame: Option<OwnedSemaphorePermit>,
}

impl Allowance {
    pub(super) fn new(connection: quinn::Connection, share: Arc<Share>) -> Self {
        Self { connection, share, window: FIRST_WINDOW, read: 0, windows: Vec::new(), frame: None }
    }

    /// Whoever sends a window full may have one twice as large, if there is one.
    fn note(&mut self, bytes: usize) {
        self.read += bytes;
        if self.read < self.window as usize || self.window >= CLIENT_WINDOW_MAX {
            return;
        }
        self.read = 0;
        if let Some(more) = self.share.widen(self.window) {
            self.windows.push(more);
            self.window *= 2;
            self.connection.set_receive_window(self.window.into());
        }
    }

    /// Reads the rest of a large frame when there is room for it; false if it does not come in time.
    async fn gather(&mut self, stream: &mut quinn::RecvStream, buffer: &mut BytesMut, bytes: usize) -> bool {
        self.frame = tokio::select! {
            room = self.share.room_for(bytes) => Some(room),
            _ = self.connection.closed() => return false,
        };
        buffer.reserve((4 + bytes).saturating_sub(buffer.len()));
        let rest = async {
            while buffer.len() < 4 + bytes {
                let most = self.share.pace().await;
                let Ok(Some(chunk)) = stream.read_chunk(most, true).await else { return false };
                buffer.extend_from_slice(&chunk.bytes);
                self.note(chunk.bytes.len());
            }
            true
        };
        tokio::time::timeout(FRAME_PATIENCE, rest).await.unwrap_or(false)
    }
}

/// Reads frames until the stream ends, or one is too large or too slow. Empty frames only announce a stream.
pub(super) async fn frames_of(
    mut stream: quinn::RecvStream,
    bytes_max: usize,
    shared: Shared,
    mut allowance: Option<Allowance>,
    wrap: impl Fn(Frame) -> Inbound + Send + 'static,
) {
    let mut buffer = BytesMut::new();
    loop {
        let most = match &allowance {
            Some(allowance) => allowance.share.pace().await,
            None => usize::MAX,
        };
        let Ok(Some(chunk)) = stream.read_chunk(most, true).await else { return };
        buffer.extend_from_slice(&chunk.bytes);
        if let Some(allowance) = &mut allowance {
            allowance.note(chunk.bytes.len());
        }
        drop(chunk);
        loop {
            while let Some(body) = take_frame(&mut buffer, bytes_max) {
                match body {
                    Ok(body) if body.is_empty() => {}
                    Ok(body) => {
                        let share = allowance.as_ref().map(|allowance| &*allowance.share);
                        let frame = shared.admit(body, share).await;
                        shared.tell(wrap(frame)).await;
                        if let Some(allowance) = &mut allowance {
                            allowance.frame = None;
                        }
                    }
                    Err(bytes) => {
                        tracing::warn!(bytes, bytes_max, "a frame is too large; the stream is closed");
                        let _ = stream.stop(5u32.into());
                        return;
                    }
                }
            }
            let large = frame_bytes(&buffer).filter(|bytes| *bytes > SMALL_FRAME_BYTES);
            let (Some(allowance), Some(bytes)) = (&mut allowance, large) else { break };
            if !allowance.gather(&mut stream, &mut buffer, bytes).await {
                return;
            }
        }
    }
}
