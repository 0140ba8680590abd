//! The events that the server sends in a realtime session: which they are is read from the beginning of each
//! message, and only those are kept that tell of the session, its items and its responses.

use super::json_outline::JsonOutline;
use super::usage::TokenUsage;
use crate::azure::binary_data::replace_binary_data;
use crate::azure::json;
use crate::azure::json_text::text_from_bytes;

/// The part of a message in which its `type` is looked for first.
const MAX_TYPE_BYTES: usize = 512;
/// The longest message that is kept. A longer one is outlined.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RealtimeEventKind {
    /// The session began or was changed.
    Session,
    /// The user's audio became an item.
    AudioCommitted,
    /// An item of the conversation.
    Item,
    /// The transcript of the user's audio.
    Transcription,
    /// A response began.
    ResponseCreated,
    /// A part of a response.
    ResponseContent,
    /// A response has ended.
    ResponseDone,
}

/// An event of the server.
#[derive(Debug, PartialEq, Eq)]
pub struct RealtimeEvent<'e> {
    /// What it tells.
    pub kind: RealtimeEventKind,
    /// Its JSON: of a part of a response only the beginning, of an event that was too long an outline.
    pub data: &'e str,
    /// Whether `data` is an outline.
    pub is_outline: bool,
}

/// Reads events from messages that pass in parts.
#[derive(Debug)]
pub struct RealtimeEventReader {
    reads_items: bool,
    state: State,
    /// What is kept of the message, without an allocation between messages.
    kept: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// The type is not known yet. If it is not at the beginning, the whole message is kept.
    Unknown,
    /// All of it is kept.
    Kept(RealtimeEventKind),
    /// It is too long to be kept.
    Outlined(Box<JsonOutline>),
    /// It tells nothing.
    Skipped,
}

impl RealtimeEventReader {
    /// A reader. `reads_items` says whether the items of the conversation are wanted.
    pub fn new(reads_items: bool) -> Self {
        Self { reads_items, state: State::Unknown, kept: Vec::new() }
    }

    /// Takes the next bytes of the current message.
    pub fn push(&mut self, bytes: &[u8], on_event: &mut impl FnMut(RealtimeEvent<'_>)) {
        match &mut self.state {
            State::Skipped => return,
            State::Outlined(outline) => return outline.feed(bytes),
            // A message that begins with these bytes, most often the whole of it.
            State::Unknown if self.kept.is_empty() && bytes.len() >= MAX_TYPE_BYTES => {
                self.find_type(bytes, on_event);
                if matches!(self.state, State::Skipped) {
                    return;
                }
            }
            State::Unknown | State::Kept(_) => {}
        }
        if self.kept.len() + bytes.len() > MAX_MESSAGE_BYTES {
            let mut outline = Box::<JsonOutline>::default();
            outline.feed(&std::mem::take(&mut self.kept));
            outline.feed(bytes);
            self.state = State::Outlined(outline);
            return;
        }
        let was_short = self.kept.len() < MAX_TYPE_BYTES;
        self.kept.extend_from_slice(bytes);
        if matches!(self.state, State::Unknown) && was_short && self.kept.len() >= MAX_TYPE_BYTES {
            let kept = std::mem::take(&mut self.kept);
            self.find_type(&kept, on_event);
            if !matches!(self.state, State::Skipped) {
                self.kept = kept;
            }
        }
    }

    /// Ends the current message.
    pub fn end(&mut self, on_event: &mut impl FnMut(RealtimeEvent<'_>)) {
        let kept = std::mem::take(&mut self.kept);
        match std::mem::replace(&mut self.state, State::Unknown) {
            State::Skipped => {}
            State::Outlined(outline) => {
                let outline = outline.to_json();
                self.tell_whole(None, &outline, true, on_event);
            }
            State::Kept(kind) => self.tell_whole(Some(kind), &kept, false, on_event),
            State::Unknown => self.tell_whole(None, &kept, false, on_event),
        }
    }

    /// Looks for the type at the beginning of a message, and decides what becomes of it.
    fn find_type(&mut self, bytes: &[u8], on_event: &mut impl FnMut(RealtimeEvent<'_>)) {
        let beginning = text_from_bytes(bytes.get(..MAX_TYPE_BYTES).unwrap_or(bytes));
        let [event_type] = json::find_fields(&beginning, &["type"]);
        // Without its closing quote it may go on.
        let Some(event_type) = event_type.and_then(json::string_content) else { return };
        self.state = match self.kind_of(event_type) {
            None => State::Skipped,
            Some(kind @ RealtimeEventKind::ResponseContent) => {
                on_event(RealtimeEvent { kind, data: &beginning, is_outline: false });
                State::Skipped
            }
            Some(kind) => State::Kept(kind),
        };
    }

    fn tell_whole(
        &self,
        kind: Option<RealtimeEventKind>,
        bytes: &[u8],
        is_outline: bool,
        on_event: &mut impl FnMut(RealtimeEvent<'_>),
    ) {
        let data = text_from_bytes(bytes);
        let kind = kind.or_else(|| {
            let [event_type] = json::find_fields(&data, &["type"]);
            self.kind_of(event_type.and_then(json::string_content)?)
        });
        if let Some(kind) = kind {
            on_event(RealtimeEvent { kind, data: &data, is_outline });
        }
    }

    fn kind_of(&self, event_type: &str) -> Option<RealtimeEventKind> {
        use RealtimeEventKind::{
            AudioCommitted, Item, ResponseContent, ResponseCreated, ResponseDone, Session, Transcription,
        };
        match event_type {
            "response.created" => Some(ResponseCreated),
            "response.done" => Some(ResponseDone),
            "response.output_item.added" | "response.output_item.done" | "response.content_part.added" => {
                None
            }
            "session.created" | "session.updated" | "transcription_session.updated" => Some(Session),
            "input_audio_buffer.committed" => Some(AudioCommitted),
            "conversation.item.created" | "conversation.item.added" => self.reads_items.then_some(Item),
            "conversation.item.input_audio_transcription.completed" => Some(Transcription),
            _ => event_type.starts_with("response.").then_some(ResponseContent),
        }
    }
}

/// The transcript of the user's audio.
#[derive(Debug, PartialEq, Eq)]
pub struct Transcription<'e> {
    /// The JSON of the item's id.
    pub item_id: Option<&'e str>,
    /// Which part of the item it is of.
    pub content_index: Option<&'e str>,
    /// The text.
    pub transcript: String,
    /// Whether it was metered apart.
    pub has_usage: bool,
    /// Its tokens, if it was metered by them.
    pub usage: Option<TokenUsage>,
}

impl<'e> RealtimeEvent<'e> {
    /// The JSON of the id of the response that it is about.
    pub fn response_id(&self) -> Option<&'e str> {
        let [id, response] = json::find_fields(self.data, &["response_id", "response"]);
        id.or_else(|| json::find_fields(response?, &["id"])[0])
            .filter(|id| json::string_content(id).is_some())
    }

    /// The JSON of the id of the item that it is about.
    pub fn item_id(&self) -> Option<&'e str> {
        json::find_fields(self.data, &["item_id"])[0]
    }

    /// The model of the session, and that of its transcripts.
    pub fn session_models(&self) -> [Option<String>; 2] {
        let [session] = json::find_fields(self.data, &["session"]);
        let session = session.unwrap_or_default();
        let [model, audio, transcription] =
            json::find_fields(session, &["model", "audio", "input_audio_transcription"]);
        let within =
            |object: Option<&'e str>, key| object.and_then(|object| json::find_fields(object, &[key])[0]);
        let transcription = within(within(audio, "input"), "transcription").or(transcription);
        [model, within(transcription, "model")]
            .map(|raw| json::decode_non_empty_string(raw).map(|model| model.into_owned()))
    }

    /// The item, if it is one that the client brought: as JSON, with digests in place of pictures and audio.
    pub fn client_item(&self) -> Option<String> {
        let item = json::find_fields(self.data, &["item"])[0]?;
        let [item_type, role] = json::find_fields(item, &["type", "role"]);
        let is_of_client = matches!(role, Some("\"user\"" | "\"system\""))
            || matches!(item_type, Some("\"function_call_output\"" | "\"mcp_approval_response\""));
        is_of_client.then(|| replace_binary_data(item))
    }

    /// What it tells, if it is a transcript.
    pub fn transcription(&self) -> Transcription<'e> {
        let [item_id, content_index, transcript, usage] =
            json::find_fields(self.data, &["item_id", "content_index", "transcript", "usage"]);
        let usage = usage.filter(|usage| usage.starts_with('{'));
        Transcription {
            item_id,
            content_index,
            transcript: json::decode_non_empty_string(transcript).unwrap_or_default().into_owned(),
            has_usage: usage.is_some(),
            usage: usage.and_then(TokenUsage::from_usage_object),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    type Told = (RealtimeEventKind, String, bool);

    /// What messages tell that come in these parts.
    fn read<'m>(messages: impl IntoIterator<Item = Vec<&'m [u8]>>) -> Vec<Told> {
        let (mut reader, mut told) = (RealtimeEventReader::new(true), Vec::new());
        let mut on_event =
            |event: RealtimeEvent<'_>| told.push((event.kind, event.data.to_owned(), event.is_outline));
        for parts in messages {
            for part in parts {
                reader.push(part, &mut on_event);
            }
            reader.end(&mut on_event);
            assert_eq!(reader.kept.capacity(), 0, "nothing is held between messages");
        }
        told
    }

    fn read_one(message: &str) -> Vec<Told> {
        read([vec![message.as_bytes()]])
    }

    fn split<'m>(message: &'m [u8], cuts: &[Index]) -> Vec<&'m [u8]> {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(message.len() + 1)).collect();
        ends.push(message.len());
        ends.sort_unstable();
        let mut start = 0;
        ends.into_iter().map(|end| &message[std::mem::replace(&mut start, end)..end]).collect()
    }

    fn any_message() -> impl Strategy<Value = Vec<u8>> {
        let event_type = proptest::sample::select(vec![
            "session.created",
            "conversation.item.added",
            "response.created",
            "response.done",
            "response.output_audio.delta",
            "response.output_item.done",
            "rate_limits.updated",
            "input_audio_buffer.committed",
        ]);
        let filler =
            prop_oneof![4 => 0_usize..600, 1 => (MAX_MESSAGE_BYTES - 100)..(MAX_MESSAGE_BYTES + 100)];
        let event = (event_type, filler, any::<bool>()).prop_map(|(event_type, filler, is_first)| {
            let (filler, response) =
                ("é".repeat(filler / 2), r#""response":{"id":"r","status":"completed"}"#);
            match is_first {
                true => format!(r#"{{"type":"{event_type}","delta":"{filler}",{response}}}"#),
                false => format!(r#"{{{response},"delta":"{filler}","type":"{event_type}"}}"#),
            }
        });
        prop_oneof![4 => event.prop_map(String::into_bytes), 1 => proptest::collection::vec(any::<u8>(), 0..600)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parts_of_messages_tell_what_the_whole_tells(
            messages in proptest::collection::vec((any_message(), proptest::collection::vec(any::<Index>(), 0..6)), 0..4),
        ) {
            let whole = read(messages.iter().map(|(message, _)| vec![&message[..]]));
            let parts = read(messages.iter().map(|(message, cuts)| split(message, cuts)));
            prop_assert!(parts == whole);
        }
    }

    #[test]
    fn the_type_is_found_wherever_it_is() {
        use RealtimeEventKind::{
            AudioCommitted, Item, ResponseContent, ResponseCreated, ResponseDone, Session,
        };
        let long = "x".repeat(2_000);
        for (message, kind) in [
            (
                r#"{"event_id":"e","type":"response.created","response":{"id":"r"}}"#.to_owned(),
                ResponseCreated,
            ),
            (
                format!(r#"{{"response":{{"type":"session.created","x":"{long}"}},"type":"response.done"}}"#),
                ResponseDone,
            ),
            (format!(r#"{{ "type" : "conversation.item.created", "item": {{"x":"{long}"}}}}"#), Item),
            (r#"{"type":"input_audio_buffer.committed","item_id":"i"}"#.to_owned(), AudioCommitted),
            (r#"{"type":"session.updated","session":{}}"#.to_owned(), Session),
            (r#"{"type":"response.text.delta","delta":"a"}"#.to_owned(), ResponseContent),
        ] {
            assert_eq!(read_one(&message), [(kind, message.clone(), false)]);
        }
        let audio = format!(r#"{{"type":"response.audio.delta","response_id":"r","delta":"{long}"}}"#);
        assert_eq!(read_one(&audio), [(ResponseContent, audio[..MAX_TYPE_BYTES].to_owned(), false)]);
        for message in [
            "",
            "{}",
            "[]",
            "audio",
            r#"{"type":7}"#,
            r#"{"type":"rate_limits.updated"}"#,
            r#"{"type":"response.output_item.added"}"#,
            r#"{"x":{"type":"response.done"}}"#,
        ] {
            assert_eq!(read_one(message), [], "{message}");
        }
        let mut told = 0;
        let mut reader = RealtimeEventReader::new(false);
        reader.push(br#"{"type":"conversation.item.added","item":{}}"#, &mut |_| told += 1);
        reader.end(&mut |_| told += 1);
        assert_eq!(told, 0, "items are not wanted");
    }

    #[test]
    fn an_event_that_is_too_long_is_outlined() {
        let long = "x".repeat(MAX_MESSAGE_BYTES);
        let message = format!(
            r#"{{"type":"response.done","response":{{"id":"r","output":[{{"x":"{long}"}}],"status":"completed","usage":{{"input_tokens":3}}}}}}"#
        );
        let [(kind, data, is_outline)] = &read_one(&message)[..] else { panic!("one event is expected") };
        assert_eq!((*kind, *is_outline), (RealtimeEventKind::ResponseDone, true));
        assert!(
            data.len() < 1_000 && TokenUsage::from_json(data.as_bytes()).unwrap().input == Some(3),
            "{data}"
        );
    }

    fn event(data: &str) -> RealtimeEvent<'_> {
        RealtimeEvent { kind: RealtimeEventKind::Session, data, is_outline: false }
    }

    #[test]
    fn fields_of_events_are_read() {
        assert_eq!(event(r#"{"response_id":"r","response":{}}"#).response_id(), Some(r#""r""#));
        assert_eq!(event(r#"{"response":{"object":"o","id":"r"}}"#).response_id(), Some(r#""r""#));
        assert_eq!(event(r#"{"response":{"id":7}}"#).response_id(), None);

        let preview =
            r#"{"session":{"model":"gpt-4o-realtime","input_audio_transcription":{"model":"whisper-1"}}}"#;
        let current = r#"{"session":{"model":"gpt-realtime","audio":{"input":{"transcription":{"model":"gpt-4o-transcribe"}}}}}"#;
        let models = |data| event(data).session_models();
        assert_eq!(models(preview), [Some("gpt-4o-realtime".to_owned()), Some("whisper-1".to_owned())]);
        assert_eq!(models(current), [Some("gpt-realtime".to_owned()), Some("gpt-4o-transcribe".to_owned())]);
        assert_eq!(models(r#"{"session":null}"#), [None, None]);

        for (item, is_of_client) in [
            (r#"{"type":"message","role":"user","content":[]}"#, true),
            (r#"{"type":"message","role":"system"}"#, true),
            (r#"{"type":"function_call_output","output":"1"}"#, true),
            (r#"{"type":"message","role":"assistant"}"#, false),
            (r#"{"type":"function_call"}"#, false),
        ] {
            let data = format!(r#"{{"item":{item}}}"#);
            assert_eq!(event(&data).client_item(), is_of_client.then(|| item.to_owned()), "{item}");
        }

        let transcription =
            event(r#"{"item_id":"i","transcript":"a\nb","usage":{"type":"duration","seconds":2}}"#)
                .transcription();
        assert_eq!(
            (transcription.item_id, &*transcription.transcript, transcription.has_usage),
            (Some(r#""i""#), "a\nb", true)
        );
        let unmetered = event(r#"{"transcript":"a","usage":null}"#).transcription();
        assert!(!unmetered.has_usage && unmetered.usage.is_none());
    }
}
