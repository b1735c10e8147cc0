//! Turns the tree of a `config.yaml` into a [`Config`], and collects every problem on the way instead
//! of stopping at the first.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{
    ChartChoice, ChartOrigin, ClusterType, Config, Managed, Promise, Settings, Switch, Values, Waf,
    unique::unique,
};
use crate::{
    application::Application,
    problem::{Problem, Problems, Source, did_you_mean},
    yaml::{self, Entry, Kind, Node},
};

/// Checks a `config.yaml`. The config is whole only when there are no errors among the problems.
pub(crate) fn check(
    source: &Arc<Source>,
    mut values: BTreeMap<Application, Values>,
) -> (Config, Problems) {
    let mut checker = Checker {
        source,
        problems: Problems::default(),
    };
    let mut config = Config {
        cluster_type: ClusterType::default(),
        applications: BTreeMap::new(),
        remarks: Problems::default(),
    };
    match yaml::read(source) {
        Err(problem) => checker.problems.push(*problem),
        Ok(tree) => {
            for entry in checker.top_level(&tree) {
                if entry.key == "clusterType" {
                    config.cluster_type = checker.cluster_type(&entry.value);
                } else if let Some(application) = checker.application_of(entry)
                    && let Some(managed) =
                        checker.managed(application, entry, values.remove(&application))
                {
                    config.applications.insert(application, managed);
                }
            }
        }
    }
    // Found by meaning, shown by place.
    checker.problems.0.sort_by_key(|problem| problem.span.start);
    (config, checker.problems)
}

struct Checker<'a> {
    source: &'a Arc<Source>,
    problems: Problems,
}

impl Checker<'_> {
    fn error(&mut self, node: &Node, message: impl Into<String>) -> &mut Problem {
        self.report(Problem::error(self.source, node.span.clone(), message))
    }

    fn report(&mut self, problem: Problem) -> &mut Problem {
        self.problems.0.push(problem);
        let last = self.problems.0.len() - 1;
        &mut self.problems.0[last]
    }

    fn top_level<'n>(&mut self, tree: &'n Node) -> Vec<&'n Entry> {
        if let Kind::Null = tree.kind {
            self.report(
                Problem::warning(self.source, tree.span.clone(), "the file names no application").hint(
                    "an application that is absent is not managed; nothing will be installed or removed",
                ),
            );
            return Vec::new();
        }
        let Some(entries) = tree.entries() else {
            let message = format!(
                "the file must be a map of applications, not {}",
                tree.describe()
            );
            self.error(tree, message).hint =
                Some("write for example `cilium: {installed: true}`".to_owned());
            return Vec::new();
        };
        self.unique(entries)
    }

    /// The entries without those whose key came before, each of which is reported.
    fn unique<'n>(&mut self, entries: &'n [Entry]) -> Vec<&'n Entry> {
        unique(self.source, entries, &mut self.problems)
    }

    fn application_of(&mut self, entry: &Entry) -> Option<Application> {
        if let Some(application) = Application::from_key(&entry.key) {
            return Some(application);
        }
        if let Some(application) = Application::from_documented_capital(&entry.key) {
            let problem = Problem::note(
                self.source,
                entry.key_span.clone(),
                format!(
                    "`{}` is accepted as the document prints it; the key is `{application}`",
                    entry.key
                ),
            );
            self.report(problem);
            return Some(application);
        }
        let keys = Application::ALL.map(Application::key);
        let hint = match did_you_mean(&entry.key, keys.into_iter().chain(["clusterType"])) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!(
                "known are {}, and `clusterType`",
                keys.map(|key| format!("`{key}`")).join(", ")
            ),
        };
        let message = format!("unknown application `{}`", entry.key);
        self.report(Problem::error(self.source, entry.key_span.clone(), message).hint(hint));
        None
    }

    fn cluster_type(&mut self, node: &Node) -> ClusterType {
        match &node.kind {
            Kind::Null => ClusterType::Other,
            Kind::Text(text) => match text.as_str() {
                "gke" => ClusterType::Gke,
                "eks" => ClusterType::Eks,
                "" => ClusterType::Other,
                other => {
                    let hint = match did_you_mean(other, ["gke", "eks"]) {
                        Some(name) => {
                            format!("did you mean `{name}`? leave it blank for any other cluster")
                        }
                        None => "known are `gke` and `eks`; leave it blank for any other cluster"
                            .to_owned(),
                    };
                    self.error(node, format!("unknown cluster type `{other}`"))
                        .hint = Some(hint);
                    ClusterType::Other
                }
            },
            _ => {
                self.error(
                    node,
                    format!("`clusterType` must be a string, not {}", node.describe()),
                );
                ClusterType::Other
            }
        }
    }

    fn managed(
        &mut self,
        application: Application,
        entry: &Entry,
        values: Option<Values>,
    ) -> Option<Managed> {
        let own: &[&str] = match application {
            Application::Ingress => &["gitlab_waf"],
            Application::CertManager => &["letsEncryptClusterIssuer"],
            Application::Cilium => &["hubble"],
            Application::Jupyterhub => &["gitlabProjectIdWhitelist", "gitlabGroupWhitelist"],
            _ => &[],
        };
        let known = [&["installed", "chart", "expect"], own].concat();
        let fields = self.fields(entry, &known)?;
        let installed = self.installed(entry, &fields);
        let expect = fields
            .get("expect")
            .map_or(Promise::default(), |field| self.promise(&field.value));
        let chart = fields
            .get("chart")
            .map(|field| self.chart(field))
            .unwrap_or_default();
        let settings = self.settings(application, &fields);
        let (switch, switch_span) = installed?;
        Some(Managed {
            application,
            switch,
            expect,
            chart,
            settings,
            values,
            source: Arc::clone(self.source),
            switch_span,
        })
    }

    /// The known fields of a map by name; unknown ones are reported.
    fn fields<'n>(
        &mut self,
        entry: &'n Entry,
        known: &[&str],
    ) -> Option<BTreeMap<&'n str, &'n Entry>> {
        let key = &entry.key;
        let Some(entries) = entry.value.entries() else {
            let message = format!("`{key}` must be a map, not {}", entry.value.describe());
            let span = match entry.value.kind {
                Kind::Null => entry.key_span.clone(),
                _ => entry.value.span.clone(),
            };
            let mut problem = Problem::error(self.source, span, message);
            if known.contains(&"installed") {
                problem = problem.hint(format!("write `{key}: {{installed: true}}`"));
            }
            self.report(problem);
            return None;
        };
        let mut fields = BTreeMap::new();
        for field in self.unique(entries) {
            if known.contains(&field.key.as_str()) {
                fields.insert(field.key.as_str(), field);
                continue;
            }
            let hint = match did_you_mean(&field.key, known.iter().copied()) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!(
                    "`{key}` takes {}; settings of the chart go into the values file",
                    known
                        .iter()
                        .map(|name| format!("`{name}`"))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            };
            let message = format!("`{key}` has no key `{}`", field.key);
            self.report(Problem::error(self.source, field.key_span.clone(), message).hint(hint));
        }
        Some(fields)
    }

    fn installed(
        &mut self,
        parent: &Entry,
        fields: &BTreeMap<&str, &Entry>,
    ) -> Option<(Switch, std::ops::Range<usize>)> {
        let Some(field) = fields.get("installed") else {
            let message = format!("`{}` does not say whether it is installed", parent.key);
            self.report(
                Problem::error(self.source, parent.key_span.clone(), message)
                    .hint("add `installed: true` to install it, `installed: false` to remove it"),
            );
            return None;
        };
        let switch = if self.boolean(field)? {
            Switch::Install
        } else {
            Switch::Remove
        };
        Some((switch, field.key_span.start..field.value.span.end))
    }

    fn boolean(&mut self, field: &Entry) -> Option<bool> {
        match &field.value.kind {
            Kind::Bool(value) => Some(*value),
            other => {
                let hint = match other {
                    Kind::Text(text) if matches!(text.as_str(), "true" | "false") => {
                        "remove the quotes"
                    }
                    _ => "write `true` or `false`",
                };
                let message = format!(
                    "`{}` must be `true` or `false`, not {}",
                    field.key,
                    field.value.describe()
                );
                self.error(&field.value, message).hint = Some(hint.to_owned());
                None
            }
        }
    }

    fn text(&mut self, field: &Entry) -> Option<String> {
        if let Kind::Text(text) = &field.value.kind {
            return Some(text.clone());
        }
        let message = format!(
            "`{}` must be a string, not {}",
            field.key,
            field.value.describe()
        );
        let hint =
            matches!(field.value.kind, Kind::Number(_)).then(|| "put it into quotes".to_owned());
        self.error(&field.value, message).hint = hint;
        None
    }

    fn promise(&mut self, node: &Node) -> Promise {
        match &node.kind {
            Kind::Text(text) if text == "enforcing" => return Promise::Enforcing,
            Kind::Text(text) if text == "watching" => return Promise::Watching,
            Kind::Text(text) => {
                let hint = did_you_mean(text, ["enforcing", "watching"])
                    .map(|name| format!("did you mean `{name}`?"));
                self.error(node, format!("unknown promise `{text}`")).hint =
                    Some(hint.unwrap_or_else(|| "known are `enforcing` and `watching`".to_owned()));
            }
            _ => {
                let message = format!(
                    "`expect` must be `enforcing` or `watching`, not {}",
                    node.describe()
                );
                self.error(node, message);
            }
        }
        Promise::default()
    }

    fn chart(&mut self, entry: &Entry) -> ChartChoice {
        let Some(fields) = self.fields(entry, &["path", "repo", "version"]) else {
            return ChartChoice::default();
        };
        let version = fields.get("version").and_then(|field| self.text(field));
        let origin = match (fields.get("path"), fields.get("repo")) {
            (Some(path), Some(repo)) => {
                let problem = Problem::error(
                    self.source,
                    repo.key_span.clone(),
                    "a chart comes from a `path` or from a `repo`, not from both",
                )
                .related(path.key_span.clone(), "`path` is given here");
                self.report(problem);
                None
            }
            (Some(path), None) => self
                .text(path)
                .map(|path| ChartOrigin::Path(PathBuf::from(path))),
            (None, Some(repo)) => self.text(repo).map(ChartOrigin::Repo),
            (None, None) => None,
        };
        ChartChoice { origin, version }
    }

    fn settings(&mut self, application: Application, fields: &BTreeMap<&str, &Entry>) -> Settings {
        match application {
            Application::Cilium => {
                let hubble = fields.get("hubble").and_then(|entry| {
                    let inner = self.fields(entry, &["installed"])?;
                    self.installed(entry, &inner).map(|(switch, _)| switch)
                });
                Settings::Cilium { hubble }
            }
            Application::Ingress => {
                let waf = fields.get("gitlab_waf").and_then(|entry| {
                    let inner = self.fields(entry, &["installed", "modsecurity_mode_blocking"])?;
                    let mode = inner
                        .get("modsecurity_mode_blocking")
                        .and_then(|field| self.boolean(field));
                    match self.installed(entry, &inner)? {
                        (Switch::Remove, _) => None,
                        (Switch::Install, _) if mode == Some(true) => Some(Waf::Blocking),
                        (Switch::Install, _) => Some(Waf::DetectionOnly),
                    }
                });
                Settings::Ingress { waf }
            }
            Application::CertManager => {
                let issuer_email = fields.get("letsEncryptClusterIssuer").and_then(|entry| {
                    let inner = self.fields(entry, &["installed", "email"])?;
                    let email = inner.get("email").and_then(|field| self.text(field));
                    let (switch, span) = self.installed(entry, &inner)?;
                    if switch == Switch::Install && !inner.contains_key("email") {
                        self.report(
                            Problem::error(self.source, span, "the issuer needs an `email`")
                                .hint("Let's Encrypt sends expiry notices to this address"),
                        );
                    }
                    email.filter(|_| switch == Switch::Install)
                });
                Settings::CertManager { issuer_email }
            }
            Application::Jupyterhub => Settings::Jupyterhub {
                projects: self.list(
                    fields.get("gitlabProjectIdWhitelist"),
                    "project numbers",
                    |kind| match kind {
                        Kind::Number(number) => number.as_u64(),
                        _ => None,
                    },
                ),
                groups: self.list(fields.get("gitlabGroupWhitelist"), "group names", |kind| {
                    match kind {
                        Kind::Text(text) => Some(text.clone()),
                        _ => None,
                    }
                }),
            },
            _ => Settings::None,
        }
    }

    fn list<T>(
        &mut self,
        field: Option<&&Entry>,
        of_what: &str,
        convert: impl Fn(&Kind) -> Option<T>,
    ) -> Vec<T> {
        let Some(field) = field else {
            return Vec::new();
        };
        let items = match &field.value.kind {
            Kind::List(items) => items.as_slice(),
            Kind::Null => &[],
            _ => {
                let message = format!(
                    "`{}` must be a list of {of_what}, not {}",
                    field.key,
                    field.value.describe()
                );
                self.error(&field.value, message);
                &[]
            }
        };
        let mut converted = Vec::new();
        for item in items {
            if let Some(value) = convert(&item.kind) {
                converted.push(value);
            } else {
                let message = format!(
                    "`{}` is a list of {of_what}; this is {}",
                    field.key,
                    item.describe()
                );
                self.error(item, message);
            }
        }
        converted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOCUMENTED: &str =
        include_str!("../../../fixtures/projects/documented/.gitlab/managed-apps/config.yaml");

    /// Reads a text as both kinds of file and shows every problem, all of which must work on anything.
    fn survive(text: &str) {
        let source = Arc::new(Source::new("config.yaml", text));
        let (_, mut problems) = check(&source, BTreeMap::new());
        problems.0.extend(super::super::check_values(&source).1.0);
        for problem in &problems.0 {
            problem.place();
            problem.render();
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            survive(&text);
        }

        #[test]
        fn no_yaml_like_text_makes_it_panic(text in "([ \\t]{0,4}[-a-zäé\u{1F600}&*!|>'\"0-9<]{0,8}[:,{}\\[\\]#%@]{0,2} ?[\\r\\n]{0,2}){0,12}") {
            survive(&text);
        }

        #[test]
        fn no_damage_to_a_good_file_makes_it_panic(at in 0..DOCUMENTED.len(), put in "\\PC{0,6}|[\\t\\n:\\[{]", drop in 0_usize..20) {
            let damaged: String =
                DOCUMENTED.chars().take(at).chain(put.chars()).chain(DOCUMENTED.chars().skip(at + drop)).collect();
            survive(&damaged);
        }
    }
}
