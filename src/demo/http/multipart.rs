//! Parses `multipart/form-data` (RFC 7578), as far as uploads need it.

use bytes::Bytes;

use super::request_head::RequestHead;

/// A parsed form. The contents of its parts are slices of the body.
#[derive(Debug)]
pub(in crate::demo) struct MultipartForm<'a> {
    parts: Vec<FormPart<'a>>,
}

#[derive(Debug)]
pub(in crate::demo) struct FormPart<'a> {
    pub(in crate::demo) name: String,
    pub(in crate::demo) filename: Option<String>,
    pub(in crate::demo) content: &'a [u8],
}

impl<'a> MultipartForm<'a> {
    /// Parses a request body; `None` if it is not a complete form.
    pub(in crate::demo) fn parse(head: &RequestHead, body: &'a Bytes) -> Option<Self> {
        let content_type = head.header("content-type")?;
        let (kind, parameters) = content_type.split_once(';')?;
        if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
            return None;
        }
        let boundary = header_parameter(parameters, "boundary")?;
        let first_delimiter = format!("--{boundary}");
        let next_delimiter = format!("\r\n--{boundary}");
        let start = find_bytes(body, first_delimiter.as_bytes())?;
        let mut remaining = body.get(start + first_delimiter.len()..)?;
        let mut parts = Vec::new();
        // The last delimiter is followed by two hyphens.
        while !remaining.starts_with(b"--") {
            remaining = remaining.get(find_bytes(remaining, b"\r\n")? + 2..)?;
            let end = find_bytes(remaining, next_delimiter.as_bytes())?;
            parts.push(FormPart::parse(remaining.get(..end)?)?);
            remaining = remaining.get(end + next_delimiter.len()..)?;
        }
        Some(Self { parts })
    }

    /// The first part of this name.
    pub(in crate::demo) fn part(&self, name: &str) -> Option<&FormPart<'a>> {
        // The SDKs send lists under a name such as `image[]`.
        self.parts.iter().find(|part| part.name.strip_suffix("[]").unwrap_or(&part.name) == name)
    }

    /// The content of the first part of this name, as text.
    pub(in crate::demo) fn text(&self, name: &str) -> Option<String> {
        self.part(name).map(|part| String::from_utf8_lossy(part.content).into_owned())
    }
}

impl<'a> FormPart<'a> {
    fn parse(raw: &'a [u8]) -> Option<Self> {
        let (headers, content) = match raw.strip_prefix(b"\r\n") {
            Some(content) => (&b""[..], content),
            None => {
                let end = find_bytes(raw, b"\r\n\r\n")?;
                (raw.get(..end)?, raw.get(end + 4..)?)
            }
        };
        let headers = String::from_utf8_lossy(headers);
        let disposition = headers.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
        })?;
        Some(Self {
            name: header_parameter(disposition, "name")?,
            filename: header_parameter(disposition, "filename"),
            content,
        })
    }
}

/// A parameter of a header such as `form-data; name="file"; filename="a;b.txt"`.
fn header_parameter(header: &str, name: &str) -> Option<String> {
    let mut remaining = header;
    loop {
        remaining = remaining.trim_start_matches([';', ' ', '\t']);
        if remaining.is_empty() {
            return None;
        }
        let end = remaining.find(['=', ';']).unwrap_or(remaining.len());
        let (key, after) = remaining.split_at_checked(end)?;
        let Some(value) = after.strip_prefix('=') else {
            remaining = after;
            continue;
        };
        let (content, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_at_checked(value.find(';').unwrap_or(value.len()))?,
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(content.trim().to_owned());
        }
        remaining = after;
    }
}

/// The first position of `needle`, by Horspool's algorithm: it skips most of a large body, which matters in
/// unoptimised builds.
fn find_bytes(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let last = needle.len().checked_sub(1)?;
    let mut skip = [needle.len(); 256];
    for (index, byte) in needle.iter().take(last).enumerate() {
        if let Some(slot) = skip.get_mut(usize::from(*byte)) {
            *slot = last - index;
        }
    }
    let mut position = 0;
    while let Some(window) = haystack.get(position..position + needle.len()) {
        if window == needle {
            return Some(position);
        }
        let byte = window.last().copied().unwrap_or_default();
        position += skip.get(usize::from(byte)).copied().unwrap_or(1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_parsed_with_any_kind_of_boundary() {
        for (declared, boundary) in
            [("b1", "b1"), ("\"x y\"", "x y"), ("----WebKit7; charset=utf-8", "----WebKit7")]
        {
            let body = format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--{boundary}\r\n\
                 content-disposition: form-data; name=\"file\"; filename=\"a;b.wav\"\r\nContent-Type: audio/wav\r\n\r\n\
                 RIFF\r\n--b\r\n\r\n--{boundary}--\r\n"
            );
            let head = RequestHead {
                method: "POST".to_owned(),
                target: "/".to_owned(),
                minor_version: 1,
                headers: vec![(
                    "Content-Type".to_owned(),
                    format!("multipart/form-data; boundary={declared}").into_bytes(),
                )],
            };
            let body = Bytes::from(body);
            let form = MultipartForm::parse(&head, &body).unwrap();
            assert_eq!(form.text("model").as_deref(), Some("whisper"));
            let file = form.part("file").unwrap();
            assert_eq!((file.filename.as_deref(), file.content), (Some("a;b.wav"), &b"RIFF\r\n--b\r\n"[..]));
            let truncated = body.slice(..body.len() - 20);
            assert!(MultipartForm::parse(&head, &truncated).is_none());
        }
    }
}
