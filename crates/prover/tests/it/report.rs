//! What people and other programs get to see.

use std::collections::BTreeMap;
use std::time::Duration;

use probe::Outcome;
use prover::cluster::Options;
use prover::report::{Latency, Report, truth_table};
use prover::trial::Trial;
use prover::verdict::judge;

use crate::perfect::{CONTROL, DENIED, leak, observation, trial};

fn report(trial: &Trial) -> Report {
    let latency = Latency {
        first_drop: "2026-11-23T10:00:00Z".parse().ok(),
        apply_to_first_drop: Some(Duration::from_millis(412)),
        delete_to_first_pass: None,
    };
    let versions = BTreeMap::from([("probe".to_owned(), "0.1.0".to_owned())]);
    Report::new(
        "small",
        &Options::default(),
        trial,
        &judge(trial),
        latency,
        versions,
    )
}

#[test]
fn report_json() {
    insta::assert_json_snapshot!(report(&trial()));
}

#[test]
fn verdict_lines() {
    let mut broken = trial();
    leak(&mut broken.enforced, DENIED, None);
    insta::assert_snapshot!(format!(
        "{}\n{}",
        report(&trial()).verdict_line(),
        report(&broken).verdict_line()
    ));
}

#[test]
fn expected_and_observed_tables() {
    let mut trial = trial();
    leak(&mut trial.enforced, DENIED, None);
    observation(&mut trial.enforced, CONTROL).outcome = Outcome::TimedOut;
    let (expected, observed) = (
        truth_table(&trial.cells, None),
        truth_table(&trial.cells, Some(&trial.enforced)),
    );
    insta::assert_snapshot!(format!("expected\n\n{expected}\nobserved\n\n{observed}"));
}
