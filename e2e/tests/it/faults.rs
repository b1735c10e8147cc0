//! Faults made on purpose: each must get its own verdict, and none may pass for enforcing.
//!
//! Every test puts the cluster back before it judges, so that the next one finds it whole.

use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use e2e::Run;
use e2e::cluster::{self, Agent};
use e2e::run::Counted;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use prover::cluster::{Progress, Proof, Scenario};
use prover::verdict::Verdict;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

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

/// Proves the ordinary scenario, and does something right after the first round with the policies.
async fn prove_and_meanwhile<F: Future<Output = Result<()>>>(
    run: &Run,
    name: &str,
    fault: impl Fn() -> F + Sync,
) -> Result<Proof> {
    let done: OnceLock<Result<()>> = OnceLock::new();
    let meanwhile = |progress: &Progress| {
        if let Progress::Round {
            pass: "enforced",
            round: 1,
            ..
        } = progress
        {
            done.get_or_init(|| block_in_place(|| Handle::current().block_on(fault())));
        }
    };
    let proof = run
        .prove_while(name, &scenario(run)?, Counted::AsFault, &meanwhile)
        .await;
    done.into_inner()
        .context("the proof ended before the fault was made")??;
    proof
}

/// It opens what the scenario closes, so that nothing less than naming it is right: DEAD would blame the control.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_policy_is_unknown() -> Result<()> {
    let run = Run::from_environment()?;
    let client = cluster::connect(&run.kubeconfig).await?;
    let policies: Api<NetworkPolicy> = Api::namespaced(client, "hf-y");
    let policy: NetworkPolicy = serde_json::from_value(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "hf-y", "name": "somebody-elses"},
        "spec": {"podSelector": {}, "ingress": [{}]},
    }))?;
    let proof = prove_and_meanwhile(&run, "foreign-policy", async || {
        policies.create(&PostParams::default(), &policy).await?;
        Ok(())
    })
    .await;
    let deleted = policies
        .delete("somebody-elses", &DeleteParams::default())
        .await;
    assert_verdict(
        &proof?,
        Verdict::Unknown,
        "NetworkPolicy hf-y/somebody-elses",
    );
    deleted?;
    Ok(())
}

/// The configuration of the whole cluster says that it enforces.
#[tokio::test(flavor = "multi_thread")]
async fn one_endpoint_in_audit_mode_is_watching() -> Result<()> {
    let run = Run::from_environment()?;
    let client = cluster::connect(&run.kubeconfig).await?;
    let proof = prove_and_audit(&run, &client).await;
    let switched_back = cluster::set_audit_mode(&client, "hf-y/b", "Disabled").await;
    assert_verdict(&proof?, Verdict::Watching, "in audit mode is only hf-y/b");
    switched_back
}

async fn prove_and_audit(run: &Run, client: &Client) -> Result<Proof> {
    let switch = |progress: &Progress| {
        if let Progress::Mutation("putting the policies back") = progress {
            let audit = cluster::set_audit_mode(client, "hf-y/b", "Enabled");
            // Without it the verdict is ENFORCING, which the test does not accept.
            drop(block_in_place(|| Handle::current().block_on(audit)));
        }
    };
    run.prove_while(
        "audited-endpoint",
        &scenario(run)?,
        Counted::AsFault,
        &switch,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_meanwhile_is_unknown() -> Result<()> {
    let run = Run::from_environment()?;
    let client = cluster::connect(&run.kubeconfig).await?;
    let pods: Api<Pod> = Api::namespaced(client, "hf-y");
    // The next proof makes it anew.
    let proof = prove_and_meanwhile(&run, "deleted-pod", async || {
        pods.delete("c", &DeleteParams::default()).await?;
        Ok(())
    })
    .await?;
    assert_verdict(&proof, Verdict::Unknown, "pod hf-y/c ");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_goes_meanwhile_is_unknown() -> Result<()> {
    let run = Run::from_environment()?;
    let client = cluster::connect(&run.kubeconfig).await?;
    let proof = prove_and_meanwhile(&run, "deleted-agent", async || {
        cluster::delete_agents(&client).await
    })
    .await;
    let back = cluster::wait_agents(&client, Agent::Running).await;
    assert_verdict(&proof?, Verdict::Unknown, "could not be heard");
    back
}
