//! Recognizes what the engine refuses on an HTTP/2 connection by itself, before a request reaches the phases.
//!
//! h2 and Pingora answer malformed requests with a reset of the stream, a GOAWAY, or a head without any field
//! but its status, and report it nowhere. So the headers of the frames that they write are read.

use super::http2_frames::{END_STREAM, FrameHeader, GOAWAY, HEADERS, RST_STREAM};

/// Whether a frame, with this beginning of its payload, refuses a malformed request or connection.
pub(super) fn is_refusal(frame: FrameHeader, [a, b, c, d, e, f, g, h]: [u8; 8]) -> bool {
    match (frame.frame_type, frame.length) {
        (RST_STREAM, 4) => is_error_of_client([a, b, c, d]),
        (GOAWAY, 8..) => is_error_of_client([e, f, g, h]),
        // RFC 7541, appendix A: `:status: 400`, and `:status` with another value. A response of the balancer
        // has more fields.
        (HEADERS, 1..=8) => frame.flags & END_STREAM != 0 && matches!(a, 0x8c | 0x48 | 0x08 | 0x18),
        _ => false,
    }
}

/// RFC 9113, section 7: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR and
/// ENHANCE_YOUR_CALM.
fn is_error_of_client(code: [u8; 4]) -> bool {
    matches!(u32::from_be_bytes(code), 1 | 3 | 6 | 9 | 11)
}

#[cfg(test)]
mod tests {
    use super::super::http2_frames::{FrameEvent, FrameReader};
    use super::*;

    fn frame(frame_type: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, frame_type, flags, 0, 0, 0, 1][..], payload].concat()
    }

    /// How many frames that end in these bytes are refusals.
    fn count_refusals(frames: &mut FrameReader, bytes: &[u8]) -> u64 {
        let mut refusals = 0;
        frames.feed(bytes, &mut |event| {
            if let FrameEvent::Ends(frame, payload) = event {
                refusals += u64::from(is_refusal(frame, payload));
            }
        });
        refusals
    }

    #[test]
    fn refusals_are_counted_in_any_pieces() {
        let refusals = [
            frame(RST_STREAM, 0, &[0, 0, 0, 1]),
            frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 11, b'x']),
            frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 9]),
            frame(HEADERS, 5, &[0x8c]),
            frame(HEADERS, 5, &[0x48, 0x82, 0x64, 0x02]),
        ];
        let others = [
            frame(0, 1, &[RST_STREAM; 200]),
            frame(4, 0, &[]),
            frame(RST_STREAM, 0, &[0, 0, 0, 8]),
            frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
            frame(HEADERS, 4, &[0x8c]),
            frame(HEADERS, 5, &[0x88]),
            frame(HEADERS, 5, &[0x8c, 0, 0, 0, 0, 0, 0, 0, 0]),
        ];
        let bytes: Vec<u8> = others.iter().chain(&refusals).chain(&others).flatten().copied().collect();
        for size in [1, 2, 7, 9, 11, bytes.len()] {
            let mut frames = FrameReader::default();
            let count: u64 = bytes.chunks(size).map(|piece| count_refusals(&mut frames, piece)).sum();
            assert_eq!(count, refusals.len() as u64, "{size}");
        }
    }
}
