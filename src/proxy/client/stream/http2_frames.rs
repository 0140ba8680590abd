//! Follows the frames of HTTP/2 as their bytes pass (RFC 9113, section 4.1), without buffering them.

/// Length (3 bytes), type, flags, stream (4 bytes).
const HEADER_BYTES: usize = 9;
/// So much of a payload is kept.
const MAX_KEPT_PAYLOAD_BYTES: usize = 8;

/// Types of frames (RFC 9113, section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;
/// Their flags.
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// The frame whose bytes are passing, as far as they have passed.
#[derive(Debug, Default)]
pub(super) struct FrameReader {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    payload: [u8; MAX_KEPT_PAYLOAD_BYTES],
    payload_bytes: usize,
}

/// What has passed of a frame.
pub(super) enum FrameEvent {
    /// Its header.
    Begins(FrameHeader),
    /// All of it; with the beginning of its payload.
    Ends(FrameHeader, [u8; MAX_KEPT_PAYLOAD_BYTES]),
}

/// What the header of a frame says.
#[derive(Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) frame_type: u8,
    pub(super) flags: u8,
    /// The length of the payload.
    pub(super) length: usize,
    /// The stream, 0 for the connection.
    pub(super) stream_id: u32,
}

impl FrameReader {
    /// Takes the next bytes. What is not HTTP/2 is read as if it were.
    pub(super) fn feed(&mut self, mut bytes: &[u8], on_event: &mut impl FnMut(FrameEvent)) {
        while !bytes.is_empty() {
            if self.header_bytes < HEADER_BYTES {
                bytes = take(bytes, &mut self.header, &mut self.header_bytes, HEADER_BYTES);
                if self.header_bytes < HEADER_BYTES {
                    return;
                }
                on_event(FrameEvent::Begins(self.frame_header()));
            }
            let frame = self.frame_header();
            bytes = take(bytes, &mut self.payload, &mut self.payload_bytes, frame.length);
            if self.payload_bytes == frame.length {
                on_event(FrameEvent::Ends(frame, self.payload));
                *self = Self::default();
            }
        }
    }

    fn frame_header(&self) -> FrameHeader {
        let [high, middle, low, frame_type, flags, stream @ ..] = self.header;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        // The highest bit is reserved.
        let stream_id = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        FrameHeader { frame_type, flags, length, stream_id }
    }
}

/// Moves bytes to `target`, as many as fit, until `count` of them have passed; returns the rest.
fn take<'b>(bytes: &'b [u8], target: &mut [u8], passed: &mut usize, count: usize) -> &'b [u8] {
    let (part, rest) = bytes.split_at(bytes.len().min(count.saturating_sub(*passed)));
    for (target, byte) in target.iter_mut().skip(*passed).zip(part) {
        *target = *byte;
    }
    *passed += part.len();
    rest
}
