//! The trace that a request belongs to: the ids of traces and spans, and `traceparent`, which hands them on.
//!
//! Which traces are exported is decided in `traces/sampling.rs`.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};

use http::{HeaderMap, HeaderName};

use crate::config::Percentage;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The bits of a trace id that are random in most traces: the rightmost 56 (W3C Trace Context, level 2, section 3.2.2.3).
const RANDOM_BITS: u32 = 56;
/// The flags that are handed on: "sampled", and "the id is random". Others have no meaning yet.
const KNOWN_FLAGS: u8 = SAMPLED_FLAG | 2;
const SAMPLED_FLAG: u8 = 1;

/// The id of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// The id of a span within its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

/// What a `traceparent` says: the trace that continues, and the span that the next one is a child of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span of the sender.
    pub span_id: SpanId,
    flags: u8,
}

impl TraceId {
    /// The id of a trace that begins with the request of this id: the same 128 bits, so that either leads to the other.
    /// Of a UUIDv7 the bits that sampling reads are random.
    pub fn of_request(request_id: &str) -> Self {
        let id = uuid::Uuid::try_parse(request_id).ok().and_then(|id| NonZeroU128::new(id.as_u128()));
        Self(id.unwrap_or_else(|| NonZeroU128::MIN.saturating_add(fastrand::u128(..u128::MAX))))
    }

    /// The id in network byte order.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }

    /// Whether the trace is in this share of all traces. Everybody who decides from the id by the same rule decides
    /// alike, and a larger share contains a smaller one. <https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/>
    pub fn is_in_share(self, share: Percentage) -> bool {
        let randomness = self.0.get() & ((1 << RANDOM_BITS) - 1);
        let threshold = (1 << RANDOM_BITS) * u128::from(100 - share.percent()) / 100;
        randomness >= threshold
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl SpanId {
    /// A random id.
    pub fn random() -> Self {
        Self(NonZeroU64::MIN.saturating_add(fastrand::u64(..u64::MAX)))
    }

    /// The id of the span of the request of this id, a UUIDv7: its last 64 bits, which have 62 random ones.
    pub fn of_request(request_id: &str) -> Self {
        let id = uuid::Uuid::try_parse(request_id).ok().and_then(|id| NonZeroU64::new(id.as_u64_pair().1));
        id.map_or_else(Self::random, Self)
    }

    /// The id in network byte order.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl TraceContext {
    /// A trace that begins here.
    pub fn beginning(trace_id: TraceId, span_id: SpanId, is_sampled: bool) -> Self {
        Self { trace_id, span_id, flags: if is_sampled { SAMPLED_FLAG } else { 0 } }
    }

    /// The same trace, with another span as the sender.
    #[must_use]
    pub fn with_span(self, span_id: SpanId) -> Self {
        Self { span_id, ..self }
    }

    /// Reads the `traceparent` of a request, if it has a valid one (W3C Trace Context, section 3.2): one field
    /// `VERSION-TRACE_ID-PARENT_ID-FLAGS`, after which only a later version than 00 may have more.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut fields = headers.get_all(&TRACEPARENT).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else { return None };
        Self::parse(field.as_bytes())
    }

    /// Parses the value of a `traceparent`.
    pub fn parse(field: &[u8]) -> Option<Self> {
        let (field, more) = field.split_at_checked(55)?;
        let has_dashes = [2, 35, 52].iter().all(|at| field.get(*at) == Some(&b'-'));
        let version = field.get(..2)?;
        let may_have_more = version != b"00" && more.starts_with(b"-");
        let is_valid = has_dashes && (more.is_empty() || may_have_more) && version != b"ff";
        parse_hex(version)?;
        let trace_id = [parse_hex(field.get(3..19)?)?, parse_hex(field.get(19..35)?)?].map(u128::from);
        let context = Self {
            trace_id: TraceId(NonZeroU128::new(trace_id[0] << 64 | trace_id[1])?),
            span_id: SpanId(NonZeroU64::new(parse_hex(field.get(36..52)?)?)?),
            flags: u8::try_from(parse_hex(field.get(53..)?)?).ok()? & KNOWN_FLAGS,
        };
        is_valid.then_some(context)
    }

    /// Whether the sender has decided that the trace is recorded.
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED_FLAG != 0
    }

    /// The flags, those without a meaning being 0.
    pub fn flags(self) -> u8 {
        self.flags
    }
}

impl fmt::Display for TraceContext {
    /// The value of a `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{:016x}-{:02x}", self.trace_id, self.span_id.0, self.flags)
    }
}

/// Reads at most 16 digits in lower case; `None` if there is another character.
fn parse_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn only_a_valid_traceparent_is_read() {
        let zeros = "0".repeat(32);
        for (value, flags) in [
            (format!("00-{TRACE}-{PARENT}-01"), Some(1)),
            (format!("00-{TRACE}-{PARENT}-00"), Some(0)),
            (format!("00-{TRACE}-{PARENT}-03"), Some(3)),
            (format!("00-{TRACE}-{PARENT}-ff"), Some(3)),
            (format!("00-{TRACE}-{PARENT}-fc"), Some(0)),
            (format!("cc-{TRACE}-{PARENT}-01"), Some(1)),
            (format!("cc-{TRACE}-{PARENT}-01-what-comes"), Some(1)),
            (format!("00-{TRACE}-{PARENT}-01-what-comes"), None),
            (format!("ff-{TRACE}-{PARENT}-01"), None),
            (format!("0g-{TRACE}-{PARENT}-01"), None),
            (format!("cc-{TRACE}-{PARENT}-01x"), None),
            (format!("00-{TRACE}-{PARENT}-1"), None),
            (format!("00-{TRACE}-{PARENT}-+1"), None),
            (format!("00-{TRACE}-{PARENT}-0G"), None),
            (format!("00-{TRACE}-{PARENT}"), None),
            (format!("00-{zeros}-{PARENT}-01"), None),
            (format!("00-{TRACE}-{}-01", &zeros[..16]), None),
            (format!("00-{}-{PARENT}-01", TRACE.to_uppercase()), None),
            (format!("00-{TRACE}-{}-01", PARENT.to_uppercase()), None),
            (format!("00-{}-{PARENT}-01", &TRACE[1..]), None),
            (format!("00_{TRACE}_{PARENT}_01"), None),
            (format!(" 00-{TRACE}-{PARENT}-01"), None),
            ("\u{e9}".to_owned(), None),
            (String::new(), None),
        ] {
            let context = TraceContext::parse(value.as_bytes());
            assert_eq!(context.map(TraceContext::flags), flags, "{value}");
            if let Some(context) = context {
                assert_eq!(context.to_string(), format!("00-{TRACE}-{PARENT}-{:02x}", flags.unwrap()));
                assert_eq!(context.is_sampled(), flags.unwrap() & 1 == 1);
            }
        }
    }

    #[test]
    fn two_fields_are_none() {
        let mut headers = HeaderMap::new();
        let value = format!("00-{TRACE}-{PARENT}-01");
        headers.append("traceparent", value.parse().unwrap());
        assert_eq!(TraceContext::read(&headers).unwrap().trace_id.to_string(), TRACE);
        headers.append("traceparent", value.parse().unwrap());
        assert_eq!(TraceContext::read(&headers), None);
    }

    #[test]
    fn a_trace_that_begins_with_a_request_has_its_id() {
        let (id, trace) = ("01932c7b-5d5a-7c41-9a3f-0123456789ab", "01932c7b5d5a7c419a3f0123456789ab");
        assert_eq!(TraceId::of_request(id).to_string(), trace);
        let context = TraceContext::beginning(TraceId::of_request(id), SpanId::of_request(id), false);
        assert_eq!(context.to_string(), format!("00-{trace}-{}-00", &trace[16..]));
        // Never zero, and never the same twice.
        for id in ["00000000-0000-0000-0000-000000000000", "019", ""] {
            assert_ne!(TraceId::of_request(id), TraceId::of_request(id));
            assert_ne!(SpanId::of_request(id), SpanId::of_request(id));
        }
    }

    #[test]
    fn shares_are_decided_by_the_random_bits_and_contain_each_other() {
        let share = |percent| Percentage::new(percent).unwrap();
        let id = |low: u128| TraceId(NonZeroU128::new(0xab << 120 | low).unwrap());
        let half = 1 << 55;
        for (low, percent, expected) in [
            (0, 100, true),
            (0, 99, false),
            ((1 << 56) - 1, 1, true),
            ((1 << 56) - 1, 0, false),
            (half, 50, true),
            (half - 1, 50, false),
        ] {
            assert_eq!(id(low).is_in_share(share(percent)), expected, "{low:x} {percent}");
        }
        let mut generator = fastrand::Rng::with_seed(7);
        let ids: Vec<TraceId> = (0..20_000).map(|_| id(generator.u128(..1 << 100))).collect();
        let count = |percent| ids.iter().filter(|id| id.is_in_share(share(percent))).count();
        for (percent, least, most) in [(0, 0, 0), (5, 850, 1_150), (50, 9_700, 10_300), (100, 20_000, 20_000)]
        {
            assert!((least..=most).contains(&count(percent)), "{percent}: {}", count(percent));
        }
        assert!(ids.iter().all(|id| !id.is_in_share(share(5)) || id.is_in_share(share(6))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let (trace_id, span_id) = (TraceId(NonZeroU128::new(trace).unwrap()), SpanId(NonZeroU64::new(span).unwrap()));
            let context = TraceContext::beginning(trace_id, span_id, sampled);
            let text = context.to_string();
            prop_assert_eq!(text.len(), 55);
            prop_assert_eq!(TraceContext::parse(text.as_bytes()), Some(context));
        }

        #[test]
        fn any_bytes_are_none_or_a_context_with_ids(value in "[0-9a-e]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,4})?|[0-9a-f]{0,4}-?[0-9a-fA-F]{30,33}-?[0-9a-f]{15,17}.{0,8}|.{0,80}") {
            if let Some(context) = TraceContext::parse(value.as_bytes()) {
                let ids = (&value[3..35], &value[36..52]);
                let text = context.to_string();
                prop_assert_eq!((&text[3..35], &text[36..52]), ids);
            }
        }
    }
}
