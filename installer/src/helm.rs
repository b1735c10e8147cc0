//! The one door to the Helm command line.
//!
//! Values only ever go through Helm's standard input: an argument can be read by every process of the
//! machine, and a file has to be cleaned up after a kill.

mod release;

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use semver::Version;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use tokio::{io::AsyncWriteExt, process::Command};

pub use release::{Release, ReleaseStatus, Revision};

use crate::{
    chart::{Chart, ChartSource},
    interrupt::Interrupt,
};

/// How long an interrupted Helm may take to write down what it was doing.
const GRACE: Duration = Duration::from_secs(15);

/// The Helm program, aimed at one namespace of one cluster.
#[derive(Clone, Debug)]
pub struct Helm {
    program: PathBuf,
    target: HelmTarget,
    interrupt: Interrupt,
}

/// Which cluster and namespace Helm works on.
#[derive(Clone, Debug)]
pub struct HelmTarget {
    /// Absent means the environment's own.
    pub kubeconfig: Option<PathBuf>,
    /// Absent only inside a cluster, where there is no kubeconfig.
    pub context: Option<String>,
    /// The namespace of the releases.
    pub namespace: String,
}

/// What went wrong with Helm.
#[derive(Debug, Error)]
pub enum HelmError {
    /// There is no such program.
    #[error("cannot find helm as `{}`", program.display())]
    NotFound {
        /// What was looked for.
        program: PathBuf,
        /// Why it was not found.
        source: which::Error,
    },
    /// The program's version cannot be worked with.
    #[error("helm {version} is too old")]
    TooOld {
        /// The version found.
        version: Version,
    },
    /// The program did not say which version it is.
    #[error("cannot read a helm version from `{output}`")]
    Version {
        /// What it said.
        output: String,
        /// Why that is no version.
        source: semver::Error,
    },
    /// The program could not be started, or talking to it failed.
    #[error("cannot run `{command}`")]
    Run {
        /// The command.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// The program failed.
    #[error("`{command}` failed with {status}:\n{stderr}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
    /// The program said something unexpected.
    #[error("cannot read the output of `{command}`")]
    Output {
        /// The command.
        command: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The user stopped it.
    #[error("`{command}` was interrupted")]
    Interrupted {
        /// The command.
        command: String,
    },
}

impl HelmError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { .. } => {
                Some("install Helm 4, or name the program with --helm or HOLDFAST_HELM".to_owned())
            }
            Self::TooOld { .. } => Some(
                "Helm 3 gets no more fixes and lacks flags that are needed; install Helm 4"
                    .to_owned(),
            ),
            Self::Failed { stderr, .. } if stderr.contains("cluster unreachable") => {
                Some("check that the cluster is up and that --kubeconfig and --context name the right one".to_owned())
            }
            Self::Failed { stderr, .. }
                if stderr.contains("failed to fetch") || stderr.contains("no such host") =>
            {
                Some(
                    "without a way to the chart repository, give unpacked charts with --charts"
                        .to_owned(),
                )
            }
            _ => None,
        }
    }
}

impl Helm {
    /// Finds the program and checks that it is Helm 4.
    pub async fn find(
        program: &Path,
        target: HelmTarget,
        interrupt: Interrupt,
    ) -> Result<Self, HelmError> {
        let found = which::which(program).map_err(|source| HelmError::NotFound {
            program: program.to_owned(),
            source,
        })?;
        let helm = Self {
            program: found,
            target,
            interrupt,
        };
        let output = helm
            .output(
                "version",
                vec!["--template".into(), "{{.Version}}".into()],
                None,
            )
            .await?;
        let text = output.trim();
        let version =
            Version::parse(text.trim_start_matches('v')).map_err(|source| HelmError::Version {
                output: text.to_owned(),
                source,
            })?;
        if version.major < 4 {
            Err(HelmError::TooOld { version })
        } else {
            Ok(helm)
        }
    }

    /// The same Helm, deaf to the interrupt: for asking what an interrupted command left behind.
    #[must_use]
    pub fn uninterrupted(&self) -> Self {
        // Without its raiser an interrupt never comes.
        Self {
            interrupt: Interrupt::new().1,
            ..self.clone()
        }
    }

    /// Every release of the namespace, whatever its state.
    pub async fn list(&self) -> Result<Vec<Release>, HelmError> {
        let args = [OsStr::new("--output"), "json".as_ref()];
        self.json("list", self.in_cluster(args))
            .await
            .map(Option::unwrap_or_default)
    }

    /// The values that a release was given.
    pub async fn values(&self, release: &str) -> Result<Value, HelmError> {
        let args = ["values", release, "--output", "json"].map(OsStr::new);
        self.json("get", self.in_cluster(args))
            .await
            .map(|values| values.unwrap_or(Value::Null))
    }

    /// The revisions of a release, oldest first.
    pub async fn history(&self, release: &str) -> Result<Vec<Revision>, HelmError> {
        let args = [release, "--output", "json"].map(OsStr::new);
        self.json("history", self.in_cluster(args))
            .await
            .map(Option::unwrap_or_default)
    }

    /// Installs a release or upgrades it, without waiting for its pods.
    pub async fn upgrade(
        &self,
        release: &str,
        chart: &Chart,
        values: &Value,
        timeout: Duration,
    ) -> Result<(), HelmError> {
        let mut args: Vec<OsString> = vec![release.into()];
        match &chart.source {
            ChartSource::Folder(path) => args.push(path.into()),
            ChartSource::Repo(url) => {
                args.extend(
                    [
                        chart.name.as_str(),
                        "--repo",
                        url,
                        "--version",
                        &chart.version,
                    ]
                    .map(OsString::from),
                );
            }
        }
        args.extend(
            // Without --reset-values an emptied values file would silently keep the old values.
            [
                "--install",
                "--create-namespace",
                "--reset-values",
                "--hide-notes",
                "--values",
                "-",
            ]
            .map(OsString::from),
        );
        args.extend(waiting(timeout));
        self.output(
            "upgrade",
            self.in_cluster(&args),
            Some(values.to_string().into_bytes()),
        )
        .await
        .map(drop)
    }

    /// Puts a release back to one of its revisions.
    pub async fn rollback(
        &self,
        release: &str,
        revision: u64,
        timeout: Duration,
    ) -> Result<(), HelmError> {
        let mut args: Vec<OsString> = vec![release.into(), revision.to_string().into()];
        args.extend(waiting(timeout));
        self.output("rollback", self.in_cluster(&args), None)
            .await
            .map(drop)
    }

    /// Takes a release away, and waits until its objects are gone.
    pub async fn uninstall(&self, release: &str, timeout: Duration) -> Result<(), HelmError> {
        let timeout = format!("{}s", timeout.as_secs());
        let args = [
            release,
            "--ignore-not-found",
            "--wait=watcher",
            "--cascade=foreground",
            "--timeout",
            &timeout,
        ]
        .map(OsStr::new);
        self.output("uninstall", self.in_cluster(args), None)
            .await
            .map(drop)
    }

    fn in_cluster(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Vec<OsString> {
        let mut args: Vec<OsString> = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .collect();
        args.extend(["--namespace".into(), OsString::from(&self.target.namespace)]);
        if let Some(kubeconfig) = &self.target.kubeconfig {
            args.extend(["--kubeconfig".into(), kubeconfig.into()]);
        }
        if let Some(context) = &self.target.context {
            args.extend(["--kube-context".into(), context.into()]);
        }
        args
    }

    async fn json<T: DeserializeOwned>(
        &self,
        command: &'static str,
        args: Vec<OsString>,
    ) -> Result<Option<T>, HelmError> {
        let shown = self.shown(command, &args);
        let output = self.output(command, args, None).await?;
        if output.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&output).map_err(|source| HelmError::Output {
            command: shown,
            source,
        })
    }

    /// Runs one Helm command to its end and returns what it printed.
    async fn output(
        &self,
        command: &'static str,
        args: Vec<OsString>,
        stdin: Option<Vec<u8>>,
    ) -> Result<String, HelmError> {
        let shown = self.shown(command, &args);
        let failed = |source| HelmError::Run {
            command: shown.clone(),
            source,
        };
        let mut child = Command::new(&self.program)
            .arg(command)
            .args(args)
            .stdin(if stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: the terminal's Ctrl-C goes to Holdfast, which passes it on in its own order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let process = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        let pipe = child.stdin.take();
        let mut finished = pin!(async move {
            let write = async {
                if let (Some(mut pipe), Some(bytes)) = (pipe, stdin) {
                    // A Helm that ends early closes the pipe; its own message is the better one.
                    let _closed = pipe.write_all(&bytes).await;
                }
            };
            futures::join!(write, child.wait_with_output()).1
        });
        let output = tokio::select! {
            output = &mut finished => output.map_err(failed)?,
            () = self.interrupt.raised() => {
                // Helm marks the release as failed when it is told, and leaves it pending when it is killed.
                // Not SIGINT: a program that was started in the background may have that ignored.
                if let Some(process) = process {
                    let _gone = kill(process, Signal::SIGTERM);
                }
                let _killed_when_late = tokio::time::timeout(GRACE, &mut finished).await;
                return Err(HelmError::Interrupted { command: shown });
            }
        };
        checked(&output, shown)
    }

    fn shown(&self, command: &str, args: &[OsString]) -> String {
        let mut words = vec![self.program.display().to_string(), command.to_owned()];
        words.extend(args.iter().map(|arg| arg.display().to_string()));
        words.join(" ")
    }
}

/// Helm waits for hooks only: the rollout is Holdfast's to watch, because Helm cannot say what it waits for.
fn waiting(timeout: Duration) -> [OsString; 3] {
    [
        "--wait=hookOnly".into(),
        "--timeout".into(),
        format!("{}s", timeout.as_secs()).into(),
    ]
}

fn checked(output: &Output, command: String) -> Result<String, HelmError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    let said = String::from_utf8_lossy(said);
    let lines: Vec<_> = said.trim_end().lines().collect();
    let stderr = lines[lines.len().saturating_sub(20)..].join("\n");
    Err(HelmError::Failed {
        command,
        status: output.status,
        stderr,
    })
}
