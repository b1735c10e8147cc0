//! `cargo xtask bench`: whole runs, measured from their reports, written to `docs/benchmarks.md`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;
use jiff::Timestamp;
use lab::run::Program;
use serde_json::Value;

use crate::cli::{BenchArgs, Subject};
use crate::workspace::{self, say, tell};

/// One measured quantity.
struct Row {
    what: &'static str,
    unit: Unit,
    /// What it must reach.
    bar: f64,
    values: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    GiB,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::GiB => "GiB",
        }
    }
}

/// Measures and writes `docs/benchmarks.md`.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    ensure!(args.runs > 0, "--runs must be at least 1");
    let load_before = load();
    let (name, rows) = match args.subject {
        Subject::Lab => ("lab", warm(args.runs)?),
        Subject::Cold => ("cold", cold()?),
    };
    let section = section(name, &rows, &load_before);
    say(&section);
    let path = workspace::root().join("docs/benchmarks.md");
    let old = fs::read_to_string(&path).unwrap_or_else(|_| HEADER.to_owned());
    fs::write(&path, replace_section(&old, name, &section)).context("writing the benchmarks")?;
    Ok(ExitCode::SUCCESS)
}

const HEADER: &str = "\
# Benchmarks

Written by `cargo xtask bench`; do not edit.
Times are of whole runs on one machine and vary with it; quote medians.
";

fn load() -> String {
    fs::read_to_string("/proc/loadavg")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Runs the smoke suite on a warm cache and reads its reports.
fn warm(runs: usize) -> Result<Vec<Row>> {
    // Not counted: builds whatever is missing and warms the page cache.
    smoke(&[])?;
    let mut walls = Vec::new();
    let mut reports = Vec::new();
    for index in 1..=runs {
        let (wall, report) = smoke(&[])?;
        tell(&format!(
            "run {index} of {runs}: {:.1}s\n",
            wall.as_secs_f64()
        ));
        walls.push(wall.as_secs_f64());
        reports.push(report);
    }
    let each = |read: &dyn Fn(&Value) -> Option<f64>| {
        reports
            .iter()
            .map(|report| read(report).context("a report lacks a figure"))
            .collect::<Result<Vec<f64>>>()
    };
    Ok(vec![
        Row {
            what: "`lab up`: nodes Ready and DNS answering",
            unit: Unit::Seconds,
            bar: 8.0,
            values: each(&|report| phase(report, "cluster up"))?,
        },
        Row {
            what: "from nothing to Cilium enforcing its first policy: the first drop that it reports",
            unit: Unit::Seconds,
            bar: 25.0,
            values: each(&to_first_drop)?,
        },
        Row {
            what: "from nothing to the whole 9-pod table confirmed (two passes)",
            unit: Unit::Seconds,
            bar: 30.0,
            values: each(&to_whole_table)?,
        },
        Row {
            what: "one pass over the 9-pod truth table (306 cells: TCP, UDP, by pod IP and by service name)",
            unit: Unit::Seconds,
            bar: 2.0,
            values: each(&|report| {
                Some(report["verdicts"][0]["passes"][0]["duration_ms"].as_f64()? / 1000.0)
            })?,
        },
        Row {
            what: "from applying a policy to its first drop",
            unit: Unit::Seconds,
            bar: 2.0,
            values: each(&|report| {
                Some(report["verdicts"][0]["latency"]["apply_to_first_drop_ms"].as_f64()? / 1000.0)
            })?,
        },
        Row {
            what: "`lab down` with Cilium and 9 pods running",
            unit: Unit::Seconds,
            bar: 2.0,
            values: each(&|report| phase(report, "cluster down"))?,
        },
        Row {
            what: "the smoke suite, end to end",
            unit: Unit::Seconds,
            bar: 60.0,
            values: walls,
        },
        Row {
            what: "memory of the lab with Cilium and 9 pods (working set)",
            unit: Unit::GiB,
            bar: 2.0,
            values: each(&|report| {
                Some(report["machine"]["lab_memory_bytes"].as_f64()? / f64::from(1 << 30))
            })?,
        },
    ])
}

/// Runs the smoke suite with caches of its own, Go's included.
fn cold() -> Result<Vec<Row>> {
    let caches = tempfile::tempdir_in(workspace::target()).context("making empty caches")?;
    let at = |name: &str| caches.path().join(name).display().to_string();
    let variables = [
        ("HOLDFAST_CACHE", at("holdfast")),
        ("GOCACHE", at("go-build")),
        ("GOMODCACHE", at("go-mod")),
        // Module folders are read-only otherwise, and the caches could not be removed.
        ("GOFLAGS", "-modcacherw".to_owned()),
        ("CARGO_TARGET_DIR", at("target")),
    ];
    let (wall, _) = smoke(&variables)?;
    Ok(vec![Row {
        what: "`cargo xtask e2e --suite smoke` with empty caches (crates downloaded, nothing built)",
        unit: Unit::Seconds,
        bar: 1200.0,
        values: vec![wall.as_secs_f64()],
    }])
}

fn smoke(variables: &[(&str, String)]) -> Result<(Duration, Value)> {
    let mut program =
        workspace::cargo().args(["xtask", "e2e", "--suite", "smoke", "--lab", "bench"]);
    for (name, value) in variables {
        program = program.env(name, value);
    }
    let started = Instant::now();
    run_showing_tail(&program)?;
    let wall = started.elapsed();
    let target = variables
        .iter()
        .find(|(name, _)| *name == "CARGO_TARGET_DIR")
        .map_or_else(workspace::target, |(_, value)| value.into());
    let report =
        fs::read(target.join("holdfast/latest/report.json")).context("reading a report")?;
    Ok((
        wall,
        serde_json::from_slice(&report).context("reading a report")?,
    ))
}

fn run_showing_tail(program: &Program) -> Result<()> {
    program
        .run_with_lines(|line| {
            // Enough to see that it goes on; each run's own results hold the rest.
            if line.contains("done in") || line.contains("ENFORCING") {
                tell(&format!("  {line}\n"));
            }
        })
        .context("a measured run failed")
}

/// Seconds of a phase.
fn phase(report: &Value, name: &str) -> Option<f64> {
    let phases = report["phases"].as_array()?;
    let phase = phases.iter().find(|phase| phase["name"] == name)?;
    Some(phase["milliseconds"].as_f64()? / 1000.0)
}

/// From the start of the cluster to the first drop that the control reported.
fn to_first_drop(report: &Value) -> Option<f64> {
    since_start(report, &report["verdicts"][0]["latency"]["first_drop"])
}

/// From the start of the cluster to the end of the pass that found every cell as it must be.
fn to_whole_table(report: &Value) -> Option<f64> {
    let pass = &report["verdicts"][0]["passes"][0];
    Some(since_start(report, &pass["started"])? + pass["duration_ms"].as_f64()? / 1000.0)
}

/// Seconds from the start of the cluster to `moment`.
fn since_start(report: &Value, moment: &Value) -> Option<f64> {
    let phases = report["phases"].as_array()?;
    let up = phases.iter().find(|phase| phase["name"] == "cluster up")?;
    let started: Timestamp = up["started"].as_str()?.parse().ok()?;
    let moment: Timestamp = moment.as_str()?.parse().ok()?;
    Some(moment.duration_since(started).as_secs_f64())
}

/// Median of a non-empty list.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

fn section(name: &str, rows: &[Row], load_before: &str) -> String {
    use std::fmt::Write as _;
    let mut text = format!("## {name}\n\n");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let _ = writeln!(
        text,
        "{}, {} processors, kernel {}, load before `{load_before}`, after `{}`.\n",
        Timestamp::now().strftime("%Y-%m-%d"),
        std::thread::available_parallelism().map_or(0, usize::from),
        kernel.trim(),
        load()
    );
    text.push_str("| what | median | least | most | runs | must reach | of it |\n|---|---|---|---|---|---|---|\n");
    for row in rows {
        let unit = row.unit.name();
        let middle = median(&row.values);
        let least = row.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = row.values.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "| {} | **{middle:.2} {unit}** | {least:.2} | {most:.2} | {} | {} {unit} | {:.0} % |",
            row.what,
            row.values.len(),
            row.bar,
            100.0 * middle / row.bar
        );
    }
    text
}

/// Puts a section in the place of the one of the same name, or at the end.
fn replace_section(text: &str, name: &str, section: &str) -> String {
    let heading = format!("## {name}\n");
    let (before, rest) = match text.split_once(&heading) {
        Some((before, rest)) => (before.trim_end(), rest),
        None => (text.trim_end(), ""),
    };
    let after = rest
        .find("\n## ")
        .map_or("", |at| rest[at..].trim_start_matches('\n'));
    let mut new = format!("{before}\n\n{}", section.trim_end());
    if !after.is_empty() {
        new.push_str("\n\n");
        new.push_str(after.trim_end());
    }
    new.push('\n');
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        let close = |values: &[f64], expected: f64| (median(values) - expected).abs() < 1e-9;
        assert!(close(&[3.0, 1.0, 2.0], 2.0));
        assert!(close(&[4.0, 1.0, 2.0, 3.0], 2.5));
    }

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let text = "# Benchmarks\n\n## cold\n\nold\n\n## lab\n\nkept\n";
        let new = replace_section(text, "cold", "## cold\n\nnew\n");
        assert_eq!(new, "# Benchmarks\n\n## cold\n\nnew\n\n## lab\n\nkept\n");
        let added = replace_section("# Benchmarks\n", "lab", "## lab\n\nfirst\n");
        assert_eq!(added, "# Benchmarks\n\n## lab\n\nfirst\n");
        assert_eq!(replace_section(&added, "lab", "## lab\n\nfirst\n"), added);
    }

    #[test]
    fn the_time_to_enforcement_spans_the_run() {
        let report = serde_json::json!({
            "phases": [{"name": "cluster up", "started": "2026-11-23T10:00:00Z", "milliseconds": 5000}],
            "verdicts": [{
                "passes": [{"started": "2026-11-23T10:00:20.5Z", "duration_ms": 500}],
                "latency": {"first_drop": "2026-11-23T10:00:18Z"},
            }],
        });
        assert_eq!(to_first_drop(&report), Some(18.0));
        assert_eq!(to_whole_table(&report), Some(21.0));
        assert_eq!(phase(&report, "cluster up"), Some(5.0));
    }
}
