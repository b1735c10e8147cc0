//! The content-addressed cache outside the clone.
//!
//! An entry is a folder `<root>/<shelf>/<name>-<key>`. It is filled under a
//! temporary name while its lock file is held, and renamed into place when it
//! is whole, so that a half-built entry is never seen under its own name and
//! two runs at once build a thing one time.

use std::collections::BTreeMap;
use std::env;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::error::{Attempt as _, Error, Result};

/// The seal that a whole entry carries: each file's size, by relative path.
const SEAL: &str = ".sealed.json";

/// The cache's root folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// The address of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The kind of thing: `parts`, `images`, `roots`, `stores`, `tools`.
    pub shelf: &'static str,
    /// Its name, for people.
    pub name: String,
    /// The hash of everything that it is made from.
    pub key: Key,
}

/// What was found when an entry was asked for.
#[derive(Debug)]
pub enum Found {
    /// The entry is whole.
    Whole(PathBuf),
    /// There is no such entry yet.
    Missing,
    /// The entry was damaged after it was made; it has been set aside.
    Damaged(String),
}

/// A hash over named inputs: the recipe, the pins, the toolchain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The first 16 hexadecimal digits, enough to tell entries apart.
    pub fn short(&self) -> &str {
        &self.0[..16]
    }
}

/// Collects the inputs of a [`Key`].
#[derive(Default)]
pub struct KeyBuilder {
    hash: Sha256,
}

impl KeyBuilder {
    /// Adds a named value. Lengths are hashed too, so that no two lists of inputs collide.
    #[must_use]
    pub fn with(mut self, name: &str, value: &[u8]) -> Self {
        for part in [name.as_bytes(), value] {
            self.hash.update((part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
        self
    }

    /// Adds a file's content under its file name.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let content = fs::read(path).attempt(|| "read an input of a cache key".to_owned())?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(self.with(&name, &content))
    }

    /// The finished key.
    pub fn finish(self) -> Key {
        Key(hex(&self.hash.finalize()))
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Cache {
    /// Opens `$HOLDFAST_CACHE`, else `$XDG_CACHE_HOME/holdfast`, else `~/.cache/holdfast`.
    pub fn open() -> Result<Self> {
        let root = env::var_os("HOLDFAST_CACHE")
            .map(PathBuf::from)
            .or_else(|| env::var_os("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("holdfast")))
            .or_else(|| env::var_os("HOME").map(|dir| PathBuf::from(dir).join(".cache/holdfast")))
            .ok_or_else(|| Error::Unmet {
                what: "there is no place for the cache: neither HOLDFAST_CACHE, XDG_CACHE_HOME nor HOME is set".to_owned(),
                hint: "set HOLDFAST_CACHE to a folder on a disk with 10 GiB free".to_owned(),
            })?;
        Self::at(&root)
    }

    /// Opens the cache in `root`, which is made if it is missing.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).attempt(|| "make the cache folder".to_owned())?;
        let root = fs::canonicalize(root).attempt(|| "resolve the cache folder".to_owned())?;
        if root.starts_with("/run") {
            return Err(Error::Unmet {
                what: format!("the cache cannot lie in {}", root.display()),
                hint: "a lab covers /run: point HOLDFAST_CACHE to a folder on a disk".to_owned(),
            });
        }
        Ok(Self { root })
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the entry lies, whether it exists or not.
    pub fn path(&self, address: &Address) -> PathBuf {
        self.root
            .join(address.shelf)
            .join(format!("{}-{}", address.name, address.key.short()))
    }

    /// Looks an entry up and checks its seal. A damaged entry is moved out of the way.
    pub fn find(&self, address: &Address) -> Result<Found> {
        let path = self.path(address);
        if !path.exists() {
            return Ok(Found::Missing);
        }
        match check_seal(&path) {
            Ok(()) => Ok(Found::Whole(path)),
            Err(damage) => {
                let aside = self.scratch("damaged")?;
                fs::rename(&path, aside.join("entry"))
                    .attempt(|| "set a damaged cache entry aside".to_owned())?;
                let _ = fs::remove_dir_all(aside);
                Ok(Found::Damaged(damage))
            }
        }
    }

    /// Returns the entry, building it first if it is missing or damaged.
    ///
    /// `build` fills an empty folder, which is removed if it fails. A build that
    /// is killed leaves a scratch folder, which [`Cache::sweep_scratch`] removes.
    pub fn get_or_build(
        &self,
        address: &Address,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        if let Found::Whole(path) = self.find(address)? {
            return Ok(path);
        }
        let _lock = self.lock(&format!(
            "{}-{}-{}",
            address.shelf,
            address.name,
            address.key.short()
        ))?;
        // Another run may have built it while this one waited for the lock.
        if let Found::Whole(path) = self.find(address)? {
            return Ok(path);
        }
        let scratch = self.scratch(&address.name)?;
        if let Err(error) = build(&scratch).and_then(|()| seal(&scratch)) {
            // Best effort: what stays is removed by the next run.
            let _ = fs::remove_dir_all(&scratch);
            return Err(error);
        }
        let path = self.path(address);
        fs::create_dir_all(path.parent().unwrap_or(&self.root))
            .attempt(|| "make a shelf of the cache".to_owned())?;
        fs::rename(&scratch, &path).attempt(|| "publish a cache entry".to_owned())?;
        Ok(path)
    }

    /// Takes the named lock, waiting for its holder. It is freed when the file is dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        let file = self.lock_file(name)?;
        file.lock().attempt(|| format!("take the lock {name}"))?;
        Ok(file)
    }

    /// Takes the named lock, unless another process holds it.
    pub fn try_lock(&self, name: &str) -> Result<Option<File>> {
        let file = self.lock_file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(Error::Io {
                attempted: format!("take the lock {name}"),
                source,
            }),
        }
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let folder = self.root.join("locks");
        fs::create_dir_all(&folder).attempt(|| "make the lock folder".to_owned())?;
        Ok(fs::File::create(folder.join(name))
            .attempt(|| "open a lock file".to_owned())?
            .into_file())
    }

    /// A fresh folder for unfinished work, named after this process.
    fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join("scratch");
        fs::create_dir_all(&folder).attempt(|| "make the scratch folder".to_owned())?;
        let path = tempfile::Builder::new()
            .prefix(&format!("{}-{name}-", std::process::id()))
            .tempdir_in(&folder)
            .attempt(|| "make a scratch folder".to_owned())?
            .keep();
        Ok(path)
    }

    /// Removes the scratch folders of processes that are gone.
    pub fn sweep_scratch(&self) -> Result<()> {
        let folder = self.root.join("scratch");
        if !folder.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&folder).attempt(|| "list the scratch folder".to_owned())? {
            let entry = entry.attempt(|| "list the scratch folder".to_owned())?;
            let name = entry.file_name();
            let owner = name.to_string_lossy().split('-').next().map(str::to_owned);
            let alive = owner.is_some_and(|pid| Path::new("/proc").join(pid).exists());
            if !alive {
                fs::remove_dir_all(entry.path())
                    .attempt(|| "remove an abandoned scratch folder".to_owned())?;
            }
        }
        Ok(())
    }
}

/// Records the size of every file, so that a truncated or missing one is noticed later.
fn seal(folder: &Path) -> Result<()> {
    let text = serde_json::to_vec(&sizes(folder)?).expect("a map of strings is JSON");
    fs::write(folder.join(SEAL), text).attempt(|| "seal a cache entry".to_owned())
}

fn check_seal(folder: &Path) -> std::result::Result<(), String> {
    let text = fs::read(folder.join(SEAL)).map_err(|error| error.to_string())?;
    let sealed: BTreeMap<String, u64> = serde_json::from_slice(&text)
        .map_err(|error| format!("its seal is unreadable: {error}"))?;
    for (name, size) in sealed {
        match fs::symlink_metadata(folder.join(&name)) {
            Ok(found) if found.len() == size => {}
            Ok(found) => {
                return Err(format!(
                    "{name} has {} bytes instead of {size}",
                    found.len()
                ));
            }
            Err(_) => return Err(format!("{name} is missing")),
        }
    }
    Ok(())
}

/// Sizes of the top two levels of files: deeper trees (headers, snapshots) are not worth the time.
fn sizes(folder: &Path) -> Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    let mut level = vec![PathBuf::new()];
    for _ in 0..2 {
        let mut next = Vec::new();
        for relative in level {
            let listing =
                fs::read_dir(folder.join(&relative)).attempt(|| "seal a cache entry".to_owned())?;
            for entry in listing {
                let entry = entry.attempt(|| "seal a cache entry".to_owned())?;
                let found = entry
                    .file_type()
                    .attempt(|| "seal a cache entry".to_owned())?;
                let name = relative.join(entry.file_name());
                if found.is_dir() {
                    next.push(name);
                } else if found.is_file() {
                    let size = entry
                        .metadata()
                        .attempt(|| "seal a cache entry".to_owned())?
                        .len();
                    sizes.insert(name.to_string_lossy().into_owned(), size);
                }
            }
        }
        level = next;
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn address(text: &str) -> Address {
        Address {
            shelf: "parts",
            name: "thing".to_owned(),
            key: KeyBuilder::default()
                .with("input", text.as_bytes())
                .finish(),
        }
    }

    #[test]
    fn a_second_call_builds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let first = cache
            .get_or_build(&address("a"), |dir| {
                fs::write(dir.join("x"), "1").unwrap();
                Ok(())
            })
            .unwrap();
        let second = cache
            .get_or_build(&address("a"), |_| panic!("built twice"))
            .unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn a_failed_build_leaves_no_entry_and_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let failed = cache.get_or_build(&address("a"), |dir| {
            fs::write(dir.join("half"), "1").unwrap();
            Err(Error::Unmet {
                what: "no".to_owned(),
                hint: String::new(),
            })
        });
        assert!(failed.is_err());
        assert!(matches!(cache.find(&address("a")).unwrap(), Found::Missing));
        let scratch = folder.path().join("scratch");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
        // What a killed build left is removed by the next run.
        fs::create_dir(folder.path().join("scratch/999999999-thing-x")).unwrap();
        cache.sweep_scratch().unwrap();
        assert!(!folder.path().join("scratch/999999999-thing-x").exists());
    }

    #[test]
    fn a_truncated_entry_is_noticed_and_built_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let path = cache
            .get_or_build(&address("a"), |dir| {
                fs::create_dir(dir.join("bin")).unwrap();
                fs::write(dir.join("bin/tool"), "whole").unwrap();
                Ok(())
            })
            .unwrap();
        fs::write(path.join("bin/tool"), "ha").unwrap();
        let again = cache
            .get_or_build(&address("a"), |dir| {
                fs::create_dir(dir.join("bin")).unwrap();
                fs::write(dir.join("bin/tool"), "whole").unwrap();
                Ok(())
            })
            .unwrap();
        assert_eq!(fs::read_to_string(again.join("bin/tool")).unwrap(), "whole");
    }

    #[test]
    fn two_runs_at_once_build_one_time() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let builds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    cache
                        .get_or_build(&address("a"), |dir| {
                            builds.fetch_add(1, Ordering::SeqCst);
                            fs::write(dir.join("x"), "1").unwrap();
                            Ok(())
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(builds.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn keys_depend_on_names_values_and_their_borders() {
        let key = |parts: &[(&str, &str)]| {
            parts
                .iter()
                .fold(KeyBuilder::default(), |key, (name, value)| {
                    key.with(name, value.as_bytes())
                })
                .finish()
        };
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(
            key(&[("a", "b"), ("c", "d")]),
            key(&[("c", "d"), ("a", "b")])
        );
        assert_eq!(key(&[("a", "b")]), key(&[("a", "b")]));
    }
}
