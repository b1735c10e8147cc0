//! Waiting until a lab can be used: API server, nodes, DNS, and the images that are imported meanwhile.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Prepared, Running, failed_start, supervisor_log};
use crate::access::{enter, load, state};
use crate::addons;
use crate::dns;
use crate::error::{Attempt as _, Error, Result};
use crate::progress::Step;
use crate::run::Program;

/// How long each condition of a starting lab may take: more than the node itself
/// waits for its API server, so that its own account of a failure is heard first.
const DEADLINE: Duration = Duration::from_mins(4);

pub(super) fn wait(prepared: &Prepared, running: &Running, step: &Step) -> Result<()> {
    std::thread::scope(|scope| {
        let imports = scope.spawn(|| import_fresh(prepared, running));
        step.detail("waiting for the API server");
        wait_for(running, "the API server", || {
            kubectl(prepared, running)
                .args(["get", "--raw", "/readyz"])
                .read()
                .map(drop)
                .map_err(|error| why(&error))
        })?;
        kubectl(prepared, running)
            .args(["create", "--validate=false", "--filename=-"])
            .input(addons::manifest(&running.lab))
            .run()?;
        step.detail("waiting for the nodes");
        wait_for(running, "the nodes", || {
            let text = kubectl(prepared, running)
                .args(["get", "nodes", "--output=json"])
                .read()
                .map_err(|error| why(&error))?;
            let value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            unready(&value, running.lab.nodes.len())
        })?;
        step.detail("waiting for DNS");
        wait_for(running, "DNS", || {
            enter(&running.lab, &running.lab.control_plane().name, &["--net"])
                .and_then(|program| {
                    let own = std::env::current_exe().attempt(|| "find this program".to_owned())?;
                    program.arg(own).arg(dns::COMMAND).run()
                })
                .map_err(|error| why(&error))
        })?;
        imports.join().expect("imports do not panic")
    })
}

/// The last line of an error says most.
fn why(error: &Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim().to_owned()
}

/// Waits for a condition, but not for one of a lab that has ended meanwhile.
fn wait_for(
    running: &Running,
    what: &str,
    mut condition: impl FnMut() -> Result<(), String>,
) -> Result<()> {
    let started = Instant::now();
    loop {
        match condition() {
            Ok(()) => return Ok(()),
            Err(_) if state(&running.lab).is_err() => {
                return Err(failed_start(&supervisor_log(
                    &running.lab.cache,
                    &running.lab.name,
                )));
            }
            Err(last) if started.elapsed() > DEADLINE => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    waited: started.elapsed(),
                    last,
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Says which nodes are missing or not Ready, and why.
fn unready(nodes: &Value, wanted: usize) -> Result<(), String> {
    let items = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
    if items.len() < wanted {
        return Err(format!("{} of {wanted} nodes have registered", items.len()));
    }
    for item in items {
        let conditions = item["status"]["conditions"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready");
        if ready.is_none_or(|condition| condition["status"] != "True") {
            let reason = ready.map_or("no status yet", |condition| {
                condition["message"].as_str().unwrap_or_default()
            });
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            return Err(format!("{name} is not Ready: {reason}"));
        }
    }
    Ok(())
}

fn import_fresh(prepared: &Prepared, running: &Running) -> Result<()> {
    for node in &running.lab.nodes {
        for image in &prepared.fresh {
            wait_for(running, "containerd", || {
                load(&running.lab, &node.name, &image.archive).map_err(|error| why(&error))
            })?;
        }
    }
    Ok(())
}

fn kubectl(prepared: &Prepared, running: &Running) -> Program {
    Program::new(prepared.tools.kubectl())
        .arg("--kubeconfig")
        .arg(&running.kubeconfig)
        .arg("--request-timeout=5s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_that_is_not_ready_says_why() {
        let node = |status: &str| {
            json!({"metadata": {"name": "n1"}, "status": {"conditions": [
                {"type": "Ready", "status": status, "message": "network plugin not ready"},
            ]}})
        };
        assert_eq!(
            unready(&json!({"items": [node("False")]}), 1),
            Err("n1 is not Ready: network plugin not ready".to_owned())
        );
        assert_eq!(
            unready(&json!({"items": []}), 1),
            Err("0 of 1 nodes have registered".to_owned())
        );
        assert_eq!(unready(&json!({"items": [node("True")]}), 1), Ok(()));
    }
}
