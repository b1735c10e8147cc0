//! Plans from files and observations, without a cluster.

use std::collections::BTreeMap;

use installer::{
    application::Application,
    catalogue::Catalogue,
    chart::{Chart, ChartSource},
    helm::{Release, ReleaseStatus, Revision},
    plan::{self, Action, Observed, Plan, Recovery, Text},
    project,
};
use serde_json::{Value, json};

use crate::fixture;

fn chart(version: &str) -> Chart {
    Chart {
        name: "cilium".to_owned(),
        version: version.to_owned(),
        source: ChartSource::Folder("charts/cilium".into()),
    }
}

fn plan_for(project: &str, chart: Chart, observed: &Observed) -> Plan {
    let catalogue = Catalogue::embedded()
        .map_err(|problems| problems.to_string())
        .expect("the catalogue reads");
    let config = project::load(&fixture(project), &catalogue).expect("valid");
    plan::plan(
        &config,
        &catalogue,
        &BTreeMap::from([(Application::Cilium, chart)]),
        observed,
    )
}

fn values_of(project: &str) -> Value {
    plan_for(project, chart("1.19.7"), &Observed::default()).steps[0]
        .values
        .clone()
}

fn release(status: ReleaseStatus) -> Release {
    Release {
        name: "cilium".to_owned(),
        revision: 2,
        status,
        chart: "cilium-1.19.7".to_owned(),
    }
}

fn observed(status: ReleaseStatus, values: Value) -> Observed {
    Observed {
        releases: vec![release(status)],
        values: BTreeMap::from([("cilium".to_owned(), values)]),
        history: BTreeMap::new(),
    }
}

#[test]
fn an_empty_cluster_gets_an_installation() {
    let plan = plan_for("cilium", chart("1.19.7"), &Observed::default());
    insta::assert_snapshot!("install", Text(&plan));
    insta::assert_json_snapshot!("install-json", plan);
}

#[test]
fn values_that_break_the_promise_are_warned_of() {
    insta::assert_snapshot!(
        "audit",
        Text(&plan_for(
            "cilium-audit",
            chart("1.19.7"),
            &Observed::default()
        ))
    );
    insta::assert_snapshot!(
        "never",
        Text(&plan_for(
            "cilium-never",
            chart("1.19.7"),
            &Observed::default()
        ))
    );
}

#[test]
fn audit_mode_is_fine_when_watching_is_all_that_is_promised() {
    let plan = plan_for("documented", chart("1.19.7"), &Observed::default());
    let cilium = plan
        .steps
        .iter()
        .find(|step| step.application == Application::Cilium)
        .expect("there");
    assert_eq!(cilium.warnings, Vec::<String>::new());
}

#[test]
fn an_equal_release_is_kept_even_when_helm_turned_its_numbers_into_floats() {
    let mut values = values_of("cilium");
    values["k8sServicePort"] = json!(6443.0);
    let plan = plan_for(
        "cilium",
        chart("1.19.7"),
        &observed(ReleaseStatus::Deployed, values),
    );
    insta::assert_snapshot!("keep", Text(&plan));
}

#[test]
fn an_upgrade_says_what_differs_and_never_shows_a_value() {
    let mut values = values_of("cilium");
    values["hubble"]["enabled"] = json!(false);
    values["secret"] = json!("hunter2");
    let plan = plan_for(
        "cilium",
        chart("1.19.8"),
        &observed(ReleaseStatus::Deployed, values),
    );
    insta::assert_snapshot!("upgrade", Text(&plan));
}

#[test]
fn a_failed_release_is_upgraded_though_nothing_else_differs() {
    let plan = plan_for(
        "cilium",
        chart("1.19.7"),
        &observed(ReleaseStatus::Failed, values_of("cilium")),
    );
    assert_eq!(
        plan.steps[0].action,
        Action::Upgrade {
            reason: "the release is failed".to_owned()
        }
    );
}

#[test]
fn a_first_installation_that_was_cut_off_is_cleaned_up() {
    let mut observed = observed(ReleaseStatus::PendingInstall, Value::Null);
    let revision = Revision {
        revision: 1,
        status: ReleaseStatus::PendingInstall,
    };
    observed.history.insert("cilium".to_owned(), vec![revision]);
    let plan = plan_for("cilium", chart("1.19.7"), &observed);
    assert_eq!(plan.steps[0].action, Action::Install);
    assert_eq!(
        plan.steps[0].recovery,
        Some(Recovery::Uninstall {
            found: ReleaseStatus::PendingInstall
        })
    );
}

#[test]
fn an_upgrade_that_was_cut_off_is_rolled_back_to_the_last_good_revision() {
    let mut observed = observed(ReleaseStatus::PendingUpgrade, values_of("cilium"));
    let history = [
        (1, ReleaseStatus::Superseded),
        (2, ReleaseStatus::Deployed),
        (3, ReleaseStatus::Failed),
        (4, ReleaseStatus::PendingUpgrade),
    ];
    let history = history.map(|(revision, status)| Revision { revision, status });
    observed
        .history
        .insert("cilium".to_owned(), history.to_vec());
    insta::assert_snapshot!(
        "recover",
        Text(&plan_for("cilium", chart("1.19.7"), &observed))
    );
}

#[test]
fn a_superseded_revision_is_only_the_second_choice() {
    let recovery = |history: &[(u64, ReleaseStatus)]| {
        let mut observed = observed(ReleaseStatus::PendingUpgrade, Value::Null);
        let history = history
            .iter()
            .map(|&(revision, status)| Revision { revision, status });
        observed
            .history
            .insert("cilium".to_owned(), history.collect());
        plan_for("cilium", chart("1.19.7"), &observed).steps[0]
            .recovery
            .clone()
    };
    let back_to = |revision| {
        Some(Recovery::Rollback {
            revision,
            found: ReleaseStatus::PendingUpgrade,
        })
    };
    let pending = (3, ReleaseStatus::PendingUpgrade);
    // Helm also calls a revision superseded that had failed.
    assert_eq!(
        recovery(&[
            (1, ReleaseStatus::Deployed),
            (2, ReleaseStatus::Superseded),
            pending
        ]),
        back_to(1)
    );
    assert_eq!(
        recovery(&[(1, ReleaseStatus::Superseded), pending]),
        back_to(1)
    );
}

#[test]
fn removal_is_only_ever_for_what_the_file_switches_off() {
    let there = observed(ReleaseStatus::Deployed, Value::Null);
    let removal = plan_for("removal", chart("1.19.7"), &there);
    insta::assert_snapshot!("remove", Text(&removal));
    let gone = plan_for("removal", chart("1.19.7"), &Observed::default());
    assert_eq!(gone.steps[0].action, Action::Absent);
    let silent = plan_for("empty", chart("1.19.7"), &there);
    insta::assert_snapshot!("not-managed", Text(&silent));
}
