//! What can go wrong before there is anything to judge.

use std::path::PathBuf;

use crate::model::Problems;

/// A proof could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// A manifest could not be read from disk.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The manifests are wrong.
    #[error("the scenario's manifests are wrong:\n{0}")]
    Manifests(Problems),
    /// The API server refused an operation.
    #[error("cannot {operation} {object}")]
    Api {
        /// For example `apply`.
        operation: &'static str,
        /// The object, for example `Pod hf-x/a`.
        object: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// A namespace of the scenario is somebody else's.
    #[error(
        "namespace {namespace} exists and does not carry the label {label}; a proof deploys into it, takes policies \
         away in it and may delete it, so it uses only namespaces that it made itself"
    )]
    NotOurs {
        /// The namespace.
        namespace: String,
        /// What marks those that we made.
        label: &'static str,
    },
    /// A condition did not come true.
    #[error("waited {waited_s} s for {condition}; last status: {last_status}")]
    Timeout {
        /// What was waited for.
        condition: String,
        /// For how long.
        waited_s: u64,
        /// The last thing that was seen.
        last_status: String,
    },
    /// Evidence could not be kept.
    #[error("cannot write evidence to {}", path.display())]
    Evidence {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ProveError {
    /// The API server's answer code, if it answered.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            ProveError::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn api(
        operation: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(kube::Error) -> ProveError {
        let object = object.into();
        move |source| ProveError::Api {
            operation,
            object,
            source: Box::new(source),
        }
    }
}
