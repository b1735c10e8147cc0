//! The image store: a containerd root with the lab's images unpacked, made once.
//!
//! Importing a gigabyte of Cilium takes longer than starting a cluster. So a
//! containerd of its own imports every stable image into a folder of the cache,
//! and each node starts from that folder: see `node::mounts`.

use std::path::Path;
use std::time::{Duration, Instant};

use fs_err as fs;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use super::Image;
use crate::cache::{Address, Cache, KeyBuilder};
use crate::error::{Attempt as _, Error, Result};
use crate::parts::Parts;
use crate::progress::Progress;
use crate::run::Program;

/// The hidden command that fills a store inside namespaces of its own.
pub const FILL: &str = "__lab-store";
/// Where containerd keeps unpacked layers, below its root.
pub const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
/// Where containerd keeps image manifests and layers, below its root.
pub const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// Where containerd keeps its sockets while a store is filled.
const STATE: &str = "/run";
/// The files that say which layers and images there are, below its root.
pub const DATABASES: &[&str] = &[
    "io.containerd.metadata.v1.bolt/meta.db",
    "io.containerd.snapshotter.v1.overlayfs/metadata.db",
];

/// Makes the store of `images`, or finds it in the cache.
pub fn ensure(
    images: &[Image],
    cache: &Cache,
    parts: &Parts,
    progress: &Progress,
) -> Result<std::path::PathBuf> {
    let containerd = parts.folder("containerd");
    let mut key = KeyBuilder::default()
        .with("format", b"store 1")
        .with("containerd", containerd.as_os_str().as_encoded_bytes());
    for image in images {
        key = key.with(&image.name, image.address.key.short().as_bytes());
    }
    let address = Address {
        shelf: "stores",
        name: "images".to_owned(),
        key: key.finish(),
    };
    cache.get_or_build(&address, |folder| {
        let step = progress.step(format!("unpacking {} images", images.len()));
        let own = std::env::current_exe().attempt(|| "find this program".to_owned())?;
        // A mount namespace of its own, so that an interrupted import leaves no mount behind;
        // a process namespace, so that it leaves no containerd behind.
        // `unshare --fork` ignores SIGTERM.
        Program::tied_by(Signal::SIGKILL, "unshare")
            .args(["--mount", "--propagation=private", "--pid", "--fork"])
            .args(["--kill-child=SIGKILL", "--mount-proc"])
            .arg(own)
            .arg(FILL)
            .arg(containerd)
            .arg(folder)
            .args(images.iter().map(|image| &image.archive))
            .run()?;
        step.done();
        Ok(())
    })
}

/// Runs containerd on `folder/root` and imports the archives. Called inside [`ensure`]'s namespaces.
pub fn fill(containerd: &Path, folder: &Path, archives: &[std::path::PathBuf]) -> Result<()> {
    // Over the machine's /run, in this mount namespace alone: short paths for sockets,
    // and nothing to remove afterwards.
    mount(
        Some("tmpfs"),
        STATE,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .attempt(|| "make containerd's state folder".to_owned())?;
    let state = Path::new(STATE);
    let root = folder.join("root");
    let socket = state.join("containerd.sock");
    let config = state.join("config.toml");
    let text = format!(
        "version = 3\nroot = \"{}\"\nstate = \"{}\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.runtime\", \
         \"io.containerd.cri.v1.images\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = \"{}\"\n",
        root.display(),
        state.display(),
        socket.display()
    );
    fs::write(&config, text).attempt(|| "configure containerd".to_owned())?;
    let log = fs::File::create(folder.join("containerd.log"))
        .attempt(|| "make containerd's log".to_owned())?;
    let mut daemon = std::process::Command::new(containerd.join("containerd"))
        .arg("--config")
        .arg(&config)
        .stderr(log.into_file())
        .spawn()
        .attempt(|| "start containerd".to_owned())?;
    let ctr = |args: &[&std::ffi::OsStr]| {
        Program::new(containerd.join("ctr"))
            .arg("--address")
            .arg(&socket)
            .args(["--namespace", "k8s.io"])
            .args(args)
    };
    let started = Instant::now();
    while let Err(error) = ctr(&["version".as_ref()]).read() {
        if started.elapsed() > Duration::from_secs(30) {
            return Err(Error::Timeout {
                what: "containerd".to_owned(),
                waited: started.elapsed(),
                last: error.to_string(),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for archive in archives {
        import(&ctr, archive).run()?;
    }
    daemon
        .kill()
        .and_then(|()| daemon.wait())
        .map(drop)
        .attempt(|| "stop containerd".to_owned())
}

fn import(ctr: &impl Fn(&[&std::ffi::OsStr]) -> Program, archive: &Path) -> Program {
    ctr(&[
        "images".as_ref(),
        "import".as_ref(),
        "--local".as_ref(),
        "--snapshotter".as_ref(),
        "overlayfs".as_ref(),
        archive.as_os_str(),
    ])
}
