//! Waiting for a rollout: what ends it, and what it says meanwhile.

use std::time::Duration;

use installer::{
    catalogue::{Target, TargetKind},
    interrupt::Interrupt,
    ready::{self, WaitError},
};
use serde_json::json;

use crate::fake_cluster::FakeCluster;

fn targets() -> Vec<Target> {
    vec![
        Target {
            kind: TargetKind::DaemonSet,
            name: "cilium".to_owned(),
        },
        Target {
            kind: TargetKind::Deployment,
            name: "cilium-operator".to_owned(),
        },
    ]
}

/// Waits, calling `at_line` with each line, and returns the lines and how it ended.
async fn wait(
    cluster: &FakeCluster,
    timeout: Duration,
    mut at_line: impl FnMut(&str) + Send,
) -> (Vec<String>, Result<(), WaitError>) {
    let mut lines = Vec::new();
    let mut report = |line: &str| {
        lines.push(line.to_owned());
        at_line(line);
    };
    let interrupt = Interrupt::new().1;
    let result = ready::wait(
        &cluster.client(),
        "gitlab-managed-apps",
        &targets(),
        timeout,
        &interrupt,
        &mut report,
    )
    .await;
    (lines, result)
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(400);

#[tokio::test]
async fn it_ends_when_everything_is_rolled_out_and_says_what_changed() {
    let cluster = FakeCluster::new();
    cluster.daemon_set("cilium", 0, 1);
    cluster.deployment("cilium-operator", 1);
    let running = cluster.clone();
    let (lines, result) = wait(&cluster, LONG, move |line| {
        if line.contains("0 of 1 pods ready") {
            running.daemon_set("cilium", 1, 1);
        }
    })
    .await;
    result.expect("ready");
    insta::assert_snapshot!(lines.join("\n"));
}

#[tokio::test]
async fn objects_may_appear_later() {
    let cluster = FakeCluster::new();
    let later = cluster.clone();
    let (lines, result) = wait(&cluster, LONG, move |line| {
        if line == "daemonset cilium: not there yet" {
            later.daemon_set("cilium", 1, 1);
            later.deployment("cilium-operator", 1);
        }
    })
    .await;
    result.expect("ready");
    assert_eq!(
        lines.first().map(String::as_str),
        Some("daemonset cilium: not there yet")
    );
}

#[tokio::test]
async fn a_time_out_carries_the_crash_its_warning_and_its_last_words() {
    let cluster = FakeCluster::new();
    cluster.daemon_set("cilium", 0, 1);
    cluster.deployment("cilium-operator", 1);
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}});
    cluster.pod(
        "cilium-x7k2p",
        "cilium",
        &json!({
            "phase": "Running",
            "containerStatuses": [
                {"name": "cilium-agent", "image": "i", "imageID": "", "ready": false, "restartCount": 3, "state": waiting},
            ],
        }),
    );
    cluster.warning(
        "Pod",
        "cilium-x7k2p",
        "BackOff",
        "Back-off restarting failed container",
    );
    cluster.log(
        "cilium-x7k2p",
        "level=info msg=starting\nlevel=fatal msg=\"no such device\"\n",
    );
    let (_, result) = wait(&cluster, SHORT, |_| {}).await;
    insta::assert_snapshot!(result.expect_err("it never gets ready"));
}

#[tokio::test]
async fn init_containers_and_scheduling_are_named_as_the_cause() {
    let cluster = FakeCluster::new();
    cluster.daemon_set("cilium", 0, 1);
    cluster.deployment("cilium-operator", 0);
    let done = json!({"terminated": {"exitCode": 0}});
    let pulling = json!({"waiting": {"reason": "ErrImageNeverPull", "message": "Container image \"q.io/cilium\" is not present"}});
    cluster.pod(
        "cilium-x7k2p",
        "cilium",
        &json!({
            "phase": "Pending",
            "initContainerStatuses": [
                {"name": "config", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": done},
                {"name": "mount-cgroup", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": pulling},
            ],
            "containerStatuses": [
                {"name": "cilium-agent", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": "PodInitializing"}}},
            ],
        }),
    );
    cluster.pod(
        "cilium-operator-5d9",
        "cilium-operator",
        &json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                            "message": "0/1 nodes are available: 1 node(s) didn't have free ports."}],
        }),
    );
    let (lines, _) = wait(&cluster, SHORT, |_| {}).await;
    insta::assert_snapshot!(lines.join("\n"));
}

#[tokio::test]
async fn what_keeps_pods_from_being_made_is_named() {
    let cluster = FakeCluster::new();
    cluster.daemon_set("cilium", 1, 1);
    cluster.deployment("cilium-operator", 0);
    cluster.warning(
        "ReplicaSet",
        "cilium-operator-5d9",
        "FailedCreate",
        "pods is forbidden: exceeded quota",
    );
    let (lines, _) = wait(&cluster, SHORT, |_| {}).await;
    let expected = "deployment cilium-operator: 0 of 1 pods available; warning FailedCreate: pods is forbidden: exceeded quota";
    assert_eq!(lines.last().map(String::as_str), Some(expected));
}

#[tokio::test]
async fn without_the_right_to_look_it_ends_at_once() {
    let cluster = FakeCluster::new();
    cluster.forbid("/pods");
    let (_, result) = wait(&cluster, LONG, |_| {}).await;
    assert_eq!(
        result.expect_err("refused").to_string(),
        "not allowed to watch pods: user \"ci\" cannot list this"
    );
}

#[tokio::test]
async fn without_the_right_to_read_events_it_still_waits() {
    let cluster = FakeCluster::new();
    cluster.forbid("/events");
    cluster.daemon_set("cilium", 1, 1);
    cluster.deployment("cilium-operator", 1);
    let (_, result) = wait(&cluster, LONG, |_| {}).await;
    result.expect("ready");
}

#[tokio::test]
async fn an_interrupt_ends_it_with_the_last_status() {
    let cluster = FakeCluster::new();
    cluster.daemon_set("cilium", 0, 1);
    cluster.deployment("cilium-operator", 1);
    let (raiser, interrupt) = Interrupt::new();
    let mut report = |line: &str| {
        if line.contains("0 of 1") {
            raiser.raise();
        }
    };
    let result = ready::wait(
        &cluster.client(),
        "gitlab-managed-apps",
        &targets(),
        LONG,
        &interrupt,
        &mut report,
    )
    .await;
    assert_eq!(
        result.expect_err("interrupted").to_string(),
        "the wait was interrupted; last status: daemonset cilium: 0 of 1 pods ready"
    );
}

#[tokio::test]
async fn a_look_says_the_same_without_waiting() {
    let cluster = FakeCluster::new();
    cluster.daemon_set("cilium", 0, 2);
    let states = ready::look(&cluster.client(), "gitlab-managed-apps", &targets())
        .await
        .expect("answered");
    let states: Vec<_> = states.iter().map(ToString::to_string).collect();
    assert_eq!(states, ["0 of 2 pods ready", "not there yet"]);
}
