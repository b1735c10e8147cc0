//! The built program: exit codes and what goes where.

use std::process::{Command, Output};

use crate::{fake_helm::FakeHelm, fixture};

/// Runs `holdfast` with nothing of the environment that could change what it does.
fn holdfast(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const KUBECONFIG: &str = r#"{
    "apiVersion": "v1", "kind": "Config", "current-context": "lab",
    "clusters": [{"name": "lab", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "lab", "user": {}}],
    "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}]
}"#;

#[test]
fn the_help_names_the_exit_codes() {
    let output = holdfast(&["--help"]);
    assert!(output.status.success());
    insta::assert_snapshot!("help", text(&output.stdout));
}

#[test]
fn bad_input_is_2_and_says_so_on_stderr_alone() {
    let output = holdfast(&[
        "plan",
        "--project",
        &fixture("bad/typo").display().to_string(),
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let stderr = text(&output.stderr);
    assert!(stderr.contains("did you mean `cilium`?"), "{stderr}");
    assert!(
        stderr.ends_with("caused by: the configuration has 3 errors\n"),
        "{stderr}"
    );
    assert_eq!(
        holdfast(&["plan", "--timeout", "5m"]).status.code(),
        Some(2),
        "apply's flags are not plan's"
    );
}

#[test]
fn a_plan_goes_to_stdout() {
    let fake = FakeHelm::new()
        .with("kubeconfig", KUBECONFIG)
        .with("Chart.yaml", "name: cilium\nversion: 1.19.7\n");
    let charts = fake.folder().join("charts");
    std::fs::create_dir_all(charts.join("cilium")).expect("a folder");
    std::fs::rename(
        fake.folder().join("Chart.yaml"),
        charts.join("cilium/Chart.yaml"),
    )
    .expect("moved");
    let path = |name: &str| fake.folder().join(name).display().to_string();
    let project = fixture("cilium").display().to_string();
    let args = |charts: &str| {
        let (helm, kubeconfig) = (path("helm"), path("kubeconfig"));
        [
            "plan",
            "--project",
            &project,
            "--helm",
            &helm,
            "--kubeconfig",
            &kubeconfig,
            "--format",
            "json",
            "--charts",
            charts,
        ]
        .map(str::to_owned)
    };
    let run = |charts: &str| {
        let args = args(charts);
        holdfast(&args.each_ref().map(String::as_str))
    };
    let output = run(&path("charts"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(plan["steps"][0]["action"], "install");
    assert_eq!(plan["steps"][0]["chart"]["version"], "1.19.7");
    let calls = fake.file("calls");
    assert!(
        calls.contains("--kube-context lab") && calls.contains("--kubeconfig"),
        "{calls}"
    );

    let output = run(&path("no-charts"));
    assert_eq!(
        output.status.code(),
        Some(2),
        "a folder of charts without the chart is bad input"
    );
}
