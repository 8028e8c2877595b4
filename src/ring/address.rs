//! Where a node is: an IP address or a host name, and a port.
//!
//! A name is looked up for each dial, so a node may come back at another address under its name. What answers there must have the
//! node's key: a name service that lies can hide a node, and do no more.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// Letters of a host name, and of each label between dots (RFC 1123).
const NAME_LETTERS_MAX: usize = 253;
const LABEL_LETTERS_MAX: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Host {
    Ip(IpAddr),
    Name(Arc<str>),
}

/// An address. See the module's essay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    host: Host,
    port: u16,
}

impl Address {
    /// The IP address; none for a host name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        }
    }

    /// The host's name; none for an IP address.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Ip(_) => None,
            Host::Name(name) => Some(name),
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where a socket is bound that is reached here: at this address, or at every one of the machine that has the name.
    #[must_use]
    pub fn to_bind(&self) -> SocketAddr {
        let any = IpAddr::from([0u16; 8]);
        SocketAddr::new(self.ip().unwrap_or(any), self.port)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip()), port: address.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let wrong = || {
            format!(
                "{text:?} is no address: HOST:PORT is expected, as in 10.0.0.1:7101, [2001:db8::1]:7101 or node1.example.com:7101"
            )
        };
        let (name, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        // Names are alike whatever their case; a dot at the end forbids search domains.
        let name = name.to_ascii_lowercase();
        let is_right = is_name(name.strip_suffix('.').unwrap_or(&name));
        if is_right { Ok(Self { host: Host::Name(name.into()), port }) } else { Err(wrong()) }
    }
}

/// Whether it can be a host's name. What ends in a number would be a wrong IP address.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        is_plain
            && !label.is_empty()
            && label.len() <= LABEL_LETTERS_MAX
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let ends_in_a_number = last.bytes().all(|byte| byte.is_ascii_digit());
    name.len() <= NAME_LETTERS_MAX && name.split('.').all(is_label) && !ends_in_a_number
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in [
            "10.0.0.1:7101",
            "[2001:db8::1]:7101",
            "node1.example.com:7101",
            "n1:1",
            "db_1:65535",
            "n1.example.com.:7",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(serde_json::from_str::<Address>(&format!("\"{text}\"")).unwrap(), address);
        }
        assert_eq!("N1:7".parse::<Address>(), "n1:7".parse());
        let long = format!("{}:1", "a".repeat(64));
        for text in [
            "",
            "n1",
            "n1:",
            "n1:x",
            "n1:65536",
            ":1",
            "-a:1",
            "a..b:1",
            "1.2.3:1",
            "300.1.1.1:1",
            "a b:1",
            &long,
        ] {
            assert!(text.parse::<Address>().unwrap_err().contains("HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn a_name_is_bound_everywhere_and_an_ip_address_there() {
        let bound = |text: &str| text.parse::<Address>().unwrap().to_bind().to_string();
        assert_eq!([bound("n1:7"), bound("127.0.0.1:7")], ["[::]:7", "127.0.0.1:7"]);
    }
}
