//! What a pass must stand on before its observations count: channels, sessions, pods and policies.

use probe::Outcome;

use super::Policies;
use crate::model::PodRef;
use crate::policies::{PolicyObject, Standing};
use crate::table::Cell;
use crate::trial::{Observation, Pass, Trial};

pub(super) fn channels(trial: &Trial) -> Result<(), String> {
    for channel in &trial.channels {
        if let Some(cause) = &channel.down {
            return Err(format!(
                "the control's events on node {} could not be heard: {cause}",
                channel.node
            ));
        }
    }
    for (pod, fact) in &trial.pods {
        if !trial
            .channels
            .iter()
            .any(|channel| channel.node == fact.node)
        {
            return Err(format!(
                "the control's events on node {}, where {pod} runs, were not listened to",
                fact.node
            ));
        }
    }
    Ok(())
}

/// The pods of the pass are the pods that the probing began with: not replaced, not restarted, not moved.
pub(super) fn same_pods(trial: &Trial, pass: &Pass, when: &str) -> Result<(), String> {
    for (pod, first) in &trial.pods {
        let Some(now) = pass.pods.get(pod) else {
            return Err(match pass.absent.get(pod) {
                Some(state) => format!("pod {pod} did not run {when}: {state}"),
                None => format!("pod {pod} was gone {when}"),
            });
        };
        if now.uid != first.uid {
            return Err(format!(
                "pod {pod} was replaced {when}: another one of that name has {} instead of {}",
                now.ip, first.ip
            ));
        }
        if now.restarts != first.restarts {
            return Err(format!(
                "pod {pod} was restarted {when}: {} restarts instead of {}",
                now.restarts, first.restarts
            ));
        }
        if now.labels != first.labels {
            return Err(format!("the labels of pod {pod} were changed {when}"));
        }
        if now != first {
            return Err(format!(
                "pod {pod} moved {when}: {} on node {} instead of {} on node {}",
                now.ip, now.node, first.ip, first.node
            ));
        }
    }
    match pass.pods.keys().find(|pod| !trial.pods.contains_key(*pod)) {
        Some(pod) => Err(format!(
            "pod {pod} was not there when the probing began, but {when}"
        )),
        None => Ok(()),
    }
}

/// Every cell exactly once, from a session that lasted, with its name resolved.
pub(super) fn complete(trial: &Trial, pass: &Pass, when: &str) -> Result<(), String> {
    if let Some((pod, cause)) = pass.lost_sessions.iter().next() {
        return Err(format!(
            "the probe session in {pod} was lost {when}: {cause}"
        ));
    }
    if pass.observations.len() != trial.cells.len() {
        return Err(format!(
            "{} of {} attempts were reported {when}",
            pass.observations.len(),
            trial.cells.len()
        ));
    }
    for cell in &trial.cells {
        let observation = observed(pass, cell).map_err(|cause| format!("{cause} {when}"))?;
        match &observation.outcome {
            Outcome::DnsFailed { cause } => {
                return Err(format!(
                    "{} was not tried {when}, its name did not resolve: {cause}",
                    cell.id
                ));
            }
            Outcome::LocalError { cause } => {
                return Err(format!("{} could not be tried {when}: {cause}", cell.id));
            }
            _ => {}
        }
        for pod in [&cell.from, &cell.to] {
            if !pass.pods.contains_key(pod) {
                return Err(format!("pod {pod} was not seen running {when}"));
            }
        }
    }
    Ok(())
}

pub(super) fn observed<'a>(pass: &'a Pass, cell: &Cell) -> Result<&'a Observation, String> {
    pass.observation(&cell.id)
        .ok_or_else(|| format!("{} was not tried", cell.id))
}

/// The policies about the probed pods are those of the scenario, and they stayed what they were for the whole pass.
pub(super) fn own_policies(
    trial: &Trial,
    pass: &Pass,
    policies: Policies,
    when: &str,
) -> Result<(), String> {
    for found in [&pass.policies_before, &pass.policies_after] {
        if let Some(cause) = disturbance(&trial.policies, found, policies) {
            return Err(format!("{cause} {when}"));
        }
    }
    let changed = pass
        .policies_after
        .iter()
        .find(|after| !pass.policies_before.contains(after));
    match changed {
        Some(policy) => Err(format!(
            "somebody replaced or changed {policy} in the middle of the pass {when}"
        )),
        None => Ok(()),
    }
}

/// What is not as it must be with the policies that were found about the probed pods.
pub fn disturbance(own: &[PodRef], found: &[PolicyObject], policies: Policies) -> Option<String> {
    for policy in found {
        match &policy.standing {
            Standing::Foreign(pod) => {
                return Some(format!(
                    "{policy}, which is about {pod}, is not part of the scenario and was in force"
                ));
            }
            Standing::Altered => {
                return Some(format!(
                    "{policy} did not say what the scenario says, somebody changed it,"
                ));
            }
            Standing::Own if policies == Policies::Lifted => {
                return Some(format!("somebody put {policy} back"));
            }
            Standing::Own => {}
        }
    }
    if policies == Policies::Lifted {
        return None;
    }
    let missing = own
        .iter()
        .find(|policy| !found.iter().any(|object| object.is(policy)))?;
    Some(format!("somebody took NetworkPolicy {missing} away"))
}

/// Whether the control had the policies that forbid a cell when it let the cell through.
///
/// Before that nothing can be said about it, however long it takes.
pub(super) fn taken_in(trial: &Trial, pass: &Pass, cell: &Cell) -> Result<(), String> {
    let sides = [
        (&cell.to, &cell.decision.ingress),
        (&cell.from, &cell.decision.egress),
    ];
    for (pod, side) in sides.into_iter().filter(|(_, side)| !side.allowed()) {
        let node = trial
            .pods
            .get(pod)
            .map(|fact| fact.node.clone())
            .unwrap_or_default();
        let repository = match pass.repositories.get(&node) {
            Some(Ok(repository)) => repository,
            Some(Err(cause)) => {
                return Err(format!(
                    "which policies the agent on node {node} has could not be read: {cause}"
                ));
            }
            None => {
                return Err(format!(
                    "the agent on node {node} was not asked for its policies"
                ));
            }
        };
        for policy in &pass.policies_after {
            let name = match &policy.namespace {
                Some(namespace) => format!("{namespace}/{}", policy.name),
                None => policy.name.clone(),
            };
            if side.isolated_by.contains(&name) && !repository.uids.contains(&policy.uid) {
                return Err(format!(
                    "the agent on node {node} has not taken in {policy} yet"
                ));
            }
        }
        let revision = pass
            .endpoints
            .get(pod)
            .and_then(|endpoint| endpoint.revision);
        if let Some(revision) = revision.filter(|revision| *revision < repository.revision) {
            return Err(format!(
                "the endpoint of {pod} is at policy revision {revision}, its agent already at {}",
                repository.revision
            ));
        }
    }
    Ok(())
}

/// Whether the control still holds on to policies that were taken away, as far as it says so itself.
pub(super) fn held(trial: &Trial, pass: &Pass, cell: &Cell) -> Option<String> {
    [&cell.to, &cell.from].into_iter().find_map(|pod| {
        let node = &trial.pods.get(pod)?.node;
        let repository = pass.repositories.get(node)?.as_ref().ok()?;
        let mut own = trial.enforced.policies_after.iter();
        if let Some(policy) = own.find(|policy| repository.uids.contains(&policy.uid)) {
            return Some(format!("the agent on node {node} still has {policy}"));
        }
        let endpoint = pass.endpoints.get(pod)?;
        let revision = endpoint.revision?;
        (endpoint.ingress || endpoint.egress).then(|| {
            format!(
                "the endpoint of {pod} still enforces, in state {}, at policy revision {revision} with its agent at {}",
                endpoint.state, repository.revision
            )
        })
    })
}
