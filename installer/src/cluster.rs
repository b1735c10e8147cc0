//! Which cluster is meant: decided once, so that Helm and Holdfast cannot talk to two different ones.

use std::path::{Path, PathBuf};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;

/// A cluster, as Helm and as Holdfast reach it.
#[derive(Clone)]
pub struct Cluster {
    /// For Holdfast's own questions.
    pub client: Client,
    /// The file that was asked for.
    pub kubeconfig: Option<PathBuf>,
    /// The context; absent inside a cluster, where there is no kubeconfig.
    pub context: Option<String>,
}

/// Why there is no cluster to talk to.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig{}", path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Kubeconfig {
        /// Which one, when one was asked for.
        path: Option<PathBuf>,
        /// Why not.
        source: Box<KubeconfigError>,
    },
    /// Neither a context was asked for nor has the kubeconfig a current one.
    #[error("the kubeconfig has no current context")]
    NoContext,
    /// A client could not be made from it.
    #[error("cannot make a client for the cluster")]
    Client(#[source] Box<kube::Error>),
}

impl ConnectError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kubeconfig { path: None, .. } => {
                Some("name a kubeconfig with --kubeconfig or in KUBECONFIG".to_owned())
            }
            Self::NoContext => Some("name one with --context".to_owned()),
            Self::Kubeconfig { .. } | Self::Client(_) => None,
        }
    }
}

/// Decides on the cluster. Nothing is sent to it yet.
pub async fn connect(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
) -> Result<Cluster, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig {
        path: kubeconfig.map(Path::to_owned),
        source: Box::new(source),
    };
    let read = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let (config, context) = match read {
        Ok(file) => {
            let context = context
                .map(str::to_owned)
                .or_else(|| file.current_context.clone())
                .ok_or(ConnectError::NoContext)?;
            let options = KubeConfigOptions {
                context: Some(context.clone()),
                ..KubeConfigOptions::default()
            };
            let config = Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(failed)?;
            (config, Some(context))
        }
        Err(error) => {
            // A CI job in the cluster has a service account instead of a kubeconfig.
            let inside = (kubeconfig.is_none() && context.is_none()).then(Config::incluster);
            match inside {
                Some(Ok(config)) => (config, None),
                Some(Err(_)) | None => return Err(failed(error)),
            }
        }
    };
    let client =
        Client::try_from(config).map_err(|source| ConnectError::Client(Box::new(source)))?;
    Ok(Cluster {
        client,
        kubeconfig: kubeconfig.map(Path::to_owned),
        context,
    })
}
