//! `tetrachord status`: what each node knows of itself.

use super::output::{print_json, table};
use super::{Common, Exit};
use crate::client::Client;
use crate::ring::NodeId;
use crate::wire::NodeStatus;
use serde_json::{Value, json};

/// Asks all nodes at once; those that do not answer are listed with the reason.
pub(crate) async fn ask_all(client: &Client) -> Vec<(NodeId, Result<NodeStatus, String>)> {
    let mut tasks = tokio::task::JoinSet::new();
    for node in client.nodes() {
        let client = client.clone();
        tasks.spawn(async move { (node, client.status(node).await) });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|(node, _)| *node);
    answers
}

pub(crate) async fn run(common: &Common) -> anyhow::Result<Exit> {
    let answers = ask_all(&common.client()?).await;
    let is_any_up = answers.iter().any(|(_, answer)| answer.is_ok());
    if common.json {
        let nodes: Vec<Value> = answers.iter().map(|(node, answer)| node_json(*node, answer)).collect();
        print_json(&json!({ "nodes": nodes }));
    } else {
        print_tables(&answers);
    }
    Ok(if is_any_up { Exit::Ok } else { Exit::Unavailable })
}

fn print_tables(answers: &[(NodeId, Result<NodeStatus, String>)]) {
    let mut nodes =
        table(&["NODE", "STATE", "UPTIME", "STARTS", "LINKS", "OPEN", "CPU", "MEMORY", "LOG", "DISK FREE"]);
    let mut groups =
        table(&["NODE", "GROUP", "ROLE", "LEADER", "BALLOT", "APPLIED", "DECIDED", "LOG", "DIGEST"]);
    for (node, answer) in answers {
        let status = match answer {
            Ok(status) => status,
            Err(reason) => {
                nodes.add_row(vec![node.to_string(), format!("down ({reason})")]);
                continue;
            }
        };
        nodes.add_row(vec![
            node.to_string(),
            "up".to_string(),
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
                group.leader.map_or("unknown".to_string(), |leader| leader.to_string()),
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

fn node_json(node: NodeId, answer: &Result<NodeStatus, String>) -> Value {
    match answer {
        Err(reason) => json!({ "node": node.0, "up": false, "error": reason }),
        Ok(status) => json!({
            "node": node.0,
            "up": true,
            "incarnation": status.incarnation,
            "uptime_ms": status.uptime_millis,
            "connected": status.connected.iter().map(|peer| peer.0).collect::<Vec<_>>(),
            "awaits": status.awaits.iter().map(|peer| peer.0).collect::<Vec<_>>(),
            "open_requests": status.open_requests,
            "log_bytes": status.log_bytes,
            "cpu_us": status.process.cpu_micros,
            "resident_bytes": status.process.resident_bytes,
            "disk_free_bytes": status.process.disk_free_bytes,
            "groups": status.groups.iter().map(|group| json!({
                "group": group.group.0,
                "leader": group.leader.map(|leader| leader.0),
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
