//! Starting a lab of a test's own, ending it in some way, and looking for what is left.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::cache::Cache;
use lab::supervisor::State;
use lab::sweep::{self, Presence};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Run;

/// How long an ending may take before it counts as having left something.
const DEADLINE: Duration = Duration::from_secs(30);

/// A lab that was started by `cargo xtask lab up --life attached`.
#[derive(Debug)]
pub struct AttachedLab {
    name: String,
    cache: Cache,
    command: Child,
    state: State,
    before: Machine,
}

/// What a lab could leave on a machine, beside its cgroups and its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    links: Vec<String>,
    routes: String,
    mounts: Vec<String>,
    network_namespaces: Vec<String>,
    /// What lies in the folders that charts and the kubelet write to.
    folders: Vec<Vec<String>>,
}

impl Machine {
    fn look() -> Result<Self> {
        let names = |folder: &str| -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort_unstable();
            names
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("listing the mounts")?;
        Ok(Self {
            links: names("/sys/class/net"),
            routes: fs::read_to_string("/proc/net/route").context("listing the routes")?,
            // The mount point and what is mounted; ids differ from look to look.
            mounts: mounts
                .lines()
                .map(|line| line.split(' ').skip(2).collect::<Vec<_>>().join(" "))
                .collect(),
            network_namespaces: names("/run/netns"),
            folders: ["/etc", "/opt", "/run", "/var", "/var/lib", "/sys/fs/bpf"]
                .map(names)
                .to_vec(),
        })
    }

    /// Links, routes, mounts and named namespaces must be what they were.
    fn require_unchanged(&self, lab: &str) -> Result<()> {
        let after = Self::look()?;
        if after != *self {
            bail!(
                "the machine is not as it was before the lab {lab}:\nbefore {self:#?}\nafter {after:#?}"
            );
        }
        Ok(())
    }
}

/// What a machine was like before something was done, to be compared with afterwards.
#[derive(Debug)]
pub struct Before {
    machine: Machine,
    cache: Cache,
}

impl Before {
    /// Looks at the machine.
    pub fn look() -> Result<Self> {
        Ok(Self {
            machine: Machine::look()?,
            cache: Cache::open().context("opening the cache")?,
        })
    }

    /// Waits until nothing of the named lab is left, and requires that the machine is as it was.
    pub fn wait_until_gone(&self, name: &str) -> Result<()> {
        let started = Instant::now();
        while sweep::presence(self.cache.root(), name)? != Presence::Absent {
            if started.elapsed() > DEADLINE {
                bail!("there is still something of the lab {name}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.machine.require_unchanged(name)
    }

    /// Like [`Before::wait_until_gone`], but a supervisor that had not yet begun to hold the lab
    /// may leave an empty folder, without any process, which `lab down` removes.
    pub fn wait_until_gone_or_swept(&self, run: &Run, name: &str) -> Result<()> {
        let started = Instant::now();
        let cgroup = lab::spec::cgroup(self.cache.root(), name);
        loop {
            let gone = sweep::presence(self.cache.root(), name)? == Presence::Absent;
            let quiet = lab::cgroup::processes(&cgroup)?.is_empty();
            // Time enough for a supervisor that does hold the lab to end it by itself.
            if gone || (quiet && started.elapsed() > Duration::from_secs(3)) {
                break;
            }
            if started.elapsed() > DEADLINE {
                bail!("processes of the lab {name} are still there");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        lab_command(run, &["down", "--lab", name])?;
        self.wait_until_gone(name)
    }
}

/// Runs a `lab` command to its end.
pub fn lab_command(run: &Run, args: &[&str]) -> Result<Output> {
    Command::new(&run.xtask)
        .arg("lab")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running lab {}", args.join(" ")))
}

/// Starts a lab and kills the command after a moment, while the lab is still starting.
pub fn kill_while_starting(run: &Run, name: &str, moment: Duration) -> Result<()> {
    let mut command = Command::new(&run.xtask)
        .args(["lab", "up", "--life", "attached", "--lab", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting a lab")?;
    let started = Instant::now();
    let folder = Cache::open()
        .context("opening the cache")?
        .root()
        .join("labs")
        .join(name);
    // Building what the lab needs comes first; the moment counts from the lab's own start.
    while !folder.exists() {
        if started.elapsed() > DEADLINE {
            bail!("the lab {name} did not begin to start");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(moment);
    command.kill().context("killing the command")?;
    command.wait().map(drop).context("waiting for the command")
}

impl AttachedLab {
    /// Starts a lab and waits until it is usable.
    pub fn start(run: &Run, name: &str) -> Result<Self> {
        let cache = Cache::open().context("opening the cache")?;
        let before = Machine::look()?;
        let mut command = Command::new(&run.xtask)
            .args(["lab", "up", "--life", "attached", "--lab", name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting a lab")?;
        let output = command.stderr.take().context("the lab's output")?;
        let mut seen = String::new();
        for line in BufReader::new(output).lines() {
            let line = line.context("reading the lab's output")?;
            if line.contains("is up; use it with") {
                let state = State::load(&lab::spec::folder(cache.root(), name))
                    .context("the lab has no state")?;
                return Ok(Self {
                    name: name.to_owned(),
                    cache,
                    command,
                    state,
                    before,
                });
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        bail!("the lab {name} did not come up:\n{seen}");
    }

    /// Sends a signal to the command that started the lab.
    pub fn signal_command(&self, signal: Signal) -> Result<()> {
        send(self.command.id(), signal)
    }

    /// Sends a signal to the lab's supervisor.
    pub fn signal_supervisor(&self, signal: Signal) -> Result<()> {
        send(self.state.pid, signal)
    }

    /// Kills process 1 of a node.
    pub fn kill_node(&self, node: &str) -> Result<()> {
        let process = self.state.nodes.get(node).context("no such node")?;
        kill(Pid::from_raw(*process), Signal::SIGKILL).context("killing a node")
    }

    /// Waits until nothing of the lab is left, without doing anything for it.
    pub fn wait_until_gone(mut self) -> Result<()> {
        self.wait_until(|lab| {
            Ok(sweep::presence(lab.cache.root(), &lab.name)? == Presence::Absent)
        })?;
        self.before.require_unchanged(&self.name)
    }

    /// Waits until the lab's supervisor is gone, and with it every process of the lab;
    /// what may stay are cgroups without processes and the lab's folder.
    pub fn wait_until_killed(&mut self) -> Result<()> {
        self.wait_until(|lab| {
            Ok(!lab.state.is_alive() && lab::cgroup::processes(&lab.cgroup())?.is_empty())
        })
    }

    fn wait_until(&mut self, condition: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        while !condition(self)? {
            if started.elapsed() > DEADLINE {
                bail!(
                    "of the lab {} there is still {}",
                    self.name,
                    self.remains()?
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The command itself is this test's child, and must not stay as a zombie.
        let _ = self.command.kill();
        self.command
            .wait()
            .map(drop)
            .context("waiting for the command")
    }

    /// Runs `lab down` and requires that nothing is left then.
    pub fn sweep(self, run: &Run) -> Result<()> {
        let output = Command::new(&run.xtask)
            .args(["lab", "down", "--lab", &self.name])
            .output()
            .context("running lab down")?;
        if !output.status.success() {
            bail!(
                "lab down failed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let found = sweep::presence(self.cache.root(), &self.name)?;
        if found != Presence::Absent {
            bail!("after lab down there is still {}", self.remains()?);
        }
        self.before.require_unchanged(&self.name)
    }

    fn cgroup(&self) -> String {
        lab::spec::cgroup(self.cache.root(), &self.name)
    }

    fn remains(&self) -> Result<String> {
        let folder: PathBuf = lab::spec::folder(self.cache.root(), &self.name);
        Ok(format!(
            "processes {:?}, cgroups {}, folder {}",
            lab::cgroup::processes(&self.cgroup())?,
            lab::cgroup::exists(&self.cgroup())?,
            folder.exists()
        ))
    }
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).context("a process id")?;
    kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal}"))
}
