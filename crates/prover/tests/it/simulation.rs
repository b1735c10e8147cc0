//! A cluster that is simulated, behind real sockets: its probes answer by the model, and its Cilium reports in
//! Cilium's words.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request as HttpRequest, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response as HttpResponse};
use futures::stream;
use kube::{Client, Config};
use probe::{Attempt, AttemptResult, Outcome, Request, Response};
use prover::cluster::{Options, Proof, ProveError, Scenario, prove_network};
use prover::model::PodRef;
use prover::table::{self, Cell, CellId, Expected, RouteKind};
use serde_json::{Value, json};
use tokio::sync::broadcast;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Control {
    /// Drops and reports drops.
    Enforces,
    /// Lets through and reports audit verdicts.
    Audits,
    /// Does nothing at all.
    Sleeps,
    /// Drops without a word, as a broken network would.
    Swallows,
    /// Drops and reports for ever, policies or not.
    Sticks,
    /// Enforces, but its API server refuses to delete one of the policies.
    Refuses,
    /// Enforces what it has, but its agent never takes in a policy.
    Lags,
    /// Enforces, but one destination listens on another port than it declares.
    Misses,
}

struct Cluster {
    control: Control,
    cells: BTreeMap<CellId, Cell>,
    addresses: BTreeMap<PodRef, IpAddr>,
    state: Mutex<CloudState>,
    monitor: broadcast::Sender<String>,
}

#[derive(Default)]
struct CloudState {
    pods: Vec<Value>,
    namespaces: BTreeMap<String, Value>,
    policies: BTreeMap<String, Value>,
    delivered: HashSet<String>,
    port: u16,
}

impl Cluster {
    fn new(scenario: &Scenario, control: Control) -> Cluster {
        let cells = table::build(&scenario.world, &[RouteKind::Ip, RouteKind::Service]);
        let addresses = scenario
            .pods()
            .into_iter()
            .zip(10..)
            .map(|(pod, last)| (pod, IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))));
        Cluster {
            control,
            cells: cells
                .into_iter()
                .map(|cell| (cell.id.clone(), cell))
                .collect(),
            addresses: addresses.collect(),
            state: Mutex::default(),
            monitor: broadcast::channel(100_000).0,
        }
    }

    fn attempt(&self, attempt: Attempt) -> AttemptResult {
        let cell = &self.cells[&CellId(attempt.id.clone())];
        let mut state = self.state.lock().unwrap();
        state.port += 1;
        let source = SocketAddr::new(self.addresses[&cell.from], 10_000 + state.port);
        let backend = SocketAddr::new(self.addresses[&cell.to], cell.port);
        let in_force = match self.control {
            Control::Sticks => true,
            Control::Lags => false,
            _ => !state.policies.is_empty(),
        };
        let denied = in_force && cell.expected == Expected::Denied;
        let stopped = denied && !matches!(self.control, Control::Audits | Control::Sleeps);
        let missed =
            !stopped && self.control == Control::Misses && cell.to == PodRef::new("hf-y", "b");
        if !stopped && !missed {
            state.delivered.insert(attempt.nonce.clone());
        }
        drop(state);
        if denied {
            let protocol = cell.protocol.as_str();
            let line = match self.control {
                Control::Enforces | Control::Sticks | Control::Refuses | Control::Misses => Some(
                    json!({"type": "drop", "reason": "Policy denied", "source": 1, "srcLabel": 2, "dstLabel": 3,
                        "dstID": 4, "summary": {protocol: "{}",
                            "l3": {"src": source.ip(), "dst": backend.ip()},
                            "l4": {"src": source.port().to_string(), "dst": backend.port().to_string()}}})
                    .to_string(),
                ),
                Control::Audits => Some(format!(
                    "Policy verdict log: flow 0x0 local EP ID 4, remote ID 2, proto 6, ingress, action audit, \
                     auth: disabled, match none, {source} -> {backend} {protocol} SYN"
                )),
                Control::Sleeps | Control::Swallows | Control::Lags => None,
            };
            // A line that nobody listens to is lost, as it would be.
            if let Some(line) = line {
                let _ = self.monitor.send(line);
            }
        }
        AttemptResult {
            attempt: attempt.id,
            nonce: attempt.nonce,
            outcome: if stopped {
                Outcome::TimedOut
            } else if missed {
                Outcome::Refused
            } else {
                Outcome::Answered {
                    by: cell.to.to_string(),
                }
            },
            connected: !stopped && !missed,
            source: Some(source),
            destination: Some(backend),
            elapsed_us: 100,
        }
    }

    fn probe(&self, request: Request) -> Vec<Response> {
        match request {
            Request::Batch {
                batch, attempts, ..
            } => {
                let mut responses: Vec<Response> = attempts
                    .into_iter()
                    .map(|attempt| Response::Attempt {
                        batch: batch.clone(),
                        result: self.attempt(attempt),
                    })
                    .collect();
                responses.push(Response::Done { batch });
                responses
            }
            Request::Received { batch, mut nonces } => {
                let state = self.state.lock().unwrap();
                nonces.retain(|nonce| state.delivered.contains(nonce));
                vec![Response::Received { batch, nonces }]
            }
        }
    }

    fn endpoints(&self) -> String {
        let mode = if self.control == Control::Audits {
            "audit-ingress"
        } else {
            "ingress"
        };
        let endpoints: Vec<Value> = self
            .addresses
            .keys()
            .enumerate()
            .map(|(id, pod)| {
                json!({"id": id, "status": {"state": "ready",
                    "external-identifiers": {"k8s-namespace": pod.namespace, "k8s-pod-name": pod.name},
                    "policy": {"realized": {"policy-enabled": mode, "policy-revision": 2}}}})
            })
            .collect();
        json!(endpoints).to_string()
    }

    fn repository(&self) -> String {
        let state = self.state.lock().unwrap();
        let rules: Vec<Value> = state
            .policies
            .values()
            .filter(|_| self.control != Control::Lags)
            .map(|policy| {
                let uid = &policy["metadata"]["uid"];
                json!({"Labels": [{"key": "io.cilium.k8s.policy.uid", "value": uid, "source": "k8s"}]})
            })
            .collect();
        json!({"policy": json!(rules).to_string(), "revision": 2}).to_string()
    }

    fn rest(&self, method: &Method, path: &[&str], query: &str, body: &[u8]) -> HttpResponse {
        let list = |items: Vec<Value>| {
            axum::Json(
                json!({"kind": "PodList", "apiVersion": "v1", "items": items,
                "metadata": {"resourceVersion": "1"}}),
            )
            .into_response()
        };
        let mut state = self.state.lock().unwrap();
        match (method, path) {
            (&Method::PATCH, _) => {
                let mut object: Value = serde_json::from_slice(body).unwrap();
                let name = path.join("/");
                if path.contains(&"networkpolicies") {
                    object["metadata"]["uid"] = json!(format!("uid of {name}"));
                    state.policies.insert(name, object.clone());
                } else if let ["api", "v1", "namespaces", namespace] = path {
                    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(namespace);
                    state.namespaces.insert(name, object.clone());
                } else if path.contains(&"pods") {
                    let text = |key: &str| object["metadata"][key].as_str().unwrap().to_owned();
                    let address = self.addresses[&PodRef::new(text("namespace"), text("name"))];
                    object["metadata"]["uid"] = json!(name);
                    object["spec"]["nodeName"] = json!("node-1");
                    object["status"] = json!({"phase": "Running", "podIP": address, "containerStatuses": [
                        {"name": "probe", "ready": true, "restartCount": 0, "image": "i", "imageID": "i"}]});
                    state.pods.push(object.clone());
                }
                axum::Json(object).into_response()
            }
            (&Method::DELETE, [.., "hf-y", _, "from-x-a"]) if self.control == Control::Refuses => {
                let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "protected",
                    "reason": "Forbidden", "code": 403});
                (StatusCode::FORBIDDEN, axum::Json(body)).into_response()
            }
            (&Method::DELETE, _) => {
                state.policies.remove(&path.join("/"));
                axum::Json(json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}}))
                    .into_response()
            }
            (&Method::GET, [.., "pods"]) if query.contains("watch=true") => {
                Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>())
                    .into_response()
            }
            (&Method::GET, ["api", "v1", "namespaces", namespace, "pods"]) => {
                let pods = state
                    .pods
                    .iter()
                    .filter(|pod| pod["metadata"]["namespace"] == *namespace);
                list(pods.cloned().collect())
            }
            (&Method::GET, ["api", "v1", "namespaces", _])
                if state.namespaces.contains_key(&path.join("/")) =>
            {
                axum::Json(state.namespaces[&path.join("/")].clone()).into_response()
            }
            (&Method::GET, [.., "networkpolicies"]) => {
                let namespace = path.join("/").replace("networkpolicies", "");
                let all = namespace == "apis/networking.k8s.io/v1/";
                let found = state
                    .policies
                    .iter()
                    .filter(|(path, _)| all || path.starts_with(&namespace));
                let wanted = found.map(|(_, policy)| policy).filter(|policy| {
                    let labels = &policy["metadata"]["labels"];
                    !query.contains("labelSelector")
                        || labels["app.kubernetes.io/managed-by"] == "holdfast"
                });
                list(wanted.cloned().collect())
            }
            (&Method::GET, ["api", "v1", "pods"]) => list(vec![json!({
                "metadata": {"namespace": "kube-system", "name": "cilium-1"},
                "spec": {"nodeName": "node-1", "containers": [{"name": "cilium-agent", "image": "cilium:1"}]},
                "status": {"phase": "Running"}})]),
            _ => {
                let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                    "reason": "NotFound", "code": 404});
                (StatusCode::NOT_FOUND, axum::Json(body)).into_response()
            }
        }
    }
}

async fn serve(State(cluster): State<Arc<Cluster>>, request: HttpRequest) -> HttpResponse {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path().trim_matches('/').to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let path: Vec<&str> = path.split('/').collect();
    if let ["api", "v1", "namespaces", namespace, "pods", name, "exec"] = path[..] {
        let pod = PodRef::new(namespace, name);
        let upgrade = WebSocketUpgrade::from_request_parts(&mut head, &())
            .await
            .unwrap();
        return upgrade
            .protocols(["v5.channel.k8s.io", "v4.channel.k8s.io"])
            .on_upgrade(move |socket| exec(cluster, pod, query, socket));
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    cluster.rest(&head.method, &path, &query, &body)
}

async fn write(socket: &mut WebSocket, channel: u8, text: &str) -> Result<(), axum::Error> {
    let mut frame = vec![channel];
    frame.extend_from_slice(text.as_bytes());
    socket.send(Message::Binary(frame.into())).await
}

async fn exec(cluster: Arc<Cluster>, pod: PodRef, query: String, mut socket: WebSocket) {
    let result = if query.contains("holdfast-probe") {
        session(&cluster, &pod, &mut socket).await
    } else if query.contains("monitor") {
        monitor(&cluster, &mut socket).await
    } else if query.contains("policy") {
        print(&cluster.repository(), &mut socket).await
    } else {
        print(&cluster.endpoints(), &mut socket).await
    };
    // The other side may hang up at any time.
    drop(result);
}

async fn session(
    cluster: &Cluster,
    pod: &PodRef,
    socket: &mut WebSocket,
) -> Result<(), axum::Error> {
    let ready = Response::Ready {
        pod: pod.to_string(),
        version: "test".to_owned(),
    };
    write(
        socket,
        1,
        &format!("{}\n", serde_json::to_string(&ready).unwrap()),
    )
    .await?;
    let mut input = String::new();
    while let Some(message) = socket.recv().await {
        let Message::Binary(frame) = message? else {
            continue;
        };
        if frame.first() != Some(&0) {
            continue;
        }
        input.push_str(str::from_utf8(&frame[1..]).unwrap());
        while let Some((line, rest)) = input.split_once('\n') {
            let responses = cluster.probe(serde_json::from_str(line).unwrap());
            input = rest.to_owned();
            let mut output = String::new();
            for response in responses {
                output.push_str(&serde_json::to_string(&response).unwrap());
                output.push('\n');
            }
            // In pieces, as a network gives them.
            for piece in output.as_bytes().chunks(1000) {
                write(socket, 1, str::from_utf8(piece).unwrap()).await?;
            }
        }
    }
    Ok(())
}

async fn monitor(cluster: &Cluster, socket: &mut WebSocket) -> Result<(), axum::Error> {
    let mut lines = cluster.monitor.subscribe();
    write(
        socket,
        2,
        "Listening for events on 2 CPUs\nPress Ctrl-C to quit\n",
    )
    .await?;
    while let Ok(line) = lines.recv().await {
        write(socket, 1, &format!("{line}\n")).await?;
    }
    Ok(())
}

async fn print(text: &str, socket: &mut WebSocket) -> Result<(), axum::Error> {
    write(socket, 1, text).await?;
    write(socket, 3, r#"{"metadata":{},"status":"Success"}"#).await?;
    socket.send(Message::Close(None)).await
}

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/network")
        .join(path)
}

/// A policy that is there before the proof begins.
pub(crate) struct Leftover {
    pub(crate) name: &'static str,
    pub(crate) owned: bool,
}

impl Cluster {
    fn leave(&self, leftover: &Leftover) {
        let name = leftover.name;
        let labels = if leftover.owned {
            json!({"app.kubernetes.io/managed-by": "holdfast"})
        } else {
            json!({})
        };
        self.state.lock().unwrap().policies.insert(
            format!("apis/networking.k8s.io/v1/namespaces/hf-y/networkpolicies/{name}"),
            json!({"metadata": {"namespace": "hf-y", "name": name, "labels": labels},
                "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}),
        );
    }
}

/// What a proof of the policies came to, and which policies the cluster has afterwards.
pub(crate) fn prove_beside(
    policies: &str,
    control: Control,
    leftover: Option<&Leftover>,
) -> (Result<Proof, ProveError>, Vec<String>) {
    let scenario = Scenario::load_files(
        &fixture("three-namespaces/workload.yaml"),
        &fixture(policies),
    )
    .unwrap();
    let cluster = Arc::new(Cluster::new(&scenario, control));
    if let Some(leftover) = leftover {
        cluster.leave(leftover);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let proof = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .fallback(serve)
            .with_state(Arc::clone(&cluster));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client =
            Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let options = Options {
            settle: Duration::from_secs(4),
            ..Options::default()
        };
        prove_network(&client, &scenario, &options, &|_| {}).await
    });
    let state = cluster.state.lock().unwrap();
    (proof, state.policies.keys().cloned().collect())
}

pub(crate) fn prove(policies: &str, control: Control) -> Proof {
    prove_beside(policies, control, None).0.unwrap()
}
