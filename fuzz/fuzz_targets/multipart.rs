//! A form that could be read has its parts inside of it, and renaming changes one of them.
#![no_main]

use aoai_lb::azure::request::{body, multipart, prompt};
use aoai_lb::names::Deployment;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (content_type, bytes) = input;
    let found = multipart::boundary(content_type);
    let boundary = found.as_deref().unwrap_or("B");
    let Ok(form) = multipart::probe(bytes, boundary) else { return };
    let ranges = form.texts.iter().map(|f| &f.range).chain(form.files.iter().map(|f| &f.range));
    for range in ranges {
        assert!(bytes.get(range.clone()).is_some());
    }
    let _ = prompt::form_text(bytes, &form);
    let upstream = Deployment::parse("up-stream").expect("a good name");
    if let Some(edit) = form.rename(&upstream) {
        let edited = body::edit(&Bytes::copy_from_slice(bytes), &[edit]).concat();
        let again = multipart::probe(&edited, boundary).expect("still a form");
        assert_eq!(again.model.deployment(), Ok(Some(&upstream)));
        assert_eq!((again.texts.len(), again.files.len()), (form.texts.len(), form.files.len()));
    }
});
