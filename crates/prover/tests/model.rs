//! Every file of `fixtures/network/model` is a test: policies over the nine pods, and who may reach whom.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use prover::model::{PodRef, Protocol, World, decide, parse_manifests};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    why: String,
    rest: Word,
    expect: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Allowed,
    Denied,
}

type Flow = (PodRef, PodRef, u16, Protocol);

/// `hf-x/b -> hf-x/a 80/tcp denied`
fn expectation(line: &str) -> Option<(Flow, Word)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [from, "->", to, port, word] = words[..] else {
        return None;
    };
    let (port, protocol) = port.split_once('/')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let word = match word {
        "allowed" => Word::Allowed,
        "denied" => Word::Denied,
        _ => return None,
    };
    Some((
        (
            from.parse().ok()?,
            to.parse().ok()?,
            port.parse().ok()?,
            protocol,
        ),
        word,
    ))
}

fn workload() -> World {
    let text = include_str!("../../../fixtures/network/three-namespaces/workload.yaml");
    let (mut world, _, problems) = parse_manifests("workload.yaml", text);
    assert_eq!(problems.0, []);
    for pod in &mut world.pods {
        let place = |known: &[&str], name: &str| {
            let found = known.iter().position(|known| *known == name);
            u8::try_from(found.unwrap_or_else(|| panic!("unexpected {name}"))).unwrap_or(u8::MAX)
        };
        let namespace = place(&["hf-x", "hf-y", "hf-z"], &pod.reference.namespace);
        let name = place(&["a", "b", "c"], &pod.reference.name);
        pod.ip = Some(IpAddr::V4(Ipv4Addr::new(10, 0, namespace, name)));
    }
    world
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the harness gives the text away"
)]
fn check(path: &Path, text: String) -> datatest_stable::Result<()> {
    let (head, policies) = text
        .split_once("\n---\n")
        .ok_or("a case has at least two documents")?;
    let case: Case = serde_yaml::from_str(head)?;
    let (policy_world, _, problems) = parse_manifests(&path.display().to_string(), policies);
    if !problems.0.is_empty() {
        return Err(problems.to_string().into());
    }
    let mut world = workload();
    world.extend(policy_world);

    let mut expected: BTreeMap<Flow, Word> = BTreeMap::new();
    for line in &case.expect {
        let (flow, result) = expectation(line).ok_or_else(|| format!("cannot read {line:?}"))?;
        if expected.insert(flow, result).is_some() {
            return Err(format!("{line:?} is there twice").into());
        }
    }
    let mut wrong = Vec::new();
    for from in &world.pods {
        for to in &world.pods {
            for port in &to.ports {
                let flow = (
                    from.reference.clone(),
                    to.reference.clone(),
                    port.number,
                    port.protocol,
                );
                let wanted = expected.remove(&flow).unwrap_or(case.rest);
                let decision = decide(&world, from, to, port.number, port.protocol);
                if decision.allowed != (wanted == Word::Allowed) {
                    let (from, to) = (&from.reference, &to.reference);
                    wrong.push(format!(
                        "{from} -> {to} {}/{}: {decision:?}",
                        port.number, port.protocol
                    ));
                }
            }
        }
    }
    wrong.extend(
        expected
            .into_keys()
            .map(|flow| format!("no such flow: {flow:?}")),
    );
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!("{}\n{}", case.why, wrong.join("\n")).into())
}

datatest_stable::harness! {
    { test = check, root = "../../fixtures/network/model", pattern = r"\.yaml$" },
}
