//! Talking to the cluster under test.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::time::Instant;

/// The namespace of every managed application.
pub const NAMESPACE: &str = "gitlab-managed-apps";
/// How long the agent may take to go or to come back.
const DEADLINE: Duration = Duration::from_secs(120);

/// A client for the kubeconfig's current context.
pub async fn connect(kubeconfig: &Path) -> Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig).context("reading the kubeconfig")?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .context("using the kubeconfig")?;
    Client::try_from(config).context("making a client")
}

/// Whether the Cilium agent shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// On every node.
    Running,
    /// On none.
    Stopped,
}

/// Stops the Cilium agent on every node, or lets it run again, and waits for that.
pub async fn set_agent(client: &Client, agent: Agent) -> Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    // A label that no node has; null removes it again.
    let selector = match agent {
        Agent::Stopped => json!({"holdfast.dev/stopped": "true"}),
        Agent::Running => json!({"holdfast.dev/stopped": null}),
    };
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": selector}}}});
    sets.patch("cilium", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("changing the agent's node selector")?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let agents = ListParams::default().labels("k8s-app=cilium");
    let started = Instant::now();
    loop {
        let found = pods.list(&agents).await.context("listing the agents")?;
        let ready = found.iter().filter(|pod| is_ready(pod)).count();
        let done = match agent {
            Agent::Stopped => found.items.is_empty(),
            Agent::Running => ready > 0 && ready == found.items.len(),
        };
        if done {
            return Ok(());
        }
        if started.elapsed() > DEADLINE {
            bail!(
                "the agents did not become {agent:?} within {}s: {} pods, {ready} ready",
                DEADLINE.as_secs(),
                found.items.len()
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
