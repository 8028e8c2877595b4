//! `tetrachord dev`: a cluster on this machine until Ctrl-C.

use super::Exit;
use super::cluster::{LocalCluster, Size, asked_to_end};
use anyhow::Context;
use clap::Args;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

/// Run a cluster on this machine until Ctrl-C
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tetrachord dev --nodes 3 --dir mycluster\n\nWithout --dir everything is in a temporary directory and gone at the end."
)]
pub(crate) struct DevArgs {
    #[command(flatten)]
    size: Size,
    /// Keep everything here; a cluster that is already there is started again
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(crate) async fn run(args: &DevArgs) -> anyhow::Result<Exit> {
    let temporary = if args.dir.is_none() { Some(TemporaryDirectory::new("tetrachord-dev")?) } else { None };
    let dir = args.dir.clone().or(temporary.as_ref().map(|dir| dir.0.clone())).unwrap_or_default();
    let mut cluster = LocalCluster::start(&dir, &args.size)?;
    let client = cluster.client(Duration::from_secs(5))?;
    let leaders = cluster.wait_for_leaders(&client, Duration::from_secs(30)).await?;
    println!("{} nodes run in {}", cluster.len(), dir.display());
    for (group, leader) in leaders {
        println!("  {group} is led by {leader}");
    }
    let file = cluster.cluster_file.display();
    println!(
        "In another terminal:\n  export TETRACHORD_CLUSTER={file}\n  tetrachord put greeting hello\n  tetrachord get greeting\n  tetrachord status\nCtrl-C ends it."
    );
    let mut ended = std::pin::pin!(asked_to_end());
    loop {
        tokio::select! {
            signal = &mut ended => {
                signal?;
                return Ok(Exit::Ok);
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if let Some(crash) = cluster.crashed() {
                    anyhow::bail!(crash);
                }
            }
        }
    }
}

/// A directory of this process that goes with it.
#[derive(Debug)]
pub(crate) struct TemporaryDirectory(pub(crate) PathBuf);

impl TemporaryDirectory {
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        // What another user, or a process that was killed, has left under this name is not ours.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryDirectory {
    #[allow(
        clippy::disallowed_methods,
        reason = "it asks over and over, and gives up; nothing else runs by then"
    )]
    fn drop(&mut self) {
        // A node that is just being killed may make one more file. What cannot be removed in the end stays in the system's temporary
        // directory; nothing depends on it.
        for _ in 0..50 {
            match std::fs::remove_dir_all(&self.0) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                _ => return,
            }
        }
    }
}
