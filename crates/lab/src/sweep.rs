//! Finding and removing what a killed lab left: processes, cgroups, folders.

use std::path::Path;
use std::time::{Duration, Instant};

use fs_err as fs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::error::{Attempt as _, Error, Result};
use crate::spec::{self, folder};
use crate::supervisor::State;

/// How long the kernel may take to let go of a cgroup or a folder.
const DEADLINE: Duration = Duration::from_secs(10);

/// What there is of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// Nothing at all.
    Absent,
    /// Its supervisor runs.
    Running,
    /// Its supervisor is gone; something is left.
    Left,
}

/// Whether a lab runs, is gone, or left something behind.
pub fn presence(cache: &Path, name: &str) -> Result<Presence> {
    let folder = folder(cache, name);
    if State::load(&folder).is_some_and(|state| state.is_alive()) {
        return Ok(Presence::Running);
    }
    if folder.exists() || cgroup::exists(&spec::cgroup(cache, name))? {
        return Ok(Presence::Left);
    }
    Ok(Presence::Absent)
}

/// Every lab of this cache that there is anything of. The folder goes last, so
/// a lab without a folder has left nothing else either.
pub fn all(cache: &Path) -> Result<Vec<(String, Presence)>> {
    let mut names = Vec::new();
    if let Ok(listing) = fs::read_dir(cache.join("labs")) {
        names.extend(
            listing
                .filter_map(std::result::Result::ok)
                .map(|entry| entry.file_name().to_string_lossy().into_owned()),
        );
    }
    names.sort_unstable();
    names
        .into_iter()
        .map(|name| Ok((name.clone(), presence(cache, &name)?)))
        .collect()
}

/// Ends a lab, whatever state it is in. Returns what there was of it.
pub fn down(cache: &Path, name: &str) -> Result<Presence> {
    let found = presence(cache, name)?;
    match found {
        Presence::Absent => {}
        Presence::Left => remove_remains(cache, name)?,
        Presence::Running => {
            let state = State::load(&folder(cache, name));
            if let Some(state) = state.filter(State::is_alive) {
                ask_to_end(&state)?;
            }
            // Nothing is left of an orderly end; this covers a supervisor that was killed meanwhile.
            if presence(cache, name)? != Presence::Absent {
                remove_remains(cache, name)?;
            }
        }
    }
    Ok(found)
}

fn ask_to_end(state: &State) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(state.pid).unwrap_or_default());
    kill(pid, Signal::SIGTERM).attempt(|| "ask the lab's supervisor to end".to_owned())?;
    let started = Instant::now();
    while state.is_alive() {
        if started.elapsed() > 2 * DEADLINE {
            kill(pid, Signal::SIGKILL).attempt(|| "end the lab's supervisor".to_owned())?;
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Removes the processes, cgroups and folder of a lab without a supervisor.
pub fn remove_remains(cache: &Path, name: &str) -> Result<()> {
    let cgroup = spec::cgroup(cache, name);
    let started = Instant::now();
    loop {
        let running = cgroup::end_processes(&cgroup)?;
        // A cgroup stays busy for a moment after its last process.
        let stuck = cgroup::remove(&cgroup)?;
        match stuck {
            None => break,
            Some(path) if started.elapsed() > DEADLINE => {
                return Err(Error::Timeout {
                    what: format!("the removal of {}", path.display()),
                    waited: started.elapsed(),
                    last: format!("{running} processes were still in it"),
                });
            }
            Some(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    let folder = folder(cache, name);
    if folder.exists() {
        fs::remove_dir_all(&folder).attempt(|| "remove the lab's folder".to_owned())?;
    }
    Ok(())
}
