//! Carries out a plan, one step after the other, and says what it does.

use std::time::Duration;

use kube::Client;
use thiserror::Error;

use crate::{
    application::Application,
    catalogue::AfterCheck,
    helm::{Helm, HelmError},
    interrupt::Interrupt,
    plan::{Action, Plan, Recovery, Step},
    ready::{self, WaitError},
    unmanaged::unmanaged_pods,
};

/// How a plan is carried out.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether releases may be taken away.
    pub removal: Removal,
    /// How long each application may take.
    pub timeout: Duration,
}

/// Whether `installed: false` may take a release away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The user said so.
    Allowed,
    /// A plan with a removal is refused as a whole.
    Refused,
}

/// Why a plan was not carried out to its end.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The plan would take something away, and nobody allowed it. Nothing was done.
    #[error("the plan removes {releases}, and nothing was done")]
    RemovalRefused {
        /// Which releases.
        releases: String,
    },
    /// Helm failed.
    #[error("cannot {doing} {application}")]
    Helm {
        /// What was being done.
        doing: &'static str,
        /// To which application.
        application: Application,
        /// Why it failed.
        source: HelmError,
    },
    /// The release is there and does not come up.
    #[error("{application} is installed and did not become ready")]
    NotReady {
        /// Which application.
        application: Application,
        /// What it was waited for.
        source: WaitError,
    },
    /// The user stopped it.
    #[error("interrupted: {state}")]
    Interrupted {
        /// What was left behind.
        state: String,
    },
}

impl ApplyError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::RemovalRefused { .. } => Some(
                "add --allow-removal to remove them, or take the applications out of config.yaml to leave them alone"
                    .to_owned(),
            ),
            Self::Helm { source, .. } => source.hint(),
            Self::NotReady { source: WaitError::TimedOut { .. }, .. } => Some(
                "nothing was rolled back; when the cause is gone, run apply again, and give a slow cluster more --timeout"
                    .to_owned(),
            ),
            Self::NotReady { .. } => None,
            Self::Interrupted { .. } => Some("run apply again to go on from there".to_owned()),
        }
    }
}

/// Carries out a plan. `report` gets every line as it comes.
pub async fn apply(
    plan: &Plan,
    helm: &Helm,
    client: &Client,
    options: Options,
    interrupt: &Interrupt,
    report: &mut (dyn FnMut(&str) + Send),
) -> Result<(), ApplyError> {
    let removed: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| step.action == Action::Remove)
        .map(|step| step.release.as_str())
        .collect();
    if options.removal == Removal::Refused && !removed.is_empty() {
        return Err(ApplyError::RemovalRefused {
            releases: removed.join(", "),
        });
    }
    for step in &plan.steps {
        let mut report = |line: &str| report(&format!("{}: {line}", step.application));
        for warning in &step.warnings {
            report(&format!("warning: {warning}"));
        }
        let result = Run {
            plan,
            helm,
            client,
            options,
            interrupt,
            report: &mut report,
        }
        .step(step)
        .await;
        match result {
            Ok(()) => {}
            Err(
                ApplyError::Helm {
                    source: HelmError::Interrupted { .. },
                    ..
                }
                | ApplyError::NotReady {
                    source: WaitError::Interrupted { .. },
                    ..
                },
            ) => {
                return Err(ApplyError::Interrupted {
                    state: left_behind(helm, &step.release).await,
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Run<'a> {
    plan: &'a Plan,
    helm: &'a Helm,
    client: &'a Client,
    options: Options,
    interrupt: &'a Interrupt,
    report: &'a mut (dyn FnMut(&str) + Send),
}

impl Run<'_> {
    async fn step(&mut self, step: &Step) -> Result<(), ApplyError> {
        let Step {
            application,
            release,
            action,
            ..
        } = step;
        let failed = |doing| {
            let application = *application;
            move |source| ApplyError::Helm {
                doing,
                application,
                source,
            }
        };
        let timeout = self.options.timeout;
        match action {
            Action::Absent => return Ok(()),
            Action::NotManaged => {
                (self.report)("not managed, left alone");
                return Ok(());
            }
            Action::Remove => {
                (self.report)(&format!("removing the release {release}"));
                self.helm
                    .uninstall(release, timeout)
                    .await
                    .map_err(failed("remove"))?;
                (self.report)("removed");
                return Ok(());
            }
            Action::Keep { reason } => (self.report)(&format!("unchanged: {reason}")),
            Action::Install | Action::Upgrade { .. } => {
                if let Some(recovery) = &step.recovery {
                    (self.report)(&format!("recovering: {recovery}"));
                    match recovery {
                        Recovery::Rollback { revision, .. } => {
                            self.helm
                                .rollback(release, *revision, timeout)
                                .await
                                .map_err(failed("roll back"))?;
                        }
                        Recovery::Uninstall { .. } => {
                            self.helm
                                .uninstall(release, timeout)
                                .await
                                .map_err(failed("clean up"))?;
                        }
                    }
                }
                let Some(chart) = &step.chart else {
                    return Ok(());
                };
                let (doing, done) = match action {
                    Action::Install => ("install", "installed"),
                    _ => ("upgrade", "upgraded"),
                };
                (self.report)(&format!("{doing}: {chart}"));
                self.helm
                    .upgrade(release, chart, &step.values, timeout)
                    .await
                    .map_err(failed(doing))?;
                (self.report)(&format!("{done}; waiting until it is ready"));
            }
        }
        self.wait(step).await?;
        if *action == Action::Install {
            for check in &step.after_install {
                match check {
                    AfterCheck::UnmanagedPods => self.warn_of_unmanaged_pods().await,
                }
            }
        }
        Ok(())
    }

    async fn wait(&mut self, step: &Step) -> Result<(), ApplyError> {
        ready::wait(
            self.client,
            self.plan.namespace,
            &step.readiness,
            self.options.timeout,
            self.interrupt,
            self.report,
        )
        .await
        .map_err(|source| ApplyError::NotReady {
            application: step.application,
            source,
        })
    }

    async fn warn_of_unmanaged_pods(&mut self) {
        match unmanaged_pods(self.client).await {
            Ok(pods) if pods.is_empty() => {}
            Ok(pods) => {
                (self.report)(&format!(
                    "warning: pods that were started before it and that it does not manage, so that no policy holds \
                     for them until they are restarted: {}",
                    pods.join(", ")
                ));
            }
            // The installation has succeeded; not knowing this must be said and must not undo that.
            Err(error) => (self.report)(&format!(
                "warning: cannot tell which pods it does not manage: {}",
                chain(&error)
            )),
        }
    }
}

async fn left_behind(helm: &Helm, release: &str) -> String {
    match helm.uninterrupted().list().await {
        Ok(releases) => match releases.iter().find(|found| found.name == release) {
            Some(found) => format!(
                "the release {release} is {} (revision {})",
                found.status, found.revision
            ),
            None => format!("there is no release {release}"),
        },
        Err(error) => format!("the state of the release {release} is unknown: {error}"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
