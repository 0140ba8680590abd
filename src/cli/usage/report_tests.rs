//! Tests of the totals and of each format of the report.

use super::*;
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
    let mut report = UsageReport::default();
    report.add_file(&plain).unwrap();
    report.add_file(&compressed).unwrap();
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
    assert!(report.add_file(Path::new("/no/such/file")).is_err());
}

fn report_of(records: &[serde_json::Value]) -> UsageReport {
    let mut report = UsageReport::default();
    for (n, record) in records.iter().enumerate() {
        let mut record = record.clone();
        record["time"] = "2026-11-23T08:00:00.000000Z".into();
        record["request_id"] = uuid::Uuid::from_u128(n as u128).to_string().into();
        report.add_record(record.to_string().as_bytes());
    }
    report
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

#[test]
fn a_csv_field_is_quoted_if_it_needs_to_be() {
    for (text, expected) in
        [("team-a", "team-a"), ("", ""), ("a,b", "\"a,b\""), ("=1+1", "\"=1+1\""), ("a\"b", "\"a\"\"b\"")]
    {
        assert_eq!(quote_csv_field(text), expected);
    }
}
