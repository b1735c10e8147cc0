//! Rounds over the table: every cell at once, from inside the pods, with the control's events beside them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kube::Client;
use probe::{Attempt, AttemptResult, Outcome, Target};
use tokio::time::{Instant, sleep};

use super::error::ProveError;
use super::exec::Session;
use super::monitor::{Agents, Mark};
use super::{Options, Progress, deploy, policies};
use crate::model::{PodRef, World};
use crate::policies::PolicyObject;
use crate::table::{Cell, CellId, Expected, Route};
use crate::trial::{Observation, Pass, PodFact};
use crate::verdict::{Policies, disturbance, inconclusive, unsettled};

/// How long a pass waits for events that are still on their way.
const EVENT_GRACE: Duration = Duration::from_millis(1500);
/// How long the API server may take to learn that a pod has ended.
const POD_NEWS: Duration = Duration::from_secs(3);
const POD_POLL: Duration = Duration::from_millis(100);
/// Time-outs of the further attempts on cells that were not decided.
const RETRIES: [Duration; 2] = [Duration::from_millis(1600), Duration::from_millis(3200)];

/// Everything that is needed to probe.
pub(super) struct Prober<'a> {
    pub(super) client: &'a Client,
    pub(super) options: &'a Options,
    /// What the table was computed from.
    pub(super) world: &'a World,
    pub(super) cells: &'a [Cell],
    pub(super) pods: BTreeMap<PodRef, PodFact>,
    pub(super) sessions: BTreeMap<PodRef, Result<Session, String>>,
    pub(super) agents: Agents,
    pub(super) run: String,
    pub(super) counter: u64,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
    /// Every round that was made, for the evidence.
    pub(super) rounds: Vec<(String, Vec<Observation>)>,
    /// Policies that made a pass hopeless, should they be gone before it ends.
    pub(super) disturbed: Option<Vec<PolicyObject>>,
    /// Raw endpoint lists by pass and node.
    pub(super) endpoint_lists: BTreeMap<String, String>,
}

impl Prober<'_> {
    /// Repeats rounds until the table is settled, confirms it with one more, and tries open cells again.
    pub(super) async fn pass(
        &mut self,
        name: &'static str,
        policies: Policies,
    ) -> Result<Pass, ProveError> {
        let before = policies::snapshot(self.client, self.world).await?;
        let deadline = Instant::now() + self.options.settle;
        let everything: Vec<CellId> = self.cells.iter().map(|cell| cell.id.clone()).collect();
        let mut rounds = 0;
        let mut confirmed = false;
        let mut repositories = BTreeMap::new();
        let (mut pass, hopeless) = loop {
            let pass = self.round(name, &everything, policies).await;
            rounds += 1;
            let open = unsettled(self.cells, &pass, policies);
            (self.progress)(Progress::Round {
                pass: name,
                round: rounds,
                open,
            });
            let hopeless = self.is_hopeless(&pass, open, policies).await?;
            if confirmed || hopeless {
                break (pass, hopeless);
            }
            // The next round finds a stable state, and decides.
            confirmed = open == 0;
            if open > 0 && Instant::now() >= deadline {
                // What goes through after this question goes through an agent that has answered it.
                repositories = self.agents.repositories(self.client).await;
                confirmed = true;
            }
        };
        pass.rounds = rounds;
        for limit in RETRIES {
            let open = inconclusive(self.cells, &pass, policies);
            if hopeless || open.is_empty() {
                break;
            }
            let started = Instant::now();
            let again = self.round_with(name, &open, limit, policies).await;
            merge(&mut pass, again, started);
        }
        pass.repositories = repositories;
        self.look_around(name, &mut pass).await?;
        pass.policies_before = before;
        pass.policies_after = match self.disturbed.take() {
            Some(found) => found,
            None => policies::snapshot(self.client, self.world).await?,
        };
        Ok(pass)
    }

    /// Whether asking again will not decide anything: somebody cannot be heard or asked, or other policies are in force.
    async fn is_hopeless(
        &mut self,
        pass: &Pass,
        open: usize,
        policies: Policies,
    ) -> Result<bool, ProveError> {
        if !pass.lost_sessions.is_empty() || self.agents.is_deaf() {
            return Ok(true);
        }
        if open == 0 {
            return Ok(false);
        }
        let found = policies::snapshot(self.client, self.world).await?;
        let own = policies::references(self.world);
        let disturbed = disturbance(&own, &found, policies).is_some();
        if disturbed {
            self.disturbed = Some(found);
        }
        Ok(disturbed)
    }

    /// The pods and the control's endpoints at the end of a pass.
    async fn look_around(&mut self, name: &str, pass: &mut Pass) -> Result<(), ProveError> {
        let references: Vec<PodRef> = self.pods.keys().cloned().collect();
        // A session ends a moment before the API server knows what became of its pod.
        let patience = Instant::now() + POD_NEWS;
        let found = loop {
            let found = deploy::read_pods(self.client, &references).await?;
            let news = |pod: &PodRef| {
                found.get(pod).and_then(|state| state.as_ref().ok()) != self.pods.get(pod)
            };
            if pass.lost_sessions.is_empty()
                || pass.lost_sessions.keys().any(news)
                || Instant::now() >= patience
            {
                break found;
            }
            sleep(POD_POLL).await;
        };
        pass.pods.clear();
        for (pod, state) in found {
            match state {
                Ok(fact) => drop(pass.pods.insert(pod, fact)),
                Err(state) => drop(pass.absent.insert(pod, state)),
            }
        }
        let endpoints = self.agents.endpoints(self.client).await;
        pass.endpoints = endpoints.facts;
        pass.unread = endpoints.unread;
        let raw = endpoints.raw.into_iter();
        self.endpoint_lists
            .extend(raw.map(|(node, list)| (format!("endpoints-{name}-{node}.json"), list)));
        Ok(())
    }

    async fn round(&mut self, name: &str, cells: &[CellId], policies: Policies) -> Pass {
        let limit = Duration::from_millis(probe::DEFAULT_TIMEOUT_MS);
        self.round_with(name, cells, limit, policies).await
    }

    async fn round_with(
        &mut self,
        name: &str,
        wanted: &[CellId],
        limit: Duration,
        policies: Policies,
    ) -> Pass {
        let started = Instant::now();
        let mark = self.agents.log.mark();
        let mut pass = Pass {
            started: Timestamp::now(),
            rounds: 1,
            pods: self.pods.clone(),
            ..Pass::default()
        };
        let wanted: HashSet<&CellId> = wanted.iter().collect();
        let cells: Vec<&Cell> = self
            .cells
            .iter()
            .filter(|cell| wanted.contains(&cell.id))
            .collect();
        let results = self.attempts(&cells, limit, &mut pass.lost_sessions).await;
        self.events(&cells, &results, mark, policies).await;
        let arrived = self.arrived(&cells, &results).await;

        pass.observations = results
            .into_iter()
            .filter_map(|(cell, result)| {
                let received = arrived.get(&cell.to)?.as_ref();
                Some(Observation {
                    cell: cell.id.clone(),
                    received: received.map(|nonces| nonces.contains(&result.nonce)),
                    nonce: result.nonce,
                    outcome: result.outcome,
                    connected: result.connected,
                    source: result.source,
                    destination: result.destination,
                    elapsed_us: result.elapsed_us,
                    tries: 1,
                })
            })
            .collect();
        (pass.events, pass.lost_events) = self.agents.log.since(mark);
        pass.duration_ms = milliseconds(started.elapsed());
        self.rounds
            .push((name.to_owned(), pass.observations.clone()));
        pass
    }

    /// One batch for each pod, all pods at the same time.
    async fn attempts<'c>(
        &mut self,
        cells: &[&'c Cell],
        limit: Duration,
        lost: &mut BTreeMap<PodRef, String>,
    ) -> Vec<(&'c Cell, AttemptResult)> {
        let mut batches: BTreeMap<&PodRef, Vec<Attempt>> = BTreeMap::new();
        for cell in cells {
            let attempt = self.new_attempt(cell);
            batches.entry(&cell.from).or_default().push(attempt);
        }
        let running = self.sessions.iter_mut().filter_map(|(pod, session)| {
            let batch = batches.remove(pod)?;
            Some(async move {
                let results = match session {
                    Ok(open) => open.attempt(batch, limit).await,
                    Err(cause) => Err(cause.clone()),
                };
                if let Err(cause) = &results {
                    *session = Err(cause.clone());
                }
                (pod.clone(), results)
            })
        });
        let by_id: HashMap<&str, &Cell> = cells
            .iter()
            .map(|cell| (cell.id.0.as_str(), *cell))
            .collect();
        let mut found = Vec::new();
        for (pod, results) in join_all(running).await {
            match results {
                Ok(results) => found.extend(
                    results
                        .into_iter()
                        .filter_map(|result| Some((*by_id.get(result.attempt.as_str())?, result))),
                ),
                Err(cause) => {
                    lost.insert(pod, cause);
                }
            }
        }
        found
    }

    fn new_attempt(&mut self, cell: &Cell) -> Attempt {
        self.counter += 1;
        let (target, port) = match &cell.route {
            Route::Ip => {
                // A pod without an address never gets as far as this.
                let pod = self.pods.get(&cell.to);
                let name = || Target::Name(format!("no address of {}", cell.to));
                (pod.map_or_else(name, |pod| Target::Ip(pod.ip)), cell.port)
            }
            Route::Service { name, port } => {
                let (namespace, domain) = (&cell.to.namespace, &self.options.cluster_domain);
                (
                    Target::Name(format!("{name}.{namespace}.svc.{domain}.")),
                    *port,
                )
            }
        };
        Attempt {
            id: cell.id.0.clone(),
            nonce: format!("hf-{}-{}", self.run, self.counter),
            protocol: cell.protocol,
            target,
            port,
        }
    }

    /// Waits for the events of the attempts that need one: as many packets as were stopped or let through in secret.
    async fn events(
        &self,
        cells: &[&Cell],
        results: &[(&Cell, AttemptResult)],
        mark: Mark,
        policies: Policies,
    ) {
        if policies == Policies::Lifted
            || cells.iter().all(|cell| cell.expected == Expected::Allowed)
        {
            return;
        }
        let sources: Vec<_> = results
            .iter()
            .filter(|(cell, _)| cell.expected == Expected::Denied)
            .filter_map(|(cell, result)| Some((cell.protocol, result.source?)))
            .collect();
        let enough = |events: &[crate::evidence::FlowEvent]| {
            let heard: HashSet<_> = events
                .iter()
                .filter(|event| event.report.is_policy_drop() || event.report.is_audit())
                .map(|event| (event.tuple.protocol, event.tuple.source))
                .collect();
            sources.iter().all(|source| heard.contains(source))
        };
        self.agents
            .log
            .wait(mark, Instant::now() + EVENT_GRACE, enough)
            .await;
    }

    /// Asks each destination which nonces it got. `None`: it could not be asked.
    async fn arrived(
        &mut self,
        cells: &[&Cell],
        results: &[(&Cell, AttemptResult)],
    ) -> BTreeMap<PodRef, Option<HashSet<String>>> {
        let mut questions: BTreeMap<&PodRef, Vec<String>> =
            cells.iter().map(|cell| (&cell.to, Vec::new())).collect();
        for (cell, result) in results {
            questions
                .entry(&cell.to)
                .or_default()
                .push(result.nonce.clone());
        }
        let asking = self.sessions.iter_mut().filter_map(|(pod, session)| {
            let nonces = questions.remove(pod)?;
            Some(async move {
                let answer = match session {
                    Ok(open) => open.received(nonces).await.ok(),
                    Err(_) => None,
                };
                (pod.clone(), answer.map(HashSet::from_iter))
            })
        });
        let mut arrived: BTreeMap<PodRef, Option<HashSet<String>>> =
            join_all(asking).await.into_iter().collect();
        for pod in questions.into_keys() {
            arrived.insert(pod.clone(), None);
        }
        arrived
    }

    /// Makes one attempt on a cell.
    async fn single(&mut self, cell: &Cell, limit: Duration) -> Option<AttemptResult> {
        let attempt = self.new_attempt(cell);
        let session = self.sessions.get_mut(&cell.from)?.as_mut().ok()?;
        session.attempt(vec![attempt], limit).await.ok()?.pop()
    }

    /// Tries one cell again and again until it is answered; the time since `since` is the latency.
    pub(super) async fn first_pass(&mut self, cell: &Cell, since: Instant) -> Option<Duration> {
        let deadline = since + self.options.settle;
        while Instant::now() < deadline && !self.agents.is_deaf() {
            let result = self.single(cell, Duration::from_millis(100)).await?;
            if matches!(result.outcome, Outcome::Answered { .. }) {
                return Some(since.elapsed());
            }
        }
        None
    }

    /// Tries one cell again and again until the control reports a drop of it.
    pub(super) async fn first_drop(
        &mut self,
        cell: &Cell,
        since: Instant,
        since_time: Timestamp,
    ) -> Option<Duration> {
        let deadline = since + self.options.settle;
        let mark = self.agents.log.mark();
        while Instant::now() < deadline && !self.agents.is_deaf() {
            let result = self.single(cell, Duration::from_millis(100)).await?;
            if matches!(result.outcome, Outcome::Answered { .. }) {
                continue;
            }
            let source = result.source?;
            let matches = |event: &crate::evidence::FlowEvent| {
                event.report.is_policy_drop()
                    && event.tuple.protocol == cell.protocol
                    && event.tuple.source == source
            };
            let patience = Instant::now() + Duration::from_millis(300);
            self.agents
                .log
                .wait(mark, patience, |events| events.iter().any(matches))
                .await;
            let (events, _) = self.agents.log.since(mark);
            if let Some(event) = events.iter().find(|event| matches(event)) {
                return Duration::try_from(event.heard.duration_since(since_time)).ok();
            }
        }
        None
    }
}

/// Puts the results of another attempt in the place of the undecided ones.
fn merge(pass: &mut Pass, again: Pass, started: Instant) {
    for mut observation in again.observations {
        let old = pass
            .observations
            .iter_mut()
            .find(|old| old.cell == observation.cell);
        match old {
            Some(old) => {
                observation.tries = old.tries + 1;
                *old = observation;
            }
            None => pass.observations.push(observation),
        }
    }
    pass.events.extend(again.events);
    pass.lost_events += again.lost_events;
    pass.lost_sessions.extend(again.lost_sessions);
    pass.duration_ms += milliseconds(started.elapsed());
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
