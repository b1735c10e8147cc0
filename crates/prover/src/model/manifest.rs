//! Manifests to model: every problem of a file at once, each with its document.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::parse;
use super::{Namespace, NetworkPolicy, Pod, PodRef, Service};

/// Everything that a decision can depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// Namespaces with their labels.
    pub namespaces: Vec<Namespace>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Services.
    pub services: Vec<Service>,
    /// Network policies of all namespaces.
    pub policies: Vec<NetworkPolicy>,
}

impl World {
    /// Finds a pod.
    pub fn pod(&self, reference: &PodRef) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.reference == *reference)
    }

    /// Adds everything of another world.
    pub fn extend(&mut self, other: World) {
        self.namespaces.extend(other.namespaces);
        self.pods.extend(other.pods);
        self.services.extend(other.services);
        self.policies.extend(other.policies);
    }
}

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file's name as it was given.
    pub file: String,
    /// Which document and which object, for example `document 2, NetworkPolicy hf-x/allow`.
    pub place: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.file, self.place, self.message)
    }
}

/// Everything that is wrong in a set of files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Reads a file of one or more documents.
///
/// Returns what could be read, the documents as they are for the API server, and all problems.
pub fn parse_manifests(file: &str, text: &str) -> (World, Vec<Value>, Problems) {
    let mut world = World::default();
    let mut documents = Vec::new();
    let mut problems = Problems::default();
    for (number, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let place = format!("document {}", number + 1);
        match Value::deserialize(document) {
            Ok(Value::Null) => {}
            Ok(value) => {
                parse_value(file, &place, &value, &mut world, &mut problems);
                documents.push(value);
            }
            Err(error) => {
                problems.0.push(Problem {
                    file: file.to_owned(),
                    place,
                    message: error.to_string(),
                });
                // After a syntax error the parser has lost its place.
                break;
            }
        }
    }
    (world, documents, problems)
}

/// Reads one object into `world`.
pub fn parse_value(
    file: &str,
    place: &str,
    value: &Value,
    world: &mut World,
    problems: &mut Problems,
) {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or_default();
    let name = text("/metadata/name").unwrap_or_default();
    let place = match text("/metadata/namespace") {
        Some(namespace) => format!("{place}, {kind} {namespace}/{name}"),
        None => format!("{place}, {kind} {name}"),
    };
    let mut found = Vec::new();
    if name.is_empty() {
        found.push("metadata.name is missing".to_owned());
    }
    let api_version = text("/apiVersion").unwrap_or_default();
    match (api_version, kind) {
        ("v1", "Namespace") => world.namespaces.extend(parse::namespace(value, &mut found)),
        ("v1", "Pod") => world.pods.extend(parse::pod(value, &mut found)),
        ("v1", "Service") => world.services.extend(parse::service(value, &mut found)),
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            world
                .policies
                .extend(parse::network_policy(value, &mut found));
        }
        _ => found.push(format!(
            "{kind:?} of {api_version:?} is not understood; only v1 Namespace, Pod and Service and \
             networking.k8s.io/v1 NetworkPolicy are"
        )),
    }
    problems.0.extend(found.into_iter().map(|message| Problem {
        file: file.to_owned(),
        place: place.clone(),
        message,
    }));
}
