//! A frame of the spool is read only if it was written, and what is written is read.
#![no_main]

use aoai_lb::record::spool::FrameBuffer;
use aoai_lb::record::spool::frame::{ParsedFrame, parse_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let ParsedFrame::Record(record, frame_bytes) = parse_frame(rest) {
        let mut again = FrameBuffer::default();
        again.push_record(|buffer| buffer.extend_from_slice(record));
        assert_eq!(again.byte_len(), frame_bytes);
        rest = rest.get(frame_bytes..).expect("a frame ends within the bytes");
    }
});
