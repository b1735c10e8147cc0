//! `cargo xtask bench`.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::BenchArgs;

/// Measures and writes `docs/benchmarks.md`.
pub(crate) fn run(_args: &BenchArgs) -> Result<ExitCode> {
    bail!("nothing yet")
}
