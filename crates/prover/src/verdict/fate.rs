//! What became of one forbidden attempt.

use std::collections::HashMap;
use std::net::SocketAddr;

use probe::Outcome;

use crate::evidence::{FiveTuple, FlowEvent, FlowReport};
use crate::table::{Cell, CellId};
use crate::trial::{Observation, Pass};

/// How a forbidden attempt ended.
pub(super) enum Fate<'a> {
    /// Not answered, and the control says that it dropped this very packet by policy.
    Stopped(&'a FlowEvent),
    /// It went through, and the control reported this very packet.
    Reported(&'a FlowEvent),
    /// It went through without a word.
    Unreported,
    /// Neither can be said.
    Inconclusive(String),
}

/// A pass, arranged for questions about single cells.
pub(super) struct Index<'a> {
    pass: &'a Pass,
    observations: HashMap<&'a CellId, &'a Observation>,
    events: HashMap<FiveTuple, Vec<&'a FlowEvent>>,
    /// How many attempts claim the same packet.
    claims: HashMap<FiveTuple, u32>,
}

impl<'a> Index<'a> {
    pub(super) fn new(cells: &[Cell], pass: &'a Pass) -> Index<'a> {
        let observations: HashMap<&CellId, &Observation> = pass
            .observations
            .iter()
            .map(|observation| (&observation.cell, observation))
            .collect();
        let mut events: HashMap<FiveTuple, Vec<&FlowEvent>> = HashMap::new();
        for event in &pass.events {
            events.entry(event.tuple).or_default().push(event);
        }
        let mut index = Index {
            pass,
            observations,
            events,
            claims: HashMap::new(),
        };
        let mut claims = HashMap::new();
        for cell in cells {
            for tuple in index.tuples(cell) {
                *claims.entry(tuple).or_default() += 1;
            }
        }
        index.claims = claims;
        index
    }

    /// The packets that an attempt can have become: to the pod itself, or still to the address that was dialled.
    /// A service's address has become the backend's by the time that ingress policies see it, but not always before.
    fn tuples(&self, cell: &Cell) -> Vec<FiveTuple> {
        let Some(observation) = self.observations.get(&cell.id) else {
            return Vec::new();
        };
        let (Some(source), Some(dialled)) = (observation.source, observation.destination) else {
            return Vec::new();
        };
        let backend = self
            .pass
            .pods
            .get(&cell.to)
            .map(|pod| SocketAddr::new(pod.ip, cell.port));
        let mut destinations: Vec<SocketAddr> = backend.into_iter().collect();
        if !destinations.contains(&dialled) {
            destinations.push(dialled);
        }
        destinations
            .into_iter()
            .map(|destination| FiveTuple {
                protocol: cell.protocol,
                source,
                destination,
            })
            .collect()
    }

    pub(super) fn fate(&self, cell: &Cell) -> Fate<'a> {
        let Some(observation) = self.observations.get(&cell.id) else {
            return Fate::Inconclusive("it was not tried".to_owned());
        };
        let tuples = self.tuples(cell);
        if tuples
            .iter()
            .any(|tuple| self.claims.get(tuple).is_some_and(|claims| *claims > 1))
        {
            return Fate::Inconclusive("another attempt used the same source port".to_owned());
        }
        let find = |test: fn(&FlowEvent) -> bool| {
            let mut events = tuples
                .iter()
                .filter_map(|tuple| self.events.get(tuple))
                .flatten();
            events.find(|event| test(event)).copied()
        };
        let drop = find(|event| event.report.is_policy_drop());
        let audit = find(|event| event.report.is_audit());

        let answered_by_destination = matches!(
            &observation.outcome,
            Outcome::Answered { by } if *by == cell.to.to_string()
        );
        if answered_by_destination || observation.received == Some(true) {
            return match (audit, drop) {
                (_, Some(_)) => Fate::Inconclusive(
                    "it went through, and yet the control reported a drop of the same packet"
                        .to_owned(),
                ),
                (Some(event), None) => Fate::Reported(event),
                (None, None) => Fate::Unreported,
            };
        }
        match &observation.outcome {
            Outcome::TimedOut | Outcome::Unreachable { .. } if observation.connected => {
                Fate::Inconclusive("the connection was accepted and then fell silent".to_owned())
            }
            outcome @ (Outcome::TimedOut | Outcome::Unreachable { .. }) => {
                match (drop, observation.received) {
                    (None, _) => Fate::Inconclusive(self.no_drop(outcome, &tuples)),
                    (Some(_), None) => Fate::Inconclusive(
                        "its destination could not be asked whether something arrived".to_owned(),
                    ),
                    (Some(event), Some(_)) => Fate::Stopped(event),
                }
            }
            Outcome::Answered { by } => {
                Fate::Inconclusive(format!("{by} answered, which is another pod"))
            }
            other => Fate::Inconclusive(other.to_string()),
        }
    }

    /// The first thing that the control said about the cell's packet.
    pub(super) fn report(&self, cell: &Cell) -> Option<&'a FlowReport> {
        self.first_report(&self.tuples(cell))
    }

    fn first_report(&self, tuples: &[FiveTuple]) -> Option<&'a FlowReport> {
        let mut events = tuples
            .iter()
            .filter_map(|tuple| self.events.get(tuple))
            .flatten();
        events.next().map(|event| &event.report)
    }

    fn no_drop(&self, outcome: &Outcome, tuples: &[FiveTuple]) -> String {
        match self.first_report(tuples) {
            Some(report) => {
                format!("{outcome}, and the control reported {report} instead of a policy drop")
            }
            None => {
                format!("{outcome} without a drop event, which a broken network would do as well")
            }
        }
    }
}
