//! A scenario on disk: pods that can be probed, and the policies between them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::error::ProveError;
use crate::model::{PodRef, Problem, World, parse_manifests};

/// A scenario, read and checked.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The name for reports: the policies' folder.
    pub name: String,
    /// What the manifests mean. Pods have no addresses yet.
    pub world: World,
    /// Namespaces, pods and services as they are sent to the cluster.
    pub workload: Vec<Value>,
    /// The policies as they are sent to the cluster.
    pub policies: Vec<Value>,
}

impl Scenario {
    /// Reads `workload.yaml` and `policies.yaml` of a folder.
    pub fn load(directory: &Path) -> Result<Scenario, ProveError> {
        Self::load_files(
            &directory.join("workload.yaml"),
            &directory.join("policies.yaml"),
        )
    }

    /// Reads a workload and a set of policies that lie in different places.
    pub fn load_files(workload: &Path, policies: &Path) -> Result<Scenario, ProveError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| ProveError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let (workload_text, policies_text) = (read(workload)?, read(policies)?);
        let name = policies
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default();
        Self::parse(
            &name.to_string_lossy(),
            (&workload.display().to_string(), &workload_text),
            (&policies.display().to_string(), &policies_text),
        )
    }

    /// Checks the texts of a workload and of policies, each with its file name for messages.
    pub fn parse(
        name: &str,
        workload: (&str, &str),
        policies: (&str, &str),
    ) -> Result<Scenario, ProveError> {
        let (mut world, workload_documents, mut problems) = parse_manifests(workload.0, workload.1);
        let (policy_world, policy_documents, more) = parse_manifests(policies.0, policies.1);
        problems.0.extend(more.0);
        world.extend(policy_world);
        let mut complain = |file: &str, message: String| {
            problems.0.push(Problem {
                file: file.to_owned(),
                place: "whole file".to_owned(),
                message,
            });
        };
        if world.pods.is_empty() {
            complain(workload.0, "there is no pod to probe".to_owned());
        }
        if world.policies.is_empty() {
            complain(policies.0, "there is no NetworkPolicy to prove".to_owned());
        }
        let declared =
            |namespace: &str| world.namespaces.iter().any(|known| known.name == namespace);
        for pod in world
            .pods
            .iter()
            .filter(|pod| !declared(&pod.reference.namespace))
        {
            complain(
                workload.0,
                format!(
                    "pod {} is in a namespace that the workload does not declare",
                    pod.reference
                ),
            );
        }
        for policy in world
            .policies
            .iter()
            .filter(|policy| !declared(&policy.namespace))
        {
            let (namespace, name) = (&policy.namespace, &policy.name);
            complain(
                policies.0,
                format!(
                    "policy {namespace}/{name} is in a namespace that the workload does not declare"
                ),
            );
        }
        if !problems.0.is_empty() {
            return Err(ProveError::Manifests(problems));
        }
        Ok(Scenario {
            name: name.to_owned(),
            world,
            workload: workload_documents,
            policies: policy_documents,
        })
    }

    /// The pods to probe.
    pub fn pods(&self) -> Vec<PodRef> {
        self.world
            .pods
            .iter()
            .map(|pod| pod.reference.clone())
            .collect()
    }
}
