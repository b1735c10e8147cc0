//! The folder of a run's results, and the report that sums it up.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use fs_err as fs;
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
    milliseconds: u128,
    outcome: Outcome,
}

/// How a phase ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Passed,
    Failed,
}

/// The last component of the run's name; `latest` points to it.
fn run_name(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil_date(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!(
        "{year:04}{month:02}{day:02}-{:02}{:02}{:02}-{}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        std::process::id()
    )
}

/// Year, month and day of a count of days since 1970-01-01.
///
/// Algorithm: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

impl Results {
    /// Makes the folder of a new run in `target/holdfast/` and points `latest` to it.
    pub(crate) fn new(target: &Path) -> Result<Self> {
        let parent = target.join("holdfast");
        let name = run_name(SystemTime::now());
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

    /// Records a phase.
    pub(crate) fn phase(&mut self, name: &'static str, took: Duration, outcome: Outcome) {
        self.phases.push(Phase {
            name,
            milliseconds: took.as_millis(),
            outcome,
        });
    }

    /// The verdict lines of this run, those of faults made on purpose last.
    pub(crate) fn verdict_lines(&self) -> Vec<String> {
        ["verdicts", "faults"]
            .iter()
            .flat_map(|kind| {
                sorted(&self.folder.join(kind), "txt")
                    .into_iter()
                    .map(move |path| (kind, path))
            })
            .map(|(kind, path)| {
                let line = fs::read_to_string(&path).unwrap_or_default();
                match *kind {
                    "faults" => format!("made on purpose: {}", line.trim()),
                    _ => line.trim().to_owned(),
                }
            })
            .collect()
    }

    /// Writes `report.json`. Returns whether every promise was kept.
    pub(crate) fn write(&self, machine: &Value) -> Result<Outcome> {
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
    fn days_become_dates() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(11_016), (2000, 2, 29));
        assert_eq!(civil_date(20_780), (2026, 11, 23));
    }

    #[test]
    fn a_broken_promise_fails_the_run_even_when_every_phase_passed() {
        let target = tempfile::tempdir().unwrap();
        let mut results = Results::new(target.path()).unwrap();
        results.phase("smoke", Duration::from_secs(1), Outcome::Passed);
        let verdicts = results.folder().join("verdicts");
        fs::create_dir(&verdicts).unwrap();
        fs::write(verdicts.join("a.json"), r#"{"kept": true}"#).unwrap();
        assert_eq!(results.write(&Value::Null).unwrap(), Outcome::Passed);
        fs::write(verdicts.join("b.json"), r#"{"kept": false}"#).unwrap();
        assert_eq!(results.write(&Value::Null).unwrap(), Outcome::Failed);
    }

    #[test]
    fn latest_points_to_the_newest_run() {
        let target = tempfile::tempdir().unwrap();
        let results = Results::new(target.path()).unwrap();
        let latest = fs::canonicalize(target.path().join("holdfast/latest")).unwrap();
        assert_eq!(latest, fs::canonicalize(results.folder()).unwrap());
    }
}
