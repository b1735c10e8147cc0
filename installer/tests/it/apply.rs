//! Carrying plans out, with a stand-in for Helm and one for the cluster.

use std::{collections::BTreeMap, time::Duration};

use installer::{
    application::Application,
    apply::{self, ApplyError, Options, Removal},
    catalogue::Catalogue,
    chart::{Chart, ChartSource},
    helm::{Helm, HelmError},
    interrupt::Interrupt,
    observe::observe,
    plan::{self, Plan},
    project,
};
use serde_json::{Value, json};

use crate::{fake_cluster::FakeCluster, fake_helm::FakeHelm, fixture};

const OPTIONS: Options = Options {
    removal: Removal::Refused,
    timeout: Duration::from_secs(30),
};

async fn plan_with(helm: &Helm, project: &str) -> Plan {
    let catalogue = Catalogue::embedded()
        .map_err(|problems| problems.to_string())
        .expect("the catalogue reads");
    let config = project::load(&fixture(project), &catalogue).expect("valid");
    let chart = Chart {
        name: "cilium".to_owned(),
        version: "1.19.7".to_owned(),
        source: ChartSource::Repo("https://charts.example.com".to_owned()),
    };
    let observed = observe(helm, &catalogue).await.expect("observed");
    plan::plan(
        &config,
        &catalogue,
        &BTreeMap::from([(Application::Cilium, chart)]),
        &observed,
    )
}

fn healthy() -> FakeCluster {
    let cluster = FakeCluster::new();
    cluster.daemon_set("cilium", 1, 1);
    cluster.deployment("cilium-operator", 1);
    cluster
}

async fn apply(
    fake: &FakeHelm,
    cluster: &FakeCluster,
    project: &str,
    options: Options,
) -> (String, Result<(), ApplyError>) {
    let helm = fake.start().await.expect("starts");
    let plan = plan_with(&helm, project).await;
    let mut lines = Vec::new();
    let mut report = |line: &str| lines.push(line.to_owned());
    let interrupt = Interrupt::new().1;
    let result = apply::apply(
        &plan,
        &helm,
        &cluster.client(),
        options,
        &interrupt,
        &mut report,
    )
    .await;
    (lines.join("\n"), result)
}

#[tokio::test]
async fn an_installation_waits_and_lists_what_it_does_not_manage() {
    let (fake, cluster) = (FakeHelm::new(), healthy());
    let pod = |name: &str, host_network: bool| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"hostNetwork": host_network, "containers": []}, "status": {"phase": "Running"},
        })
    };
    cluster.put("/api/v1/pods", pod("old", false));
    cluster.put("/api/v1/pods", pod("new", false));
    cluster.put("/api/v1/pods", pod("on-the-host", true));
    cluster.put(
        "/apis/cilium.io/v2/ciliumendpoints",
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumEndpoint", "metadata": {"name": "new", "namespace": "shop"}}),
    );
    let (lines, result) = apply(&fake, &cluster, "cilium", OPTIONS).await;
    result.expect("applied");
    insta::assert_snapshot!("apply-install", lines);
    insta::assert_snapshot!("apply-install-calls", fake.file("calls"));
}

#[tokio::test]
async fn values_reach_helm_through_its_standard_input_alone() {
    let fake = FakeHelm::new();
    let (_, result) = apply(&fake, &healthy(), "cilium-secret", OPTIONS).await;
    result.expect("applied");
    let values: Value = serde_json::from_str(&fake.file("stdin")).expect("JSON");
    assert_eq!(values["extraConfig"]["password"], "correct-horse-yes");
    assert_eq!(values["extraConfig"]["answer"], "on", "text stays text");
    assert_eq!(values["rollOutCiliumPods"], true);
    let calls = fake.file("calls");
    assert!(!calls.contains("correct-horse"), "{calls}");
    for entry in std::fs::read_dir(fake.folder()).expect("the folder") {
        let name = entry.expect("an entry").file_name();
        assert!(
            ["helm", "calls", "stdin"]
                .iter()
                .any(|known| name == *known),
            "left behind: {}",
            name.display()
        );
    }
}

#[tokio::test]
async fn an_unchanged_release_costs_no_write() {
    let first = FakeHelm::new();
    apply(&first, &healthy(), "cilium", OPTIONS)
        .await
        .1
        .expect("applied");
    let list = r#"[{"name":"cilium","namespace":"gitlab-managed-apps","revision":"1","updated":"x","status":"deployed","chart":"cilium-1.19.7","app_version":"1.19.7"}]"#;
    let second = FakeHelm::new()
        .with("list.json", list)
        .with("values.json", &first.file("stdin"));
    let (lines, result) = apply(&second, &healthy(), "cilium", OPTIONS).await;
    result.expect("applied");
    insta::assert_snapshot!("apply-keep", lines);
    let calls = second.file("calls");
    assert!(!calls.contains("upgrade"), "{calls}");
}

#[tokio::test]
async fn removal_is_refused_unless_it_is_allowed() {
    let list = r#"[{"name":"cilium","revision":"1","status":"deployed","chart":"cilium-1.19.7"}]"#;
    let fake = FakeHelm::new().with("list.json", list);
    let (_, result) = apply(&fake, &healthy(), "removal", OPTIONS).await;
    assert_eq!(
        result.expect_err("refused").to_string(),
        "the plan removes cilium, and nothing was done"
    );
    assert!(!fake.file("calls").contains("uninstall"));
    let allowed = Options {
        removal: Removal::Allowed,
        ..OPTIONS
    };
    apply(&fake, &healthy(), "removal", allowed)
        .await
        .1
        .expect("removed");
    assert!(fake.file("calls").contains("uninstall cilium"));
}

#[tokio::test]
async fn what_a_killed_run_left_is_recovered_first() {
    let list =
        r#"[{"name":"cilium","revision":"2","status":"pending-upgrade","chart":"cilium-1.19.7"}]"#;
    let history =
        r#"[{"revision":1,"status":"deployed"},{"revision":2,"status":"pending-upgrade"}]"#;
    let fake = FakeHelm::new()
        .with("list.json", list)
        .with("history.json", history);
    let (lines, result) = apply(&fake, &healthy(), "cilium", OPTIONS).await;
    result.expect("applied");
    insta::assert_snapshot!("apply-recover", lines);
    insta::assert_snapshot!("apply-recover-calls", fake.file("calls"));
}

#[tokio::test]
async fn what_helm_says_is_in_the_error() {
    let fake = FakeHelm::new().with(
        "upgrade.err",
        "Error: values don't meet the specifications of the schema\n",
    );
    let (_, result) = apply(&fake, &healthy(), "cilium", OPTIONS).await;
    let Err(ApplyError::Helm {
        source: HelmError::Failed { stderr, .. },
        ..
    }) = result
    else {
        panic!("helm must have failed, and it was {result:?}")
    };
    assert_eq!(
        stderr,
        "Error: values don't meet the specifications of the schema"
    );
}

#[tokio::test]
async fn an_interrupt_lets_helm_finish_its_books_and_says_what_is_left() {
    let fake = FakeHelm::new().with("hang", "");
    let (raiser, interrupt) = Interrupt::new();
    let helm = fake.start_with(interrupt.clone()).await.expect("starts");
    let plan = plan_with(&helm, "cilium").await;
    // What Helm's list will say once it has been stopped.
    let fake = fake.with(
        "list.json",
        r#"[{"name":"cilium","revision":"1","status":"failed","chart":"cilium-1.19.7"}]"#,
    );
    let raise = async {
        while !fake.folder().join("hanging").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        raiser.raise();
    };
    let client = healthy().client();
    let mut report = |_: &str| {};
    let (result, ()) = futures::join!(
        apply::apply(&plan, &helm, &client, OPTIONS, &interrupt, &mut report),
        raise
    );
    assert_eq!(
        result.expect_err("interrupted").to_string(),
        "interrupted: the release cilium is failed (revision 1)"
    );
    assert!(
        fake.file("calls").contains("told to stop"),
        "Helm must not simply be killed"
    );
}

#[tokio::test]
async fn helm_3_is_refused_with_a_hint() {
    let error = FakeHelm::new()
        .with("version", "v3.17.3")
        .start()
        .await
        .expect_err("too old");
    assert_eq!(error.to_string(), "helm 3.17.3 is too old");
    assert!(error.hint().is_some_and(|hint| hint.contains("Helm 4")));
}
