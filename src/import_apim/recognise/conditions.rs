//! What the conditions of a policy are about: a deployment, a client, a turn in a round robin, a failed response.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::import_apim::reading::Token;
use crate::names::DeploymentName;

/// The most deployments of a condition.
const MAX_DEPLOYMENTS: usize = 500;
/// The longest condition in a comment.
const MAX_SHOWN: usize = 120;

/// What a condition is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::import_apim) enum ConditionClass {
    /// The request is for one of these deployments.
    Deployments(Vec<String>),
    /// The request is for no deployment of an earlier branch.
    OtherDeployments,
    /// The request is for none of these deployments.
    NotDeployments(Vec<String>),
    /// The client is one of these subscriptions.
    Clients(Vec<String>),
    /// A counter or a random number has a certain value.
    Turn,
    /// The response has a certain status.
    Status,
    /// Something is not in the cache yet.
    NotCached,
    /// Nothing of the branches before holds.
    Default,
    /// Something else.
    Unknown,
}

/// A condition. What is asked of it often is found once, since it may be long.
#[derive(Clone, Debug)]
pub(in crate::import_apim) struct Condition {
    pub(in crate::import_apim) tokens: Vec<Token>,
    pub(in crate::import_apim) class: ConditionClass,
    /// It compares with less or more, so that branches are not equally likely.
    pub(in crate::import_apim) has_range: bool,
    /// The same for conditions that are the same.
    pub(in crate::import_apim) digest: u64,
    is_otherwise: bool,
}

impl Condition {
    pub(super) fn new(tokens: Vec<Token>) -> Self {
        let class = classify(&tokens);
        Self::with_class(class, tokens, false)
    }

    pub(super) fn unknown() -> Self {
        Self::with_class(ConditionClass::Unknown, Vec::new(), false)
    }

    /// The branch without a condition, by the class and the words of the first branch of its `choose`.
    pub(super) fn otherwise(first: Option<&ConditionClass>, tokens: Vec<Token>) -> Self {
        let class = match first {
            Some(ConditionClass::Deployments(_)) => ConditionClass::OtherDeployments,
            Some(ConditionClass::Turn) => ConditionClass::Turn,
            _ => ConditionClass::Default,
        };
        Self::with_class(class, tokens, true)
    }

    /// A condition that is not understood, but is about a variable of these, which policies keep in the cache from one
    /// request to the next, is a turn, or asks whether it is cached.
    pub(super) fn refine(&mut self, cached: &HashSet<&str>) {
        let is_open = matches!(self.class, ConditionClass::Unknown | ConditionClass::Default);
        let has_word = |word: &str| self.tokens.iter().any(|token| token.is_word(word));
        let is_cached = |name: &str| cached.contains(name);
        if !is_open || !variables_in(&self.tokens).any(is_cached) {
            return;
        }
        if !has_word("ContainsKey") {
            self.class = ConditionClass::Turn;
        } else if !self.is_otherwise
            && variables_in(&self.tokens).all(is_cached)
            && (has_word("false") || self.tokens.contains(&Token::Symbol('!')))
        {
            self.class = ConditionClass::NotCached;
        }
    }

    fn with_class(class: ConditionClass, tokens: Vec<Token>, is_otherwise: bool) -> Self {
        let has_range = tokens.windows(2).any(|pair| {
            matches!(pair, [Token::Operator(">=" | "<=") | Token::Symbol('<' | '>'), Token::Number(_)])
        });
        let mut hasher = DefaultHasher::new();
        (&tokens, is_otherwise).hash(&mut hasher);
        Self { digest: hasher.finish(), tokens, class, has_range, is_otherwise }
    }

    /// The condition for a comment. Texts are not shown, except for names, since they could be secrets.
    pub(in crate::import_apim) fn shown(&self) -> String {
        let shown = show(&self.tokens);
        if self.is_otherwise { format!("otherwise, not {shown}") } else { shown }
    }
}

/// The words of an expression as one line, without texts other than names.
pub(in crate::import_apim) fn show(tokens: &[Token]) -> String {
    let mut out = String::new();
    let mut was_word = false;
    for (index, token) in tokens.iter().enumerate() {
        let is_word = matches!(token, Token::Word(_) | Token::Number(_));
        if was_word && is_word {
            out.push(' ');
        }
        was_word = is_word;
        let _ = match token {
            Token::Word(word) => write!(out, "{}", word.chars().take(64).collect::<String>()),
            Token::Number(number) => write!(out, "{}", number.chars().take(8).collect::<String>()),
            Token::Text(text) if is_name(tokens, index) => write!(out, "\"{text}\""),
            Token::Text(_) => write!(out, "\"…\""),
            Token::Operator(operator) => write!(out, " {operator} "),
            Token::Symbol(symbol) => write!(out, "{symbol}"),
        };
        if out.len() > MAX_SHOWN {
            return out.chars().take(MAX_SHOWN).chain(['…']).collect();
        }
    }
    out
}

/// Whether the text at `index` is the name of something: `Variables["name"]`, `GetValueOrDefault("name"`.
pub(in crate::import_apim) fn is_name(tokens: &[Token], index: usize) -> bool {
    let before = |back: usize| index.checked_sub(back).and_then(|at| tokens.get(at));
    let is_plain = matches!(tokens.get(index), Some(Token::Text(text))
        if text.len() <= 40 && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
    let is_lookup = |token: &Token| {
        ["GetValueOrDefault", "ContainsKey", "Value", "SelectToken"].iter().any(|word| token.is_word(word))
    };
    let follows_call = before(1) == Some(&Token::Symbol('('))
        && (before(2).is_some_and(is_lookup)
            // With a type: `GetValueOrDefault<string>("name"`.
            || (before(2) == Some(&Token::Symbol('>')) && before(5).is_some_and(is_lookup)));
    let follows_index = before(1) == Some(&Token::Symbol('['))
        && !matches!(before(2), Some(Token::Word(word)) if word == "new");
    is_plain && (follows_index || follows_call)
}

/// The names of the variables that an expression refers to.
pub(in crate::import_apim) fn variables_in(tokens: &[Token]) -> impl Iterator<Item = &str> {
    tokens.iter().enumerate().filter_map(move |(index, token)| {
        let Token::Text(name) = token else { return None };
        let before = tokens.get(index.saturating_sub(8)..index).unwrap_or_default();
        let variables = before.iter().rposition(|token| token.is_word("Variables"))?;
        // Nothing but a lookup between the two.
        let is_lookup = before
            .get(variables + 1..)
            .unwrap_or_default()
            .iter()
            .all(|token| matches!(token, Token::Symbol('[' | '(' | '.' | '<' | '>') | Token::Word(_)));
        is_lookup.then_some(name.as_str())
    })
}

/// The texts that something is compared with.
fn compared_texts(tokens: &[Token]) -> Vec<&str> {
    let text = |index: Option<usize>| match index.and_then(|index| tokens.get(index)) {
        Some(Token::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    let has_contains = tokens.iter().any(|token| token.is_word("Contains"));
    let mut found = Vec::new();
    let mut is_in_array = false;
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Operator("==" | "!=") => {
                found.extend(text(Some(index + 1)).or_else(|| text(index.checked_sub(1))));
            }
            Token::Word(word) if word == "Equals" => found.extend(text(Some(index + 2))),
            // `new [] { "a", "b" }.Contains(x)`
            Token::Symbol('{') => is_in_array = has_contains && index > 1,
            Token::Symbol('}') => is_in_array = false,
            Token::Text(text) if is_in_array => found.push(text),
            _ => {}
        }
    }
    found
}

fn classify(tokens: &[Token]) -> ConditionClass {
    let has_word = |word: &str| tokens.iter().any(|token| token.is_word(word));
    let has_name = |wanted: fn(&str) -> bool| {
        tokens.iter().enumerate().any(|(index, token)| {
            matches!(token, Token::Text(text) if is_name(tokens, index) && wanted(&text.to_ascii_lowercase()))
        })
    };
    let is_negated = tokens.contains(&Token::Operator("!=")) || tokens.contains(&Token::Symbol('!'));
    let is_composed = tokens.contains(&Token::Operator("&&"));
    if has_word("StatusCode") {
        return ConditionClass::Status;
    }
    let texts = compared_texts(tokens);
    if has_name(|name| name.contains("deployment") || name.ends_with("model")) && !is_composed {
        let names: Vec<String> = texts
            .iter()
            .filter(|text| DeploymentName::parse(text).is_ok())
            .map(|text| (*text).to_owned())
            .collect();
        if (1..=MAX_DEPLOYMENTS).contains(&names.len()) && names.len() == texts.len() {
            return if is_negated {
                ConditionClass::NotDeployments(names)
            } else {
                ConditionClass::Deployments(names)
            };
        }
    }
    if has_word("Subscription") && !is_negated && !is_composed && !texts.is_empty() {
        return ConditionClass::Clients(texts.into_iter().map(str::to_owned).collect());
    }
    let is_number = |text: &&str| text.bytes().all(|b| b.is_ascii_digit());
    let compares_number = tokens.windows(2).any(|pair| {
        matches!(pair, [Token::Operator("==" | ">=" | "<=") | Token::Symbol('<' | '>'), Token::Number(_)])
    }) || (!texts.is_empty() && texts.iter().all(is_number));
    let has_variable = variables_in(tokens).next().is_some() || has_word("Random");
    if compares_number && has_variable && !is_negated {
        return ConditionClass::Turn;
    }
    ConditionClass::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import_apim::reading::tokens;

    #[test]
    fn conditions_are_classified() {
        let deployments = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for (condition, expected) in [
            (
                r#"@(context.Request.MatchedParameters["deployment-id"] == "gpt-4o")"#,
                ConditionClass::Deployments(deployments(&["gpt-4o"])),
            ),
            (
                r#"@(new [] { "a", "b" }.Contains(context.Request.MatchedParameters["deployment-id"]))"#,
                ConditionClass::Deployments(deployments(&["a", "b"])),
            ),
            (
                r#"@(!new [] { "a" }.Contains(context.Request.MatchedParameters["deployment-id"] ?? String.Empty))"#,
                ConditionClass::NotDeployments(deployments(&["a"])),
            ),
            (
                r#"@(context.Request.Body.As<JObject>(true)["model"].ToString() == "o3")"#,
                ConditionClass::Deployments(deployments(&["o3"])),
            ),
            (r#"@(context.Subscription.Id.Equals("A"))"#, ConditionClass::Clients(deployments(&["A"]))),
            (r#"@(int.Parse((string)context.Variables["n"]) % 2 == 0)"#, ConditionClass::Turn),
            (r#"@(context.Variables.GetValueOrDefault<int>("n") == 1)"#, ConditionClass::Turn),
            (r#"@((string)context.Variables["n"] == "0")"#, ConditionClass::Turn),
            (r#"@(new Random().Next(100) < 50)"#, ConditionClass::Turn),
            (r#"@(context.Response.StatusCode == 429)"#, ConditionClass::Status),
            (r#"@(!context.Variables.ContainsKey("n"))"#, ConditionClass::Unknown),
            (r#"@(context.User != null && context.Variables["deployment"] == "x")"#, ConditionClass::Unknown),
        ] {
            assert_eq!(classify(&tokens(condition)), expected, "{condition}");
        }
    }

    #[test]
    fn a_condition_is_shown_without_texts() {
        let condition = r#"@(context.Request.Headers.GetValueOrDefault("x-key","s3cret") == "s3cret" && context.Variables["a"] == @"hush")"#;
        let shown = show(&tokens(condition));
        let expected = r#"@(context.Request.Headers.GetValueOrDefault("x-key","…") == "…" && context.Variables["a"] == "…")"#;
        assert_eq!(shown, expected);
        assert!(show(&tokens(&"a && ".repeat(100))).len() < 130);
    }

    #[test]
    fn variables_are_found() {
        let words = tokens(
            r#"@(context.Variables["a"] + context.Variables.GetValueOrDefault<string>("b", "no") + x["c"])"#,
        );
        assert_eq!(variables_in(&words).collect::<Vec<_>>(), ["a", "b"]);
    }
}
