//! Listening to Cilium's agents, one for each node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::ProveError;
use super::exec::{self, Listener};
use crate::evidence::cilium::{MonitorLine, parse_endpoints, parse_monitor_line};
use crate::evidence::{EndpointFact, FlowEvent};
use crate::model::PodRef;
use crate::trial::Channel;

const CONTAINER: &str = "cilium-agent";
const MONITOR: &[&str] = &[
    "cilium-dbg",
    "monitor",
    "-j",
    "--numeric",
    "--type",
    "drop",
    "--type",
    "policy-verdict",
];
const ENDPOINTS: &[&str] = &["cilium-dbg", "endpoint", "list", "-o", "json"];
/// What the monitor writes to stderr just before it opens the agent's socket.
const LISTENING: &str = "Press Ctrl-C to quit";
const START_LIMIT: Duration = Duration::from_secs(20);
const ENDPOINT_LIMIT: Duration = Duration::from_secs(20);

/// Everything that was heard from all nodes, in order.
#[derive(Clone, Default)]
pub(super) struct EventLog(Arc<Shared>);

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Notify,
}

#[derive(Default)]
struct Heard {
    events: Vec<FlowEvent>,
    lost: u64,
    raw: BTreeMap<String, String>,
    /// Nodes whose stream ended, with the reason.
    ended: BTreeMap<String, String>,
}

/// A place in the log, from which a pass reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    events: usize,
    lost: u64,
}

impl EventLog {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, node: &str, line: &str) {
        let now = Timestamp::now();
        let mut heard = self.heard();
        let raw = heard.raw.entry(node.to_owned()).or_default();
        raw.push_str(line);
        raw.push('\n');
        match parse_monitor_line(line, now) {
            MonitorLine::Flow(event) => heard.events.push(event),
            MonitorLine::Lost(count) => heard.lost += count,
            MonitorLine::Other => {}
        }
        drop(heard);
        self.0.changed.notify_waiters();
    }

    pub(super) fn mark(&self) -> Mark {
        let heard = self.heard();
        Mark {
            events: heard.events.len(),
            lost: heard.lost,
        }
    }

    /// The events since the mark, and how many were lost since.
    pub(super) fn since(&self, mark: Mark) -> (Vec<FlowEvent>, u64) {
        let heard = self.heard();
        (heard.events[mark.events..].to_vec(), heard.lost - mark.lost)
    }

    /// The raw lines of each node.
    pub(super) fn raw(&self) -> BTreeMap<String, String> {
        self.heard().raw.clone()
    }

    /// Waits until `enough` says so of the events since the mark, or until the deadline.
    pub(super) async fn wait(
        &self,
        mark: Mark,
        deadline: Instant,
        enough: impl Fn(&[FlowEvent]) -> bool,
    ) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that nothing can slip between.
            changed.as_mut().enable();
            if enough(&self.heard().events[mark.events..]) {
                return;
            }
            if timeout_at(deadline, changed).await.is_err() {
                return;
            }
        }
    }
}

/// The agents of the nodes in question.
pub(super) struct Agents {
    pub(super) log: EventLog,
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    agent: Option<PodRef>,
    listener: Result<Listener, String>,
}

impl Agents {
    /// Finds the agents and starts to listen. A node without one is not an error here: the judge names it.
    pub(super) async fn listen(
        client: &Client,
        nodes: BTreeSet<String>,
    ) -> Result<(Agents, BTreeMap<String, String>), ProveError> {
        let (agents, images) = find_agents(client).await?;
        let log = EventLog::default();
        let nodes = join_all(nodes.into_iter().map(|name| {
            let agent = agents.get(&name).cloned();
            let log = log.clone();
            async move {
                let listener = match &agent {
                    Some(agent) => listen_to(client, &name, agent, log).await,
                    None => Err("no Cilium agent runs there".to_owned()),
                };
                Node {
                    name,
                    agent,
                    listener,
                }
            }
        }))
        .await;
        Ok((Agents { log, nodes }, images))
    }

    /// The state of each channel, as it is now.
    pub(super) fn channels(&self) -> Vec<Channel> {
        let heard = self.log.heard();
        let channels = self.nodes.iter().map(|node| Channel {
            node: node.name.clone(),
            agent: node.agent.as_ref().map(ToString::to_string),
            down: node
                .listener
                .as_ref()
                .err()
                .cloned()
                .or_else(|| heard.ended.get(&node.name).cloned()),
        });
        channels.collect()
    }

    /// The endpoints of all nodes, and the raw lists. What cannot be read is missing, and the raw list says why.
    pub(super) async fn endpoints(
        &self,
        client: &Client,
    ) -> (BTreeMap<PodRef, EndpointFact>, BTreeMap<String, String>) {
        let lists = join_all(self.nodes.iter().filter_map(|node| {
            let agent = node.agent.as_ref()?;
            Some(async move {
                (
                    &node.name,
                    exec::output(client, agent, CONTAINER, ENDPOINTS, ENDPOINT_LIMIT).await,
                )
            })
        }))
        .await;
        let mut endpoints = BTreeMap::new();
        let mut raw = BTreeMap::new();
        for (node, list) in lists {
            let kept = match list {
                Ok(list) => {
                    if let Ok(parsed) = parse_endpoints(&list) {
                        endpoints.extend(parsed);
                    }
                    list
                }
                Err(cause) => cause,
            };
            raw.insert(node.clone(), kept);
        }
        (endpoints, raw)
    }
}

/// The running agents by node, and their images by node.
async fn find_agents(
    client: &Client,
) -> Result<(BTreeMap<String, PodRef>, BTreeMap<String, String>), ProveError> {
    let api: Api<Pod> = Api::all(client.clone());
    let found = api
        .list(&ListParams::default().labels("k8s-app=cilium"))
        .await
        .map_err(ProveError::api("list", "the Cilium agents"))?;
    let mut agents = BTreeMap::new();
    let mut images = BTreeMap::new();
    for pod in found.items {
        let running = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Running");
        let (Some(spec), Some(namespace), Some(name)) =
            (pod.spec, pod.metadata.namespace, pod.metadata.name)
        else {
            continue;
        };
        let container = spec
            .containers
            .into_iter()
            .find(|container| container.name == CONTAINER);
        if let (true, Some(node), Some(container)) = (running, spec.node_name, container) {
            images.insert(node.clone(), container.image.unwrap_or_default());
            agents.insert(node, PodRef::new(namespace, name));
        }
    }
    Ok((agents, images))
}

async fn listen_to(
    client: &Client,
    node: &str,
    agent: &PodRef,
    log: EventLog,
) -> Result<Listener, String> {
    let (node, lines) = (node.to_owned(), log.clone());
    let on_line = {
        let node = node.clone();
        move |line: String| lines.push(&node, &line)
    };
    let on_end = {
        let (node, log) = (node.clone(), log.clone());
        move |reason: String| {
            log.heard().ended.insert(node, reason);
            log.0.changed.notify_waiters();
        }
    };
    let listener = exec::listen(client, agent, CONTAINER, MONITOR, on_line, on_end).await?;
    let deadline = Instant::now() + START_LIMIT;
    while !listener.stderr.text().contains(LISTENING) {
        if let Some(reason) = log.heard().ended.get(&node) {
            return Err(format!("the monitor in {agent} ended: {reason}"));
        }
        if Instant::now() >= deadline {
            let text = listener.stderr.text();
            return Err(format!(
                "the monitor in {agent} does not say that it listens; it wrote {text:?}"
            ));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(listener)
}
