//! Holdfast's own tasks: `cargo xtask e2e`, `test`, `lab`, `doctor`, `bench`, `tidy`.

mod bench;
mod cli;
mod doctor;
mod e2e;
mod evidence;
mod interrupt;
mod lab_command;
mod results;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command, LabCommand};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = lab::dispatch(&args) {
        return code;
    }
    let cli = Cli::parse();
    if matches!(cli.command, Command::Lab(LabCommand::Shell { .. })) {
        interrupt::leave_to_child();
    } else {
        interrupt::watch();
    }
    let done = match cli.command {
        Command::E2e(args) => e2e::run(&args),
        Command::Lab(args) => lab_command::run(args),
        Command::Test(args) => test::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tidy => tidy::run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            workspace::report(&error);
            ExitCode::FAILURE
        }
    }
}
