//! Ctrl-C and SIGTERM: take the attached lab down, then end.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use crate::workspace::tell;

/// The lab that ends with this command: its cache and its name.
static ATTACHED: Mutex<Option<(PathBuf, String)>> = Mutex::new(None);

/// Names the lab that an interruption takes down.
pub(crate) fn attach(cache: PathBuf, lab: &str) {
    *ATTACHED.lock().unwrap_or_else(PoisonError::into_inner) = Some((cache, lab.to_owned()));
}

/// Leaves Ctrl-C to the program that has the terminal: a shell on a node.
///
/// Handled and dropped in this process; a program starts with the default again.
pub(crate) fn leave_to_child() {
    if let Ok(mut signals) = Signals::new([SIGINT]) {
        std::thread::spawn(move || signals.forever().for_each(drop));
    }
}

/// Handles signals from here on.
///
/// The lab would end without this too, since its lifeline closes with this
/// process; waiting for it means that the prompt returns when it is gone.
pub(crate) fn watch() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else {
        return;
    };
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        let name = signal_name(signal).unwrap_or("a signal");
        tell(&format!("\ninterrupted by {name}\n"));
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
        std::process::exit(128 + signal);
    });
}
