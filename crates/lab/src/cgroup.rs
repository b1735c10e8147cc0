//! The cgroups of a lab's nodes, on cgroup v1, v2 and the mix of both.
//!
//! A node enters a cgroup of its own in every hierarchy before it unshares its
//! cgroup namespace. Without that, Cilium's socket load balancer would attach
//! to the machine's root cgroup and hook every `connect()` on it.

use std::path::{Path, PathBuf};

use fs_err as fs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Attempt as _, Result};

/// The folder under which every lab's cgroups lie.
const TOP: &str = "holdfast";
/// The leaf below a node's cgroup that holds the node's own programs.
const LEAF: &str = "lab.init";

/// The two generations of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// One hierarchy for each group of controllers.
    V1,
    /// The unified hierarchy.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Which generation it is of.
    pub generation: Generation,
    /// The mount option that selects it again: `cpu,cpuacct` or `none,name=systemd`; empty on v2.
    pub option: String,
}

/// The hierarchies of a `/proc/self/mountinfo` text.
pub fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        // Format: proc(5). The optional fields end at a lone hyphen.
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount_point) = before.split(' ').nth(4) else {
            continue;
        };
        let mut after = after.split(' ');
        let generation = match after.next() {
            Some("cgroup") => Generation::V1,
            Some("cgroup2") => Generation::V2,
            _ => continue,
        };
        let option = match generation {
            Generation::V1 => controllers(after.nth(1).unwrap_or_default()),
            Generation::V2 => String::new(),
        };
        let hierarchy = Hierarchy {
            mount_point: PathBuf::from(mount_point),
            generation,
            option,
        };
        if !found
            .iter()
            .any(|known| known.option == hierarchy.option && known.generation == generation)
        {
            found.push(hierarchy);
        }
    }
    found
}

/// The controllers among a v1 hierarchy's super options.
fn controllers(options: &str) -> String {
    let names: Vec<&str> = options
        .split(',')
        .filter(|option| !["rw", "ro", "relatime", "xattr", "clone_children"].contains(option))
        .filter(|option| !option.starts_with("release_agent="))
        .collect();
    let names = names.join(",");
    if names.starts_with("name=") {
        format!("none,{names}")
    } else {
        names
    }
}

/// The hierarchies of this process's mount namespace.
pub fn mounted() -> Result<Vec<Hierarchy>> {
    let text =
        fs::read_to_string("/proc/self/mountinfo").attempt(|| "list the mounts".to_owned())?;
    Ok(hierarchies(&text))
}

fn lab_folder(hierarchy: &Hierarchy, lab: &str) -> PathBuf {
    hierarchy.mount_point.join(TOP).join(lab)
}

/// Moves this process into a cgroup of the node's own in each hierarchy.
pub fn enter(lab: &str, node: &str) -> Result<()> {
    for hierarchy in mounted()? {
        let folder = lab_folder(&hierarchy, lab).join(node);
        let mut path = hierarchy.mount_point.clone();
        for step in [TOP, lab, node] {
            let parent = path.clone();
            path = path.join(step);
            match hierarchy.generation {
                Generation::V1 => {
                    make(&path)?;
                    copy_down(&parent, &path)?;
                }
                Generation::V2 => {
                    pass_controllers(&parent)?;
                    make(&path)?;
                }
            }
        }
        fs::write(folder.join("cgroup.procs"), "0")
            .attempt(|| "enter the node's cgroup".to_owned())?;
    }
    Ok(())
}

/// On v2 a cgroup that has processes cannot pass controllers to its children. This process
/// moves to a leaf below the node's cgroup, which is the root of its namespace by now and
/// is left to the kubelet.
pub fn move_to_leaf(lab: &str, node: &str) -> Result<()> {
    for hierarchy in mounted()? {
        let folder = lab_folder(&hierarchy, lab).join(node);
        let controllers = std::fs::read_to_string(folder.join("cgroup.controllers"));
        if controllers.is_ok_and(|list| !list.trim().is_empty()) {
            let leaf = folder.join(LEAF);
            make(&leaf)?;
            fs::write(leaf.join("cgroup.procs"), "0")
                .attempt(|| "enter the node's own cgroup".to_owned())?;
        }
    }
    Ok(())
}

fn make(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir(path).attempt(|| "make a cgroup".to_owned())
}

/// A new v1 cpuset is empty and takes no process until it is filled.
fn copy_down(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !child.join(file).exists() {
            continue;
        }
        let value = fs::read_to_string(parent.join(file))
            .attempt(|| "read the parent's cpuset".to_owned())?;
        fs::write(child.join(file), value).attempt(|| "fill a cpuset".to_owned())?;
    }
    Ok(())
}

/// Lets the children of a v2 cgroup use every controller that it has itself.
pub fn pass_controllers(folder: &Path) -> Result<()> {
    let have = fs::read_to_string(folder.join("cgroup.controllers"))
        .attempt(|| "read a cgroup's controllers".to_owned())?;
    let passed = fs::read_to_string(folder.join("cgroup.subtree_control"))
        .attempt(|| "read a cgroup's controllers".to_owned())?;
    for controller in have.split_whitespace() {
        if !passed.split_whitespace().any(|known| known == controller) {
            fs::write(
                folder.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )
            .attempt(|| format!("pass the {controller} controller down"))?;
        }
    }
    Ok(())
}

/// The processes in the cgroups of a lab. Only that lab's nodes ever put any there.
pub fn processes(lab: &str) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for hierarchy in mounted()? {
        collect(&lab_folder(&hierarchy, lab), &mut pids);
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn collect(folder: &Path, pids: &mut Vec<i32>) {
    // A cgroup can vanish while it is read: its processes are gone then.
    if let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for child in children(folder) {
        collect(&child, pids);
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(folder) else {
        return Vec::new();
    };
    listing
        .filter_map(std::result::Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The memory that a lab cannot do without, in bytes: usage less the file cache
/// that the kernel would drop first, as the kubelet counts it. `None` without a memory controller.
pub fn working_set(lab: &str) -> Result<Option<u64>> {
    for hierarchy in mounted()? {
        let folder = lab_folder(&hierarchy, lab);
        let (usage, inactive) = match hierarchy.generation {
            Generation::V1 => ("memory.usage_in_bytes", "total_inactive_file "),
            Generation::V2 => ("memory.current", "inactive_file "),
        };
        let Ok(usage) = std::fs::read_to_string(folder.join(usage)) else {
            continue;
        };
        let statistics = fs::read_to_string(folder.join("memory.stat"))
            .attempt(|| "read the lab's memory use".to_owned())?;
        let inactive = statistics
            .lines()
            .find_map(|line| line.strip_prefix(inactive)?.parse::<u64>().ok())
            .unwrap_or_default();
        let usage: u64 = usage.trim().parse().unwrap_or_default();
        return Ok(Some(usage.saturating_sub(inactive)));
    }
    Ok(None)
}

/// Ends by id whatever still runs in a lab's cgroups.
pub fn end_processes(lab: &str) -> Result<usize> {
    let pids = processes(lab)?;
    for pid in &pids {
        // It may have ended by itself since it was listed.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    Ok(pids.len())
}

/// Removes the empty cgroups of a lab. Returns the first folder that could not be removed.
pub fn remove(lab: &str) -> Result<Option<PathBuf>> {
    let mut stuck = None;
    for hierarchy in mounted()? {
        let folder = lab_folder(&hierarchy, lab);
        if let Some(path) = remove_tree(&folder) {
            stuck = stuck.or(Some(path));
        }
        // The common folder goes with the last lab; another lab's folder keeps it.
        let _ = std::fs::remove_dir(hierarchy.mount_point.join(TOP));
    }
    Ok(stuck)
}

fn remove_tree(folder: &Path) -> Option<PathBuf> {
    let mut stuck = None;
    for child in children(folder) {
        stuck = stuck.or(remove_tree(&child));
    }
    match std::fs::remove_dir(folder) {
        Ok(()) => stuck,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => stuck,
        Err(_) => stuck.or_else(|| Some(folder.to_owned())),
    }
}

/// Whether a lab has cgroups, with processes in them or not.
pub fn exists(lab: &str) -> Result<bool> {
    Ok(mounted()?
        .iter()
        .any(|hierarchy| lab_folder(hierarchy, lab).exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_of_both_generations_is_read() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let found: Vec<_> = hierarchies(text)
            .into_iter()
            .map(|hierarchy| (hierarchy.generation, hierarchy.option))
            .collect();
        assert_eq!(
            found,
            [
                (Generation::V1, "cpu,cpuacct".to_owned()),
                (Generation::V1, "none,name=systemd".to_owned()),
                (Generation::V2, String::new()),
            ]
        );
    }

    #[test]
    fn the_unified_hierarchy_alone_is_read() {
        let text =
            "25 22 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            hierarchies(text),
            [Hierarchy {
                mount_point: PathBuf::from("/sys/fs/cgroup"),
                generation: Generation::V2,
                option: String::new(),
            }]
        );
    }

    #[test]
    fn a_hierarchy_mounted_twice_counts_once() {
        let text = "\
1 0 0:1 / /a rw - cgroup cgroup rw,cpu
2 0 0:1 / /b rw - cgroup cgroup rw,cpu
";
        assert_eq!(hierarchies(text).len(), 1);
    }
}
