//! The status page: a single file that loads nothing else, and its content security policy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

/// The page, with its script and styles.
pub(super) const PAGE_HTML: &str = include_str!("page.html");

/// The policy allows the script and the styles of the page only, and connections to its own origin.
pub(super) fn content_security_policy() -> HeaderValue {
    let hash = |element: &str| {
        let inside = PAGE_HTML.split_once(&format!("<{element}>")).map_or("", |(_, rest)| rest);
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
        for element in ["script", "style"] {
            assert_eq!(
                PAGE_HTML.matches(&format!("<{element}")).count(),
                1,
                "one {element}, without attributes"
            );
            assert_eq!(PAGE_HTML.matches(&format!("<{element}>")).count(), 1);
        }
        let policy = content_security_policy();
        assert!(policy.to_str().unwrap().matches("'sha256-").count() == 2);
        let forbidden =
            ["innerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=\"", "http:", "https:"];
        for word in forbidden {
            let found = PAGE_HTML.matches(word).count();
            let allowed =
                if word == "http:" { PAGE_HTML.matches("http://www.w3.org/2000/svg").count() } else { 0 };
            assert_eq!(found, allowed, "{word}");
        }
    }
}
