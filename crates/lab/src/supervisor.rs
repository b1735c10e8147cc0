//! The supervisor: the one process that holds a lab together.
//!
//! It runs in a session of its own, so that a Ctrl-C in the terminal reaches
//! only the command that asked for the lab. An *attached* lab ends when that
//! command ends, by any means: its lifeline is the supervisor's standard input.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use fs_err as fs;
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cgroup;
use crate::error::{Attempt as _, Error, Result};
use crate::fabric::{self, Fabric};
use crate::files;
use crate::node;
use crate::pki;
use crate::spec::{Lab, Node};

/// The hidden command of the supervisor.
pub const COMMAND: &str = "__lab-supervisor";
/// How long the processes of a node may take to vanish after process 1.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// How long a lab lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// As long as the command that started it.
    Attached,
    /// Until `lab down`.
    Detached,
}

/// What the supervisor publishes of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Its process id.
    pub pid: u32,
    /// Its start time in clock ticks since boot: a process id alone can be taken again.
    pub started: u64,
    /// The loopback port of the API server.
    pub api_port: u16,
    /// Process 1 of each node, by node name, as the machine sees it.
    pub nodes: std::collections::BTreeMap<String, i32>,
}

impl State {
    /// Reads the state in a lab's folder, if a supervisor got far enough to write it.
    pub fn load(folder: &Path) -> Option<Self> {
        let text = fs::read(folder.join("state.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Whether that very supervisor is still there.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/PID/stat`, see proc(5); `None` for a process that is gone or a zombie.
pub fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    (fields.first() != Some(&"Z"))
        .then(|| fields.get(19)?.parse().ok())
        .flatten()
}

/// Why the supervisor's wait ended.
enum Event {
    Asked(i32),
    OwnerGone,
    NodeEnded(String, String),
}

struct RunningNode {
    name: String,
    /// Closing this ends the node.
    lifeline: ChildStdin,
    first_process: i32,
}

/// What the command that starts a lab tells its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// How long the lab lives.
    pub life: Life,
    /// The loopback port for the API server; 0 takes a free one.
    pub api_port: u16,
}

/// Runs a lab until it is asked to end. Prints `ready` when every node has started.
pub fn run(folder: &Path) -> Result<()> {
    setsid().attempt(|| "make a session of the supervisor's own".to_owned())?;
    let signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).attempt(|| "handle signals".to_owned())?;
    let mut line = String::new();
    let mut input = BufReader::new(std::io::stdin());
    input
        .read_line(&mut line)
        .attempt(|| "read the supervisor's orders".to_owned())?;
    let orders: Orders = serde_json::from_str(&line).map_err(|error| Error::Recipe {
        path: PathBuf::from("standard input"),
        problem: error.to_string(),
    })?;

    let lab = Lab::load(folder)?;
    let (events, inbox) = mpsc::channel();
    watch_signals(signals, events.clone());
    if orders.life == Life::Attached {
        let events = events.clone();
        std::thread::spawn(move || {
            let _ = input.read_to_end(&mut Vec::new());
            let _ = events.send(Event::OwnerGone);
        });
    }

    let mut nodes = Vec::new();
    let ended = match start(&lab, folder, orders.api_port, &events, &mut nodes) {
        Ok(()) => {
            let mut out = std::io::stdout();
            // An owner that is gone already is seen as an event below.
            let _ = writeln!(out, "ready").and_then(|()| out.flush());
            match inbox.recv() {
                Ok(Event::NodeEnded(name, how)) => Err(Error::Unmet {
                    what: format!(
                        "node {name} ended by itself ({how}){}",
                        last_words(folder, &name)
                    ),
                    hint: format!(
                        "read its logs: cargo xtask lab logs --lab {} init",
                        lab.name
                    ),
                }),
                Ok(Event::Asked(signal)) => {
                    log(&format!("ending the lab: signal {signal}"));
                    Ok(())
                }
                Ok(Event::OwnerGone) | Err(_) => {
                    log("ending the lab: the command that started it is gone");
                    Ok(())
                }
            }
        }
        Err(error) => Err(error),
    };
    let swept = end(&lab, nodes);
    ended.and(swept)
}

fn watch_signals(mut signals: Signals, events: Sender<Event>) {
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let _ = events.send(Event::Asked(signal));
        }
    });
}

fn start(
    lab: &Lab,
    folder: &Path,
    api_port: u16,
    events: &Sender<Event>,
    nodes: &mut Vec<RunningNode>,
) -> Result<()> {
    let listener = fabric::listen(api_port)?;
    let api_port = listener
        .local_addr()
        .attempt(|| "find the API server's port".to_owned())?
        .port();
    pki::write_all(
        lab,
        &folder.join("pki"),
        &format!("https://127.0.0.1:{api_port}"),
    )?;
    let fabric = Fabric::start(listener, lab.control_plane().address)?;
    for node in &lab.nodes {
        nodes.push(start_node(node, folder, &fabric, events)?);
    }
    let state = State {
        pid: std::process::id(),
        started: start_time(std::process::id()).unwrap_or_default(),
        api_port,
        nodes: nodes
            .iter()
            .map(|node| (node.name.clone(), node.first_process))
            .collect(),
    };
    let text = serde_json::to_string_pretty(&state).expect("the state is JSON");
    files::replace(&folder.join("state.json"), &text)?;
    // The fabric's thread lives as long as its inbox.
    std::mem::forget(fabric);
    Ok(())
}

fn start_node(
    node: &Node,
    folder: &Path,
    fabric: &Fabric,
    events: &Sender<Event>,
) -> Result<RunningNode> {
    let own = folder.join("nodes").join(&node.name);
    fs::create_dir_all(own.join("logs")).attempt(|| "make the node's folder".to_owned())?;
    let log =
        fs::File::create(own.join("logs/init.log")).attempt(|| "make the node's log".to_owned())?;
    let mut outer = std::process::Command::new("/proc/self/exe")
        .arg(node::OUTER)
        .arg(folder)
        .arg(&node.name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.into_file())
        .spawn()
        .attempt(|| format!("start node {}", node.name))?;
    let mut lifeline = outer.stdin.take().expect("standard input is a pipe");
    let output = outer.stdout.take().expect("standard output is a pipe");
    let mut line = String::new();
    BufReader::new(output)
        .read_line(&mut line)
        .attempt(|| format!("hear from node {}", node.name))?;
    let first_process: i32 = line.trim().parse().map_err(|_| Error::Unmet {
        what: format!(
            "node {} did not start: {}",
            node.name,
            fs::read_to_string(own.join("logs/init.log"))
                .unwrap_or_default()
                .trim()
        ),
        hint: "run `cargo xtask doctor` to see what this machine lacks".to_owned(),
    })?;
    fabric.attach(&format!("ve-{}", node.name), outer.id())?;
    lifeline
        .write_all(b"linked\n")
        .attempt(|| format!("start node {}", node.name))?;
    watch_node(outer, node.name.clone(), events.clone());
    Ok(RunningNode {
        name: node.name.clone(),
        lifeline,
        first_process,
    })
}

fn watch_node(mut outer: Child, name: String, events: Sender<Event>) {
    std::thread::spawn(move || {
        let how = match outer.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let _ = events.send(Event::NodeEnded(name, how));
    });
}

/// Ends every node and removes what the kernel does not remove by itself.
fn end(lab: &Lab, nodes: Vec<RunningNode>) -> Result<()> {
    for node in nodes {
        drop(node.lifeline);
    }
    let started = Instant::now();
    loop {
        let left = cgroup::processes(&lab.cgroup())?;
        if left.is_empty() {
            break;
        }
        if started.elapsed() > END_DEADLINE {
            return Err(Error::Timeout {
                what: "the end of the lab's processes".to_owned(),
                waited: started.elapsed(),
                last: format!("still there: {left:?}"),
            });
        }
        if started.elapsed() > Duration::from_secs(2) {
            cgroup::end_processes(&lab.cgroup())?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    crate::up::keep_logs(&lab.cache, lab);
    crate::sweep::remove_remains(&lab.cache, &lab.name)
}

/// What the node's first process said before it ended.
fn last_words(folder: &Path, node: &str) -> String {
    let path = folder.join("nodes").join(node).join("logs/init.log");
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.trim() {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

fn log(text: &str) {
    // Standard error is the supervisor's log file.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_id_and_start_time() {
        let own = std::process::id();
        let started = start_time(own).unwrap();
        let mut state = State {
            pid: own,
            started,
            api_port: 0,
            nodes: std::collections::BTreeMap::new(),
        };
        assert!(state.is_alive());
        state.started += 1;
        assert!(!state.is_alive());
        state.pid = 0;
        assert!(!state.is_alive());
    }
}
