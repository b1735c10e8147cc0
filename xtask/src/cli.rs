//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Holdfast's tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One task each.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Cluster up, install, prove, report, cluster down.
    E2e(E2eArgs),
    /// Start, use and end a cluster by hand.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Format, lints, unit and integration tests, house rules.
    Test(TestArgs),
    /// What can and cannot be proven on this machine, and why.
    Doctor(DoctorArgs),
    /// Measure, and write docs/benchmarks.md.
    Bench(BenchArgs),
    /// The house rules alone.
    Tidy,
}

/// Whether missing packages and tools may be installed.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct InstallArgs {
    /// Refuse to install missing packages and tools; list them instead
    #[arg(long)]
    no_install: bool,
}

impl InstallArgs {
    pub(crate) fn installing(self) -> lab::packages::Installing {
        if self.no_install {
            lab::packages::Installing::Refused
        } else {
            lab::packages::Installing::Allowed
        }
    }
}

/// A group of cluster tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// The first proof: a policy, its positive control and its mutation.
    Smoke,
    /// Broken policy, audit mode, no enforcement, stopped agent: each must get the right verdict.
    Faults,
    /// The lab's commands; and however a lab ends, nothing is left behind.
    Lab,
}

impl Suite {
    /// The module of the `e2e` crate that holds it.
    pub(crate) fn module(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Faults => "faults",
            Self::Lab => "lab",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct E2eArgs {
    /// Suites to run; all of them when none is named
    #[arg(long = "suite", value_enum)]
    pub(crate) suites: Vec<Suite>,
    /// The management project to install
    #[arg(long, default_value = "fixtures/projects/cilium")]
    pub(crate) project: PathBuf,
    /// The policies that the smoke suite proves
    #[arg(long, default_value = "fixtures/network/three-namespaces")]
    pub(crate) policies: PathBuf,
    /// Number of nodes
    #[arg(long, default_value_t = 1)]
    pub(crate) nodes: u8,
    /// The lab's name
    #[arg(long, default_value = "e2e")]
    pub(crate) lab: String,
    /// Leave the cluster running
    #[arg(long)]
    pub(crate) keep: bool,
    /// Use the running lab of that name, and leave it running
    #[arg(long)]
    pub(crate) reuse: bool,
    #[command(flatten)]
    pub(crate) install: InstallArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LabName {
    /// The lab's name
    #[arg(long, default_value = "default")]
    pub(crate) lab: String,
}

/// Whether a new lab outlives the command that starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Life {
    /// It ends when the command ends, by any means
    Attached,
    /// It runs until `lab down`
    Detached,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start a cluster and leave it running
    Up {
        #[command(flatten)]
        name: LabName,
        /// Number of nodes
        #[arg(long, default_value_t = 1)]
        nodes: u8,
        /// The API server's port on 127.0.0.1; a free one when left out
        #[arg(long, default_value_t = 0)]
        api_port: u16,
        /// How long the cluster lives; an attached one runs until this command is interrupted
        #[arg(long, value_enum, default_value_t = Life::Detached)]
        life: Life,
        #[command(flatten)]
        install: InstallArgs,
    },
    /// End a cluster, or remove what a killed one left
    Down {
        #[command(flatten)]
        name: LabName,
        /// Every lab of this cache
        #[arg(long)]
        all: bool,
    },
    /// What runs
    Status {
        #[command(flatten)]
        name: LabName,
    },
    /// Print the path of the kubeconfig
    Kubeconfig {
        #[command(flatten)]
        name: LabName,
    },
    /// A shell on a node, with kubectl and helm
    Shell {
        #[command(flatten)]
        name: LabName,
        /// The node
        #[arg(long, default_value = "n1")]
        node: String,
        /// A command to run instead of an interactive shell
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// The log of a component: etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
    /// containerd, kubelet, coredns, init
    Logs {
        #[command(flatten)]
        name: LabName,
        /// The node
        #[arg(long, default_value = "n1")]
        node: String,
        /// The component
        component: String,
    },
    /// Import an image archive into every node
    Load {
        #[command(flatten)]
        name: LabName,
        /// A docker-archive or OCI tar
        archive: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    pub(crate) install: InstallArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// A warm cache: starting, enforcing, proving, ending
    Lab,
    /// Empty caches, Go's included: everything is built again; takes a quarter of an hour
    Cold,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[arg(value_enum)]
    pub(crate) subject: Subject,
    /// How often each thing is measured; `cold` is measured once
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
}
