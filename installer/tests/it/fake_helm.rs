//! A program that stands in for Helm and writes down how it was called.

use std::{os::unix::fs::symlink, path::Path};

use installer::{
    helm::{Helm, HelmError, HelmTarget},
    interrupt::Interrupt,
};
use tempfile::TempDir;

/// The stand-in, in a folder of its own.
pub(crate) struct FakeHelm(TempDir);

impl FakeHelm {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        // A link, because a script that has just been written may be busy while another test forks.
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fake-helm");
        symlink(script, folder.path().join("helm")).expect("a link");
        Self(folder)
    }

    /// Makes a file from which the stand-in answers.
    pub(crate) fn with(self, file: &str, text: &str) -> Self {
        std::fs::write(self.0.path().join(file), text).expect("written");
        self
    }

    pub(crate) async fn start(&self) -> Result<Helm, HelmError> {
        self.start_with(Interrupt::new().1).await
    }

    pub(crate) async fn start_with(&self, interrupt: Interrupt) -> Result<Helm, HelmError> {
        let target = HelmTarget {
            kubeconfig: Some("some.kubeconfig".into()),
            context: Some("lab".to_owned()),
            namespace: "gitlab-managed-apps".to_owned(),
        };
        Helm::find(&self.0.path().join("helm"), target, interrupt).await
    }

    /// What the stand-in wrote: how it was called, or what it got.
    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }
}
