//! Reading `multipart/form-data` (RFC 7578), just enough for uploads of any size.

use bytes::Bytes;

use super::http1::Head;

/// A form; the values are slices of the body.
#[derive(Debug)]
pub(super) struct Form<'a> {
    parts: Vec<Part<'a>>,
}

#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) name: String,
    pub(super) filename: Option<String>,
    pub(super) content: &'a [u8],
}

impl<'a> Form<'a> {
    /// `None` when the body is not a complete form.
    pub(super) fn of(head: &Head, body: &'a Bytes) -> Option<Self> {
        let content_type = head.value("content-type")?;
        let (kind, parameters) = content_type.split_once(';')?;
        if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
            return None;
        }
        let boundary = parameter(parameters, "boundary")?;
        let opening = format!("--{boundary}");
        let closing = format!("\r\n--{boundary}");
        let start = find(body, opening.as_bytes())?;
        let mut rest = body.get(start + opening.len()..)?;
        let mut parts = Vec::new();
        while !rest.starts_with(b"--") {
            rest = rest.get(find(rest, b"\r\n")? + 2..)?;
            let end = find(rest, closing.as_bytes())?;
            parts.push(Part::parse(rest.get(..end)?)?);
            rest = rest.get(end + closing.len()..)?;
        }
        Some(Self { parts })
    }

    pub(super) fn part(&self, name: &str) -> Option<&Part<'a>> {
        // Lists arrive as `image[]`.
        self.parts.iter().find(|part| part.name.strip_suffix("[]").unwrap_or(&part.name) == name)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.part(name).map(|part| String::from_utf8_lossy(part.content).into_owned())
    }
}

impl<'a> Part<'a> {
    fn parse(raw: &'a [u8]) -> Option<Self> {
        let (headers, content) = match raw.strip_prefix(b"\r\n") {
            Some(content) => (&b""[..], content),
            None => {
                let end = find(raw, b"\r\n\r\n")?;
                (raw.get(..end)?, raw.get(end + 4..)?)
            }
        };
        let headers = String::from_utf8_lossy(headers);
        let disposition = headers.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
        })?;
        Some(Self {
            name: parameter(disposition, "name")?,
            filename: parameter(disposition, "filename"),
            content,
        })
    }
}

/// A parameter of a header such as `form-data; name="file"; filename="a;b.txt"`.
fn parameter(header: &str, name: &str) -> Option<String> {
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([';', ' ', '\t']);
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(['=', ';']).unwrap_or(rest.len());
        let (key, after) = rest.split_at_checked(end)?;
        let Some(value) = after.strip_prefix('=') else {
            rest = after;
            continue;
        };
        let (found, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_at_checked(value.find(';').unwrap_or(value.len()))?,
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(found.trim().to_owned());
        }
        rest = after;
    }
}

/// Horspool's search: skips most of a large body, which matters in unoptimised builds.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let last = needle.len().checked_sub(1)?;
    let mut skip = [needle.len(); 256];
    for (at, byte) in needle.iter().take(last).enumerate() {
        if let Some(slot) = skip.get_mut(usize::from(*byte)) {
            *slot = last - at;
        }
    }
    let mut at = 0;
    while let Some(window) = haystack.get(at..at + needle.len()) {
        if window == needle {
            return Some(at);
        }
        let byte = window.last().copied().unwrap_or_default();
        at += skip.get(usize::from(byte)).copied().unwrap_or(1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_whatever_their_boundary_looks_like() {
        for (declared, boundary) in
            [("b1", "b1"), ("\"x y\"", "x y"), ("----WebKit7; charset=utf-8", "----WebKit7")]
        {
            let body = format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--{boundary}\r\n\
                 content-disposition: form-data; name=\"file\"; filename=\"a;b.wav\"\r\nContent-Type: audio/wav\r\n\r\n\
                 RIFF\r\n--b\r\n\r\n--{boundary}--\r\n"
            );
            let head = Head {
                method: "POST".to_owned(),
                target: "/".to_owned(),
                minor: 1,
                headers: vec![(
                    "Content-Type".to_owned(),
                    format!("multipart/form-data; boundary={declared}").into_bytes(),
                )],
            };
            let body = Bytes::from(body);
            let form = Form::of(&head, &body).unwrap();
            assert_eq!(form.text("model").as_deref(), Some("whisper"));
            let file = form.part("file").unwrap();
            assert_eq!((file.filename.as_deref(), file.content), (Some("a;b.wav"), &b"RIFF\r\n--b\r\n"[..]));
            let cut = body.slice(..body.len() - 20);
            assert!(Form::of(&head, &cut).is_none());
        }
    }
}
