//! The judge: what was seen goes in, a verdict and the reason come out.
//!
//! A wrong ENFORCING is the worst mistake that this project can make, so every condition for it is a check that
//! can fail, and whatever fails ends in another verdict.

mod fate;
mod ground;

use std::collections::BTreeMap;
use std::fmt;

use probe::Outcome;
use serde::{Deserialize, Serialize};

use self::fate::{Fate, Index};
pub use self::ground::disturbance;
use self::ground::{channels, complete, held, observed, own_policies, same_pods, taken_in};
use crate::evidence::FlowEvent;
use crate::table::{Cell, CellId, Expected};
use crate::trial::{Pass, Trial};

/// What a control does, from evidence alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// The forbidden was tried and stopped by this control, while the allowed went through.
    Enforcing,
    /// The forbidden went through, and this control reported it.
    Watching,
    /// The forbidden went through, and nothing was reported.
    Dead,
    /// It could not be decided. Never a pass.
    Unknown,
}

impl Verdict {
    /// Whether this verdict is at least what was promised. UNKNOWN keeps no promise.
    pub fn keeps(self, promised: Verdict) -> bool {
        let strength = |verdict| match verdict {
            Verdict::Enforcing => Some(2),
            Verdict::Watching => Some(1),
            Verdict::Dead => Some(0),
            Verdict::Unknown => None,
        };
        matches!((strength(self), strength(promised)), (Some(found), Some(wanted)) if found >= wanted)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Enforcing => "ENFORCING",
            Verdict::Watching => "WATCHING",
            Verdict::Dead => "DEAD",
            Verdict::Unknown => "UNKNOWN",
        })
    }
}

/// Whether the policies are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policies {
    /// Applied.
    InForce,
    /// Taken away.
    Lifted,
}

/// A verdict with its reason and its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why, in one sentence.
    pub cause: String,
    /// For each denied cell of the first pass, the event that decided it.
    pub evidence: BTreeMap<CellId, FlowEvent>,
}

/// Judges a trial.
pub fn judge(trial: &Trial) -> Judgement {
    let (verdict, cause) = match decide(trial) {
        Ok(cause) => (Verdict::Enforcing, cause),
        Err((verdict, cause)) => (verdict, cause),
    };
    let index = Index::new(&trial.cells, &trial.enforced);
    let denied = trial
        .cells
        .iter()
        .filter(|cell| cell.expected == Expected::Denied);
    let evidence = denied.filter_map(|cell| {
        let event = match index.fate(cell) {
            Fate::Stopped(event) | Fate::Reported(event) => event,
            Fate::Unreported | Fate::Inconclusive(_) => return None,
        };
        Some((cell.id.clone(), event.clone()))
    });
    Judgement {
        verdict,
        cause,
        evidence: evidence.collect(),
    }
}

/// Whether the first pass leaves only the mutation to be decided.
pub fn first_pass_holds(trial: &Trial) -> bool {
    first_pass(trial, &denied(trial)).is_ok()
}

/// The cells of a pass that are worth another attempt: neither as expected nor against it.
pub fn inconclusive(cells: &[Cell], pass: &Pass, policies: Policies) -> Vec<CellId> {
    let index = Index::new(cells, pass);
    let open = cells.iter().filter(|cell| match (policies, cell.expected) {
        (Policies::InForce, Expected::Denied) => {
            matches!(index.fate(cell), Fate::Inconclusive(_))
        }
        _ => observed(pass, cell).is_err() || answered(pass, cell).is_err(),
    });
    open.map(|cell| cell.id.clone()).collect()
}

/// How many cells are not yet as they will stay: not answered where they should be, or through without a report.
pub fn unsettled(cells: &[Cell], pass: &Pass, policies: Policies) -> usize {
    let index = Index::new(cells, pass);
    let unreported = cells.iter().filter(|cell| {
        policies == Policies::InForce
            && cell.expected == Expected::Denied
            && matches!(index.fate(cell), Fate::Unreported)
    });
    unreported.count() + inconclusive(cells, pass, policies).len()
}

fn denied(trial: &Trial) -> Vec<&Cell> {
    let cells = trial.cells.iter();
    cells
        .filter(|cell| cell.expected == Expected::Denied)
        .collect()
}

/// `Ok` is ENFORCING; everything else leaves early.
fn decide(trial: &Trial) -> Result<String, (Verdict, String)> {
    let denied = denied(trial);
    first_pass(trial, &denied)?;

    let lifted = trial.lifted.as_ref().ok_or_else(|| {
        unknown("the policies were never taken away, so nothing shows that they did it")
    })?;
    ground(trial, lifted, Policies::Lifted, "without the policies").map_err(unknown)?;
    all_answered(trial, lifted, Policies::Lifted).map_err(unknown)?;

    let restored = trial.restored.as_ref().ok_or_else(|| {
        unknown("the policies were never put back, so nothing shows that they work twice")
    })?;
    in_force(trial, restored, &denied, "after the policies were put back")?;

    Ok(format!(
        "{} forbidden attempts were stopped, each with its own drop event, {} allowed ones were answered, and the \
         forbidden ones went through as long as the policies were away",
        denied.len(),
        trial.cells.len() - denied.len(),
    ))
}

fn first_pass(trial: &Trial, denied: &[&Cell]) -> Result<(), (Verdict, String)> {
    channels(trial).map_err(unknown)?;
    if denied.is_empty() {
        return Err(unknown(
            "the policies forbid nothing between the probed pods, so nothing was tested",
        ));
    }
    in_force(trial, &trial.enforced, denied, "with the policies")
}

/// All that must hold of a pass with the policies in force.
fn in_force(
    trial: &Trial,
    pass: &Pass,
    denied: &[&Cell],
    when: &str,
) -> Result<(), (Verdict, String)> {
    ground(trial, pass, Policies::InForce, when).map_err(unknown)?;
    leaks(trial, pass, denied, when)?;
    controls_exist(trial, denied).map_err(unknown)?;
    all_answered(trial, pass, Policies::InForce).map_err(unknown)?;
    all_stopped(trial, pass, denied, when).map_err(unknown)?;
    endpoints_enforce(pass, denied).map_err(unknown)
}

/// All that must hold of a pass before its observations mean anything.
fn ground(trial: &Trial, pass: &Pass, policies: Policies, when: &str) -> Result<(), String> {
    same_pods(trial, pass, when)?;
    complete(trial, pass, when)?;
    own_policies(trial, pass, policies, when)
}

fn unknown(cause: impl Into<String>) -> (Verdict, String) {
    (Verdict::Unknown, cause.into())
}

/// DEAD or WATCHING, if forbidden attempts went through.
fn leaks(
    trial: &Trial,
    pass: &Pass,
    denied: &[&Cell],
    when: &str,
) -> Result<(), (Verdict, String)> {
    let index = Index::new(&trial.cells, pass);
    let fates: Vec<(&Cell, Fate<'_>)> = denied
        .iter()
        .map(|cell| (*cell, index.fate(cell)))
        .collect();
    let total = denied.len();
    let count = |test: fn(&Fate<'_>) -> bool| fates.iter().filter(|(_, fate)| test(fate)).count();
    let unreported = count(|fate| matches!(fate, Fate::Unreported));
    let reported = count(|fate| matches!(fate, Fate::Reported(_)));
    if unreported == 0 && reported == 0 {
        return Ok(());
    }
    let first_of = |test: fn(&Fate<'_>) -> bool| {
        let found = fates.iter().find(|(_, fate)| test(fate));
        found
            .map(|(cell, _)| cell.id.to_string())
            .unwrap_or_default()
    };
    if unreported > 0 {
        let first = first_of(|fate| matches!(fate, Fate::Unreported));
        if pass.lost_events > 0 {
            return Err(unknown(format!(
                "{unreported} of {total} forbidden attempts went through {when} and no report was heard, but the \
                 control lost {} events, first {first}",
                pass.lost_events
            )));
        }
        for (cell, _) in fates
            .iter()
            .filter(|(_, fate)| matches!(fate, Fate::Unreported))
        {
            taken_in(trial, pass, cell).map_err(|cause| {
                unknown(format!(
                    "{unreported} of {total} forbidden attempts went through {when} and nothing was reported, first \
                     {first}, but {cause}"
                ))
            })?;
        }
        return Err((
            Verdict::Dead,
            format!(
                "{unreported} of {total} forbidden attempts went through {when} and nothing was reported, first {first}"
            ),
        ));
    }
    if let Some((cell, Fate::Inconclusive(cause))) = fates
        .iter()
        .find(|(_, fate)| matches!(fate, Fate::Inconclusive(_)))
    {
        return Err(unknown(format!(
            "{reported} of {total} forbidden attempts went through {when} and were reported, but {} is not decided: {cause}",
            cell.id
        )));
    }
    let first = first_of(|fate| matches!(fate, Fate::Reported(_)));
    Err((
        Verdict::Watching,
        format!(
            "{reported} of {total} forbidden attempts went through {when} and the control only reported them, first {first}{}",
            in_audit_mode(pass)
        ),
    ))
}

/// Which pods, if it is not all of them.
fn in_audit_mode(pass: &Pass) -> String {
    let endpoints = pass.endpoints.iter();
    let audited: Vec<String> = endpoints
        .filter(|(_, endpoint)| endpoint.audit)
        .map(|(pod, _)| pod.to_string())
        .collect();
    if audited.is_empty() || audited.len() == pass.endpoints.len() {
        return String::new();
    }
    format!("; in audit mode is only {}", audited.join(", "))
}

fn controls_exist(trial: &Trial, denied: &[&Cell]) -> Result<(), String> {
    for cell in denied {
        if !trial.cells.iter().any(|other| other.is_control_of(cell)) {
            return Err(format!(
                "no positive control for {}: no other pod is allowed to reach {} on {}/{} the same way, so silence \
                 there proves nothing",
                cell.id, cell.to, cell.port, cell.protocol
            ));
        }
    }
    Ok(())
}

/// With the policies, every allowed cell; without them, every cell.
fn all_answered(trial: &Trial, pass: &Pass, policies: Policies) -> Result<(), String> {
    let index = Index::new(&trial.cells, pass);
    for cell in &trial.cells {
        let what = match (policies, cell.expected) {
            (Policies::InForce, Expected::Denied) => continue,
            (Policies::InForce, Expected::Allowed) => {
                "the positive control failed: with the policies, the allowed"
            }
            (Policies::Lifted, Expected::Denied) => {
                "the mutation did not turn: without the policies,"
            }
            (Policies::Lifted, Expected::Allowed) => "without the policies,",
        };
        answered(pass, cell).map_err(|cause| {
            let dropped = match index.report(cell) {
                Some(report) => format!(", and the control reported {report} of it"),
                None => String::new(),
            };
            let held = held(trial, pass, cell)
                .filter(|_| policies == Policies::Lifted)
                .map(|held| format!("; {held}"))
                .unwrap_or_default();
            format!("{what} {} {cause}{dropped}{held}", cell.id)
        })?;
    }
    Ok(())
}

/// By the right pod, with the right nonce, and the destination says so too.
fn answered(pass: &Pass, cell: &Cell) -> Result<(), String> {
    let observation = pass.observation(&cell.id).ok_or("was not tried")?;
    match &observation.outcome {
        Outcome::Answered { by } if *by == cell.to.to_string() => {}
        Outcome::Answered { by } => {
            return Err(format!("was answered by {by}, which is another pod"));
        }
        other => return Err(format!("was not answered: {other}")),
    }
    match observation.received {
        Some(true) => Ok(()),
        Some(false) => Err("was answered, but its destination says that it got nothing".to_owned()),
        None => Err("was answered, but its destination could not be asked".to_owned()),
    }
}

fn all_stopped(trial: &Trial, pass: &Pass, denied: &[&Cell], when: &str) -> Result<(), String> {
    let index = Index::new(&trial.cells, pass);
    let undecided: Vec<(&Cell, String)> = denied
        .iter()
        .filter_map(|cell| match index.fate(cell) {
            Fate::Stopped(_) => None,
            Fate::Inconclusive(cause) => Some((*cell, cause)),
            Fate::Reported(_) | Fate::Unreported => Some((*cell, "it went through".to_owned())),
        })
        .collect();
    let Some((cell, cause)) = undecided.first() else {
        return Ok(());
    };
    Err(format!(
        "{} of {} forbidden attempts are not decided {when}, first {}: {cause}",
        undecided.len(),
        denied.len(),
        cell.id
    ))
}

/// The endpoint whose side denies the cell must be one that enforces.
fn endpoints_enforce(pass: &Pass, denied: &[&Cell]) -> Result<(), String> {
    for cell in denied {
        let sides = [
            (&cell.to, cell.decision.ingress.allowed(), "ingress"),
            (&cell.from, cell.decision.egress.allowed(), "egress"),
        ];
        for (pod, allowed, direction) in sides {
            if allowed {
                continue;
            }
            let Some(endpoint) = pass.endpoints.get(pod) else {
                let unread = pass
                    .pods
                    .get(pod)
                    .and_then(|fact| Some((&fact.node, pass.unread.get(&fact.node)?)));
                if let Some((node, cause)) = unread {
                    return Err(format!(
                        "the control's endpoints on node {node} could not be read: {cause}"
                    ));
                }
                return Err(format!("the control does not manage an endpoint for {pod}"));
            };
            if endpoint.state == "waiting-for-identity" {
                return Err(format!(
                    "the endpoint of {pod} still waits for the identity that belongs to its labels"
                ));
            }
            if endpoint.audit {
                return Err(format!(
                    "the endpoint of {pod} is in audit mode, although drops were still seen there"
                ));
            }
            let enforces = if direction == "ingress" {
                endpoint.ingress
            } else {
                endpoint.egress
            };
            if !enforces {
                return Err(format!(
                    "the endpoint of {pod} does not enforce {direction} policies, its state is {}",
                    endpoint.state
                ));
            }
        }
    }
    Ok(())
}
