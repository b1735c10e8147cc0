//! What the facts about a machine mean for a lab: pure, so that machines that nobody has can be tested.

use serde::Serialize;

use super::{Facts, Feature};
use crate::error::{Error, Result};

/// What an empty cache grows to, with room for a running lab.
const DISK_NEEDED: u64 = 10 << 30;
/// Less than this and etcd or containerd fail in confusing ways.
const DISK_LEAST: u64 = 2 << 30;

/// `CAP_SYS_RESOURCE`, see capabilities(7).
const CAP_SYS_RESOURCE: u64 = 1 << 24;
/// `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// `CAP_NET_ADMIN`.
const CAP_NET_ADMIN: u64 = 1 << 12;

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
    findings.extend(facts.features.iter().map(judge_feature));
    findings
}

fn disk(free: u64) -> Finding {
    let gib = |bytes: u64| {
        format!(
            "{}.{} GiB free",
            bytes >> 30,
            (bytes >> 20) % 1024 * 10 / 1024
        )
    };
    let (weight, advice) = if free < DISK_LEAST {
        (
            Weight::Blocks,
            "free some space, or point HOLDFAST_CACHE to a disk with 10 GiB free",
        )
    } else if free < DISK_NEEDED {
        (
            Weight::Limits,
            "enough for a full cache, but an empty one grows to about 10 GiB",
        )
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
        "namespaces" => (
            "namespaces",
            Weight::Blocks,
            "run outside of a container, or in a privileged one",
        ),
        "overlay" => (
            "overlay mounts",
            Weight::Blocks,
            "put HOLDFAST_CACHE on ext4 or xfs: containers cannot be unpacked on this file system",
        ),
        "bpf file system" => (
            "bpf file system",
            Weight::Blocks,
            "Cilium needs a kernel with CONFIG_BPF_SYSCALL",
        ),
        "bridge" => (
            "bridge links",
            Weight::Blocks,
            "load the kernel module `bridge`",
        ),
        "veth" => (
            "veth links",
            Weight::Blocks,
            "load the kernel module `veth`",
        ),
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
    match findings
        .iter()
        .find(|finding| finding.weight == Weight::Blocks)
    {
        None => Ok(()),
        Some(finding) => Err(Error::Unmet {
            what: format!(
                "a lab cannot run here: {}: {}",
                finding.subject, finding.found
            ),
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
        assert!(
            judge(&good())
                .iter()
                .all(|finding| finding.weight == Weight::Fine)
        );
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
            (
                Facts {
                    root: false,
                    ..good()
                },
                "rights",
                Weight::Blocks,
            ),
            (
                Facts {
                    disk_free: 1 << 30,
                    ..good()
                },
                "disk",
                Weight::Blocks,
            ),
            (
                Facts {
                    disk_free: 5 << 30,
                    ..good()
                },
                "disk",
                Weight::Limits,
            ),
            (Facts { go: None, ..good() }, "Go", Weight::Blocks),
            (
                Facts {
                    btf: false,
                    ..good()
                },
                "kernel types (BTF)",
                Weight::Limits,
            ),
            (
                Facts {
                    capabilities: 0,
                    ..good()
                },
                "capabilities",
                Weight::Blocks,
            ),
            (
                Facts {
                    cgroup_v2: false,
                    cgroup_v1: 9,
                    ..good()
                },
                "cgroups",
                Weight::Blocks,
            ),
            (
                Facts {
                    missing_packages: vec!["gcc"],
                    ..good()
                },
                "Debian packages",
                Weight::Limits,
            ),
            (
                Facts {
                    features: failed("overlay"),
                    ..good()
                },
                "overlay mounts",
                Weight::Blocks,
            ),
            (
                Facts {
                    features: failed("vxlan"),
                    ..good()
                },
                "vxlan links",
                Weight::Limits,
            ),
        ];
        for (facts, subject, weight) in cases {
            let findings = judge(&facts);
            let finding = findings
                .iter()
                .find(|finding| finding.subject == subject)
                .unwrap();
            assert_eq!(finding.weight, weight, "{subject}");
            assert!(!finding.advice.is_empty(), "{subject}");
            assert_eq!(
                refuse_if_blocked(&findings).is_err(),
                weight == Weight::Blocks,
                "{subject}"
            );
        }
    }

    #[test]
    fn no_sys_resource_is_no_obstacle() {
        let facts = Facts {
            capabilities: !CAP_SYS_RESOURCE,
            ..good()
        };
        assert!(refuse_if_blocked(&judge(&facts)).is_ok());
    }
}
