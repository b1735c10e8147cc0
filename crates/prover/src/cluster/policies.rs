//! The scenario's policies into the cluster and out of it, and what other policies are there.

use futures::future::try_join_all;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams};
use kube::core::ApiResource;
use serde_json::Value;

use super::api::{call, found};
use super::deploy::{OWNED, text};
use super::error::ProveError;
use crate::model::{PodRef, World};
use crate::policies::{NETWORK_POLICY, PolicyObject};

/// Every kind that Cilium takes policies about pods from.
const KINDS: [(&str, &str, &str); 3] = [
    ("networking.k8s.io/v1", NETWORK_POLICY, "networkpolicies"),
    (
        "cilium.io/v2",
        "CiliumNetworkPolicy",
        "ciliumnetworkpolicies",
    ),
    (
        "cilium.io/v2",
        "CiliumClusterwideNetworkPolicy",
        "ciliumclusterwidenetworkpolicies",
    ),
];

/// Takes the policies away, all of them even if one cannot be taken away. One that is gone already is no error.
pub(super) async fn delete(client: &Client, documents: &[Value]) -> Result<(), ProveError> {
    let mut outcome = Ok(());
    for document in documents {
        let namespace = text(document, "/metadata/namespace");
        let deleted = delete_one(client, namespace, text(document, "/metadata/name"));
        outcome = outcome.and(deleted.await);
    }
    outcome
}

async fn delete_one(client: &Client, namespace: &str, name: &str) -> Result<(), ProveError> {
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
    let described = format!("{NETWORK_POLICY} {namespace}/{name}");
    let parameters = DeleteParams::default();
    found(call("delete", described, api.delete(name, &parameters)).await).map(drop)
}

/// Takes away what an earlier proof left in the scenario's namespaces: policies that carry our label, no others.
pub(super) async fn delete_leftovers(client: &Client, world: &World) -> Result<(), ProveError> {
    for namespace in &world.namespaces {
        let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), &namespace.name);
        let ours = ListParams::default().labels(OWNED);
        let described = format!("the policies of {}", namespace.name);
        let left = call("list", described, api.list(&ours)).await?;
        for policy in left {
            let name = policy.metadata.name.unwrap_or_default();
            delete_one(client, &namespace.name, &name).await?;
        }
    }
    Ok(())
}

/// All policies that are about the probed pods, in a stable order.
pub(super) async fn snapshot(
    client: &Client,
    world: &World,
) -> Result<Vec<PolicyObject>, ProveError> {
    let lists = try_join_all(KINDS.map(|kind| list(client, kind))).await?;
    let mut objects: Vec<PolicyObject> = lists
        .into_iter()
        .flatten()
        .filter_map(|(kind, object)| PolicyObject::weigh(world, kind, &object))
        .collect();
    objects.sort_by_key(ToString::to_string);
    Ok(objects)
}

async fn list(
    client: &Client,
    (api_version, kind, plural): (&str, &'static str, &str),
) -> Result<Vec<(&'static str, Value)>, ProveError> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let parameters = ListParams::default();
    // Without Cilium its kinds do not exist, and then nothing is of them.
    let Some(objects) = found(call("list", plural, api.list(&parameters)).await)? else {
        return Ok(Vec::new());
    };
    let objects = objects.items.into_iter().map(|object| {
        // A dynamic object came from JSON, so it can become JSON again; null is weighed as a stranger.
        (kind, serde_json::to_value(object).unwrap_or_default())
    });
    Ok(objects.collect())
}

/// The policies' names for the judge.
pub(super) fn references(world: &World) -> Vec<PodRef> {
    let policies = world.policies.iter();
    policies
        .map(|policy| PodRef::new(&policy.namespace, &policy.name))
        .collect()
}
