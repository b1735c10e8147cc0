//! What a lab is made of: plain values, written to the lab's folder for its supervisor and nodes.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, KeyBuilder};
use crate::error::{Attempt as _, Error, Result};

/// The API server's port on the control-plane node.
pub const API_PORT: u16 = 6443;
/// The address of the lab's bridge, the nodes' gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 7, 1);
/// The Service address of DNS, as every cluster has it.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Where a node sees the cache: the same place in each node, wherever the cache lies outside.
pub const CACHE_INSIDE: &str = "/run/holdfast";
/// As many nodes as one bridge's addresses and a machine's patience allow.
pub const MOST_NODES: u8 = 16;

/// One lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lab {
    /// Its name, unique on the machine.
    pub name: String,
    /// The cache's root folder, as the machine sees it.
    pub cache: PathBuf,
    /// The nodes; the first carries the control plane.
    pub nodes: Vec<Node>,
    /// Folders of the built parts.
    pub parts: Folders,
}

/// One node of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Its name in Kubernetes.
    pub name: String,
    /// Its address on the lab's bridge.
    pub address: Ipv4Addr,
    /// What runs on it.
    pub role: Role,
}

/// What runs on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// etcd, the control plane, DNS, and workloads.
    ControlPlane,
    /// Workloads alone.
    Worker,
}

/// Where the lab's programs lie, as the machine sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Folders {
    /// etcd.
    pub etcd: PathBuf,
    /// containerd, its shim, ctr and runc.
    pub containerd: PathBuf,
    /// The network plugins that a node starts with.
    pub cni_plugins: PathBuf,
    /// The Kubernetes programs.
    pub kubernetes: PathBuf,
    /// CoreDNS.
    pub coredns: PathBuf,
    /// kubectl and helm.
    pub clients: PathBuf,
    /// The image store that every node starts from.
    pub store: PathBuf,
}

impl Lab {
    /// Names and numbers the nodes of a new lab.
    pub fn new(name: &str, nodes: u8, cache: &Cache, parts: Folders) -> Result<Self> {
        if nodes == 0 || nodes > MOST_NODES {
            return Err(Error::Unmet {
                what: format!("a lab has 1 to {MOST_NODES} nodes, not {nodes}"),
                hint: "give --nodes a number in that range".to_owned(),
            });
        }
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            cache: cache.root().to_owned(),
            nodes: number(nodes),
            parts,
        })
    }

    /// The folder of this lab's state.
    pub fn folder(&self) -> PathBuf {
        folder(&self.cache, &self.name)
    }

    /// The folder of one node's state.
    pub fn node_folder(&self, node: &str) -> PathBuf {
        self.folder().join("nodes").join(node)
    }

    /// The kubeconfig for use from the machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder().join("pki/admin.kubeconfig")
    }

    /// The name of this lab's cgroups.
    pub fn cgroup(&self) -> String {
        cgroup(&self.cache, &self.name)
    }

    /// The node with the control plane.
    pub fn control_plane(&self) -> &Node {
        &self.nodes[0]
    }

    /// A path under the cache as a node sees it.
    pub fn inside(&self, outside: &Path) -> PathBuf {
        match outside.strip_prefix(&self.cache) {
            Ok(rest) => Path::new(CACHE_INSIDE).join(rest),
            Err(_) => outside.to_owned(),
        }
    }

    /// Reads the specification that a supervisor or node was started with.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("lab.json");
        let text = fs::read(&path).attempt(|| "read the lab's specification".to_owned())?;
        serde_json::from_slice(&text).map_err(|error| Error::Recipe {
            path,
            problem: error.to_string(),
        })
    }
}

/// Nodes `n1`, `n2` and so on; the first carries the control plane.
fn number(nodes: u8) -> Vec<Node> {
    (0..nodes)
        .map(|index| Node {
            name: format!("n{}", index + 1),
            address: node_address(index),
            role: if index == 0 {
                Role::ControlPlane
            } else {
                Role::Worker
            },
        })
        .collect()
}

/// The address of node number `index`, counted from 0, on the lab's own bridge.
fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 7, 2 + index)
}

/// The folder of a lab's state in the cache.
pub fn folder(cache: &Path, name: &str) -> PathBuf {
    cache.join("labs").join(name)
}

/// The name of a lab's cgroups. Two caches may each have a lab of one name, and
/// neither may take the other's processes for its own.
pub fn cgroup(cache: &Path, name: &str) -> String {
    let key = KeyBuilder::default()
        .with("cache", cache.as_os_str().as_encoded_bytes())
        .finish();
    format!("{name}-{}", key.short())
}

/// A lab's name becomes a folder and a part of its cgroups' name.
pub fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 32
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-');
    if fits {
        return Ok(());
    }
    Err(Error::Unmet {
        what: format!("`{name}` cannot be a lab's name"),
        hint: "use up to 32 lower-case letters, digits and hyphens, not starting with a hyphen"
            .to_owned(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A lab that no program has to exist for.
    pub(crate) fn lab(nodes: u8) -> Lab {
        let at = |name: &str| Path::new("/cache/parts").join(name);
        Lab {
            name: "test".to_owned(),
            cache: PathBuf::from("/cache"),
            nodes: number(nodes),
            parts: Folders {
                etcd: at("etcd"),
                containerd: at("containerd"),
                cni_plugins: at("cni-plugins"),
                kubernetes: at("kubernetes"),
                coredns: at("coredns"),
                clients: at("clients"),
                store: at("store"),
            },
        }
    }

    #[test]
    fn a_node_sees_the_cache_in_one_place() {
        let lab = lab(1);
        assert_eq!(
            lab.inside(Path::new("/cache/parts/etcd/etcd")),
            Path::new("/run/holdfast/parts/etcd/etcd")
        );
        assert_eq!(lab.inside(Path::new("/bin/sh")), Path::new("/bin/sh"));
    }

    #[test]
    fn labs_of_one_name_in_two_caches_are_told_apart() {
        assert_ne!(
            cgroup(Path::new("/a"), "e2e"),
            cgroup(Path::new("/b"), "e2e")
        );
    }

    #[test]
    fn names_that_are_no_folder_are_refused() {
        for name in ["", "-a", "A", "a/b", "..", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("ci-2").is_ok());
    }
}
