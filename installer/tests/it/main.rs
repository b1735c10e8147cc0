//! The installer's tests above single functions: files, a stand-in for Helm, an API server in the process.

mod apply;
mod config;
mod fake_cluster;
mod fake_helm;
mod plan;
mod program;
mod ready;

use std::path::{Path, PathBuf};

/// The folder of a fixture project.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures/projects")
        .join(name)
}
