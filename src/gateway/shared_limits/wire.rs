//! The report of a client's limits as the server's script takes it, and its answer.

use std::sync::LazyLock;
use std::time::Duration;

use serde::Serialize;

use crate::admission::limits::{BudgetWindow, LeaseGrant, LimitKey, LimitReport, UnitSums, UsedAmounts};
use crate::names::ClientName;
use crate::shared::{KeySpace, Script, ScriptInvocation, SharedError, Value};

/// For how long what an instance holds counts after its last report.
const LIFETIME: Duration = Duration::from_secs(5);
/// For how long the server keeps what nobody reports any more. A rate counts for a minute; a budget that was of the last
/// second of a day or month may still be asked for by an instance with another clock.
const KEEP_RATE: Duration = Duration::from_secs(130);
const KEEP_DAY: Duration = Duration::from_secs(2 * 86_400);
const KEEP_MONTH: Duration = Duration::from_secs(33 * 86_400);

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("report.lua")));
static FORGET_SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::new("for _, key in ipairs(KEYS) do redis.call('HDEL', key, ARGV[1]) end"));

#[derive(Serialize)]
struct Report<'r> {
    id: &'r str,
    /// The process.
    writer: &'r str,
    lifetime_ms: u64,
    limits: Vec<ReportedLimit<'r>>,
}

#[derive(Serialize)]
struct ReportedLimit<'r> {
    /// This process has reported it before, under the same id.
    is_known: bool,
    limit: u64,
    free: u64,
    short: u64,
    extra: u64,
    held: u64,
    /// Of a budget: what was booked.
    used: u64,
    /// What was taken back of it.
    refunded: u64,
    /// Of a rate: seconds, each followed by what was used in it.
    seconds: Vec<u64>,
    /// What others have counted of a budget: ids, each followed by what was booked and what was taken back.
    others: Vec<IdOrAmount<'r>>,
    keep_ms: u64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum IdOrAmount<'r> {
    Id(&'r str),
    Amount(u64),
}

/// What the server answers to a report.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReportAnswer {
    /// A grant for each limit.
    Grants(Vec<LeaseGrant>),
    /// Another process reports under the same id.
    IdInUse,
}

/// The call of the script with the report of this instance, which this process (`writer`) makes under this id.
pub(super) fn report_call(
    keys: &KeySpace,
    client: Option<&ClientName>,
    id: &str,
    writer: &str,
    limits: &[LimitReport],
) -> ScriptInvocation<'static> {
    let reported = limits.iter().map(ReportedLimit::new).collect();
    let report = Report { id, writer, lifetime_ms: millis(LIFETIME), limits: reported };
    let mut call = SCRIPT.prepare_invoke();
    for limit in limits {
        call.key(key_of(keys, client, limit));
    }
    // Numbers and strings alone cannot fail.
    call.arg(serde_json::to_string(&report).unwrap_or_default());
    call
}

/// The call that removes what this instance has reported.
pub(super) fn forget_call(
    keys: &KeySpace,
    client: Option<&ClientName>,
    id: &str,
    limits: &[LimitReport],
) -> ScriptInvocation<'static> {
    let mut call = FORGET_SCRIPT.prepare_invoke();
    for limit in limits {
        call.key(key_of(keys, client, limit));
    }
    call.arg(id);
    call
}

/// The answer to a report of these limits.
///
/// # Errors
/// [`SharedError::UnexpectedReply`].
pub(super) fn parse_answer(reply: &Value, limits: &[LimitReport]) -> Result<ReportAnswer, SharedError> {
    let unexpected = || SharedError::UnexpectedReply("it is not a list of grants".to_owned());
    let answers = match reply {
        Value::BulkString(_) => return Ok(ReportAnswer::IdInUse),
        Value::Array(answers) if answers.len() == limits.len() => answers,
        _ => return Err(unexpected()),
    };
    let grants = answers.iter().zip(limits);
    let grants = grants.map(|(answer, limit)| parse_grant(answer, limit).ok_or_else(unexpected));
    Ok(ReportAnswer::Grants(grants.collect::<Result<_, _>>()?))
}

fn parse_grant(answer: &Value, limit: &LimitReport) -> Option<LeaseGrant> {
    let Value::Array(parts) = answer else { return None };
    let [granted, room, others, booked, refunded, Value::Array(details)] = parts.as_slice() else {
        return None;
    };
    let mut grant = LeaseGrant {
        granted: number(granted)?,
        room: number(room)?,
        others: number(others)?,
        own: UnitSums { booked: number(booked)?, refunded: number(refunded)? },
        ..LeaseGrant::default()
    };
    match &limit.used {
        UsedAmounts::BySecond(_) => {
            let (pairs, rest) = details.as_chunks::<2>();
            let pairs = pairs.iter().map(|[second, amount]| Some((number(second)?, number(amount)?)));
            grant.others_by_second = pairs.collect::<Option<_>>().filter(|_| rest.is_empty())?;
        }
        UsedAmounts::InWindow { .. } => {
            let (instances, rest) = details.as_chunks::<3>();
            let instances = instances.iter().map(|[id, booked, refunded]| {
                Some((text(id)?, UnitSums { booked: number(booked)?, refunded: number(refunded)? }))
            });
            grant.others_by_instance = instances.collect::<Option<_>>().filter(|_| rest.is_empty())?;
        }
        UsedAmounts::Nothing => {}
    }
    Some(grant)
}

impl<'r> ReportedLimit<'r> {
    fn new(report: &'r LimitReport) -> Self {
        let (mut own, mut seconds, mut others) = (UnitSums::default(), Vec::new(), Vec::new());
        match &report.used {
            UsedAmounts::BySecond(amounts) => {
                seconds = amounts.iter().flat_map(|(second, amount)| [*second, *amount]).collect();
            }
            UsedAmounts::InWindow { sums, others: known, .. } => {
                own = *sums;
                let entry = |(id, sums): &'r (String, UnitSums)| {
                    [IdOrAmount::Id(id), IdOrAmount::Amount(sums.booked), IdOrAmount::Amount(sums.refunded)]
                };
                others = known.iter().flat_map(entry).collect();
            }
            UsedAmounts::Nothing => {}
        }
        let keep = match report.key.kind.window() {
            None => KEEP_RATE,
            Some(BudgetWindow::Day) => KEEP_DAY,
            Some(BudgetWindow::Month) => KEEP_MONTH,
        };
        Self {
            is_known: report.is_known,
            limit: report.limit,
            free: report.free(),
            short: report.short(),
            extra: report.extra(),
            held: report.held,
            used: own.booked,
            refunded: own.refunded,
            seconds,
            others,
            keep_ms: millis(keep),
        }
    }
}

/// The key of a limit. That of a budget has the day or month.
fn key_of(keys: &KeySpace, client: Option<&ClientName>, report: &LimitReport) -> String {
    let window = match &report.used {
        UsedAmounts::InWindow { window, .. } => format!(":{window}"),
        UsedAmounts::BySecond(_) | UsedAmounts::Nothing => String::new(),
    };
    let owner = client.map_or("", ClientName::as_str);
    let LimitKey { deployment, kind } = &report.key;
    // Instances may spell a deployment differently.
    let deployment = deployment.as_ref().map_or_else(String::new, |name| format!("{}:", name.to_lowercase()));
    keys.key_of(owner, &format!("limit:{deployment}{}{window}", kind.key()))
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, UNIX_EPOCH};

    use serde_json::json;

    use super::*;
    use crate::admission::limits::{ClientAccounts, ClientLimiter, Demand, LeaseDesk, ReportKind};
    use crate::config::{ClientLimits, LimitSet, LimitsConfig};
    use crate::gateway::budget_books::BudgetBooks;

    /// The report of a client that has reserved 30 tokens, of which the server has leased nothing.
    async fn report() -> Vec<LimitReport> {
        let accounts = ClientAccounts::new(Instant::now());
        let (desk, _requests) = LeaseDesk::new();
        accounts.share(std::sync::Arc::clone(&desk));
        let total = LimitSet { tokens_per_minute: Some(600), ..LimitSet::default() };
        let own = LimitSet { tokens_per_day: Some(5000), in_flight: Some(7), ..LimitSet::default() };
        let deployment = crate::names::DeploymentName::parse("GPT-4o").unwrap();
        let limits = ClientLimits { total, deployments: [(deployment.clone(), own)].into() };
        let account = accounts.find_or_create(Some(&ClientName::new("team-a")));
        let books = BudgetBooks::default();
        let open_budget = |deployment: Option<&_>| books.open(None, deployment);
        let config = LimitsConfig::default();
        let limiter = ClientLimiter::new(limits.into(), &config, account.clone(), &open_budget);
        let demand =
            Demand { max_output_tokens: Some(30), has_output: true, choices: 1, ..Demand::default() };
        // The server is away: this instance admits the request alone, and reports it later.
        let reserved =
            limiter.reserve_with_lease(&desk, Some(&deployment), &demand, accounts.start(), UNIX_EPOCH).await;
        let reservation = reserved.unwrap();
        desk.set_up(1000);
        let report = account.begin_report(&desk, ReportKind::Changes, accounts.start(), UNIX_EPOCH).unwrap();
        let limits = report.limits().to_vec();
        drop(report);
        drop(reservation);
        limits
    }

    #[tokio::test]
    async fn a_report_names_each_limit_and_a_budget_has_its_day() {
        let (keys, client) = (KeySpace::new("p"), ClientName::new("team-a"));
        let limits = report().await;
        let key = |limit| key_of(&keys, Some(&client), limit);
        assert_eq!(
            limits.iter().map(key).collect::<Vec<_>>(),
            [
                "{p:1:team-a}:limit:tokens_per_minute",
                "{p:1:team-a}:limit:gpt-4o:tokens_per_day:0",
                "{p:1:team-a}:limit:gpt-4o:in_flight",
            ]
        );
        let limits: Vec<_> = limits.iter().map(ReportedLimit::new).collect();
        // What was taken without a lease is asked for in advance next time.
        let expected = json!([
            { "is_known": false, "limit": 600, "free": 0, "short": 0, "extra": 30, "held": 0, "used": 0, "refunded": 0, "seconds": [1000, 30],
              "others": [], "keep_ms": 130_000 },
            { "is_known": false, "limit": 5000, "free": 0, "short": 0, "extra": 30, "held": 30, "used": 0, "refunded": 0, "seconds": [],
              "others": [], "keep_ms": 172_800_000 },
            { "is_known": false, "limit": 7, "free": 0, "short": 0, "extra": 1, "held": 1, "used": 0, "refunded": 0, "seconds": [],
              "others": [], "keep_ms": 130_000 },
        ]);
        assert_eq!(serde_json::to_value(limits).unwrap(), expected);
    }

    #[tokio::test]
    async fn an_answer_has_one_grant_for_each_limit() {
        let limits = report().await;
        let grant = |details: Vec<Value>| {
            let [granted, room, others, booked, refunded] = [5, 6, 7, 8, 2].map(Value::Int);
            Value::Array(vec![granted, room, others, booked, refunded, Value::Array(details)])
        };
        let id = || Value::BulkString(b"ab".to_vec());
        let answer = Value::Array(vec![
            grant(vec![Value::Int(1001), Value::Int(3)]),
            grant(vec![id(), Value::Int(4), Value::Int(1)]),
            grant(Vec::new()),
        ]);
        let sums = |booked, refunded| UnitSums { booked, refunded };
        let expected =
            LeaseGrant { granted: 5, room: 6, others: 7, own: sums(8, 2), ..LeaseGrant::default() };
        let expected = vec![
            LeaseGrant { others_by_second: vec![(1001, 3)], ..expected.clone() },
            LeaseGrant { others_by_instance: vec![("ab".to_owned(), sums(4, 1))], ..expected.clone() },
            expected,
        ];
        assert_eq!(parse_answer(&answer, &limits).unwrap(), ReportAnswer::Grants(expected));
        assert_eq!(parse_answer(&id(), &limits).unwrap(), ReportAnswer::IdInUse);
        for malformed in [
            Value::Nil,
            Value::Array(vec![grant(Vec::new())]),
            Value::Array(vec![Value::Int(1), grant(Vec::new()), grant(Vec::new())]),
            Value::Array(vec![grant(vec![Value::Int(1)]), grant(Vec::new()), grant(Vec::new())]),
            Value::Array(vec![grant(vec![id(), Value::Int(1)]), grant(Vec::new()), grant(Vec::new())]),
            Value::Array(vec![grant(Vec::new()), grant(vec![id(), Value::Int(1)]), grant(Vec::new())]),
            Value::Array(vec![
                grant(vec![Value::Int(1), Value::Int(-1)]),
                grant(Vec::new()),
                grant(Vec::new()),
            ]),
        ] {
            assert!(parse_answer(&malformed, &limits).is_err(), "{malformed:?}");
        }
    }
}
