//! Proofs against an API server in this process: what happens before and beside the probing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::stream;
use kube::Client;
use prover::cluster::{Cleanup, Options, ProveError, Scenario, prove_network};
use prover::verdict::Verdict;
use serde_json::{Value, json};

#[derive(Default)]
struct Server {
    /// Pods run; otherwise they hang at pulling their image.
    running: bool,
    objects: Mutex<Vec<Value>>,
    requests: Mutex<Vec<String>>,
    /// How many pods are still refused for want of a service account.
    refusals: Mutex<u32>,
}

fn status(code: StatusCode, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": if code == StatusCode::NOT_FOUND { "NotFound" } else { "Forbidden" }, "code": code.as_u16()});
    (code, axum::Json(body)).into_response()
}

impl Server {
    fn pod(&self, mut pod: Value, number: usize) -> Value {
        pod["metadata"]["uid"] = json!(format!("uid-{number}"));
        pod["metadata"]["resourceVersion"] = json!("1");
        pod["spec"]["nodeName"] = json!("node-1");
        pod["status"] = if self.running {
            json!({"phase": "Running", "podIP": format!("10.0.0.{}", number + 1), "containerStatuses": [
                {"name": "probe", "ready": true, "restartCount": 0, "image": "i", "imageID": "i"}]})
        } else {
            json!({"phase": "Pending", "containerStatuses": [{"name": "probe", "ready": false, "restartCount": 0,
                "image": "i", "imageID": "i",
                "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "not on the node"}}}]})
        };
        pod
    }

    fn answer(&self, method: &Method, uri: &Uri, body: &[u8]) -> Response {
        self.requests
            .lock()
            .unwrap()
            .push(format!("{method} {}", uri.path()));
        let query = uri.query().unwrap_or_default();
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        match (method, parts.as_slice()) {
            (&Method::GET, ["version"]) => axum::Json(json!({"major": "1", "minor": "37",
                "gitVersion": "v1.37.1", "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "",
                "compiler": "", "platform": ""}))
            .into_response(),
            (&Method::PATCH, path) => {
                let mut refusals = self.refusals.lock().unwrap();
                if path.contains(&"pods") && *refusals > 0 {
                    *refusals -= 1;
                    let message = "error looking up service account hf-x/default: serviceaccount \"default\" not found";
                    return status(StatusCode::FORBIDDEN, message);
                }
                let object: Value = serde_json::from_slice(body).unwrap();
                self.objects.lock().unwrap().push(object.clone());
                axum::Json(object).into_response()
            }
            (&Method::GET, [.., "networkpolicies"]) => {
                axum::Json(json!({"kind": "NetworkPolicyList", "apiVersion": "networking.k8s.io/v1", "items": [],
                    "metadata": {"resourceVersion": "1"}}))
                .into_response()
            }
            (&Method::GET, ["api", "v1", "namespaces", name]) => {
                let objects = self.objects.lock().unwrap();
                let found = objects.iter().find(|object| object["kind"] == "Namespace" && object["metadata"]["name"] == *name);
                match found {
                    Some(namespace) => axum::Json(namespace.clone()).into_response(),
                    None => status(StatusCode::NOT_FOUND, "not found"),
                }
            }
            (&Method::DELETE, _) => status(StatusCode::NOT_FOUND, "gone already"),
            (&Method::GET, ["api", "v1", "namespaces", namespace, "pods"]) => {
                if query.contains("watch=true") {
                    let silence = stream::pending::<Result<Bytes, std::io::Error>>();
                    return Body::from_stream(silence).into_response();
                }
                let objects = self.objects.lock().unwrap();
                let pods = objects.iter().enumerate().filter(|(_, object)| {
                    object["kind"] == "Pod" && object["metadata"]["namespace"] == *namespace
                });
                let items: Vec<Value> = pods.map(|(number, pod)| self.pod(pod.clone(), number)).collect();
                axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "items": items,
                    "metadata": {"resourceVersion": "1"}}))
                .into_response()
            }
            (&Method::GET, ["api", "v1", "pods"]) => {
                assert!(query.contains("k8s-app"), "only the agents are looked for in all namespaces");
                axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "items": [],
                    "metadata": {"resourceVersion": "1"}}))
                .into_response()
            }
            _ => status(StatusCode::NOT_FOUND, "not found"),
        }
    }
}

async fn serve(
    State(server): State<Arc<Server>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    server.answer(&method, &uri, &body)
}

fn scenario() -> Scenario {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/network");
    Scenario::load(&fixtures.join("three-namespaces")).unwrap()
}

fn run(server: &Arc<Server>, options: &Options) -> Result<prover::cluster::Proof, ProveError> {
    let router = Router::new().fallback(serve).with_state(Arc::clone(server));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Client::new(router, "default");
        prove_network(&client, &scenario(), options, &|_| {}).await
    })
}

#[test]
fn pods_that_do_not_start_are_named_with_their_reason() {
    let server = Arc::new(Server::default());
    let options = Options {
        ready: Duration::from_millis(500),
        cleanup: Cleanup::Delete,
        ..Options::default()
    };
    let error = run(&server, &options).unwrap_err();
    let ProveError::Timeout {
        condition,
        last_status,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(condition, "all pods to be ready");
    assert!(
        last_status.contains("hf-x/a: Pending, ErrImageNeverPull, not on the node"),
        "{last_status}"
    );
    let deleted = server.requests.lock().unwrap().clone();
    let deleted: Vec<_> = deleted
        .iter()
        .filter(|request| request.starts_with("DELETE"))
        .collect();
    assert_eq!(
        deleted,
        [
            "DELETE /api/v1/namespaces/hf-x",
            "DELETE /api/v1/namespaces/hf-y",
            "DELETE /api/v1/namespaces/hf-z"
        ],
        "only the scenario's own namespaces, also after an error"
    );
}

#[test]
fn without_an_agent_the_verdict_is_unknown_and_nothing_hangs() {
    let server = Arc::new(Server {
        running: true,
        refusals: Mutex::new(2),
        ..Server::default()
    });
    let directory = std::env::temp_dir().join(format!("holdfast-proof-{}", std::process::id()));
    let options = Options {
        evidence: Some(directory.clone()),
        ..Options::default()
    };
    let started = Instant::now();
    let proof = run(&server, &options).unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(proof.report.verdict, Verdict::Unknown);
    assert_eq!(
        proof.report.cause,
        "the control's events on node node-1 could not be heard: no Cilium agent runs there"
    );
    assert!(!proof.report.kept);
    for object in server.objects.lock().unwrap().iter() {
        assert_eq!(
            object["metadata"]["labels"]["app.kubernetes.io/managed-by"],
            "holdfast"
        );
    }
    for name in [
        "report.json",
        "trial.json",
        "rounds.json",
        "truth-table.txt",
    ] {
        assert!(directory.join(name).exists(), "{name}");
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_namespace_of_somebody_else_is_left_alone() {
    let server = Arc::new(Server::default());
    let theirs = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "hf-y", "labels": {"ns": "y"}}});
    server.objects.lock().unwrap().push(theirs);
    let options = Options {
        cleanup: Cleanup::Delete,
        ..Options::default()
    };
    let error = run(&server, &options).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("namespace hf-y exists and does not carry the label"),
        "{error}"
    );
    let requests = server.requests.lock().unwrap();
    let changed = requests
        .iter()
        .filter(|request| !request.starts_with("GET") && request.contains("/namespaces/hf-y"));
    assert_eq!(changed.collect::<Vec<_>>(), Vec::<&String>::new());
}
