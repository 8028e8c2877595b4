//! A host for every node: a network namespace with one device, whose other end this process holds. Packets go from host to host
//! through the switch alone.
//!
//! Addresses are of 198.18.0.0/15, which is set aside for tests of network equipment (RFC 2544). Everything is named after this
//! process, and goes with this value; what an earlier process left behind when it was killed is swept away at the start.

use super::machine::sh;
use super::switch::{Rules, Switch};
use anyhow::Context;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use tun_rs::{AsyncDevice, DeviceBuilder};

/// The port of every node.
const PORT: u16 = 7101;

/// The clients' host within the network.
const CLIENTS: u8 = 254;

/// Begins the names of everything that is made.
const PREFIX: &str = "tcj";

/// Hosts of nodes, and one for clients: this one.
pub(super) struct Hosts {
    namespaces: Vec<String>,
    network: u8,
    switch: Switch,
}

impl Hosts {
    pub(super) fn new(nodes: usize, seed: u64) -> anyhow::Result<Self> {
        anyhow::ensure!(nodes < usize::from(CLIENTS), "at most 253 hosts fit into the network");
        sweep();
        let network = free_network()?;
        let mut made = Made(Vec::new());
        let pid = std::process::id();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let devices = {
            let _inside = runtime.enter();
            let mut devices = Vec::new();
            for index in 0..nodes {
                let namespace = format!("{PREFIX}{pid}-n{}", index + 1);
                sh("ip", &["netns", "add", &namespace])?;
                made.0.push(namespace.clone());
                let name = format!("{PREFIX}{pid}n{}", index + 1);
                devices.push(device(&name)?);
                sh("ip", &["link", "set", &name, "netns", &namespace])?;
                let address = format!("{}/24", address(network, index)?);
                sh("ip", &["-n", &namespace, "addr", "add", &address, "dev", &name])?;
                sh("ip", &["-n", &namespace, "link", "set", &name, "up"])?;
                sh("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
            }
            let name = format!("{PREFIX}{pid}c");
            devices.push(device(&name)?);
            sh("ip", &["addr", "add", &format!("198.18.{network}.{CLIENTS}/24"), "dev", &name])?;
            sh("ip", &["link", "set", &name, "up"])?;
            devices
        };
        let switch = Switch::start(runtime, devices, host_of, Rules::new(seed))?;
        Ok(Self { namespaces: std::mem::take(&mut made.0), network, switch })
    }

    pub(super) fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        (0..self.namespaces.len())
            .map(|index| Ok(SocketAddr::new(address(self.network, index)?.into(), PORT)))
            .collect()
    }

    /// The command that runs a program on a host.
    pub(super) fn command(&self, index: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespaces[index]]).arg(program);
        command
    }

    pub(super) fn rules(&self) -> std::sync::MutexGuard<'_, Rules> {
        self.switch.rules()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        drop(Made(std::mem::take(&mut self.namespaces)));
    }
}

/// Namespaces that are removed when this goes.
struct Made(Vec<String>);

impl Drop for Made {
    fn drop(&mut self) {
        for namespace in &self.0 {
            // It may be gone already.
            let _ = sh("ip", &["netns", "del", namespace]);
        }
    }
}

fn device(name: &str) -> anyhow::Result<AsyncDevice> {
    DeviceBuilder::new()
        .name(name)
        .mtu(1_500)
        .build_async()
        .with_context(|| format!("cannot make device {name}"))
}

fn address(network: u8, index: usize) -> anyhow::Result<Ipv4Addr> {
    Ok(Ipv4Addr::new(198, 18, network, u8::try_from(index + 1)?))
}

/// Which host has the address that ends so.
fn host_of(last: u8, nodes: usize) -> Option<usize> {
    match usize::from(last) {
        _ if last == CLIENTS => Some(nodes),
        last if (1..=nodes).contains(&last) => Some(last - 1),
        _ => None,
    }
}

/// A network that nobody on this machine is in.
fn free_network() -> anyhow::Result<u8> {
    let output = Command::new("ip").args(["-o", "-4", "addr"]).output().context("cannot run ip")?;
    let taken = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = std::process::id() % 200;
    let candidates = (0..200).map(|turn| (first + turn) % 200 + 1);
    let free = candidates.into_iter().find(|network| !taken.contains(&format!("198.18.{network}.")));
    Ok(u8::try_from(free.context("every network of 198.18.0.0/16 is taken")?)?)
}

/// Removes the namespaces of processes that are no more.
fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let is_left =
            pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists());
        if is_left {
            let _ = sh("ip", &["netns", "del", &name]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_by_the_end_of_their_addresses() {
        assert_eq!(host_of(1, 3), Some(0));
        assert_eq!(host_of(3, 3), Some(2));
        assert_eq!(host_of(CLIENTS, 3), Some(3));
        assert_eq!(host_of(0, 3), None);
        assert_eq!(host_of(4, 3), None);
        assert_eq!(host_of(255, 3), None, "a broadcast goes nowhere");
    }
}
