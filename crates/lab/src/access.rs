//! Reaching into a running lab: its state, its nodes' namespaces, its containerd.

use std::ffi::OsString;
use std::path::Path;

use fs_err as fs;

use crate::error::{Error, Result};
use crate::node::ComponentState;
use crate::run::Program;
use crate::spec::Lab;
use crate::supervisor::State;

/// Imports an image archive into one node.
pub fn load(lab: &Lab, node: &str, archive: &Path) -> Result<()> {
    let ctr = lab.inside(&lab.parts.containerd.join("ctr"));
    // Opened out here: the archive may lie where a node sees folders of its own.
    enter(lab, node, &["--mount", "--pid"])?
        .arg(ctr)
        .args(["--address", "/run/containerd/containerd.sock"])
        .args(["--namespace", "k8s.io", "images", "import", "--local"])
        .args(["--snapshotter", "overlayfs", "-"])
        .input_file(archive)
        .run()
}

/// A program that will run in namespaces of a node.
pub fn enter(lab: &Lab, node: &str, namespaces: &[&str]) -> Result<Program> {
    let state = state(lab)?;
    let process = node_process(lab, &state, node)?;
    Ok(Program::new("nsenter")
        .arg(format!("--target={process}"))
        .args(namespaces)
        .arg("--"))
}

/// What is known of each component of a node, in name order.
pub fn components(lab: &Lab, node: &str) -> Vec<(String, ComponentState)> {
    let path = lab.node_folder(node).join("components.json");
    let text = fs::read(path).unwrap_or_default();
    let states: std::collections::BTreeMap<String, ComponentState> =
        serde_json::from_slice(&text).unwrap_or_default();
    states.into_iter().collect()
}

/// The words that start a command on a node with kubectl, helm and ctr at hand.
pub fn shell_words(lab: &Lab, node: &str) -> Result<Vec<OsString>> {
    let state = state(lab)?;
    let process = node_process(lab, &state, node)?;
    let folders = [&lab.parts.clients, &lab.parts.containerd];
    let path = folders
        .iter()
        .map(|folder| lab.inside(folder).display().to_string())
        .chain([std::env::var("PATH").unwrap_or_default()])
        .collect::<Vec<_>>()
        .join(":");
    let kubeconfig = lab.inside(&lab.folder().join("pki/node-admin.kubeconfig"));
    Ok([
        "nsenter".to_owned(),
        format!("--target={process}"),
        "--all".to_owned(),
        "--wd=/".to_owned(),
        "--".to_owned(),
        "env".to_owned(),
        format!("PATH={path}"),
        format!("KUBECONFIG={}", kubeconfig.display()),
        "CONTAINERD_ADDRESS=/run/containerd/containerd.sock".to_owned(),
        "CONTAINERD_NAMESPACE=k8s.io".to_owned(),
    ]
    .into_iter()
    .map(OsString::from)
    .collect())
}

fn node_process(lab: &Lab, state: &State, node: &str) -> Result<i32> {
    state.nodes.get(node).copied().ok_or_else(|| Error::Unmet {
        what: format!("the lab {} has no node {node}", lab.name),
        hint: format!(
            "its nodes are {}",
            state.nodes.keys().cloned().collect::<Vec<_>>().join(", ")
        ),
    })
}

/// The published state of a running lab.
pub fn state(lab: &Lab) -> Result<State> {
    State::load(&lab.folder())
        .filter(State::is_alive)
        .ok_or_else(|| not_running(&lab.name))
}

pub(crate) fn not_running(name: &str) -> Error {
    Error::Unmet {
        what: format!("no lab named {name} is running"),
        hint: "start one with `cargo xtask lab up`".to_owned(),
    }
}
