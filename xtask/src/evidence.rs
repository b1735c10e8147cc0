//! Evidence, collected before a cluster is taken down, whether the run passed or failed.

use std::path::Path;

use fs_err as fs;
use lab::run::Program;
use lab::up::Running;

/// Kinds whose objects are written out. Never Secrets.
const OBJECTS: &[&str] = &[
    "nodes",
    "namespaces",
    "pods",
    "services",
    "endpointslices",
    "daemonsets",
    "deployments",
    "networkpolicies",
    "ciliumnetworkpolicies",
    "ciliumendpoints",
    "ciliumnodes",
];

/// Questions for each Cilium agent.
const AGENT_QUESTIONS: &[(&str, &[&str])] = &[
    ("status.txt", &["status", "--verbose"]),
    ("endpoints.json", &["endpoint", "list", "--output", "json"]),
    ("policy.txt", &["policy", "get"]),
    ("services.txt", &["service", "list"]),
];

/// Writes what can be had of a cluster into `folder`. What cannot be had is named in `missing.txt`:
/// evidence of a broken cluster must not be lost because one question fails.
pub(crate) fn collect(kubectl: &Path, kubeconfig: &Path, running: Option<&Running>, folder: &Path) {
    let mut missing = Vec::new();
    let ask = |args: &[&str]| {
        Program::new(kubectl)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--request-timeout=10s")
            .args(args)
            .read()
    };
    let mut keep = |path: &Path, answer: lab::Result<String>| match answer {
        Ok(text) => {
            let parent = path.parent().unwrap_or(folder);
            let _ = fs::create_dir_all(parent).and_then(|()| fs::write(path, text));
        }
        Err(error) => missing.push(format!("{}: {error}", path.display())),
    };

    let objects = folder.join("objects");
    for kind in OBJECTS {
        let answer = ask(&["get", kind, "--all-namespaces", "--output=yaml"]);
        keep(&objects.join(format!("{kind}.yaml")), answer);
    }
    let events = ask(&[
        "get",
        "events",
        "--all-namespaces",
        "--sort-by=.metadata.creationTimestamp",
    ]);
    keep(&folder.join("events.txt"), events);

    for (namespace, pod) in pods(&ask) {
        let answer = ask(&[
            "logs",
            "--namespace",
            &namespace,
            &pod,
            "--all-containers",
            "--prefix",
            "--tail=2000",
        ]);
        keep(
            &folder
                .join("pods")
                .join(&namespace)
                .join(format!("{pod}.log")),
            answer,
        );
    }
    for (namespace, pod) in pods(&ask) {
        if !is_agent(&pod) {
            continue;
        }
        for (name, question) in AGENT_QUESTIONS {
            let mut args = vec![
                "exec",
                "--namespace",
                &namespace,
                &pod,
                "--container=cilium-agent",
                "--",
                "cilium-dbg",
            ];
            args.extend(*question);
            keep(&folder.join("cilium").join(&pod).join(name), ask(&args));
        }
    }
    if let Some(running) = running {
        for node in &running.lab.nodes {
            let logs = running.lab.node_folder(&node.name).join("logs");
            let to = folder.join("nodes").join(&node.name);
            let _ = fs::create_dir_all(&to);
            for entry in fs::read_dir(logs).into_iter().flatten().flatten() {
                let _ = fs::copy(entry.path(), to.join(entry.file_name()));
            }
        }
    }
    if !missing.is_empty() {
        let _ = fs::write(folder.join("missing.txt"), missing.join("\n"));
    }
}

/// The agent's pods, and neither the operator's nor Envoy's.
fn is_agent(pod: &str) -> bool {
    pod.strip_prefix("cilium-")
        .is_some_and(|rest| !rest.starts_with("operator-") && !rest.starts_with("envoy-"))
}

fn pods(ask: &impl Fn(&[&str]) -> lab::Result<String>) -> Vec<(String, String)> {
    let names = "jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{\"\\n\"}{end}";
    ask(&["get", "pods", "--all-namespaces", "--output", names])
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(namespace, pod)| (namespace.to_owned(), pod.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_among_the_evidence() {
        assert!(OBJECTS.iter().all(|kind| !kind.contains("secret")));
    }

    #[test]
    fn the_agent_is_told_from_its_neighbours() {
        assert!(is_agent("cilium-x7f2k"));
        assert!(!is_agent("cilium-operator-789b77bd87-8kqj7"));
        assert!(!is_agent("cilium-envoy-abcde"));
        assert!(!is_agent("coredns-1"));
    }
}
