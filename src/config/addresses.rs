//! Where nodes are said to be.

use super::GenesisNode;
use std::net::IpAddr;

/// Checks that nodes can be reached where they are said to be.
pub(super) fn check_addresses(nodes: &[GenesisNode]) -> Result<(), String> {
    for (index, node) in nodes.iter().enumerate() {
        let GenesisNode { id, address, .. } = node;
        let is_nowhere = |ip: IpAddr| {
            let ip = ip.to_canonical();
            let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            ip.is_unspecified() || ip.is_multicast() || is_broadcast
        };
        if address.ip().is_some_and(is_nowhere) {
            return Err(format!(
                "the address of {id} is {address}, at which nobody can be reached. Give the address that the others reach it \
                 by; which one it binds, `listen` in its node.toml says"
            ));
        }
        if address.port() == 0 {
            return Err(format!("the address of {id} is {address}: port 0 is none that others can reach"));
        }
        if let Some(other) = nodes[..index].iter().find(|other| other.address == *address) {
            return Err(format!("{} and {id} have the same address, {address}", other.id));
        }
    }
    Ok(())
}
