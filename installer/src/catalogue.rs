//! What Holdfast knows about each application that it can install: data, one file for each.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    application::Application,
    config::{ClusterType, Config, Managed, Promise, Switch},
    problem::{Problem, Problems, Source},
    yaml,
};

/// The namespace that all managed applications share.
pub const NAMESPACE: &str = "gitlab-managed-apps";

const FILES: [(&str, &str); 1] = [(
    "catalogue/cilium.yaml",
    include_str!("../catalogue/cilium.yaml"),
)];

/// All that can be installed.
#[derive(Clone, Debug)]
pub struct Catalogue {
    recipes: BTreeMap<Application, Recipe>,
}

/// How one application is installed.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipe {
    /// Which one.
    pub application: Application,
    /// The name of its Helm release, the same as the original's.
    pub release: String,
    /// Its chart upstream.
    pub chart: UpstreamChart,
    /// What must be up before it counts as applied.
    pub readiness: Vec<Target>,
    /// What is looked at once it has been installed.
    #[serde(default)]
    pub after_install: Vec<AfterCheck>,
    /// Values under everything that the project says.
    #[serde(default = "no_values")]
    pub values: Value,
    /// What a kind of cluster adds.
    #[serde(default)]
    cluster_types: ClusterTypes,
    /// Values that take back what the configuration promises.
    #[serde(default)]
    pub(crate) weakening: Vec<Weakening>,
}

/// What can be looked at after an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AfterCheck {
    /// Pods that a network plugin does not manage because they are older.
    UnmanagedPods,
}

/// A chart in its repository.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamChart {
    /// The chart's name.
    pub name: String,
    /// The repository's URL.
    pub repo: String,
    /// The version that Holdfast was tested with.
    pub version: String,
}

/// An object whose rollout is waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The kind of object.
    pub kind: TargetKind,
    /// Its name in the release's namespace.
    pub name: String,
}

/// The kinds of object that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub enum TargetKind {
    /// One pod on each node.
    DaemonSet,
    /// A number of pods.
    Deployment,
}

impl TargetKind {
    /// As it is shown: `daemonset`.
    pub const fn lowercase(self) -> &'static str {
        match self {
            Self::DaemonSet => "daemonset",
            Self::Deployment => "deployment",
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterTypes {
    gke: Option<ForClusterType>,
    eks: Option<ForClusterType>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForClusterType {
    #[serde(default = "no_values")]
    values: Value,
    #[serde(default)]
    needs: Vec<String>,
}

/// A value under which an application does less than it should.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weakening {
    path: Vec<String>,
    value: String,
    leaves: Leaves,
    says: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Leaves {
    Watching,
    Nothing,
}

impl Catalogue {
    /// The catalogue that is built into the program.
    pub fn embedded() -> Result<Self, Problems> {
        let mut recipes = BTreeMap::new();
        let mut problems = Problems::default();
        for (path, text) in FILES {
            match yaml::read_typed::<Recipe>(&Arc::new(Source::new(path, text))) {
                Ok(recipe) => {
                    recipes.insert(recipe.application, recipe);
                }
                Err(problem) => problems.push(*problem),
            }
        }
        if problems.0.is_empty() {
            Ok(Self { recipes })
        } else {
            Err(problems)
        }
    }

    /// The recipe of an application, when it can be installed.
    pub fn recipe(&self, application: Application) -> Option<&Recipe> {
        self.recipes.get(&application)
    }

    /// Every recipe.
    pub fn recipes(&self) -> impl Iterator<Item = &Recipe> {
        self.recipes.values()
    }

    /// One error for each application that is asked for and cannot be installed yet.
    pub(crate) fn refusals(&self, config: &Config) -> Vec<Problem> {
        let can = self
            .recipes
            .keys()
            .map(|application| format!("`{application}`"))
            .collect::<Vec<_>>()
            .join(", ");
        config
            .applications
            .values()
            .filter(|managed| managed.switch == Switch::Install && self.recipe(managed.application).is_none())
            .map(|managed| {
                managed
                    .refuse(format!("`{}` cannot be installed by this version of Holdfast", managed.application))
                    .hint(format!("it can install {can}; take the application out of the file to leave it alone"))
            })
            .collect()
    }
}

impl Recipe {
    /// The values for Helm: the recipe's, then the cluster type's, then those of `config.yaml`'s own keys,
    /// then the project's `values.yaml`, each over the ones before.
    pub fn values_for(&self, managed: &Managed, cluster_type: ClusterType) -> Value {
        let mut values = self.values.clone();
        if let Some(extra) = self.for_cluster_type(cluster_type) {
            merge(&mut values, extra.values.clone());
        }
        merge(&mut values, managed.values_of_settings());
        if let Some(own) = &managed.values {
            merge(&mut values, own.to_json());
        }
        values
    }

    /// What about these values will make the proof come out weaker than promised, or the start fail.
    pub(crate) fn warnings_for(&self, managed: &Managed, cluster_type: ClusterType) -> Vec<String> {
        let mut warnings = Vec::new();
        for weakening in &self.weakening {
            let Some((value, place)) = managed
                .values
                .as_ref()
                .and_then(|values| values.find(&weakening.path))
            else {
                continue;
            };
            // The chart prints booleans and strings alike into a config map.
            let written = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            let promise = match (managed.expect, weakening.leaves) {
                (Promise::Watching, Leaves::Watching) => continue,
                (Promise::Watching, Leaves::Nothing) => "WATCHING",
                (Promise::Enforcing, _) => "ENFORCING",
            };
            if written == weakening.value {
                warnings.push(format!(
                    "{place}: {}; the proof will not come out as {promise}",
                    weakening.says
                ));
            }
        }
        let needs = self
            .for_cluster_type(cluster_type)
            .map_or(&[][..], |extra| &extra.needs);
        for path in needs {
            let given = managed
                .values
                .as_ref()
                .is_some_and(|values| values.find(&[path]).is_some());
            if !given {
                warnings.push(format!(
                    "clusterType needs `{path}` in {}/values.yaml, which does not have it",
                    self.application.folder()
                ));
            }
        }
        warnings
    }

    fn for_cluster_type(&self, cluster_type: ClusterType) -> Option<&ForClusterType> {
        match cluster_type {
            ClusterType::Gke => self.cluster_types.gke.as_ref(),
            ClusterType::Eks => self.cluster_types.eks.as_ref(),
            ClusterType::Other => None,
        }
    }
}

fn no_values() -> Value {
    Value::Object(serde_json::Map::new())
}

/// Lays `over` over `under` the way Helm lays one values file over another: maps are merged, all else replaced.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                match under.get_mut(&key) {
                    Some(below) => merge(below, value),
                    None => {
                        under.insert(key, value);
                    }
                }
            }
        }
        (under, over) => *under = over,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_embedded_catalogue_reads_and_has_cilium() {
        let catalogue = Catalogue::embedded()
            .map_err(|problems| problems.to_string())
            .expect("reads");
        let cilium = catalogue.recipe(Application::Cilium).expect("there");
        assert_eq!(cilium.chart.version, "1.19.7");
        assert!(cilium.readiness.contains(&Target {
            kind: TargetKind::DaemonSet,
            name: "cilium".into()
        }));
        assert!(catalogue.recipe(Application::Falco).is_none());
    }

    #[test]
    fn values_merge_as_helm_merges_files() {
        let mut values = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        merge(&mut values, json!({"a": {"c": [3]}, "d": null, "e": 2}));
        assert_eq!(
            values,
            json!({"a": {"b": 1, "c": [3]}, "d": null, "e": 2}),
            "null is how Helm drops a default"
        );
    }
}
