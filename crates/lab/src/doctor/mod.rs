//! What this machine offers: checked by trying, before anything is started.

use std::path::Path;

use fs_err as fs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::cgroup;
use crate::error::{Attempt as _, Error, Result};
use crate::packages;
use crate::run::Program;

mod judge;

pub use judge::{Finding, Weight, judge, refuse_if_blocked};

/// The hidden command that tries kernel features in namespaces of its own.
pub(crate) const TRY: &str = "__lab-try";
/// What was read and tried on the machine, as plain values.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Whether this is root.
    pub root: bool,
    /// Free bytes where the cache lies.
    pub disk_free: u64,
    /// Debian packages that are missing.
    pub missing_packages: Vec<&'static str>,
    /// The Go version, if there is a Go.
    pub go: Option<String>,
    /// Whether the kernel carries its own type information.
    pub btf: bool,
    /// Effective capabilities, as in `/proc/self/status`.
    pub capabilities: u64,
    /// Cgroup generations that are mounted.
    pub cgroup_v1: usize,
    /// Whether the unified hierarchy is mounted.
    pub cgroup_v2: bool,
    /// Kernel features by name, with the error where one failed.
    pub features: Vec<Feature>,
}

/// A kernel feature that was tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Feature {
    /// Which one.
    pub name: String,
    /// The error, if it failed.
    pub error: Option<String>,
}

/// Reads and tries everything.
pub fn facts(cache: &Cache) -> Result<Facts> {
    let status = fs::read_to_string("/proc/self/status")
        .attempt(|| "read this process's rights".to_owned())?;
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .unwrap_or_default();
    let disk = statvfs(cache.root()).attempt(|| "measure the free space".to_owned())?;
    let hierarchies = cgroup::mounted()?;
    let v2 = hierarchies
        .iter()
        .filter(|hierarchy| hierarchy.generation == cgroup::Generation::V2)
        .count();
    let root = Uid::effective().is_root();
    Ok(Facts {
        root,
        disk_free: disk.blocks_available() * disk.fragment_size(),
        missing_packages: packages::missing()
            .iter()
            .map(|need| need.package)
            .collect(),
        go: Program::new("go")
            .args(["env", "GOVERSION"])
            .read()
            .ok()
            .map(|text| text.trim().to_owned()),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        capabilities,
        cgroup_v1: hierarchies.len() - v2,
        cgroup_v2: v2 > 0,
        features: if root {
            try_features(cache)?
        } else {
            Vec::new()
        },
    })
}

fn try_features(cache: &Cache) -> Result<Vec<Feature>> {
    let own = std::env::current_exe().attempt(|| "find this program".to_owned())?;
    let text = Program::new(own).arg(TRY).arg(cache.root()).read()?;
    serde_json::from_str(&text).map_err(|error| Error::Unmet {
        what: format!("the features of the kernel could not be tried: {error}"),
        hint: "run as root outside of a restricted container".to_owned(),
    })
}

/// Runs as [`TRY`]: prints the features as JSON. Everything that it makes ends with it.
pub(crate) fn try_all(cache: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut features = Vec::new();
    let mut add = |name: &str, done: Result<()>| {
        let error = done
            .err()
            .map(|error| match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string().replace('\n', " "),
            });
        let failed = error.is_some();
        features.push(Feature {
            name: name.to_owned(),
            error,
        });
        !failed
    };
    let spaces = unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .attempt(|| "make namespaces".to_owned());
    if add("namespaces", spaces) {
        add("overlay", try_overlay(cache));
        add("bpf file system", try_mount("bpf", "/sys/fs/bpf"));
        for (name, words) in [
            ("bridge", "link add hf-try0 type bridge"),
            ("veth", "link add hf-try1 type veth peer name hf-try2"),
            ("vxlan", "link add hf-try3 type vxlan dstport 8472 external"),
        ] {
            add(name, Program::new("ip").args(words.split(' ')).run());
        }
    }
    let text = serde_json::to_string(&features).expect("features are JSON");
    std::io::stdout()
        .write_all(text.as_bytes())
        .attempt(|| "report the kernel's features".to_owned())
}

const NONE: Option<&str> = None;

fn try_mount(kind: &str, target: &str) -> Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .and_then(|()| mount(Some(kind), target, Some(kind), MsFlags::empty(), NONE))
        .attempt(|| format!("mount {kind}"))
}

fn try_overlay(cache: &Path) -> Result<()> {
    let folder = tempfile::tempdir_in(cache).attempt(|| "make a folder to try in".to_owned())?;
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(folder.path().join(name))
            .attempt(|| "make a folder to try in".to_owned())?;
    }
    let at = |name: &str| folder.path().join(name).display().to_string();
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower"),
        at("upper"),
        at("work")
    );
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .and_then(|()| {
            mount(
                Some("overlay"),
                at("merged").as_str(),
                Some("overlay"),
                MsFlags::empty(),
                Some(data.as_str()),
            )
        })
        .and_then(|()| nix::mount::umount(at("merged").as_str()))
        .attempt(|| "mount an overlay where the cache lies".to_owned())
}
