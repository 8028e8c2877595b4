//! `tetrachord demo`: the main job in one go. A real cluster of child processes, concurrent clients, leaders killed,
//! everybody killed, and a verdict on what the clients saw.

use super::check::remark;
use super::cluster::{Ending, LocalCluster, Size, leaders};
use super::demo_report::{Report, Tally};
use super::dev::TemporaryDirectory;
use super::history_file::HistoryFile;
use super::liars::{self, Watch};
use super::record::seed;
use super::workload::{Recorder, read_all, run_client};
use super::{Common, Exit};
use crate::client::Client;
use crate::config::{Mode, StorageConfig};
use crate::ring::{Atlas, GroupId, NodeId, Position};
use anyhow::Context;
use clap::Args;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tetrachord_checker::{Action, History, Operation};

/// Start a real cluster, load it, kill its leaders, judge what the clients saw
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tetrachord demo\n  tetrachord demo --nodes 5 --groups 4 --seconds 30 --json\n  tetrachord demo --seconds 60 --kills 20   # how long a group is without a leader"
)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    size: Size,
    /// How long the clients work
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Concurrent clients
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Keys
    #[arg(long, default_value_t = 16)]
    keys: usize,
    /// Leaders that are killed, spread over the time [default: one every 8 s, at least 2]
    #[arg(long)]
    kills: Option<usize>,
}

/// Histories of processes with one number that are kept.
const HISTORIES_MAX: usize = 100;

/// Leaders that are killed at least, if nobody says how many.
const LEADER_KILLS: usize = 2;

/// How long an honest node is away in Byzantine mode: long enough for the others to replace it as primary.
const AWAY: Duration = Duration::from_millis(2_500);

pub(crate) async fn run(common: &Common, args: &DemoArgs) -> anyhow::Result<Exit> {
    let ending = Ending::watch()?;
    tokio::select! {
        done = run_to_the_end(common, args) => done,
        signal = ending.asked() => Err(anyhow::anyhow!("ended by {signal}; nothing was judged")),
    }
}

async fn run_to_the_end(common: &Common, args: &DemoArgs) -> anyhow::Result<Exit> {
    anyhow::ensure!(
        args.clients > 0 && args.keys > 0 && args.seconds > 0,
        "clients, keys and seconds must be positive"
    );
    anyhow::ensure!(
        args.size.nodes() >= 3,
        "the demo kills nodes and needs at least 3 to go on; crash mode survives f of 2f + 1, Byzantine mode f of 3f + 1"
    );
    let dir = TemporaryDirectory::new("tetrachord-demo")?;
    let recorder = Recorder::new()?;
    let file = history_file()?;
    let tell = |text: String| remark(&text);
    let liars = match args.size.mode() {
        Mode::Crash => Vec::new(),
        Mode::Byzantine => liars::liars(args.size.nodes()),
    };
    let mut cluster = start_cluster(&dir.0, args, &liars)?;
    let observer = cluster.client(Duration::from_secs(2))?;
    let started = Instant::now();
    cluster.wait_for_leaders(&observer, Duration::from_secs(30)).await?;
    tell(format!(
        "{} nodes (QUIC, sled with fsync), {} group(s): all led after {} ms",
        args.size.nodes(),
        args.size.groups(),
        started.elapsed().as_millis()
    ));
    let mut tasks = Vec::new();
    for index in 0..args.clients {
        let client = cluster.client(Duration::from_secs(3))?;
        tasks.push(tokio::spawn(run_client(client, recorder.clone(), args.keys, seed(index)?)));
    }
    let liars: Vec<NodeId> = liars.iter().map(|index| cluster.node(*index)).collect();
    let watch = match liars.is_empty() {
        true => None,
        false => Some(Watch::start(cluster.client(Duration::from_secs(2))?, liars.clone())),
    };
    tell(format!("{} clients work on {} keys for {} s", args.clients, args.keys, args.seconds));
    let mut tally = Tally { liars, ..Tally::default() };
    let done = torment(&mut cluster, &observer, args, &recorder, &mut tally).await;
    recorder.stop();
    for task in tasks {
        task.await?;
    }
    let path = file.path().to_path_buf();
    if let Err(error) = done {
        write_down(file, &recorder.news().0, &recorder);
        return Err(error.context(format!("the demo ends early; what clients saw is in {}", path.display())));
    }
    let patient = cluster.client(Duration::from_secs(20))?;
    let final_values = read_all(&patient, &recorder, args.keys).await;
    let (operations, _) = recorder.news();
    tally.lost = lost_increments(&operations, &final_values);
    tally.unread = final_values.iter().filter(|(_, value)| value.is_none()).count();
    drop(cluster);
    write_down(file, &operations, &recorder);
    let failed = usize::try_from(recorder.failed()).unwrap_or(usize::MAX);
    let report = Report::new(args.size.clone(), History::new(operations, failed)?, path, tally, watch);
    report.tell(common.json)?;
    Ok(report.exit())
}

/// The verdict is told even if the history cannot be kept.
fn write_down(file: HistoryFile, operations: &[Operation], recorder: &Recorder) {
    let tail = format!("{} other operations surely did not happen", recorder.failed());
    if let Err(error) = file.finish(operations, &[], &tail) {
        remark(&format!("{error:#}"));
    }
}

/// In Byzantine mode some nodes lie, and logs are kept short, so that a node that was away needs a whole state.
fn start_cluster(dir: &Path, args: &DemoArgs, liars: &[usize]) -> anyhow::Result<LocalCluster> {
    let storage = match liars.is_empty() {
        true => StorageConfig::default(),
        false => StorageConfig {
            log_max_bytes: 4 << 20,
            log_retain_bytes: 64 << 10,
            log_pinned_bytes: 64 << 10,
            ..StorageConfig::default()
        },
    };
    let turns = liars.iter().enumerate();
    let chaos: Vec<_> = turns.map(|(turn, index)| (*index, liars::chaos(args.seconds, turn))).collect();
    LocalCluster::start_with(dir, &args.size, storage, &chaos)
}

/// Kills leaders one after another, then everybody at once.
async fn torment(
    cluster: &mut LocalCluster,
    observer: &Client,
    args: &DemoArgs,
    recorder: &Recorder,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let by_time = LEADER_KILLS.max(usize::try_from(args.seconds / 8).unwrap_or(LEADER_KILLS));
    let rounds = args.kills.unwrap_or(by_time);
    let pause = Duration::from_millis(args.seconds * 1000) / u32::try_from(rounds + 2).unwrap_or(4);
    for round in 0..rounds {
        tokio::time::sleep(pause).await;
        let (group, leader) = pick_leader(cluster, observer, round).await?;
        // Liars are left alone: with one of them crashed there would be more faults than the group survives.
        let leader = match tally.liars.contains(&leader) {
            true => {
                (0..cluster.len()).map(|index| cluster.node(index)).find(|node| !tally.liars.contains(node))
            }
            false => Some(leader),
        };
        let leader = leader.context("somebody does not lie")?;
        if !tally.liars.is_empty() {
            restart_honest(cluster, leader, tally).await?;
            continue;
        }
        let index = usize::try_from(leader.0 - 1).context("node numbers are small")?;
        let before = recorder.len();
        cluster.kill_node(index)?;
        let failover = time_to_write(cluster, group).await?;
        tally.leader_kills += 1;
        tally.failover_ms.push(failover.as_millis());
        remark(&format!(
            "killed {leader}, leader of {group}, with SIGKILL after {before} operations; the next write there took {} ms",
            failover.as_millis()
        ));
        tokio::time::sleep(pause / 4).await;
        cluster.start_node(index)?;
        tally.restarts += 1;
    }
    tokio::time::sleep(pause).await;
    for index in 0..cluster.len() {
        cluster.kill_node(index)?;
    }
    tally.full_stops += 1;
    for index in 0..cluster.len() {
        cluster.start_node(index)?;
        tally.restarts += 1;
    }
    let restarted = Instant::now();
    cluster.wait_for_leaders(observer, Duration::from_secs(60)).await?;
    remark(&format!(
        "killed all {} nodes at once; all groups are led again {} ms after their restart",
        cluster.len(),
        restarted.elapsed().as_millis()
    ));
    tokio::time::sleep(pause).await;
    Ok(())
}

/// Kills an honest node and starts it again after a while. Meanwhile there may be one fault more than is survived: clients may
/// have to wait, and nothing worse happens.
async fn restart_honest(cluster: &mut LocalCluster, node: NodeId, tally: &mut Tally) -> anyhow::Result<()> {
    let index = usize::try_from(node.0 - 1).context("node numbers are small")?;
    cluster.kill_node(index)?;
    tally.leader_kills += 1;
    remark(&format!("killed {node}, which is honest, with SIGKILL"));
    tokio::time::sleep(AWAY).await;
    cluster.start_node(index)?;
    tally.restarts += 1;
    Ok(())
}

/// A group, in turn, with the node that leads it now.
async fn pick_leader(
    cluster: &mut LocalCluster,
    observer: &Client,
    round: usize,
) -> anyhow::Result<(GroupId, NodeId)> {
    if let Some(leaders) = leaders(observer).await {
        return Ok(leaders[round % leaders.len()]);
    }
    let leaders = cluster.wait_for_leaders(observer, Duration::from_secs(30)).await?;
    Ok(leaders[round % leaders.len()])
}

/// How long until a write that begins now is acknowledged in the group.
async fn time_to_write(cluster: &LocalCluster, group: GroupId) -> anyhow::Result<Duration> {
    let genesis = crate::config::Genesis::load(&cluster.cluster_file.with_file_name("genesis.toml"))?;
    let atlas = Atlas::founded(&genesis.founding());
    let key = (0..)
        .map(|index| format!("probe-{index}"))
        .find(|key| atlas.owner(Position::of_key(key.as_bytes())).group() == group)
        .context("every group owns some key")?;
    let started = Instant::now();
    let client = cluster.client(Duration::from_secs(30))?;
    client.put(&key, "x").await.done().context("the group did not come back after its leader was killed")?;
    let took = started.elapsed();
    super::close(&client).await;
    Ok(took)
}

/// Increments that were acknowledged and are missing at the end. Of a key that could not be read nothing is known.
fn lost_increments(operations: &[Operation], final_values: &[(String, Option<Option<String>>)]) -> u64 {
    let mut lost = 0;
    let read = final_values.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    for (key, value) in read.filter(|(key, _)| key.starts_with("counter")) {
        let is_acknowledged = |operation: &&Operation| {
            operation.key == *key && operation.end.is_some() && matches!(operation.action, Action::Incr(..))
        };
        let acknowledged = operations.iter().filter(is_acknowledged).count() as u64;
        let total = value.as_ref().and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        lost += acknowledged.saturating_sub(total);
    }
    lost
}

/// The history outlives the cluster. The usual folder for it may be another user's.
fn history_file() -> anyhow::Result<HistoryFile> {
    let user = rustix::process::getuid().as_raw();
    let usual = own_folder("tetrachord-histories", user);
    let folder = usual.or_else(|_| own_folder(&format!("tetrachord-histories-{user}"), user))?;
    let head = concat!("recorded by tetrachord demo ", env!("CARGO_PKG_VERSION"));
    // An earlier process may have had the number of this one.
    let paths = (0..HISTORIES_MAX).map(|number| {
        let again = if number > 0 { format!("-{number}") } else { String::new() };
        folder.join(format!("demo-{}{again}.jsonl", std::process::id()))
    });
    let free = paths.into_iter().find(|path| !path.exists());
    HistoryFile::create_new(&free.with_context(|| format!("{} is full", folder.display()))?, head)
}

/// A folder of this user's among the temporary ones. What is in one of somebody else's may change at any time.
fn own_folder(name: &str, user: u32) -> anyhow::Result<PathBuf> {
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let owner = std::fs::symlink_metadata(&folder)?;
    anyhow::ensure!(owner.is_dir() && owner.uid() == user, "{} is somebody else's", folder.display());
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_are_kept_in_no_folder_of_another_user() {
        let (user, name) =
            (rustix::process::getuid().as_raw(), format!("tetrachord-histories-test-{}", std::process::id()));
        let folder = own_folder(&name, user).unwrap();
        let of_another = own_folder(&name, user + 1).unwrap_err().to_string();
        assert!(of_another.contains("is somebody else's"), "{of_another}");
        std::fs::remove_dir(&folder).unwrap();
        std::os::unix::fs::symlink("/", &folder).unwrap();
        let elsewhere = own_folder(&name, user);
        std::fs::remove_file(&folder).unwrap();
        assert!(elsewhere.is_err(), "where a name leads to may change at any time");
    }

    #[test]
    fn what_could_not_be_read_is_not_counted_as_lost() {
        let incr = |process: u64, end| {
            let (key, action) = ("counter-1@x".to_string(), Action::Incr(1, 1));
            Operation { process, key, action, call: 1, end, line: 0 }
        };
        let operations = [incr(1, Some(2)), incr(2, Some(2)), incr(3, None)];
        let lost = |value: Option<Option<&str>>| {
            let value = value.map(|value| value.map(str::to_string));
            lost_increments(&operations, &[("counter-1@x".to_string(), value)])
        };
        assert_eq!(lost(None), 0);
        assert_eq!((lost(Some(None)), lost(Some(Some("1"))), lost(Some(Some("3")))), (2, 1, 0));
    }
}
