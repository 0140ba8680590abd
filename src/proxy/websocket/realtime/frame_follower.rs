//! Finds the payloads of text messages in the bytes that a backend sends, as they pass. Only an incomplete frame head
//! is buffered.

use std::io::Cursor;

use smallvec::SmallVec;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// The longest head of a frame.
const MAX_HEAD_BYTES: usize = 14;

/// A part of a text message.
#[derive(Debug, PartialEq, Eq)]
pub enum MessagePart<'b> {
    /// The next bytes of its payload.
    Bytes(&'b [u8]),
    /// The message has ended.
    End,
}

/// The state between two reads.
#[derive(Debug, Default)]
pub struct FrameFollower {
    /// The beginning of a head.
    head: SmallVec<[u8; MAX_HEAD_BYTES]>,
    frame: Option<Frame>,
    /// The kind of the message whose fragments follow.
    fragments_of: Option<Data>,
    is_broken: bool,
}

/// A frame whose head has passed.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// `None` for a control frame.
    message: Option<Data>,
    is_final: bool,
    missing_bytes: u64,
}

/// A malformed frame, or one of an extension, although none was offered.
struct Malformed;

impl FrameFollower {
    /// Whether a malformed frame was found. Nothing is reported after it.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether the bytes so far end with a frame.
    pub fn is_between_frames(&self) -> bool {
        !self.is_broken && self.frame.is_none() && self.head.is_empty()
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8], on_part: &mut impl FnMut(MessagePart<'_>)) {
        while !self.is_broken {
            let Some(frame) = &mut self.frame else {
                match self.read_head(bytes) {
                    Some(rest) => bytes = rest,
                    None => return,
                }
                continue;
            };
            let length = usize::try_from(frame.missing_bytes).unwrap_or(usize::MAX).min(bytes.len());
            let (payload, rest) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
            frame.missing_bytes -= payload.len() as u64;
            let is_text = frame.message == Some(Data::Text);
            if is_text && !payload.is_empty() {
                on_part(MessagePart::Bytes(payload));
            }
            if frame.missing_bytes > 0 {
                return;
            }
            if is_text && frame.is_final {
                on_part(MessagePart::End);
            }
            self.frame = None;
            bytes = rest;
        }
    }

    /// Reads a head; returns the bytes after it, or `None` if it is not all here or malformed.
    fn read_head<'b>(&mut self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let kept = self.head.len();
        let parsed = if kept == 0 {
            self.parse_head(bytes)
        } else {
            self.head.extend(bytes.iter().take(MAX_HEAD_BYTES - kept).copied());
            self.parse_head(&self.head)
        };
        match parsed {
            Ok(Some((frame, head_bytes))) => {
                self.head.clear();
                if let Some(kind) = frame.message {
                    self.fragments_of = (!frame.is_final).then_some(kind);
                }
                self.frame = Some(frame);
                bytes.get(head_bytes.saturating_sub(kept)..)
            }
            Ok(None) => {
                if kept == 0 {
                    self.head.extend_from_slice(bytes);
                }
                None
            }
            Err(Malformed) => {
                self.is_broken = true;
                None
            }
        }
    }

    /// Parses a head, and tells its length; `None` if it is not all here.
    fn parse_head(&self, bytes: &[u8]) -> Result<Option<(Frame, usize)>, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| Malformed)?;
        let Some((head, missing_bytes)) = parsed else { return Ok(None) };
        let is_extended = head.rsv1 || head.rsv2 || head.rsv3;
        let message = match (head.opcode, self.fragments_of) {
            _ if is_extended || head.mask.is_some() => return Err(Malformed),
            (OpCode::Control(_), _) if head.is_final && missing_bytes <= 125 => None,
            (OpCode::Data(Data::Continue), Some(kind)) => Some(kind),
            (OpCode::Data(kind @ (Data::Text | Data::Binary)), None) => Some(kind),
            _ => return Err(Malformed),
        };
        let head_bytes = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        Ok(Some((Frame { message, is_final: head.is_final, missing_bytes }, head_bytes)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::proxy::websocket::frames::encoder::{FrameKind, push_frame};
    use crate::proxy::websocket::frames::{FrameSender, Message};

    /// The text messages in these pieces, and whether they could be followed to the end.
    fn follow<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Vec<u8>>, bool) {
        let (mut follower, mut messages, mut current) = (FrameFollower::default(), Vec::new(), Vec::new());
        for piece in pieces {
            follower.feed(piece, &mut |part| match part {
                MessagePart::Bytes(bytes) => current.extend_from_slice(bytes),
                MessagePart::End => messages.push(std::mem::take(&mut current)),
            });
        }
        (messages, !follower.is_broken())
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let length = prop_oneof![8 => 0_usize..200, 1 => 65_000_usize..66_000];
        let payload = (length, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]);
        prop_oneof![
            4 => payload.clone().prop_map(|payload| Message::Text(payload.into())),
            1 => payload.prop_map(|payload| Message::Binary(payload.into())),
            1 => proptest::collection::vec(any::<u8>(), 0..126).prop_map(|payload| Message::Ping(payload.into())),
        ]
    }

    proptest! {
        #[test]
        fn any_split_tells_the_same_text(
            messages in proptest::collection::vec(any_message(), 0..8),
            cuts in proptest::collection::vec(any::<Index>(), 0..20),
        ) {
            let (mut bytes, mut texts) = (Vec::new(), Vec::new());
            for message in messages {
                let (kind, payload) = match message {
                    Message::Text(text) => (FrameKind::Text, text),
                    Message::Binary(binary) => (FrameKind::Binary, binary),
                    Message::Ping(payload) => (FrameKind::Ping, payload),
                    _ => continue,
                };
                push_frame(&mut bytes, FrameSender::Backend, kind, &payload);
                texts.extend((kind == FrameKind::Text).then(|| payload.to_vec()));
            }
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.push(bytes.len());
            ends.sort_unstable();
            let mut start = 0;
            let pieces: Vec<&[u8]> = ends.into_iter().map(|end| &bytes[std::mem::replace(&mut start, end)..end]).collect();
            prop_assert_eq!(follow(pieces), (texts, true));
        }

        #[test]
        fn any_bytes_tell_the_same_one_by_one(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x81), Just(0x01), Just(0x80), Just(0)], 0..200)) {
            prop_assert_eq!(follow(bytes.chunks(1)), follow([&bytes[..]]));
        }
    }

    #[test]
    fn fragments_are_one_message_with_control_frames_between_them() {
        let bytes = b"\x01\x02He\x89\x01p\x00\x00\x80\x03llo\x02\x01x\x80\x01y\x81\x00";
        assert_eq!(follow([&bytes[..]]), (vec![b"Hello".to_vec(), Vec::new()], true));
    }

    #[test]
    fn what_is_not_a_websocket_is_not_followed() {
        for bytes in [
            b"from the backend".as_slice(),
            b"\xc1\x01x",
            b"\x81\x81\0\0\0\0x",
            b"\x83\x01x",
            b"\x80\x01x",
            b"\x01\x01x\x81\x01x",
            b"\x09\x01x",
            b"\x89\x7e\0\x7e",
        ] {
            assert!(!follow([bytes, b"\x81\x01a"]).1, "{}", bytes.escape_ascii());
        }
    }
}
