//! One node: from the cgroup that it enters to the programs that run in it.
//!
//! A node is two processes. The outer one enters the node's cgroups, unshares
//! the namespaces and waits. The inner one is process 1 of the node: it builds
//! the node's file system, starts the components, restarts and reaps them.
//!
//! Both end with the *lifeline*: the inner one reads its standard input, a pipe
//! whose other end only the supervisor holds. When the supervisor ends, however
//! it ends, the pipe closes, process 1 exits, and the kernel ends every other
//! process of the node; network, mounts and BPF programs go with them.

pub mod components;
mod init;
mod mounts;

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Stdio;

use nix::sched::{CloneFlags, unshare};

use crate::cgroup;
use crate::error::{Attempt as _, Error, Result};
use crate::spec::Lab;

pub use init::{ComponentState, run as run_inner};

/// The hidden command of the outer process.
pub const OUTER: &str = "__lab-node";
/// The hidden command of process 1.
pub const INNER: &str = "__lab-init";

/// Runs as the outer process of a node until the node ends.
///
/// Prints the id of process 1, as the machine sees it, on standard output.
pub fn run_outer(folder: &Path, name: &str) -> Result<()> {
    let lab = Lab::load(folder)?;
    cgroup::enter(&lab.cgroup(), name)?;
    unshare(
        CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS,
    )
    .attempt(|| "make the node's namespaces".to_owned())?;
    cgroup::move_to_leaf(&lab.cgroup(), name)?;
    let lifeline = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .attempt(|| "pass the lifeline on".to_owned())?;
    let mut inner = std::process::Command::new("/proc/self/exe")
        .arg(INNER)
        .arg(folder)
        .arg(name)
        .stdin(Stdio::from(lifeline))
        .stdout(Stdio::null())
        .spawn()
        .attempt(|| "start the node's first process".to_owned())?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", inner.id())
        .and_then(|()| out.flush())
        .attempt(|| "report the node's first process".to_owned())?;
    let status = inner
        .wait()
        .attempt(|| "wait for the node's first process".to_owned())?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("node {name}"),
        status: status.to_string(),
        tail: String::new(),
    })
}
