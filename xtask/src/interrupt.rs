//! Ctrl-C and SIGTERM: take the attached lab down, then end.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};

use crate::workspace::tell;

/// The lab that ends with this command: its cache and its name.
static ATTACHED: Mutex<Option<(PathBuf, String)>> = Mutex::new(None);

/// Names the lab that an interruption takes down.
pub(crate) fn attach(cache: PathBuf, lab: &str) {
    *ATTACHED.lock().unwrap_or_else(PoisonError::into_inner) = Some((cache, lab.to_owned()));
}

/// Handles signals from here on. Called before any other thread exists.
///
/// The lab would end without this too, since its lifeline closes with this
/// process; waiting for it means that the prompt returns when it is gone.
pub(crate) fn watch() {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        tell(&format!("\ninterrupted by {signal}\n"));
        let attached = ATTACHED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((cache, name)) = attached {
            tell(&format!("taking the lab {name} down\n"));
            if let Err(error) = lab::sweep::down(&cache, &name) {
                lab::report(&error);
            }
        }
        std::process::exit(128 + signal as i32);
    });
}
