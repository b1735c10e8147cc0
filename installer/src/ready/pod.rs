//! Why a pod is not ready, in a few words. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use kube::ResourceExt;

use super::picture::Crash;

/// The longest piece of somebody else's message that is shown.
const LONGEST: usize = 240;

/// How far a pod is from being ready; nothing when it is ready or on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Running and not ready, or starting.
    Slow,
    /// Cannot start: no node, no image, no volume.
    Stuck,
    /// Its container ended badly.
    Crashed,
}

pub(super) fn severity(pod: &Pod) -> Option<Severity> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref();
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    if conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    {
        return None;
    }
    if crash(pod).is_some() {
        return Some(Severity::Crashed);
    }
    let unscheduled = conditions
        .iter()
        .any(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let waiting_for =
        blocking_container(status).and_then(|(_, container)| waiting_reason(container));
    let starting = matches!(
        waiting_for,
        None | Some("ContainerCreating" | "PodInitializing")
    );
    Some(if unscheduled || !starting {
        Severity::Stuck
    } else {
        Severity::Slow
    })
}

/// `pod NAME (node NODE, Pending): container NAME waiting: REASON: MESSAGE`.
pub(super) fn explain(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let phase = status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("no phase");
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let node = node.map_or("no node".to_owned(), |node| format!("node {node}"));
    let pod = format!("pod {} ({node}, {phase})", pod.name_any());
    let unscheduled = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let reason = condition.reason.as_deref().unwrap_or("not scheduled");
        format!(
            "{pod}: {reason}{}",
            message_after_colon(condition.message.as_deref())
        )
    } else if let Some((what, container)) = blocking_container(status) {
        format!(
            "{pod}: {what} {} {}",
            container.name,
            container_state(container)
        )
    } else if let Some(reason) = status.and_then(|status| status.reason.as_deref()) {
        let message = status.and_then(|status| status.message.as_deref());
        format!("{pod}: {reason}{}", message_after_colon(message))
    } else {
        pod
    }
}

/// The crash that holds a pod back, when there is one.
pub(super) fn crash(pod: &Pod) -> Option<Crash> {
    let (_, container) = blocking_container(pod.status.as_ref())?;
    let state = container.state.as_ref()?;
    let ended_badly = state
        .terminated
        .as_ref()
        .is_some_and(|ended| ended.exit_code != 0);
    let backing_off = waiting_reason(container) == Some("CrashLoopBackOff");
    (ended_badly || backing_off).then(|| Crash {
        pod: pod.name_any(),
        container: container.name.clone(),
        restarts: container.restart_count,
        restarted: !ended_badly,
    })
}

/// One line of somebody else's text, cut where it gets too long.
pub(super) fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LONGEST {
        return line;
    }
    let mut cut: String = line.chars().take(LONGEST).collect();
    cut.push_str("...");
    cut
}

/// The first container that holds the pod back: init containers run in order, before all others.
fn blocking_container(status: Option<&PodStatus>) -> Option<(&'static str, &ContainerStatus)> {
    let status = status?;
    let succeeded = |container: &&ContainerStatus| {
        let ended = container
            .state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        // An init container that keeps running as a sidecar is done when it has started.
        ended.is_some_and(|ended| ended.exit_code == 0)
            || (container.started == Some(true) && container.ready)
    };
    let init = status
        .init_container_statuses
        .as_deref()
        .unwrap_or_default();
    if let Some(container) = init.iter().find(|container| !succeeded(container)) {
        return Some(("init container", container));
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    containers
        .iter()
        .find(|container| !container.ready)
        .map(|container| ("container", container))
}

fn waiting_reason(container: &ContainerStatus) -> Option<&str> {
    container
        .state
        .as_ref()?
        .waiting
        .as_ref()?
        .reason
        .as_deref()
}

fn container_state(container: &ContainerStatus) -> String {
    let text = match &container.state {
        Some(state) if state.waiting.is_some() => {
            let waiting = state.waiting.clone().unwrap_or_default();
            let reason = waiting
                .reason
                .unwrap_or_else(|| "no reason given".to_owned());
            format!(
                "waiting: {reason}{}",
                message_after_colon(waiting.message.as_deref())
            )
        }
        Some(state) if state.terminated.is_some() => {
            let ended = state.terminated.clone().unwrap_or_default();
            let reason = ended
                .reason
                .map(|reason| format!(" ({reason})"))
                .unwrap_or_default();
            format!(
                "ended with exit code {}{reason}{}",
                ended.exit_code,
                message_after_colon(ended.message.as_deref())
            )
        }
        Some(state) if state.running.is_some() => "runs and is not ready yet".to_owned(),
        _ => "has not started".to_owned(),
    };
    match container.restart_count {
        0 => text,
        1 => format!("{text}, 1 restart"),
        many => format!("{text}, {many} restarts"),
    }
}

fn message_after_colon(message: Option<&str>) -> String {
    message
        .filter(|message| !message.is_empty())
        .map(|message| format!(": {}", shorten(message)))
        .unwrap_or_default()
}
