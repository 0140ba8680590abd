//! `aoai-lb usage`: what record files say of tokens and requests, per day, client, deployment and
//! backend. Reads line by line and keeps only the sums.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::table;

/// What stands for a field that is null.
const NONE: &str = "-";
/// A record that is delivered twice is so soon after the first time: so many are remembered.
const REMEMBERED: usize = 100_000;

/// The form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for a terminal, with a line of totals.
    Table,
    /// Comma-separated values with a line of names.
    Csv,
    /// An array of objects.
    Json,
}

/// Why a file cannot be summed up.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// It cannot be read.
    #[error("{}: {problem}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        problem: io::Error,
    },
    /// The report cannot be written.
    #[error("cannot write the report: {0}")]
    Write(#[from] io::Error),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Key {
    day: String,
    client: Option<String>,
    deployment: Option<String>,
    backend: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Sums {
    requests: u64,
    input_tokens: u64,
    output_tokens: u64,
    cached_tokens: u64,
    reasoning_tokens: u64,
    total_tokens: u64,
}

/// The fields of a record that count.
#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    request_id: Cow<'a, str>,
    #[serde(borrow, default)]
    client: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    deployment: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    backend: Option<Cow<'a, str>>,
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default)]
    reasoning_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
}

/// The sums of some files.
#[derive(Debug, Default)]
pub struct Report {
    sums: BTreeMap<Key, Sums>,
    seen: HashSet<u128>,
    order: VecDeque<u128>,
    /// Lines that are no record.
    pub strange: u64,
    /// Records that were there twice.
    pub repeated: u64,
}

impl Report {
    /// Adds a file: plain, or compressed where its name ends in `.gz`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn add(&mut self, path: &Path) -> Result<(), UsageError> {
        let read = |problem| UsageError::Read { path: path.to_owned(), problem };
        let file = BufReader::with_capacity(256 * 1024, File::open(path).map_err(read)?);
        if path.extension().is_some_and(|ending| ending == "gz") {
            self.read(BufReader::with_capacity(256 * 1024, MultiGzDecoder::new(file))).map_err(read)
        } else {
            self.read(file).map_err(read)
        }
    }

    fn read(&mut self, mut lines: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            // What has no end is being written just now.
            if line.ends_with(b"\n") && !line.trim_ascii().is_empty() {
                self.line(&line);
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        let Ok(row) = serde_json::from_slice::<Row<'_>>(line) else {
            self.strange += 1;
            return;
        };
        let Some(day) = row.time.get(..10) else {
            self.strange += 1;
            return;
        };
        if let Ok(id) = uuid::Uuid::try_parse(&row.request_id)
            && self.is_repeated(id.as_u128())
        {
            self.repeated += 1;
            return;
        }
        let text = |text: &Option<Cow<'_, str>>| text.as_ref().map(|text| text.clone().into_owned());
        let deployment = row.deployment.as_ref().map(|name| name.to_ascii_lowercase());
        let key =
            Key { day: day.to_owned(), client: text(&row.client), deployment, backend: text(&row.backend) };
        let sums = self.sums.entry(key).or_default();
        sums.add(&Sums {
            requests: 1,
            input_tokens: row.input_tokens.unwrap_or(0),
            output_tokens: row.output_tokens.unwrap_or(0),
            cached_tokens: row.cached_tokens.unwrap_or(0),
            reasoning_tokens: row.reasoning_tokens.unwrap_or(0),
            total_tokens: row.total_tokens.unwrap_or(0),
        });
    }

    fn is_repeated(&mut self, id: u128) -> bool {
        if !self.seen.insert(id) {
            return true;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(old) = self.order.pop_front()
        {
            self.seen.remove(&old);
        }
        false
    }

    /// Writes the report.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, format: Format, to: &mut impl Write) -> Result<(), UsageError> {
        match format {
            Format::Table => self.table(to)?,
            Format::Csv => {
                writeln!(to, "{}", NAMES.join(","))?;
                for (key, sums) in &self.sums {
                    let fields: Vec<String> = key.fields("").into_iter().map(quoted).collect();
                    let counts: Vec<String> = sums.counts().iter().map(u64::to_string).collect();
                    writeln!(to, "{},{}", fields.join(","), counts.join(","))?;
                }
            }
            Format::Json => {
                #[derive(Serialize)]
                struct Line<'a> {
                    #[serde(flatten)]
                    key: &'a Key,
                    #[serde(flatten)]
                    sums: &'a Sums,
                }
                let lines: Vec<Line<'_>> = self.sums.iter().map(|(key, sums)| Line { key, sums }).collect();
                serde_json::to_writer_pretty(&mut *to, &lines).map_err(io::Error::from)?;
                writeln!(to)?;
            }
        }
        Ok(())
    }

    fn table(&self, to: &mut impl Write) -> io::Result<()> {
        let mut total = Sums::default();
        let mut rows: Vec<Vec<String>> = vec![NAMES.map(str::to_owned).to_vec()];
        for (key, sums) in &self.sums {
            total.add(sums);
            let fields = key.fields(NONE).into_iter().map(str::to_owned);
            rows.push(fields.chain(sums.counts().iter().map(u64::to_string)).collect());
        }
        let fields = ["total", "", "", ""].map(str::to_owned);
        rows.push(fields.into_iter().chain(total.counts().iter().map(u64::to_string)).collect());
        table::write(&rows, 4, to)
    }
}

const NAMES: [&str; 10] =
    ["day", "client", "deployment", "backend", "requests", "input", "output", "cached", "reasoning", "total"];

impl Key {
    fn fields<'s>(&'s self, none: &'s str) -> [&'s str; 4] {
        let text = |text: &'s Option<String>| text.as_deref().unwrap_or(none);
        [&self.day, text(&self.client), text(&self.deployment), text(&self.backend)]
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        let Self { requests, input_tokens, output_tokens, cached_tokens, reasoning_tokens, total_tokens } =
            self;
        for (sum, more) in
            [requests, input_tokens, output_tokens, cached_tokens, reasoning_tokens, total_tokens]
                .into_iter()
                .zip(other.counts())
        {
            *sum = sum.saturating_add(more);
        }
    }

    fn counts(&self) -> [u64; 6] {
        [
            self.requests,
            self.input_tokens,
            self.output_tokens,
            self.cached_tokens,
            self.reasoning_tokens,
            self.total_tokens,
        ]
    }
}

/// A field of comma-separated values (RFC 4180).
fn quoted(text: &str) -> String {
    let is_plain =
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._- ".contains(&b)) && !text.starts_with('-');
    if is_plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn line(n: u128, day: u32, client: Option<&str>, deployment: &str, tokens: Option<u64>) -> String {
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
    fn files_of_all_kinds_are_summed_up_once() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("exchanges.jsonl");
        let packed = directory.path().join("exchanges-1.jsonl.gz");
        let text = line(1, 23, Some("team-a"), "gpt-4o", Some(10))
            + &line(2, 23, Some("team-a"), "GPT-4o", Some(5))
            + "not a record\n\n"
            + &line(3, 24, None, "gpt-4o", None)
            + "{\"time\":\"2026-11-24T";
        std::fs::write(&plain, text).unwrap();
        let mut gz = GzEncoder::new(File::create(&packed).unwrap(), Compression::fast());
        gz.write_all(
            (line(4, 22, Some("team-b"), "gpt-4o", Some(1))
                + &line(1, 23, Some("team-a"), "gpt-4o", Some(10)))
                .as_bytes(),
        )
        .unwrap();
        gz.finish().unwrap();
        let mut report = Report::default();
        report.add(&plain).unwrap();
        report.add(&packed).unwrap();
        assert_eq!((report.strange, report.repeated), (1, 1));
        let show = |format| {
            let mut out = Vec::new();
            report.write(format, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            show(Format::Csv),
            "day,client,deployment,backend,requests,input,output,cached,reasoning,total\n\
             2026-11-22,team-b,gpt-4o,east,1,1,1,0,0,2\n\
             2026-11-23,team-a,gpt-4o,east,2,15,15,0,0,30\n\
             2026-11-24,,gpt-4o,east,1,0,0,0,0,0\n"
        );
        let json: serde_json::Value = serde_json::from_str(&show(Format::Json)).unwrap();
        assert_eq!((&json[1]["total_tokens"], &json[2]["client"]), (&30.into(), &serde_json::Value::Null));
        let table = show(Format::Table);
        assert!(table.lines().last().unwrap().starts_with("total"), "{table}");
        assert!(table.contains("2026-11-24  -       gpt-4o      east"), "{table}");
        assert!(report.add(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn values_are_quoted_where_they_have_to_be() {
        for (text, expected) in
            [("team-a", "team-a"), ("", ""), ("a,b", "\"a,b\""), ("=1+1", "\"=1+1\""), ("a\"b", "\"a\"\"b\"")]
        {
            assert_eq!(quoted(text), expected);
        }
    }
}
