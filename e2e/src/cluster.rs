//! Talking to the cluster under test.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, DeleteParams, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

/// The namespace of every managed application.
pub const NAMESPACE: &str = "gitlab-managed-apps";
/// The agents, as a selector.
const AGENTS: &str = "k8s-app=cilium";
/// How long the agent may take to go or to come back.
const DEADLINE: Duration = Duration::from_mins(2);

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
    wait_agents(client, agent).await
}

/// Deletes the agent's pods, as an operator in a hurry or a failing node would. They come back by themselves.
pub async fn delete_agents(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let agents = ListParams::default().labels(AGENTS);
    pods.delete_collection(&DeleteParams::default(), &agents)
        .await
        .context("deleting the agents")?;
    Ok(())
}

/// Waits until the agents run on every node, or on none.
pub async fn wait_agents(client: &Client, agent: Agent) -> Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let agents = ListParams::default().labels(AGENTS);
    let started = Instant::now();
    loop {
        let found = pods.list(&agents).await.context("listing the agents")?;
        let ready = found.iter().filter(|pod| is_ready(pod)).count();
        let done = match agent {
            Agent::Stopped => found.items.is_empty(),
            // A deleted pod's successor is not there at once.
            Agent::Running => {
                let set = sets
                    .get("cilium")
                    .await
                    .context("reading the agents' set")?;
                let wanted = set.status.unwrap_or_default().desired_number_scheduled;
                ready > 0 && ready == found.items.len() && usize::try_from(wanted) == Ok(ready)
            }
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

/// Runs a command in the agent of every node, and returns what they printed, one after the other.
pub async fn in_agents(client: &Client, command: &[&str]) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let agents = ListParams::default().labels(AGENTS);
    let mut printed = Vec::new();
    for pod in pods.list(&agents).await.context("listing the agents")? {
        let name = pod.metadata.name.unwrap_or_default();
        let parameters = AttachParams::default().container("cilium-agent");
        let mut process = pods
            .exec(&name, command.iter().copied(), &parameters)
            .await
            .with_context(|| format!("running {} in {name}", command.join(" ")))?;
        let mut text = String::new();
        process
            .stdout()
            .context("the command has no stdout")?
            .read_to_string(&mut text)
            .await
            .with_context(|| format!("reading from {} in {name}", command.join(" ")))?;
        process
            .join()
            .await
            .with_context(|| format!("ending {} in {name}", command.join(" ")))?;
        printed.push(text);
    }
    Ok(printed)
}

/// Switches policy audit mode for the endpoint of one pod, and for no other.
pub async fn set_audit_mode(client: &Client, pod: &str, mode: &str) -> Result<()> {
    let list = in_agents(client, &["cilium-dbg", "endpoint", "list", "-o", "json"]).await?;
    for endpoints in list {
        let endpoints: Vec<Value> =
            serde_json::from_str(&endpoints).context("reading the agent's endpoints")?;
        let of_pod = endpoints.iter().find(|endpoint| {
            endpoint.pointer("/status/external-identifiers/pod-name") == Some(&json!(pod))
        });
        if let Some(endpoint) = of_pod {
            let (id, option) = (
                endpoint["id"].to_string(),
                format!("PolicyAuditMode={mode}"),
            );
            in_agents(client, &["cilium-dbg", "endpoint", "config", &id, &option]).await?;
            return Ok(());
        }
    }
    bail!("no agent has an endpoint for {pod}");
}

fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
