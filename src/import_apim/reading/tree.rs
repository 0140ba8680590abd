//! The elements of a policy, within limits on nesting, number and attributes.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::csharp::decode_reference_name;
use super::expressions::escape_expressions;
use crate::import_apim::source::{ImportError, Place, SourceText};

/// The deepest nesting of elements. API Management's own policies nest ten to twenty.
const MAX_DEPTH: usize = 64;
/// The most elements of all files together. API Management allows 256 KiB for a policy.
pub(in crate::import_apim) const MAX_ELEMENTS: usize = 20_000;
/// The most attributes of an element.
const MAX_ATTRIBUTES: usize = 64;

/// An element with what is in it.
#[derive(Debug)]
pub(in crate::import_apim) struct Element {
    pub(in crate::import_apim) name: String,
    attributes: Vec<(String, String)>,
    text: String,
    pub(in crate::import_apim) children: Vec<Element>,
    pub(in crate::import_apim) place: Place,
}

impl Element {
    /// The value of an attribute, without blanks around it.
    pub(in crate::import_apim) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| value.trim())
    }

    /// The text directly in it, without blanks around it.
    pub(in crate::import_apim) fn text(&self) -> &str {
        self.text.trim()
    }

    /// The elements of this name directly in it.
    pub(in crate::import_apim) fn children_named<'e>(
        &'e self,
        name: &'e str,
    ) -> impl Iterator<Item = &'e Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The texts of `<outer><inner>text</inner>…</outer>`.
    pub(in crate::import_apim) fn texts_in<'e>(
        &'e self,
        outer: &'e str,
        inner: &'e str,
    ) -> impl Iterator<Item = &'e str> {
        self.children_named(outer).flat_map(move |outer| outer.children_named(inner)).map(Element::text)
    }
}

/// Reads a policy. `budget` is how many elements may follow, for all files together.
///
/// # Errors
/// If it is not well-formed, or exceeds a limit.
pub(in crate::import_apim) fn read_policy(
    source: &SourceText<'_>,
    budget: &mut usize,
) -> Result<Element, ImportError> {
    let xml = escape_expressions(source)?;
    let mut reader = TreeReader { source, xml: &xml, counted: 0, line: 1, open: Vec::new(), root: None };
    reader.run(budget)?;
    reader.root.ok_or_else(|| ImportError::new(source.line(1), "has no policy: it has no element"))
}

struct TreeReader<'s> {
    source: &'s SourceText<'s>,
    xml: &'s str,
    /// Line breaks are counted up to here.
    counted: usize,
    line: usize,
    open: Vec<Element>,
    root: Option<Element>,
}

impl TreeReader<'_> {
    /// The line of a position that is not before the last one.
    fn place(&mut self, position: u64) -> Place {
        let position = usize::try_from(position).unwrap_or(usize::MAX).min(self.xml.len());
        let passed = self.xml.as_bytes().get(self.counted..position).unwrap_or_default();
        self.line += memchr::memchr_iter(b'\n', passed).count();
        self.counted = self.counted.max(position);
        self.source.line(self.line)
    }

    fn run(&mut self, budget: &mut usize) -> Result<(), ImportError> {
        let mut reader = Reader::from_str(self.xml);
        loop {
            let place = self.place(reader.buffer_position());
            let event = match reader.read_event() {
                Ok(event) => event,
                Err(error) => {
                    let place = self.place(reader.error_position());
                    return Err(ImportError::new(place, describe(&error)));
                }
            };
            let problem = |problem: String| ImportError::new(place.clone(), problem);
            match event {
                Event::Start(tag) => self.open(&tag, place, budget)?,
                Event::Empty(tag) => {
                    self.open(&tag, place, budget)?;
                    self.close();
                }
                Event::End(_) => self.close(),
                Event::Text(text) => self.append_text(&text),
                Event::CData(text) => self.append_text(&text),
                Event::GeneralRef(reference) => {
                    let Some(c) = decode_reference_name(&reference) else {
                        return Err(problem("has a reference to an unknown entity or character".to_owned()));
                    };
                    self.append_text(c.encode_utf8(&mut [0; 4]));
                }
                Event::DocType(_) => {
                    return Err(problem("has a document type; a policy has none".to_owned()));
                }
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        match self.open.pop() {
            Some(open) => Err(ImportError::new(open.place, "an element begins here that does not end")),
            None => Ok(()),
        }
    }

    fn open(&mut self, tag: &BytesStart<'_>, place: Place, budget: &mut usize) -> Result<(), ImportError> {
        let problem = |problem: String| Err(ImportError::new(place.clone(), problem));
        if self.open.len() >= MAX_DEPTH {
            return problem(format!("elements are nested deeper than {MAX_DEPTH} levels"));
        }
        if self.open.is_empty() && self.root.is_some() {
            return problem("has a second root; write each policy to a file of its own".to_owned());
        }
        *budget = match budget.checked_sub(1) {
            Some(budget) => budget,
            None => return problem(format!("the policies have more than {MAX_ELEMENTS} elements")),
        };
        let mut attributes = Vec::new();
        // Not checked for duplicates, which would take the square of their number. The first one is used.
        for attribute in tag.attributes().with_checks(false) {
            let Ok(attribute) = attribute else {
                return problem("has an attribute that is not NAME=\"VALUE\"".to_owned());
            };
            if attributes.len() == MAX_ATTRIBUTES {
                return problem(format!("an element has more than {MAX_ATTRIBUTES} attributes"));
            }
            let raw: &str = attribute.value.as_ref();
            let Ok(value) = quick_xml::escape::unescape(raw) else {
                return problem("has a reference to an unknown entity or character".to_owned());
            };
            let name: &str = attribute.key.as_ref();
            attributes.push((name.to_owned(), Cow::into_owned(value)));
        }
        let name = tag.name();
        let name: &str = name.as_ref();
        self.open.push(Element {
            name: name.to_owned(),
            attributes,
            text: String::new(),
            children: Vec::new(),
            place,
        });
        Ok(())
    }

    fn close(&mut self) {
        let Some(closed) = self.open.pop() else { return };
        match self.open.last_mut() {
            Some(parent) => parent.children.push(closed),
            None => self.root = Some(closed),
        }
    }

    fn append_text(&mut self, text: &str) {
        if let Some(open) = self.open.last_mut() {
            open.text.push_str(text);
        }
    }
}

/// What is wrong with the XML, without repeating what is there.
fn describe(error: &quick_xml::Error) -> &'static str {
    use quick_xml::errors::IllFormedError;
    match error {
        quick_xml::Error::IllFormed(IllFormedError::MismatchedEndTag { .. }) => {
            "an element ends here that is not the one that began last"
        }
        quick_xml::Error::IllFormed(IllFormedError::UnmatchedEndTag(_)) => {
            "an element ends here that did not begin"
        }
        _ => "is not well-formed XML",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import_apim::source::InputFile;

    fn read(text: &str) -> Result<Element, String> {
        let file = InputFile { name: "p.xml".to_owned(), bytes: text.into() };
        read_policy(&SourceText::new(0, &file).unwrap(), &mut 1000).map_err(|error| error.to_string())
    }

    #[test]
    fn elements_have_their_values_and_lines() {
        let root = read(
            "<policies>\n  <a\n b=\"@(x[\"k\"] && y)\" c='1 &lt; 2'>\n @{\n return \"v\"; } </a>\n<d/></policies>",
        );
        let root = root.unwrap();
        let a = &root.children[0];
        assert_eq!((a.attribute("b"), a.attribute("c")), (Some("@(x[\"k\"] && y)"), Some("1 < 2")));
        assert_eq!(a.text(), "@{\n return \"v\"; }");
        let places: Vec<_> = root.children.iter().map(|child| child.place.to_string()).collect();
        assert_eq!(places, ["p.xml:2", "p.xml:6"]);
    }

    #[test]
    fn what_is_not_well_formed_is_reported_with_its_line() {
        let deep = "<a>".repeat(65);
        let attributes: String = (0..65).map(|i| format!(" a{i}=\"\"")).collect();
        for (text, expected) in [
            ("", "p.xml:1: has no policy: it has no element"),
            ("\n<a>\n</b>", "p.xml:3: an element ends here that is not the one that began last"),
            ("</b>", "p.xml:1: an element ends here that did not begin"),
            ("\n<a>", "p.xml:2: an element begins here that does not end"),
            ("<a/><b/>", "p.xml:1: has a second root; write each policy to a file of its own"),
            ("<a>\n&bomb;</a>", "p.xml:2: has a reference to an unknown entity or character"),
            ("<a b=\"&bomb;\"/>", "p.xml:1: has a reference to an unknown entity or character"),
            ("<a b=\"&#0;\"/>", "p.xml:1: has a reference to an unknown entity or character"),
            ("<a b/>", "p.xml:1: has an attribute that is not NAME=\"VALUE\""),
            (&deep, "p.xml:1: elements are nested deeper than 64 levels"),
            (&format!("<a{attributes}/>"), "p.xml:1: an element has more than 64 attributes"),
            (
                &format!("<a>{}</a>", "<b/>".repeat(1000)),
                "p.xml:1: the policies have more than 20000 elements",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), expected);
        }
    }
}
