//! What can go wrong in the lab, said in terms of what was being attempted.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One failure of the lab. `Display` does not repeat the source; print the chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed. `fs-err` already names the path in its source.
    #[error("cannot {attempted}")]
    Io {
        /// What was being attempted, as a verb phrase.
        attempted: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A system call on namespaces, mounts or signals failed.
    #[error("cannot {attempted}")]
    System {
        /// What was being attempted, as a verb phrase.
        attempted: String,
        /// The cause.
        #[source]
        source: nix::Error,
    },
    /// A program ran and did not succeed.
    #[error("`{command}` failed ({status}){}", tail_of(.tail))]
    Command {
        /// The command line; never holds a secret.
        command: String,
        /// Its exit status in words.
        status: String,
        /// The end of its error output.
        tail: String,
    },
    /// A committed recipe or pin file is wrong.
    #[error("{path}: {problem}")]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The machine lacks something that the lab needs.
    #[error("{what}")]
    Unmet {
        /// What is missing, as a statement.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A condition did not come true in time.
    #[error("gave up on {what} after {}s; last status: {last}", .waited.as_secs())]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// What was seen last.
        last: String,
    },
    /// A key or certificate could not be made.
    #[error("cannot make the certificate of {name}")]
    Certificate {
        /// Whose certificate.
        name: String,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
}

fn tail_of(tail: &str) -> String {
    let tail = tail.trim_end();
    if tail.is_empty() {
        String::new()
    } else {
        format!(":\n{}", indent(tail))
    }
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

impl Error {
    /// The next step for the user, when there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unmet { hint, .. } => Some(hint.clone()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Some(
                "free some space, or point HOLDFAST_CACHE to a disk with 10 GiB free".to_owned(),
            ),
            Self::Command { tail, .. } => hint_for_output(tail),
            _ => None,
        }
    }
}

/// Recognises the failures of package clients that a user can act on.
fn hint_for_output(tail: &str) -> Option<String> {
    let tail = tail.to_lowercase();
    let any = |needles: &[&str]| needles.iter().any(|needle| tail.contains(needle));
    if any(&["no space left on device"]) {
        Some("free some space, or point HOLDFAST_CACHE to a disk with 10 GiB free".to_owned())
    } else if any(&[
        "no such host",
        "could not resolve",
        "temporary failure resolving",
        "temporary failure in name resolution",
        "connection refused",
        "network is unreachable",
        "i/o timeout",
        "failed to establish a new connection",
        "proxyconnect",
        // pip, when its index does not answer.
        "(from versions: none)",
    ]) {
        Some(
            "a package registry was not reached: check the network and the proxy settings \
             (GOPROXY, pip's index, apt's sources), then run the same command again; \
             what is already built is kept"
                .to_owned(),
        )
    } else if any(&["checksum mismatch", "do not match the hashes"]) {
        Some(
            "a download differs from the committed pin: do not use it; \
             clear the package client's cache and try again"
                .to_owned(),
        )
    } else {
        None
    }
}

/// Adds what was attempted to a foreign error.
pub trait Attempt<T> {
    /// Names what was being attempted, as a verb phrase: `read the recipe`.
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Attempt<T> for std::result::Result<T, io::Error> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            attempted: what(),
            source,
        })
    }
}

impl<T> Attempt<T> for std::result::Result<T, nix::Error> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::System {
            attempted: what(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_registry_gets_a_hint() {
        let error = Error::Command {
            command: "go build".to_owned(),
            status: "exit status 1".to_owned(),
            tail: "dial tcp: lookup example.invalid: no such host".to_owned(),
        };
        assert!(error.hint().is_some_and(|hint| hint.contains("registry")));
    }

    #[test]
    fn a_full_disk_gets_a_hint_from_either_side() {
        let ours = Error::Io {
            attempted: "write".to_owned(),
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        let theirs = Error::Command {
            command: "go build".to_owned(),
            status: "exit status 1".to_owned(),
            tail: "write /x: no space left on device".to_owned(),
        };
        for error in [ours, theirs] {
            assert!(error.hint().is_some_and(|hint| hint.contains("space")));
        }
    }

    #[test]
    fn the_tail_of_a_command_is_shown_indented() {
        let error = Error::Command {
            command: "true".to_owned(),
            status: "exit status 1".to_owned(),
            tail: "one\ntwo\n".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "`true` failed (exit status 1):\n    one\n    two"
        );
    }
}
