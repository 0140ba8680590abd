//! The status page: a single document, put together from the files of this folder, that loads nothing else, and
//! its content security policy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

/// The markup; `@@name@@` stands for a file.
const MARKUP: &str = include_str!("page.html");
/// The styles and scripts that the markup names.
const FILES: [(&str, &str); 19] = [
    ("base.css", include_str!("base.css")),
    ("sections.css", include_str!("sections.css")),
    ("format.js", include_str!("format.js")),
    ("dom.js", include_str!("dom.js")),
    ("tips.js", include_str!("tips.js")),
    ("states.js", include_str!("states.js")),
    ("overview.js", include_str!("overview.js")),
    ("charts.js", include_str!("charts.js")),
    ("backends.js", include_str!("backends.js")),
    ("trouble.js", include_str!("trouble.js")),
    ("pools.js", include_str!("pools.js")),
    ("limits.js", include_str!("limits.js")),
    ("costs.js", include_str!("costs.js")),
    ("objects.js", include_str!("objects.js")),
    ("shared.js", include_str!("shared.js")),
    ("operations.js", include_str!("operations.js")),
    ("connection.js", include_str!("connection.js")),
    ("actions.js", include_str!("actions.js")),
    ("main.js", include_str!("main.js")),
];

/// The page as it is served.
pub(super) struct StatusPage {
    /// The document, with its script and styles.
    pub(super) html: String,
    /// Allows the script and the styles of the document only, and connections to its own origin.
    pub(super) content_security_policy: HeaderValue,
}

impl StatusPage {
    /// Puts the page together.
    pub(super) fn assemble() -> Self {
        let html = FILES
            .iter()
            .fold(MARKUP.to_owned(), |html, (name, text)| html.replace(&format!("@@{name}@@\n"), text));
        let content_security_policy = content_security_policy(&html);
        Self { html, content_security_policy }
    }
}

fn content_security_policy(html: &str) -> HeaderValue {
    let hash = |element: &str| {
        let inside = html.split_once(&format!("<{element}>")).map_or("", |(_, rest)| rest);
        let inside = inside.split_once(&format!("</{element}>")).map_or("", |(inside, _)| inside);
        STANDARD.encode(openssl::sha::sha256(inside.as_bytes()))
    };
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_uses_nothing_that_its_policy_forbids() {
        let StatusPage { html, content_security_policy } = StatusPage::assemble();
        for element in ["script", "style"] {
            assert_eq!(html.matches(&format!("<{element}")).count(), 1, "one {element}, without attributes");
            assert_eq!(html.matches(&format!("<{element}>")).count(), 1);
        }
        assert!(content_security_policy.to_str().unwrap().matches("'sha256-").count() == 2);
        let forbidden =
            ["innerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=\"", "http:", "https:"];
        for word in forbidden {
            let found = html.matches(word).count();
            let allowed =
                if word == "http:" { html.matches("http://www.w3.org/2000/svg").count() } else { 0 };
            assert_eq!(found, allowed, "{word}");
        }
    }

    #[test]
    fn the_page_contains_each_of_its_files_once_and_whole() {
        let html = StatusPage::assemble().html;
        assert!(!html.contains("@@"));
        for (name, text) in FILES {
            assert_eq!(MARKUP.matches(&format!("@@{name}@@\n")).count(), 1, "{name}");
            assert!(html.contains(text) && text.ends_with('\n'), "{name}");
        }
    }
}
