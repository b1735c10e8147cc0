//! The node's view of the file system: the machine's own root, with everything
//! that a chart or the kubelet writes to replaced by folders of the node.

use std::os::fd::AsRawFd as _;
use std::path::Path;

use fs_err as fs;
use nix::mount::{MsFlags, mount};

use super::components::START_NETWORK;
use crate::cgroup::{self, Generation, Hierarchy};
use crate::error::{Attempt as _, Result};
use crate::spec::{CACHE_INSIDE, Lab, Node};

const NONE: Option<&str> = None;

/// Builds the node's file system. Called once, by process 1 in its own mount namespace.
pub(super) fn build(lab: &Lab, node: &Node) -> Result<()> {
    // Read while /proc and /sys are still the machine's.
    let hierarchies = cgroup::mounted()?;
    set_propagation("/", MsFlags::MS_PRIVATE)?;
    // Held open, because the folder may lie under a path that is covered below.
    let cache = fs::File::open(&lab.cache).attempt(|| "open the cache".to_owned())?;

    mount_kind("proc", "proc", "/proc", NONE)?;
    mount_kind("tmpfs", "tmpfs", "/run", Some("mode=755"))?;
    mount_kind("tmpfs", "tmpfs", "/tmp", Some("mode=1777"))?;
    make_dir(Path::new(CACHE_INSIDE))?;
    bind(
        Path::new(&format!("/proc/self/fd/{}", cache.as_raw_fd())),
        Path::new(CACHE_INSIDE),
    )?;

    let own = lab.inside(&lab.node_folder(&node.name));
    cover_folders(&own)?;
    // Every pod on the node's network gets a copy of this file.
    let hosts = format!("127.0.0.1 localhost\n{} {}\n", node.address, node.name);
    fs::write("/etc/hosts", hosts).attempt(|| "write the node's own hosts file".to_owned())?;
    add_start_network(lab)?;
    add_store(lab, &own)?;

    mount_kind("sysfs", "sysfs", "/sys", NONE)?;
    // Pinned BPF objects live in the node's own file system and go with it.
    mount_kind("bpf", "bpf", "/sys/fs/bpf", Some("mode=700"))?;
    mount_cgroups(&hierarchies)?;
    set_propagation("/", MsFlags::MS_SHARED)
}

/// `/var` and `/opt` become empty folders of the node; `/etc` keeps its content under a layer of the node's own.
fn cover_folders(own: &Path) -> Result<()> {
    for name in [
        "opt/cni/bin",
        "var/lib/kubelet",
        "var/log",
        "var/tmp",
        "etc-upper",
        "etc-work",
    ] {
        make_dir(&own.join(name))?;
    }
    std::os::unix::fs::symlink("/run", own.join("var/run"))
        .attempt(|| "link the node's /var/run".to_owned())?;
    bind(&own.join("opt"), Path::new("/opt"))?;
    bind(&own.join("var"), Path::new("/var"))?;
    let layers = format!(
        "lowerdir=/etc,upperdir={0}/etc-upper,workdir={0}/etc-work",
        own.display()
    );
    mount_kind("overlay", "overlay", "/etc", Some(&layers))
}

/// The network that the node starts with. The plugins are copied, because an
/// installed CNI may write over them.
fn add_start_network(lab: &Lab) -> Result<()> {
    for plugin in ["bridge", "host-local", "loopback"] {
        let from = lab.inside(&lab.parts.cni_plugins).join(plugin);
        fs::copy(from, Path::new("/opt/cni/bin").join(plugin))
            .attempt(|| format!("give the node the network plugin {plugin}"))?;
    }
    make_dir(Path::new("/etc/cni/net.d"))?;
    fs::write("/etc/cni/net.d/99-lab.conflist", START_NETWORK)
        .attempt(|| "write the node's first network".to_owned())
}

/// Gives the node's containerd the images of the store: its databases copied,
/// its layers mounted read-only, so that no node can change what others start from.
fn add_store(lab: &Lab, own: &Path) -> Result<()> {
    let store = lab.inside(&lab.parts.store).join("root");
    let target = own.join("containerd");
    let snapshots = Path::new(crate::images::store::SNAPSHOTS);
    for file in crate::images::store::DATABASES {
        let to = target.join(file);
        make_dir(to.parent().unwrap_or(&target))?;
        fs::copy(store.join(file), to).attempt(|| "copy the image store's database".to_owned())?;
    }
    let blobs = Path::new(crate::images::store::BLOBS);
    make_dir(&target.join(blobs))?;
    for entry in fs::read_dir(store.join(blobs)).attempt(|| "list the image store".to_owned())? {
        let entry = entry.attempt(|| "list the image store".to_owned())?;
        fs::hard_link(entry.path(), target.join(blobs).join(entry.file_name()))
            .attempt(|| "link a blob of the image store".to_owned())?;
    }
    for entry in
        fs::read_dir(store.join(snapshots)).attempt(|| "list the image store".to_owned())?
    {
        let entry = entry.attempt(|| "list the image store".to_owned())?;
        let to = target.join(snapshots).join(entry.file_name());
        make_dir(&to)?;
        bind(&entry.path(), &to)?;
        mount(
            NONE,
            &to,
            NONE,
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            NONE,
        )
        .attempt(|| format!("protect {}", to.display()))?;
    }
    Ok(())
}

fn mount_cgroups(hierarchies: &[Hierarchy]) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    if let [only] = hierarchies
        && only.generation == Generation::V2
    {
        return mount_kind("cgroup2", "cgroup2", "/sys/fs/cgroup", NONE);
    }
    mount_kind("tmpfs", "tmpfs", "/sys/fs/cgroup", Some("mode=755"))?;
    for hierarchy in hierarchies {
        let name = hierarchy
            .mount_point
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let to = top.join(&name);
        make_dir(&to)?;
        let to = to.to_string_lossy();
        match hierarchy.generation {
            Generation::V1 => mount_kind("cgroup", "cgroup", &to, Some(&hierarchy.option))?,
            Generation::V2 => mount_kind("cgroup2", "cgroup2", &to, NONE)?,
        }
        // A hierarchy of several controllers is also looked for under each one's name.
        for alias in name.split(',').filter(|alias| *alias != name) {
            std::os::unix::fs::symlink(&name, top.join(alias))
                .attempt(|| format!("link the {alias} hierarchy"))?;
        }
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).attempt(|| "make a folder of the node".to_owned())
}

fn mount_kind(source: &str, kind: &str, target: &str, data: Option<&str>) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), data)
        .attempt(|| format!("mount {kind} at the node's {target}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(
        Some(from),
        to,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
    .attempt(|| format!("mount {} at the node's {}", from.display(), to.display()))
}

fn set_propagation(target: &str, kind: MsFlags) -> Result<()> {
    mount(NONE, target, NONE, MsFlags::MS_REC | kind, NONE)
        .attempt(|| format!("set the propagation of the node's {target}"))
}
