//! `cargo xtask e2e`: cluster up, install, prove, report, cluster down.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use lab::cache::Cache;
use lab::doctor;
use lab::packages;
use lab::progress::Progress;
use lab::run::Program;
use lab::supervisor::{Life, Orders};
use lab::up::{self, Prepared, Running, Wanted};

use crate::cli::{E2eArgs, Suite};
use crate::evidence;
use crate::interrupt;
use crate::results::{Machine, Outcome, Results};
use crate::workspace::{self, say, tell};

/// Every suite, in the order that tells most first.
const ALL: &[Suite] = &[Suite::Smoke, Suite::Faults, Suite::Lab];

/// Everything that must be built before the cluster starts, so that it does not stand idle.
struct Built {
    prepared: Prepared,
    holdfast: PathBuf,
    nextest: PathBuf,
}

/// Runs the suites. Succeeds only if every verdict is what the configuration promises.
pub(crate) fn run(args: &E2eArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let cache = Cache::open()?;
    let progress = Progress::new(cache.root());
    doctor::refuse_if_blocked(&doctor::judge(&doctor::facts(&cache)?))?;
    let mut results = Results::new(&workspace::target())?;

    let phase = Instant::now();
    let built = build(&cache, args, &progress)?;
    results.phase("build", phase.elapsed(), Outcome::Passed);

    let phase = Instant::now();
    let running = cluster(&cache, &built.prepared, args, &progress)?;
    results.phase("cluster up", phase.elapsed(), Outcome::Passed);

    let carried_out = prove(args, &built, &running, &mut results, &progress);

    let phase = Instant::now();
    evidence::collect(
        &built.prepared.tools.kubectl(),
        &running.kubeconfig,
        Some(&running),
        &results.folder().join("evidence"),
    );
    results.phase("evidence", phase.elapsed(), Outcome::Passed);

    let memory = lab::cgroup::working_set(&running.lab.cgroup())?;
    if args.keep || args.reuse {
        tell(&format!(
            "the cluster stays: export KUBECONFIG={}\n",
            running.kubeconfig.display()
        ));
    } else {
        let phase = Instant::now();
        running.down(&cache)?;
        results.phase("cluster down", phase.elapsed(), Outcome::Passed);
    }
    carried_out?;
    let outcome = results.write(&machine(memory))?;
    summary(&results, outcome, started, args);
    Ok(match outcome {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
    })
}

fn build(cache: &Cache, args: &E2eArgs, progress: &Progress) -> Result<Built> {
    let installing = args.install.installing();
    packages::ensure(cache, installing, progress)?;
    let inputs = workspace::lab_inputs(progress)?;
    let nextest = packages::nextest(cache, installing, progress)?;
    let step = progress.step("building holdfast and the cluster tests");
    nextest_command(&nextest)
        .arg("--no-run")
        .run_with_lines(|line| step.detail(line.trim()))
        .context("building holdfast and the cluster tests")?;
    step.done();
    let prepared = up::prepare(cache, &inputs, installing, progress)?;
    Ok(Built {
        prepared,
        holdfast: workspace::holdfast(),
        nextest,
    })
}

fn cluster(
    cache: &Cache,
    prepared: &Prepared,
    args: &E2eArgs,
    progress: &Progress,
) -> Result<Running> {
    if args.reuse {
        return Ok(up::find(cache, &args.lab)?);
    }
    let life = if args.keep {
        Life::Detached
    } else {
        interrupt::attach(cache.root().to_owned(), &args.lab);
        Life::Attached
    };
    let wanted = Wanted {
        name: args.lab.clone(),
        nodes: args.nodes,
        orders: Orders { life, api_port: 0 },
    };
    Ok(up::start(cache, prepared, &wanted, progress)?)
}

/// Installs and runs the suites. A failure is recorded in the results, not returned:
/// evidence is collected and the cluster taken down all the same.
fn prove(
    args: &E2eArgs,
    built: &Built,
    running: &Running,
    results: &mut Results,
    progress: &Progress,
) -> Result<()> {
    let project = absolute(&args.project)?;
    let phase = Instant::now();
    let install = Program::tied(&built.holdfast)
        .arg("apply")
        .arg("--project")
        .arg(&project)
        .arg("--kubeconfig")
        .arg(&running.kubeconfig)
        .arg("--charts")
        .arg(built.prepared.charts())
        .arg("--helm")
        .arg(built.prepared.tools.helm())
        .run_showing(|line| progress.note(&format!("holdfast: {line}")));
    if let Err(error) = install {
        results.phase("install", phase.elapsed(), Outcome::Failed);
        lab::report(&error);
        return Ok(());
    }
    results.phase("install", phase.elapsed(), Outcome::Passed);

    let junit = workspace::target().join("nextest/e2e/junit.xml");
    // An earlier run's must not pass for this one's.
    let _ = fs_err::remove_file(&junit);
    let phase = Instant::now();
    let tests = nextest_command(&built.nextest)
        .args(["--no-tests", "fail", "--filterset", &filter(args)])
        .env("RUST_BACKTRACE", "0")
        .env("HOLDFAST_ROOT", workspace::root())
        .env("HOLDFAST_RESULTS", results.folder())
        .env("HOLDFAST_KUBECONFIG", &running.kubeconfig)
        .env("HOLDFAST_BIN", &built.holdfast)
        .env(
            "HOLDFAST_XTASK",
            std::env::current_exe().context("finding this program")?,
        )
        .env("HOLDFAST_PROJECT", &project)
        .env("HOLDFAST_POLICIES", absolute(&args.policies)?)
        .env("HOLDFAST_CHARTS", built.prepared.charts())
        .env("HOLDFAST_HELM", built.prepared.tools.helm())
        .run_showing(|line| tell(&format!("{line}\n")));
    let outcome = match tests {
        Ok(()) => Outcome::Passed,
        Err(_) => Outcome::Failed,
    };
    results.phase("tests", phase.elapsed(), outcome);
    // Missing when not even one test could be started; the phase has failed then.
    let _ = fs_err::copy(junit, results.folder().join("junit.xml"));
    Ok(())
}

/// The tests of the chosen suites.
fn filter(args: &E2eArgs) -> String {
    let modules: Vec<&str> = suites(args).iter().map(|suite| suite.module()).collect();
    format!("test(/^({})::/)", modules.join("|"))
}

fn suites(args: &E2eArgs) -> &[Suite] {
    if args.suites.is_empty() {
        ALL
    } else {
        &args.suites
    }
}

fn nextest_command(nextest: &Path) -> Program {
    workspace::nextest(nextest)
        // The whole workspace, as `cargo xtask test` builds it: with a smaller choice of
        // packages cargo chooses other features and builds every dependency again.
        .args(["--profile", "e2e"])
        // The output is passed on line by line, so nextest cannot tell a terminal by itself.
        .args(["--color", "never"])
}

fn absolute(path: &Path) -> Result<PathBuf> {
    let here = workspace::root().join(path);
    let path = if path.exists() { path } else { &here };
    fs_err::canonicalize(path).context("finding a folder named on the command line")
}

fn machine(lab_memory_bytes: Option<u64>) -> Machine {
    let read = |path: &str| {
        fs_err::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    Machine {
        kernel: read("/proc/sys/kernel/osrelease"),
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        load: read("/proc/loadavg"),
        lab_memory_bytes,
    }
}

fn summary(results: &Results, outcome: Outcome, started: Instant, args: &E2eArgs) {
    say("\n");
    for line in results.verdict_lines() {
        say(&format!("{line}\n"));
    }
    let word = match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
    };
    let names: Vec<&str> = suites(args).iter().map(|suite| suite.module()).collect();
    say(&format!(
        "\n{word} in {}: {}\nresults: {}\n",
        lab::progress::human(started.elapsed()),
        names.join(", "),
        results.folder().display()
    ));
}
