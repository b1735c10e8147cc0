//! Finds the pods that were started before the network plugin, which it therefore does not manage:
//! no policy holds for them until they are restarted.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use thiserror::Error;

/// How often a pod may be without an endpoint before it counts: the agent needs a moment for a new one.
const LOOKS: u32 = 5;

/// Why the pods could not be compared.
#[derive(Debug, Error)]
#[error("cannot list {what}")]
pub struct UnmanagedError {
    what: &'static str,
    source: kube::Error,
}

/// The running pods, as `namespace/name`, that have neither the host's network nor a Cilium endpoint.
pub async fn unmanaged_pods(client: &Client) -> Result<Vec<String>, UnmanagedError> {
    let mut found = look(client).await?;
    for _ in 1..LOOKS {
        if found.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        found = look(client).await?;
    }
    Ok(found)
}

async fn look(client: &Client) -> Result<Vec<String>, UnmanagedError> {
    let running = ListParams::default().fields("status.phase=Running");
    let pods = Api::<Pod>::all(client.clone())
        .list(&running)
        .await
        .map_err(|source| UnmanagedError {
            what: "pods",
            source,
        })?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("cilium.io", "v2", "CiliumEndpoint"));
    let endpoints = Api::<DynamicObject>::all_with(client.clone(), &kind)
        .list_metadata(&ListParams::default())
        .await
        .map_err(|source| UnmanagedError {
            what: "Cilium endpoints",
            source,
        })?;
    let managed: BTreeSet<_> = endpoints.iter().map(full_name).collect();
    Ok(pods
        .iter()
        .filter(|pod| {
            let host_network = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.host_network)
                .unwrap_or(false);
            !host_network && pod.metadata.deletion_timestamp.is_none()
        })
        .map(full_name)
        .filter(|name| !managed.contains(name))
        .collect())
}

fn full_name(object: &impl ResourceExt) -> String {
    format!(
        "{}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    )
}
