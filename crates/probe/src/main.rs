//! `holdfast-probe`: the only program inside a proof pod. It is the pod's sandbox, its server, and its prober.

mod agent;
mod identity;
mod ledger;
mod pause;
mod resolve;
mod serve;

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

const USAGE: &str = "usage: holdfast-probe pause
       holdfast-probe serve [--tcp PORT...] [--udp PORT...]
       holdfast-probe agent
       holdfast-probe --version";

enum Command {
    Pause,
    Serve(serve::Ports),
    Agent,
    Version,
}

fn main() -> ExitCode {
    let mut arguments = env::args();
    let program = arguments.next().unwrap_or_default();
    let command = match parse(&program, arguments) {
        Ok(command) => command,
        Err(problem) => {
            complain(&format!("{problem}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("holdfast-probe: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn parse(program: &str, mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let Some(subcommand) = arguments.next() else {
        // The container runtime starts the sandbox image as `/pause`, without arguments.
        return if program.ends_with("pause") {
            Ok(Command::Pause)
        } else {
            Err("no subcommand".to_owned())
        };
    };
    let command = match subcommand.as_str() {
        "pause" => Command::Pause,
        "agent" => Command::Agent,
        "--version" => Command::Version,
        "serve" => return parse_ports(arguments).map(Command::Serve),
        other => return Err(format!("unknown subcommand {other:?}")),
    };
    match arguments.next() {
        None => Ok(command),
        Some(extra) => Err(format!("unexpected argument {extra:?}")),
    }
}

fn parse_ports(arguments: impl Iterator<Item = String>) -> Result<serve::Ports, String> {
    let mut ports = serve::Ports::default();
    let mut current: Option<&mut Vec<u16>> = None;
    for argument in arguments {
        match (argument.as_str(), &mut current) {
            ("--tcp", _) => current = Some(&mut ports.tcp),
            ("--udp", _) => current = Some(&mut ports.udp),
            (_, None) => return Err(format!("{argument:?} comes before --tcp or --udp")),
            (port, Some(list)) => {
                let port = port
                    .parse()
                    .map_err(|_| format!("{port:?} is not a port"))?;
                list.push(port);
            }
        }
    }
    if ports.tcp.is_empty() && ports.udp.is_empty() {
        return Err("serve needs at least one port".to_owned());
    }
    Ok(ports)
}

fn run(command: Command) -> io::Result<()> {
    if let Command::Version = command {
        return writeln!(io::stdout(), "holdfast-probe {}", env!("CARGO_PKG_VERSION"));
    }
    // One thread is enough for all of it, and every pod of a node runs a `pause`.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            match command {
                Command::Pause => pause::run().await,
                Command::Serve(ports) => serve::run(ports).await,
                Command::Agent => agent::run().await,
                Command::Version => Ok(()),
            }
        })
}

/// Nothing can be done about a stderr that is closed, and a panic would hide the exit code.
fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}
