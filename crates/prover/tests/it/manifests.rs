//! Reading scenarios: the fixtures as they are, and everything that is wrong at once.

use std::path::PathBuf;

use prover::cluster::{ProveError, Scenario};
use prover::table::{self, Expected, RouteKind};

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/network")
        .join(path)
}

#[test]
fn three_namespaces_has_a_control_for_every_denied_cell() {
    let scenario = Scenario::load(&fixture("three-namespaces")).unwrap();
    let cells = table::build(&scenario.world, &[RouteKind::Ip, RouteKind::Service]);
    // 81 pairs by address and 72 by name, each with TCP and UDP.
    assert_eq!(cells.len(), 2 * (81 + 72));
    let denied: Vec<_> = cells
        .iter()
        .filter(|cell| cell.expected == Expected::Denied)
        .collect();
    // 8 destinations are reached by hf-x/a only, and hf-x/a by two others.
    assert_eq!(denied.len(), 4 * (8 * 7 + 6));
    for cell in denied {
        assert!(
            cells.iter().any(|other| other.is_control_of(cell)),
            "{}",
            cell.id
        );
    }
}

#[test]
fn broken_allows_nothing_but_loopback() {
    let scenario = Scenario::load_files(
        &fixture("three-namespaces/workload.yaml"),
        &fixture("broken/policies.yaml"),
    )
    .unwrap();
    let cells = table::build(&scenario.world, &[RouteKind::Ip]);
    for cell in cells {
        assert_eq!(
            cell.expected == Expected::Allowed,
            cell.from == cell.to,
            "{}",
            cell.id
        );
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let workload = "
apiVersion: v1
kind: Namespace
metadata: {name: x}
---
apiVersion: v1
kind: Pod
metadata: {namespace: y, name: a}
spec: {containers: [{ports: [{containerPort: 0}, {containerPort: 80, protocol: tcp}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: x, name: d}
";
    let policies = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: typo}
spec: {podselector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: many}
spec:
  podSelector: {matchExpressions: [{key: a, operator: In}, {key: b, operator: Has, values: [c]}]}
  policyTypes: [ingress]
  ingress:
    - from: [{}, {ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}, {ipBlock: {cidr: ten}}]
      ports: [{endPort: 5}, {port: http, endPort: 5}, {port: 9, endPort: 8}, {port: 70000}]
---
a: [
";
    let error = Scenario::parse(
        "s",
        ("workload.yaml", workload),
        ("policies.yaml", policies),
    );
    let Err(ProveError::Manifests(problems)) = error else {
        panic!("{error:?}");
    };
    insta::assert_snapshot!(problems);
}
