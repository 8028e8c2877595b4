//! How groups and nodes are named.
//!
//! A name is never given twice. Those that the genesis record founds have small numbers, counted from 1. The others are for what comes later,
//! so long that no two who choose one need to ask each other. Nothing makes any yet.
//!
//! People write and read the small numbers, `n3` and `g7`. Long names are shown by their beginning, and written in full, as 32
//! hexadecimal digits, where a program reads them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// One group of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u128);

/// One node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u128);

/// Names below are numbers that the genesis record gave.
const FOUNDERS_END: u128 = 1 << 32;

/// Hexadecimal digits of a long name that people are shown.
const SHOWN_DIGITS: usize = 12;

/// The number of a founder.
fn founder(name: u128) -> Option<u32> {
    u32::try_from(name).ok()
}

fn show(letter: char, name: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match founder(name) {
        Some(number) => write!(f, "{letter}{number}"),
        None => write!(f, "{letter}-{}", &format!("{name:032x}")[..SHOWN_DIGITS]),
    }
}

fn serialize<S: Serializer>(name: u128, serializer: S) -> Result<S::Ok, S::Error> {
    match (serializer.is_human_readable(), founder(name)) {
        (false, _) => serializer.serialize_u128(name),
        (true, Some(number)) => serializer.serialize_u32(number),
        (true, None) => serializer.serialize_str(&format!("{name:032x}")),
    }
}

/// What a name looks like where people write it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number below 4294967296, or 32 hexadecimal digits")]
enum Written {
    Number(u32),
    Digits(String),
}

fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
    if !deserializer.is_human_readable() {
        return u128::deserialize(deserializer);
    }
    match Written::deserialize(deserializer)? {
        Written::Number(number) => Ok(number.into()),
        Written::Digits(digits) => parse_digits(&digits)
            .ok_or_else(|| serde::de::Error::custom(format!("{digits:?} is no name: 32 hexadecimal digits"))),
    }
}

/// A name has one spelling: those of founders are numbers.
fn parse_digits(digits: &str) -> Option<u128> {
    let is_plain =
        digits.len() == 32 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let name = u128::from_str_radix(digits, 16).ok()?;
    (is_plain && name >= FOUNDERS_END).then_some(name)
}

macro_rules! name {
    ($name:ident, $letter:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                show($letter, self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serialize(self.0, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize(deserializer).map(Self)
            }
        }

        impl $name {
            /// The name that the genesis record gives to the founder at this place, counted from 0.
            #[must_use]
            pub fn founder(index: usize) -> Self {
                let number = u32::try_from(index + 1).expect("a cluster is founded with few");
                Self(number.into())
            }

            /// A number to mix into what must differ between two, a seed for example. Not a name: two may share it.
            #[must_use]
            pub fn mixed(self) -> u64 {
                let [high, low] = [self.0 >> 64, self.0 & u128::from(u64::MAX)];
                u64::try_from(high ^ low).expect("64 bits")
            }
        }
    };
}

name!(GroupId, 'g');
name!(NodeId, 'n');

/// One epoch of one group: the time in which it has the same members, and between which what it says is not mixed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TenureId {
    /// The group.
    pub group: GroupId,
    /// Its epoch, counted from 1.
    pub epoch: u64,
}

impl fmt::Display for TenureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} e{}", self.group, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: NodeId = NodeId(0x8f3a_0000_0000_0000_0000_0000_0000_00ff);

    #[test]
    fn founders_are_numbers_and_others_are_shown_by_their_beginning() {
        assert_eq!((NodeId(3).to_string(), GroupId(7).to_string()), ("n3".into(), "g7".into()));
        assert_eq!(LONG.to_string(), "n-8f3a00000000");
        assert_eq!(TenureId { group: GroupId(7), epoch: 2 }.to_string(), "g7 e2");
        assert_eq!(NodeId::founder(0), NodeId(1));
        assert_ne!(NodeId(3).mixed(), LONG.mixed());
    }

    #[test]
    fn every_name_is_read_as_it_was_written() {
        for name in [NodeId(0), NodeId(3), NodeId(u32::MAX.into()), NodeId(1 << 32), LONG, NodeId(u128::MAX)]
        {
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), name, "{json}");
            let bytes = postcard::to_allocvec(&name).unwrap();
            assert_eq!(postcard::from_bytes::<NodeId>(&bytes).unwrap(), name);
        }
        assert_eq!(serde_json::to_string(&NodeId(3)).unwrap(), "3");
        assert_eq!(serde_json::to_string(&LONG).unwrap(), "\"8f3a00000000000000000000000000ff\"");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let short = format!("\"{:031x}\"", LONG.0 >> 4);
        let founder_in_digits = format!("\"{:032x}\"", 3);
        let signed = format!("\"+{:031x}\"", u128::MAX >> 4);
        let capital = serde_json::to_string(&LONG).unwrap().to_uppercase();
        for text in
            [&capital, "-1", "4294967296", "1.5", "\"n3\"", "\"\"", &short, &founder_in_digits, &signed]
        {
            assert!(serde_json::from_str::<NodeId>(text).is_err(), "{text}");
        }
    }
}
