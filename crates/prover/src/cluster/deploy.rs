//! Objects into the cluster, and the pods' state out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::error::ProveError;
use crate::model::PodRef;
use crate::trial::PodFact;

const MANAGER: &str = "holdfast";
const OWNER_LABEL: &str = "app.kubernetes.io/managed-by";
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
            Some("Pod") => apply::<Pod>(client, document, deadline).await?,
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

fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
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
        let existing = api
            .get_opt(name)
            .await
            .map_err(ProveError::api("read", describe(document)))?;
        if existing.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_none()) {
            break;
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
    api.patch(
        name,
        &PatchParams::apply(MANAGER).force(),
        &Patch::Apply(owned(document)),
    )
    .await
    .map_err(ProveError::api("apply", describe(document)))?;
    Ok(())
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
        match api.patch(name, &parameters, &patch).await {
            Ok(_) => return Ok(()),
            // A new namespace gets its default service account a moment later; until then pods are forbidden.
            Err(kube::Error::Api(status))
                if status.code == 403
                    && status.message.contains("serviceaccount")
                    && Instant::now() < deadline =>
            {
                sleep(POLL).await;
            }
            Err(error) => return Err(ProveError::api("apply", describe(document))(error)),
        }
    }
}

/// Takes the policies away. One that is gone already is no error.
pub(super) async fn delete_policies(
    client: &Client,
    documents: &[Value],
) -> Result<(), ProveError> {
    for document in documents {
        let namespace = text(document, "/metadata/namespace");
        let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
        match api
            .delete(text(document, "/metadata/name"), &DeleteParams::default())
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(ProveError::api("delete", describe(document))(error)),
        }
    }
    Ok(())
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
        match api
            .delete(
                text(document, "/metadata/name"),
                &DeleteParams::background(),
            )
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(ProveError::api("delete", describe(document))(error)),
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

/// The pods as they are now; those that do not run are left out.
pub(super) async fn read_pods(
    client: &Client,
    pods: &[PodRef],
) -> Result<BTreeMap<PodRef, PodFact>, ProveError> {
    let mut facts = BTreeMap::new();
    let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
    for namespace in namespaces {
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let found = api
            .list(&kube::api::ListParams::default())
            .await
            .map_err(ProveError::api("list", format!("pods of {namespace}")))?;
        for pod in &found.items {
            if let Ok(fact) = fact(pod)
                && pods.contains(&reference(pod))
            {
                facts.insert(reference(pod), fact);
            }
        }
    }
    Ok(facts)
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
    })
}
