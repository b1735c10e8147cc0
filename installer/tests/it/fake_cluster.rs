//! An API server as a function: lists and watches of a few objects, without a socket.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures::stream;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The stand-in for a cluster. Clones share the objects.
#[derive(Clone)]
pub(crate) struct FakeCluster {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<()>>,
}

#[derive(Default)]
struct State {
    /// The present objects by the path of their list, and every change that ever was.
    lists: BTreeMap<String, (BTreeMap<String, Value>, Vec<Value>)>,
    logs: BTreeMap<String, String>,
    forbidden: Option<String>,
}

const APPS: &str = "/apis/apps/v1/namespaces/gitlab-managed-apps";
const CORE: &str = "/api/v1/namespaces/gitlab-managed-apps";

impl FakeCluster {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
        }
    }

    pub(crate) fn client(&self) -> Client {
        let cluster = self.clone();
        let router = Router::new().fallback(move |uri: Uri| async move { cluster.answer(&uri) });
        Client::new(router, "default")
    }

    /// Creates or changes an object in the list at `path`.
    pub(crate) fn put(&self, path: &str, object: Value) {
        let name = object["metadata"]["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        let mut state = self.state.lock().expect("not poisoned");
        let (objects, changes) = state.lists.entry(path.to_owned()).or_default();
        let kind = if objects.contains_key(&name) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let mut object = object;
        object["metadata"]["resourceVersion"] = json!((changes.len() + 1).to_string());
        changes.push(json!({"type": kind, "object": object}));
        objects.insert(name, object);
        drop(state);
        self.changed.send_replace(());
    }

    pub(crate) fn daemon_set(&self, name: &str, ready: i32, desired: i32) {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": name, "namespace": "gitlab-managed-apps", "generation": 1},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": []}},
            },
            "status": {
                "observedGeneration": 1, "desiredNumberScheduled": desired, "updatedNumberScheduled": desired,
                "currentNumberScheduled": desired, "numberMisscheduled": 0, "numberReady": ready,
            },
        });
        self.put(&format!("{APPS}/daemonsets"), object);
    }

    pub(crate) fn deployment(&self, name: &str, available: i32) {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "gitlab-managed-apps", "generation": 2},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": []}},
            },
            "status": {
                "observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available,
            },
        });
        self.put(&format!("{APPS}/deployments"), object);
    }

    /// A pod of `app` with this status.
    pub(crate) fn pod(&self, name: &str, app: &str, status: &Value) {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "gitlab-managed-apps", "labels": {"app": app}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": status,
        });
        self.put(&format!("{CORE}/pods"), object);
    }

    pub(crate) fn warning(&self, kind: &str, name: &str, reason: &str, message: &str) {
        let object = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": format!("{name}.{reason}"), "namespace": "gitlab-managed-apps"},
            "involvedObject": {"kind": kind, "name": name},
            "type": "Warning", "reason": reason, "message": message,
            "lastTimestamp": "2026-01-01T00:00:00Z",
        });
        self.put(&format!("{CORE}/events"), object);
    }

    pub(crate) fn log(&self, pod: &str, text: &str) {
        let mut state = self.state.lock().expect("not poisoned");
        state
            .logs
            .insert(format!("{CORE}/pods/{pod}/log"), text.to_owned());
    }

    /// Refuses the list at the end of whose path this is.
    pub(crate) fn forbid(&self, list: &str) {
        self.state.lock().expect("not poisoned").forbidden = Some(list.to_owned());
    }

    fn answer(&self, uri: &Uri) -> Response {
        let state = self.state.lock().expect("not poisoned");
        let path = uri.path();
        if let Some(log) = state.logs.get(path) {
            return log.clone().into_response();
        }
        if state
            .forbidden
            .as_ref()
            .is_some_and(|list| path.ends_with(list.as_str()))
        {
            return status(StatusCode::FORBIDDEN, "user \"ci\" cannot list this");
        }
        let query: BTreeMap<_, _> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        if query.get("watch") == Some(&"true") {
            let from = query
                .get("resourceVersion")
                .and_then(|version| version.parse().ok())
                .unwrap_or(0);
            return self.watch(path.to_owned(), from);
        }
        let (items, version) = match state.lists.get(path) {
            Some((objects, changes)) => {
                (objects.values().cloned().collect::<Vec<_>>(), changes.len())
            }
            None if path.contains("/pods/") => return status(StatusCode::NOT_FOUND, "no such pod"),
            None => (Vec::new(), 0),
        };
        let list = json!({
            "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version.to_string()}, "items": items,
        });
        list.to_string().into_response()
    }

    fn watch(&self, path: String, from: usize) -> Response {
        let cluster = self.clone();
        let changed = self.changed.subscribe();
        let lines = stream::unfold((from, changed), move |(next, mut changed)| {
            let (cluster, path) = (cluster.clone(), path.clone());
            async move {
                loop {
                    changed.borrow_and_update();
                    let change = {
                        let state = cluster.state.lock().expect("not poisoned");
                        state
                            .lists
                            .get(&path)
                            .and_then(|(_, changes)| changes.get(next))
                            .cloned()
                    };
                    if let Some(change) = change {
                        let line = format!("{change}\n");
                        return Some((Ok::<_, std::io::Error>(line), (next + 1, changed)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Body::from_stream(lines).into_response()
    }
}

fn status(code: StatusCode, message: &str) -> Response {
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": code.canonical_reason(), "code": code.as_u16(),
    });
    (code, body.to_string()).into_response()
}
