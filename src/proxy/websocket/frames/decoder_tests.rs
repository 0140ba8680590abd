//! Tests of the decoder: any split of any messages, and malformed frames.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::encoder::{FrameKind, close_payload, push_frame};
use super::*;

const MAX_BYTES: usize = 1 << 20;

/// Decodes pieces, as a reader does that reads long payloads directly.
fn decode_pieces(
    sender: FrameSender,
    pieces: impl IntoIterator<Item = Vec<u8>>,
) -> (Vec<Message>, Result<bool, FrameError>) {
    let (mut decoder, mut messages) = (FrameDecoder::new(sender, MAX_BYTES), Vec::new());
    for mut piece in pieces {
        loop {
            match decoder.decode() {
                Ok(Decoded::Message(message)) => messages.push(message),
                Ok(Decoded::NeedsMemory(bytes)) => {
                    assert!(bytes > decoder.allowed_message_bytes() && bytes <= MAX_BYTES);
                    decoder.allow_memory(bytes);
                }
                Ok(Decoded::NeedsBytes) if piece.is_empty() => break,
                Ok(Decoded::NeedsBytes) => match decoder.payload_buffer() {
                    Some(mut buffer) => {
                        let bytes = piece.len().min(buffer.remaining_mut());
                        buffer.put_slice(&piece[..bytes]);
                        decoder.note_payload(bytes);
                        piece.drain(..bytes);
                    }
                    None => decoder.push(&std::mem::take(&mut piece)),
                },
                Err(error) => return (messages, Err(error)),
            }
        }
        assert!(decoder.message.capacity() <= decoder.allowed_message_bytes());
    }
    if !decoder.is_within_message() {
        assert_eq!((decoder.input.capacity(), decoder.message.capacity()), (0, 0), "idle");
    }
    (messages, Ok(decoder.is_within_message()))
}

fn decode(sender: FrameSender, bytes: &[u8]) -> (Vec<Message>, Result<bool, FrameError>) {
    decode_pieces(sender, [bytes.to_vec()])
}

/// A frame as it comes from this side, of any head.
fn frame(sender: FrameSender, first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mask = (sender == FrameSender::Client).then_some([0x37, 0xfa, 0x21, 0x3d]);
    let head = FrameHeader { mask, ..FrameHeader::default() };
    let mut bytes = Vec::new();
    head.format(payload.len() as u64, &mut bytes).unwrap();
    bytes[0] = first_byte;
    let start = bytes.len();
    bytes.extend_from_slice(payload);
    apply_mask(&mut bytes[start..], mask.unwrap_or_default());
    bytes
}

/// A message and where its payload is cut into fragments.
#[derive(Debug, Clone)]
struct Sent {
    message: Message,
    cuts: Vec<Index>,
    /// Between its fragments.
    ping: Option<Vec<u8>>,
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let length = prop_oneof![8 => 0_usize..300, 1 => 60_000_usize..70_000, 1 => 100_000_usize..300_000];
    let text = (length.clone(), "[a-zé€𝄞]{1,4}")
        .prop_map(|(length, text)| Message::Text(text.repeat(length / text.len()).into_bytes().into()));
    let binary = (length, any::<u8>()).prop_map(|(length, byte)| {
        Message::Binary((0..length).map(|n| (n % 251) as u8 ^ byte).collect::<Vec<u8>>().into())
    });
    let ping = proptest::collection::vec(any::<u8>(), 0..126);
    let message = prop_oneof![4 => text, 2 => binary, 1 => ping.clone().prop_map(|payload| Message::Ping(payload.into())), 1 => Just(Message::Pong)];
    let cuts = proptest::collection::vec(any::<Index>(), 0..4);
    (message, cuts, proptest::option::of(ping)).prop_map(|(message, cuts, ping)| Sent { message, cuts, ping })
}

fn any_close() -> impl Strategy<Value = Option<Message>> {
    let close = (proptest::sample::select(vec![1000, 1001, 1011, 1014, 3000, 4999]), "[a-zé]{0,60}");
    let close = prop_oneof![close.prop_map(Some), Just(None)].prop_map(Message::Close);
    proptest::option::of(close)
}

/// The bytes of these messages and the messages that are to be read.
fn send(sender: FrameSender, all: Vec<Sent>, close: Option<Message>) -> (Vec<u8>, Vec<Message>) {
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for Sent { message, cuts, ping } in all {
        let (opcode, payload) = match &message {
            Message::Text(text) => (1, text.clone()),
            Message::Binary(binary) => (2, binary.clone()),
            Message::Ping(payload) => (9, payload.clone()),
            _ => (10, Bytes::from_static(b"pong")),
        };
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        ends.sort_unstable();
        if opcode > 2 {
            ends.clear();
        }
        let mut start = 0;
        for (n, end) in ends.iter().copied().enumerate() {
            bytes.extend(frame(sender, if n == 0 { opcode } else { 0 }, &payload[start..end]));
            start = end;
            if let Some(ping) = ping.as_ref().filter(|_| n == 0) {
                bytes.extend(frame(sender, 0x89, ping));
                expected.push(Message::Ping(ping.clone().into()));
            }
        }
        let opcode = if ends.is_empty() { opcode } else { 0 };
        bytes.extend(frame(sender, 0x80 | opcode, &payload[start..]));
        expected.push(message);
    }
    if let Some(Message::Close(close)) = close {
        let payload = close.as_ref().map(|(code, reason)| close_payload(*code, reason));
        bytes.extend(frame(sender, 0x88, &payload.unwrap_or_default()));
        bytes.extend(frame(sender, 0x81, b"what comes after a close is ignored"));
        expected.push(Message::Close(close));
    }
    (bytes, expected)
}

fn any_sender() -> impl Strategy<Value = FrameSender> {
    prop_oneof![Just(FrameSender::Client), Just(FrameSender::Backend)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_split_of_any_messages_gives_the_same_messages(
        sender in any_sender(),
        all in proptest::collection::vec(any_sent(), 0..6),
        close in any_close(),
        cuts in proptest::collection::vec(any::<Index>(), 0..20),
    ) {
        let (bytes, expected) = send(sender, all, close);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut start = 0;
        let pieces = ends.into_iter().map(|end| bytes[std::mem::replace(&mut start, end)..end].to_vec());
        prop_assert_eq!(decode_pieces(sender, pieces), (expected, Ok(false)));
    }

    #[test]
    fn what_is_encoded_is_decoded(sender in any_sender(), all in proptest::collection::vec(any_sent(), 0..4)) {
        let mut bytes = Vec::new();
        for Sent { message, .. } in &all {
            let (kind, payload) = match message {
                Message::Text(text) => (FrameKind::Text, text.clone()),
                Message::Binary(binary) => (FrameKind::Binary, binary.clone()),
                Message::Ping(payload) => (FrameKind::Ping, payload.clone()),
                _ => (FrameKind::Pong, Bytes::new()),
            };
            push_frame(&mut bytes, sender, kind, &payload);
        }
        let messages: Vec<Message> = all.into_iter().map(|sent| sent.message).collect();
        prop_assert_eq!(decode(sender, &bytes), (messages, Ok(false)));
    }

    #[test]
    fn any_bytes_are_decoded_the_same_one_by_one(sender in any_sender(), bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0x81), Just(0x01), Just(0x80), Just(0)], 0..200)) {
        let one_by_one = bytes.iter().map(|byte| vec![*byte]);
        prop_assert_eq!(decode_pieces(sender, one_by_one), decode(sender, &bytes));
    }
}

#[test]
fn a_part_that_comes_at_once_is_charged() {
    for sender in [FrameSender::Client, FrameSender::Backend] {
        let part = vec![b'x'; 2 * FREE_MESSAGE_BYTES];
        let bytes = frame(sender, 0x01, &part);
        // The capacity of the decoder is compared with what it may have.
        assert_eq!(decode_pieces(sender, [bytes]), (Vec::new(), Ok(true)));
    }
}

#[test]
fn malformed_frames_are_refused() {
    use FrameError::{InvalidUtf8, Protocol, TooLarge};
    use FrameSender::{Backend, Client};
    let backend = |first_byte, payload: &[u8]| frame(Backend, first_byte, payload);
    let too_long = |head: &[u8]| head.to_vec();
    let cases = [
        ("without a mask", Client, backend(0x81, b"x"), Protocol("a frame of a client without a mask")),
        ("with a mask", Backend, frame(Client, 0x81, b"x"), Protocol("a frame of a backend with a mask")),
        ("RSV1", Backend, backend(0xc1, b"x"), Protocol("a frame of an extension that was not agreed on")),
        ("RSV2", Backend, backend(0xa1, b"x"), Protocol("a frame of an extension that was not agreed on")),
        ("RSV3", Backend, backend(0x91, b"x"), Protocol("a frame of an extension that was not agreed on")),
        ("opcode 3", Backend, backend(0x83, b"x"), Protocol("a frame with a reserved opcode")),
        ("opcode 11", Backend, backend(0x8b, b"x"), Protocol("a frame with a reserved opcode")),
        ("a ping in fragments", Backend, backend(0x09, b"x"), Protocol("a control frame in fragments")),
        (
            "a long ping",
            Backend,
            backend(0x89, &[0; 126]),
            Protocol("a control frame of more than 125 bytes"),
        ),
        ("a continuation first", Backend, backend(0x80, b"x"), Protocol("a continuation of no message")),
        (
            "a second beginning",
            Backend,
            [backend(0x01, b"x"), backend(0x81, b"x")].concat(),
            Protocol("a message within another one"),
        ),
        ("half a code", Backend, backend(0x88, &[3]), Protocol("a close frame with half a code")),
        ("code 999", Backend, backend(0x88, &[3, 0xe7]), Protocol("a close code that must not be sent")),
        ("code 1004", Backend, backend(0x88, &[3, 0xec]), Protocol("a close code that must not be sent")),
        ("code 1005", Backend, backend(0x88, &[3, 0xed]), Protocol("a close code that must not be sent")),
        ("code 1006", Backend, backend(0x88, &[3, 0xee]), Protocol("a close code that must not be sent")),
        ("code 1015", Backend, backend(0x88, &[3, 0xf7]), Protocol("a close code that must not be sent")),
        ("code 2000", Backend, backend(0x88, &[7, 0xd0]), Protocol("a close code that must not be sent")),
        ("code 5000", Backend, backend(0x88, &[0x13, 0x88]), Protocol("a close code that must not be sent")),
        ("a reason", Backend, backend(0x88, &[3, 0xe8, 0xff]), InvalidUtf8),
        ("text", Backend, backend(0x81, &[b'a', 0xc3]), InvalidUtf8),
        (
            "text in fragments",
            Backend,
            [backend(0x01, &[0xe2, 0x82]), backend(0x80, b"a")].concat(),
            InvalidUtf8,
        ),
        ("1 MiB and 1", Backend, too_long(&[0x81, 127, 0, 0, 0, 0, 0, 0x10, 0, 1]), TooLarge),
        ("2^64 - 1", Backend, too_long(&[0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255]), TooLarge),
        (
            "in fragments",
            Backend,
            [backend(0x01, b"xx"), too_long(&[0x80, 127, 0, 0, 0, 0, 0, 0x0f, 0xff, 0xff])].concat(),
            TooLarge,
        ),
    ];
    for (name, sender, bytes, error) in cases {
        assert_eq!(decode(sender, &bytes), (Vec::new(), Err(error)), "{name}");
    }
}

#[test]
fn a_character_may_be_split_over_fragments() {
    let bytes =
        [frame(FrameSender::Backend, 0x01, &[0xe2, 0x82]), frame(FrameSender::Backend, 0x80, &[0xac])];
    let euro = Message::Text(Bytes::from_static("€".as_bytes()));
    assert_eq!(decode(FrameSender::Backend, &bytes.concat()), (vec![euro], Ok(false)));
}

#[test]
fn an_error_stays() {
    let mut decoder = FrameDecoder::new(FrameSender::Backend, MAX_BYTES);
    decoder.push(&[0x83, 0]);
    assert!(decoder.decode().is_err());
    decoder.push(&frame(FrameSender::Backend, 0x81, b"x"));
    assert!(decoder.decode().is_err());
}
