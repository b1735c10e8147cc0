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
    let mut text = String::new();
    if let Some(problems) = error.problems() {
        text.push_str(&format!("{problems}\n"));
    }
    text.push_str(&format!("error: {error}\n"));
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("  caused by: {error}\n"));
        cause = error.source();
    }
    if let Some(hint) = error.hint() {
        text.push_str(&format!("hint: {hint}\n"));
    }
    text
}
