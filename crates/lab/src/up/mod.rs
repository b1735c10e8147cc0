//! Starting a lab and waiting until it can be used.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};

use fs_err as fs;

use crate::access::not_running;
use crate::cache::Cache;
use crate::error::{Attempt as _, Error, Result};
use crate::files;
use crate::images::{self, Image};
use crate::packages::{self, Installing, Tools};
use crate::parts::{self, Parts};
use crate::progress::Progress;
use crate::spec::{Folders, Lab, folder};
use crate::supervisor::{self, Life, Orders};
use crate::sweep::{self, Presence};

mod ready;

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
    packages::ensure(cache, installing, progress)?;
    let tools = packages::tools(cache, installing, progress)?;
    let parts = std::thread::scope(|scope| {
        // Mostly downloading and unpacking, so it goes well beside a build.
        let roots = scope.spawn(|| {
            STABLE
                .iter()
                .try_for_each(|name| images::ensure_root(&recipe(inputs, name), cache, progress))
        });
        let parts = parts::ensure(cache, progress)?;
        roots.join().expect("packing does not panic")?;
        Ok::<_, Error>(parts)
    })?;
    let pack = |names: &[&str]| {
        names
            .iter()
            .map(|name| {
                images::pack(
                    &recipe(inputs, name),
                    cache,
                    &parts,
                    &inputs.built,
                    progress,
                )
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

fn recipe(inputs: &Inputs, image: &str) -> PathBuf {
    inputs.recipes.join(format!("{image}.toml"))
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
    let _lock = cache.lock(&lock_name(&wanted.name))?;
    make_room(cache, &wanted.name, progress)?;
    let folder = lab.folder();
    fs::create_dir_all(&folder).attempt(|| "make the lab's folder".to_owned())?;
    let text = serde_json::to_string_pretty(&lab).expect("a lab is JSON");
    files::write_private(&folder.join("lab.json"), &text)?;

    let step = progress.step(match wanted.nodes {
        1 => "starting a lab of one node".to_owned(),
        nodes => format!("starting a lab of {nodes} nodes"),
    });
    let started = start_supervisor(cache, &lab, wanted.orders);
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            // The supervisor cleans up after itself unless it died before it could.
            sweep::down(cache.root(), &wanted.name)?;
            return Err(error);
        }
    };
    if let Err(error) = ready::wait(prepared, &running, &step) {
        keep_logs(cache.root(), &lab);
        sweep::down(cache.root(), &wanted.name)?;
        return Err(error);
    }
    step.done();
    Ok(running)
}

/// Sweeps what killed labs left; refuses if a lab of that name still runs.
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
                // Another lab may be starting right now; whoever starts it holds its lock,
                // as this process holds the one of `name`.
                let lock = cache.try_lock(&lock_name(&found))?;
                if found == name || lock.is_some() {
                    progress.note(&format!(
                        "removing what a killed lab named {found} left behind"
                    ));
                    sweep::remove_remains(cache.root(), &found)?;
                }
            }
            Presence::Running | Presence::Absent => {}
        }
    }
    Ok(())
}

fn lock_name(lab: &str) -> String {
    format!("lab-{lab}")
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
        kubeconfig: lab.kubeconfig(),
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

/// Finds a lab that runs already.
pub fn find(cache: &Cache, name: &str) -> Result<Running> {
    if sweep::presence(cache.root(), name)? != Presence::Running {
        return Err(not_running(name));
    }
    let lab = Lab::load(&folder(cache.root(), name))?;
    Ok(Running {
        kubeconfig: lab.kubeconfig(),
        lab,
        _lifeline: None,
        supervisor: None,
    })
}

/// Copies the logs of a lab's programs out of its folder, which goes with the lab.
pub fn keep_logs(cache: &Path, lab: &Lab) {
    for node in &lab.nodes {
        let from = lab.node_folder(&node.name).join("logs");
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
