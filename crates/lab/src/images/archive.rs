//! Writing layers and docker-archive tars, byte for byte the same for the same content.

use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::recipe::{Recipe, Source};
use crate::cache::hex;
use crate::error::{Attempt as _, Result};

/// Writes the layer with a recipe's files, folders and links.
pub fn write_layer(
    recipe: &Recipe,
    locate: &impl Fn(&Source) -> PathBuf,
    target: &Path,
) -> Result<()> {
    let file = fs::File::create(target).attempt(|| "make a layer".to_owned())?;
    let mut layer = Builder::new(std::io::BufWriter::new(file));
    for entry in &recipe.file {
        append_file(&mut layer, &locate(&entry.from), &entry.to, 0o755)?;
    }
    for entry in &recipe.tree {
        append_tree(&mut layer, &locate(&entry.from), &entry.to)?;
    }
    for link in &recipe.link {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        layer
            .append_link(&mut header, &link.to, &link.target)
            .attempt(|| format!("add the link {}", link.to))?;
    }
    let mut file = layer.into_inner().attempt(|| "finish a layer".to_owned())?;
    file.flush().attempt(|| "finish a layer".to_owned())
}

/// Times and owners are fixed, so that the same content gives the same bytes.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append_file(layer: &mut Builder<impl Write>, from: &Path, to: &str, mode: u32) -> Result<()> {
    let file = fs::File::open(from).attempt(|| format!("add {to} to an image"))?;
    let size = file
        .metadata()
        .attempt(|| format!("add {to} to an image"))?
        .len();
    layer
        .append_data(&mut header(EntryType::Regular, mode, size), to, file)
        .attempt(|| format!("add {to} to an image"))
}

fn append_tree(layer: &mut Builder<impl Write>, from: &Path, to: &str) -> Result<()> {
    let listing = fs::read_dir(from).attempt(|| format!("add {to} to an image"))?;
    let mut entries = listing
        .collect::<std::io::Result<Vec<_>>>()
        .attempt(|| format!("add {to} to an image"))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{to}/{}", entry.file_name().to_string_lossy());
        let kind = entry
            .file_type()
            .attempt(|| format!("add {name} to an image"))?;
        if kind.is_dir() {
            append_tree(layer, &entry.path(), &name)?;
        } else if kind.is_file() {
            append_file(layer, &entry.path(), &name, 0o644)?;
        }
    }
    Ok(())
}

/// Writes the docker-archive tar of an image from its uncompressed layers.
pub fn write_image(recipe: &Recipe, layers: &[PathBuf], target: &Path) -> Result<()> {
    let digests = layers
        .iter()
        .map(|layer| sha256_of(layer))
        .collect::<Result<Vec<_>>>()?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": recipe.entrypoint,
            "Cmd": recipe.command,
            "Env": recipe.environment,
            "WorkingDir": recipe.working_dir,
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": digests.iter().map(|digest| format!("sha256:{digest}")).collect::<Vec<_>>(),
        },
    }))
    .expect("a value of strings is JSON");
    let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
    let layer_names: Vec<String> = digests
        .iter()
        .map(|digest| format!("{digest}.tar"))
        .collect();
    let manifest = serde_json::to_vec(&json!([{
        "Config": config_name,
        "RepoTags": [recipe.name],
        "Layers": layer_names,
    }]))
    .expect("a value of strings is JSON");

    let file = fs::File::create(target).attempt(|| "make an image archive".to_owned())?;
    let mut archive = Builder::new(std::io::BufWriter::new(file));
    for (name, content) in [
        (config_name.as_str(), &config),
        ("manifest.json", &manifest),
    ] {
        let mut header = header(EntryType::Regular, 0o644, content.len() as u64);
        archive
            .append_data(&mut header, name, content.as_slice())
            .attempt(|| "write an image archive".to_owned())?;
    }
    for (layer, name) in layers.iter().zip(&layer_names) {
        append_file(&mut archive, layer, name, 0o644)?;
    }
    let mut file = archive
        .into_inner()
        .attempt(|| "finish an image archive".to_owned())?;
    file.flush()
        .attempt(|| "finish an image archive".to_owned())
}

fn sha256_of(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).attempt(|| "hash a layer".to_owned())?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut buffer)
            .attempt(|| "hash a layer".to_owned())?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("tool");
        fs::write(&bin, "#!").unwrap();
        let recipe = recipe(
            "name = 'a/b:c'\nentrypoint = ['/tool']\ndebian = []\n\
             [[file]]\nfrom = 'built:tool'\nto = 'tool'\n\
             [[link]]\nto = 'alias'\ntarget = 'tool'\n",
        );
        let mut images = Vec::new();
        for round in 0..2 {
            let layer = folder.path().join(format!("layer{round}"));
            let image = folder.path().join(format!("image{round}"));
            write_layer(&recipe, &|_| bin.clone(), &layer).unwrap();
            write_image(&recipe, std::slice::from_ref(&layer), &image).unwrap();
            images.push(fs::read(image).unwrap());
        }
        assert_eq!(images[0], images[1]);
    }

    #[test]
    fn the_manifest_names_the_tag_and_every_layer() {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("layer");
        fs::write(&layer, "not really a tar").unwrap();
        let recipe = recipe("name = 'a/b:c'\nentrypoint = []\ndebian = []\n");
        let image = folder.path().join("image");
        write_image(&recipe, std::slice::from_ref(&layer), &image).unwrap();
        let mut archive = tar::Archive::new(fs::File::open(image).unwrap());
        let mut names = Vec::new();
        let mut manifest = String::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            if name == "manifest.json" {
                entry.read_to_string(&mut manifest).unwrap();
            }
            names.push(name);
        }
        assert!(manifest.contains("a/b:c"));
        let layer = names.last().unwrap();
        assert!(manifest.contains(layer.as_str()), "{manifest} {names:?}");
    }
}
