//! However a lab ends, nothing is left behind: no process, namespace, link, route, mount, cgroup or folder.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::Result;
use e2e::Run;
use e2e::endings::{self, AttachedLab, Before};
use nix::sys::signal::Signal;

#[test]
fn an_ordinary_end_leaves_nothing() -> Result<()> {
    let run = Run::from_environment()?;
    let before = Before::look()?;
    let up = endings::lab_command(&run, &["up", "--lab", "end-down"])?;
    assert!(up.status.success(), "{up:?}");
    let down = endings::lab_command(&run, &["down", "--lab", "end-down"])?;
    assert!(down.status.success(), "{down:?}");
    before.wait_until_gone("end-down")
}

#[test]
fn a_failed_start_leaves_nothing_and_says_why() -> Result<()> {
    let run = Run::from_environment()?;
    let before = Before::look()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let up = endings::lab_command(&run, &["up", "--lab", "end-busy", "--api-port", &port])?;
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(!up.status.success(), "{said}");
    assert!(
        said.contains(&format!("port {port} of 127.0.0.1 is in use")),
        "{said}"
    );
    assert!(said.contains("hint: "), "{said}");
    before.wait_until_gone("end-busy")
}

#[test]
fn a_command_killed_while_the_lab_starts_leaves_nothing() -> Result<()> {
    let run = Run::from_environment()?;
    let before = Before::look()?;
    // The first falls into the making of keys and namespaces, the others into the start of programs.
    for milliseconds in [0, 30, 200, 1000] {
        let moment = Duration::from_millis(milliseconds);
        endings::kill_while_starting(&run, "end-early", moment)?;
        before.wait_until_gone_or_swept(&run, "end-early")?;
    }
    Ok(())
}

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
