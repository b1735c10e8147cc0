//! Starting a lab and waiting until it can be used.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use fs_err as fs;
use serde_json::Value;

use crate::addons;
use crate::cache::Cache;
use crate::dns;
use crate::error::{Attempt as _, Error, Result};
use crate::files;
use crate::images::{self, Image};
use crate::node::ComponentState;
use crate::packages::{self, Installing, Tools};
use crate::parts::{self, Parts};
use crate::progress::Progress;
use crate::run::Program;
use crate::spec::{Folders, Lab, folder};
use crate::supervisor::{self, Life, Orders, State};
use crate::sweep::{self, Presence};

/// How long each condition of a starting lab may take. A cold page cache on a
/// slow disk is the slowest seen.
const DEADLINE: Duration = Duration::from_secs(120);

/// The recipes of images that rarely change: they go into the image store.
const STABLE: &[&str] = &["cilium", "cilium-operator"];
/// The recipes of images that this workspace builds: imported at each start.
const FRESH: &[&str] = &["pause", "probe"];

/// Everything a lab is made from, built or fetched.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The built parts.
    pub parts: Parts,
    /// helm and kubectl.
    pub tools: Tools,
    store: PathBuf,
    fresh: Vec<Image>,
}

impl Prepared {
    /// The folder with the unpacked upstream charts, by name.
    pub fn charts(&self) -> PathBuf {
        self.parts.file("cilium", "charts")
    }
}

/// Where things come from that the lab does not know by itself.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The folder of image recipes.
    pub recipes: PathBuf,
    /// The folder with the static programs that this workspace builds.
    pub built: PathBuf,
}

/// What kind of lab is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The lab's name.
    pub name: String,
    /// The number of nodes.
    pub nodes: u8,
    /// How long it lives, and the API server's port.
    pub orders: Orders,
}

/// A lab that runs.
#[derive(Debug)]
pub struct Running {
    /// What it is made of.
    pub lab: Lab,
    /// The kubeconfig for use from the machine.
    pub kubeconfig: PathBuf,
    /// Held open for as long as an attached lab shall live.
    _lifeline: Option<ChildStdin>,
    supervisor: Option<Child>,
}

/// Builds and fetches whatever is missing. A second call does nothing.
pub fn prepare(
    cache: &Cache,
    inputs: &Inputs,
    installing: Installing,
    progress: &Progress,
) -> Result<Prepared> {
    cache.sweep_scratch()?;
    packages::ensure(installing, progress)?;
    let tools = packages::tools(cache, installing, progress)?;
    let parts = parts::ensure(cache, progress)?;
    let pack = |names: &[&str]| {
        names
            .iter()
            .map(|name| {
                let recipe = inputs.recipes.join(format!("{name}.toml"));
                images::pack(&recipe, cache, &parts, &inputs.built, progress)
            })
            .collect::<Result<Vec<_>>>()
    };
    let stable = pack(STABLE)?;
    let fresh = pack(FRESH)?;
    let store = images::store::ensure(&stable, cache, &parts, progress)?;
    Ok(Prepared {
        parts,
        tools,
        store,
        fresh,
    })
}

/// Starts a lab and returns when its nodes are Ready and its DNS answers.
pub fn start(
    cache: &Cache,
    prepared: &Prepared,
    wanted: &Wanted,
    progress: &Progress,
) -> Result<Running> {
    let part = |name| prepared.parts.folder(name).to_owned();
    let lab = Lab::new(
        &wanted.name,
        wanted.nodes,
        cache,
        Folders {
            etcd: part("etcd"),
            containerd: part("containerd"),
            cni_plugins: part("cni-plugins"),
            kubernetes: part("kubernetes"),
            coredns: part("coredns"),
            clients: prepared.tools.clients.clone(),
            store: prepared.store.clone(),
        },
    )?;
    let _lock = cache.lock(&format!("lab-{}", wanted.name))?;
    make_room(cache, &wanted.name, progress)?;
    let folder = lab.folder();
    fs::create_dir_all(&folder).attempt(|| "make the lab's folder".to_owned())?;
    let text = serde_json::to_string_pretty(&lab).expect("a lab is JSON");
    files::write_private(&folder.join("lab.json"), &text)?;

    let step = progress.step(format!("starting a lab of {} nodes", wanted.nodes));
    let started = start_supervisor(cache, &lab, wanted.orders);
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            // The supervisor cleans up after itself unless it died before it could.
            sweep::down(cache.root(), &wanted.name)?;
            return Err(error);
        }
    };
    if let Err(error) = wait_until_usable(prepared, &running, &step) {
        keep_logs(cache.root(), &lab);
        sweep::down(cache.root(), &wanted.name)?;
        return Err(error);
    }
    step.done();
    Ok(running)
}

/// Sweeps what a killed lab of that name left; refuses if it still runs.
fn make_room(cache: &Cache, name: &str, progress: &Progress) -> Result<()> {
    for (found, presence) in sweep::all(cache.root())? {
        match presence {
            Presence::Running if found == name => {
                return Err(Error::Unmet {
                    what: format!("a lab named {name} is already running"),
                    hint: format!(
                        "use it with --reuse, or end it with `cargo xtask lab down --lab {name}`"
                    ),
                });
            }
            Presence::Left => {
                progress.note(&format!("removing what a killed lab named {found} left behind"));
                sweep::remove_remains(cache.root(), &found)?;
            }
            Presence::Running | Presence::Absent => {}
        }
    }
    Ok(())
}

/// The supervisor's own log outlives the lab's folder, so that a failed start can be read.
fn supervisor_log(cache: &Path, name: &str) -> PathBuf {
    cache.join("logs").join(name).join("supervisor.log")
}

fn start_supervisor(cache: &Cache, lab: &Lab, orders: Orders) -> Result<Running> {
    let log_path = supervisor_log(cache.root(), &lab.name);
    fs::create_dir_all(log_path.parent().unwrap_or(cache.root()))
        .attempt(|| "make the log folder".to_owned())?;
    let log = fs::File::create(&log_path).attempt(|| "make the supervisor's log".to_owned())?;
    let mut child = std::process::Command::new("/proc/self/exe")
        .arg(supervisor::COMMAND)
        .arg(lab.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.into_file())
        .spawn()
        .attempt(|| "start the lab's supervisor".to_owned())?;
    let mut lifeline = child.stdin.take().expect("standard input is a pipe");
    let output = child.stdout.take().expect("standard output is a pipe");
    let text = serde_json::to_string(&orders).expect("orders are JSON");
    // A supervisor that ended at once is noticed below, with its log.
    let _ = lifeline.write_all(format!("{text}\n").as_bytes());
    let mut line = String::new();
    BufReader::new(output)
        .read_line(&mut line)
        .attempt(|| "hear from the lab's supervisor".to_owned())?;
    if line.trim() != "ready" {
        let _ = child.wait();
        return Err(failed_start(&log_path));
    }
    Ok(Running {
        lab: lab.clone(),
        kubeconfig: lab.folder().join("pki/admin.kubeconfig"),
        _lifeline: match orders.life {
            Life::Attached => Some(lifeline),
            Life::Detached => None,
        },
        supervisor: Some(child),
    })
}

/// The supervisor prints its error and hint as any command does; they are taken from its log.
fn failed_start(log: &Path) -> Error {
    let text = fs::read_to_string(log).unwrap_or_default();
    let (what, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    Error::Unmet {
        what: what.trim().trim_start_matches("error: ").to_owned(),
        hint: if hint.is_empty() {
            format!("the whole log is in {}", log.display())
        } else {
            hint.trim().to_owned()
        },
    }
}

fn wait_until_usable(
    prepared: &Prepared,
    running: &Running,
    step: &crate::progress::Step,
) -> Result<()> {
    std::thread::scope(|scope| {
        let imports = scope.spawn(|| import_fresh(prepared, running));
        step.detail("waiting for the API server");
        wait_for("the API server", || {
            kubectl(prepared, running)
                .args(["get", "--raw", "/readyz"])
                .read()
                .map(drop)
                .map_err(|error| why(&error))
        })?;
        kubectl(prepared, running)
            .args(["create", "--validate=false", "--filename=-"])
            .input(addons::manifest(&running.lab))
            .run()?;
        step.detail("waiting for the nodes");
        wait_for("the nodes", || {
            let text = kubectl(prepared, running)
                .args(["get", "nodes", "--output=json"])
                .read()
                .map_err(|error| why(&error))?;
            let value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            unready(&value, running.lab.nodes.len())
        })?;
        step.detail("waiting for DNS");
        wait_for("DNS", || {
            enter(&running.lab, &running.lab.control_plane().name, &["--net"])
                .and_then(|program| {
                    let own =
                        std::env::current_exe().attempt(|| "find this program".to_owned())?;
                    program.arg(own).arg(dns::COMMAND).run()
                })
                .map_err(|error| why(&error))
        })?;
        imports.join().expect("imports do not panic")
    })
}

/// The last line of an error says most.
fn why(error: &Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim().to_owned()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> Result<(), String>) -> Result<()> {
    let started = Instant::now();
    loop {
        match condition() {
            Ok(()) => return Ok(()),
            Err(last) if started.elapsed() > DEADLINE => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    waited: started.elapsed(),
                    last,
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Says which nodes are missing or not Ready, and why.
fn unready(nodes: &Value, wanted: usize) -> Result<(), String> {
    let items = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
    if items.len() < wanted {
        return Err(format!("{} of {wanted} nodes have registered", items.len()));
    }
    for item in items {
        let conditions = item["status"]["conditions"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready");
        if ready.is_none_or(|condition| condition["status"] != "True") {
            let reason = ready.map_or("no status yet", |condition| {
                condition["message"].as_str().unwrap_or_default()
            });
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            return Err(format!("{name} is not Ready: {reason}"));
        }
    }
    Ok(())
}

fn import_fresh(prepared: &Prepared, running: &Running) -> Result<()> {
    for node in &running.lab.nodes {
        for image in &prepared.fresh {
            let mut last = String::new();
            wait_for("containerd", || {
                load(&running.lab, &node.name, &image.archive).map_err(|error| {
                    last = why(&error);
                    last.clone()
                })
            })?;
        }
    }
    Ok(())
}

/// Imports an image archive into one node.
pub fn load(lab: &Lab, node: &str, archive: &Path) -> Result<()> {
    let ctr = lab.inside(&lab.parts.containerd.join("ctr"));
    // The archive may lie anywhere on the machine, also where a node sees its own folders.
    let bytes = fs::read(archive).attempt(|| "read the image archive".to_owned())?;
    enter(lab, node, &["--mount", "--pid"])?
        .arg(ctr)
        .args(["--address", "/run/containerd/containerd.sock"])
        .args(["--namespace", "k8s.io", "images", "import", "--local"])
        .args(["--snapshotter", "overlayfs", "-"])
        .input(bytes)
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
    let path = lab.folder().join("nodes").join(node).join("components.json");
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

fn not_running(name: &str) -> Error {
    Error::Unmet {
        what: format!("no lab named {name} is running"),
        hint: "start one with `cargo xtask lab up`".to_owned(),
    }
}

/// Finds a lab that runs already.
pub fn find(cache: &Cache, name: &str) -> Result<Running> {
    if sweep::presence(cache.root(), name)? != Presence::Running {
        return Err(not_running(name));
    }
    let lab = Lab::load(&folder(cache.root(), name))?;
    Ok(Running {
        kubeconfig: lab.folder().join("pki/admin.kubeconfig"),
        lab,
        _lifeline: None,
        supervisor: None,
    })
}

fn kubectl(prepared: &Prepared, running: &Running) -> Program {
    Program::new(prepared.tools.kubectl())
        .arg("--kubeconfig")
        .arg(&running.kubeconfig)
        .arg("--request-timeout=5s")
}

/// Copies the logs of a lab's programs out of its folder, which goes with the lab.
pub fn keep_logs(cache: &Path, lab: &Lab) {
    for node in &lab.nodes {
        let from = lab.folder().join("nodes").join(&node.name).join("logs");
        let to = cache.join("logs").join(&lab.name).join(&node.name);
        let _ = fs::create_dir_all(&to);
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            let _ = fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

impl Running {
    /// Ends the lab and waits until nothing is left of it.
    pub fn down(mut self, cache: &Cache) -> Result<()> {
        sweep::down(cache.root(), &self.lab.name)?;
        if let Some(mut child) = self.supervisor.take() {
            child
                .wait()
                .map(drop)
                .attempt(|| "wait for the lab's supervisor".to_owned())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_that_is_not_ready_says_why() {
        let node = |status: &str| {
            json!({"metadata": {"name": "n1"}, "status": {"conditions": [
                {"type": "Ready", "status": status, "message": "network plugin not ready"},
            ]}})
        };
        assert_eq!(
            unready(&json!({"items": [node("False")]}), 1),
            Err("n1 is not Ready: network plugin not ready".to_owned())
        );
        assert_eq!(
            unready(&json!({"items": []}), 1),
            Err("0 of 1 nodes have registered".to_owned())
        );
        assert_eq!(unready(&json!({"items": [node("True")]}), 1), Ok(()));
    }
}
