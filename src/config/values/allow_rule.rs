//! The rules of `requests.allow`: a method and a pattern of paths.

use std::borrow::Cow;

use http::Method;

/// One rule of `requests.allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowRule {
    /// GET also permits HEAD.
    pub method: Method,
    /// The paths that are allowed with this method.
    pub path_pattern: PathPattern,
}

impl AllowRule {
    /// Whether the rule permits a request. `path` is decoded and normalized, with `/openai/v1` in place of
    /// `/v1`, without the query.
    pub fn permits(&self, method: &Method, path: &str) -> bool {
        (self.method == *method || (self.method == Method::GET && *method == Method::HEAD))
            && self.path_pattern.matches(path)
    }

    /// Parses `METHOD /path*`.
    ///
    /// # Errors
    /// What is wrong, without repeating the text: whether that may be shown is for the caller to decide.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let (Some(method), Some(path), None) = (words.next(), words.next(), words.next()) else {
            return Err("must be a method and a path, such as \"GET /openai/*\"".to_owned());
        };
        Ok(Self { method: parse_method(method)?, path_pattern: PathPattern::parse(path)? })
    }
}

fn parse_method(text: &str) -> Result<Method, String> {
    const METHODS: [Method; 6] =
        [Method::GET, Method::POST, Method::DELETE, Method::PUT, Method::PATCH, Method::HEAD];
    if let Some(method) = METHODS.into_iter().find(|m| m.as_str() == text) {
        return Ok(method);
    }
    let upper = text.to_ascii_uppercase();
    Err(match upper.as_str() {
        "OPTIONS" | "TRACE" | "CONNECT" => {
            format!("{upper} cannot be allowed: it is always refused with 405")
        }
        "GET" | "POST" | "DELETE" | "PUT" | "PATCH" | "HEAD" => {
            format!("the method must be in capitals: {upper}")
        }
        _ => "must begin with one of GET, POST, DELETE, PUT, PATCH and HEAD (which GET includes)".to_owned(),
    })
}

/// A pattern of paths. `*` matches any characters, slashes included, or none. ASCII letters match in either
/// case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// What comes before the first `*`, or everything if there is none; in lower case.
    prefix: String,
    /// What follows each `*`, in lower case. The last piece must end the path.
    pieces_after_stars: Vec<String>,
}

impl PathPattern {
    /// Whether `path` matches. Takes time linear in its length.
    pub fn matches(&self, path: &str) -> bool {
        let path = match path.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(path.to_ascii_lowercase()),
            false => Cow::Borrowed(path),
        };
        let Some((last, middle)) = self.pieces_after_stars.split_last() else {
            return path == self.prefix.as_str();
        };
        let Some(mut rest) = path.strip_prefix(&self.prefix) else {
            return false;
        };
        // The leftmost match of each piece leaves the most of the path for the pieces after it, so no
        // backtracking is needed.
        for piece in middle {
            let Some(at) = rest.find(piece.as_str()) else {
                return false;
            };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last.as_str())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let error = |message: &str| Err(message.to_owned());
        if !text.starts_with('/') {
            return error("the path must begin with `/`");
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains(['?', '#', '%', '\\']) {
            return error(
                "the path must be printable ASCII without a query, `#`, `%` or `\\`: it is compared with the decoded path only",
            );
        }
        if text.contains("//") || (text.len() > 1 && text.ends_with('/')) {
            return error(
                "would never match: repeated and trailing slashes are removed before paths are compared",
            );
        }
        let text = text.to_ascii_lowercase();
        if text.strip_prefix("/v1").is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '*'])) {
            return error(
                "`/v1` is read as `/openai/v1` before paths are compared; write `/openai/v1` in its place",
            );
        }
        let mut pieces = text.split('*').map(str::to_owned);
        let prefix = pieces.next().unwrap_or_default();
        Ok(Self { prefix, pieces_after_stars: pieces.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_any_characters() {
        for (pattern, path, expected) in [
            ("/openai/*", "/openai/v1/chat/completions", true),
            ("/OpenAI/*", "/openai/Deployments/GPT-4o/x", true),
            ("/openai/*", "/openai", false),
            ("/openai*", "/openai", true),
            ("/openai", "/openai", true),
            ("/openai", "/openai/v1", false),
            ("/*/chat/*", "/openai/deployments/x/chat/completions", true),
            ("/*/chat", "/openai/chat/chat", true),
            ("/*/chat", "/openai/chat/x", false),
            ("/a*a", "/a", false),
            ("/a*a", "/aa", true),
            ("/a**b", "/ab", true),
            ("/*", "/", true),
            ("/*ab*ab", "/ab", false),
            ("/*ab*ab", "/xabyab", true),
            ("/*x*", "/ä/X", true),
        ] {
            assert_eq!(PathPattern::parse(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn matching_time_is_linear_even_with_many_stars() {
        let pattern = PathPattern::parse(&format!("/{}b", "*a".repeat(2_000))).unwrap();
        assert!(!pattern.matches(&format!("/{}", "a".repeat(100_000))));
    }

    #[test]
    fn a_get_rule_also_permits_head() {
        let allow = AllowRule::parse("GET /openai/*").unwrap();
        for (method, expected) in [(Method::GET, true), (Method::HEAD, true), (Method::POST, false)] {
            assert_eq!(allow.permits(&method, "/openai/v1/models"), expected, "{method}");
        }
        assert!(!AllowRule::parse("HEAD /x").unwrap().permits(&Method::GET, "/x"));
    }

    #[test]
    fn rules_that_could_never_match_are_refused() {
        for (text, problem) in [
            ("", "must be a method and a path"),
            ("/openai/*", "must be a method and a path"),
            ("GET /a /b", "must be a method and a path"),
            ("get /a", "in capitals: GET"),
            ("OPTIONS /a", "OPTIONS cannot be allowed"),
            ("trace /a", "TRACE cannot be allowed"),
            ("FETCH /a", "must begin with one of"),
            ("GET a", "must begin with `/`"),
            ("GET /a?b=*", "without a query"),
            ("GET /a/", "would never match"),
            ("GET //a", "would never match"),
            ("GET /v1", "write `/openai/v1`"),
            ("POST /V1/chat/*", "write `/openai/v1`"),
            ("GET /v1*", "write `/openai/v1`"),
        ] {
            let message = AllowRule::parse(text).unwrap_err();
            assert!(message.contains(problem), "{text}: {message}");
        }
    }
}
