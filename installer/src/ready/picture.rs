//! What the watches have seen so far, and what follows from it for each target. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::{Event as ClusterEvent, Pod},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Resource, ResourceExt,
    core::{Selector, SelectorExt},
    runtime::watcher::{self, Event},
};

use super::{Change, pod};
use crate::catalogue::{Target, TargetKind};

/// Where a target stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Rolled out.
    Ready,
    /// Not rolled out, and why, as far as it can be seen.
    Waiting(String),
}

impl Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Waiting(why) => f.write_str(why),
        }
    }
}

/// A container that ended badly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crash {
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) restarts: i32,
    /// Whether the words are those of the container before the present one.
    pub(super) restarted: bool,
}

/// The objects of a namespace that matter, by name.
#[derive(Debug, Default)]
pub(super) struct Picture {
    daemon_sets: Store<DaemonSet>,
    deployments: Store<Deployment>,
    pods: Store<Pod>,
    warnings: Store<ClusterEvent>,
    words: BTreeMap<Crash, Vec<String>>,
    trouble: Option<String>,
}

impl Picture {
    pub(super) fn from_lists(
        daemon_sets: Vec<DaemonSet>,
        deployments: Vec<Deployment>,
        pods: Vec<Pod>,
        warnings: Vec<ClusterEvent>,
    ) -> Self {
        Self {
            daemon_sets: Store::whole(daemon_sets),
            deployments: Store::whole(deployments),
            pods: Store::whole(pods),
            warnings: Store::whole(warnings),
            ..Self::default()
        }
    }

    /// Takes in a change. Returns what may not be looked at, when that is the answer.
    pub(super) fn take(&mut self, change: Change) -> Option<(&'static str, String)> {
        let (what, error) = match change {
            Change::DaemonSet(Ok(event)) => {
                return self.seen(|picture| picture.daemon_sets.take(event));
            }
            Change::Deployment(Ok(event)) => {
                return self.seen(|picture| picture.deployments.take(event));
            }
            Change::Pod(Ok(event)) => return self.seen(|picture| picture.pods.take(event)),
            Change::Warning(Ok(event)) => return self.seen(|picture| picture.warnings.take(event)),
            // Events only explain; a user who may not read them can still wait.
            Change::Warning(Err(_)) => return None,
            Change::DaemonSet(Err(error)) => ("daemon sets", error),
            Change::Deployment(Err(error)) => ("deployments", error),
            Change::Pod(Err(error)) => ("pods", error),
        };
        let refused = match &error {
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchFailed(kube::Error::Api(status))
            | watcher::Error::WatchError(status)
                if matches!(status.code, 401 | 403) =>
            {
                Some((what, status.message.clone()))
            }
            _ => None,
        };
        self.trouble = Some(format!("cannot watch {what}, trying again: {error}"));
        refused
    }

    fn seen(&mut self, take: impl FnOnce(&mut Self)) -> Option<(&'static str, String)> {
        self.trouble = None;
        take(self);
        None
    }

    /// What is wrong with the watches themselves at present.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// Whether everything has been listed once, so that an object that is not here is not there.
    pub(super) fn is_complete(&self, targets: &[Target]) -> bool {
        self.pods.complete
            && targets.iter().all(|target| match target.kind {
                TargetKind::DaemonSet => self.daemon_sets.complete,
                TargetKind::Deployment => self.deployments.complete,
            })
    }

    pub(super) fn words_of(&mut self, crash: Crash, words: Vec<String>) {
        // Only the last crash of a container is of interest.
        self.words
            .retain(|other, _| other.pod != crash.pod || other.container != crash.container);
        self.words.insert(crash, words);
    }

    /// The crashes among the targets' pods whose last words are not known yet.
    pub(super) fn crashes_without_words(&self, targets: &[Target]) -> Vec<Crash> {
        targets
            .iter()
            .filter_map(|target| self.blocking_pod(target))
            .filter_map(pod::crash)
            .filter(|crash| !self.words.contains_key(crash))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    pub(super) fn state_of(&self, target: &Target) -> State {
        let rollout = match target.kind {
            TargetKind::DaemonSet => self
                .daemon_sets
                .objects
                .get(&target.name)
                .map(daemon_set_rollout),
            TargetKind::Deployment => self
                .deployments
                .objects
                .get(&target.name)
                .map(deployment_rollout),
        };
        let Some(rollout) = rollout else {
            return State::Waiting("not there yet".to_owned());
        };
        let Some(mut why) = rollout else {
            return State::Ready;
        };
        if let Some(pod) = self.blocking_pod(target) {
            why.push_str("; ");
            why.push_str(&pod::explain(pod));
            if let Some(warning) =
                self.latest_warning(|kind, name| kind == "Pod" && name == pod.name_any())
            {
                why.push_str(&warning);
            }
            if let Some(words) = pod::crash(pod).and_then(|crash| self.words.get(&crash))
                && !words.is_empty()
            {
                let words: Vec<_> = words.iter().map(|line| pod::shorten(line)).collect();
                why.push_str("; last words: ");
                why.push_str(&words.join(" | "));
            }
        } else if let Some(warning) = self.latest_warning(|kind, name| match kind {
            "ReplicaSet" => name
                .strip_prefix(&target.name)
                .is_some_and(|rest| rest.starts_with('-')),
            _ => name == target.name && kind.eq_ignore_ascii_case(target.kind.lowercase()),
        }) {
            why.push_str(&warning);
        }
        State::Waiting(why)
    }

    /// The pod of a target that is furthest from being ready.
    fn blocking_pod(&self, target: &Target) -> Option<&Pod> {
        let selector: LabelSelector = match target.kind {
            TargetKind::DaemonSet => self
                .daemon_sets
                .objects
                .get(&target.name)?
                .spec
                .selector
                .clone(),
            TargetKind::Deployment => self
                .deployments
                .objects
                .get(&target.name)?
                .spec
                .selector
                .clone(),
        };
        let selector = Selector::try_from(selector).ok()?;
        self.pods
            .objects
            .values()
            .filter(|pod| selector.matches(pod.labels()))
            .filter_map(|pod| pod::severity(pod).map(|severity| (severity, pod)))
            .max_by(|(a, pod_a), (b, pod_b)| {
                // The name decides between equals, so that the line does not jump from pod to pod.
                a.cmp(b)
                    .then_with(|| pod_b.name_any().cmp(&pod_a.name_any()))
            })
            .map(|(_, pod)| pod)
    }

    fn latest_warning(&self, about: impl Fn(&str, &str) -> bool) -> Option<String> {
        let event = self
            .warnings
            .objects
            .values()
            .filter(|event| {
                let object = &event.involved_object;
                about(
                    object.kind.as_deref().unwrap_or(""),
                    object.name.as_deref().unwrap_or(""),
                )
            })
            .max_by_key(|event| {
                let micro = event
                    .series
                    .as_ref()
                    .and_then(|series| series.last_observed_time.as_ref());
                let micro = micro.or(event.event_time.as_ref()).map(|time| time.0);
                event.last_timestamp.as_ref().map(|time| time.0).max(micro)
            })?;
        let reason = event.reason.as_deref().unwrap_or("Unknown");
        Some(format!(
            "; warning {reason}: {}",
            pod::shorten(event.message.as_deref().unwrap_or(""))
        ))
    }
}

/// What is missing from a daemon set's rollout; nothing when it is complete.
fn daemon_set_rollout(set: &DaemonSet) -> Option<String> {
    let status = set.status.clone().unwrap_or_default();
    if status.observed_generation < set.metadata.generation {
        return Some("the controller has not seen the change yet".to_owned());
    }
    let desired = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or(0);
    match (desired, updated, status.number_ready) {
        (0, _, _) => Some("no node wants a pod of it yet".to_owned()),
        (desired, updated, ready) if updated < desired => Some(format!(
            "{updated} of {desired} pods updated, {ready} ready"
        )),
        (desired, _, ready) if ready < desired => Some(format!("{ready} of {desired} pods ready")),
        _ => None,
    }
}

/// What is missing from a deployment's rollout; nothing when it is complete.
fn deployment_rollout(deployment: &Deployment) -> Option<String> {
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        return Some("the controller has not seen the change yet".to_owned());
    }
    let desired = deployment.spec.replicas.unwrap_or(1);
    let updated = status.updated_replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    let all = status.replicas.unwrap_or(0);
    if updated < desired {
        return Some(format!(
            "{updated} of {desired} pods updated, {available} available"
        ));
    }
    if available < desired {
        return Some(format!("{available} of {desired} pods available"));
    }
    (all > updated).then(|| format!("{} old pods still there", all - updated))
}

/// The objects of one kind, kept up to date by a watch.
#[derive(Debug)]
struct Store<K> {
    objects: BTreeMap<String, K>,
    /// What a new list has brought so far; it replaces the old objects when it is whole.
    incoming: BTreeMap<String, K>,
    complete: bool,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            incoming: BTreeMap::new(),
            complete: false,
        }
    }
}

impl<K: Resource> Store<K> {
    fn whole(objects: Vec<K>) -> Self {
        let objects = objects
            .into_iter()
            .map(|object| (object.name_any(), object))
            .collect();
        Self {
            objects,
            incoming: BTreeMap::new(),
            complete: true,
        }
    }

    fn take(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.incoming.clear(),
            Event::InitApply(object) => {
                self.incoming.insert(object.name_any(), object);
            }
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.incoming);
                self.complete = true;
            }
            Event::Apply(object) => {
                self.objects.insert(object.name_any(), object);
            }
            Event::Delete(object) => {
                self.objects.remove(&object.name_any());
            }
        }
    }
}
