//! What has to be done so that the cluster is as the project says. Pure: configuration and
//! observation in, plan out.

mod text;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

pub use text::Text;

use crate::{
    application::Application,
    catalogue::{AfterCheck, Catalogue, NAMESPACE, Recipe, Target},
    chart::Chart,
    config::{Config, Managed, Promise, Switch},
    helm::{Release, ReleaseStatus, Revision},
};

/// What was seen in the cluster.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Every release of the namespace.
    pub releases: Vec<Release>,
    /// The values of each release that a plan may have to compare, by release.
    pub values: BTreeMap<String, Value>,
    /// The history of each release that was cut off in the middle, by release.
    pub history: BTreeMap<String, Vec<Revision>>,
}

/// Everything that will be done, one step for each application.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The namespace of all releases.
    pub namespace: &'static str,
    /// The steps.
    pub steps: Vec<Step>,
}

/// What will be done about one application.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Which one.
    pub application: Application,
    /// The name of its release.
    pub release: String,
    /// What will be done.
    #[serde(flatten)]
    pub action: Action,
    /// What has to be done first because an earlier run was cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// The chart that is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chart: Option<Chart>,
    /// What the configuration promises about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Promise>,
    /// What is odd about it.
    pub warnings: Vec<String>,
    /// What is waited for.
    pub readiness: Vec<Target>,
    /// What is looked at after an installation.
    #[serde(skip)]
    pub after_install: Vec<AfterCheck>,
    /// The values for Helm. They can hold secrets, so that no output has them.
    #[serde(skip)]
    pub values: Value,
}

/// The kinds of step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// It is not there and should be.
    Install,
    /// It is there and differs.
    Upgrade {
        /// In what.
        reason: String,
    },
    /// It is there as it should be.
    Keep {
        /// What was compared.
        reason: String,
    },
    /// It is there and should not be.
    Remove,
    /// It should not be there and is not.
    Absent,
    /// The project says nothing about it, so that nothing is done.
    NotManaged,
}

/// How a release that an earlier run left half-done is put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Recovery {
    /// Back to the last revision that was deployed.
    Rollback {
        /// Which.
        revision: u64,
        /// The state it was left in.
        found: ReleaseStatus,
    },
    /// Away with it, because none of its revisions ever was deployed, or because its removal had begun.
    Uninstall {
        /// The state it was left in.
        found: ReleaseStatus,
    },
}

/// Makes the plan. `charts` has a chart for every application that is to be there.
pub fn plan(
    config: &Config,
    catalogue: &Catalogue,
    charts: &BTreeMap<Application, Chart>,
    observed: &Observed,
) -> Plan {
    let mut steps = Vec::new();
    for recipe in catalogue.recipes() {
        let release = observed
            .releases
            .iter()
            .find(|release| release.name == recipe.release);
        match config.applications.get(&recipe.application) {
            Some(managed) => {
                steps.push(step(
                    recipe,
                    managed,
                    config,
                    charts.get(&recipe.application),
                    release,
                    observed,
                ));
            }
            None if release.is_some() => steps.push(bare(
                recipe.application,
                &recipe.release,
                Action::NotManaged,
            )),
            None => {}
        }
    }
    // What cannot be installed yet gets here only with `installed: false`.
    for application in config
        .applications
        .keys()
        .filter(|application| catalogue.recipe(**application).is_none())
    {
        let mut step = bare(*application, application.folder(), Action::Absent);
        if observed
            .releases
            .iter()
            .any(|release| release.name == step.release)
        {
            step.action = Action::NotManaged;
            step.warnings
                .push("this version of Holdfast cannot remove it; it is left alone".to_owned());
        }
        steps.push(step);
    }
    Plan {
        namespace: NAMESPACE,
        steps,
    }
}

fn bare(application: Application, release: &str, action: Action) -> Step {
    Step {
        application,
        release: release.to_owned(),
        action,
        recovery: None,
        chart: None,
        expect: None,
        warnings: Vec::new(),
        readiness: Vec::new(),
        after_install: Vec::new(),
        values: Value::Null,
    }
}

fn step(
    recipe: &Recipe,
    managed: &Managed,
    config: &Config,
    chart: Option<&Chart>,
    release: Option<&Release>,
    observed: &Observed,
) -> Step {
    let release = release.filter(|release| release.status != ReleaseStatus::Uninstalled);
    let blank = bare(recipe.application, &recipe.release, Action::Absent);
    if managed.switch == Switch::Remove {
        let action = if release.is_some() {
            Action::Remove
        } else {
            Action::Absent
        };
        return Step { action, ..blank };
    }
    let Some(chart) = chart else {
        let warnings = vec!["no chart was found for it; it is left alone".to_owned()];
        return Step {
            action: Action::NotManaged,
            warnings,
            ..blank
        };
    };
    let values = recipe.values_for(managed, config.cluster_type);
    let recovery = release.and_then(|release| recovery(release, observed));
    let action = match (release, &recovery) {
        (None, _) | (_, Some(Recovery::Uninstall { .. })) => Action::Install,
        (Some(_), Some(Recovery::Rollback { found, .. })) => Action::Upgrade {
            reason: format!("an earlier run was cut off and left it {found}"),
        },
        (Some(release), None) => compare(
            release,
            chart,
            &values,
            observed.values.get(&recipe.release),
        ),
    };
    Step {
        action,
        recovery,
        chart: Some(chart.clone()),
        expect: Some(managed.expect),
        warnings: recipe.warnings_for(managed, config.cluster_type),
        readiness: recipe.readiness.clone(),
        after_install: recipe.after_install.clone(),
        values,
        ..blank
    }
}

fn recovery(release: &Release, observed: &Observed) -> Option<Recovery> {
    let found = release.status;
    if found == ReleaseStatus::Uninstalling {
        return Some(Recovery::Uninstall { found });
    }
    if !found.is_pending() {
        return None;
    }
    let history = observed
        .history
        .get(&release.name)
        .map_or(&[][..], Vec::as_slice);
    let last = |status| {
        history
            .iter()
            .filter(|revision| revision.status == status)
            .map(|revision| revision.revision)
            .max()
    };
    // A superseded revision may have failed in its time, so that it is only the second choice.
    let good = last(ReleaseStatus::Deployed).or_else(|| last(ReleaseStatus::Superseded));
    Some(match good {
        Some(revision) => Recovery::Rollback { revision, found },
        None => Recovery::Uninstall { found },
    })
}

fn compare(release: &Release, chart: &Chart, wanted: &Value, present: Option<&Value>) -> Action {
    let mut reasons = Vec::new();
    if release.status != ReleaseStatus::Deployed {
        reasons.push(format!("the release is {}", release.status));
    }
    match release.chart_version(&chart.name) {
        Some(version) if version == chart.version => {}
        Some(version) => reasons.push(format!("chart {version} -> {}", chart.version)),
        None => reasons.push(format!(
            "chart {} -> {}-{}",
            release.chart, chart.name, chart.version
        )),
    }
    let mut changed = Vec::new();
    differences("", present.unwrap_or(&Value::Null), wanted, &mut changed);
    match changed.len() {
        0 => {}
        count @ 1..=4 => reasons.push(format!("{count} changed: {}", changed.join(", "))),
        count => reasons.push(format!("{count} changed: {}, ...", changed[..3].join(", "))),
    }
    if let Some(last) = reasons.last_mut() {
        *last = last.replacen(
            " changed:",
            if changed.len() == 1 {
                " value changed:"
            } else {
                " values changed:"
            },
            1,
        );
        return Action::Upgrade {
            reason: reasons.join("; "),
        };
    }
    Action::Keep {
        reason: format!(
            "revision {} has this chart and these values",
            release.revision
        ),
    }
}

/// The paths at which two values differ. Paths only: a value may be a secret.
fn differences(path: &str, present: &Value, wanted: &Value, found: &mut Vec<String>) {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => {
            let keys: std::collections::BTreeSet<_> = present.keys().chain(wanted.keys()).collect();
            for key in keys {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                match (present.get(key), wanted.get(key)) {
                    (Some(present), Some(wanted)) => differences(&path, present, wanted, found),
                    _ => found.push(path),
                }
            }
        }
        // Helm keeps its numbers as floats, so that 6443 may come back as 6443.0.
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        (Value::Null, Value::Object(wanted)) if path.is_empty() => {
            found.extend(wanted.keys().cloned());
        }
        (present, wanted) if present == wanted => {}
        _ => found.push(path.to_owned()),
    }
}
