//! `tetrachord status`: what each node knows of itself.

use super::health::{Answer, Clocks, Health, State, clock_off, off_in_words, own_clock_behind, troubles};
use super::output::{print_json, table};
use super::{Common, Exit};
use crate::client::{Client, Refusal};
use crate::ring::NodeId;
use crate::wire::NodeStatus;
use serde_json::{Value, json};

/// Asks all nodes at once; those that do not answer are listed with the reason.
pub(crate) async fn ask_all(client: &Client) -> Vec<Answer> {
    let mut tasks = tokio::task::JoinSet::new();
    for node in client.nodes() {
        let client = client.clone();
        tasks.spawn(async move { (node, client.status(node).await) });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|(node, _)| *node);
    answers
}

/// A node whose clock looks wrong is asked so often again: what it said may have been on its way for long.
const CLOCK_TRIES: usize = 3;

/// The same, with how far the nodes' clocks are ahead of this one.
async fn ask_all_and_clocks(client: &Client) -> (Vec<Answer>, Clocks) {
    let mut clocks = Clocks::new();
    let mut answers = Vec::new();
    for _ in 0..CLOCK_TRIES {
        let mut tasks = tokio::task::JoinSet::new();
        for node in client.nodes() {
            let client = client.clone();
            tasks.spawn(async move { (node, client.status_and_clock(node).await) });
        }
        answers.clear();
        for (node, answer) in tasks.join_all().await {
            if let Ok((_, Some(ahead))) = answer {
                let known = clocks.entry(node).or_insert(ahead);
                *known = ahead.max(*known);
            }
            answers.push((node, answer.map(|(status, _)| status)));
        }
        let looks_wrong = |(node, _): &Answer| clock_off(*node, &clocks).is_some();
        if own_clock_behind(&clocks).is_none() && !answers.iter().any(looks_wrong) {
            break;
        }
    }
    answers.sort_by_key(|(node, _)| *node);
    (answers, clocks)
}

pub(crate) async fn run(common: &Common) -> anyhow::Result<Exit> {
    let client = common.client()?;
    let (answers, clocks) = ask_all_and_clocks(&client).await;
    let is_byzantine = common.cluster_config()?.signing.is_some();
    let places = client.places();
    let groups: Vec<Health> =
        places.iter().map(|(group, nodes)| Health::of(*group, nodes, is_byzantine, &answers)).collect();
    let serves = !groups.is_empty() && groups.iter().all(|group| group.state.serves());
    if common.json {
        let nodes: Vec<Value> =
            answers.iter().map(|(node, answer)| node_json(*node, answer, &clocks)).collect();
        print_json(&json!({
            "serves": serves,
            "groups": groups.iter().map(Health::json).collect::<Vec<_>>(),
            "nodes": nodes,
            "own_clock_behind_us": own_clock_behind(&clocks),
        }));
    } else {
        print_tables(&answers, &clocks);
        print_health(&groups, &clocks);
    }
    let is_denied = |(_, answer): &Answer| matches!(answer, Err(Refusal::Denied(_)));
    Ok(match serves {
        true => Exit::Ok,
        // Whoever is not let in learns nothing of the groups.
        false if answers.iter().all(is_denied) => Exit::Denied,
        false => Exit::Unavailable,
    })
}

/// Groups that all of their replicas serve are only counted.
fn print_health(groups: &[Health], clocks: &Clocks) {
    if let Some(behind) = own_clock_behind(clocks) {
        println!("\nthe clock of this machine is {} of the nodes'", off_in_words(-behind));
    }
    if groups.is_empty() {
        println!("\nno node answers: nothing is known of any group");
        return;
    }
    let count = |is_it: fn(State) -> bool| groups.iter().filter(|group| is_it(group.state)).count();
    let whole = count(|state| state == State::Serves);
    let parts = [
        (whole, "served by all of their replicas"),
        (count(|state| state == State::Degraded), "degraded"),
        (count(|state| !state.serves()), "not serving"),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    println!("\n{} group(s): {}", groups.len(), parts.join(", "));
    for group in groups.iter().filter(|group| group.state != State::Serves) {
        println!("{}", group.words());
    }
}

/// Why a node says nothing of itself.
fn why_silent(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Unavailable(reason) => format!("unreachable ({reason})"),
        denied => denied.to_string(),
    }
}

fn print_tables(answers: &[Answer], clocks: &Clocks) {
    let mut nodes =
        table(&["NODE", "STATE", "UPTIME", "STARTS", "LINKS", "OPEN", "CPU", "MEMORY", "LOG", "DISK FREE"]);
    let mut groups =
        table(&["NODE", "GROUP", "ROLE", "LEADER", "BALLOT", "APPLIED", "DECIDED", "LOG", "DIGEST"]);
    for (node, answer) in answers {
        let status = match answer {
            Ok(status) => status,
            Err(reason) => {
                nodes.add_row(vec![node.to_string(), why_silent(reason)]);
                continue;
            }
        };
        nodes.add_row(vec![
            node.to_string(),
            std::iter::once("up".to_string()).chain(troubles(status, clocks)).collect::<Vec<_>>().join("; "),
            format!("{:.1} s", status.uptime_millis as f64 / 1e3),
            status.incarnation.to_string(),
            status.connected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            status.open_requests.to_string(),
            format!("{:.1} s", status.process.cpu_micros as f64 / 1e6),
            format!("{} MiB", status.process.resident_bytes >> 20),
            format!("{:.1} MiB", status.log_bytes as f64 / 1_048_576.0),
            format!("{:.1} GiB", status.process.disk_free_bytes as f64 / (1u64 << 30) as f64),
        ]);
        for group in &status.groups {
            let role = match (&group.damage, group.is_installing, group.is_leader) {
                (Some(_), _, _) => "repairing",
                (None, true, _) => "installing",
                (None, false, true) => "leader",
                (None, false, false) => "follower",
            };
            groups.add_row(vec![
                node.to_string(),
                group.group.to_string(),
                role.to_string(),
                group.leader.map_or("none".to_string(), |leader| leader.to_string()),
                group.ballot.clone(),
                group.applied.to_string(),
                group.decided.to_string(),
                format!("{}..{}", group.base, group.last),
                group.digest.clone(),
            ]);
        }
    }
    println!("{nodes}\n\n{groups}");
    for (node, status) in answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?))) {
        if !status.awaits.is_empty() {
            let missing: Vec<String> = status.awaits.iter().map(ToString::to_string).collect();
            println!(
                "{node}: its data directory is new; it votes when more of {} have noted it. Start them",
                missing.join(" ")
            );
        }
        for group in &status.groups {
            if let Some(damage) = &group.damage {
                println!(
                    "{node} {}: its state is being repaired from the other replicas: {damage}",
                    group.group
                );
            }
            for suspect in &group.suspects {
                println!("{node} {}: {suspect}", group.group);
            }
            for (lie, count) in &group.told {
                println!("{node} {}: this node was told to lie: {lie}, {count} times", group.group);
            }
        }
    }
}

fn node_json(node: NodeId, answer: &Result<NodeStatus, Refusal>, clocks: &Clocks) -> Value {
    match answer {
        Err(reason) => json!({ "node": node, "up": false, "error": why_silent(reason) }),
        Ok(status) => json!({
            "node": node,
            "up": true,
            "incarnation": status.incarnation,
            "uptime_ms": status.uptime_millis,
            "connected": status.connected,
            "awaits": status.awaits,
            "troubles": troubles(status, clocks),
            "refuses_writes": status.refuses_writes,
            "clock_off_us": clock_off(node, clocks),
            "clock_us": status.wall_micros,
            "open_requests": status.open_requests,
            "log_bytes": status.log_bytes,
            "cpu_us": status.process.cpu_micros,
            "resident_bytes": status.process.resident_bytes,
            "disk_free_bytes": status.process.disk_free_bytes,
            "groups": status.groups.iter().map(|group| json!({
                "group": group.group,
                "leader": group.leader,
                "is_leader": group.is_leader,
                "ballot": group.ballot,
                "base": group.base,
                "applied": group.applied,
                "decided": group.decided,
                "last": group.last,
                "sessions": group.sessions,
                "digest": group.digest,
                "is_installing": group.is_installing,
                "stable": group.stable,
                "view": group.view,
                "rejected": group.rejected,
                "suspects": group.suspects,
                "damage": group.damage,
                "repairs": group.repairs,
                "scrubs": group.scrubs,
                "signatures_made": group.signatures_made,
                "signatures_checked": group.signatures_checked,
                "told": group.told.iter().map(|(lie, count)| (lie.clone(), json!(count)))
                    .collect::<serde_json::Map<_, _>>(),
            })).collect::<Vec<_>>(),
        }),
    }
}
