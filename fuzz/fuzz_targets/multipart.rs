//! The parts of a parsed form lie within its bytes, and renaming the model changes only that part.
#![no_main]

use aoai_lb::azure::apply_edits;
use aoai_lb::azure::request::multipart::FormFacts;
use aoai_lb::azure::request::{multipart, prompt};
use aoai_lb::names::DeploymentName;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (content_type, bytes) = input;
    let parameter = multipart::boundary_parameter(content_type);
    let boundary = parameter.as_deref().unwrap_or("B");
    let Ok(form) = FormFacts::parse(bytes, boundary) else { return };
    let ranges = form.text_fields.iter().map(|field| &field.content_range);
    let ranges = ranges.chain(form.file_fields.iter().map(|field| &field.content_range));
    for range in ranges {
        assert!(bytes.get(range.clone()).is_some());
    }
    if let Some(text) = prompt::form_text_as_json(bytes, &form) {
        serde_json::from_str::<serde_json::Value>(&text).expect("the text of a form is JSON");
    }
    let upstream = DeploymentName::parse("up-stream").expect("the name is valid");
    if let Some(edit) = form.rename_model_edit(&upstream) {
        let edited = apply_edits(&Bytes::copy_from_slice(bytes), &[edit]).concat();
        let reparsed = FormFacts::parse(&edited, boundary).expect("the edited form is valid");
        assert_eq!(reparsed.model.deployment(), Ok(Some(&upstream)));
        assert_eq!(reparsed.text_fields.len(), form.text_fields.len());
        assert_eq!(reparsed.file_fields.len(), form.file_fields.len());
    }
});
