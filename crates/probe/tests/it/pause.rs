//! The sandbox process buries the children that it inherits.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sessions::Running;

/// Programs started by a shell that then becomes `pause` are its children, as orphans are those of process 1:
/// one that has ended before `pause` can hear of it, and two that end at nearly the same moment.
#[test]
fn children_that_it_did_not_start_leave_no_zombies() {
    let script =
        "true & echo $!; sleep 0.3 & echo $!; sleep 0.3 & echo $!; sleep 0.1; exec \"$0\" pause";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, env!("CARGO_BIN_EXE_holdfast-probe")])
        .stdout(Stdio::piped());
    let mut pause = Running(shell.spawn().unwrap());
    let output = BufReader::new(pause.0.stdout.take().unwrap());
    let children: Vec<PathBuf> = output
        .lines()
        .take(3)
        .map(|pid| Path::new("/proc").join(pid.unwrap()))
        .collect();
    assert_eq!(children.len(), 3);

    let deadline = Instant::now() + Duration::from_secs(10);
    while let Some(child) = children.iter().find(|child| child.exists()) {
        assert!(
            Instant::now() < deadline,
            "{} is still there",
            child.display()
        );
        thread::sleep(Duration::from_millis(20));
    }
    let pid = Pid::from_raw(i32::try_from(pause.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(pause.0.wait().unwrap().success());
}
