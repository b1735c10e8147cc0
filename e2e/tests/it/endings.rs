//! However a lab ends, nothing is left behind: no process, namespace, link, route, mount, cgroup or folder.

use anyhow::Result;
use e2e::Run;
use e2e::endings::AttachedLab;
use nix::sys::signal::Signal;

#[test]
fn ctrl_c_leaves_nothing() -> Result<()> {
    let run = Run::from_environment()?;
    let lab = AttachedLab::start(&run, "end-int")?;
    lab.signal_command(Signal::SIGINT)?;
    lab.wait_until_gone()
}

#[test]
fn sigterm_leaves_nothing() -> Result<()> {
    let run = Run::from_environment()?;
    let lab = AttachedLab::start(&run, "end-term")?;
    lab.signal_command(Signal::SIGTERM)?;
    lab.wait_until_gone()
}

/// A panic or an abort is this too: the command is gone without having done anything.
#[test]
fn a_killed_command_leaves_nothing() -> Result<()> {
    let run = Run::from_environment()?;
    let lab = AttachedLab::start(&run, "end-kill")?;
    lab.signal_command(Signal::SIGKILL)?;
    lab.wait_until_gone()
}

#[test]
fn a_panicking_command_leaves_nothing() -> Result<()> {
    let run = Run::from_environment()?;
    let lab = AttachedLab::start(&run, "end-abort")?;
    // What a panic under `panic = "abort"` does.
    lab.signal_command(Signal::SIGABRT)?;
    lab.wait_until_gone()
}

#[test]
fn a_dead_node_ends_the_lab() -> Result<()> {
    let run = Run::from_environment()?;
    let lab = AttachedLab::start(&run, "end-node")?;
    lab.kill_node("n1")?;
    lab.wait_until_gone()
}

#[test]
fn a_killed_supervisor_leaves_no_process_and_is_swept_by_down() -> Result<()> {
    let run = Run::from_environment()?;
    let mut lab = AttachedLab::start(&run, "end-super")?;
    lab.signal_supervisor(Signal::SIGKILL)?;
    lab.wait_until_killed()?;
    lab.sweep(&run)
}

#[test]
fn a_killed_supervisor_is_swept_by_the_next_start() -> Result<()> {
    let run = Run::from_environment()?;
    let mut lab = AttachedLab::start(&run, "end-again")?;
    lab.signal_supervisor(Signal::SIGKILL)?;
    lab.wait_until_killed()?;
    let again = AttachedLab::start(&run, "end-again")?;
    again.signal_command(Signal::SIGTERM)?;
    again.wait_until_gone()
}
