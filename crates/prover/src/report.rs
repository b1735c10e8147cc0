//! What a proof leaves behind: `report.json`, one line for people, and the truth table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use probe::Outcome;
use serde::Serialize;

use crate::cluster::Options;
use crate::evidence::FlowEvent;
use crate::model::PodRef;
use crate::table::{Cell, CellId, Expected};
use crate::trial::{Pass, Trial};
use crate::verdict::{Judgement, Policies, Verdict, unsettled};

/// The report of one proof.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was proved, for example `cilium network policy`.
    pub control: String,
    /// With which scenario.
    pub subject: String,
    /// What the control does.
    pub verdict: Verdict,
    /// Why that is the verdict.
    pub cause: String,
    /// What the configuration promises.
    pub promised: Verdict,
    /// Whether the verdict is at least what was promised.
    pub kept: bool,
    /// Sizes.
    pub counts: Counts,
    /// The passes that were made.
    pub passes: Vec<PassReport>,
    /// How fast changes took effect.
    pub latency: Latency,
    /// The control's own event for each forbidden cell of the first pass.
    pub evidence: BTreeMap<CellId, FlowEvent>,
    /// The probed pods' addresses, to read the evidence by.
    pub pods: BTreeMap<PodRef, IpAddr>,
    /// Versions of what took part.
    pub versions: BTreeMap<String, String>,
}

/// Sizes of a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Probed pods.
    pub pods: usize,
    /// Cells of the table.
    pub cells: usize,
    /// Cells that must be answered.
    pub allowed: usize,
    /// Cells that must be stopped.
    pub denied: usize,
    /// Forbidden cells with an event of the control's own, in the first pass.
    pub matched: usize,
}

/// One pass in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassReport {
    /// `enforced`, `lifted` or `restored`.
    pub name: String,
    /// When the deciding round began.
    pub started: Timestamp,
    /// Rounds until it was decided.
    pub rounds: u32,
    /// Time of the deciding round.
    pub duration_ms: u64,
    /// Cells that were not decided in the end.
    pub unsettled: usize,
    /// Events of the control in the deciding round.
    pub events: usize,
    /// Events that the control lost in it.
    pub lost_events: u64,
}

/// How fast changes of policies took effect on one forbidden cell. `None`: not measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// When the control's first drop of the whole proof was heard.
    pub first_drop: Option<Timestamp>,
    /// From the first request to apply until the control reported a drop.
    #[serde(rename = "apply_to_first_drop_ms", serialize_with = "milliseconds")]
    pub apply_to_first_drop: Option<Duration>,
    /// From the first request to delete until an attempt was answered.
    #[serde(rename = "delete_to_first_pass_ms", serialize_with = "milliseconds")]
    pub delete_to_first_pass: Option<Duration>,
}

#[expect(clippy::ref_option, reason = "serde gives the field by reference")]
fn milliseconds<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration
        .map(|duration| duration.as_millis())
        .serialize(serializer)
}

impl Report {
    /// Puts the report together.
    pub fn new(
        subject: &str,
        options: &Options,
        trial: &Trial,
        judgement: &Judgement,
        latency: Latency,
        versions: BTreeMap<String, String>,
    ) -> Report {
        let denied = trial
            .cells
            .iter()
            .filter(|cell| cell.expected == Expected::Denied)
            .count();
        let passes = [
            ("enforced", Some(&trial.enforced), Policies::InForce),
            ("lifted", trial.lifted.as_ref(), Policies::Lifted),
            ("restored", trial.restored.as_ref(), Policies::InForce),
        ];
        Report {
            control: options.control.clone(),
            subject: subject.to_owned(),
            verdict: judgement.verdict,
            cause: judgement.cause.clone(),
            promised: options.promised,
            kept: judgement.verdict.keeps(options.promised),
            counts: Counts {
                pods: trial.pods.len(),
                cells: trial.cells.len(),
                allowed: trial.cells.len() - denied,
                denied,
                matched: judgement.evidence.len(),
            },
            passes: passes
                .into_iter()
                .filter_map(|(name, pass, policies)| Some((name, pass?, policies)))
                .map(|(name, pass, policies)| PassReport {
                    name: name.to_owned(),
                    started: pass.started,
                    rounds: pass.rounds,
                    duration_ms: pass.duration_ms,
                    unsettled: unsettled(&trial.cells, pass, policies),
                    events: pass.events.len(),
                    lost_events: pass.lost_events,
                })
                .collect(),
            latency,
            evidence: judgement.evidence.clone(),
            pods: trial
                .pods
                .iter()
                .map(|(pod, fact)| (pod.clone(), fact.ip))
                .collect(),
            versions,
        }
    }

    /// One line for people.
    pub fn verdict_line(&self) -> String {
        let mut line = format!(
            "{:<9}  {} ({}): {}",
            self.verdict, self.control, self.subject, self.cause
        );
        if !self.kept {
            let _ = write!(line, " [promised: {}]", self.promised);
        }
        line
    }
}

/// Draws the table: rows are sources, columns destinations, `.` is allowed and `X` denied.
///
/// With a pass, cells show what happened: `.` answered, `X` not answered, `?` not tried, and `!` behind what should
/// be otherwise. Ports and routes that look the same share one drawing; wrong cells are listed below.
pub fn truth_table(cells: &[Cell], pass: Option<&Pass>) -> String {
    let mut pods: Vec<&PodRef> = Vec::new();
    let mut groups: Vec<(String, Vec<&Cell>)> = Vec::new();
    for cell in cells {
        for pod in [&cell.from, &cell.to] {
            if !pods.contains(&pod) {
                pods.push(pod);
            }
        }
        let group = group_name(cell);
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, members)) => members.push(cell),
            None => groups.push((group, vec![cell])),
        }
    }
    pods.sort();

    let mut drawings: Vec<(Vec<String>, String)> = Vec::new();
    for (name, members) in groups {
        let drawing = draw(&pods, &members, pass);
        match drawings.iter_mut().find(|(_, known)| *known == drawing) {
            Some((names, _)) => names.push(name),
            None => drawings.push((vec![name], drawing)),
        }
    }
    let mut text = String::new();
    for (names, drawing) in drawings {
        let _ = writeln!(text, "{}\n{drawing}", names.join(", "));
    }
    for cell in cells {
        if let Some(pass) = pass
            && let Some(observation) = pass.observation(&cell.id)
            && is_wrong(cell, &observation.outcome)
        {
            let expected = match cell.expected {
                Expected::Allowed => "allowed",
                Expected::Denied => "denied",
            };
            let _ = writeln!(
                text,
                "wrong: {} is {expected}, but {}",
                cell.id, observation.outcome
            );
        }
    }
    text
}

/// The part of a cell's id that says how, without who.
fn group_name(cell: &Cell) -> String {
    let route = match cell.route {
        crate::table::Route::Ip => "pod address",
        crate::table::Route::Service { .. } => "service name",
    };
    format!("{}/{} by {route}", cell.port, cell.protocol)
}

fn is_wrong(cell: &Cell, outcome: &Outcome) -> bool {
    let answered = matches!(outcome, Outcome::Answered { .. });
    answered != (cell.expected == Expected::Allowed)
}

fn draw(pods: &[&PodRef], cells: &[&Cell], pass: Option<&Pass>) -> String {
    let names: Vec<String> = pods.iter().map(ToString::to_string).collect();
    let width = names.iter().map(String::len).max().unwrap_or_default();
    let by_pair: BTreeMap<(&PodRef, &PodRef), &Cell> = cells
        .iter()
        .map(|cell| ((&cell.from, &cell.to), *cell))
        .collect();
    let mut lines = Vec::new();
    let mut line = " ".repeat(width);
    for name in &names {
        let _ = write!(line, "  {name:<width$}");
    }
    lines.push(line.trim_end().to_owned());
    for (from, name) in pods.iter().zip(&names) {
        let mut line = format!("{name:<width$}");
        for to in pods {
            let symbol = by_pair
                .get(&(*from, *to))
                .map_or("", |cell| symbol(cell, pass));
            let _ = write!(line, "  {symbol:<width$}");
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

fn symbol(cell: &Cell, pass: Option<&Pass>) -> &'static str {
    let Some(pass) = pass else {
        return match cell.expected {
            Expected::Allowed => ".",
            Expected::Denied => "X",
        };
    };
    let Some(observation) = pass.observation(&cell.id) else {
        return "?";
    };
    let answered = matches!(observation.outcome, Outcome::Answered { .. });
    match (answered, is_wrong(cell, &observation.outcome)) {
        (true, false) => ".",
        (true, true) => ".!",
        (false, false) => "X",
        (false, true) => "X!",
    }
}
