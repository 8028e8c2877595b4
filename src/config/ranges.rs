//! What settings may be: a value outside is an error of the setting, before anything is done with it.

use super::{GenesisNode, StorageConfig, Timing};
use crate::storage::disk::CACHE_BYTES;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// No disk and no memory is larger.
const BYTES_MAX: u64 = 1 << 50;

/// Four of the smallest segments.
const LOG_BYTES: RangeInclusive<u64> = 256 << 10..=1 << 40;

/// Up to a year.
const SCRUB_SECONDS: RangeInclusive<u64> = 0..=366 * 86_400;

/// The clock of a node ticks every 10 ms.
const HEARTBEAT_MILLIS: RangeInclusive<u64> = 10..=60_000;

/// Up to an hour; at least four heartbeats, so that one that is late deposes nobody.
const ELECTION_MILLIS_MAX: u64 = 3_600_000;

/// Below, every slow disk costs a primary its view; above, a dead one costs clients their patience.
const REQUEST_MILLIS: RangeInclusive<u64> = 100..=60_000;

fn within(name: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), String> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("{name} = {value}: {} to {} are allowed", range.start(), range.end())),
    }
}

/// Checks the settings of a store.
pub(super) fn check_storage(storage: &StorageConfig) -> Result<(), String> {
    let StorageConfig {
        cache_bytes,
        log_max_bytes,
        log_retain_bytes,
        log_pinned_bytes,
        pack_above_bytes,
        reserve_bytes,
        scrub_seconds,
    } = *storage;
    within("storage.cache_bytes", cache_bytes, CACHE_BYTES)?;
    within("storage.log_max_bytes", log_max_bytes, LOG_BYTES)?;
    if log_retain_bytes > log_max_bytes / 2 {
        return Err(format!(
            "storage.log_retain_bytes = {log_retain_bytes} must be at most half of storage.log_max_bytes = {log_max_bytes}"
        ));
    }
    within("storage.log_pinned_bytes", log_pinned_bytes, 0..=*LOG_BYTES.end())?;
    within("storage.pack_above_bytes", pack_above_bytes, 0..=BYTES_MAX)?;
    within("storage.reserve_bytes", reserve_bytes, 0..=BYTES_MAX)?;
    within("storage.scrub_seconds", scrub_seconds, SCRUB_SECONDS)
}

/// Checks timers.
pub(super) fn check_timing(timing: &Timing) -> Result<(), String> {
    let Timing { heartbeat_millis, election_millis, request_millis } = *timing;
    within("timing.request_millis", request_millis, REQUEST_MILLIS)?;
    within("timing.heartbeat_millis", heartbeat_millis, HEARTBEAT_MILLIS)?;
    let least = 4 * heartbeat_millis;
    within("timing.election_millis", election_millis, least..=ELECTION_MILLIS_MAX)
        .map_err(|error| format!("{error}: at least four heartbeats"))
}

/// Checks that a socket bound there reaches all of these.
pub(super) fn check_families(listen: SocketAddr, nodes: &[GenesisNode]) -> Result<(), String> {
    // What a name stands for is not known here.
    let is = |node: &&GenesisNode, kind: fn(&IpAddr) -> bool| node.address.ip().as_ref().is_some_and(kind);
    let unreachable = nodes.iter().find(|node| is(node, IpAddr::is_ipv6) && listen.is_ipv4());
    let is_fixed = listen.is_ipv6() && !listen.ip().is_unspecified();
    let from_ipv6 = nodes.iter().find(|node| is(node, IpAddr::is_ipv4) && is_fixed);
    match unreachable.or(from_ipv6) {
        None => Ok(()),
        Some(node) => Err(format!(
            "{} is at {}, which cannot be reached from {listen}: one is IPv4, the other IPv6. Use one of them for all nodes, \
             or let this one listen on [::]:{}",
            node.id,
            node.address,
            listen.port()
        )),
    }
}

/// Checks the name of a cluster: it becomes part of the protocol's name, which TLS allows 255 bytes.
pub(super) fn check_name(cluster: &str) -> Result<(), String> {
    let is_hex = cluster.len() == 32 && cluster.bytes().all(|byte| byte.is_ascii_hexdigit());
    match is_hex {
        true => Ok(()),
        false => {
            Err(format!("cluster = {cluster:?}: a cluster's name is 32 hexadecimal digits, drawn by `init`"))
        }
    }
}

/// Letters of a node's name, of a tag and of its value.
const NAME_LETTERS_MAX: usize = 63;

/// Tags of one node.
const TAGS_MAX: usize = 16;

/// Compared with the others.
const CAPACITY: RangeInclusive<u64> = 1..=1_000;

/// Checks what is said of a node besides where it is and which keys it has.
pub(super) fn check_description(node: &GenesisNode) -> Result<(), String> {
    let id = node.id;
    let is_plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    let begins = node.name.chars().next().is_some_and(|letter| letter.is_ascii_lowercase());
    if !begins || !node.name.chars().all(is_plain) || node.name.len() > NAME_LETTERS_MAX {
        return Err(format!(
            "the name of {id} is {:?}: a name begins with a small letter, then come small letters, digits and hyphens, \
             {NAME_LETTERS_MAX} in all at most",
            node.name
        ));
    }
    let is_word = |text: &String| {
        !text.is_empty()
            && text.len() <= NAME_LETTERS_MAX
            && text.chars().all(|letter| letter.is_ascii_graphic())
    };
    if node.tags.len() > TAGS_MAX || !node.tags.iter().all(|(tag, value)| is_word(tag) && is_word(value)) {
        return Err(format!(
            "the tags of {id}: {TAGS_MAX} at most, each a word and its value a word of up to {NAME_LETTERS_MAX} plain letters"
        ));
    }
    within(&format!("the capacity of {id}"), node.capacity.into(), CAPACITY)
}

/// Checks that no two nodes have one name.
pub(super) fn check_names(nodes: &[GenesisNode]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match nodes.iter().find(|node| !seen.insert(&node.name)) {
        Some(node) => Err(format!("two nodes are named {:?}: each needs a name of its own", node.name)),
        None => Ok(()),
    }
}
