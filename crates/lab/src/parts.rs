//! Building the cluster's parts from committed pins.
//!
//! Each upstream has a folder under `parts/`: `go.mod` and `go.sum` are the
//! lock, `part.toml` the recipe. A build is a function of these three and the
//! Go version, so its result is cached by their hash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use crate::cache::{Address, Cache, Found, KeyBuilder};
use crate::error::{Attempt as _, Error, Result};
use crate::progress::Progress;
use crate::run::Program;

/// The parts of a cluster, smallest build first so that trouble shows early.
pub const ALL: &[&str] = &[
    "cni-plugins",
    "etcd",
    "containerd",
    "coredns",
    "kubernetes",
    "cilium",
];

/// Where the built parts lie, by name.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    folders: BTreeMap<String, PathBuf>,
}

impl Parts {
    /// The folder of one part.
    pub fn folder(&self, part: &str) -> &Path {
        self.folders
            .get(part)
            .unwrap_or_else(|| panic!("{part} is one of parts::ALL"))
    }

    /// The path of a program or file of one part.
    pub fn file(&self, part: &str, name: &str) -> PathBuf {
        self.folder(part).join(name)
    }
}

/// A `part.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The Go module that gives the part its version.
    module: String,
    /// Programs, built in one `go build` for each group of flags.
    build: Vec<Build>,
    /// Files that go into the part as they are.
    #[serde(default)]
    copy: Vec<Copy>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    /// Program name to Go package.
    programs: BTreeMap<String, String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    cgo: Cgo,
    /// Linker flags beyond `-s -w`; `{version}` is the module's version.
    #[serde(default)]
    ldflags: Vec<String>,
}

/// Whether C code is compiled in.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Cgo {
    #[default]
    Off,
    On,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    /// A path inside the module.
    from: String,
    /// A path inside the part.
    to: String,
}

/// One part that can be looked up and built.
#[derive(Debug)]
struct Source {
    name: &'static str,
    folder: PathBuf,
    recipe: Recipe,
    version: String,
    address: Address,
}

/// The folder with the committed pins.
pub fn pins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parts")
}

/// Builds whatever is not in the cache yet, one part after another: a Go build
/// fills all cores by itself.
pub fn ensure(cache: &Cache, progress: &Progress) -> Result<Parts> {
    let toolchain = go_version()?;
    let sources = ALL
        .iter()
        .map(|name| Source::load(name, &pins().join(name), &toolchain))
        .collect::<Result<Vec<_>>>()?;
    let mut missing = Vec::new();
    for source in &sources {
        match cache.find(&source.address)? {
            Found::Whole(_) => {}
            Found::Missing => missing.push(source.name),
            Found::Damaged(how) => {
                progress.note(&format!(
                    "the cached {} is damaged ({how}); building it again",
                    source.name
                ));
                missing.push(source.name);
            }
        }
    }
    if !missing.is_empty() {
        progress.note(&format!(
            "building {} of {} parts from source: {}",
            missing.len(),
            ALL.len(),
            missing.join(", ")
        ));
    }
    let mut parts = Parts::default();
    let mut built = 0;
    std::thread::scope(|scope| {
        let wanted: Vec<&Source> = sources
            .iter()
            .filter(|source| missing.contains(&source.name))
            .collect();
        // The network is idle while a part compiles: fetch the modules of the next ones.
        // Whatever goes wrong here goes wrong again, and is reported, when that part is built.
        scope.spawn(move || {
            wanted
                .into_iter()
                .skip(1)
                .map(Source::fetch)
                .find(Result::is_err)
        });
        for source in &sources {
            let folder = cache.get_or_build(&source.address, |folder| {
                built += 1;
                source.build(folder, progress, &format!("{built}/{}", missing.len()))
            })?;
            parts.folders.insert(source.name.to_owned(), folder);
        }
        Ok(parts)
    })
}

fn go_version() -> Result<String> {
    if which::which("go").is_err() {
        return Err(Error::Unmet {
            what: "Go is not on the PATH; the lab's parts are built with it".to_owned(),
            hint: "install Go 1.26.6 or newer and put it on the PATH".to_owned(),
        });
    }
    Program::new("go").args(["env", "GOVERSION"]).read()
}

impl Source {
    fn load(name: &'static str, folder: &Path, toolchain: &str) -> Result<Self> {
        let path = folder.join("part.toml");
        let text = fs::read_to_string(&path).attempt(|| "read a recipe".to_owned())?;
        let recipe: Recipe = toml::from_str(&text).map_err(|error| Error::Recipe {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        let pins =
            fs::read_to_string(folder.join("go.mod")).attempt(|| "read the pins".to_owned())?;
        let version = pinned_version(&pins, &recipe.module).ok_or_else(|| Error::Recipe {
            path: folder.join("go.mod"),
            problem: format!("does not require {}", recipe.module),
        })?;
        let key = KeyBuilder::default()
            .with("go", toolchain.trim().as_bytes())
            .with_file(&path)?
            .with_file(&folder.join("go.mod"))?
            .with_file(&folder.join("go.sum"))?
            .finish();
        Ok(Self {
            name,
            folder: folder.to_owned(),
            recipe,
            version,
            address: Address {
                shelf: "parts",
                name: name.to_owned(),
                key,
            },
        })
    }

    fn build(&self, target: &Path, progress: &Progress, place: &str) -> Result<()> {
        let step = progress.step(format!("building {} {}", self.name, self.version));
        let mut packages = 0;
        for build in &self.recipe.build {
            let scratch = tempfile::tempdir_in(target)
                .attempt(|| "make a folder for built programs".to_owned())?;
            let names: Vec<&str> = build.programs.keys().map(String::as_str).collect();
            let place = format!("part {place}, {}", names.join(", "));
            self.go_build(build, scratch.path())
                .run_with_lines(|line| {
                    // With `-v`, go prints each package as it compiles it, and downloads as prose.
                    if line.starts_with("go: downloading") {
                        step.detail(format!("{place}: {}", line.trim_start_matches("go: ")));
                    } else {
                        packages += 1;
                        step.detail(format!("{place}: {packages} packages compiled"));
                    }
                })?;
            for (name, package) in &build.programs {
                fs::rename(
                    scratch.path().join(default_name(package)),
                    target.join(name),
                )
                .attempt(|| "keep a built program".to_owned())?;
            }
        }
        if !self.recipe.copy.is_empty() {
            let module = Program::new("go")
                .args(["list", "-m", "-f", "{{.Dir}}", &self.recipe.module])
                .dir(&self.folder)
                .read()?;
            for copy in &self.recipe.copy {
                let from = Path::new(module.trim()).join(&copy.from);
                let to = target.join(&copy.to);
                fs::create_dir_all(to.parent().unwrap_or(target))
                    .attempt(|| "make a folder for copied files".to_owned())?;
                // Module files are read-only; a part's files must be removable.
                Program::new("cp")
                    .args(["--recursive", "--no-preserve=mode,ownership"])
                    .arg(&from)
                    .arg(&to)
                    .run()?;
            }
        }
        step.done();
        Ok(())
    }

    /// Lists what the programs are made of, which fetches the modules that they need and no others.
    fn fetch(&self) -> Result<()> {
        let packages = self
            .recipe
            .build
            .iter()
            .flat_map(|build| build.programs.values());
        Program::tied("go")
            .args(["list", "-deps"])
            .args(packages)
            .env("GOFLAGS", "-mod=readonly")
            .env("GOWORK", "off")
            .dir(&self.folder)
            .run()
    }

    /// All programs of a group in one call: go links one while it compiles another.
    fn go_build(&self, build: &Build, folder: &Path) -> Program {
        let mut ldflags = vec!["-s".to_owned(), "-w".to_owned()];
        ldflags.extend(
            build
                .ldflags
                .iter()
                .map(|flag| flag.replace("{version}", &self.version)),
        );
        Program::tied("go")
            .args(["build", "-v", "-trimpath", "-buildvcs=false"])
            .arg(format!("-tags={}", build.tags.join(",")))
            .arg(format!("-ldflags={}", ldflags.join(" ")))
            .arg("-o")
            // With the slash, go takes it for a folder.
            .arg(format!("{}/", folder.display()))
            .args(build.programs.values())
            .env("CGO_ENABLED", if build.cgo == Cgo::On { "1" } else { "0" })
            .env("GOFLAGS", "-mod=readonly")
            .env("GOWORK", "off")
            .dir(&self.folder)
    }
}

/// The name that go gives to a program: the last element of its package's path,
/// or the one before a major version.
fn default_name(package: &str) -> &str {
    let is_version = |element: &str| {
        element
            .strip_prefix('v')
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut elements = package.rsplit('/');
    let last = elements.next().unwrap_or(package);
    if is_version(last) {
        elements.next().unwrap_or(last)
    } else {
        last
    }
}

/// The version at which a go.mod requires `module`.
fn pinned_version(go_mod: &str, module: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line
            .trim()
            .trim_start_matches("require ")
            .split_whitespace();
        (words.next() == Some(module)).then(|| words.next().map(str::to_owned))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_recipe_loads_and_names_its_version() {
        for name in ALL {
            let source = Source::load(name, &pins().join(name), "go1.26.8").unwrap();
            assert!(
                source.version.starts_with('v'),
                "{name}: {}",
                source.version
            );
        }
    }

    #[test]
    fn a_changed_toolchain_changes_the_key() {
        let folder = pins().join("etcd");
        let one = Source::load("etcd", &folder, "go1.26.8").unwrap();
        let two = Source::load("etcd", &folder, "go1.26.9").unwrap();
        assert_ne!(one.address, two.address);
    }

    #[test]
    fn programs_are_found_under_the_names_that_go_gives_them() {
        assert_eq!(default_name("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(default_name("k8s.io/kubernetes/cmd/kubelet"), "kubelet");
        assert_eq!(default_name("a/vendor"), "vendor");
    }

    #[test]
    fn a_version_is_found_in_either_form_of_require() {
        let text =
            "module pins\n\nrequire a.b/c v1.2.3\n\nrequire (\n\td.e/f v0.1.0 // indirect\n)\n";
        assert_eq!(pinned_version(text, "a.b/c").as_deref(), Some("v1.2.3"));
        assert_eq!(pinned_version(text, "d.e/f").as_deref(), Some("v0.1.0"));
        assert_eq!(pinned_version(text, "g.h/i"), None);
    }
}
