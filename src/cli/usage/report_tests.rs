//! Tests of the totals and of each format of the report.

use std::fs::File;

use super::*;
use crate::cli::usage::time_range::TimePoint;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

fn record_line(n: u128, day: u32, client: Option<&str>, deployment: &str, tokens: Option<u64>) -> String {
    let id = uuid::Uuid::from_u128(n);
    serde_json::json!({
        "time": format!("2026-11-{day:02}T08:00:00.000000Z"), "request_id": id.to_string(), "client": client,
        "deployment": deployment, "backend": "east", "input_tokens": tokens, "output_tokens": tokens,
        "cached_tokens": null, "reasoning_tokens": null, "total_tokens": tokens.map(|t| 2 * t),
        "prompt": "a \"quoted\" prompt with \\u0000 and a } in it",
    })
    .to_string()
        + "\n"
}

#[test]
fn a_record_counts_once_whether_its_file_is_plain_or_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("exchanges.jsonl");
    let compressed = directory.path().join("exchanges-1.jsonl.gz");
    let text = record_line(1, 23, Some("team-a"), "gpt-4o", Some(10))
        + &record_line(2, 23, Some("team-a"), "GPT-4o", Some(5))
        + "not a record\n\n"
        + &record_line(3, 24, None, "gpt-4o", None)
        + "{\"time\":\"2026-11-24T";
    std::fs::write(&plain, text).unwrap();
    let mut gz = GzEncoder::new(File::create(&compressed).unwrap(), Compression::fast());
    gz.write_all(
        (record_line(4, 22, Some("team-b"), "gpt-4o", Some(1))
            + &record_line(1, 23, Some("team-a"), "gpt-4o", Some(10)))
            .as_bytes(),
    )
    .unwrap();
    gz.finish().unwrap();
    let (mut report, progress) = (UsageReport::default(), Progress::start(""));
    report.add_file(&plain, &progress).unwrap();
    report.add_file(&compressed, &progress).unwrap();
    assert_eq!((report.unreadable_lines, report.duplicate_records), (1, 1));
    let formatted = |format| {
        let mut out = Vec::new();
        report.write(format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        formatted(ReportFormat::Csv),
        "day,client,deployment,backend,requests,input,output,cached,reasoning,total\n\
         2026-11-22,team-b,gpt-4o,east,1,1,1,0,0,2\n\
         2026-11-23,team-a,gpt-4o,east,2,15,15,0,0,30\n\
         2026-11-24,,gpt-4o,east,1,0,0,0,0,0\n"
    );
    let json: serde_json::Value = serde_json::from_str(&formatted(ReportFormat::Json)).unwrap();
    assert_eq!((&json[1]["total_tokens"], &json[2]["client"]), (&30.into(), &serde_json::Value::Null));
    let table = formatted(ReportFormat::Table);
    assert!(table.lines().last().unwrap().starts_with("total"), "{table}");
    assert!(table.contains("2026-11-24  -       gpt-4o      east"), "{table}");
    assert!(report.add_file(Path::new("/no/such/file"), &progress).is_err());
}

fn report_of(records: &[serde_json::Value]) -> UsageReport {
    let mut report = UsageReport::default();
    add_records(&mut report, records);
    report
}

/// Adds records with ids of their own, of 2026-11-23 if they have no time.
fn add_records(report: &mut UsageReport, records: &[serde_json::Value]) {
    for (n, record) in records.iter().enumerate() {
        let mut record = record.clone();
        if record["time"].is_null() {
            record["time"] = "2026-11-23T08:00:00.000000Z".into();
        }
        record["request_id"] = uuid::Uuid::from_u128(n as u128).to_string().into();
        report.add_record(record.to_string().as_bytes());
    }
}

fn format_report(report: &UsageReport, format: ReportFormat) -> String {
    let mut out = Vec::new();
    report.write(format, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn audio_has_columns_if_there_is_any() {
    let report = report_of(&[
        json!({"client": "a", "input_tokens": 9, "input_audio_tokens": 8, "cached_audio_tokens": 4}),
        json!({"client": "a", "output_tokens": 7, "output_audio_tokens": 6, "audio_seconds": 1.5}),
        json!({"client": "b", "audio_seconds": 12.034}),
        json!({"client": "c", "input_tokens": 1, "input_audio_tokens": 0, "audio_seconds": null}),
    ]);
    let header = "day,client,deployment,backend,requests,input,output,cached,reasoning,total,\
                  input_audio,output_audio,cached_audio,audio_seconds\n";
    let rows = "2026-11-23,a,,,2,9,7,0,0,0,8,6,4,1.5\n\
                2026-11-23,b,,,1,0,0,0,0,0,0,0,0,12.034\n\
                2026-11-23,c,,,1,1,0,0,0,0,0,0,0,0\n";
    assert_eq!(format_report(&report, ReportFormat::Csv), format!("{header}{rows}"));
    let rows: serde_json::Value = serde_json::from_str(&format_report(&report, ReportFormat::Json)).unwrap();
    assert_eq!((&rows[0]["output_audio_tokens"], &rows[1]["audio_seconds"]), (&json!(6), &json!(12.034)));
    let table = format_report(&report, ReportFormat::Table);
    assert!(table.lines().last().unwrap().ends_with(" 13.534"), "{table}");
    let silent = report_of(&[json!({"client": "c", "input_tokens": 1, "input_audio_tokens": 0})]);
    for format in [ReportFormat::Csv, ReportFormat::Json, ReportFormat::Table] {
        assert!(!format_report(&silent, format).contains("audio"));
    }
}

#[test]
fn tokens_written_to_the_prompt_cache_have_a_column_if_there_are_any() {
    let report = report_of(&[
        json!({"client": "a", "input_tokens": 9, "cached_tokens": 4, "cache_write_tokens": 3}),
        json!({"client": "a", "input_tokens": 9, "cache_write_tokens": 2, "input_audio_tokens": 8}),
        json!({"client": "b", "input_tokens": 1, "cache_write_tokens": null}),
    ]);
    let header = "day,client,deployment,backend,requests,input,output,cached,reasoning,total,cache_write,\
                  input_audio,output_audio,cached_audio,audio_seconds\n";
    let rows = "2026-11-23,a,,,2,18,0,4,0,0,5,8,0,0,0\n2026-11-23,b,,,1,1,0,0,0,0,0,0,0,0,0\n";
    assert_eq!(format_report(&report, ReportFormat::Csv), format!("{header}{rows}"));
    let rows: serde_json::Value = serde_json::from_str(&format_report(&report, ReportFormat::Json)).unwrap();
    assert_eq!((&rows[0]["cache_write_tokens"], &rows[1]["cache_write_tokens"]), (&json!(5), &json!(0)));
    let without = report_of(&[json!({"client": "c", "input_tokens": 1, "cache_write_tokens": 0})]);
    for format in [ReportFormat::Csv, ReportFormat::Json, ReportFormat::Table] {
        assert!(!format_report(&without, format).contains("cache_write"));
    }
}

#[test]
fn turns_count_as_requests_and_their_websocket_does_not() {
    let turn = json!({"client": "a", "method": "WEBSOCKET", "status": 200, "input_tokens": 9});
    let socket = json!({"client": "a", "method": "GET", "status": 101, "input_tokens": null});
    let refused_upgrade = json!({"client": "b", "method": "GET", "status": 404});
    let idle_socket = json!({"client": "c", "method": "GET", "status": 101});
    let report = report_of(&[turn.clone(), turn, socket, refused_upgrade, idle_socket]);
    assert_eq!(
        format_report(&report, ReportFormat::Csv).lines().skip(1).collect::<Vec<_>>(),
        ["2026-11-23,a,,,2,18,0,0,0,0", "2026-11-23,b,,,1,0,0,0,0,0"]
    );
}

fn grouped(keys: &[GroupingKey]) -> UsageReport {
    let grouping = Grouping { keys: keys.to_vec(), order: RowOrder::Tokens };
    UsageReport::new(grouping, TimeRange::default(), CostOptions::default())
}

/// Records of two days, three clients and two deployments; some without class, as those of refused requests
/// and of earlier versions.
fn mixed_records() -> [serde_json::Value; 7] {
    let (first, second) = ("2026-11-22T23:59:59.999999Z", "2026-11-23T00:00:00.000000Z");
    [
        json!({"time": first, "client": "b", "deployment": "gpt-4o", "backend": "east", "class": "batch", "total_tokens": 5}),
        json!({"time": first, "client": "a", "deployment": "GPT-4o", "backend": "east", "class": "standard", "total_tokens": 2}),
        json!({"time": second, "client": "a", "deployment": "gpt-4o", "backend": "west", "class": "batch", "total_tokens": 3}),
        json!({"time": second, "client": "c", "deployment": "o3", "backend": "west", "class": "interactive", "total_tokens": 100}),
        json!({"time": second, "client": "b", "deployment": "o3", "backend": "west", "total_tokens": 7}),
        json!({"time": second, "client": null, "class": null, "status": 401}),
        json!({"time": second, "client": "c", "class": "interactive", "status": 101}),
    ]
}

#[test]
fn rows_are_sums_by_the_keys_in_their_order_the_largest_first() {
    use GroupingKey::{Backend, Class, Client, Day, Deployment};
    let cases: [(&[GroupingKey], &str, &[&str]); 8] = [
        (&[Client], "client", &["c,1,100", "b,2,12", "a,2,5", ",1,0"]),
        (&[Deployment], "deployment", &["o3,2,107", "gpt-4o,3,10", ",1,0"]),
        (&[Class], "class", &["interactive,1,100", "batch,2,8", ",2,7", "standard,1,2"]),
        (&[Backend], "backend", &["west,3,110", "east,2,7", ",1,0"]),
        (&[Day], "day", &["2026-11-23,4,110", "2026-11-22,2,7"]),
        (
            &[Client, Class],
            "client,class",
            &["c,interactive,1,100", "b,,1,7", "b,batch,1,5", "a,batch,1,3", "a,standard,1,2", ",,1,0"],
        ),
        (
            &[Class, Client],
            "class,client",
            &["interactive,c,1,100", ",b,1,7", "batch,b,1,5", "batch,a,1,3", "standard,a,1,2", ",,1,0"],
        ),
        (
            &[Deployment, Backend, Day],
            "deployment,backend,day",
            &[
                "o3,west,2026-11-23,2,107",
                "gpt-4o,east,2026-11-22,2,7",
                "gpt-4o,west,2026-11-23,1,3",
                ",,2026-11-23,1,0",
            ],
        ),
    ];
    for (keys, names, expected) in cases {
        let mut report = grouped(keys);
        add_records(&mut report, &mixed_records());
        let expected = expected.iter().map(|row| {
            let (start, total) = row.rsplit_once(',').unwrap();
            format!("{start},0,0,0,0,{total}")
        });
        let header = format!("{names},requests,input,output,cached,reasoning,total");
        let expected: Vec<String> = std::iter::once(header).chain(expected).collect();
        assert_eq!(format_report(&report, ReportFormat::Csv).lines().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn rows_with_equal_totals_are_sorted_by_name() {
    let records = [("b", "x", 4), ("a", "y", 4), ("c", "x", 9), ("a", "x", 4), ("d", "x", 0)];
    let records = records
        .map(|(client, class, tokens)| json!({"client": client, "class": class, "total_tokens": tokens}));
    let mut report = grouped(&[GroupingKey::Client, GroupingKey::Class]);
    add_records(&mut report, &records);
    let rows = format_report(&report, ReportFormat::Csv);
    let rows: Vec<&str> = rows.lines().skip(1).map(|row| row.split(",1,").next().unwrap()).collect();
    assert_eq!(rows, ["c,x", "a,x", "a,y", "b,x", "d,x"]);
}

#[test]
fn each_format_has_only_the_columns_of_the_keys() {
    let mut report = grouped(&[GroupingKey::Class, GroupingKey::Client]);
    add_records(&mut report, &mixed_records());
    let table = format_report(&report, ReportFormat::Table);
    let expected = "\
class        client  requests  input  output  cached  reasoning  total
interactive  c              1      0       0       0          0    100
-            b              1      0       0       0          0      7
batch        b              1      0       0       0          0      5
batch        a              1      0       0       0          0      3
standard     a              1      0       0       0          0      2
-            -              1      0       0       0          0      0
total                       6      0       0       0          0    117
";
    assert_eq!(table, expected);
    let rows: serde_json::Value = serde_json::from_str(&format_report(&report, ReportFormat::Json)).unwrap();
    let expected = json!({
        "class": null, "client": "b", "requests": 1, "input_tokens": 0, "output_tokens": 0, "cached_tokens": 0,
        "reasoning_tokens": 0, "total_tokens": 7,
    });
    assert_eq!((&rows[1], rows.as_array().unwrap().len()), (&expected, 6));
}

#[test]
fn records_out_of_the_range_do_not_count() {
    let point = |text| Some(TimePoint::parse(text).unwrap());
    let now = std::time::SystemTime::UNIX_EPOCH.into();
    for (since, until, expected, unreadable) in [
        (None, None, ["2026-11-22,2", "2026-11-23,4", "2026-11-2x,1"].as_slice(), 0),
        (point("2026-11-23"), None, &["2026-11-23,4"], 1),
        (None, point("2026-11-23"), &["2026-11-22,2"], 1),
        (point("2026-11-22"), point("2026-11-24"), &["2026-11-22,2", "2026-11-23,4"], 1),
        (point("2026-11-24"), None, &[], 1),
    ] {
        let range = TimeRange::new(since, until, now).unwrap();
        let grouping = Grouping { keys: vec![GroupingKey::Day], order: RowOrder::Keys };
        let mut report = UsageReport::new(grouping, range, CostOptions::default());
        add_records(&mut report, &mixed_records());
        report.add_record(br#"{"time":"2026-11-2x at night","request_id":""}"#);
        let csv = format_report(&report, ReportFormat::Csv);
        let rows: Vec<&str> = csv.lines().skip(1).map(|row| row.split(",0,").next().unwrap()).collect();
        assert_eq!((rows.as_slice(), report.unreadable_lines), (expected, unreadable), "{range:?}");
    }
}

#[test]
fn a_csv_field_is_quoted_if_it_needs_to_be() {
    for (text, expected) in
        [("team-a", "team-a"), ("", ""), ("a,b", "\"a,b\""), ("=1+1", "\"=1+1\""), ("a\"b", "\"a\"\"b\"")]
    {
        assert_eq!(quote_csv_field(text), expected);
    }
}
