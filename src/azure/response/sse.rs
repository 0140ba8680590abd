//! Server-sent events (WHATWG HTML, section 9.2.6,
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>): finds the events of a stream and
//! removes a usage event without changing any other byte. Lines end in LF, CRLF or CR, and chunks may be
//! split anywhere.

use bytes::Bytes;
use memchr::{memchr2, memmem};

use super::oversized_event::OversizedEvent;
use super::oversized_ids::OversizedEventIds;
use crate::azure::json;
use crate::azure::json_keys::KeySet;

/// After each event, buffers are shrunk to this capacity, so that an idle stream needs little memory.
const MAX_IDLE_BUFFER_BYTES: usize = 4096;

/// An event of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The offset of its first byte in the stream.
    pub start_offset: u64,
    /// The offset after its last byte. The blank line that ends it is included.
    pub end_offset: u64,
    /// The value of its `event` field; empty if there is none.
    pub name: &'a [u8],
    /// Its `data` lines, joined with LF; empty if there are none.
    pub data: &'a [u8],
    /// Whether it is longer than the scanner's limit. Then `data` is JSON with nothing but the model, status,
    /// error and usage, or empty if it was not an object.
    pub is_oversized: bool,
    /// The ids in the data if it is longer than the limit.
    pub oversized_ids: Option<&'a OversizedEventIds>,
}

impl<'a> SseEvent<'a> {
    /// The event in a message of a WebSocket, whose data is the whole message.
    pub fn from_message(data: &'a [u8]) -> Self {
        Self { start_offset: 0, end_offset: 0, name: &[], data, is_oversized: false, oversized_ids: None }
    }
}

/// Finds the events of a stream that arrives in chunks. Only events that are split over chunks are
/// copied, at most `max_event_bytes` of each.
#[derive(Debug)]
pub struct EventScanner {
    max_event_bytes: usize,
    boundary_finder: EventBoundaryFinder,
    stream_offset: u64,
    event_start_offset: u64,
    partial_event: Vec<u8>,
    /// Set instead of `partial_event` once the event is too long.
    oversized_event: Option<Box<OversizedEvent>>,
    joined_data: Vec<u8>,
}

impl EventScanner {
    /// A scanner that reduces events of more than `max_event_bytes` to what the record needs.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            boundary_finder: EventBoundaryFinder::default(),
            stream_offset: 0,
            event_start_offset: 0,
            partial_event: Vec::new(),
            oversized_event: None,
            joined_data: Vec::new(),
        }
    }

    /// Takes the next chunk and calls `on_event` for each event that ends in it.
    pub fn feed(&mut self, chunk: &[u8], on_event: &mut impl FnMut(SseEvent<'_>)) {
        let mut processed = 0;
        while let Some(event_end) = self.boundary_finder.next_event_end(chunk, processed) {
            let end_offset = self.stream_offset + event_end as u64;
            self.emit_event(chunk.get(processed..event_end).unwrap_or_default(), end_offset, on_event);
            processed = event_end;
        }
        self.stream_offset += chunk.len() as u64;
        let rest = chunk.get(processed..).unwrap_or_default();
        if !self.feed_if_oversized(rest, self.stream_offset) {
            self.partial_event.extend_from_slice(rest);
        }
    }

    /// At the end of the stream, reports what came after the last blank line. A client drops such an
    /// incomplete event, but the record needs it.
    pub fn finish(&mut self, on_event: &mut impl FnMut(SseEvent<'_>)) {
        if self.event_start_offset < self.stream_offset {
            self.emit_event(&[], self.stream_offset, on_event);
        }
        self.boundary_finder = EventBoundaryFinder::default();
    }

    /// If the current event, which reaches at least to `end_offset`, is too long: takes its next bytes.
    fn feed_if_oversized(&mut self, bytes: &[u8], end_offset: u64) -> bool {
        if end_offset - self.event_start_offset <= self.max_event_bytes as u64 {
            return false;
        }
        let is_first = self.event_start_offset == 0;
        let event = self.oversized_event.get_or_insert_with(|| {
            let mut event = Box::new(OversizedEvent::new(is_first));
            event.feed(&std::mem::take(&mut self.partial_event));
            event
        });
        event.feed(bytes);
        true
    }

    fn emit_event(&mut self, last_bytes: &[u8], end_offset: u64, on_event: &mut impl FnMut(SseEvent<'_>)) {
        let start_offset = self.event_start_offset;
        let is_oversized = self.feed_if_oversized(last_bytes, end_offset);
        if let Some(event) = self.oversized_event.take() {
            let (name, data) = event.name_and_data();
            let oversized_ids = Some(event.ids());
            on_event(SseEvent { start_offset, end_offset, name, data: &data, is_oversized, oversized_ids });
        } else {
            let bytes = if self.partial_event.is_empty() {
                last_bytes
            } else {
                self.partial_event.extend_from_slice(last_bytes);
                &self.partial_event
            };
            let bytes =
                if start_offset == 0 { bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes) } else { bytes };
            let (name, data) = parse_event(bytes, &mut self.joined_data);
            let oversized_ids = None;
            on_event(SseEvent { start_offset, end_offset, name, data, is_oversized, oversized_ids });
        }
        self.event_start_offset = end_offset;
        for buffer in [&mut self.partial_event, &mut self.joined_data] {
            buffer.clear();
            buffer.shrink_to(MAX_IDLE_BUFFER_BYTES);
        }
    }
}

/// Removes the usage event from a stream of a client that did not ask for it: the event whose data has
/// empty `choices` and a `usage` object. All other bytes pass unchanged and in order. Only the bytes of
/// an incomplete event are held back, at most `max_event_bytes`.
#[derive(Debug)]
pub struct UsageEventRemover {
    max_event_bytes: usize,
    boundary_finder: EventBoundaryFinder,
    held_chunks: Vec<Bytes>,
    held_bytes: usize,
    /// The current event is too long to be held back, so it passes.
    is_event_too_long: bool,
    /// Searches for [`CHOICES_KEY`]. Building it once is cheaper than for each event.
    choices_finder: memmem::Finder<'static>,
}

impl UsageEventRemover {
    /// A filter that holds back at most `max_event_bytes`. A longer event is never a usage event.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            boundary_finder: EventBoundaryFinder::default(),
            held_chunks: Vec::new(),
            held_bytes: 0,
            is_event_too_long: false,
            choices_finder: memmem::Finder::new(CHOICES_KEY),
        }
    }

    /// Takes the next chunk and passes on everything that cannot be part of a usage event.
    pub fn feed(&mut self, chunk: &Bytes, on_piece: &mut impl FnMut(Bytes)) {
        let (mut processed, mut passing_from) = (0, 0);
        while let Some(event_end) = self.boundary_finder.next_event_end(chunk, processed) {
            if self.completes_usage_event(chunk.get(processed..event_end).unwrap_or_default()) {
                self.held_chunks.clear();
                emit_if_not_empty(chunk.slice(passing_from..processed), on_piece);
                passing_from = event_end;
            }
            self.release_held(on_piece);
            self.is_event_too_long = false;
            processed = event_end;
        }
        emit_if_not_empty(chunk.slice(passing_from..processed), on_piece);
        let rest = chunk.slice(processed..);
        self.held_bytes += rest.len();
        self.held_chunks.push(rest);
        if self.is_event_too_long || self.held_bytes > self.max_event_bytes {
            self.release_held(on_piece);
            self.is_event_too_long = true;
        }
    }

    /// At the end of the stream, passes on what is still held back.
    pub fn finish(&mut self, on_piece: &mut impl FnMut(Bytes)) {
        if self.boundary_finder.is_after_blank_cr_line && self.completes_usage_event(&[]) {
            self.held_chunks.clear();
        }
        self.release_held(on_piece);
    }

    fn release_held(&mut self, on_piece: &mut impl FnMut(Bytes)) {
        self.held_chunks.drain(..).for_each(|piece| emit_if_not_empty(piece, on_piece));
        self.held_bytes = 0;
    }

    /// Whether the held bytes together with `last_bytes` are a usage event.
    fn completes_usage_event(&self, last_bytes: &[u8]) -> bool {
        if self.is_event_too_long || self.held_bytes + last_bytes.len() > self.max_event_bytes {
            return false;
        }
        if self.held_bytes == 0 {
            return is_usage_event(last_bytes, &self.choices_finder);
        }
        let held = self.held_chunks.iter().map(|piece| &piece[..]);
        is_usage_event(&held.chain([last_bytes]).collect::<Vec<_>>().concat(), &self.choices_finder)
    }
}

fn emit_if_not_empty(piece: Bytes, on_piece: &mut impl FnMut(Bytes)) {
    if !piece.is_empty() {
        on_piece(piece);
    }
}

const CHOICES_KEY: &[u8] = b"\"choices\"";

fn is_usage_event(event: &[u8], choices_finder: &memmem::Finder<'_>) -> bool {
    // Nearly no event is a usage event, and these searches rule the others out without parsing.
    let has_empty_choices = choices_finder.find(event).is_some_and(|position| {
        let mut after = event.iter().skip(position + CHOICES_KEY.len()).filter(|b| !b.is_ascii_whitespace());
        (after.next(), after.next(), after.next()) == (Some(&b':'), Some(&b'['), Some(&b']'))
    });
    if !has_empty_choices || memmem::find(event, b"\"usage\"").is_none() {
        return false;
    }
    let mut joined_data = Vec::new();
    let event = event.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(event);
    let (_, data) = parse_event(event, &mut joined_data);
    let Ok(fields) = json::parse_fields(data, &const { KeySet::new(["choices", "usage"]) }) else {
        return false;
    };
    let [choices, usage] = fields.values;
    let is_empty = |raw: &str| raw.strip_prefix('[').is_some_and(|r| r.trim_start().starts_with(']'));
    choices.is_some_and(is_empty) && usage.is_some_and(|raw| raw.starts_with('{'))
}

/// Finds the ends of events. Its state carries over from chunk to chunk.
#[derive(Debug, Default)]
struct EventBoundaryFinder {
    /// The current line is not empty.
    is_in_line: bool,
    /// The previous byte was a CR that ended a line. A following LF belongs to it.
    is_after_cr: bool,
    /// The previous byte was the CR of a blank line. The event ends here, or after an LF that follows.
    is_after_blank_cr_line: bool,
}

impl EventBoundaryFinder {
    /// Where the current event ends in `chunk`. Everything before `from` was processed already. `None` if
    /// it does not end in this chunk.
    fn next_event_end(&mut self, chunk: &[u8], from: usize) -> Option<usize> {
        let mut position = from;
        loop {
            let byte = *chunk.get(position)?;
            if std::mem::take(&mut self.is_after_blank_cr_line) {
                self.is_after_cr = false;
                return Some(if byte == b'\n' { position + 1 } else { position });
            }
            if std::mem::take(&mut self.is_after_cr) && byte == b'\n' {
                position += 1;
                continue;
            }
            if !self.is_in_line {
                match byte {
                    b'\n' => return Some(position + 1),
                    b'\r' => self.is_after_blank_cr_line = true,
                    _ => self.is_in_line = true,
                }
                position += 1;
                continue;
            }
            position += memchr2(b'\n', b'\r', chunk.get(position..)?)?;
            self.is_in_line = false;
            self.is_after_cr = chunk.get(position) == Some(&b'\r');
            position += 1;
        }
    }
}

/// The name and data of an event. Data on one line, which is all that Azure sends, is not copied.
fn parse_event<'a>(event: &'a [u8], joined_data: &'a mut Vec<u8>) -> (&'a [u8], &'a [u8]) {
    let (mut name, mut data): (&[u8], Option<&[u8]>) = (&[], None);
    joined_data.clear();
    let mut is_joined = false;
    let mut rest = event;
    while !rest.is_empty() {
        let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let (line, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        rest = after.get(1..).unwrap_or_default();
        let colon = line.iter().take(6).position(|b| *b == b':').unwrap_or(line.len());
        let (field, value) = line.split_at_checked(colon).unwrap_or((line, &[]));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => name = value,
            b"data" => match data {
                None => data = Some(value),
                Some(first) => {
                    if !is_joined {
                        joined_data.extend_from_slice(first);
                    }
                    is_joined = true;
                    joined_data.push(b'\n');
                    joined_data.extend_from_slice(value);
                }
            },
            _ => {}
        }
    }
    (name, if is_joined { joined_data } else { data.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type ScannedEvent = (u64, u64, String, String, bool);

    fn scan_events(chunks: &[&[u8]], max_event_bytes: usize) -> Vec<ScannedEvent> {
        let mut events = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut on_event = |e: SseEvent<'_>| {
            events.push((e.start_offset, e.end_offset, text(e.name), text(e.data), e.is_oversized));
        };
        let mut scanner = EventScanner::new(max_event_bytes);
        for chunk in chunks {
            scanner.feed(chunk, &mut on_event);
        }
        scanner.finish(&mut on_event);
        events
    }

    fn filter_usage(chunks: &[&[u8]], max_event_bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut filter = UsageEventRemover::new(max_event_bytes);
        for chunk in chunks {
            filter.feed(&Bytes::copy_from_slice(chunk), &mut |piece| out.extend_from_slice(&piece));
        }
        filter.finish(&mut |piece| out.extend_from_slice(&piece));
        out
    }

    fn split_at<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    #[test]
    fn events_are_found_with_any_line_ending() {
        let stream = "\u{feff}event: a\ndata: 1\n\n: comment\r\n\r\ndata:2\rdata: 3\r\rdata\n\nevent:x";
        let events = scan_events(&[stream.as_bytes()], 100);
        let expected =
            [(0, 21, "a", "1"), (21, 34, "", ""), (34, 50, "", "2\n3"), (50, 56, "", ""), (56, 63, "x", "")];
        let expected: Vec<ScannedEvent> =
            expected.map(|(s, e, n, d)| (s, e, n.into(), d.into(), false)).into();
        assert_eq!(events, expected);
    }

    #[test]
    fn oversized_events_are_reduced_and_flagged() {
        let long = "y".repeat(5_000);
        for (event, name, data) in [
            (format!("event: big\ndata: {long}\n\n"), "big", ""),
            (
                format!("\u{feff}event:big\ndata: {{\"model\":\"m\",\"x\":\"{long}\",\"usage\":{{}}}}\n\n"),
                "big",
                r#"{"model":"m","usage":{}}"#,
            ),
            (
                format!(
                    "data: {{\"x\":\"{long}\",\r\ndata\r\ndata:\"model\":\"m\"}}\r\nid: 1\r\nevent: a\r\nevent: b\r\n\r\n"
                ),
                "b",
                r#"{"model":"m"}"#,
            ),
            (format!(": {long}\revent: a\revent\r\r"), "", ""),
            (
                format!("\u{feff}data:{{\"model\":1}}\n: {long}\ndatax: 1\neventual: e\n\n"),
                "",
                r#"{"model":1}"#,
            ),
        ] {
            let stream = format!("{event}data: x\n\n");
            let events = scan_events(&[stream.as_bytes()], 2_000);
            assert_eq!((&*events[0].2, &*events[0].3, events[0].4), (name, data, true));
            assert_eq!((&*events[1].3, events[1].4, events.len()), ("x", false, 2));
            let one_by_one: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            assert_eq!(scan_events(&one_by_one, 2_000), events);
            // Events of the same kind are read alike if they are not too long.
            let whole = scan_events(&[stream.as_bytes()], 20_000);
            assert_eq!((&whole[0].2, whole[0].1, whole[0].4), (&events[0].2, events[0].1, false));
        }
    }

    const USAGE_EVENT: &str = "data: {\"choices\":[],\"id\":\"x\",\"usage\":{\"prompt_tokens\":1}}";

    #[test]
    fn the_usage_event_is_removed_and_nothing_else() {
        let first = "data: {\"choices\":[],\"usage\":null,\"prompt_filter_results\":[]}\n\n";
        let delta = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"choices\\\":[] \\\"usage\\\"\"}}],\"usage\":null}\n\n";
        let done = "data: [DONE]\n\n";
        for end in ["\n\n", "\r\n\r\n", "\r\r"] {
            let stream = format!("{first}{delta}{USAGE_EVENT}{end}{done}");
            assert_eq!(filter_usage(&[stream.as_bytes()], 1_000), format!("{first}{delta}{done}").as_bytes());
            assert_eq!(filter_usage(&[stream.as_bytes()], 20), stream.as_bytes());
        }
        // Complete events are not held back, and a chunk without a usage event is not split.
        let mut pieces = Vec::new();
        let chunk = Bytes::from(format!("{first}{delta}"));
        UsageEventRemover::new(1_000).feed(&chunk, &mut |piece| pieces.push(piece));
        assert_eq!(pieces, [chunk]);
    }

    fn any_stream() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            Just("data: {\"choices\": [ ],\"usage\":{}}".to_owned()),
            Just("data: {\"choices\":[{}],\"usage\":null}".to_owned()),
            Just("data:x".to_owned()),
            Just(": c".to_owned()),
            Just("event: e".to_owned()),
            Just(String::new()),
            Just(String::new()),
        ];
        let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
        proptest::collection::vec((line, end), 0..20)
            .prop_map(|lines| lines.into_iter().map(|(line, end)| line + end).collect())
    }

    proptest! {
        #[test]
        fn chunk_boundaries_change_nothing(stream in any_stream(), cuts in proptest::collection::vec(any::<usize>(), 0..12), max in 0_usize..80) {
            let bytes = stream.as_bytes();
            let pieces = split_at(bytes, &cuts);
            prop_assert_eq!(scan_events(&pieces, max), scan_events(&[bytes], max));
            prop_assert_eq!(filter_usage(&pieces, max), filter_usage(&[bytes], max));
        }

        #[test]
        fn events_cover_the_stream_and_the_filter_removes_whole_events(stream in any_stream(), cuts in proptest::collection::vec(any::<usize>(), 0..12)) {
            let mut expected = Vec::new();
            let mut end = 0;
            let events = scan_events(&[stream.as_bytes()], 1_000);
            let last = events.len();
            for (n, event) in events.iter().enumerate() {
                prop_assert_eq!(event.0, end);
                end = event.1;
                let bytes = &stream.as_bytes()[usize::try_from(event.0).unwrap()..usize::try_from(end).unwrap()];
                let complete = n + 1 < last || bytes.ends_with(b"\n\n") || bytes.ends_with(b"\r\r") || bytes.ends_with(b"\n\r\n") || bytes.ends_with(b"\n\r") || bytes.ends_with(b"\r\r\n");
                if !(complete && event.3 == "{\"choices\": [ ],\"usage\":{}}") {
                    expected.extend_from_slice(bytes);
                }
            }
            prop_assert_eq!(end, stream.len() as u64);
            prop_assert_eq!(filter_usage(&split_at(stream.as_bytes(), &cuts), 1_000), expected);
        }
    }
}
