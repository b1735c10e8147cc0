//! Images packed locally from recipes, under their upstream names and tags.

pub mod archive;
pub mod recipe;
pub mod root;
pub mod store;

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::cache::{Address, Cache, KeyBuilder};
use crate::error::{Attempt as _, Result};
use crate::parts::Parts;
use crate::progress::Progress;
use recipe::{Recipe, Source};

/// One packed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The reference under which it is imported.
    pub name: String,
    /// The docker-archive tar.
    pub archive: PathBuf,
    /// The cache address, which stands for its content.
    pub address: Address,
}

/// Makes the Debian root of an image, if it has one, without packing the image.
pub fn ensure_root(recipe_path: &Path, cache: &Cache, progress: &Progress) -> Result<()> {
    let recipe = Recipe::load(recipe_path)?;
    if !recipe.debian.is_empty() {
        root::ensure(&recipe.debian, cache, progress)?;
    }
    Ok(())
}

/// Packs one image, or finds it in the cache.
///
/// `built` is the folder of programs that this workspace builds itself.
pub fn pack(
    recipe_path: &Path,
    cache: &Cache,
    parts: &Parts,
    built: &Path,
    progress: &Progress,
) -> Result<Image> {
    let recipe = Recipe::load(recipe_path)?;
    let root = if recipe.debian.is_empty() {
        None
    } else {
        Some(root::ensure(&recipe.debian, cache, progress)?)
    };
    let locate = |source: &Source| match source {
        Source::Part { part, path } => parts.file(part, path),
        Source::Built { program } => built.join(program),
    };
    let mut key = KeyBuilder::default()
        .with_file(recipe_path)?
        .with("format", b"docker-archive 1");
    if let Some(root) = &root {
        key = key.with("root", root.address.key.short().as_bytes());
    }
    for source in recipe.sources() {
        key = match source {
            // A part's own address stands for all of its files.
            Source::Part { part, .. } => key.with("part", part_identity(parts, part).as_bytes()),
            Source::Built { .. } => key.with_file(&locate(source))?,
        };
    }
    let address = Address {
        shelf: "images",
        name: recipe_path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        key: key.finish(),
    };
    let folder = cache.get_or_build(&address, |folder| {
        let step = progress.step(format!("packing {}", recipe.name));
        let layer = folder.join("files.tar");
        archive::write_layer(&recipe, &locate, &layer)?;
        let mut layers = Vec::new();
        if let Some(root) = &root {
            layers.push(root.layer.clone());
        }
        layers.push(layer.clone());
        archive::write_image(&recipe, &layers, &folder.join("image.tar"))?;
        fs::remove_file(layer).attempt(|| "drop a packed layer".to_owned())?;
        step.done();
        Ok(())
    })?;
    Ok(Image {
        name: recipe.name,
        archive: folder.join("image.tar"),
        address,
    })
}

fn part_identity(parts: &Parts, part: &str) -> String {
    parts
        .folder(part)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
