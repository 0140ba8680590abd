//! Reads whole messages of one side from its bytes, without I/O.

use std::io::Cursor;

use bytes::buf::Limit;
use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::encoder::MAX_CONTROL_PAYLOAD_BYTES;
use super::mask::apply_mask;
use super::{FrameSender, Message};

/// Memory that a message may take without being charged, in bytes.
pub const FREE_MESSAGE_BYTES: usize = 16 * 1024;
/// A payload of which more than this is missing is read directly into the message's buffer. Shorter ones are collected
/// first, so that one read can return many short frames.
const MIN_DIRECT_BYTES: usize = 16 * 1024;
/// The buffer of a message grows by this factor, up to the length of the frame: what is charged is in
/// proportion to what has come, and at most a third of a message is copied once more.
const GROWTH_FACTOR: usize = 4;

/// Why a message is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// They break a rule of RFC 6455.
    #[error("{0}")]
    Protocol(&'static str),
    /// Text, or the reason of a close, is not UTF-8.
    #[error("text that is not UTF-8")]
    InvalidUtf8,
    /// The message is longer than is allowed. Known from the head of a frame, before its payload is read.
    #[error("a message that is too long")]
    TooLarge,
}

/// The result of decoding the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A whole message.
    Message(Message),
    /// More bytes are needed.
    NeedsBytes,
    /// The message needs this many bytes of memory. [`FrameDecoder::allow_memory`] lets it go on.
    NeedsMemory(usize),
}

/// Decodes the frames of one side.
#[derive(Debug)]
pub struct FrameDecoder {
    sender: FrameSender,
    max_message_bytes: usize,
    /// Bytes that are not decoded yet. Without an allocation while it is empty.
    input: BytesMut,
    /// The payload of the message so far, without an allocation between messages.
    message: BytesMut,
    /// The kind of the message whose first frame has been decoded.
    fragments_of: Option<Data>,
    /// The frame whose head has been decoded, and its payload not.
    frame: Option<Frame>,
    /// The capacity that `message` may have.
    allowed_message_bytes: usize,
    is_closed: bool,
    error: Option<FrameError>,
}

/// A frame whose head has been read.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: OpCode,
    is_final: bool,
    mask: Option<[u8; 4]>,
    payload_bytes: usize,
    /// Bytes of the payload that are in `message`.
    moved_bytes: usize,
}

impl FrameDecoder {
    /// A decoder of the bytes that this side sends after the handshake. No message may be longer than
    /// `max_message_bytes`.
    pub fn new(sender: FrameSender, max_message_bytes: usize) -> Self {
        Self {
            sender,
            max_message_bytes,
            input: BytesMut::new(),
            message: BytesMut::new(),
            fragments_of: None,
            frame: None,
            allowed_message_bytes: FREE_MESSAGE_BYTES,
            is_closed: false,
            error: None,
        }
    }

    /// Changes the limit for frames whose head has not been decoded.
    pub fn set_max_message_bytes(&mut self, bytes: usize) {
        self.max_message_bytes = bytes;
    }

    /// Adds bytes. What comes after a close frame or an error is ignored.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.is_closed && self.error.is_none() {
            self.input.extend_from_slice(bytes);
        }
    }

    /// Adds the first bytes, which are not copied if nobody else has them.
    pub fn push_first(&mut self, bytes: Bytes) {
        if self.input.is_empty() {
            self.input = BytesMut::from(bytes);
        } else {
            self.push(&bytes);
        }
    }

    /// Whether bytes are here that are not part of a message that was returned.
    pub fn is_within_message(&self) -> bool {
        !self.input.is_empty() || self.frame.is_some() || self.fragments_of.is_some()
    }

    /// The memory that the message under way may take.
    pub fn allowed_message_bytes(&self) -> usize {
        self.allowed_message_bytes
    }

    /// Lets the message under way take this many bytes of memory.
    pub fn allow_memory(&mut self, bytes: usize) {
        self.allowed_message_bytes = bytes;
    }

    /// The buffer that a long payload is read into directly.
    pub fn payload_buffer(&mut self) -> Option<Limit<&mut BytesMut>> {
        let frame = self.frame.as_ref().filter(|frame| frame.reads_directly() && self.input.is_empty())?;
        let spare = self.message.capacity() - self.message.len();
        let limit = spare.min(frame.missing_bytes());
        (limit > 0).then(|| (&mut self.message).limit(limit))
    }

    /// Notes that bytes were read to [`Self::payload_buffer`].
    pub fn note_payload(&mut self, bytes: usize) {
        if let Some(frame) = &mut self.frame {
            frame.moved_bytes += bytes;
        }
    }

    /// Decodes the next message.
    ///
    /// # Errors
    /// If the side breaks the protocol or sends what is too long. It stays in error.
    pub fn decode(&mut self) -> Result<Decoded, FrameError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let decoded = self.decode_frames();
        if let Err(error) = decoded {
            self.error = Some(error);
            (self.input, self.message, self.frame) = (BytesMut::new(), BytesMut::new(), None);
        }
        // A buffer that is empty still holds its memory.
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        decoded
    }

    fn decode_frames(&mut self) -> Result<Decoded, FrameError> {
        loop {
            if self.is_closed {
                return Ok(Decoded::NeedsBytes);
            }
            if self.frame.is_none() {
                self.frame = self.decode_head()?;
            }
            let Some(frame) = self.frame else { return Ok(Decoded::NeedsBytes) };
            match frame.opcode {
                OpCode::Control(control) => {
                    let Some(payload) = self.take_input(frame.payload_bytes) else {
                        return Ok(Decoded::NeedsBytes);
                    };
                    self.frame = None;
                    return self.control_message(control, frame.mask, payload).map(Decoded::Message);
                }
                OpCode::Data(kind) => match self.take_payload(frame) {
                    Some(needed) => return Ok(needed),
                    None if frame.is_final => {
                        let kind = self.fragments_of.take().unwrap_or(kind);
                        return self.finish_message(kind).map(Decoded::Message);
                    }
                    None => {
                        self.fragments_of.get_or_insert(kind);
                    }
                },
            }
        }
    }

    /// Decodes the head of a frame and checks what it may be now; `None` if it is not all here.
    fn decode_head(&mut self) -> Result<Option<Frame>, FrameError> {
        let mut cursor = Cursor::new(self.input.as_ref());
        let parsed = FrameHeader::parse(&mut cursor);
        let head_bytes = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let parsed = parsed.map_err(|_| FrameError::Protocol("a frame with a reserved opcode"))?;
        let Some((head, payload_bytes)) = parsed else { return Ok(None) };
        self.take_input(head_bytes);
        let broken_rule = match (head.opcode, self.fragments_of) {
            _ if head.rsv1 || head.rsv2 || head.rsv3 => "a frame of an extension that was not agreed on",
            _ if head.mask.is_some() != (self.sender == FrameSender::Client) => match self.sender {
                FrameSender::Client => "a frame of a client without a mask",
                FrameSender::Backend => "a frame of a backend with a mask",
            },
            (OpCode::Control(_), _) if !head.is_final => "a control frame in fragments",
            (OpCode::Control(_), _) if payload_bytes > MAX_CONTROL_PAYLOAD_BYTES as u64 => {
                "a control frame of more than 125 bytes"
            }
            (OpCode::Data(Data::Continue), None) => "a continuation of no message",
            (OpCode::Data(Data::Text | Data::Binary), Some(_)) => "a message within another one",
            _ => "",
        };
        if !broken_rule.is_empty() {
            return Err(FrameError::Protocol(broken_rule));
        }
        let payload_bytes = usize::try_from(payload_bytes).map_err(|_| FrameError::TooLarge)?;
        let is_data = matches!(head.opcode, OpCode::Data(_));
        if is_data && payload_bytes > self.max_message_bytes.saturating_sub(self.message.len()) {
            return Err(FrameError::TooLarge);
        }
        let FrameHeader { opcode, is_final, mask, .. } = head;
        Ok(Some(Frame { opcode, is_final, mask, payload_bytes, moved_bytes: 0 }))
    }

    /// Adds the frame's payload to the message; what it needs, if that is not possible yet.
    fn take_payload(&mut self, frame: Frame) -> Option<Decoded> {
        let is_whole = self.input.len() >= frame.missing_bytes();
        if is_whole && self.message.is_empty() {
            // A part of a message is kept until the others come.
            if frame.missing_bytes() > self.allowed_message_bytes {
                return Some(Decoded::NeedsMemory(frame.missing_bytes()));
            }
            self.message = self.take_input(frame.missing_bytes())?;
        } else if !is_whole && !frame.reads_directly() && frame.moved_bytes == 0 {
            self.input.reserve(frame.payload_bytes - self.input.len());
            return Some(Decoded::NeedsBytes);
        } else {
            let bytes = self.input.len().min(frame.missing_bytes());
            // With room for more if more is missing, so that it can be read directly.
            let is_full = self.message.capacity() - self.message.len() < bytes.max(usize::from(!is_whole));
            if is_full && let Some(needed) = self.grow_message(frame) {
                return Some(needed);
            }
            let payload = self.take_input(bytes)?;
            self.message.extend_from_slice(&payload);
            self.note_payload(bytes);
            if !is_whole {
                return Some(Decoded::NeedsBytes);
            }
        }
        self.frame = None;
        let start = self.message.len() - frame.payload_bytes;
        if let (Some(mask), Some(payload)) = (frame.mask, self.message.get_mut(start..)) {
            apply_mask(payload, mask);
        }
        None
    }

    /// Makes room for what has come of the frame's payload, and for more of it; asks for the memory if it has
    /// to.
    fn grow_message(&mut self, frame: Frame) -> Option<Decoded> {
        let length = self.message.len();
        let needed = length + frame.missing_bytes();
        let present = length + self.input.len();
        let capacity = if frame.is_final {
            needed.min(present.saturating_mul(GROWTH_FACTOR).max(FREE_MESSAGE_BYTES))
        } else {
            // More frames follow.
            self.max_message_bytes
                .max(needed)
                .min(needed.min(present).saturating_mul(GROWTH_FACTOR).max(FREE_MESSAGE_BYTES))
        };
        if capacity > self.allowed_message_bytes {
            return Some(Decoded::NeedsMemory(capacity));
        }
        // `reserve` would take up to twice as much.
        let mut grown = BytesMut::with_capacity(capacity);
        grown.extend_from_slice(&self.message);
        self.message = grown;
        None
    }

    fn take_input(&mut self, bytes: usize) -> Option<BytesMut> {
        (self.input.len() >= bytes).then(|| self.input.split_to(bytes))
    }

    fn finish_message(&mut self, kind: Data) -> Result<Message, FrameError> {
        self.allowed_message_bytes = FREE_MESSAGE_BYTES;
        let payload = std::mem::take(&mut self.message).freeze();
        if kind != Data::Text {
            return Ok(Message::Binary(payload));
        }
        simdutf8::basic::from_utf8(&payload).map_err(|_| FrameError::InvalidUtf8)?;
        Ok(Message::Text(payload))
    }

    fn control_message(
        &mut self,
        control: Control,
        mask: Option<[u8; 4]>,
        mut payload: BytesMut,
    ) -> Result<Message, FrameError> {
        if let Some(mask) = mask {
            apply_mask(&mut payload, mask);
        }
        match control {
            Control::Ping => Ok(Message::Ping(payload.freeze())),
            Control::Pong => Ok(Message::Pong),
            Control::Close | Control::Reserved(_) => {
                let close = read_close(&payload)?;
                self.is_closed = true;
                (self.input, self.message) = (BytesMut::new(), BytesMut::new());
                self.fragments_of = None;
                self.allowed_message_bytes = FREE_MESSAGE_BYTES;
                Ok(Message::Close(close))
            }
        }
    }
}

impl Frame {
    fn missing_bytes(&self) -> usize {
        self.payload_bytes - self.moved_bytes
    }

    fn reads_directly(&self) -> bool {
        matches!(self.opcode, OpCode::Data(_)) && self.missing_bytes() > MIN_DIRECT_BYTES
    }
}

/// Reads the payload of a close frame (RFC 6455, section 7.4; the codes up to 1014 are those of IANA's registry).
fn read_close(payload: &[u8]) -> Result<Option<(u16, String)>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload {
            [] => Ok(None),
            _ => Err(FrameError::Protocol("a close frame with half a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::Protocol("a close code that must not be sent"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| FrameError::InvalidUtf8)?;
    Ok(Some((code, reason.to_owned())))
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
