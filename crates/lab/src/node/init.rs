//! Process 1 of a node.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fs_err as fs;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};
use serde::{Deserialize, Serialize};

use super::components::{After, Component, components, config_files};
use super::mounts;
use crate::cgroup;
use crate::error::{Attempt as _, Error, Result};
use crate::run::Program;
use crate::spec::{DNS_SERVICE, GATEWAY, Lab, Node, Role};

/// A component that ends is started again after this long, as a service manager would.
const RESTART_DELAY: Duration = Duration::from_millis(200);
/// After this many restarts a component is given up.
const MOST_RESTARTS: u32 = 20;
/// How long the API server may take to answer. It takes two seconds on a machine of its own,
/// and more than a minute on an emulated one.
const API_DEADLINE: Duration = Duration::from_mins(3);

/// What is known of a running component, for `lab status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ComponentState {
    /// Its process id inside the node.
    pub pid: i32,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last, if it did.
    pub last_exit: Option<String>,
}

struct Running {
    lab: Lab,
    node: Node,
    logs: PathBuf,
    states: Mutex<BTreeMap<&'static str, ComponentState>>,
}

/// Runs as process 1 of a node. Returns only when the node cannot go on.
pub fn run(folder: &Path, name: &str) -> Result<()> {
    let lab = Lab::load(folder)?;
    let node = lab
        .nodes
        .iter()
        .find(|node| node.name == name)
        .cloned()
        .ok_or_else(|| Error::Recipe {
            path: folder.join("lab.json"),
            problem: format!("has no node {name}"),
        })?;
    // The supervisor writes one line when the node's link is in place.
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .attempt(|| "wait for the supervisor".to_owned())?;
    if line.is_empty() {
        return Ok(());
    }
    std::thread::spawn(|| {
        // Nothing more is ever written: this returns when the supervisor is gone.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });

    mounts::build(&lab, &node)?;
    sethostname(&node.name).attempt(|| "name the node".to_owned())?;
    let cgroup_root = Path::new("/sys/fs/cgroup");
    if cgroup_root.join("cgroup.controllers").exists() {
        cgroup::pass_controllers(cgroup_root)?;
    }
    let own = lab.inside(&lab.node_folder(&node.name));
    for file in config_files(&lab, &node) {
        fs::write(own.join(file.name), file.text)
            .attempt(|| "write a component's configuration".to_owned())?;
    }
    bring_up_network(&node)?;
    let logs = own.join("logs");
    fs::create_dir_all(&logs).attempt(|| "make the log folder".to_owned())?;
    let running: &'static Running = Box::leak(Box::new(Running {
        lab,
        node,
        logs,
        states: Mutex::default(),
    }));
    running.start_all()?;
    running.reap()
}

fn bring_up_network(node: &Node) -> Result<()> {
    let address = format!("{}/24", node.address);
    let gateway = GATEWAY.to_string();
    let mut commands: Vec<Vec<&str>> = vec![
        vec!["link", "set", "lo", "up"],
        vec!["addr", "add", &address, "dev", "eth0"],
        vec!["link", "set", "eth0", "up"],
        vec!["route", "add", "default", "via", &gateway],
    ];
    let dns = format!("{DNS_SERVICE}/32");
    if node.role == Role::ControlPlane {
        // DNS answers on its Service address before any Service network is installed.
        commands.push(vec!["addr", "add", &dns, "dev", "lo"]);
    }
    for command in commands {
        Program::new("ip").args(command).run()?;
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        .attempt(|| "let the node forward packets".to_owned())
}

impl Running {
    /// Starts every component, then returns. Nothing is reaped before that, because
    /// [`Running::reap`] would take the exit status of the programs run here.
    fn start_all(&self) -> Result<()> {
        let components = components(&self.lab, &self.node);
        let (now, later): (Vec<_>, Vec<_>) = components
            .iter()
            .partition(|component| component.after == After::Nothing);
        for component in now {
            self.start(component.name)?;
        }
        self.wait_for_api_server()?;
        for component in later {
            self.start(component.name)?;
        }
        Ok(())
    }

    fn wait_for_api_server(&self) -> Result<()> {
        let started = Instant::now();
        let kubeconfig = self
            .lab
            .inside(&self.lab.folder().join("pki/node-admin.kubeconfig"));
        let kubectl = self.lab.inside(&self.lab.parts.clients.join("kubectl"));
        loop {
            let answer = Program::new(&kubectl)
                .arg("--kubeconfig")
                .arg(&kubeconfig)
                .args(["get", "--raw", "/readyz", "--request-timeout=2s"])
                .read();
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > API_DEADLINE => {
                    return Err(Error::Timeout {
                        what: "the API server".to_owned(),
                        waited: started.elapsed(),
                        last: error.to_string(),
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn start(&self, name: &'static str) -> Result<()> {
        let component = self.find(name);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.logs.join(format!("{name}.log")))
            .attempt(|| "open a component's log".to_owned())?;
        let errors = log
            .try_clone()
            .attempt(|| "open a component's log".to_owned())?;
        let path = format!(
            "{}:{}",
            self.lab.inside(&self.lab.parts.containerd).display(),
            std::env::var("PATH").unwrap_or_default()
        );
        // Not waited for here: process 1 reaps every child, its own and the orphans.
        let child = std::process::Command::new(&component.program)
            .args(&component.args)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.into_file())
            .stderr(errors.into_file())
            .spawn()
            .attempt(|| format!("start {name}"))?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states
            .entry(name)
            .and_modify(|state| state.pid = pid)
            .or_insert(ComponentState {
                pid,
                restarts: 0,
                last_exit: None,
            });
        self.publish(&states);
        Ok(())
    }

    fn find(&self, name: &str) -> Component {
        components(&self.lab, &self.node)
            .into_iter()
            .find(|component| component.name == name)
            .expect("a started component is one of the node's")
    }

    /// Reaps children for ever; a component that ended is started again.
    fn reap(&'static self) -> Result<()> {
        loop {
            let (pid, how) = match waitpid(Pid::from_raw(-1), None) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit status {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("signal {signal}")),
                Ok(_) | Err(nix::Error::EINTR) => continue,
                Err(nix::Error::ECHILD) => {
                    // Between two restarts there may be no child at all.
                    std::thread::sleep(RESTART_DELAY);
                    continue;
                }
                Err(error) => return Err(error).attempt(|| "reap the node's processes".to_owned()),
            };
            self.ended(pid, &how);
        }
    }

    fn ended(&'static self, pid: Pid, how: &str) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((&name, state)) = states
            .iter_mut()
            .find(|(_, state)| state.pid == pid.as_raw())
        else {
            return;
        };
        state.last_exit = Some(how.to_owned());
        state.pid = 0;
        let again = state.restarts < MOST_RESTARTS;
        state.restarts += u32::from(again);
        self.publish(&states);
        self.log(&format!("{name} ended ({how})"));
        if again {
            std::thread::spawn(move || {
                std::thread::sleep(RESTART_DELAY);
                if let Err(error) = self.start(name) {
                    self.log(&format!("cannot start {name} again: {error}"));
                }
            });
        }
    }

    fn publish(&self, states: &BTreeMap<&'static str, ComponentState>) {
        let text = serde_json::to_string_pretty(states).expect("states are JSON");
        let path = self.logs.join("../components.json");
        if let Err(error) = crate::files::replace(&path, &text) {
            self.log(&error.to_string());
        }
    }

    fn log(&self, text: &str) {
        use std::io::Write as _;
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.logs.join("init.log"));
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{text}");
        }
    }
}
