//! The run that a test belongs to, as `cargo xtask e2e` describes it in the environment.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use installer::catalogue::Catalogue;
use installer::config::Promise;
use installer::{application::Application, project};
use prover::cluster::{Options, Progress, Proof, Scenario, prove_network};
use prover::verdict::Verdict;

use crate::cluster;

/// A run of `cargo xtask e2e`.
#[derive(Debug, Clone)]
pub struct Run {
    /// The clone's root folder.
    pub root: PathBuf,
    /// The folder that takes the results.
    pub results: PathBuf,
    /// The cluster's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The program under test.
    pub holdfast: PathBuf,
    /// The program that starts and ends labs.
    pub xtask: PathBuf,
    /// The management project that is installed.
    pub project: PathBuf,
    /// The policies that the smoke suite proves.
    pub policies: PathBuf,
    /// The folder of unpacked charts.
    pub charts: PathBuf,
    /// The Helm program.
    pub helm: PathBuf,
}

/// Where a proof's verdict is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It must keep what the configuration promises, or the run fails.
    AsPromised,
    /// It belongs to a fault made on purpose; the test itself says what it must be.
    AsFault,
}

impl Run {
    /// Reads the environment.
    pub fn from_environment() -> Result<Self> {
        let get = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).with_context(|| {
                format!("{name} is not set: cluster tests are run by `cargo xtask e2e`")
            })
        };
        Ok(Self {
            root: get("HOLDFAST_ROOT")?,
            results: get("HOLDFAST_RESULTS")?,
            kubeconfig: get("HOLDFAST_KUBECONFIG")?,
            holdfast: get("HOLDFAST_BIN")?,
            xtask: get("HOLDFAST_XTASK")?,
            project: get("HOLDFAST_PROJECT")?,
            policies: get("HOLDFAST_POLICIES")?,
            charts: get("HOLDFAST_CHARTS")?,
            helm: get("HOLDFAST_HELM")?,
        })
    }

    /// A folder or file under `fixtures/`.
    pub fn fixture(&self, path: &str) -> PathBuf {
        self.root.join("fixtures").join(path)
    }

    /// Installs a project with the program under test, as a user would.
    pub fn install(&self, project: &std::path::Path) -> Result<()> {
        let output = Command::new(&self.holdfast)
            .arg("apply")
            .arg("--project")
            .arg(project)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--charts")
            .arg(&self.charts)
            .arg("--helm")
            .arg(&self.helm)
            .output()
            .context("running holdfast apply")?;
        if !output.status.success() {
            bail!(
                "holdfast apply of {} failed ({}):\n{}{}",
                project.display(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// What the installed project promises about network policies.
    pub fn promise(&self) -> Result<Verdict> {
        let catalogue = Catalogue::embedded()
            .map_err(|problems| anyhow::anyhow!("the catalogue is wrong: {problems}"))?;
        let config = project::load(&self.project, &catalogue).context("reading the project")?;
        let cilium = config
            .applications
            .get(&Application::Cilium)
            .with_context(|| {
                format!(
                    "{} says nothing about cilium, so there is nothing to prove",
                    self.project.display()
                )
            })?;
        Ok(match cilium.expect {
            Promise::Enforcing => Verdict::Enforcing,
            Promise::Watching => Verdict::Watching,
        })
    }

    /// Proves a scenario, prints its verdict line and writes its results.
    pub async fn prove(&self, name: &str, scenario: &Scenario, counted: Counted) -> Result<Proof> {
        self.prove_while(name, scenario, counted, &|_| {}).await
    }

    /// The same, and `meanwhile` is called, and waited for, wherever the proof reports its progress.
    pub async fn prove_while(
        &self,
        name: &str,
        scenario: &Scenario,
        counted: Counted,
        meanwhile: &(dyn Fn(&Progress) + Sync),
    ) -> Result<Proof> {
        let client = cluster::connect(&self.kubeconfig).await?;
        let options = Options {
            promised: self.promise()?,
            evidence: Some(self.results.join("evidence").join(name)),
            ..Options::default()
        };
        let progress = |progress: Progress| {
            show(&progress);
            meanwhile(&progress);
        };
        let proof = prove_network(&client, scenario, &options, &progress)
            .await
            .with_context(|| format!("proving {name}"))?;
        let folder = self.results.join(match counted {
            Counted::AsPromised => "verdicts",
            Counted::AsFault => "faults",
        });
        fs::create_dir_all(&folder).context("making the results folder")?;
        let text = serde_json::to_string_pretty(&proof.report).context("writing the report")?;
        fs::write(folder.join(format!("{name}.json")), text).context("writing the report")?;
        fs::write(
            folder.join(format!("{name}.txt")),
            format!("{}\n", proof.report.verdict_line()),
        )
        .context("writing the verdict line")?;
        Ok(proof)
    }
}

#[expect(
    clippy::print_stderr,
    reason = "nextest shows a test's output when it fails"
)]
fn show(progress: &Progress) {
    eprintln!("{progress}");
}
