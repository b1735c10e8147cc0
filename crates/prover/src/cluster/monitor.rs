//! Listening to Cilium's agents, one for each node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::api::call;
use super::error::ProveError;
use super::exec::{self, Listener, Stderr};
use crate::evidence::cilium::{MonitorLine, parse_endpoints, parse_monitor_line, parse_repository};
use crate::evidence::{EndpointFact, FlowEvent, Repository};
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
const REPOSITORY: &[&str] = &["cilium-dbg", "policy", "get", "-o", "json"];
/// What the monitor writes to stderr just before it opens the agent's socket.
const LISTENING: &str = "Press Ctrl-C to quit";
const START_LIMIT: Duration = Duration::from_secs(20);
/// If the agent's socket is not there, the monitor ends this soon after it said that it listens.
const SETTLE: Duration = Duration::from_millis(250);
const ASK_LIMIT: Duration = Duration::from_secs(10);

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
            MonitorLine::Complaint(complaint) => {
                let ended = heard.ended.entry(node.to_owned());
                ended.or_insert_with(|| format!("the monitor says {complaint}"));
            }
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

    /// When the first drop by policy was heard.
    pub(super) fn first_drop(&self) -> Option<Timestamp> {
        let heard = self.heard();
        let drops = heard.events.iter();
        drops
            .filter(|event| event.report.is_policy_drop())
            .map(|event| event.heard)
            .min()
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
        let Found { agents, images } = find_agents(client).await?;
        let log = EventLog::default();
        let nodes = join_all(nodes.into_iter().map(|name| {
            let agents = agents.get(&name).cloned().unwrap_or_default();
            let log = log.clone();
            async move {
                let listener = match agents.as_slice() {
                    [agent] => listen_to(client, &name, agent, &log).await,
                    [] => Err("no Cilium agent runs there".to_owned()),
                    [one, two, ..] => Err(format!("more than one runs there: {one} and {two}")),
                };
                Node {
                    name,
                    agent: agents.into_iter().next(),
                    listener,
                }
            }
        }))
        .await;
        Ok((Agents { log, nodes }, images))
    }

    /// Whether some node is not listened to any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.channels().iter().any(|channel| channel.down.is_some())
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

    /// What each node's agent says about its endpoints, with the raw lists.
    pub(super) async fn endpoints(&self, client: &Client) -> Endpoints {
        let mut endpoints = Endpoints::default();
        for (node, list) in self.ask(client, ENDPOINTS).await {
            let parsed = list.as_ref().map_err(Clone::clone).and_then(|list| {
                parse_endpoints(list).map_err(|error| format!("{error}: {list:.200}"))
            });
            match parsed {
                Ok(parsed) => endpoints.facts.extend(parsed),
                Err(cause) => {
                    endpoints.unread.insert(node.clone(), cause);
                }
            }
            endpoints
                .raw
                .insert(node, list.unwrap_or_else(|cause| cause));
        }
        endpoints
    }

    /// The policies that each node's agent has taken in.
    pub(super) async fn repositories(
        &self,
        client: &Client,
    ) -> BTreeMap<String, Result<Repository, String>> {
        let answers = self.ask(client, REPOSITORY).await.into_iter();
        answers
            .map(|(node, answer)| {
                let repository = answer.and_then(|answer| {
                    parse_repository(&answer).map_err(|error| format!("{error}: {answer:.200}"))
                });
                (node, repository)
            })
            .collect()
    }

    async fn ask(
        &self,
        client: &Client,
        command: &[&str],
    ) -> Vec<(String, Result<String, String>)> {
        join_all(self.nodes.iter().filter_map(|node| {
            let agent = node.agent.as_ref()?;
            let answer = exec::output(client, agent, CONTAINER, command, ASK_LIMIT);
            Some(async move { (node.name.clone(), answer.await) })
        }))
        .await
    }
}

/// The endpoints of all nodes.
#[derive(Default)]
pub(super) struct Endpoints {
    pub(super) facts: BTreeMap<PodRef, EndpointFact>,
    /// Nodes whose list could not be read, with the reason.
    pub(super) unread: BTreeMap<String, String>,
    /// What each agent printed, or why it printed nothing.
    pub(super) raw: BTreeMap<String, String>,
}

/// The agents by node, and their images by node. On a node with more than one nobody can say which is heard.
async fn find_agents(client: &Client) -> Result<Found, ProveError> {
    let api: Api<Pod> = Api::all(client.clone());
    let wanted = ListParams::default().labels("k8s-app=cilium");
    let pods = call("list", "the Cilium agents", api.list(&wanted)).await?;
    let mut found = Found::default();
    for pod in pods.items {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let runs = phase == Some("Running") && pod.metadata.deletion_timestamp.is_none();
        let (Some(spec), Some(namespace), Some(name)) =
            (pod.spec, pod.metadata.namespace, pod.metadata.name)
        else {
            continue;
        };
        let container = spec
            .containers
            .into_iter()
            .find(|container| container.name == CONTAINER);
        if let (true, Some(node), Some(container)) = (runs, spec.node_name, container) {
            let agents = found.agents.entry(node.clone()).or_default();
            agents.push(PodRef::new(namespace, name));
            found
                .images
                .insert(node, container.image.unwrap_or_default());
        }
    }
    Ok(found)
}

#[derive(Default)]
struct Found {
    agents: BTreeMap<String, Vec<PodRef>>,
    images: BTreeMap<String, String>,
}

/// Listens, and tries again if the monitor ends at once: an agent that has just started has no socket yet.
async fn listen_to(
    client: &Client,
    node: &str,
    agent: &PodRef,
    log: &EventLog,
) -> Result<Listener, String> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match start_monitor(client, node, agent, log, deadline).await {
            Ok(listener) => return Ok(listener),
            Err(cause) if Instant::now() >= deadline => return Err(cause),
            Err(_) => sleep(SETTLE).await,
        }
    }
}

async fn start_monitor(
    client: &Client,
    node: &str,
    agent: &PodRef,
    log: &EventLog,
    deadline: Instant,
) -> Result<Listener, String> {
    log.heard().ended.remove(node);
    // What an abandoned monitor still says does not count against its successor.
    let current = Arc::new(AtomicBool::new(true));
    let on_line = {
        let (node, log, current) = (node.to_owned(), log.clone(), Arc::clone(&current));
        move |line: String| {
            if current.load(Ordering::SeqCst) {
                log.push(&node, &line);
            }
        }
    };
    let on_end = {
        let (node, log, current) = (node.to_owned(), log.clone(), Arc::clone(&current));
        move |end: String, stderr: Stderr| {
            if current.load(Ordering::SeqCst) {
                let reason = last_words(&end, &stderr.text());
                log.heard().ended.entry(node).or_insert(reason);
                log.0.changed.notify_waiters();
            }
        }
    };
    let abandon = |cause: String| {
        current.store(false, Ordering::SeqCst);
        cause
    };
    let listener = exec::listen(client, agent, CONTAINER, MONITOR, on_line, on_end)
        .await
        .map_err(&abandon)?;
    let mut listening_since = None;
    loop {
        if let Some(reason) = log.heard().ended.get(node) {
            return Err(abandon(format!("the monitor in {agent} ended: {reason}")));
        }
        let text = listener.stderr.text();
        if listening_since.is_none() && text.contains(LISTENING) {
            listening_since = Some(Instant::now());
        }
        if listening_since.is_some_and(|since: Instant| since.elapsed() >= SETTLE) {
            return Ok(listener);
        }
        if Instant::now() >= deadline && listening_since.is_none() {
            return Err(abandon(format!(
                "the monitor in {agent} does not say that it listens; it wrote {text:?}"
            )));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// What the monitor says when it starts is no reason for its end.
fn last_words(end: &str, stderr: &str) -> String {
    let complaints: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.contains(LISTENING) && !line.starts_with("Listening for events"))
        .collect();
    if complaints.is_empty() {
        format!("{end}, because the monitor, its agent or the connection to it ended")
    } else {
        format!("{end}; the monitor wrote: {}", complaints.join("; "))
    }
}
