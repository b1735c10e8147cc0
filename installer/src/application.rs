//! The closed set of applications that the documented `config.yaml` knows, and their names in its
//! two spellings: the key in the file and the folder of their values.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

/// A managed application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the variants are the applications' own names")]
pub enum Application {
    Ingress,
    CertManager,
    Sentry,
    GitlabRunner,
    Cilium,
    Falco,
    Vault,
    Jupyterhub,
    ElasticStack,
    Crossplane,
    Fluentd,
    Knative,
    Posthog,
    Prometheus,
    Apparmor,
}

impl Application {
    /// Every application, in the order of the document.
    pub const ALL: [Self; 15] = [
        Self::Ingress,
        Self::CertManager,
        Self::Sentry,
        Self::GitlabRunner,
        Self::Cilium,
        Self::Falco,
        Self::Vault,
        Self::Jupyterhub,
        Self::ElasticStack,
        Self::Crossplane,
        Self::Fluentd,
        Self::Knative,
        Self::Posthog,
        Self::Prometheus,
        Self::Apparmor,
    ];

    /// The key in `config.yaml`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::CertManager => "certManager",
            Self::Sentry => "sentry",
            Self::GitlabRunner => "gitlabRunner",
            Self::Cilium => "cilium",
            Self::Falco => "falco",
            Self::Vault => "vault",
            Self::Jupyterhub => "jupyterhub",
            Self::ElasticStack => "elasticStack",
            Self::Crossplane => "crossplane",
            Self::Fluentd => "fluentd",
            Self::Knative => "knative",
            Self::Posthog => "posthog",
            Self::Prometheus => "prometheus",
            Self::Apparmor => "apparmor",
        }
    }

    /// The folder under `.gitlab/managed-apps` that holds its `values.yaml`.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::CertManager => "cert-manager",
            Self::GitlabRunner => "gitlab-runner",
            Self::ElasticStack => "elastic-stack",
            other => other.key(),
        }
    }

    /// The application whose key this is, exactly.
    pub fn from_key(key: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|application| application.key() == key)
    }

    /// The application whose key was printed with a capital in the document, so that people have it so.
    pub(crate) fn from_documented_capital(key: &str) -> Option<Self> {
        match key {
            "Crossplane" => Some(Self::Crossplane),
            "Fluentd" => Some(Self::Fluentd),
            _ => None,
        }
    }
}

impl Display for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}
