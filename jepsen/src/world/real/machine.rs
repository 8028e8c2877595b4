//! What this machine permits. Hosts of their own, disks of their own and clocks of their own need privileges or programs that are
//! not everywhere; what is missing is said, and the nemeses that need it are left out.

use crate::nemesis::Nemesis;
use anyhow::Context;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs a program of the system to its end, also if somebody interrupts this one at the terminal: half a mount is worse than none.
pub(super) fn sh(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).process_group(0).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let problem = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success(),
        "{program} {}: {} {}",
        arguments.join(" "),
        output.status,
        problem.trim()
    );
    Ok(())
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// What nodes get of their own. A reason says why not.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Network namespaces behind a switch of ours.
    pub hosts: Result<(), String>,
    /// Small ext4 file systems on loop devices.
    pub disks: Result<(), String>,
    /// Wall clocks that can be set: the library that is loaded before the C library.
    pub clocks: Result<PathBuf, String>,
}

impl Machine {
    /// Tries what can be had, and leaves nothing behind.
    #[must_use]
    pub fn look(scratch: &Path) -> Self {
        Self {
            hosts: try_hosts().map_err(|error| format!("{error:#}")),
            disks: try_disks(scratch).map_err(|error| format!("{error:#}")),
            clocks: find_fake_clock()
                .ok_or_else(|| "libfaketimeMT.so.1 is not installed (package libfaketime)".to_string()),
        }
    }

    /// Why a nemesis cannot be at work here.
    #[must_use]
    pub fn lacks(&self, nemesis: Nemesis) -> Option<String> {
        let needed = match nemesis {
            Nemesis::PowerCut | Nemesis::SlowDisk | Nemesis::DiskFull => &self.disks,
            Nemesis::ClockJump => return self.clocks.as_ref().err().cloned(),
            nemesis if nemesis.is_of_network() => &self.hosts,
            _ => return None,
        };
        needed.as_ref().err().cloned()
    }
}

fn try_hosts() -> anyhow::Result<()> {
    anyhow::ensure!(Path::new("/dev/net/tun").exists(), "there is no /dev/net/tun");
    // Several may be looking.
    static TRIES: AtomicU32 = AtomicU32::new(0);
    let name = format!("tcj{}-try{}", std::process::id(), TRIES.fetch_add(1, Ordering::Relaxed));
    sh("ip", &["netns", "add", &name])?;
    sh("ip", &["netns", "del", &name])
}

fn try_disks(scratch: &Path) -> anyhow::Result<()> {
    let (image, mount) = (scratch.join("try.img"), scratch.join("try"));
    std::fs::create_dir_all(&mount)?;
    let tried = (|| {
        let file = std::fs::File::create(&image)?;
        file.set_len(4 << 20)?;
        sh("mkfs.ext4", &["-q", "-F", text(&image)?])?;
        sh("mount", &["-o", "loop", text(&image)?, text(&mount)?])?;
        let frozen = sh("fsfreeze", &["-f", text(&mount)?]);
        let thawed = frozen.is_ok().then(|| sh("fsfreeze", &["-u", text(&mount).unwrap_or_default()]));
        sh("umount", &[text(&mount)?])?;
        frozen.and(thawed.unwrap_or(Ok(())))
    })();
    let _ = std::fs::remove_file(&image);
    let _ = std::fs::remove_dir(&mount);
    tried
}

fn find_fake_clock() -> Option<PathBuf> {
    let roots = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let paths = roots.iter().map(|root| Path::new(root).join("faketime/libfaketimeMT.so.1"));
    paths.into_iter().find(|path| path.exists())
}
