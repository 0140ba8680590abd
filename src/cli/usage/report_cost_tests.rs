//! Tests of costs, of the shares of provisioned backends, and of what a lower tier has answered.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::cli::usage::time_range::TimePoint;
use crate::config::parse_and_check_yaml;

const CONFIG: &str = "listeners: [ { address: '127.0.0.1:8080' } ]
clients: open
backends:
  - { name: ptu, endpoint: 'https://p.x', credential: { api_key: k }, provisioned: { cost_per_hour: 10 } }
  - { name: paid, endpoint: 'https://q.x', credential: { api_key: k }, tier: 2 }
prices: { currency: USD, rows: [ { deployment: priced, input: 1, cached: 0.5, output: 8 } ] }
";

fn at(time: &str) -> DateTime<Utc> {
    time.parse().unwrap()
}

fn report(keys: &str, options: CostOptions, range: TimeRange, records: &[Value]) -> UsageReport {
    let keys = keys.split(',').map(|name| {
        let all = <GroupingKey as clap::ValueEnum>::value_variants();
        *all.iter().find(|key| key.name() == name).unwrap()
    });
    let grouping = Grouping { keys: keys.collect(), order: RowOrder::Tokens };
    let mut report = UsageReport::new(grouping, range, options);
    for (n, record) in records.iter().enumerate() {
        let mut record = record.clone();
        record["request_id"] = uuid::Uuid::from_u128(n as u128).to_string().into();
        report.add_record(record.to_string().as_bytes());
    }
    report.add_shares(at("2026-11-23T12:00:00Z"));
    report
}

fn options(only_spills: bool, has_config: bool) -> CostOptions {
    let config = || parse_and_check_yaml(CONFIG, Path::new(""), &|_| None).unwrap().config;
    let provisioned = has_config.then(|| ProvisionedShares::new(&config()));
    CostOptions { shows_cost: true, only_spills, provisioned }
}

fn csv(report: &UsageReport) -> Vec<String> {
    let mut out = Vec::new();
    report.write(ReportFormat::Csv, &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

fn record(time: &str, client: &str, backend: &str, more: &Value) -> Value {
    let mut record = json!({"time": format!("2026-11-{time}:00.000000Z"), "client": client, "backend": backend, "deployment": "priced"});
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

#[test]
fn costs_are_summed_up_exactly_and_what_has_none_is_counted() {
    let with = |client: &str, more: Value| record("23T08:00", client, "paid", &more);
    let records = [
        with("a", json!({"total_tokens": 3, "cost": 0.1})),
        with("a", json!({"total_tokens": 3, "cost": 0.2})),
        with("a", json!({"total_tokens": 3, "cost": null})),
        with("a", json!({"usage_missing": "image"})),
        with("a", json!({"audio_seconds": 2})),
        // Refused, or billed elsewhere.
        with("a", json!({"status": 429})),
        with("b", json!({"total_tokens": 1, "cost": 1_234_567.000_001})),
        with("c", json!({"total_tokens": 90, "cost": 0})),
    ];
    let report = report("client", options(false, false), TimeRange::default(), &records);
    let rows = csv(&report);
    let columns = "client,requests,input,output,cached,reasoning,total,cost,without_cost,input_audio,output_audio,cached_audio,audio_seconds";
    let expected = [
        columns,
        "b,1,0,0,0,0,1,1234567.000001,0,0,0,0,0",
        "a,6,0,0,0,0,9,0.3,3,0,0,0,2",
        "c,1,0,0,0,0,90,0,0,0,0,0,0",
    ];
    assert_eq!(rows, expected);
    let mut json = Vec::new();
    report.write(ReportFormat::Json, &mut json).unwrap();
    let rows: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&rows[0]["cost"], &rows[1]["cost"]), (&json!(1_234_567.000_001), &json!(0.3)));
    assert_eq!((&rows[1]["without_cost"], &rows[1]["provisioned"]), (&json!(3), &Value::Null));
}

#[test]
fn a_provisioned_backend_is_shared_out_by_priced_tokens_day_by_day() {
    let tokens = |input: u64, cached: u64, output: u64| json!({"input_tokens": input, "cached_tokens": cached, "output_tokens": output});
    let of = |day: &str, client: &str, more: Value| record(&format!("{day}T08:00"), client, "ptu", &more);
    let records = [
        // 100 + 50 and 50 + 400 at these prices.
        of("20", "a", tokens(200, 100, 0)),
        of("20", "b", tokens(50, 0, 50)),
        of("22", "a", tokens(1, 0, 0)),
        // Half of the day is over.
        of("23", "b", tokens(1, 0, 0)),
        record("23T09:00", "b", "paid", &json!({"total_tokens": 2, "cost": 0.5})),
        record("23T09:00", "b", "paid", &json!({"total_tokens": 2})),
    ];
    let all = report("client", options(false, true), TimeRange::default(), &records);
    let columns = "client,requests,input,output,cached,reasoning,total,cost,provisioned,without_cost";
    assert_eq!(csv(&all), [columns, "b,4,51,50,0,0,4,0.5,300,1", "a,2,201,0,100,0,0,0,300,0"]);
    let now = at("2026-11-23T12:00:00Z");
    let idle = |report: &UsageReport| {
        let idle = report.idle_days(now).into_iter();
        idle.map(|(name, days, amount)| format!("{name} {days} {amount}")).collect::<Vec<_>>()
    };
    assert_eq!((idle(&all), all.currency()), (vec!["ptu 1 240".to_owned()], Some("USD")));

    let point = |text: &str| Some(TimePoint::parse(text).unwrap());
    let range = TimeRange::new(point("2026-11-18T12:00:00Z"), point("2026-11-20T18:00:00Z"), now).unwrap();
    let ranged = report("client", options(false, true), range, &records);
    // 18 hours of the 20th; 12 hours of the 18th and all of the 19th were not used.
    assert_eq!(csv(&ranged)[1..], ["b,1,50,50,0,0,0,0,135,0", "a,1,200,0,100,0,0,0,45,0"]);
    assert_eq!(idle(&ranged), ["ptu 2 360"]);
}

#[test]
fn without_a_price_an_output_token_is_four_input_tokens() {
    let of = |client: &str, input: u64, output: u64| {
        let more = json!({"input_tokens": input, "output_tokens": output, "deployment": "other"});
        record("22T08:00", client, "ptu", &more)
    };
    let report =
        report("client", options(false, true), TimeRange::default(), &[of("a", 100, 0), of("b", 0, 75)]);
    let shares: Vec<String> =
        csv(&report)[1..].iter().map(|row| row.split(',').nth(8).unwrap().to_owned()).collect();
    assert_eq!(shares, ["180", "60"]);
}

#[test]
fn spills_have_their_reason_and_the_load_of_the_provisioned_tier() {
    let spill = |minute: &str, reason: &str| {
        record(
            &format!("22T{minute}"),
            "a",
            "paid",
            &json!({"total_tokens": 10, "cost": 0.25, "spilled": reason}),
        )
    };
    let served = |minute: &str, tokens: u64| {
        record(&format!("22T{minute}"), "b", "ptu", &json!({"total_tokens": tokens, "deployment": "PRICED"}))
    };
    let records = [
        spill("08:00", "throttled"),
        served("08:00", 60),
        served("08:00", 20),
        spill("08:01", "throttled"),
        served("08:02", 100),
        spill("08:02", "drained"),
    ];
    let of =
        |has_config| report("deployment,spilled", options(true, has_config), TimeRange::default(), &records);
    let columns =
        "deployment,spilled,requests,input,output,cached,reasoning,total,cost,without_cost,provisioned_load";
    // 80 of 100 and 0 of 100 on average.
    let rows = ["priced,throttled,2,0,0,0,0,20,0.5,0,40%", "priced,drained,1,0,0,0,0,10,0.25,0,100%"];
    assert_eq!(csv(&of(true)), [columns, rows[0], rows[1]]);
    let unknown = rows.map(|row| row.rsplit_once(',').unwrap().0.to_owned() + ",");
    assert_eq!(csv(&of(false)), [columns, &unknown[0], &unknown[1]]);
}

#[test]
fn shares_are_the_cost_exactly() {
    // Three equal shares of 240, and seven, cannot be written with six decimals each.
    for clients in [3, 7, 11] {
        let of = |client: u32| record("22T08:00", &format!("c{client}"), "ptu", &json!({"input_tokens": 1}));
        let records: Vec<Value> = (0..clients).map(of).collect();
        let report = report("client", options(false, true), TimeRange::default(), &records);
        let sum: u64 = report.totals.values().map(|totals| totals.provisioned_millionths).sum();
        assert_eq!(sum, 240_000_000, "{clients}");
    }
}
