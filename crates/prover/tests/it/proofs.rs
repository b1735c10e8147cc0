//! Whole proofs over real sockets, against the simulated cluster.

use prover::cluster::Proof;
use prover::verdict::Verdict;

use crate::simulation::{Control, Leftover, prove, prove_beside};

#[track_caller]
fn check(proof: &Proof, verdict: Verdict, cause: &str) {
    let report = &proof.report;
    assert!(
        report.verdict == verdict && report.cause.contains(cause),
        "expected {verdict} with {cause:?}, got {}",
        report.verdict_line()
    );
}

#[test]
fn a_control_that_enforces() {
    let proof = prove("three-namespaces/policies.yaml", Control::Enforces);
    check(
        &proof,
        Verdict::Enforcing,
        "248 forbidden attempts were stopped",
    );
    assert!(proof.report.kept);
    assert_eq!(proof.report.counts.matched, 248);
    assert!(proof.report.latency.apply_to_first_drop.is_some());
    assert!(proof.report.latency.delete_to_first_pass.is_some());
    let passes: Vec<_> = proof
        .report
        .passes
        .iter()
        .map(|pass| (pass.name.as_str(), pass.rounds))
        .collect();
    assert_eq!(passes, [("enforced", 2), ("lifted", 2), ("restored", 2)]);
    assert!(proof.files["monitor-node-1.log"].contains("Policy denied"));
    assert!(proof.files["endpoints-enforced-node-1.json"].contains("hf-x"));
}

#[test]
fn a_control_in_audit_mode() {
    let proof = prove("three-namespaces/policies.yaml", Control::Audits);
    check(
        &proof,
        Verdict::Watching,
        "248 of 248 forbidden attempts went through",
    );
    assert!(!proof.report.kept);
    assert_eq!(proof.report.passes.len(), 1, "there is nothing to turn");
}

#[test]
fn a_control_that_sleeps() {
    let proof = prove("three-namespaces/policies.yaml", Control::Sleeps);
    check(&proof, Verdict::Dead, "nothing was reported");
}

#[test]
fn a_network_that_swallows() {
    let proof = prove("three-namespaces/policies.yaml", Control::Swallows);
    check(&proof, Verdict::Unknown, "timed out without a drop event");
}

#[test]
fn drops_that_do_not_come_from_the_policies() {
    let proof = prove("three-namespaces/policies.yaml", Control::Sticks);
    check(&proof, Verdict::Unknown, "the mutation did not turn");
    assert_eq!(
        proof.report.passes.len(),
        3,
        "the policies were put back all the same"
    );
}

#[test]
fn policies_that_allow_nothing() {
    let proof = prove("broken/policies.yaml", Control::Enforces);
    check(&proof, Verdict::Unknown, "no positive control");
}

#[test]
fn a_control_that_has_not_taken_the_policies_in() {
    let proof = prove("three-namespaces/policies.yaml", Control::Lags);
    check(
        &proof,
        Verdict::Unknown,
        "the agent on node node-1 has not taken in NetworkPolicy hf-",
    );
}

#[test]
fn a_destination_that_listens_elsewhere() {
    let proof = prove("three-namespaces/policies.yaml", Control::Misses);
    check(
        &proof,
        Verdict::Unknown,
        "the positive control failed: with the policies, the allowed hf-x/a>hf-y/b:80/tcp@ip was not answered: refused",
    );
}

#[test]
fn policies_go_back_when_one_cannot_be_taken_away() {
    let (proof, policies) = prove_beside("three-namespaces/policies.yaml", Control::Refuses, None);
    let error = proof.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot delete NetworkPolicy hf-y/from-x-a"
    );
    assert_eq!(policies.len(), 7, "{policies:?}");
}

#[test]
fn a_policy_of_an_earlier_proof_is_taken_away() {
    let leftover = Leftover {
        name: "of-an-earlier-proof",
        owned: true,
    };
    let scenario = "three-namespaces/policies.yaml";
    let (proof, policies) = prove_beside(scenario, Control::Enforces, Some(&leftover));
    check(&proof.unwrap(), Verdict::Enforcing, "248");
    assert_eq!(policies.len(), 7, "{policies:?}");
}

#[test]
fn a_policy_of_somebody_else_stays_and_is_named() {
    let leftover = Leftover {
        name: "of-somebody-else",
        owned: false,
    };
    let scenario = "three-namespaces/policies.yaml";
    let (proof, policies) = prove_beside(scenario, Control::Enforces, Some(&leftover));
    let cause =
        "NetworkPolicy hf-y/of-somebody-else, which is about hf-y/a, is not part of the scenario";
    check(&proof.unwrap(), Verdict::Unknown, cause);
    assert_eq!(policies.len(), 8, "{policies:?}");
}
