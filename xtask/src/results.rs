//! The folder of a run's results, and the report that sums it up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fs_err as fs;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// The results of one run.
#[derive(Debug)]
pub(crate) struct Results {
    folder: PathBuf,
    phases: Vec<Phase>,
}

/// One phase of a run.
#[derive(Debug, Clone, Serialize)]
struct Phase {
    name: &'static str,
    started: Timestamp,
    milliseconds: u128,
    outcome: Outcome,
}

/// What a reader needs to weigh the figures.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Machine {
    /// The kernel's release.
    pub(crate) kernel: String,
    /// Processors.
    pub(crate) processors: usize,
    /// `/proc/loadavg` at the end of the run.
    pub(crate) load: String,
    /// Working set of the whole lab before it was taken down.
    pub(crate) lab_memory_bytes: Option<u64>,
}

/// How a phase ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Passed,
    Failed,
}

impl Results {
    /// Makes the folder of a new run in `target/holdfast/` and points `latest` to it.
    pub(crate) fn new(target: &Path) -> Result<Self> {
        let parent = target.join("holdfast");
        let now = Timestamp::now();
        let name = format!("{}-{}", now.strftime("%Y%m%d-%H%M%S"), std::process::id());
        let folder = parent.join(&name);
        fs::create_dir_all(folder.join("evidence")).context("making the results folder")?;
        let scratch = parent.join(format!("latest-{}", std::process::id()));
        std::os::unix::fs::symlink(&name, &scratch).context("pointing `latest` to the run")?;
        fs::rename(&scratch, parent.join("latest")).context("pointing `latest` to the run")?;
        Ok(Self {
            folder,
            phases: Vec::new(),
        })
    }

    /// The run's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Records a phase that ends now.
    pub(crate) fn phase(&mut self, name: &'static str, took: Duration, outcome: Outcome) {
        self.phases.push(Phase {
            name,
            started: Timestamp::now() - took,
            milliseconds: took.as_millis(),
            outcome,
        });
    }

    /// The verdict lines of this run with their figures, those of faults made on purpose last.
    pub(crate) fn verdict_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, prefix) in [("verdicts", ""), ("faults", "made on purpose: ")] {
            for path in sorted(&self.folder.join(kind), "txt") {
                let line = fs::read_to_string(&path).unwrap_or_default();
                lines.push(format!("{prefix}{}", line.trim()));
                let report = fs::read(path.with_extension("json")).unwrap_or_default();
                let report = serde_json::from_slice(&report).unwrap_or_default();
                lines.extend(figures(&report).map(|figures| format!("           {figures}")));
            }
        }
        lines
    }

    /// Writes `report.json`. Returns whether every promise was kept.
    pub(crate) fn write(&self, machine: &Machine) -> Result<Outcome> {
        let verdicts = self.reports("verdicts");
        let faults = self.reports("faults");
        let phases_passed = self
            .phases
            .iter()
            .all(|phase| phase.outcome == Outcome::Passed);
        let kept = verdicts.iter().all(|verdict| verdict["kept"] == true);
        let outcome = if phases_passed && kept {
            Outcome::Passed
        } else {
            Outcome::Failed
        };
        let report = serde_json::json!({
            "outcome": outcome,
            "machine": machine,
            "phases": self.phases,
            "verdicts": verdicts,
            "faults_made_on_purpose": faults,
        });
        let text = serde_json::to_string_pretty(&report).context("writing the report")?;
        fs::write(self.folder.join("report.json"), text).context("writing the report")?;
        Ok(outcome)
    }

    fn reports(&self, kind: &str) -> Vec<Value> {
        sorted(&self.folder.join(kind), "json")
            .iter()
            .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
            .collect()
    }
}

/// How fast the control was, where that was measured.
fn figures(report: &Value) -> Option<String> {
    let latency = |name: &str| report["latency"][name].as_u64();
    Some(format!(
        "from apply to first drop {} ms, from delete to first pass {} ms, one pass over {} cells {} ms",
        latency("apply_to_first_drop_ms")?,
        latency("delete_to_first_pass_ms")?,
        report["counts"]["cells"].as_u64()?,
        report["passes"][0]["duration_ms"].as_u64()?,
    ))
}

fn sorted(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect();
    paths.sort_unstable();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_fails_the_run_even_when_every_phase_passed() {
        let target = tempfile::tempdir().unwrap();
        let mut results = Results::new(target.path()).unwrap();
        results.phase("smoke", Duration::from_secs(1), Outcome::Passed);
        let verdicts = results.folder().join("verdicts");
        fs::create_dir(&verdicts).unwrap();
        fs::write(verdicts.join("a.json"), r#"{"kept": true}"#).unwrap();
        assert_eq!(results.write(&Machine::default()).unwrap(), Outcome::Passed);
        fs::write(verdicts.join("b.json"), r#"{"kept": false}"#).unwrap();
        assert_eq!(results.write(&Machine::default()).unwrap(), Outcome::Failed);
    }

    #[test]
    fn figures_are_shown_only_where_they_were_measured() {
        let measured = serde_json::json!({
            "latency": {"apply_to_first_drop_ms": 236, "delete_to_first_pass_ms": 868},
            "counts": {"cells": 306},
            "passes": [{"duration_ms": 925}],
        });
        assert_eq!(
            figures(&measured).unwrap(),
            "from apply to first drop 236 ms, from delete to first pass 868 ms, one pass over 306 cells 925 ms"
        );
        let not = serde_json::json!({"latency": {"apply_to_first_drop_ms": null}});
        assert_eq!(figures(&not), None);
    }

    #[test]
    fn latest_points_to_the_newest_run() {
        let target = tempfile::tempdir().unwrap();
        let results = Results::new(target.path()).unwrap();
        let latest = fs::canonicalize(target.path().join("holdfast/latest")).unwrap();
        assert_eq!(latest, fs::canonicalize(results.folder()).unwrap());
    }
}
