//! What counts as the scenario's own policy, what as somebody else's, and what that does to a verdict.

use prover::cluster::Scenario;
use prover::evidence::Repository;
use prover::evidence::cilium::parse_repository;
use prover::model::PodRef;
use prover::policies::{NETWORK_POLICY, PolicyObject, Standing};
use prover::trial::{Pass, Trial};
use prover::verdict::{Verdict, judge};
use serde_json::{Value, json};

use crate::perfect::{CONTROL, DENIED, leak, observation, trial};

const CNP: &str = "CiliumNetworkPolicy";
const CCNP: &str = "CiliumClusterwideNetworkPolicy";

fn scenario() -> Scenario {
    let workload = "
apiVersion: v1
kind: Namespace
metadata: {name: x, labels: {team: red}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: x, name: a, labels: {pod: a}}
spec: {containers: [{ports: [{containerPort: 80}]}]}
";
    let policies = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: deny}
spec: {podSelector: {}}
";
    Scenario::parse("s", ("w", workload), ("p", policies)).unwrap()
}

fn standing(kind: &str, object: &Value) -> Option<Standing> {
    PolicyObject::weigh(&scenario().world, kind, object).map(|policy| policy.standing)
}

fn foreign() -> Standing {
    Standing::Foreign(PodRef::new("x", "a"))
}

#[test]
fn own_policies_are_known_by_what_they_say() {
    let policy = |name: &str, spec: Value| json!({"metadata": {"namespace": "x", "name": name}, "spec": spec});
    // As the API server returns it, with its defaults.
    let own = policy(
        "deny",
        json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    );
    assert_eq!(standing(NETWORK_POLICY, &own), Some(Standing::Own));
    let changed = [
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}),
        json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"]}),
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "tomorrow": true}),
    ];
    for spec in changed {
        assert_eq!(
            standing(NETWORK_POLICY, &policy("deny", spec)),
            Some(Standing::Altered)
        );
    }
    let other = policy("other", json!({"podSelector": {}}));
    assert_eq!(standing(NETWORK_POLICY, &other), Some(foreign()));
    let unreadable = policy("other", json!({"podSelector": {"tomorrow": {}}}));
    assert_eq!(standing(NETWORK_POLICY, &unreadable), Some(foreign()));
    let elsewhere = policy(
        "other",
        json!({"podSelector": {"matchLabels": {"pod": "b"}}}),
    );
    assert_eq!(standing(NETWORK_POLICY, &elsewhere), None);
    let mut elsewhere = other;
    elsewhere["metadata"]["namespace"] = json!("y");
    assert_eq!(standing(NETWORK_POLICY, &elsewhere), None);
}

#[test]
fn ciliums_own_policies_count_when_they_select_a_probed_pod() {
    let cluster_wide = |spec: Value| json!({"metadata": {"name": "c"}, "spec": spec});
    let labels = |labels: Value| cluster_wide(json!({"endpointSelector": {"matchLabels": labels}}));
    let about = [
        cluster_wide(json!({"endpointSelector": {}})),
        labels(json!({"k8s:io.kubernetes.pod.namespace": "x"})),
        labels(json!({"k8s.io.cilium.k8s.namespace.labels.team": "red", "any:pod": "a"})),
        // What cannot be known or read is taken for a yes.
        labels(json!({"io.cilium.k8s.policy.serviceaccount": "default"})),
        cluster_wide(json!({"endpointSelector": {"tomorrow": {}}})),
        json!({"metadata": {"name": "c"}, "specs": [{"endpointSelector": {"matchLabels": {"pod": "q"}}},
            {"endpointSelector": {"matchExpressions": [{"key": "pod", "operator": "Exists"}]}}]}),
        json!({"metadata": {"name": "c"}}),
    ];
    for policy in about {
        assert_eq!(standing(CCNP, &policy), Some(foreign()), "{policy}");
    }
    let not_about = [
        labels(json!({"k8s:io.kubernetes.pod.namespace": "y"})),
        labels(json!({"pod": "b"})),
        cluster_wide(json!({"nodeSelector": {}})),
    ];
    for policy in not_about {
        assert_eq!(standing(CCNP, &policy), None, "{policy}");
    }
    let mut namespaced = cluster_wide(json!({"endpointSelector": {}}));
    namespaced["metadata"]["namespace"] = json!("x");
    assert_eq!(standing(CNP, &namespaced), Some(foreign()));
    namespaced["metadata"]["namespace"] = json!("y");
    assert_eq!(standing(CNP, &namespaced), None);
}

#[track_caller]
fn check(verdict: Verdict, cause: &str, spoil: impl FnOnce(&mut Trial)) {
    let mut trial = trial();
    spoil(&mut trial);
    let judgement = judge(&trial);
    assert!(
        judgement.verdict == verdict && judgement.cause.contains(cause),
        "expected {verdict} with {cause:?}, got {}: {}",
        judgement.verdict,
        judgement.cause
    );
}

fn stranger(pass: &mut Pass) {
    let stranger = PolicyObject {
        kind: CNP.to_owned(),
        namespace: Some("x".to_owned()),
        name: "strange".to_owned(),
        uid: "s".to_owned(),
        generation: 1,
        standing: Standing::Foreign(PodRef::new("x", "c")),
    };
    pass.policies_after.push(stranger);
}

#[test]
fn somebody_elses_policy_is_named_whatever_it_does() {
    let cause = "CiliumNetworkPolicy x/strange, which is about x/c, is not part of the scenario";
    check(Verdict::Unknown, cause, |trial| {
        stranger(&mut trial.enforced);
    });
    // One that lets a forbidden attempt through is not the control's failure.
    check(Verdict::Unknown, cause, |trial| {
        stranger(&mut trial.enforced);
        leak(&mut trial.enforced, DENIED, None);
    });
    // One that keeps things closed explains why the mutation does not turn.
    check(Verdict::Unknown, cause, |trial| {
        let lifted = trial.lifted.as_mut().unwrap();
        stranger(lifted);
        observation(lifted, CONTROL).outcome = probe::Outcome::TimedOut;
    });
    check(Verdict::Unknown, cause, |trial| {
        stranger(trial.restored.as_mut().unwrap());
    });
}

#[test]
fn a_policy_that_somebody_touches_is_named() {
    check(
        Verdict::Unknown,
        "somebody took NetworkPolicy x/c-from-a away after the policies were put back",
        |trial| {
            let restored = trial.restored.as_mut().unwrap();
            restored.policies_after.remove(0);
            leak(restored, DENIED, None);
        },
    );
    check(
        Verdict::Unknown,
        "NetworkPolicy x/c-from-a did not say what the scenario says",
        |trial| trial.enforced.policies_before[0].standing = Standing::Altered,
    );
    check(
        Verdict::Unknown,
        "somebody put NetworkPolicy x/c-from-a back without the policies",
        |trial| {
            let policies = trial.enforced.policies_after.clone();
            trial.lifted.as_mut().unwrap().policies_after = policies;
        },
    );
    // Away and back again, or changed and changed back, between two looks.
    check(
        Verdict::Unknown,
        "somebody replaced or changed NetworkPolicy x/c-from-a in the middle",
        |trial| trial.enforced.policies_after[0].uid = "new".to_owned(),
    );
    check(
        Verdict::Unknown,
        "somebody replaced or changed NetworkPolicy x/c-from-a in the middle",
        |trial| trial.enforced.policies_after[0].generation += 2,
    );
}

#[test]
fn a_control_that_has_not_got_the_policies_yet_is_not_dead() {
    let node = "node".to_owned();
    check(Verdict::Dead, "nothing was reported", |trial| {
        leak(&mut trial.enforced, DENIED, None);
    });
    check(
        Verdict::Unknown,
        "the agent on node node has not taken in NetworkPolicy x/c-from-a yet",
        |trial| {
            leak(&mut trial.enforced, DENIED, None);
            let empty = Ok(Repository::default());
            trial.enforced.repositories.insert(node.clone(), empty);
        },
    );
    check(
        Verdict::Unknown,
        "the endpoint of x/c is at policy revision 6, its agent already at 7",
        |trial| {
            leak(&mut trial.enforced, DENIED, None);
            let endpoint = trial.enforced.endpoints.get_mut(&PodRef::new("x", "c"));
            endpoint.unwrap().revision = Some(6);
        },
    );
    check(
        Verdict::Unknown,
        "could not be read: it did not end",
        |trial| {
            leak(&mut trial.enforced, DENIED, None);
            let cause = Err("it did not end".to_owned());
            trial.enforced.repositories.insert(node.clone(), cause);
        },
    );
}

#[test]
fn a_repository_tells_revision_and_origins() {
    let rules = json!([
        {"Subject": {}, "Labels": [{"key": "io.cilium.k8s.policy.name", "value": "n", "source": "k8s"},
            {"key": "io.cilium.k8s.policy.uid", "value": "uid-1", "source": "k8s"}]},
        {"endpointSelector": {}, "labels": [{"key": "io.cilium.k8s.policy.uid", "value": "uid-2"}]},
    ]);
    let answer = json!({"policy": rules.to_string(), "revision": 98}).to_string();
    let repository = parse_repository(&answer).unwrap();
    assert_eq!(repository.revision, 98);
    assert_eq!(
        repository.uids.into_iter().collect::<Vec<_>>(),
        ["uid-1", "uid-2"]
    );
    assert!(parse_repository("Error: no agent").is_err());
    assert!(parse_repository(r#"{"policy": "none", "revision": 1}"#).is_err());
}

#[test]
fn a_control_that_holds_on_to_its_policies_is_named() {
    let stay_closed = |trial: &mut Trial, uids: &[&str]| {
        let lifted = trial.lifted.as_mut().unwrap();
        observation(lifted, DENIED).outcome = probe::Outcome::TimedOut;
        let repository = Repository {
            revision: 9,
            uids: uids.iter().map(ToString::to_string).collect(),
        };
        lifted
            .repositories
            .insert("node".to_owned(), Ok(repository));
    };
    check(
        Verdict::Unknown,
        "the agent on node node still has NetworkPolicy x/c-from-a",
        |trial| stay_closed(trial, &["policy-1"]),
    );
    check(
        Verdict::Unknown,
        "the endpoint of x/c still enforces, in state ready, at policy revision 7 with its agent at 9",
        |trial| stay_closed(trial, &[]),
    );
}
