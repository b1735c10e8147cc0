//! The policies that the API server really has about the probed pods, beside those that the scenario has.
//!
//! A table says nothing about a cluster in which other policies are in force than those it was computed from.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use crate::model::{
    Labels, Pod, PodRef, Problems, Requirement, World, parse_selector, parse_value,
};

/// A policy of the scenario as it is called in messages and found in the API.
pub const NETWORK_POLICY: &str = "NetworkPolicy";

/// One policy object that is about a probed pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyObject {
    /// For example `NetworkPolicy` or `CiliumNetworkPolicy`.
    pub kind: String,
    /// Its namespace; none for cluster-wide kinds.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The API object.
    pub uid: String,
    /// Grows with every change of its specification.
    pub generation: i64,
    /// What it is to the scenario.
    pub standing: Standing,
}

/// What a policy object is to the scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// One of the scenario's, and it says what the scenario says.
    Own,
    /// It has the name of one of the scenario's, and says something else.
    Altered,
    /// Not of the scenario, and about this probed pod.
    Foreign(PodRef),
}

impl fmt::Display for PolicyObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PolicyObject {
            kind,
            namespace,
            name,
            ..
        } = self;
        match namespace {
            Some(namespace) => write!(f, "{kind} {namespace}/{name}"),
            None => write!(f, "{kind} {name}"),
        }
    }
}

impl PolicyObject {
    /// Weighs an object of the API against the scenario. `None`: it is about no probed pod.
    ///
    /// Whatever cannot be understood counts as being about the probed pods: the mistake must not be a quiet one.
    pub fn weigh(world: &World, kind: &str, object: &Value) -> Option<PolicyObject> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let namespace = text("/metadata/namespace");
        let name = text("/metadata/name").unwrap_or_default();
        let standing = if kind == NETWORK_POLICY {
            network_policy(world, namespace.unwrap_or_default(), name, object)
        } else {
            cilium_policy(world, namespace, object).map(Standing::Foreign)
        }?;
        Some(PolicyObject {
            kind: kind.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            uid: text("/metadata/uid").unwrap_or_default().to_owned(),
            generation: object
                .pointer("/metadata/generation")
                .and_then(Value::as_i64)
                .unwrap_or_default(),
            standing,
        })
    }

    /// Whether it is the scenario's policy of this name.
    pub fn is(&self, policy: &PodRef) -> bool {
        self.kind == NETWORK_POLICY
            && self.namespace.as_deref() == Some(policy.namespace.as_str())
            && self.name == policy.name
    }
}

fn network_policy(world: &World, namespace: &str, name: &str, object: &Value) -> Option<Standing> {
    let (mut found, mut problems) = (World::default(), Problems::default());
    // Items of a list come without their kind.
    let mut object = object.clone();
    object["apiVersion"] = json!("networking.k8s.io/v1");
    object["kind"] = json!(NETWORK_POLICY);
    parse_value("", "", &object, &mut found, &mut problems);
    let read = found.policies.pop().filter(|_| problems.0.is_empty());
    let own = world
        .policies
        .iter()
        .find(|policy| policy.namespace == namespace && policy.name == name);
    if let Some(own) = own {
        return Some(if read.as_ref() == Some(own) {
            Standing::Own
        } else {
            Standing::Altered
        });
    }
    let about = |pod: &&Pod| {
        pod.reference.namespace == namespace
            && read
                .as_ref()
                .is_none_or(|policy| policy.subject.matches(&pod.labels))
    };
    let pod = world.pods.iter().find(about)?;
    Some(Standing::Foreign(pod.reference.clone()))
}

/// A `CiliumNetworkPolicy` or, without a namespace, a `CiliumClusterwideNetworkPolicy`.
fn cilium_policy(world: &World, namespace: Option<&str>, object: &Value) -> Option<PodRef> {
    let several = object["specs"].as_array();
    let specs: Vec<&Value> = several
        .into_iter()
        .flatten()
        .chain(object.get("spec"))
        .collect();
    let about = |pod: &&Pod| {
        namespace.is_none_or(|namespace| pod.reference.namespace == namespace)
            && (specs.is_empty() || specs.iter().any(|spec| selects(world, spec, pod)))
    };
    world
        .pods
        .iter()
        .find(about)
        .map(|pod| pod.reference.clone())
}

fn selects(world: &World, spec: &Value, pod: &Pod) -> bool {
    let Some(selector) = spec.get("endpointSelector") else {
        // A policy about nodes is about no pod.
        return spec.get("nodeSelector").is_none();
    };
    let Some(mut selector) = parse_selector(selector) else {
        return true;
    };
    selector.requirements.retain_mut(|requirement| {
        let key = match requirement {
            Requirement::In(key, _)
            | Requirement::NotIn(key, _)
            | Requirement::Exists(key)
            | Requirement::DoesNotExist(key) => key,
        };
        for source in ["k8s:", "k8s.", "any:", "any."] {
            if let Some(rest) = key.strip_prefix(source) {
                *key = rest.to_owned();
                break;
            }
        }
        // Labels that Cilium makes from other things than the pod and its namespace are not known here.
        !key.starts_with("io.cilium.k8s.policy.")
    });
    selector.matches(&endpoint_labels(world, pod))
}

/// The labels by which Cilium selects a pod, without their sources.
fn endpoint_labels(world: &World, pod: &Pod) -> Labels {
    let namespace = &pod.reference.namespace;
    let mut labels = pod.labels.clone();
    labels.insert("io.kubernetes.pod.namespace".to_owned(), namespace.clone());
    for (key, value) in world.namespace_labels(namespace) {
        labels.insert(format!("io.cilium.k8s.namespace.labels.{key}"), value);
    }
    labels
}
