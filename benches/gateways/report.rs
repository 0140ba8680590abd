//! The samples of all runs, and the tables and JSON made of them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::running_gateway::GatewayKind;

/// The values of one measurement, by name; the name ends with the unit.
pub type Samples = Vec<(&'static str, f64)>;

pub struct BenchReport {
    runs: usize,
    versions: Vec<(&'static str, String)>,
    pub tables: Vec<ScenarioTable>,
}

/// The samples of one scenario.
pub struct ScenarioTable {
    name: &'static str,
    title: &'static str,
    rows: Vec<(GatewayKind, Vec<Samples>)>,
    /// The gateways that could not take part, and the reasons.
    pub excluded: Vec<(&'static str, &'static str)>,
}

/// The columns that are also shown relative to bare Pingora.
const COSTS: [&str; 2] = ["cpu_us", "paced_cpu_us"];

/// The columns of a table: name of the value, heading, digits after the point.
const COLUMNS: [(&str, &str, usize); 16] = [
    ("cpu_us", "CPU µs", 1),
    ("per_second", "per second", 0),
    ("busy_percent", "busy %", 0),
    ("paced_cpu_us", "CPU µs at a fixed rate", 0),
    ("paced_switches", "context switches", 1),
    ("p50_us", "added p50 µs", 0),
    ("p99_us", "added p99 µs", 0),
    ("first_p50_us", "first event + p50 µs", 0),
    ("first_p99_us", "p99 µs", 0),
    ("later_p50_us", "later + p50 µs", 0),
    ("later_p99_us", "p99 µs", 0),
    ("refused_first_percent", "tried the refusing one %", 2),
    ("memory_before_kib", "idle KiB", 0),
    ("memory_kib", "KiB", 0),
    ("each_kib", "KiB each", 1),
    ("failures", "failures", 0),
];

/// A median with its 95 % confidence interval, whose limits are measured values (the smallest and the
/// largest if there are too few).
#[derive(Clone, Copy)]
pub struct MedianInterval {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl MedianInterval {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let count = values.len();
        let Some((first, last)) = values.first().zip(values.last()) else {
            return Self { value: f64::NAN, low: f64::NAN, high: f64::NAN };
        };
        let value = f64::midpoint(values[(count - 1) / 2], values[count / 2]);
        // Each value is below the true median with probability 1/2, so the number of values below it has a binomial
        // distribution. The interval is the narrowest one whose tails have at most 5 % together.
        let (mut outside, mut chance, mut lower_index) = (0.0, 0.5_f64.powi(count as i32), 0);
        for k in 0..count / 2 {
            outside += chance;
            if 2.0 * outside > 0.05 {
                break;
            }
            lower_index = k;
            chance *= (count - k) as f64 / (k + 1) as f64;
        }
        let (low, high) = if lower_index == 0 {
            (*first, *last)
        } else {
            (values[lower_index], values[count - 1 - lower_index])
        };
        Self { value, low, high }
    }
}

impl ScenarioTable {
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self { name, title, rows: Vec::new(), excluded: Vec::new() }
    }

    pub fn add(&mut self, kind: GatewayKind, samples: Samples) {
        match self.rows.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, all)) => all.push(samples),
            None => self.rows.push((kind, vec![samples])),
        }
    }

    fn median(&self, kind: GatewayKind, name: &str) -> Option<MedianInterval> {
        let values = self.values(kind, name);
        (!values.is_empty()).then(|| MedianInterval::of(values))
    }

    fn values(&self, kind: GatewayKind, name: &str) -> Vec<f64> {
        let runs = self.rows.iter().find(|(other, _)| *other == kind).map_or(&[][..], |(_, runs)| runs);
        let of_run = |run: &Samples| run.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        runs.iter().filter_map(of_run).collect()
    }

    /// The processor time of this name relative to bare Pingora, run by run.
    fn ratio_to_bare(&self, kind: GatewayKind, name: &str) -> Option<MedianInterval> {
        let bare_costs = self.values(GatewayKind::BarePingora, name);
        let ratios: Vec<_> =
            self.values(kind, name).iter().zip(&bare_costs).map(|(own, bare)| own / bare).collect();
        (!ratios.is_empty()).then(|| MedianInterval::of(ratios))
    }

    pub fn as_markdown(&self) -> String {
        let is_used = |name: &str| self.rows.iter().any(|(kind, _)| !self.values(*kind, name).is_empty());
        let columns: Vec<_> = COLUMNS.iter().filter(|(name, ..)| is_used(name)).collect();
        let mut text = format!("**{}**\n\n| |", self.title);
        let cost_count = COSTS.iter().filter(|name| is_used(name)).count();
        for (name, heading, _) in &columns {
            let _ = write!(text, " {heading} |");
            if COSTS.contains(name) {
                text.push_str(" of bare Pingora |");
            }
        }
        text.push_str("\n| --- |");
        text.push_str(&" ---: |".repeat(columns.len() + cost_count));
        text.push('\n');
        for (kind, _) in &self.rows {
            let _ = write!(text, "| {} |", kind.name());
            for (name, _, digits) in &columns {
                match self.median(*kind, name) {
                    None => text.push_str(" |"),
                    Some(MedianInterval { value, low, high }) if COSTS.contains(name) => {
                        let _ = write!(text, " {value:.digits$} ({low:.digits$} to {high:.digits$}) |");
                        match self.ratio_to_bare(*kind, name) {
                            Some(MedianInterval { value, low, high }) => {
                                let _ = write!(text, " {value:.2} ({low:.2} to {high:.2}) |");
                            }
                            None => text.push_str(" |"),
                        }
                    }
                    Some(median) => {
                        let _ = write!(text, " {:.digits$} |", median.value);
                    }
                }
            }
            text.push('\n');
        }
        for (name, reason) in &self.excluded {
            let _ = writeln!(text, "\n{name}: {reason}.");
        }
        text
    }

    fn as_json(&self) -> Value {
        let rows = self.rows.iter().map(|(kind, _)| {
            let used = COLUMNS.iter().filter_map(|(name, ..)| {
                let MedianInterval { value, low, high } = self.median(*kind, name)?;
                Some((
                    (*name).to_owned(),
                    json!({ "median": value, "low": low, "high": high, "runs": self.values(*kind, name) }),
                ))
            });
            let mut row: serde_json::Map<_, _> = used.collect();
            row.insert("subject".into(), kind.name().into());
            for (cost, ratio) in COSTS.iter().zip(["cpu_of_bare", "paced_cpu_of_bare"]) {
                if let Some(MedianInterval { value, low, high }) = self.ratio_to_bare(*kind, cost) {
                    row.insert(ratio.into(), json!({ "median": value, "low": low, "high": high }));
                }
            }
            Value::Object(row)
        });
        let excluded: Vec<_> =
            self.excluded.iter().map(|(name, reason)| json!({ "subject": name, "why": reason })).collect();
        json!({ "scenario": self.name, "title": self.title, "subjects": rows.collect::<Vec<_>>(), "left_out": excluded })
    }
}

impl BenchReport {
    pub fn new(runs: usize, kinds: &[(GatewayKind, String)]) -> Self {
        let versions = kinds.iter().map(|(kind, version)| (kind.name(), version.clone())).collect();
        Self { runs, versions, tables: Vec::new() }
    }

    /// One table of the most important medians: processor time, and memory for held streams.
    pub fn summary(&self) -> String {
        let kinds = || {
            GatewayKind::ALL
                .into_iter()
                .filter(|kind| self.versions.iter().any(|(name, _)| *name == kind.name()))
        };
        let mut text = String::from("| CPU µs per request, unless noted |");
        for kind in kinds() {
            let _ = write!(text, " {} |", kind.name());
        }
        text.push_str("\n| --- |");
        kinds().for_each(|_| text.push_str(" ---: |"));
        text.push('\n');
        for table in &self.tables {
            let (name, unit) = match table.name {
                "held" => ("each_kib", ": KiB each"),
                "streams" => ("cpu_us", ": per event"),
                _ => ("cpu_us", ""),
            };
            let _ = write!(text, "| {}{unit} |", table.title);
            for kind in kinds() {
                match table.median(kind, name) {
                    Some(MedianInterval { value, .. }) => {
                        let digits = usize::from(value < 100.0);
                        let _ = write!(text, " {value:.digits$} |");
                    }
                    None => text.push_str(" |"),
                }
            }
            text.push('\n');
        }
        text
    }

    pub fn as_json(&self) -> String {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let report = json!({
            "machine": {
                "processor": model.map(|(_, name)| name),
                "cores": std::thread::available_parallelism().ok().map(std::num::NonZero::get),
                "kernel": kernel.trim(),
            },
            "versions": self.versions.iter().map(|(name, version)| ((*name).to_owned(), json!(version))).collect::<serde_json::Map<_, _>>(),
            "runs": self.runs,
            "scenarios": self.tables.iter().map(ScenarioTable::as_json).collect::<Vec<_>>(),
        });
        format!("{report:#}\n")
    }
}
