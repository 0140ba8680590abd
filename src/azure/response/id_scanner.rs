//! Finds the ids of objects in a JSON object of a response while its bytes pass, in bounded memory. Like the outline of
//! long responses it does not validate: in broken JSON it finds what comes before the error.

use memchr::memchr2;

use crate::azure::request::reference_kind::ReferenceKind;

/// Longest content of a string that is kept, with its escapes. No id is longer; of encrypted content, its beginning
/// is the id.
const MAX_CONTENT_BYTES: usize = 1024;
/// Longest key that matters is shorter.
const MAX_KEY_BYTES: usize = 24;
/// Objects and arrays that are read are not nested deeper.
const MAX_DEPTH: usize = 12;

/// What the scanner finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// The id of the outermost object, as the content of its JSON string.
    OwnId(&'a [u8]),
    /// Another id. Without a kind it is one of those that a list contains.
    Id(Option<ReferenceKind>, &'a [u8]),
    /// `store` of a response.
    Store(bool),
    /// `deleted: true` of the outermost object.
    Deleted,
    /// The outermost object has ended.
    End,
}

/// The part of an object that has passed.
#[derive(Debug, Default)]
pub(super) struct IdScanner {
    /// The open objects and arrays that are read; the first one is the outermost object.
    frames: [Frame; MAX_DEPTH],
    depth: usize,
    /// How many objects and arrays are open in a value that is not read.
    skipped_depth: usize,
    string: Option<StringPart>,
    is_escaped: bool,
    /// Whether the next string is a key.
    expects_key: bool,
    key: [u8; MAX_KEY_BYTES],
    key_length: usize,
    content: Vec<u8>,
    has_ended: bool,
}

/// What the string that is passing is.
#[derive(Clone, Copy, Debug)]
enum StringPart {
    Key,
    /// A value that is an id.
    Id(IdPlace),
    Other,
}

#[derive(Clone, Copy, Debug)]
enum IdPlace {
    Own,
    Kind(Option<ReferenceKind>),
}

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    is_object: bool,
    place: Place,
    /// Of an array of strings: where its ids belong.
    strings: Option<IdPlace>,
}

/// Where in a response an object is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// The body, or the data of an event.
    #[default]
    Top,
    /// The response in an event.
    Response,
    /// An item of an output.
    Item,
    /// An object of a list.
    Listed,
    Conversation,
    File,
    /// A part of an item: its content, an annotation, a result.
    Part,
}

impl IdScanner {
    /// Takes the next bytes and reports what is found in them.
    pub(super) fn feed(&mut self, mut bytes: &[u8], on_found: &mut impl FnMut(Found<'_>)) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.has_ended {
                return;
            }
            bytes = match self.string {
                Some(part) => self.feed_string(part, bytes, on_found),
                None if self.skipped_depth > 0 => self.feed_skipped(bytes),
                None => {
                    self.feed_structure(byte, on_found);
                    rest
                }
            };
        }
    }

    fn feed_string<'b>(
        &mut self,
        part: StringPart,
        bytes: &'b [u8],
        on_found: &mut impl FnMut(Found<'_>),
    ) -> &'b [u8] {
        let (taken, has_ended) = match memchr2(b'"', b'\\', bytes) {
            _ if std::mem::take(&mut self.is_escaped) => (1, false),
            None => (bytes.len(), false),
            Some(0) if bytes.first() == Some(&b'"') => (0, true),
            Some(0) => {
                self.is_escaped = true;
                (1, false)
            }
            Some(plain) => (plain, false),
        };
        let (content, rest) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
        match part {
            _ if self.skipped_depth > 0 => {}
            StringPart::Key => {
                for byte in content {
                    if let Some(slot) = self.key.get_mut(self.key_length) {
                        *slot = *byte;
                        self.key_length += 1;
                    }
                }
            }
            StringPart::Id(_) => {
                let room = MAX_CONTENT_BYTES - self.content.len();
                self.content.extend_from_slice(content.get(..room).unwrap_or(content));
            }
            StringPart::Other => {}
        }
        if !has_ended {
            return rest;
        }
        self.string = None;
        match part {
            StringPart::Id(IdPlace::Own) => on_found(Found::OwnId(&self.content)),
            StringPart::Id(IdPlace::Kind(kind)) => on_found(Found::Id(kind, &self.content)),
            StringPart::Key | StringPart::Other => {}
        }
        rest.get(1..).unwrap_or_default()
    }

    /// Takes bytes of a value that is not read, up to the next one that matters.
    fn feed_skipped<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let matters = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']');
        let Some(position) = bytes.iter().position(matters) else { return &[] };
        match bytes.get(position) {
            Some(b'"') => self.string = Some(StringPart::Other),
            Some(b'{' | b'[') => self.skipped_depth += 1,
            _ => self.skipped_depth -= 1,
        }
        bytes.get(position + 1..).unwrap_or_default()
    }

    fn feed_structure(&mut self, byte: u8, on_found: &mut impl FnMut(Found<'_>)) {
        let frame = self.frame();
        match (byte, frame) {
            (b'"', Some(Frame { is_object: true, .. })) if self.expects_key => {
                self.expects_key = false;
                self.key_length = 0;
                self.string = Some(StringPart::Key);
            }
            (b'"', _) => {
                self.content.clear();
                let id = frame.and_then(|frame| match frame.is_object {
                    true => frame.place.id_place(self.current_key()),
                    false => frame.strings,
                });
                self.string = Some(id.map_or(StringPart::Other, StringPart::Id));
            }
            (b'{' | b'[', _) => self.open(byte == b'{', frame),
            (b'}' | b']', Some(_)) => {
                self.depth -= 1;
                self.expects_key = false;
                if self.depth == 0 {
                    self.has_ended = true;
                    on_found(Found::End);
                }
            }
            (b',', Some(frame)) => self.expects_key = frame.is_object,
            // Of the literals, only these two begin with these letters.
            (b't' | b'f', Some(Frame { is_object: true, place, .. })) => match (self.current_key(), place) {
                (b"store", Place::Top | Place::Response) => on_found(Found::Store(byte == b't')),
                (b"deleted", Place::Top) if byte == b't' => on_found(Found::Deleted),
                _ => {}
            },
            _ => {}
        }
    }

    /// The innermost open object or array that is read.
    fn frame(&self) -> Option<Frame> {
        self.depth.checked_sub(1).and_then(|index| self.frames.get(index)).copied()
    }

    fn current_key(&self) -> &[u8] {
        self.key.get(..self.key_length).unwrap_or_default()
    }

    fn open(&mut self, is_object: bool, parent: Option<Frame>) {
        let key = self.current_key();
        let opened = match parent {
            None => is_object.then_some(Frame { is_object, place: Place::Top, strings: None }),
            // The items of an array are where the array is.
            Some(Frame { is_object: false, place, strings: None }) => {
                is_object.then_some(Frame { is_object, place, strings: None })
            }
            Some(Frame { is_object: false, .. }) => None,
            Some(Frame { place, .. }) => match (place.inner(key), place.id_place(key)) {
                (Some(inner), _) => Some(Frame { is_object, place: inner, strings: None }),
                (None, strings @ Some(IdPlace::Kind(_))) if !is_object => {
                    Some(Frame { is_object, place, strings })
                }
                _ => None,
            },
        };
        match (opened, self.frames.get_mut(self.depth)) {
            (Some(opened), Some(frame)) => {
                *frame = opened;
                self.depth += 1;
                self.expects_key = is_object;
            }
            _ if self.depth == 0 => self.has_ended = true,
            _ => self.skipped_depth = 1,
        }
    }
}

impl Place {
    /// Where the object or the array under a key is, if it can have ids.
    fn inner(self, key: &[u8]) -> Option<Self> {
        match (self, key) {
            (Self::Top, b"response") => Some(Self::Response),
            (Self::Top, b"item") | (Self::Top | Self::Response | Self::Listed, b"output") => Some(Self::Item),
            (Self::Top, b"data") => Some(Self::Listed),
            (Self::Top, b"file") => Some(Self::File),
            (Self::Top | Self::Response | Self::Listed, b"conversation") => Some(Self::Conversation),
            (Self::Top, b"annotation") => Some(Self::Part),
            // An item can be the outermost object, too.
            (Self::Top | Self::Item | Self::Listed, b"content" | b"environment" | b"results")
            | (Self::Part, b"annotations" | b"content") => Some(Self::Part),
            _ => None,
        }
    }

    /// What a string under a key names.
    fn id_place(self, key: &[u8]) -> Option<IdPlace> {
        use ReferenceKind::{
            Container, Conversation, EncryptedContent, Eval, File, Item, Response, VectorStore,
        };
        let kind = match (self, key) {
            (Self::Top, b"id") => return Some(IdPlace::Own),
            (Self::Listed, b"id") => return Some(IdPlace::Kind(None)),
            (Self::Response, b"id") => Response,
            (Self::Item, b"id") => Item,
            (Self::Conversation, b"id") => Conversation,
            (Self::File, b"id") => File,
            (Self::Top | Self::Response, b"conversation") => Conversation,
            (_, b"encrypted_content") => EncryptedContent,
            (
                _,
                b"file_id" | b"input_file_id" | b"output_file_id" | b"error_file_id" | b"training_file"
                | b"validation_file" | b"result_files",
            ) => File,
            (_, b"container_id") => Container,
            (_, b"vector_store_id") => VectorStore,
            (_, b"eval_id") => Eval,
            _ => return None,
        };
        Some(IdPlace::Kind(Some(kind)))
    }
}
