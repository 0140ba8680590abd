//! Frames as they are sent, each a whole message.

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::FrameSender;
use super::mask::apply_mask;

/// The longest payload of a control frame (RFC 6455, section 5.5).
pub const MAX_CONTROL_PAYLOAD_BYTES: usize = 125;
/// What of it is left beside the code of a close frame.
const MAX_REASON_BYTES: usize = MAX_CONTROL_PAYLOAD_BYTES - 2;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A message of text.
    Text,
    /// A message of bytes.
    Binary,
    /// A ping.
    Ping,
    /// The answer to a ping.
    Pong,
    /// The end.
    Close,
}

/// Appends a frame with this payload. A client's gets a random mask.
pub fn push_frame(output: &mut Vec<u8>, sender: FrameSender, kind: FrameKind, payload: &[u8]) {
    let opcode = match kind {
        FrameKind::Text => OpCode::Data(Data::Text),
        FrameKind::Binary => OpCode::Data(Data::Binary),
        FrameKind::Ping => OpCode::Control(Control::Ping),
        FrameKind::Pong => OpCode::Control(Control::Pong),
        FrameKind::Close => OpCode::Control(Control::Close),
    };
    // A mask protects intermediaries that take frames for requests (RFC 6455, section 10.3). The text comes from
    // the client, which does not choose or see the mask, over connections that are ours.
    let mask = match sender {
        FrameSender::Client => Some(fastrand::u32(..).to_ne_bytes()),
        FrameSender::Backend => None,
    };
    let head = FrameHeader { opcode, mask, ..FrameHeader::default() };
    output.reserve(head.len(payload.len() as u64) + payload.len());
    // Writing to memory does not fail.
    let _ = head.format(payload.len() as u64, output);
    let start = output.len();
    output.extend_from_slice(payload);
    if let (Some(mask), Some(payload)) = (mask, output.get_mut(start..)) {
        apply_mask(payload, mask);
    }
}

/// The payload of a close frame. The reason is cut where it is too long.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let reason = reason.get(..reason.floor_char_boundary(MAX_REASON_BYTES)).unwrap_or_default();
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_those_of_rfc_6455() {
        let mut bytes = Vec::new();
        push_frame(&mut bytes, FrameSender::Backend, FrameKind::Text, b"Hello");
        assert_eq!(bytes, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        bytes.clear();
        push_frame(&mut bytes, FrameSender::Backend, FrameKind::Binary, &[7; 256]);
        assert_eq!(bytes.get(..4), Some(&[0x82, 0x7e, 0x01, 0x00][..]));
        bytes.clear();
        push_frame(&mut bytes, FrameSender::Client, FrameKind::Ping, b"Hello");
        assert_eq!((bytes.get(..2), bytes.len()), (Some(&[0x89, 0x85][..]), 11));
    }

    #[test]
    fn each_frame_of_a_client_has_a_mask_of_its_own() {
        let mut bytes = Vec::new();
        for _ in 0..8 {
            push_frame(&mut bytes, FrameSender::Client, FrameKind::Text, b"");
        }
        let masks: std::collections::HashSet<_> = bytes.chunks(6).map(|frame| frame.get(2..)).collect();
        assert!(masks.len() > 1);
    }

    #[test]
    fn a_reason_that_is_too_long_is_cut_at_a_character() {
        assert_eq!(close_payload(1001, "rotate"), b"\x03\xe9rotate");
        let cut = close_payload(1001, &"\u{e9}".repeat(100));
        assert_eq!(cut.len(), 2 + 122);
        assert!(std::str::from_utf8(cut.get(2..).unwrap()).is_ok());
    }
}
