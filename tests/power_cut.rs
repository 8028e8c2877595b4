//! Power cuts of running nodes: each node's data lies on an ext4 of its own that is shut down without flushing, while
//! clients write. What was acknowledged must be there afterwards, and every node must open what is left.
//!
//! Needs root, loop devices and mkfs.ext4; says so and does nothing otherwise. `POWER_CUTS=1000` for more.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tetrachord::client::{ClientOptions, Outcome};
use tetrachord::config::ClusterConfig;
use tetrachord::{Client, storage};

const NODES: usize = 3;
const WRITERS: usize = 12;

fn sh(command: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", command]).output().map_err(|error| error.to_string())?;
    let problem = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if output.status.success() { Ok(()) } else { Err(format!("{command}: {problem}")) }
}

/// One small ext4 per node, mounted where its data belongs.
struct Disks {
    cut: PathBuf,
    images: Vec<(PathBuf, PathBuf)>,
}

impl Disks {
    /// `Err`: this machine does not allow it.
    fn mount(cluster: &Cluster) -> Result<Self, String> {
        let cut = cluster.path().join("cut");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/cut.c");
        sh(&format!("cc -O1 -o {} {}", cut.display(), source.display()))?;
        let mut disks = Self { cut, images: Vec::new() };
        for index in 0..NODES {
            let data = cluster.node_file(index).with_file_name("data");
            let image = cluster.path().join(format!("disk-{index}.img"));
            let bootstrap = data.join(storage::disk::BOOTSTRAP_FILE);
            let text = std::fs::read_to_string(&bootstrap).unwrap();
            sh(&format!("truncate -s 64M {0} && mkfs.ext4 -q -F {0}", image.display()))?;
            sh(&format!("mount -o loop {} {}", image.display(), data.display()))?;
            disks.images.push((image, data));
            std::fs::write(&bootstrap, text).unwrap();
            sh(&format!("sync -f {}", bootstrap.display()))?;
        }
        Ok(disks)
    }

    /// Cuts these nodes' disks off in one moment: what was not synced is gone.
    fn cut(&self, nodes: &[usize]) {
        let mounts: Vec<String> =
            nodes.iter().map(|node| self.images[*node].1.display().to_string()).collect();
        sh(&format!("{} {}", self.cut.display(), mounts.join(" "))).unwrap();
    }

    fn mount_again(&self, node: usize) {
        let (image, data) = &self.images[node];
        sh(&format!("umount {}", data.display())).unwrap();
        sh(&format!("mount -o loop {} {}", image.display(), data.display())).unwrap();
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for (_, data) in &self.images {
            let _ = sh(&format!("umount {0} || umount -l {0}", data.display()));
        }
    }
}

/// Writers that count up, each its own key; what was acknowledged and what was tried.
#[derive(Default)]
struct Counts {
    acknowledged: Vec<AtomicU64>,
    tried: Vec<AtomicU64>,
    total: AtomicU64,
    stop: AtomicBool,
    problems: Mutex<Vec<String>>,
}

fn load(cluster: &Cluster, counts: &Arc<Counts>) -> std::thread::JoinHandle<()> {
    let config = ClusterConfig::load(&cluster.path().join("cluster.toml")).unwrap();
    let counts = Arc::clone(counts);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options =
                ClientOptions { deadline: Duration::from_millis(800), attempt: Duration::from_millis(400) };
            let client = Client::with_options(config, options).unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            for writer in 0..WRITERS {
                tasks.spawn(write_up(client.clone(), Arc::clone(&counts), writer));
            }
            tasks.join_all().await;
        });
    })
}

/// Every number is tried until it is acknowledged or given up; a write is never taken back by a later one.
async fn write_up(client: Client, counts: Arc<Counts>, writer: usize) {
    let key = format!("count-{writer}");
    while !counts.stop.load(Ordering::SeqCst) {
        let number = counts.tried[writer].fetch_add(1, Ordering::SeqCst) + 1;
        let value = format!("{number} {}", "v".repeat(writer * 150));
        if let Outcome::Done(_) = client.put(&key, &value).await {
            counts.acknowledged[writer].store(number, Ordering::SeqCst);
            counts.total.fetch_add(1, Ordering::SeqCst);
        }
        // Now and then a read in between: it must not have gone back either.
        if number.is_multiple_of(16)
            && let Outcome::Done(found) = client.get(&key).await
        {
            let found = number_in(found.as_deref());
            let acknowledged = counts.acknowledged[writer].load(Ordering::SeqCst);
            if found < acknowledged {
                let problem = format!("{key}: {acknowledged} was acknowledged, {found} was read");
                counts.problems.lock().unwrap().push(problem);
            }
        }
    }
}

fn number_in(value: Option<&[u8]>) -> u64 {
    let text = std::str::from_utf8(value.unwrap_or(b"0")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// What one run came to.
struct Report {
    cuts: usize,
    acknowledged: u64,
    problems: Vec<String>,
}

/// Cuts until there were enough, or something was lost.
fn run(cluster: &mut Cluster, disks: &Disks, cuts_wanted: usize, wrap: fn() -> Command) -> Report {
    for index in 0..NODES {
        cluster.start_node_under(index, wrap());
    }
    let zeros = || (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let counts = Arc::new(Counts { acknowledged: zeros(), tried: zeros(), ..Counts::default() });
    let writers = load(cluster, &counts);
    let mut random = u64::from(std::process::id()) | 1;
    let mut cuts = 0;
    let mut problems: Vec<String> = Vec::new();
    while cuts < cuts_wanted && problems.is_empty() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let target = counts.total.load(Ordering::SeqCst) + 20 + (random >> 33) % 600;
        let reached = until(Duration::from_secs(20), || counts.total.load(Ordering::SeqCst) >= target);
        if !reached {
            problems.push(format!("after {cuts} cuts nothing is acknowledged any more"));
            break;
        }
        let ended = (0..NODES).filter_map(|node| {
            let code = cluster.exit_code(node)?;
            let log = cluster.log(node);
            Some(format!("n{} ended: {code}: {}", node + 1, log.lines().last().unwrap_or_default()))
        });
        problems.extend(ended.collect::<Vec<_>>());
        // Mostly all at once: then nobody else can help.
        let nodes: Vec<usize> =
            if cuts % 13 == 0 { vec![(random >> 40) as usize % NODES] } else { (0..NODES).collect() };
        disks.cut(&nodes);
        for node in &nodes {
            cluster.kill_node(*node);
        }
        for node in &nodes {
            disks.mount_again(*node);
            cluster.start_node_under(*node, wrap());
        }
        cuts += nodes.len();
        problems.append(&mut counts.problems.lock().unwrap());
        problems.extend(refusals(cluster));
        if cuts % 30 < NODES {
            println!("{cuts} cuts, {} writes acknowledged", counts.total.load(Ordering::SeqCst));
        }
    }
    counts.stop.store(true, Ordering::SeqCst);
    writers.join().unwrap();
    if !problems.is_empty() {
        for (_, data) in &disks.images {
            let o = Command::new("sh")
                .args(["-c", &format!("df -m {0}; ls -la {0} {0}/log", data.display())])
                .output()
                .unwrap();
            println!("{}", String::from_utf8_lossy(&o.stdout));
        }
    }
    if problems.is_empty() {
        problems = missing(cluster, &counts);
    }
    Report { cuts, acknowledged: counts.total.load(Ordering::SeqCst), problems }
}

fn until(patience: Duration, is_it: impl Fn() -> bool) -> bool {
    let started = std::time::Instant::now();
    while started.elapsed() < patience {
        if is_it() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// Nodes that say that they must not go on.
fn refusals(cluster: &Cluster) -> Vec<String> {
    let lines = (0..NODES).map(|node| cluster.log(node));
    let is_refusal = |line: &str| line.contains("must not vote") || line.contains("is damaged");
    lines
        .flat_map(|log| log.lines().filter(|line| is_refusal(line)).map(str::to_string).collect::<Vec<_>>())
        .collect()
}

/// What was acknowledged and is not there.
fn missing(cluster: &Cluster, counts: &Counts) -> Vec<String> {
    let mut found = BTreeMap::new();
    for writer in 0..WRITERS {
        let key = format!("count-{writer}");
        let value = wait_for("an answer", || {
            let output = cluster.run(&["get", &key]);
            matches!(output.status.code(), Some(0 | 3)).then_some(output.stdout)
        });
        let value = String::from_utf8_lossy(&value).trim().to_string();
        found.insert(key, number_in((!value.is_empty()).then_some(value.as_bytes())));
    }
    let check = |writer: usize| {
        let found = found[&format!("count-{writer}")];
        let (acknowledged, tried) =
            (counts.acknowledged[writer].load(Ordering::SeqCst), counts.tried[writer].load(Ordering::SeqCst));
        (found < acknowledged || found > tried).then(|| {
            format!("count-{writer}: {acknowledged} was acknowledged, {tried} was tried, {found} is there")
        })
    };
    (0..WRITERS).filter_map(check).collect()
}

/// A cluster with a small log, so that it is rewritten often between the cuts, on disks of its own.
fn prepare() -> Option<(Cluster, Disks)> {
    let cluster = Cluster::init(NODES, 2);
    for index in 0..NODES {
        let text = std::fs::read_to_string(cluster.node_file(index)).unwrap();
        let text = text.replace("log_max_bytes = 67108864", "log_max_bytes = 1048576");
        let text = text.replace("log_retain_bytes = 8388608", "log_retain_bytes = 262144");
        let text = text.replace("log_pinned_bytes = 67108864", "log_pinned_bytes = 262144");
        let text = text.replace("reserve_bytes = 67108864", "reserve_bytes = 4194304");
        std::fs::write(cluster.node_file(index), text).unwrap();
    }
    match Disks::mount(&cluster) {
        Ok(disks) => Some((cluster, disks)),
        Err(reason) => {
            println!("SKIPPED: power cuts need root, loop devices and mkfs.ext4 ({reason})");
            None
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_hundreds_of_power_cuts() {
    let Some((mut cluster, disks)) = prepare() else { return };
    let wanted = std::env::var("POWER_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let report = run(&mut cluster, &disks, wanted, program);
    println!(
        "{} power cuts, {} writes acknowledged: {:?}",
        report.cuts, report.acknowledged, report.problems
    );
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.cuts >= wanted && report.acknowledged > 10 * wanted as u64);
    for index in 0..NODES {
        cluster.kill_node(index);
    }
    drop(disks);
}

/// The same with `fdatasync` and `fsync` taken out: the test must notice.
#[test]
fn a_node_that_does_not_sync_is_noticed() {
    let Some((mut cluster, disks)) = prepare() else { return };
    let recorder = cluster.path().join("recorder.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/recorder.c");
    sh(&format!("cc -shared -fPIC -O1 -o {} {}", recorder.display(), source.display())).unwrap();
    // The wrapper is found by its name, because what runs a node is a plain function.
    std::fs::rename(&recorder, unsynced_library()).unwrap();
    let report = run(&mut cluster, &disks, 60, || {
        let mut command = program();
        command.env("LD_PRELOAD", unsynced_library()).env("RECORD_DROP_SYNC", "1");
        command
    });
    println!("noticed after {} cuts: {:?}", report.cuts, report.problems.first());
    assert!(report.cuts > 0 && !report.problems.is_empty(), "nothing was synced, and nothing is missed");
    for index in 0..NODES {
        cluster.kill_node(index);
    }
    drop(disks);
    std::fs::remove_file(unsynced_library()).unwrap();
}

fn unsynced_library() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("unsynced.so")
}
