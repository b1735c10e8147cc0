//! Clusters for Holdfast's tests: built from source, packed, started and taken away.
//!
//! `prepare` builds and fetches, `start` brings a lab up, `sweep` takes it away
//! and removes what a killed one left. Everything that runs is a child of one
//! supervisor process, in namespaces and cgroups of its own.

pub mod access;
mod addons;
pub mod cache;
pub mod cgroup;
mod dns;
pub mod doctor;
pub mod error;
mod fabric;
mod files;
pub mod images;
pub mod node;
pub mod packages;
pub mod parts;
mod pki;
pub mod progress;
pub mod run;
pub mod spec;
pub mod supervisor;
pub mod sweep;
pub mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use error::{Error, Result};

/// Runs one of the hidden commands by which a lab starts its own processes.
///
/// A program that uses this crate calls this first, with its arguments; `None`
/// means that they are none of the lab's.
pub fn dispatch(args: &[String]) -> Option<ExitCode> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        [supervisor::COMMAND, folder] => supervisor::run(Path::new(folder)),
        [node::OUTER, folder, name] => node::run_outer(Path::new(folder), name),
        [node::INNER, folder, name] => node::run_inner(Path::new(folder), name),
        [images::store::FILL, containerd, folder, ref archives @ ..] => images::store::fill(
            Path::new(containerd),
            Path::new(folder),
            &archives.iter().map(PathBuf::from).collect::<Vec<_>>(),
        ),
        [dns::COMMAND] => dns::ask().map(drop),
        [doctor::TRY, cache] => doctor::try_all(Path::new(cache)),
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    })
}

/// Prints an error with its causes and its hint to standard error.
pub fn report(error: &Error) {
    use std::fmt::Write as _;
    use std::io::Write as _;
    let mut text = format!("error: {error}\n");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let _ = writeln!(text, "  because: {cause}");
        source = cause.source();
    }
    if let Some(hint) = error.hint() {
        let _ = writeln!(text, "hint: {hint}");
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}
