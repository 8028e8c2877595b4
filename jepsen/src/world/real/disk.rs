//! A disk for every node: a small ext4 in a file. It can be cut off, stand still, be full, or be taken away.
//!
//! A power cut takes the file as it is the moment after the node was killed: the kernel has written there what was synced, and
//! keeps the rest in memory, because this file system commits its journal every ten minutes by itself. The copy is mounted in place of the
//! original, so what was not synced is gone. A witness that is written after the node's end, and not synced, proves it.

use super::machine::{sh, text};
use anyhow::Context;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a disk.
const BYTES: u64 = 192 << 20;

/// What a full disk has left when it is not full to the last byte.
const ALMOST_FULL_BYTES: u64 = 1 << 20;

pub(super) struct Disk {
    image: PathBuf,
    generation: u32,
    mount: PathBuf,
    is_mounted: bool,
    /// Also if it is not known whether it came to that.
    is_frozen: bool,
    /// Somebody who writes and syncs while the disk stands still, and says how long that took.
    probe: Option<JoinHandle<Duration>>,
}

impl Disk {
    /// Makes a file system, and mounts it where `mount` says, with what is there now.
    pub(super) fn new(dir: &Path, index: usize, mount: &Path) -> anyhow::Result<Self> {
        let image = dir.join(format!("disk-{}", index + 1));
        let mut disk = Self {
            image,
            generation: 0,
            mount: mount.to_path_buf(),
            is_mounted: false,
            is_frozen: false,
            probe: None,
        };
        let path = disk.path();
        File::create(&path).and_then(|file| file.set_len(BYTES)).context("cannot make a disk's file")?;
        // Nothing is set aside for the superuser, who would never see it full.
        sh("mkfs.ext4", &["-q", "-F", "-m", "0", text(&path)?])?;
        let before: Vec<_> = std::fs::read_dir(mount)?.collect::<Result<_, _>>()?;
        let aside = dir.join(format!("aside-{}", index + 1));
        std::fs::create_dir(&aside)?;
        for entry in &before {
            std::fs::rename(entry.path(), aside.join(entry.file_name()))?;
        }
        disk.mount()?;
        for entry in &before {
            let to = mount.join(entry.file_name());
            std::fs::copy(aside.join(entry.file_name()), &to)?;
            File::open(&to)?.sync_all()?;
        }
        sh("sync", &["-f", text(mount)?])?;
        Ok(disk)
    }

    fn path(&self) -> PathBuf {
        self.image.with_extension(format!("{}.img", self.generation))
    }

    pub(super) fn mount(&mut self) -> anyhow::Result<()> {
        sh("mount", &["-o", "loop,commit=600", text(&self.path())?, text(&self.mount)?])?;
        self.is_mounted = true;
        Ok(())
    }

    pub(super) fn unmount(&mut self) -> anyhow::Result<()> {
        sh("umount", &[text(&self.mount)?])?;
        self.is_mounted = false;
        Ok(())
    }

    fn witness(&self) -> PathBuf {
        self.mount.join("jepsen-witness")
    }

    /// Loses what was not synced; nobody has a file open. True if the witness proves it.
    pub(super) fn cut(&mut self) -> anyhow::Result<bool> {
        File::create(self.witness())?.write_all(b"not synced")?;
        let before = self.path();
        self.generation += 1;
        sh("cp", &["--sparse=always", text(&before)?, text(&self.path())?])?;
        self.unmount()?;
        std::fs::remove_file(before)?;
        self.mount()?;
        let has_lost = !self.witness().exists();
        let _ = std::fs::remove_file(self.witness());
        Ok(has_lost)
    }

    /// The disk stands still: whoever writes or syncs waits.
    pub(super) fn freeze(&mut self) -> anyhow::Result<()> {
        self.is_frozen = true;
        sh("fsfreeze", &["-f", text(&self.mount)?])?;
        let path = self.mount.join("jepsen-probe");
        self.probe = Some(std::thread::spawn(move || {
            let since = Instant::now();
            let written = File::create(&path).and_then(|mut file| {
                file.write_all(b"probe")?;
                file.sync_all()
            });
            let took = since.elapsed();
            let _ = std::fs::remove_file(&path);
            written.map_or(Duration::ZERO, |()| took)
        }));
        Ok(())
    }

    /// The disk goes on. How long a write and its sync took meanwhile.
    pub(super) fn thaw(&mut self) -> anyhow::Result<Duration> {
        if self.is_frozen {
            sh("fsfreeze", &["-u", text(&self.mount)?])?;
            self.is_frozen = false;
        }
        Ok(self.probe.take().map_or(Duration::ZERO, |probe| probe.join().unwrap_or_default()))
    }

    /// Takes the room that is left, or almost all of it. True if the disk takes no more.
    pub(super) fn fill(&mut self, to_the_last: bool) -> anyhow::Result<bool> {
        let keep = if to_the_last { 0 } else { ALMOST_FULL_BYTES };
        let mut file = File::create(self.filler())?;
        let free = || rustix::fs::statvfs(&self.mount).map(|found| found.f_bavail * found.f_frsize);
        let block = vec![0xa5; 64 << 10];
        while free()? > keep + block.len() as u64 {
            if let Err(error) = file.write_all(&block) {
                anyhow::ensure!(
                    error.kind() == std::io::ErrorKind::StorageFull,
                    "cannot fill a disk: {error}"
                );
                break;
            }
        }
        if !to_the_last {
            return Ok(free()? <= 2 * ALMOST_FULL_BYTES);
        }
        // The last bytes.
        let mut is_full = false;
        for _ in 0..1_000 {
            if let Err(error) = file.write_all(&[0xa5; 512]) {
                is_full = error.kind() == std::io::ErrorKind::StorageFull;
                break;
            }
        }
        Ok(is_full)
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("jepsen-filler")
    }

    pub(super) fn make_room(&mut self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.thaw();
        if self.is_mounted {
            let mount = self.mount.to_string_lossy();
            if sh("umount", &[&mount]).is_err() {
                // Somebody still has a file open: it goes as soon as nobody has.
                let _ = sh("umount", &["-l", &mount]);
            }
        }
        let _ = std::fs::remove_file(self.path());
    }
}
