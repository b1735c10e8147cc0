//! Objects into the cluster, and the pods' state out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::api::{call, found};
use super::error::ProveError;
use crate::model::{Labels, PodRef};
use crate::trial::PodFact;

const MANAGER: &str = "holdfast";
const OWNER_LABEL: &str = "app.kubernetes.io/managed-by";
/// What marks the objects of a proof, as a selector.
pub(super) const OWNED: &str = "app.kubernetes.io/managed-by=holdfast";
/// How often conditions without a watch are looked at.
const POLL: Duration = Duration::from_millis(100);

/// Applies namespaces first, then the rest, in the order of the file.
pub(super) async fn apply_all(
    client: &Client,
    documents: &[Value],
    deadline: Instant,
) -> Result<(), ProveError> {
    let is_namespace = |document: &&Value| document["kind"] == "Namespace";
    for document in documents.iter().filter(is_namespace) {
        apply_namespace(client, document, deadline).await?;
    }
    for document in documents.iter().filter(|document| !is_namespace(document)) {
        match document["kind"].as_str() {
            Some("Pod") => {
                make_way(client, document, deadline).await?;
                apply::<Pod>(client, document, deadline).await?;
            }
            Some("Service") => apply::<Service>(client, document, deadline).await?,
            Some("NetworkPolicy") => apply::<NetworkPolicy>(client, document, deadline).await?,
            // Every other kind was refused when the manifests were read.
            _ => {}
        }
    }
    Ok(())
}

fn owned(document: &Value) -> Value {
    let mut document = document.clone();
    if document["metadata"]["labels"].is_null() {
        document["metadata"]["labels"] = json!({});
    }
    document["metadata"]["labels"][OWNER_LABEL] = json!(MANAGER);
    document
}

pub(super) fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn describe(document: &Value) -> String {
    let (kind, name) = (text(document, "/kind"), text(document, "/metadata/name"));
    match text(document, "/metadata/namespace") {
        "" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
}

/// A namespace of the previous run may still be going away, and nothing can be created in it until it is gone.
async fn apply_namespace(
    client: &Client,
    document: &Value,
    deadline: Instant,
) -> Result<(), ProveError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let name = text(document, "/metadata/name");
    let started = Instant::now();
    loop {
        let existing = call("read", describe(document), api.get_opt(name)).await?;
        let Some(existing) = existing else { break };
        if existing.metadata.deletion_timestamp.is_none() {
            let labels = existing.metadata.labels.unwrap_or_default();
            if labels.get(OWNER_LABEL).map(String::as_str) == Some(MANAGER) {
                break;
            }
            return Err(ProveError::NotOurs {
                namespace: name.to_owned(),
                label: OWNED,
            });
        }
        if Instant::now() >= deadline {
            return Err(ProveError::Timeout {
                condition: format!("the old {} to be gone", describe(document)),
                waited_s: started.elapsed().as_secs(),
                last_status: "it is still terminating".to_owned(),
            });
        }
        sleep(POLL).await;
    }
    let (parameters, patch) = (
        PatchParams::apply(MANAGER).force(),
        Patch::Apply(owned(document)),
    );
    let applied = api.patch(name, &parameters, &patch);
    call("apply", describe(document), applied).await.map(drop)
}

/// A pod of an earlier proof that is on its way out, or that has ended for good, never becomes ready again.
async fn make_way(client: &Client, document: &Value, deadline: Instant) -> Result<(), ProveError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), text(document, "/metadata/namespace"));
    let name = text(document, "/metadata/name");
    let started = Instant::now();
    loop {
        let existing = call("read", describe(document), api.get_opt(name)).await?;
        let Some(existing) = existing else {
            return Ok(());
        };
        let phase = existing.status.and_then(|status| status.phase);
        let ended = matches!(phase.as_deref(), Some("Failed" | "Succeeded"));
        if existing.metadata.deletion_timestamp.is_none() {
            if !ended {
                return Ok(());
            }
            let parameters = DeleteParams::default().grace_period(0);
            found(call("delete", describe(document), api.delete(name, &parameters)).await)?;
        }
        if Instant::now() >= deadline {
            return Err(ProveError::Timeout {
                condition: format!("the old {} to be gone", describe(document)),
                waited_s: started.elapsed().as_secs(),
                last_status: format!("it is {}", phase.unwrap_or_default()),
            });
        }
        sleep(POLL).await;
    }
}

async fn apply<K>(client: &Client, document: &Value, deadline: Instant) -> Result<(), ProveError>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), text(document, "/metadata/namespace"));
    let name = text(document, "/metadata/name");
    let (parameters, patch) = (
        PatchParams::apply(MANAGER).force(),
        Patch::Apply(owned(document)),
    );
    loop {
        let applied = api.patch(name, &parameters, &patch);
        match call("apply", describe(document), applied).await {
            Ok(_) => return Ok(()),
            // A new namespace gets its default service account a moment later; until then pods are forbidden.
            Err(ProveError::Api { source, .. })
                if lacks_service_account(&source) && Instant::now() < deadline =>
            {
                sleep(POLL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn lacks_service_account(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403 && status.message.contains("serviceaccount"))
}

/// Deletes the scenario's own namespaces, and only those.
pub(super) async fn delete_namespaces(
    client: &Client,
    workload: &[Value],
) -> Result<(), ProveError> {
    let api: Api<Namespace> = Api::all(client.clone());
    for document in workload
        .iter()
        .filter(|document| document["kind"] == "Namespace")
    {
        let name = text(document, "/metadata/name");
        let parameters = DeleteParams::background();
        // Somebody else's is left alone here too, whatever was the reason to stop.
        let existing = call("read", describe(document), api.get_opt(name)).await?;
        let labels = existing.and_then(|namespace| namespace.metadata.labels);
        if labels.is_some_and(|labels| labels.get(OWNER_LABEL).map(String::as_str) == Some(MANAGER))
        {
            found(call("delete", describe(document), api.delete(name, &parameters)).await)?;
        }
    }
    Ok(())
}

/// Watches until every pod runs and is ready.
pub(super) async fn wait_ready(
    client: &Client,
    pods: &[PodRef],
    deadline: Instant,
    mut progress: impl FnMut(usize, usize),
) -> Result<BTreeMap<PodRef, PodFact>, ProveError> {
    let started = Instant::now();
    let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
    let watches = namespaces.into_iter().map(|namespace| {
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        watcher(api, watcher::Config::default())
            .default_backoff()
            .applied_objects()
            .boxed()
    });
    let mut changes = stream::select_all(watches);
    let mut states: BTreeMap<PodRef, Result<PodFact, String>> = pods
        .iter()
        .map(|pod| (pod.clone(), Err("not seen yet".to_owned())))
        .collect();
    let mut watch_error = None;
    loop {
        let ready = states.values().filter(|state| state.is_ok()).count();
        progress(ready, states.len());
        if ready == states.len() {
            return Ok(states
                .into_iter()
                .filter_map(|(pod, state)| Some((pod, state.ok()?)))
                .collect());
        }
        match timeout_at(deadline, changes.next()).await {
            Ok(Some(Ok(pod))) => {
                if let Some(state) = states.get_mut(&reference(&pod)) {
                    *state = fact(&pod);
                }
            }
            Ok(Some(Err(error))) => watch_error = Some(error.to_string()),
            Ok(None) | Err(_) => {
                let waiting = states
                    .iter()
                    .filter_map(|(pod, state)| Some(format!("{pod}: {}", state.as_ref().err()?)));
                let last_status: Vec<String> = waiting.chain(watch_error).collect();
                return Err(ProveError::Timeout {
                    condition: "all pods to be ready".to_owned(),
                    waited_s: started.elapsed().as_secs(),
                    last_status: last_status.join("; "),
                });
            }
        }
    }
}

/// The pods as they are now, or why they do not run. Those that do not exist are left out.
pub(super) async fn read_pods(
    client: &Client,
    pods: &[PodRef],
) -> Result<BTreeMap<PodRef, Result<PodFact, String>>, ProveError> {
    let mut facts = BTreeMap::new();
    let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
    for namespace in namespaces {
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let parameters = ListParams::default();
        let described = format!("pods of {namespace}");
        let found = call("list", described, api.list(&parameters)).await?;
        let probed = found.items.iter();
        facts.extend(
            probed
                .map(|pod| (reference(pod), fact(pod)))
                .filter(|(pod, _)| pods.contains(pod)),
        );
    }
    Ok(facts)
}

/// The labels that a namespace really has.
pub(super) async fn namespace_labels(client: &Client, name: &str) -> Result<Labels, ProveError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = call("read", format!("Namespace {name}"), api.get(name)).await?;
    Ok(namespace.metadata.labels.unwrap_or_default())
}

fn reference(pod: &Pod) -> PodRef {
    let metadata = &pod.metadata;
    PodRef::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// `Err` says what the pod is still waiting for.
fn fact(pod: &Pod) -> Result<PodFact, String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Err("is being deleted".to_owned());
    }
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    if phase != "Running"
        || containers.is_empty()
        || !containers.iter().all(|container| container.ready)
    {
        let waiting = containers.iter().find_map(|container| {
            let state = container.state.as_ref()?;
            if let Some(waiting) = &state.waiting {
                return Some((waiting.reason.clone(), waiting.message.clone()));
            }
            let terminated = state.terminated.as_ref()?;
            Some((terminated.reason.clone(), terminated.message.clone()))
        });
        let condition = status
            .conditions
            .unwrap_or_default()
            .into_iter()
            .find_map(|condition| {
                (condition.status == "False").then_some((condition.reason, condition.message))
            });
        let (reason, message) = waiting.or(condition).unwrap_or_default();
        let details: Vec<String> = [Some(phase), reason, message]
            .into_iter()
            .flatten()
            .collect();
        return Err(details.join(", "));
    }
    Ok(PodFact {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        restarts: containers
            .iter()
            .map(|container| container.restart_count)
            .sum(),
        ip: status
            .pod_ip
            .as_deref()
            .and_then(|ip| ip.parse().ok())
            .ok_or("has no address")?,
        node: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
    })
}
