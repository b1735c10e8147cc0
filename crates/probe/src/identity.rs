//! Which pod this is, from the downward API.

use std::env;

/// `namespace/name`, with `?` for what the pod's manifest does not tell.
pub(crate) fn pod() -> String {
    let part = |name| env::var(name).unwrap_or_else(|_| "?".to_owned());
    format!("{}/{}", part("POD_NAMESPACE"), part("POD_NAME"))
}

/// Name of the abstract socket between the server and the agents of one pod.
///
/// Abstract names belong to the network namespace and need no file system, so this works in an empty image;
/// the pod's name is in it for pods that share the host's network.
pub(crate) fn ledger_socket() -> String {
    format!("holdfast-probe/{}", pod())
}
