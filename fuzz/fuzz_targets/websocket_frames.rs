//! Frames are decoded the same however their bytes arrive, and messages that are encoded again are decoded again.
#![no_main]

use aoai_lb::proxy::websocket::frames::decoder::{Decoded, FrameDecoder, FrameError};
use aoai_lb::proxy::websocket::frames::encoder::{FrameKind, close_payload, push_frame};
use aoai_lb::proxy::websocket::frames::{FrameSender, Message};
use libfuzzer_sys::fuzz_target;

const MAX_MESSAGE_BYTES: usize = 1 << 20;

fn decode(sender: FrameSender, bytes: &[u8], step: usize) -> (Vec<Message>, Option<FrameError>) {
    let mut decoder = FrameDecoder::new(sender, MAX_MESSAGE_BYTES);
    let (mut messages, mut chunks) = (Vec::new(), bytes.chunks(step));
    loop {
        match decoder.decode() {
            Ok(Decoded::Message(message)) => messages.push(message),
            Ok(Decoded::NeedsMemory(bytes)) => {
                assert!(bytes <= MAX_MESSAGE_BYTES);
                decoder.allow_memory(bytes);
            }
            Ok(Decoded::NeedsBytes) => match chunks.next() {
                Some(chunk) => decoder.push(chunk),
                None => return (messages, None),
            },
            Err(error) => return (messages, Some(error)),
        }
    }
}

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (is_client, step, bytes) = input;
    let sender = if is_client { FrameSender::Client } else { FrameSender::Backend };
    let unsplit = decode(sender, bytes, bytes.len().max(1));
    assert_eq!(decode(sender, bytes, usize::from(step).max(1)), unsplit);
    let mut again = Vec::new();
    for message in &unsplit.0 {
        let (kind, payload) = match message {
            Message::Text(text) => (FrameKind::Text, text.to_vec()),
            Message::Binary(binary) => (FrameKind::Binary, binary.to_vec()),
            Message::Ping(payload) => (FrameKind::Ping, payload.to_vec()),
            Message::Pong => (FrameKind::Pong, Vec::new()),
            Message::Close(Some((code, reason))) => (FrameKind::Close, close_payload(*code, reason)),
            Message::Close(None) => (FrameKind::Close, Vec::new()),
        };
        push_frame(&mut again, sender, kind, &payload);
    }
    assert_eq!(decode(sender, &again, again.len().max(1)), (unsplit.0, None));
});
