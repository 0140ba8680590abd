//! Event streams (WHATWG HTML, section 9.2.6) as they pass: where each event begins and ends,
//! what its data is, and how to take one event out again without touching another byte.
//! Lines end in LF, CRLF or CR, and chunks may be split anywhere; neither changes a result.

use bytes::Bytes;
use memchr::{memchr2, memmem};

use crate::azure::json;

/// How much of an oversized event is still looked at.
const HEAD: usize = 1024;
/// Buffers above this are given back after use, so that an idle stream stays small.
const KEPT_CAPACITY: usize = 4096;

/// One event of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Offset of its first byte within the stream.
    pub start: u64,
    /// Offset after its last byte: the blank line that ends it is included.
    pub end: u64,
    /// The value of its `event` field; empty without one.
    pub name: &'a [u8],
    /// Its data lines joined with LF; empty without one.
    pub data: &'a [u8],
    /// Whether it is longer than the limit; then `data` is only the beginning.
    pub oversized: bool,
}

/// Finds the events of a stream that is fed chunk by chunk. Bytes are copied only for events
/// that are split over chunks, and never more than `max_event` of them.
#[derive(Debug)]
pub struct Scanner {
    max_event: usize,
    lines: Lines,
    offset: u64,
    start: u64,
    carry: Vec<u8>,
    joined: Vec<u8>,
}

impl Scanner {
    /// A scanner that gives the data of events of up to `max_event` bytes.
    pub fn new(max_event: usize) -> Self {
        Self {
            max_event,
            lines: Lines::default(),
            offset: 0,
            start: 0,
            carry: Vec::new(),
            joined: Vec::new(),
        }
    }

    /// Feeds the next bytes and reports the events that end in them.
    pub fn feed(&mut self, chunk: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        let mut from = 0;
        while let Some(end) = self.lines.next_end(chunk, from) {
            let at = self.offset + end as u64;
            self.report(chunk.get(from..end).unwrap_or_default(), at, on_event);
            from = end;
        }
        self.offset += chunk.len() as u64;
        let rest = chunk.get(from..).unwrap_or_default();
        let keep = self.kept(self.offset);
        append_up_to(&mut self.carry, rest, keep);
    }

    /// Reports what came after the last blank line, when the stream has ended. A client would
    /// drop such an event; a record still wants to know.
    pub fn finish(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        if self.start < self.offset {
            self.report(&[], self.offset, on_event);
        }
        self.lines = Lines::default();
    }

    /// How many bytes of an event that reaches up to `end` are looked at.
    fn kept(&self, end: u64) -> usize {
        let fits = usize::try_from(end - self.start).is_ok_and(|length| length <= self.max_event);
        if fits { self.max_event } else { HEAD.min(self.max_event) }
    }

    fn report(&mut self, last: &[u8], end: u64, on_event: &mut impl FnMut(Event<'_>)) {
        let keep = self.kept(end);
        let bytes = if self.carry.is_empty() {
            last.get(..keep).unwrap_or(last)
        } else {
            append_up_to(&mut self.carry, last, keep);
            &self.carry
        };
        let bytes =
            if self.start == 0 { bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes) } else { bytes };
        let (name, data) = read_event(bytes, &mut self.joined);
        let oversized = end - self.start > self.max_event as u64;
        on_event(Event { start: self.start, end, name, data, oversized });
        self.start = end;
        for buffer in [&mut self.carry, &mut self.joined] {
            buffer.clear();
            buffer.shrink_to(KEPT_CAPACITY);
        }
    }
}

fn append_up_to(buffer: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    buffer.truncate(limit);
    let room = limit - buffer.len();
    buffer.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
}

/// Takes the usage event out of a stream in which we asked for it: the one whose data has
/// empty `choices` and a `usage`. Everything else goes on byte for byte, in order; only the
/// bytes of an event that is still incomplete wait, at most `max_event` of them.
#[derive(Debug)]
pub struct UsageFilter {
    max_event: usize,
    lines: Lines,
    held: Vec<Bytes>,
    held_bytes: usize,
    /// The event in progress was too long to be held: it passes.
    released: bool,
    /// Finds what every chunk has.
    choices: memmem::Finder<'static>,
}

impl UsageFilter {
    /// A filter that holds at most `max_event` bytes; a longer event is no usage event.
    pub fn new(max_event: usize) -> Self {
        Self {
            max_event,
            lines: Lines::default(),
            held: Vec::new(),
            held_bytes: 0,
            released: false,
            choices: memmem::Finder::new(CHOICES),
        }
    }

    /// Takes the next chunk and hands on what may go.
    pub fn feed(&mut self, chunk: &Bytes, out: &mut impl FnMut(Bytes)) {
        let (mut from, mut passing) = (0, 0);
        while let Some(end) = self.lines.next_end(chunk, from) {
            if self.is_usage(chunk.get(from..end).unwrap_or_default()) {
                self.held.clear();
                send(chunk.slice(passing..from), out);
                passing = end;
            }
            self.release(out);
            self.released = false;
            from = end;
        }
        send(chunk.slice(passing..from), out);
        let rest = chunk.slice(from..);
        self.held_bytes += rest.len();
        self.held.push(rest);
        if self.released || self.held_bytes > self.max_event {
            self.release(out);
            self.released = true;
        }
    }

    /// Hands on what is still held, when the stream has ended.
    pub fn finish(&mut self, out: &mut impl FnMut(Bytes)) {
        if self.lines.ended && self.is_usage(&[]) {
            self.held.clear();
        }
        self.release(out);
    }

    fn release(&mut self, out: &mut impl FnMut(Bytes)) {
        self.held.drain(..).for_each(|piece| send(piece, out));
        self.held_bytes = 0;
    }

    /// Whether what is held, and `last`, are a usage event.
    fn is_usage(&self, last: &[u8]) -> bool {
        if self.released || self.held_bytes + last.len() > self.max_event {
            return false;
        }
        if self.held_bytes == 0 {
            return is_usage_event(last, &self.choices);
        }
        let held = self.held.iter().map(|piece| &piece[..]);
        is_usage_event(&held.chain([last]).collect::<Vec<_>>().concat(), &self.choices)
    }
}

fn send(piece: Bytes, out: &mut impl FnMut(Bytes)) {
    if !piece.is_empty() {
        out(piece);
    }
}

const CHOICES: &[u8] = b"\"choices\"";

fn is_usage_event(event: &[u8], choices: &memmem::Finder<'_>) -> bool {
    // Nearly every event is none, which the first searches tell without parsing anything.
    let has_choices = choices.find(event).is_some_and(|at| {
        let mut after = event.iter().skip(at + CHOICES.len()).filter(|b| !b.is_ascii_whitespace());
        (after.next(), after.next(), after.next()) == (Some(&b':'), Some(&b'['), Some(&b']'))
    });
    if !has_choices || memmem::find(event, b"\"usage\"").is_none() {
        return false;
    }
    let mut joined = Vec::new();
    let event = event.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(event);
    let (_, data) = read_event(event, &mut joined);
    let Ok(fields) = json::probe(data, &["choices", "usage"]) else { return false };
    let [choices, usage] = fields.values;
    let is_empty = |raw: &str| raw.strip_prefix('[').is_some_and(|r| r.trim_start().starts_with(']'));
    choices.is_some_and(is_empty) && usage.is_some_and(|raw| raw.starts_with('{'))
}

/// Where lines end, kept from chunk to chunk.
#[derive(Debug, Default)]
struct Lines {
    /// The line in progress has bytes.
    inside: bool,
    /// The byte before was a CR that ended a line.
    after_cr: bool,
    /// A blank line ended in CR: the event ends here, or after the LF that may follow.
    ended: bool,
}

impl Lines {
    /// Where in `chunk`, of which everything before `from` was seen, the current event ends.
    fn next_end(&mut self, chunk: &[u8], from: usize) -> Option<usize> {
        let mut at = from;
        loop {
            let byte = *chunk.get(at)?;
            if std::mem::take(&mut self.ended) {
                self.after_cr = false;
                return Some(if byte == b'\n' { at + 1 } else { at });
            }
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                at += 1;
                continue;
            }
            if !self.inside {
                match byte {
                    b'\n' => return Some(at + 1),
                    b'\r' => self.ended = true,
                    _ => self.inside = true,
                }
                at += 1;
                continue;
            }
            at += memchr2(b'\n', b'\r', chunk.get(at..)?)?;
            self.inside = false;
            self.after_cr = chunk.get(at) == Some(&b'\r');
            at += 1;
        }
    }
}

/// Name and data of an event. Data of one line, which is all there ever is, is not copied.
fn read_event<'a>(event: &'a [u8], joined: &'a mut Vec<u8>) -> (&'a [u8], &'a [u8]) {
    let (mut name, mut data): (&[u8], Option<&[u8]>) = (&[], None);
    joined.clear();
    let mut many = false;
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
                    if !many {
                        joined.extend_from_slice(first);
                    }
                    many = true;
                    joined.push(b'\n');
                    joined.extend_from_slice(value);
                }
            },
            _ => {}
        }
    }
    (name, if many { joined } else { data.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Seen = (u64, u64, String, String, bool);

    fn scan(chunks: &[&[u8]], max_event: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut on_event =
            |e: Event<'_>| seen.push((e.start, e.end, text(e.name), text(e.data), e.oversized));
        let mut scanner = Scanner::new(max_event);
        for chunk in chunks {
            scanner.feed(chunk, &mut on_event);
        }
        scanner.finish(&mut on_event);
        seen
    }

    fn filter(chunks: &[&[u8]], max_event: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut filter = UsageFilter::new(max_event);
        for chunk in chunks {
            filter.feed(&Bytes::copy_from_slice(chunk), &mut |piece| out.extend_from_slice(&piece));
        }
        filter.finish(&mut |piece| out.extend_from_slice(&piece));
        out
    }

    fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    #[test]
    fn events_are_found() {
        let stream = "\u{feff}event: a\ndata: 1\n\n: comment\r\n\r\ndata:2\rdata: 3\r\rdata\n\nevent:x";
        let seen = scan(&[stream.as_bytes()], 100);
        let expected =
            [(0, 21, "a", "1"), (21, 34, "", ""), (34, 50, "", "2\n3"), (50, 56, "", ""), (56, 63, "x", "")];
        let expected: Vec<Seen> = expected.map(|(s, e, n, d)| (s, e, n.into(), d.into(), false)).into();
        assert_eq!(seen, expected);
    }

    #[test]
    fn long_events_are_passed_over() {
        let stream = format!("event: big\ndata: {}\n\ndata: x\n\n", "y".repeat(5_000));
        let seen = scan(&[stream.as_bytes()], 2_000);
        assert_eq!((seen[0].2.as_str(), seen[0].3.len(), seen[0].4), ("big", HEAD - 17, true));
        assert_eq!((seen[1].3.as_str(), seen[1].4), ("x", false));
        let one_by_one: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(scan(&one_by_one, 2_000), seen);
    }

    const USAGE: &str = "data: {\"choices\":[],\"id\":\"x\",\"usage\":{\"prompt_tokens\":1}}";

    #[test]
    fn the_usage_event_is_taken_out() {
        let first = "data: {\"choices\":[],\"usage\":null,\"prompt_filter_results\":[]}\n\n";
        let delta = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"choices\\\":[] \\\"usage\\\"\"}}],\"usage\":null}\n\n";
        let done = "data: [DONE]\n\n";
        for end in ["\n\n", "\r\n\r\n", "\r\r"] {
            let stream = format!("{first}{delta}{USAGE}{end}{done}");
            assert_eq!(filter(&[stream.as_bytes()], 1_000), format!("{first}{delta}{done}").as_bytes());
            assert_eq!(filter(&[stream.as_bytes()], 20), stream.as_bytes());
        }
        // Nothing waits that is complete, and a chunk that passes is not cut up.
        let mut pieces = Vec::new();
        let chunk = Bytes::from(format!("{first}{delta}"));
        UsageFilter::new(1_000).feed(&chunk, &mut |piece| pieces.push(piece));
        assert_eq!(pieces, [chunk]);
    }

    fn stream() -> impl Strategy<Value = String> {
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
        fn splitting_changes_nothing(stream in stream(), cuts in proptest::collection::vec(any::<usize>(), 0..12), max in 0_usize..80) {
            let bytes = stream.as_bytes();
            let pieces = split(bytes, &cuts);
            prop_assert_eq!(scan(&pieces, max), scan(&[bytes], max));
            prop_assert_eq!(filter(&pieces, max), filter(&[bytes], max));
        }

        #[test]
        fn events_cover_the_stream_and_the_filter_removes_whole_ones(stream in stream(), cuts in proptest::collection::vec(any::<usize>(), 0..12)) {
            let mut expected = Vec::new();
            let mut end = 0;
            let events = scan(&[stream.as_bytes()], 1_000);
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
            prop_assert_eq!(filter(&split(stream.as_bytes(), &cuts), 1_000), expected);
        }
    }
}
