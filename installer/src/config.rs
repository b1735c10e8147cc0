//! What a project's files ask for, once they have been checked: the types of this module cannot hold
//! an unknown application, a wrong type or two answers to one question.

mod check;
mod unique;
mod values;

use std::{collections::BTreeMap, ops::Range, path::PathBuf, sync::Arc};

use serde::Serialize;
use serde_json::{Map, Value, json};

pub(crate) use check::check;
pub use values::Values;
pub(crate) use values::check_values;

use crate::{
    application::Application,
    problem::{Problem, Problems, Source},
};

/// Everything that a project says about its cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kind of cluster, which picks recommended values.
    pub cluster_type: ClusterType,
    /// The applications that the file names; all others are not managed.
    pub applications: BTreeMap<Application, Managed>,
    /// Warnings and notes about the files.
    pub remarks: Problems,
}

/// The documented values of `clusterType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterType {
    /// Google Kubernetes Engine.
    Gke,
    /// Amazon Elastic Kubernetes Service.
    Eks,
    /// Left blank or absent: any other cluster.
    #[default]
    Other,
}

/// One application of the file.
#[derive(Clone, Debug)]
pub struct Managed {
    /// Which one.
    pub application: Application,
    /// What the file wants done.
    pub switch: Switch,
    /// What the proof must come out as.
    pub expect: Promise,
    /// Where the chart comes from, when the file says so.
    pub chart: ChartChoice,
    /// The documented sub-keys of this application.
    pub settings: Settings,
    /// Its `values.yaml`, when there is one.
    pub values: Option<Values>,
    source: Arc<Source>,
    switch_span: Range<usize>,
}

/// `installed: true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It should be there.
    Install,
    /// It should not be there.
    Remove,
}

/// What the configuration promises about an application's effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// Forbidden things are reported.
    Watching,
    /// Forbidden things are stopped.
    #[default]
    Enforcing,
}

/// The optional `chart` key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChartChoice {
    /// Where from; the catalogue's repository when the file does not say.
    pub origin: Option<ChartOrigin>,
    /// Which version; the catalogue's when the file does not say.
    pub version: Option<String>,
}

/// The two places that a chart can be taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChartOrigin {
    /// A folder, relative to the project.
    Path(PathBuf),
    /// A chart repository's URL.
    Repo(String),
}

/// Sub-keys that only one application has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Settings {
    /// Nothing beyond the keys that all have.
    #[default]
    None,
    /// `cilium.hubble.installed`, of the 13.2 format.
    Cilium {
        /// Absent means the chart's default.
        hubble: Option<Switch>,
    },
    /// `ingress.gitlab_waf`.
    Ingress {
        /// Absent means without a web application firewall.
        waf: Option<Waf>,
    },
    /// `certManager.letsEncryptClusterIssuer`.
    CertManager {
        /// The address that the issuer is registered with; present when the issuer is installed.
        issuer_email: Option<String>,
    },
    /// `jupyterhub`'s lists of who may log in; two empty lists mean everybody.
    Jupyterhub {
        /// Project numbers.
        projects: Vec<u64>,
        /// Group names.
        groups: Vec<String>,
    },
}

/// What the web application firewall does with a bad request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waf {
    /// `modsecurity_mode_blocking: false`, the default.
    DetectionOnly,
    /// `modsecurity_mode_blocking: true`.
    Blocking,
}

impl Managed {
    /// The values that follow from the documented sub-keys of `config.yaml`.
    pub(crate) fn values_of_settings(&self) -> Value {
        match &self.settings {
            Settings::Cilium {
                hubble: Some(switch),
            } => {
                json!({"hubble": {"enabled": *switch == Switch::Install}})
            }
            _ => Value::Object(Map::new()),
        }
    }

    /// An error at the `installed` of this application.
    pub(crate) fn refuse(&self, message: String) -> Problem {
        Problem::error(&self.source, self.switch_span.clone(), message)
    }
}
