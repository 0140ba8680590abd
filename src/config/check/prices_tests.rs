use regex::Regex;

use super::*;
use crate::config::testing::{assert_errors, assert_warnings, errors_in, parse_valid, test_environment};
use crate::config::{load_and_check_file, problem_report};

const BACKENDS: &str = "backends:
  - { name: east, endpoint: 'https://e.x', credential: { api_key: k }, deployments: { chat: gpt-4o-prod, mini: mini } }
  - { name: ptu, endpoint: 'https://p.x', credential: { api_key: k }, deployments: { big: b }, provisioned: {} }
  - { name: off, endpoint: 'https://o.x', deployments: { chat: o }, enabled: false }
";

fn with_rows(rows: &str) -> String {
    format!("{BACKENDS}prices: {{ currency: USD, rows: [ {rows} ] }}")
}

#[test]
fn rows_are_read_as_exact_amounts() {
    let yaml = "prices:
  currency: EUR
  rows:
    - { deployment: Chat, backend: east, service_tier: Flex, from: 2026-01-31, input: 2.50, cached: '1.25', output: 10 }
    - { model: GPT-4o, cache_write: 0.000001, audio_input: 40, audio_cached: 2.5, audio_output: 80, per_image: '${FOUR}', per_minute: 0.006 }
    - { model: whisper, per_minute: 0, service_tier: default }
";
    let list = parse_valid(&format!("{BACKENDS}{yaml}")).config.prices.unwrap();
    assert_eq!((list.currency(), list.rows().len()), ("EUR", 3));
    let amount = |text| Some(Amount::parse(text).unwrap());
    let [flex, gpt_4o, whisper] = list.rows() else { panic!("{list:?}") };
    let deployment = PriceSubject::Deployment(DeploymentName::parse("chat").unwrap());
    assert_eq!(flex.key, PriceKey::new(deployment, Some(BackendName::new("east")), Some("flex")));
    assert_eq!(flex.from, NaiveDate::from_ymd_opt(2026, 1, 31));
    let rates =
        Rates { input: amount("2.5"), cached: amount("1.25"), output: amount("10"), ..Rates::default() };
    assert_eq!(flex.rates, rates);
    let rates = Rates {
        cache_write: amount("0.000001"),
        audio_input: amount("40"),
        audio_cached: amount("2.5"),
        audio_output: amount("80"),
        per_image: amount("4"),
        per_minute: amount("0.006"),
        ..Rates::default()
    };
    assert_eq!((gpt_4o.rates, gpt_4o.from), (rates, None));
    assert_eq!(gpt_4o.key, PriceKey::new(PriceSubject::Model("gpt-4o".to_owned()), None, None));
    assert_eq!((&whisper.key.service_tier, whisper.rates.per_minute), (&None, amount("0")));
    assert_eq!(parse_valid("").config.prices, None);
}

#[test]
fn what_is_wrong_is_told_with_what_would_be_right() {
    const AMOUNT: &str = "must be a number from 0 to 1000000, such as 2.50";
    const ROW: &str = "such as { model: gpt-4o, input: 2.50, cached: 1.25, output: 10.00 }";
    for (rows, expected) in [
        ("", vec![format!("prices.rows: must have at least one, {ROW}")]),
        ("{ input: 1 }", vec![format!("prices.rows[0]: needs one of deployment and model; {ROW}")]),
        (
            "{ model: a, deployment: chat, input: 1 }",
            vec!["prices.rows[0]: has both deployment and model; remove one of them".to_owned()],
        ),
        ("{ model: a }", vec![format!("prices.rows[0]: has no price, {ROW}")]),
        ("{ model: a, inputs: 1 }", vec![
            "prices.rows[0].inputs: unknown key; did you mean `input`?".to_owned(),
            format!("prices.rows[0]: has no price, {ROW}"),
        ]),
        (
            "{ model: a, input: -1, cached: 1e3, output: $5, per_image: 1000000.01 }",
            ["input", "cached", "output", "per_image"]
                .map(|key| format!("prices.rows[0].{key}: {AMOUNT}"))
                .to_vec(),
        ),
        (
            "{ model: a, input: 0.0000001 }",
            vec!["prices.rows[0].input: must have at most six decimals, such as 2.50".to_owned()],
        ),
        (
            "{ model: a, input: 1, from: 31.01.2026 }, { model: a, input: 1, from: 2026-02-30 }",
            [0, 1].map(|row| format!("prices.rows[{row}].from: must be a date, such as 2026-01-31")).to_vec(),
        ),
        (
            "{ model: a, backend: eats, input: 1 }",
            vec!["prices.rows[0].backend: must be the name of a backend, and there is none with this one".to_owned()],
        ),
        (
            "{ model: A, input: 1, from: 2026-01-01 }, { model: a, input: 2 }, { model: a, service_tier: standard, input: 2, from: 2026-01-01 }",
            vec![
                "prices.rows[2]: is about the same as prices.rows[0], from the same day on; remove one of them, or \
                 give it another `from`"
                    .to_owned(),
            ],
        ),
    ] {
        assert_eq!(errors_in(&with_rows(rows)), expected, "{rows}");
    }
    assert_errors(&[
        (
            "prices: {}",
            &["prices: needs one of rows and file; write the rows here, or the file that has them"],
        ),
        (
            "prices: { rows: [ { model: a, input: 1 } ] }",
            &["prices.currency: is missing; write the currency of the prices, such as currency: USD"],
        ),
        (
            "prices: { currency: $, rows: [ { model: a, input: 1 } ] }",
            &["prices.currency: must be three capital letters, such as USD"],
        ),
        ("price: {}", &["price: unknown key; did you mean `prices`?"]),
    ]);
}

#[test]
fn rows_that_never_apply_and_deployments_without_a_row_are_warnings() {
    const UNPRICED: &str = "prices.rows: have no row for mini, neither by the deployment's name nor by that of a model \
                            within it: its responses have no cost unless they name a model that has a row";
    let chat = "{ model: gpt-4o, input: 1 }";
    let with = |rows: &str| with_rows(&format!("{chat}, {rows}"));
    assert_warnings(&[
        (&with_rows("{ deployment: chat, input: 1 }, { model: mini, input: 1 }"), &[]),
        (&with_rows(chat), &[UNPRICED]),
        (&with("{ model: mini, backend: ptu, input: 1 }"), &[UNPRICED]),
        (&with("{ model: mini, backend: east, input: 1 }"), &[]),
        // A disabled backend may come back.
        (&with("{ deployment: MINI, input: 1 }, { deployment: chat, backend: off, input: 1 }"), &[]),
        (
            &with("{ deployment: minj, input: 1 }"),
            &[
                "prices.rows[1].deployment: has no effect: no backend serves this deployment; did you mean mini?",
                UNPRICED,
            ],
        ),
        (
            &with("{ model: mini, input: 1, service_tier: batch }"),
            &[
                "prices.rows[1].service_tier: is no service tier that responses are known to name: default, flex, \
                 priority or scale. Prices of a deployment type, such as a data zone, differ by deployment \
                 or backend",
            ],
        ),
    ]);
}

#[test]
fn a_file_of_prices_has_its_own_places() {
    let directory = tempfile::tempdir().unwrap();
    let check = |main: &str, prices: &str| {
        let path = directory.path().join("main.yaml");
        std::fs::write(directory.path().join("prices.yaml"), prices).unwrap();
        std::fs::write(
            &path,
            format!("listeners: [ {{ address: '127.0.0.1:8080' }} ]\nclients: open\n{BACKENDS}{main}"),
        )
        .unwrap();
        let checked = load_and_check_file(&path, &test_environment);
        let report =
            checked.map(|checked| (problem_report(&[], &checked.warnings), checked.config.prices.unwrap()));
        let hide = |text: String| text.replace(&*directory.path().to_string_lossy(), "DIR");
        report
            .map(|(warnings, list)| (hide(warnings), list.rows().len()))
            .map_err(|problems| hide(problems.to_string()))
    };
    const FILE: &str = "prices: { file: prices.yaml }";
    assert_eq!(
        check(FILE, "currency: USD\nrows:\n  - { model: mini, input: 1 }\n  - { model: gpt-4o, input: 1 }\n"),
        Ok((String::new(), 2))
    );
    let warned = check(FILE, "currency: USD\nrows:\n  - { model: gpt-4o, input: 1 }\n").unwrap().0;
    assert!(warned.starts_with("DIR/prices.yaml:2: warning: rows: have no row"), "{warned}");
    for (main, prices, expected) in [
        (
            FILE,
            "currency: USD\nrows:\n  - { model: mini, input: x }\n",
            "DIR/prices.yaml:3: error: rows[0].input: must be a number",
        ),
        (FILE, "rows: [ { model: mini, input: 1 } ]\n", "DIR/prices.yaml: error: currency: is missing"),
        (FILE, "currency: [", "DIR/prices.yaml:2: error: not valid YAML"),
        (
            FILE,
            "prices: {}",
            "DIR/prices.yaml:1: error: prices: unknown key; the keys here are currency and rows",
        ),
        (
            "prices: { file: none.yaml }",
            "",
            "DIR/main.yaml:7: error: prices.file: cannot read the file: No such file or directory",
        ),
        (
            "prices: { file: prices.yaml, currency: USD }",
            "currency: USD\nrows: [ { model: mini, input: 1 } ]",
            "DIR/main.yaml:7: error: prices.currency: belongs into the file",
        ),
        (
            "prices: { file: prices.yaml, rows: [] }",
            "",
            "DIR/main.yaml:7: error: prices: has both rows and file",
        ),
    ] {
        let report = check(main, prices).unwrap_err();
        assert!(report.starts_with(expected), "{report}\n{expected}");
    }
}

#[test]
fn the_example_of_a_price_file_is_valid() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/prices.yaml");
    let list = parse_valid(&format!("prices: {{ file: '{file}' }}")).config.prices.unwrap();
    let gpt_4o = PriceSubject::Model("gpt-4o".to_owned());
    let row = list.rows().iter().find(|row| row.key.subject == gpt_4o).unwrap();
    assert_eq!(row.rates.input.unwrap().to_string(), "2.5");
    // Each row says where its price is from and when, those that are commented out as well.
    let text = std::fs::read_to_string(file).unwrap();
    let sourced =
        Regex::new(r"\}  +# (meters|blog), 20\d\d-\d\d-\d\d(; meters, 20\d\d-\d\d-\d\d)?$").unwrap();
    let (_, rows) = text.split_once("rows:\n").unwrap();
    let ends: Vec<_> = rows.lines().filter(|line| line.contains('}')).collect();
    assert!(ends.len() > list.rows().len());
    for end in ends {
        assert!(sourced.is_match(end), "{end}");
    }
}
