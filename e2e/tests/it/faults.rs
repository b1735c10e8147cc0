//! Faults made on purpose: each must get its own verdict, and none may pass for enforcing.
//!
//! Every test puts the cluster back before it judges, so that the next one finds it whole.

use anyhow::Result;
use e2e::Run;
use e2e::cluster::{self, Agent};
use e2e::run::Counted;
use prover::cluster::{Proof, Scenario};
use prover::verdict::Verdict;

fn scenario(run: &Run) -> Result<Scenario> {
    Ok(Scenario::load(&run.fixture("network/three-namespaces"))?)
}

#[track_caller]
fn assert_verdict(proof: &Proof, expected: Verdict, cause: &str) {
    let line = proof.report.verdict_line();
    assert_eq!(proof.report.verdict, expected, "{line}");
    assert!(!proof.report.kept, "a fault must break the promise: {line}");
    assert!(
        proof.report.cause.contains(cause),
        "the cause must name {cause:?}: {line}"
    );
}

/// Installs a variant of the project, proves the ordinary scenario, and installs the project again.
async fn prove_variant(run: &Run, name: &str, project: &str) -> Result<Proof> {
    run.install(&run.fixture(project))?;
    let proof = run.prove(name, &scenario(run)?, Counted::AsFault).await;
    run.install(&run.project)?;
    proof
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_policy_is_unknown() -> Result<()> {
    let run = Run::from_environment()?;
    let scenario = Scenario::load_files(
        &run.fixture("network/three-namespaces/workload.yaml"),
        &run.fixture("network/broken/policies.yaml"),
    )?;
    let proof = run
        .prove("broken-policy", &scenario, Counted::AsFault)
        .await?;
    assert_verdict(&proof, Verdict::Unknown, "positive control");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_mode_is_watching() -> Result<()> {
    let run = Run::from_environment()?;
    let proof = prove_variant(&run, "audit-mode", "projects/cilium-audit").await?;
    assert_verdict(&proof, Verdict::Watching, "only reported");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn enforcement_switched_off_is_dead() -> Result<()> {
    let run = Run::from_environment()?;
    let proof = prove_variant(&run, "enforcement-off", "projects/cilium-never").await?;
    assert_verdict(&proof, Verdict::Dead, "went through");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_is_unknown() -> Result<()> {
    let run = Run::from_environment()?;
    let client = cluster::connect(&run.kubeconfig).await?;
    // The pods must be there first: without an agent no new pod gets a network.
    run.prove("before-the-stop", &scenario(&run)?, Counted::AsFault)
        .await?;
    cluster::set_agent(&client, Agent::Stopped).await?;
    let proof = run
        .prove("stopped-agent", &scenario(&run)?, Counted::AsFault)
        .await;
    cluster::set_agent(&client, Agent::Running).await?;
    assert_verdict(&proof?, Verdict::Unknown, "agent");
    Ok(())
}
