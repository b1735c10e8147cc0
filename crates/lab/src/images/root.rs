//! Debian roots of images, made by mmdebstrap from the machine's own package sources.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::cache::{Address, Cache, KeyBuilder};
use crate::error::{Attempt as _, Error, Result};
use crate::progress::Progress;
use crate::run::Program;

/// A packed root.
#[derive(Debug, Clone)]
pub struct Root {
    /// Its layer tar.
    pub layer: PathBuf,
    /// Its cache address.
    pub address: Address,
}

/// What no container reads.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// Makes a root with `packages`, or finds it in the cache.
pub fn ensure(packages: &[String], cache: &Cache, progress: &Progress) -> Result<Root> {
    let sources = sources_file(Path::new("/etc/apt"))?;
    let release = release()?;
    let list = packages.join(",");
    let address = Address {
        shelf: "roots",
        name: "debian".to_owned(),
        key: KeyBuilder::default()
            .with("packages", list.as_bytes())
            .with("release", release.as_bytes())
            .with("left out", LEFT_OUT.join(" ").as_bytes())
            .finish(),
    };
    let folder = cache.get_or_build(&address, |folder| {
        let step = progress.step(format!("making a Debian root with {list}"));
        let sources = fs::read(&sources).attempt(|| "read the package sources".to_owned())?;
        let mut program = Program::tied("mmdebstrap")
            .args(["--variant=essential", "--mode=root"])
            .arg(format!("--include={list}"));
        for path in LEFT_OUT {
            program = program.arg(format!("--dpkgopt=path-exclude={path}"));
        }
        program
            // An empty suite and `-`: take both from the sources given on standard input.
            .arg("")
            .arg(folder.join("layer.tar"))
            .arg("-")
            .input(sources)
            .run_with_lines(|line| step.detail(line.trim_start_matches("I: ")))?;
        step.done();
        Ok(())
    })?;
    Ok(Root {
        layer: folder.join("layer.tar"),
        address,
    })
}

/// The file with Debian's own sources, leaving out those of third parties.
fn sources_file(apt: &Path) -> Result<PathBuf> {
    [
        apt.join("sources.list.d/debian.sources"),
        apt.join("sources.list"),
    ]
    .into_iter()
    .find(|path| path.exists())
    .ok_or_else(|| Error::Unmet {
        what: format!("{} has no Debian package sources", apt.display()),
        hint: "image roots are made from Debian packages: run on Debian 12 or newer".to_owned(),
    })
}

fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release")
        .attempt(|| "find out which Debian this is".to_owned())?;
    Ok(text
        .lines()
        .filter(|line| line.starts_with("ID=") || line.starts_with("VERSION_ID="))
        .collect())
}
