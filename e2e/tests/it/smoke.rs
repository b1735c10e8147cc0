//! The first proof: an installed Cilium enforces a policy.

use anyhow::Result;
use e2e::Run;
use e2e::run::Counted;
use prover::cluster::Scenario;

#[tokio::test(flavor = "multi_thread")]
async fn a_network_policy_is_enforced() -> Result<()> {
    let run = Run::from_environment()?;
    let scenario = Scenario::load_files(
        &run.fixture("network/three-namespaces/workload.yaml"),
        &run.policies.join("policies.yaml"),
    )?;
    let proof = run
        .prove("network-policy", &scenario, Counted::AsPromised)
        .await?;
    assert!(
        proof.report.kept,
        "the verdict is weaker than what the configuration promises:\n{}",
        proof.report.verdict_line()
    );
    Ok(())
}
