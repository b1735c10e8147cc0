//! Where things lie in this clone, and building what the tasks need.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lab::progress::Progress;
use lab::run::Program;
use lab::up::Inputs;

/// The target for which the probe is linked statically.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The clone's root folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .to_owned()
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this task.
pub(crate) fn cargo() -> Program {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Program::tied(cargo).dir(&root())
}

/// `cargo nextest run` over the whole workspace, with the nextest that lies in `folder`.
pub(crate) fn nextest(folder: &Path) -> Program {
    let path = std::env::var("PATH").unwrap_or_default();
    cargo()
        .env("PATH", format!("{}:{path}", folder.display()))
        .args(["nextest", "run", "--workspace"])
}

/// Builds the static probe and says where the lab finds its inputs.
pub(crate) fn lab_inputs(progress: &Progress) -> Result<Inputs> {
    let step = progress.step("building the static probe");
    cargo()
        .args(["build", "--release", "--package", "probe"])
        .args(["--bin", "holdfast-probe", "--target", STATIC_TARGET])
        // A scratch image has no C library: the target is named, so that build scripts stay dynamic.
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .run_with_lines(|line| step.detail(line.trim()))
        .context("building the static probe")?;
    step.done();
    Ok(Inputs {
        recipes: root().join("fixtures/images"),
        built: target().join(STATIC_TARGET).join("release"),
    })
}

/// Where the tests' build leaves the program under test.
pub(crate) fn holdfast() -> PathBuf {
    target().join("debug/holdfast")
}

/// Prints an error, its causes and its hint.
pub(crate) fn report(error: &anyhow::Error) {
    use std::fmt::Write as _;
    let mut text = format!("error: {error}\n");
    let mut hint = None;
    for cause in error.chain() {
        if let Some(known) = cause.downcast_ref::<lab::Error>() {
            hint = hint.or(known.hint());
        }
    }
    for cause in error.chain().skip(1) {
        let _ = writeln!(text, "  because: {cause}");
    }
    if let Some(hint) = hint {
        let _ = writeln!(text, "hint: {hint}");
    }
    tell(&text);
}

/// Prints to standard error.
pub(crate) fn tell(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Prints what was asked for to standard output.
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    // A closed pipe means that the reader has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
