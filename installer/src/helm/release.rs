//! What Helm says about releases, as types.

use std::fmt::{self, Display};

use serde::{Deserialize, Deserializer, Serialize, de};

/// One line of `helm list`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Release {
    /// Its name.
    pub name: String,
    /// The number of its last revision.
    #[serde(deserialize_with = "number")]
    pub revision: u64,
    /// The state of that revision.
    pub status: ReleaseStatus,
    /// The chart's name and version in one word: `cilium-1.19.7`.
    pub chart: String,
}

/// One line of `helm history`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Revision {
    /// Its number.
    #[serde(deserialize_with = "number")]
    pub revision: u64,
    /// Its state.
    pub status: ReleaseStatus,
}

/// Helm's states of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the variants are Helm's own words")]
pub enum ReleaseStatus {
    Deployed,
    Failed,
    PendingInstall,
    PendingUpgrade,
    PendingRollback,
    Superseded,
    Uninstalled,
    Uninstalling,
    #[serde(other)]
    Unknown,
}

impl Release {
    /// The version of its chart, given the chart's name.
    pub fn chart_version(&self, chart: &str) -> Option<&str> {
        self.chart.strip_prefix(chart)?.strip_prefix('-')
    }
}

impl ReleaseStatus {
    /// Whether a Helm command was cut off in the middle and has to be cleaned up after.
    pub const fn is_pending(self) -> bool {
        matches!(
            self,
            Self::PendingInstall | Self::PendingUpgrade | Self::PendingRollback
        )
    }
}

impl Display for ReleaseStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deployed => "deployed",
            Self::Failed => "failed",
            Self::PendingInstall => "pending-install",
            Self::PendingUpgrade => "pending-upgrade",
            Self::PendingRollback => "pending-rollback",
            Self::Superseded => "superseded",
            Self::Uninstalled => "uninstalled",
            Self::Uninstalling => "uninstalling",
            Self::Unknown => "unknown",
        })
    }
}

/// `helm list` prints the revision as text and `helm history` as a number.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    value
        .as_u64()
        .or_else(|| value.as_str()?.parse().ok())
        .ok_or_else(|| de::Error::custom(format!("`{value}` is not a revision number")))
}
