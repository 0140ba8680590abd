//! An event that is too long to be kept, such as one with a picture: its name, an outline of its data and
//! the ids in it are read while it passes.

use memchr::memchr2;

use super::json_outline::JsonOutline;
use super::oversized_ids::{OversizedEventIds, OversizedEventScanner};

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// Longest field name that is compared, with a byte order mark before it.
const MAX_FIELD_BYTES: usize = 9;
/// Longest event name that is kept.
const MAX_NAME_BYTES: usize = 128;

/// The part of an event that has passed.
#[derive(Debug)]
pub(super) struct OversizedEvent {
    /// Whether the stream begins with this event, so that a byte order mark may come first.
    is_first: bool,
    line: Line,
    /// The name of the current line's field so far.
    field: Vec<u8>,
    name: Vec<u8>,
    has_data: bool,
    outline: JsonOutline,
    ids: OversizedEventScanner,
}

/// Where in a line the event is.
#[derive(Clone, Copy, Debug)]
enum Line {
    InField,
    AfterColon(Field),
    InValue(Field),
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Event,
    Data,
    Other,
}

impl OversizedEvent {
    /// An event of which nothing has passed.
    pub(super) fn new(is_first: bool) -> Self {
        Self {
            is_first,
            line: Line::InField,
            field: Vec::new(),
            name: Vec::new(),
            has_data: false,
            outline: JsonOutline::default(),
            ids: OversizedEventScanner::default(),
        }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = match (self.line, byte) {
                (Line::InField, b':') => {
                    let field = self.begin_value();
                    self.line = Line::AfterColon(field);
                    rest
                }
                // A line without a colon is a field without value.
                (Line::InField, b'\n' | b'\r') => {
                    self.begin_value();
                    rest
                }
                (Line::InField, _) => {
                    if self.field.len() < MAX_FIELD_BYTES {
                        self.field.push(byte);
                    }
                    rest
                }
                (Line::AfterColon(field), _) => {
                    self.line = Line::InValue(field);
                    if byte == b' ' { rest } else { bytes }
                }
                (Line::InValue(field), _) => {
                    let end = memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len());
                    let (value, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
                    self.push_to_value(field, value);
                    if !rest.is_empty() {
                        self.line = Line::InField;
                    }
                    rest.get(1..).unwrap_or_default()
                }
            };
        }
    }

    /// The value of its `event` field, and the outline of its data.
    pub(super) fn name_and_data(&self) -> (&[u8], Vec<u8>) {
        (&self.name, self.outline.to_json())
    }

    /// The ids in its data.
    pub(super) fn ids(&self) -> &OversizedEventIds {
        self.ids.ids()
    }

    /// Ends the name of a field.
    fn begin_value(&mut self) -> Field {
        let field = if self.is_first {
            self.field.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.field)
        } else {
            &self.field
        };
        let field = match field {
            b"event" => Field::Event,
            b"data" => Field::Data,
            _ => Field::Other,
        };
        self.field.clear();
        self.is_first = false;
        match field {
            // The last one counts.
            Field::Event => self.name.clear(),
            // The lines of data are joined with LF.
            Field::Data if std::mem::replace(&mut self.has_data, true) => {
                self.outline.feed(b"\n");
                self.ids.feed(b"\n");
            }
            _ => {}
        }
        field
    }

    fn push_to_value(&mut self, field: Field, value: &[u8]) {
        match field {
            Field::Event => {
                let room = MAX_NAME_BYTES - self.name.len();
                self.name.extend_from_slice(value.get(..room).unwrap_or(value));
            }
            Field::Data => {
                self.outline.feed(value);
                self.ids.feed(value);
            }
            Field::Other => {}
        }
    }
}
