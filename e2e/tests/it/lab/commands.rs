//! `cargo xtask lab`: each command, on one lab of two nodes.

use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result};
use e2e::Run;
use e2e::endings::{Before, lab_command};

const NAME: &str = "commands";
/// A new namespace's account may come a moment after the node is Ready.
const START_A_POD: &str = "until kubectl get serviceaccount default; do sleep 0.1; done; \
    kubectl run one --image=holdfast.dev/probe:dev --image-pull-policy=Never -- serve --tcp 80 \
    && kubectl wait --for=condition=Ready pod/one --timeout=60s";

#[track_caller]
fn stdout_of(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_command_does_what_it_says() -> Result<()> {
    let run = Run::from_environment()?;
    let before = Before::look()?;
    let up = lab_command(&run, &["up", "--lab", NAME, "--nodes", "2"])?;
    let tried = up.status.success().then(|| try_all(&run));
    let down = lab_command(&run, &["down", "--lab", NAME])?;
    tried.context(format!("the lab did not come up: {up:?}"))??;
    assert!(down.status.success(), "{down:?}");
    before.wait_until_gone(NAME)?;

    let gone = lab_command(&run, &["kubeconfig", "--lab", NAME])?;
    assert!(!gone.status.success());
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(said.contains("hint: start one with"), "{said}");
    Ok(())
}

fn try_all(run: &Run) -> Result<()> {
    let on_lab = |command: &str, rest: &[&str]| {
        let mut args = vec![command, "--lab", NAME];
        args.extend(rest);
        lab_command(run, &args)
    };
    let again = lab_command(run, &["up", "--lab", NAME])?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("already running"), "{said}");

    let status = stdout_of(&on_lab("status", &[])?);
    for component in ["etcd", "kube-apiserver", "kubelet", "containerd", "coredns"] {
        assert!(status.contains(component), "{status}");
    }
    assert!(!status.contains("ended"), "{status}");

    let kubeconfig = stdout_of(&on_lab("kubeconfig", &[])?);
    let mode = std::fs::metadata(Path::new(kubeconfig.trim()))
        .context("the kubeconfig")?
        .permissions();
    assert!(
        std::os::unix::fs::PermissionsExt::mode(&mode).trailing_zeros() >= 6,
        "the kubeconfig is readable by others"
    );

    let nodes = stdout_of(&on_lab(
        "shell",
        &["--", "kubectl", "get", "nodes", "--no-headers"],
    )?);
    let ready = nodes
        .lines()
        .filter(|line| line.contains(" Ready "))
        .count();
    assert_eq!(ready, 2, "{nodes}");

    // A pod runs, and is restarted by nobody's CNI but the lab's own.
    let started = stdout_of(&on_lab("shell", &["--", "sh", "-c", START_A_POD])?);
    assert!(started.contains("condition met"), "{started}");

    // A blocked signal would be inherited by every container of the lab.
    let masks = stdout_of(&on_lab(
        "shell",
        &["--", "grep", "SigBlk", "/proc/1/status"],
    )?);
    assert!(masks.contains("0000000000000000"), "{masks}");

    let code = on_lab("shell", &["--", "sh", "-c", "exit 7"])?;
    assert_eq!(code.status.code(), Some(7), "{code:?}");

    let log = stdout_of(&on_lab("logs", &["kubelet"])?);
    assert!(log.contains("Started kubelet"), "{log}");
    let unknown = on_lab("logs", &["kubelett"])?;
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(
        !unknown.status.success() && said.contains("there is: "),
        "{said}"
    );

    let archive = probe_archive()?;
    let loaded = on_lab("load", &[&archive])?;
    assert!(loaded.status.success(), "{loaded:?}");
    let images = stdout_of(&on_lab(
        "shell",
        &["--node", "n2", "--", "ctr", "images", "ls", "-q"],
    )?);
    assert!(images.contains("holdfast.dev/probe:dev"), "{images}");
    Ok(())
}

/// The newest packed probe image of the cache.
fn probe_archive() -> Result<String> {
    let cache = lab::cache::Cache::open().context("opening the cache")?;
    let images = cache.root().join("images");
    let newest = std::fs::read_dir(images)
        .context("listing the packed images")?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("probe-"))
        .max_by_key(|entry| entry.metadata().and_then(|found| found.modified()).ok())
        .context("no probe image is packed")?;
    Ok(newest.path().join("image.tar").display().to_string())
}
