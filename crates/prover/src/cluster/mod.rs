//! The thin part that touches a cluster: deploy, probe, listen, take policies away and put them back.
//!
//! Every wait has a deadline, and every deadline that is missed carries the last thing that was seen.

mod api;
mod deploy;
mod error;
mod exec;
mod monitor;
mod pass;
mod policies;
mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kube::Client;
use serde::Serialize;
use tokio::time::Instant;

pub use self::error::ProveError;
use self::exec::Session;
use self::monitor::Agents;
use self::pass::Prober;
pub use self::scenario::Scenario;
use crate::report::{Latency, Report};
use crate::table::{self, Cell, Expected, Route, RouteKind};
use crate::trial::Trial;
use crate::verdict::{Judgement, Policies, Verdict, first_pass_holds, judge};

/// How a proof is carried out.
#[derive(Debug, Clone)]
pub struct Options {
    /// The control's name in the report.
    pub control: String,
    /// What the configuration promises.
    pub promised: Verdict,
    /// Which routes to probe. Without cluster DNS, leave services out.
    pub routes: Vec<RouteKind>,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// How long pods may take to become ready.
    pub ready: Duration,
    /// How long a change of policies may take to show in the whole table.
    pub settle: Duration,
    /// What happens to the scenario's namespaces afterwards.
    pub cleanup: Cleanup,
    /// A folder for raw evidence; it is created.
    pub evidence: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            control: "cilium network policy".to_owned(),
            promised: Verdict::Enforcing,
            routes: vec![RouteKind::Ip, RouteKind::Service],
            cluster_domain: "cluster.local".to_owned(),
            ready: Duration::from_mins(2),
            settle: Duration::from_secs(30),
            cleanup: Cleanup::Keep,
            evidence: None,
        }
    }
}

/// What happens to the scenario's namespaces after a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// They stay, with pods and policies.
    Keep,
    /// They are deleted, also after an error.
    Delete,
}

/// What is going on.
#[derive(Debug, Clone)]
pub enum Progress {
    /// Objects are being applied.
    Deploying {
        /// How many.
        objects: usize,
    },
    /// Pods are starting.
    Pods {
        /// How many are ready.
        ready: usize,
        /// Of how many.
        total: usize,
    },
    /// Sessions and event streams are open.
    Listening {
        /// Probe sessions.
        sessions: usize,
        /// Event streams that work.
        channels: usize,
        /// Nodes that need one.
        nodes: usize,
    },
    /// A round over the table is over.
    Round {
        /// Which pass.
        pass: &'static str,
        /// Which round of it, from 1.
        round: u32,
        /// How many cells are not as they should become.
        open: usize,
    },
    /// Policies are being taken away or put back.
    Mutation(&'static str),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Progress::Deploying { objects } => write!(f, "applying {objects} objects"),
            Progress::Pods { ready, total } => write!(f, "{ready} of {total} pods are ready"),
            Progress::Listening {
                sessions,
                channels,
                nodes,
            } => write!(
                f,
                "{sessions} probe sessions are open, {channels} of {nodes} nodes are listened to"
            ),
            Progress::Round { pass, round, open } => {
                write!(f, "pass {pass}, round {round}: {open} cells not settled")
            }
            Progress::Mutation(what) => f.write_str(what),
        }
    }
}

/// A finished proof with all that it rests on.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The short form, for people and for `report.json`.
    pub report: Report,
    /// The verdict with its evidence.
    pub judgement: Judgement,
    /// Everything that was seen.
    pub trial: Trial,
    /// Raw evidence by file name: monitor lines, endpoint lists, all rounds, the trial, the report, the truth table.
    pub files: BTreeMap<String, String>,
}

/// Proves what the scenario's policies do in the cluster.
///
/// An error means that there was nothing to judge; whatever can be judged, also "could not be decided", is a `Proof`.
pub async fn prove_network(
    client: &Client,
    scenario: &Scenario,
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Proof, ProveError> {
    let proof = run(client, scenario, options, progress).await;
    let kept = match (&proof, &options.evidence) {
        (Ok(proof), Some(directory)) => write_files(directory, &proof.files),
        _ => Ok(()),
    };
    let deleted = match options.cleanup {
        Cleanup::Keep => Ok(()),
        Cleanup::Delete => deploy::delete_namespaces(client, &scenario.workload).await,
    };
    let proof = proof?;
    kept?;
    deleted?;
    Ok(proof)
}

async fn run(
    client: &Client,
    scenario: &Scenario,
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Proof, ProveError> {
    let pods = scenario.pods();
    let deadline = Instant::now() + options.ready;
    progress(Progress::Deploying {
        objects: scenario.workload.len(),
    });
    deploy::apply_all(client, &scenario.workload, deadline).await?;
    let facts = deploy::wait_ready(client, &pods, deadline, |ready, total| {
        progress(Progress::Pods { ready, total });
    })
    .await?;

    policies::delete_leftovers(client, &scenario.world).await?;

    // Addresses are known now, so rules about address ranges can be decided. Labels are taken as they are in the
    // cluster, because that is what policies see.
    let mut world = scenario.world.clone();
    for pod in &mut world.pods {
        if let Some(fact) = facts.get(&pod.reference) {
            pod.ip = Some(fact.ip);
            pod.labels = fact.labels.clone();
        }
    }
    for namespace in &mut world.namespaces {
        namespace.labels = deploy::namespace_labels(client, &namespace.name).await?;
    }
    let cells = table::build(&world, &options.routes);

    let nodes: BTreeSet<String> = facts.values().map(|fact| fact.node.clone()).collect();
    let opening = join_all(
        pods.iter()
            .map(|pod| async move { (pod.clone(), Session::open(client, pod).await) }),
    );
    let (listening, opened) = tokio::join!(Agents::listen(client, nodes), opening);
    let (agents, images) = listening?;
    let sessions: BTreeMap<_, _> = opened.into_iter().collect();
    let channels = agents.channels();
    progress(Progress::Listening {
        sessions: sessions.values().filter(|session| session.is_ok()).count(),
        channels: channels
            .iter()
            .filter(|channel| channel.down.is_none())
            .count(),
        nodes: channels.len(),
    });
    let versions = versions(client, &sessions, &images).await;

    let mut prober = Prober {
        client,
        options,
        world: &world,
        cells: &cells,
        pods: facts,
        sessions,
        agents,
        // Distinguishes the nonces of this run from those of any other.
        run: format!("{:x}", Timestamp::now().as_microsecond()),
        counter: 0,
        progress,
        rounds: Vec::new(),
        disturbed: None,
        endpoint_lists: BTreeMap::new(),
    };
    let (trial, latency) = passes(&mut prober, scenario).await?;
    let judgement = judge(&trial);
    let report = Report::new(
        &scenario.name,
        options,
        &trial,
        &judgement,
        latency,
        versions,
    );
    let files = evidence_files(&prober, &trial, &report);
    Ok(Proof {
        report,
        judgement,
        trial,
        files,
    })
}

/// With the policies, without them, with them again.
async fn passes(
    prober: &mut Prober<'_>,
    scenario: &Scenario,
) -> Result<(Trial, Latency), ProveError> {
    let client = prober.client;
    let ready = prober.options.ready;
    let deadline = || Instant::now() + ready;
    deploy::apply_all(client, &scenario.policies, deadline()).await?;
    let mut trial = Trial {
        cells: prober.cells.to_vec(),
        pods: prober.pods.clone(),
        policies: policies::references(prober.world),
        channels: prober.agents.channels(),
        enforced: prober.pass("enforced", Policies::InForce).await?,
        lifted: None,
        restored: None,
    };
    trial.channels = prober.agents.channels();
    let mut latency = Latency {
        first_drop: prober.agents.log.first_drop(),
        ..Latency::default()
    };
    // Taking policies away proves nothing about a control that has already failed.
    if !first_pass_holds(&trial) {
        return Ok((trial, latency));
    }
    let Some(canary) = canary(&trial.cells).cloned() else {
        return Ok((trial, latency));
    };

    (prober.progress)(Progress::Mutation("taking the policies away"));
    let since = Instant::now();
    let lifted = match policies::delete(client, &scenario.policies).await {
        Ok(()) => {
            latency.delete_to_first_pass = prober.first_pass(&canary, since).await;
            prober.pass("lifted", Policies::Lifted).await
        }
        Err(error) => Err(error),
    };

    // They go back whatever became of that.
    (prober.progress)(Progress::Mutation("putting the policies back"));
    let (since, since_time) = (Instant::now(), Timestamp::now());
    deploy::apply_all(client, &scenario.policies, deadline()).await?;
    trial.lifted = Some(lifted?);
    latency.apply_to_first_drop = prober.first_drop(&canary, since, since_time).await;
    trial.restored = Some(prober.pass("restored", Policies::InForce).await?);
    trial.channels = prober.agents.channels();
    Ok((trial, latency))
}

/// The forbidden cell by which latencies are measured: straight and with a handshake, if there is one.
fn canary(cells: &[Cell]) -> Option<&Cell> {
    let denied = || {
        cells
            .iter()
            .filter(|cell| cell.expected == Expected::Denied)
    };
    denied()
        .find(|cell| cell.route == Route::Ip && cell.protocol == probe::Protocol::Tcp)
        .or_else(|| denied().next())
}

async fn versions(
    client: &Client,
    sessions: &BTreeMap<crate::model::PodRef, Result<Session, String>>,
    images: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    // A version that cannot be told is no reason to give up a proof.
    if let Ok(info) = api::call("read", "its version", client.apiserver_version()).await {
        versions.insert("kubernetes".to_owned(), info.git_version);
    }
    if let Some(session) = sessions.values().flatten().next() {
        versions.insert("probe".to_owned(), session.version.clone());
    }
    for (node, image) in images {
        versions.insert(format!("cilium on {node}"), image.clone());
    }
    versions
}

fn evidence_files(prober: &Prober<'_>, trial: &Trial, report: &Report) -> BTreeMap<String, String> {
    #[derive(Serialize)]
    struct Round<'a> {
        pass: &'a str,
        observations: &'a [crate::trial::Observation],
    }
    let mut files = prober.endpoint_lists.clone();
    for (node, lines) in prober.agents.log.raw() {
        files.insert(format!("monitor-{node}.log"), lines);
    }
    let rounds: Vec<Round<'_>> = prober
        .rounds
        .iter()
        .map(|(pass, observations)| Round { pass, observations })
        .collect();
    for (name, json) in [
        ("rounds.json", serde_json::to_string(&rounds)),
        ("trial.json", serde_json::to_string_pretty(trial)),
        ("report.json", serde_json::to_string_pretty(report)),
    ] {
        // None of these types has a key or a number that JSON cannot hold; should that change, the file says so.
        files.insert(
            name.to_owned(),
            json.unwrap_or_else(|error| error.to_string()),
        );
    }
    files.insert(
        "truth-table.txt".to_owned(),
        crate::report::truth_table(&trial.cells, Some(&trial.enforced)),
    );
    files
}

fn write_files(directory: &PathBuf, files: &BTreeMap<String, String>) -> Result<(), ProveError> {
    fs::create_dir_all(directory).map_err(|source| ProveError::Evidence {
        path: directory.clone(),
        source,
    })?;
    for (name, content) in files {
        let path = directory.join(name);
        fs::write(&path, content).map_err(|source| ProveError::Evidence { path, source })?;
    }
    Ok(())
}
