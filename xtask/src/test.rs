//! `cargo xtask test`: everything that needs no cluster.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use lab::cache::Cache;
use lab::packages;
use lab::progress::Progress;

use crate::cli::TestArgs;
use crate::tidy;
use crate::workspace::{self, tell};

/// Runs each check in turn, cheapest first, and stops at the first that fails.
pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    let cache = Cache::open()?;
    let progress = Progress::new(cache.root());
    let installing = args.install.installing();
    packages::ensure(&cache, installing, &progress)?;
    let nextest = packages::nextest(&cache, installing, &progress)?;

    let show = |line: &str| tell(&format!("{line}\n"));
    progress.note("checking the format");
    workspace::cargo()
        .args(["fmt", "--all", "--check"])
        .run_showing(show)
        .context("the format differs; `cargo fmt --all` mends it")?;
    progress.note("checking the house rules");
    let tidy = tidy::run()?;
    if tidy != ExitCode::SUCCESS {
        return Ok(tidy);
    }
    progress.note("checking with clippy");
    workspace::cargo()
        .args(["clippy", "--workspace", "--all-targets", "--quiet", "--"])
        .args(["--deny", "warnings"])
        .run_showing(show)
        .context("clippy has complaints")?;
    progress.note("running the tests");
    let profile = if std::env::var_os("CI").is_some() {
        "ci"
    } else {
        "default"
    };
    workspace::nextest(&nextest)
        .args(["--profile", profile])
        .run_showing(show)
        .context("tests failed")?;
    Ok(ExitCode::SUCCESS)
}
