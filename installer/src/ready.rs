//! Waits until what was installed is up, and says meanwhile what it waits for and why.

mod picture;
mod pod;

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use futures::{Stream, StreamExt, future, stream};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Event as ClusterEvent, Pod},
};
use kube::{
    Api, Client,
    api::{ListParams, LogParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use thiserror::Error;

use picture::Picture;
pub use picture::State;

use crate::{
    catalogue::{Target, TargetKind},
    interrupt::Interrupt,
};

/// How long to ask for the last words of a crashed container before going on without them.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// Why the wait ended without everything being up.
#[derive(Debug, Error)]
pub enum WaitError {
    /// It took too long.
    #[error("not ready after {after:?}; last status: {status}")]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
        /// What was still missing at the end.
        status: String,
    },
    /// The user stopped it.
    #[error("the wait was interrupted; last status: {status}")]
    Interrupted {
        /// What was still missing.
        status: String,
    },
    /// The cluster does not let this user look.
    #[error("not allowed to watch {what}: {message}")]
    Forbidden {
        /// Which objects.
        what: &'static str,
        /// What the cluster said.
        message: String,
    },
    /// The cluster could not be asked.
    #[error("cannot list {what}")]
    List {
        /// Which objects.
        what: &'static str,
        /// Why not.
        source: Box<kube::Error>,
    },
}

/// Waits until every target is rolled out. `report` gets one line whenever the status of a target changes.
pub async fn wait(
    client: &Client,
    namespace: &str,
    targets: &[Target],
    timeout: Duration,
    interrupt: &Interrupt,
    report: &mut (dyn FnMut(&str) + Send),
) -> Result<(), WaitError> {
    let mut changes = changes(client, namespace, targets);
    let mut picture = Picture::default();
    let mut shown: BTreeMap<Target, String> = BTreeMap::new();
    let mut deadline = std::pin::pin!(tokio::time::sleep(timeout));
    loop {
        let change = tokio::select! {
            // Both ends of the wait come first: a busy cluster must not keep it going.
            biased;
            () = interrupt.raised() => return Err(WaitError::Interrupted { status: last_status(&shown) }),
            () = &mut deadline => return Err(WaitError::TimedOut { after: timeout, status: last_status(&shown) }),
            Some(change) = changes.next() => change,
        };
        if let Some((what, message)) = picture.take(change) {
            return Err(WaitError::Forbidden { what, message });
        }
        if !picture.is_complete(targets) {
            if let Some(trouble) = picture.trouble()
                && let Some(first) = targets.first()
                && shown.insert(first.clone(), trouble.clone()).as_ref() != Some(&trouble)
            {
                report(&trouble);
            }
            continue;
        }
        fetch_last_words(client, namespace, targets, &mut picture).await;
        let mut all_ready = true;
        for target in targets {
            let state = picture.state_of(target);
            all_ready &= state == State::Ready;
            let line = format!("{} {}: {state}", target.kind.lowercase(), target.name);
            if shown.insert(target.clone(), line.clone()).as_ref() != Some(&line) {
                report(&line);
            }
        }
        if all_ready {
            return Ok(());
        }
    }
}

/// The present state of each target, without waiting.
pub async fn look(
    client: &Client,
    namespace: &str,
    targets: &[Target],
) -> Result<Vec<State>, WaitError> {
    let everything = ListParams::default();
    let failed = |what| {
        move |source| WaitError::List {
            what,
            source: Box::new(source),
        }
    };
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let warnings: Api<ClusterEvent> = Api::namespaced(client.clone(), namespace);
    let only_warnings = everything.clone().fields("type=Warning");
    let (daemon_sets, deployments, pods, warnings) = future::join4(
        daemon_sets.list(&everything),
        deployments.list(&everything),
        pods.list(&everything),
        warnings.list(&only_warnings),
    )
    .await;
    let mut picture = Picture::from_lists(
        daemon_sets.map_err(failed("daemon sets"))?.items,
        deployments.map_err(failed("deployments"))?.items,
        pods.map_err(failed("pods"))?.items,
        // Events only explain; without the right to read them the state is still known.
        warnings.map(|list| list.items).unwrap_or_default(),
    );
    fetch_last_words(client, namespace, targets, &mut picture).await;
    Ok(targets
        .iter()
        .map(|target| picture.state_of(target))
        .collect())
}

/// One thing that the watches saw.
enum Change {
    DaemonSet(watcher::Result<Event<DaemonSet>>),
    Deployment(watcher::Result<Event<Deployment>>),
    Pod(watcher::Result<Event<Pod>>),
    Warning(watcher::Result<Event<ClusterEvent>>),
}

fn changes(
    client: &Client,
    namespace: &str,
    targets: &[Target],
) -> stream::SelectAll<Pin<Box<dyn Stream<Item = Change> + Send>>> {
    let has = |kind| targets.iter().any(|target| target.kind == kind);
    let all = watcher::Config::default();
    let mut streams: Vec<Pin<Box<dyn Stream<Item = Change> + Send>>> = Vec::new();
    if has(TargetKind::DaemonSet) {
        let api = Api::namespaced(client.clone(), namespace);
        streams.push(
            watcher(api, all.clone())
                .default_backoff()
                .map(Change::DaemonSet)
                .boxed(),
        );
    }
    if has(TargetKind::Deployment) {
        let api = Api::namespaced(client.clone(), namespace);
        streams.push(
            watcher(api, all.clone())
                .default_backoff()
                .map(Change::Deployment)
                .boxed(),
        );
    }
    let pods = Api::namespaced(client.clone(), namespace);
    streams.push(
        watcher(pods, all.clone())
            .default_backoff()
            .map(Change::Pod)
            .boxed(),
    );
    let warnings = Api::namespaced(client.clone(), namespace);
    streams.push(
        watcher(warnings, all.fields("type=Warning"))
            .default_backoff()
            .map(Change::Warning)
            .boxed(),
    );
    stream::select_all(streams)
}

async fn fetch_last_words(
    client: &Client,
    namespace: &str,
    targets: &[Target],
    picture: &mut Picture,
) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    for crash in picture.crashes_without_words(targets) {
        let params = LogParams {
            container: Some(crash.container.clone()),
            previous: crash.restarted,
            tail_lines: Some(3),
            ..LogParams::default()
        };
        let words = match tokio::time::timeout(LOG_PATIENCE, pods.logs(&crash.pod, &params)).await {
            Ok(Ok(text)) => text.lines().map(str::to_owned).collect(),
            // The log is a help, never a condition.
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        picture.words_of(crash, words);
    }
}

fn last_status(shown: &BTreeMap<Target, String>) -> String {
    let waiting: Vec<_> = shown
        .iter()
        .filter(|(target, line)| !line.ends_with(&format!("{}: {}", target.name, State::Ready)))
        .map(|(_, line)| line.as_str())
        .collect();
    if waiting.is_empty() {
        "the cluster has not answered yet".to_owned()
    } else {
        waiting.join("; ")
    }
}
