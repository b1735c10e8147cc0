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

/// The hidden command that tries kernel features in namespaces of its own.
pub(crate) const TRY: &str = "__lab-try";
/// What an empty cache grows to, with room for a running lab.
const DISK_NEEDED: u64 = 10 << 30;
/// Less than this and etcd or containerd fail in confusing ways.
const DISK_LEAST: u64 = 2 << 30;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// As it should be.
    Fine,
    /// The lab runs, but something cannot be proven or takes longer.
    Limits,
    /// The lab cannot run.
    Blocks,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub subject: &'static str,
    /// How much it weighs.
    pub weight: Weight,
    /// What was found.
    pub found: String,
    /// What follows from it, and what to do.
    pub advice: String,
}

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

/// `CAP_SYS_RESOURCE`, see capabilities(7).
const CAP_SYS_RESOURCE: u64 = 1 << 24;
/// `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// `CAP_NET_ADMIN`.
const CAP_NET_ADMIN: u64 = 1 << 12;

/// Reads and tries everything.
pub fn facts(cache: &Cache) -> Result<Facts> {
    let status =
        fs::read_to_string("/proc/self/status").attempt(|| "read this process's rights".to_owned())?;
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
        missing_packages: packages::missing().iter().map(|need| need.package).collect(),
        go: Program::new("go")
            .args(["env", "GOVERSION"])
            .read()
            .ok()
            .map(|text| text.trim().to_owned()),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        capabilities,
        cgroup_v1: hierarchies.len() - v2,
        cgroup_v2: v2 > 0,
        features: if root { try_features(cache)? } else { Vec::new() },
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
        let error = done.err().map(|error| match std::error::Error::source(&error) {
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
        fs::create_dir(folder.path().join(name)).attempt(|| "make a folder to try in".to_owned())?;
    }
    let at = |name: &str| folder.path().join(name).display().to_string();
    let data = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .and_then(|()| {
            mount(Some("overlay"), at("merged").as_str(), Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        })
        .and_then(|()| nix::mount::umount(at("merged").as_str()))
        .attempt(|| "mount an overlay where the cache lies".to_owned())
}

/// What the facts mean.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let finding = |subject, weight, found: String, advice: &str| Finding {
        subject,
        weight,
        found,
        advice: advice.to_owned(),
    };
    let mut findings = vec![
        if facts.root {
            finding("rights", Weight::Fine, "root".to_owned(), "")
        } else {
            finding(
                "rights",
                Weight::Blocks,
                "not root".to_owned(),
                "run as root: a lab makes namespaces, mounts and cgroups",
            )
        },
        disk(facts.disk_free),
    ];
    findings.push(match &facts.go {
        Some(version) => finding("Go", Weight::Fine, version.clone(), ""),
        None => finding(
            "Go",
            Weight::Blocks,
            "not on the PATH".to_owned(),
            "install Go 1.26.6 or newer: the cluster's parts are built with it",
        ),
    });
    findings.push(if facts.missing_packages.is_empty() {
        finding("Debian packages", Weight::Fine, "all there".to_owned(), "")
    } else {
        Finding {
            subject: "Debian packages",
            weight: Weight::Limits,
            found: format!("missing: {}", facts.missing_packages.join(", ")),
            advice: "they are installed by the first `cargo xtask e2e` or `cargo xtask lab up`"
                .to_owned(),
        }
    });
    if facts.root {
        let needed = CAP_SYS_ADMIN | CAP_NET_ADMIN;
        findings.push(if facts.capabilities & needed == needed {
            let found = if facts.capabilities & CAP_SYS_RESOURCE == 0 {
                "CAP_SYS_ADMIN and CAP_NET_ADMIN, without CAP_SYS_RESOURCE (not needed)"
            } else {
                "CAP_SYS_ADMIN and CAP_NET_ADMIN"
            };
            finding("capabilities", Weight::Fine, found.to_owned(), "")
        } else {
            finding(
                "capabilities",
                Weight::Blocks,
                "CAP_SYS_ADMIN or CAP_NET_ADMIN is missing".to_owned(),
                "run outside of a container, or in a privileged one",
            )
        });
    }
    findings.push(match (facts.cgroup_v1, facts.cgroup_v2) {
        (0, true) => finding("cgroups", Weight::Fine, "v2".to_owned(), ""),
        (0, false) => finding(
            "cgroups",
            Weight::Blocks,
            "no hierarchy is mounted".to_owned(),
            "mount cgroup2 at /sys/fs/cgroup",
        ),
        (count, true) => finding(
            "cgroups",
            Weight::Fine,
            format!("v1 ({count} hierarchies) beside v2"),
            "",
        ),
        (_, false) => finding(
            "cgroups",
            Weight::Blocks,
            "v1 alone".to_owned(),
            "mount cgroup2 too, for example at /sys/fs/cgroup/unified: Cilium attaches there",
        ),
    });
    findings.push(if facts.btf {
        finding("kernel types (BTF)", Weight::Fine, "/sys/kernel/btf/vmlinux".to_owned(), "")
    } else {
        finding(
            "kernel types (BTF)",
            Weight::Limits,
            "this kernel has none".to_owned(),
            "network policies can be proven; host-sensor rules cannot: boot a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    });
    findings.extend(facts.features.iter().map(|feature| judge_feature(feature)));
    findings
}

fn disk(free: u64) -> Finding {
    let gib = |bytes: u64| format!("{:.1} GiB free", bytes as f64 / f64::from(1 << 30));
    let (weight, advice) = if free < DISK_LEAST {
        (Weight::Blocks, "free some space, or point HOLDFAST_CACHE to a disk with 10 GiB free")
    } else if free < DISK_NEEDED {
        (Weight::Limits, "enough for a full cache, but an empty one grows to about 10 GiB")
    } else {
        (Weight::Fine, "")
    };
    Finding {
        subject: "disk",
        weight,
        found: gib(free),
        advice: advice.to_owned(),
    }
}

fn judge_feature(feature: &Feature) -> Finding {
    let (subject, weight, advice) = match feature.name.as_str() {
        "namespaces" => ("namespaces", Weight::Blocks, "run outside of a container, or in a privileged one"),
        "overlay" => (
            "overlay mounts",
            Weight::Blocks,
            "put HOLDFAST_CACHE on ext4 or xfs: containers cannot be unpacked on this file system",
        ),
        "bpf file system" => ("bpf file system", Weight::Blocks, "Cilium needs a kernel with CONFIG_BPF_SYSCALL"),
        "bridge" => ("bridge links", Weight::Blocks, "load the kernel module `bridge`"),
        "veth" => ("veth links", Weight::Blocks, "load the kernel module `veth`"),
        _ => (
            "vxlan links",
            Weight::Limits,
            "policies across two nodes cannot be proven: load the kernel module `vxlan`",
        ),
    };
    match &feature.error {
        None => Finding {
            subject,
            weight: Weight::Fine,
            found: "works".to_owned(),
            advice: String::new(),
        },
        Some(error) => Finding {
            subject,
            weight,
            found: error.clone(),
            advice: advice.to_owned(),
        },
    }
}

/// The first thing that makes a lab impossible, as an error.
pub fn refuse_if_blocked(findings: &[Finding]) -> Result<()> {
    match findings.iter().find(|finding| finding.weight == Weight::Blocks) {
        None => Ok(()),
        Some(finding) => Err(Error::Unmet {
            what: format!("a lab cannot run here: {}: {}", finding.subject, finding.found),
            hint: finding.advice.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            root: true,
            disk_free: 50 << 30,
            missing_packages: Vec::new(),
            go: Some("go1.26.8".to_owned()),
            btf: true,
            capabilities: u64::MAX,
            cgroup_v1: 0,
            cgroup_v2: true,
            features: Vec::new(),
        }
    }

    #[test]
    fn a_good_machine_has_no_complaint() {
        assert!(judge(&good()).iter().all(|finding| finding.weight == Weight::Fine));
    }

    #[test]
    fn each_fault_blocks_or_limits_and_says_what_to_do() {
        let failed = |name: &str| {
            vec![Feature {
                name: name.to_owned(),
                error: Some("not permitted".to_owned()),
            }]
        };
        let cases = [
            (Facts { root: false, ..good() }, "rights", Weight::Blocks),
            (Facts { disk_free: 1 << 30, ..good() }, "disk", Weight::Blocks),
            (Facts { disk_free: 5 << 30, ..good() }, "disk", Weight::Limits),
            (Facts { go: None, ..good() }, "Go", Weight::Blocks),
            (Facts { btf: false, ..good() }, "kernel types (BTF)", Weight::Limits),
            (Facts { capabilities: 0, ..good() }, "capabilities", Weight::Blocks),
            (Facts { cgroup_v2: false, cgroup_v1: 9, ..good() }, "cgroups", Weight::Blocks),
            (Facts { missing_packages: vec!["gcc"], ..good() }, "Debian packages", Weight::Limits),
            (Facts { features: failed("overlay"), ..good() }, "overlay mounts", Weight::Blocks),
            (Facts { features: failed("vxlan"), ..good() }, "vxlan links", Weight::Limits),
        ];
        for (facts, subject, weight) in cases {
            let findings = judge(&facts);
            let finding = findings.iter().find(|finding| finding.subject == subject).unwrap();
            assert_eq!(finding.weight, weight, "{subject}");
            assert!(!finding.advice.is_empty(), "{subject}");
            assert_eq!(refuse_if_blocked(&findings).is_err(), weight == Weight::Blocks, "{subject}");
        }
    }

    #[test]
    fn no_sys_resource_is_no_obstacle() {
        let facts = Facts { capabilities: u64::MAX & !CAP_SYS_RESOURCE, ..good() };
        assert!(refuse_if_blocked(&judge(&facts)).is_ok());
    }
}
