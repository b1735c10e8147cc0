//! The `holdfast` command: parses, calls the library, prints errors, sets the exit code.

use std::{error::Error, io::Write, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use installer::{
    cli::{self, Cli, CliError},
    interrupt::Interrupt,
};

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let (raiser, interrupt) = Interrupt::new();
    runtime.spawn(raiser.raise_on_signal());
    let code = match runtime.block_on(cli::run(cli, interrupt)) {
        Ok(code) => code,
        Err(error) => {
            let mut stderr = anstream::stderr();
            write!(stderr, "{}", report(&error)).context("cannot write to stderr")?;
            ExitCode::from(error.exit_code())
        }
    };
    Ok(code)
}

fn report(error: &CliError) -> String {
    let mut lines = Vec::new();
    if let Some(problems) = error.problems() {
        lines.push(problems.to_string());
    }
    lines.push(format!("error: {error}"));
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Errors of the Kubernetes client say their causes themselves; once is enough.
        if !said.ends_with(&text) {
            lines.push(format!("  caused by: {text}"));
        }
        said = text;
        cause = error.source();
    }
    if let Some(hint) = error.hint() {
        lines.push(format!("hint: {hint}"));
    }
    lines.push(String::new());
    lines.join("\n")
}
