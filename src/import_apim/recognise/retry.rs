//! `retry`: how often and after which statuses.

use crate::import_apim::plan::Retry;
use crate::import_apim::reading::{Element, Token, tokens};

use super::conditions::show;

const FIRST_STATUS: u16 = 400;
const LAST_STATUS: u16 = 599;
const MAX_ATTEMPTS: u64 = 100;

/// The block `retry` of a statement.
pub(super) fn read_retry(element: &Element) -> Retry {
    let condition = tokens(element.attribute("condition").unwrap_or_default());
    let statuses = statuses_of(&condition);
    let mut comments = vec![format!("{}: {}", element.place, show(&condition))];
    if statuses.is_empty() {
        comments.push("The condition names no status: the default is [408, 429, 500-599].".to_owned());
    } else if statuses.first().is_some_and(|(first, last)| *first <= 400 && *last >= 499) {
        comments.push(
            "Most 4xx fail in the same way on every backend. Unless something relies on retrying them, prefer the default: \
             [408, 429, 500-599]."
                .to_owned(),
        );
    }
    let written = element.attribute("count").unwrap_or_default();
    let attempts = written.parse::<u64>().ok();
    if attempts.is_none() {
        comments.push("The number of attempts is not written as a number: the default is 12.".to_owned());
    }
    let has_interval = element.attribute("interval").is_some_and(|interval| interval != "0");
    if has_interval {
        comments.push(
            "No interval: aoai-lb goes to the next backend at once, and waits for as long as Azure says."
                .to_owned(),
        );
    }
    Retry { attempts: attempts.map(|attempts| attempts.min(MAX_ATTEMPTS)), statuses, comments }
}

/// The statuses, from 400 to 599, that a condition compares `StatusCode` with.
fn statuses_of(condition: &[Token]) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for (index, token) in condition.iter().enumerate() {
        if !token.is_word("StatusCode") {
            continue;
        }
        let number = |at: usize| match condition.get(index + at) {
            Some(Token::Number(number)) => number.parse::<u16>().ok(),
            _ => None,
        };
        match condition.get(index + 1) {
            Some(Token::Operator("==")) => ranges.extend(number(2).map(|status| (status, status))),
            Some(Token::Operator("!=")) => ranges.extend(number(2).map(|_| (FIRST_STATUS, LAST_STATUS))),
            Some(Token::Operator(">=")) => ranges.extend(number(2).map(|status| (status, LAST_STATUS))),
            Some(Token::Symbol('>')) => {
                ranges.extend(number(2).map(|status| (status.saturating_add(1), LAST_STATUS)));
            }
            Some(Token::Operator("<=")) => limit(&mut ranges, number(2)),
            Some(Token::Symbol('<')) => limit(&mut ranges, number(2).map(|status| status.saturating_sub(1))),
            _ => {}
        }
    }
    let in_list = |tokens: &[Token]| -> Vec<(u16, u16)> {
        let numbers = tokens.iter().filter_map(|token| match token {
            Token::Number(number) => number.parse::<u16>().ok(),
            _ => None,
        });
        numbers.map(|status| (status, status)).collect()
    };
    // `new [] { 429, 503 }.Contains(context.Response.StatusCode)`
    if ranges.is_empty()
        && condition.iter().any(|token| token.is_word("StatusCode"))
        && let Some(start) = condition.iter().position(|token| *token == Token::Symbol('{'))
    {
        let end = condition.iter().rposition(|token| *token == Token::Symbol('}')).unwrap_or(condition.len());
        ranges = in_list(condition.get(start..end).unwrap_or_default());
    }
    ranges.retain_mut(|(first, last)| {
        (*first, *last) = ((*first).max(FIRST_STATUS), (*last).min(LAST_STATUS));
        first <= last
    });
    ranges.sort_unstable();
    ranges.dedup();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Ends the last range, which began with a lower bound.
fn limit(ranges: &mut [(u16, u16)], last: Option<u16>) {
    if let (Some(range), Some(last)) = (ranges.last_mut(), last)
        && range.1 == LAST_STATUS
        && range.0 <= last
    {
        range.1 = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_the_condition() {
        for (condition, expected) in [
            ("@(context.Response.StatusCode >= 400)", &[(400, 599)][..]),
            (
                "@(context.Response.StatusCode == 429 || context.Response.StatusCode >= 500)",
                &[(429, 429), (500, 599)],
            ),
            ("@(context.Response.StatusCode > 499 && context.Response.StatusCode < 505)", &[(500, 504)]),
            ("@(context.Response.StatusCode != 200)", &[(400, 599)]),
            ("@(new [] {429, 503}.Contains(context.Response.StatusCode))", &[(429, 429), (503, 503)]),
            ("@(context.Response.StatusCode == 200)", &[]),
            ("@(context.Response.StatusCode == 999999)", &[]),
            ("@(context.Response.StatusCode >= 500 || context.Response.StatusCode == 503)", &[(500, 599)]),
            ("@(true)", &[]),
        ] {
            assert_eq!(statuses_of(&tokens(condition)), expected, "{condition}");
        }
    }
}
