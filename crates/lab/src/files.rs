//! Writing files safely.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use fs_err as fs;

use crate::error::{Attempt as _, Result};

/// Writes a file that only its owner can read, from the first byte on.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .attempt(|| format!("write {}", path.display()))?;
    file.write_all(text.as_bytes())
        .attempt(|| format!("write {}", path.display()))
}

/// Replaces a file in one step, so that a reader sees the old text or the new one.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let scratch = path.with_extension("new");
    write_private(&scratch, text)?;
    fs::rename(&scratch, path).attempt(|| "replace a file".to_owned())
}
