//! The command line: what can be typed, and what each command does with it.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use thiserror::Error;

use crate::{
    apply::{self, ApplyError, Options, Removal},
    catalogue::{Catalogue, NAMESPACE},
    chart::{self, ChartError},
    cluster::{self, Cluster, ConnectError},
    config::{Config, Switch},
    helm::{Helm, HelmError, HelmTarget},
    interrupt::Interrupt,
    observe::observe,
    plan::{self, Plan, Text},
    problem::Problems,
    project::{self, LoadError},
    ready::{self, State, WaitError},
};

/// Installs managed applications, and says what it does and why.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0    done
  1    it failed
  2    bad input or usage: nothing was changed
  130  interrupted";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what `apply` would do, and why
    Plan {
        #[command(flatten)]
        project: ProjectArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
        /// How to print the plan
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Bring the cluster to what the project says, and wait until it is ready
    Apply {
        #[command(flatten)]
        project: ProjectArgs,
        #[command(flatten)]
        cluster: ClusterArgs,
        /// How long each application may take, as in 90s, 5m or 1h
        #[arg(long, value_parser = duration, default_value = "5m")]
        timeout: Duration,
        /// Let `installed: false` remove what is there
        #[arg(long)]
        allow_removal: bool,
    },
    /// Show the releases and whether they are up
    Status {
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Debug, Args)]
struct ProjectArgs {
    /// The folder that has `.gitlab/managed-apps/config.yaml`
    #[arg(long, value_name = "DIR", default_value = ".")]
    project: PathBuf,
    /// A folder of unpacked charts by name (DIR/cilium/Chart.yaml), used instead of chart repositories
    #[arg(long, value_name = "DIR", env = "HOLDFAST_CHARTS")]
    charts: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ClusterArgs {
    /// The kubeconfig [default: KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long)]
    context: Option<String>,
    /// The Helm 4 program
    #[arg(
        long,
        value_name = "PATH",
        env = "HOLDFAST_HELM",
        default_value = "helm"
    )]
    helm: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// A few lines for people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Why a command failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// The project's files could not be used.
    #[error("cannot use the project")]
    Project(#[from] LoadError),
    /// A chart could not be used.
    #[error("cannot use a chart")]
    Chart(#[from] ChartError),
    /// The cluster could not be decided on.
    #[error("cannot reach a cluster")]
    Connect(#[from] ConnectError),
    /// Helm could not say what is there.
    #[error("cannot read the releases")]
    Helm(#[from] HelmError),
    /// The plan was not carried out.
    #[error("cannot apply the plan")]
    Apply(#[from] ApplyError),
    /// The objects of a release could not be looked at.
    #[error("cannot read the state of the releases")]
    Status(#[from] WaitError),
    /// The built-in catalogue is broken, which is a bug.
    #[error("the built-in catalogue is broken\n{0}")]
    Catalogue(Problems),
    /// The result could not be written.
    #[error("cannot write the output")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// The exit code of this failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Apply(ApplyError::Interrupted { .. })
            | Self::Helm(HelmError::Interrupted { .. }) => 130,
            Self::Project(_)
            | Self::Chart(_)
            | Self::Connect(_)
            | Self::Apply(ApplyError::RemovalRefused { .. })
            | Self::Helm(HelmError::NotFound { .. } | HelmError::TooOld { .. }) => 2,
            _ => 1,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Project(error) => error.hint(),
            Self::Chart(error) => error.hint(),
            Self::Connect(error) => error.hint(),
            Self::Helm(error) => error.hint(),
            Self::Apply(error) => error.hint(),
            Self::Status(_) | Self::Catalogue(_) | Self::Output(_) => None,
        }
    }

    /// The problems of the project's files, when that is what is wrong.
    pub fn problems(&self) -> Option<&Problems> {
        match self {
            Self::Project(LoadError::Invalid { problems }) => Some(problems),
            _ => None,
        }
    }
}

/// Runs a command to its end.
pub async fn run(cli: Cli, interrupt: Interrupt) -> Result<ExitCode, CliError> {
    match cli.command {
        Command::Plan {
            project,
            cluster,
            format,
        } => {
            let (plan, ..) = prepare(&project, &cluster, &interrupt).await?;
            let mut out = anstream::stdout().lock();
            match format {
                Format::Text => write!(out, "{}", Text(&plan))?,
                Format::Json => writeln!(out, "{:#}", serde_json::json!(plan))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Apply {
            project,
            cluster,
            timeout,
            allow_removal,
        } => {
            let (plan, helm, cluster) = prepare(&project, &cluster, &interrupt).await?;
            let removal = if allow_removal {
                Removal::Allowed
            } else {
                Removal::Refused
            };
            let options = Options { removal, timeout };
            apply::apply(&plan, &helm, &cluster.client, options, &interrupt, &mut say).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status { cluster } => status(&cluster, &interrupt).await,
    }
}

async fn prepare(
    project: &ProjectArgs,
    args: &ClusterArgs,
    interrupt: &Interrupt,
) -> Result<(Plan, Helm, Cluster), CliError> {
    let catalogue = Catalogue::embedded().map_err(CliError::Catalogue)?;
    let config = project::load(&project.project, &catalogue)?;
    for remark in config.remarks.remarks() {
        say(&remark.render());
    }
    let charts = charts(&config, &catalogue, project)?;
    let (helm, cluster) = reach(args, interrupt).await?;
    let observed = observe(&helm, &catalogue).await?;
    Ok((
        plan::plan(&config, &catalogue, &charts, &observed),
        helm,
        cluster,
    ))
}

fn charts(
    config: &Config,
    catalogue: &Catalogue,
    args: &ProjectArgs,
) -> Result<BTreeMap<crate::application::Application, chart::Chart>, CliError> {
    let mut charts = BTreeMap::new();
    for managed in config
        .applications
        .values()
        .filter(|managed| managed.switch == Switch::Install)
    {
        if let Some(recipe) = catalogue.recipe(managed.application) {
            let chart = chart::resolve(
                &recipe.chart,
                &managed.chart,
                &args.project,
                args.charts.as_deref(),
            )?;
            charts.insert(managed.application, chart);
        }
    }
    Ok(charts)
}

async fn reach(args: &ClusterArgs, interrupt: &Interrupt) -> Result<(Helm, Cluster), CliError> {
    let cluster = cluster::connect(args.kubeconfig.as_deref(), args.context.as_deref()).await?;
    let target = HelmTarget {
        kubeconfig: cluster.kubeconfig.clone(),
        context: cluster.context.clone(),
        namespace: NAMESPACE.to_owned(),
    };
    let helm = Helm::find(Path::new(&args.helm), target, interrupt.clone()).await?;
    Ok((helm, cluster))
}

async fn status(args: &ClusterArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let catalogue = Catalogue::embedded().map_err(CliError::Catalogue)?;
    let (helm, cluster) = reach(args, interrupt).await?;
    let releases = helm.list().await?;
    let mut out = anstream::stdout().lock();
    let mut all_well = true;
    for recipe in catalogue.recipes() {
        let Some(release) = releases
            .iter()
            .find(|release| release.name == recipe.release)
        else {
            writeln!(out, "{}: not installed", recipe.application)?;
            continue;
        };
        let (status, revision) = (release.status, release.revision);
        writeln!(
            out,
            "{}: {status}, {}, revision {revision}",
            recipe.application, release.chart
        )?;
        all_well &= status == crate::helm::ReleaseStatus::Deployed;
        let seen = ready::look(&cluster.client, NAMESPACE, &recipe.readiness).await?;
        for (target, state) in recipe.readiness.iter().zip(seen) {
            writeln!(
                out,
                "  {} {}: {state}",
                target.kind.lowercase(),
                target.name
            )?;
            all_well &= state == State::Ready;
        }
    }
    Ok(if all_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One line about what is going on. A closed stderr is no reason to stop half-way through an installation.
fn say(line: &str) {
    let _closed = writeln!(anstream::stderr(), "{line}");
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write a number and s, m or h, as in 90s, 5m or 1h".to_owned()),
    };
    match number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(seconds))
    {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("the time must be a whole number above 0".to_owned()),
    }
}
