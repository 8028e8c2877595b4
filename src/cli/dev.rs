//! `tetrachord dev`: a cluster on this machine until Ctrl-C.

use super::cluster::{Ending, LocalCluster, Size};
use super::output::print_json;
use super::{Common, Exit};
use crate::ring::{GroupId, NodeId};
use anyhow::Context;
use clap::Args;
use serde_json::json;
use std::convert::Infallible;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Run a cluster on this machine until Ctrl-C
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tetrachord dev --nodes 3 --dir mycluster\n\nWithout --dir everything is in a temporary directory and gone at the end. With --json one object says where it is, once every group is led."
)]
pub(crate) struct DevArgs {
    #[command(flatten)]
    size: Size,
    /// Keep everything here; a cluster that is already there is started again
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(crate) async fn run(common: &Common, args: &DevArgs) -> anyhow::Result<Exit> {
    let ending = Ending::watch()?;
    let temporary = if args.dir.is_none() { Some(TemporaryDirectory::new("tetrachord-dev")?) } else { None };
    let dir = args.dir.clone().or(temporary.as_ref().map(|dir| dir.0.clone())).unwrap_or_default();
    tokio::select! {
        Err(crash) = run_until_a_node_ends(common, args, &dir) => Err(crash),
        _ = ending.asked() => Ok(Exit::Ok),
    }
}

/// Ends with an error alone: at the latest that of the node that ended by itself.
async fn run_until_a_node_ends(common: &Common, args: &DevArgs, dir: &Path) -> anyhow::Result<Infallible> {
    let mut cluster = LocalCluster::start(dir, &args.size)?;
    let client = cluster.client(Duration::from_secs(5))?;
    let leaders = cluster.wait_for_leaders(&client, Duration::from_secs(30)).await?;
    say(common, &cluster, dir, &leaders);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(crash) = cluster.crashed() {
            anyhow::bail!(crash);
        }
    }
}

/// Says what runs where.
fn say(common: &Common, cluster: &LocalCluster, dir: &Path, leaders: &[(GroupId, NodeId)]) {
    if common.json {
        let leaders = leaders.iter().map(|(group, leader)| json!({ "group": group, "leader": leader }));
        print_json(&json!({
            "nodes": cluster.len(),
            "dir": dir,
            "cluster": cluster.cluster_file,
            "groups": leaders.collect::<Vec<_>>(),
        }));
        return;
    }
    println!("{} nodes run in {}", cluster.len(), dir.display());
    for (group, leader) in leaders {
        println!("  {group} is led by {leader}");
    }
    let file = cluster.cluster_file.display();
    println!(
        "In another terminal:\n  export TETRACHORD_CLUSTER={file}\n  tetrachord put greeting hello\n  tetrachord get greeting\n  tetrachord status\nCtrl-C ends it."
    );
}

/// Directories of processes with one number that other users, or processes that were killed, may have left.
const LEFT_MAX: usize = 100;

/// A directory of this process that goes with it.
#[derive(Debug)]
pub(crate) struct TemporaryDirectory(pub(crate) PathBuf);

impl TemporaryDirectory {
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let usual = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        let others = (1..LEFT_MAX).map(|number| PathBuf::from(format!("{}-{number}", usual.display())));
        let mut failed = None;
        for path in std::iter::once(usual.clone()).chain(others) {
            // What another user, or a process that was killed, has left under this name is not ours.
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => failed = Some(error),
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        let failed = failed.context("nothing was tried")?;
        Err(failed).with_context(|| format!("cannot make {}", usual.display()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_has_left_is_not_in_the_way() {
        let (first, second) =
            (TemporaryDirectory::new("tetrachord-test"), TemporaryDirectory::new("tetrachord-test"));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(first.0 != second.0 && first.0.is_dir() && second.0.is_dir());
        let path = second.0.clone();
        drop(second);
        assert!(!path.exists() && first.0.is_dir());
    }
}
