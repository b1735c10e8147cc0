//! `cargo xtask lab`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use lab::access;
use lab::cache::Cache;
use lab::doctor;
use lab::progress::Progress;
use lab::run::Program;
use lab::supervisor::{Life, Orders};
use lab::sweep::{self, Presence};
use lab::up::{self, Running, Wanted};

use crate::cli::{self, LabCommand};
use crate::interrupt;
use crate::workspace::{self, say, tell};

/// Runs one `lab` command.
pub(crate) fn run(command: LabCommand) -> Result<ExitCode> {
    let cache = Cache::open()?;
    match command {
        LabCommand::Up {
            name,
            nodes,
            api_port,
            life,
            install,
        } => {
            let progress = Progress::new(cache.root());
            doctor::refuse_if_blocked(&doctor::judge(&doctor::facts(&cache)?))?;
            lab::spec::check_name(&name.lab)?;
            let inputs = workspace::lab_inputs(&progress)?;
            let prepared = up::prepare(&cache, &inputs, install.installing(), &progress)?;
            let life = match life {
                cli::Life::Attached => {
                    interrupt::attach(cache.root().to_owned(), &name.lab);
                    Life::Attached
                }
                cli::Life::Detached => Life::Detached,
            };
            let wanted = Wanted {
                name: name.lab,
                nodes,
                orders: Orders { life, api_port },
            };
            let running = up::start(&cache, &prepared, &wanted, &progress)?;
            describe(&running);
            if life == Life::Attached {
                // Until a signal ends this command.
                loop {
                    std::thread::park();
                }
            }
        }
        LabCommand::Down { name, all } => {
            let names = if all {
                sweep::all(cache.root())?
                    .into_iter()
                    .map(|(name, _)| name)
                    .collect()
            } else {
                vec![name.lab]
            };
            for name in names {
                let text = match sweep::down(cache.root(), &name)? {
                    Presence::Absent => "there was no lab",
                    Presence::Running => "ended",
                    Presence::Left => "removed what a killed lab left",
                };
                tell(&format!("{name}: {text}\n"));
            }
        }
        LabCommand::Status { name } => status(&cache, &name.lab)?,
        LabCommand::Kubeconfig { name } => {
            let running = up::find(&cache, &name.lab)?;
            say(&format!("{}\n", running.kubeconfig.display()));
        }
        LabCommand::Shell {
            name,
            node,
            command,
        } => return shell(&cache, &name.lab, &node, &command),
        LabCommand::Logs {
            name,
            node,
            component,
        } => logs(&cache, &name.lab, &node, &component)?,
        LabCommand::Load { name, archive } => {
            let running = up::find(&cache, &name.lab)?;
            for node in &running.lab.nodes {
                access::load(&running.lab, &node.name, &archive)?;
                tell(&format!("{}: imported {}\n", node.name, archive.display()));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(running: &Running) {
    let name = &running.lab.name;
    tell(&format!(
        "\nthe lab {name} is up; use it with\n\n    export KUBECONFIG={}\n    kubectl get nodes\n\n\
         a shell on its node:  cargo xtask lab shell --lab {name}\n\
         end it:               cargo xtask lab down --lab {name}\n",
        running.kubeconfig.display()
    ));
}

fn status(cache: &Cache, name: &str) -> Result<()> {
    match sweep::presence(cache.root(), name)? {
        Presence::Absent => say(&format!("{name}: no lab\n")),
        Presence::Left => say(&format!(
            "{name}: killed; `cargo xtask lab down --lab {name}` removes what is left\n"
        )),
        Presence::Running => {
            let running = up::find(cache, name)?;
            let state = access::state(&running.lab)?;
            say(&format!(
                "{name}: running, API server at https://127.0.0.1:{}\n",
                state.api_port
            ));
            for node in &running.lab.nodes {
                say(&format!("  {} {}\n", node.name, node.address));
                for (component, state) in access::components(&running.lab, &node.name) {
                    let running = if state.pid == 0 { "ended" } else { "running" };
                    let last = state.last_exit.unwrap_or_default();
                    let restarts = match state.restarts {
                        0 => String::new(),
                        count => format!(", {count} restarts, last {last}"),
                    };
                    say(&format!("    {component:<24} {running}{restarts}\n"));
                }
            }
        }
    }
    Ok(())
}

fn shell(cache: &Cache, name: &str, node: &str, command: &[String]) -> Result<ExitCode> {
    let running = up::find(cache, name)?;
    let words = access::shell_words(&running.lab, node)?;
    let mut process = std::process::Command::new(&words[0]);
    process.args(&words[1..]);
    if command.is_empty() {
        process.arg("bash");
    } else {
        process.args(command);
    }
    let status = process.status().context("opening a shell on the node")?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn logs(cache: &Cache, name: &str, node: &str, component: &str) -> Result<()> {
    let running_folder = lab::spec::folder(cache.root(), name)
        .join("nodes")
        .join(node)
        .join("logs");
    // The logs of an ended lab are kept beside the labs.
    let kept = cache.root().join("logs").join(name).join(node);
    let folder = if running_folder.exists() {
        running_folder
    } else {
        kept
    };
    let path = folder.join(format!("{component}.log"));
    if !path.exists() {
        let known: Vec<String> = fs_err::read_dir(&folder)
            .map(|listing| {
                listing
                    .flatten()
                    .filter_map(|entry| {
                        let name = entry.file_name().to_string_lossy().into_owned();
                        name.strip_suffix(".log").map(str::to_owned)
                    })
                    .collect()
            })
            .unwrap_or_default();
        bail!(
            "the lab {name} has no log of `{component}` on {node}; there is: {}",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        );
    }
    Program::new("cat")
        .arg(path)
        .run_with_lines(|line| say(&format!("{line}\n")))?;
    Ok(())
}
