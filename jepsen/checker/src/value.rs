//! Values of keys: texts and numbers, compared exactly.
//!
//! * A number is never a text: `7` and `"7"` differ.
//! * Numbers are equal if they are the same number, however they are written: `7`, `7.0` and `70e-1` are. They have as many digits as
//!   they have; nothing is rounded. They are kept in one spelling, so that the spelling can be compared.
//! * Texts are compared letter by letter.

use std::fmt;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// Letters.
    Text(String),
    /// A number.
    Number(Number),
}

impl Value {
    /// The letters of a text, or a number in its one spelling: what a store that holds letters alone would hold.
    #[must_use]
    pub fn letters(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => &number.0,
        }
    }

    /// The whole number that the value is, whichever kind it is of.
    pub(crate) fn whole(&self) -> Option<i64> {
        self.letters().parse().ok()
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(Number(number.to_string()))
    }
}

/// A text as it would stand in a program, so that nothing in it is mistaken for something else; a long one is cut.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 60;
        let letters = self.letters();
        let (shown, is_cut) = match letters.char_indices().nth(SHOWN_MAX) {
            Some((at, _)) => (&letters[..at], true),
            None => (letters, false),
        };
        match self {
            Self::Text(_) => write!(f, "{shown:?}")?,
            Self::Number(_) => f.write_str(shown)?,
        }
        if is_cut { write!(f, "... ({} bytes)", letters.len()) } else { Ok(()) }
    }
}

/// A decimal number of any length, in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number(String);

/// Numbers are written out up to so many noughts; beyond that with an exponent.
const WRITTEN_OUT_MAX: i64 = 40;

impl Number {
    /// Reads a number as JSON writes it. None if it is no number, or one whose exponent has more than 18 digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (is_negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (unsigned, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (mantissa, None),
        };
        let exponent_digits = exponent.map(|digits| digits.strip_prefix(['+', '-']).unwrap_or(digits));
        let is_number = [Some(whole), fraction, exponent_digits].into_iter().flatten().all(are_digits);
        if !is_number || (whole.len() > 1 && whole.starts_with('0')) {
            return None;
        }
        let digits = [whole, fraction.unwrap_or_default()].concat();
        let significant = digits.trim_start_matches('0').trim_end_matches('0');
        if significant.is_empty() {
            return Some(Self("0".to_string()));
        }
        let trailing = digits.len() - digits.trim_end_matches('0').len();
        let shift = i64::try_from(trailing).ok()? - i64::try_from(fraction.map_or(0, str::len)).ok()?;
        let exponent = exponent.map_or(Some(0), exponent_of)? + shift;
        Some(Self(spell(is_negative, significant, exponent)))
    }

    /// The number if it is a whole one from 0 to 2^64 - 1.
    pub(crate) fn unsigned(&self) -> Option<u64> {
        self.0.parse().ok()
    }

    /// The number if it is a whole one from -2^63 to 2^63 - 1.
    pub(crate) fn signed(&self) -> Option<i64> {
        self.0.parse().ok()
    }
}

fn are_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Far below what overflows when the length of a text is added.
fn exponent_of(text: &str) -> Option<i64> {
    let digits = text.trim_start_matches(['+', '-']).trim_start_matches('0');
    if digits.len() > 18 {
        return None;
    }
    text.strip_prefix('+').unwrap_or(text).parse().ok()
}

/// The one spelling of `digits` (without noughts at either end) times ten to the power of `exponent`.
fn spell(is_negative: bool, digits: &str, exponent: i64) -> String {
    let sign = if is_negative { "-" } else { "" };
    let noughts = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
    let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    match exponent {
        0..=WRITTEN_OUT_MAX => format!("{sign}{digits}{}", noughts(exponent)),
        _ if exponent > WRITTEN_OUT_MAX || exponent < -length - WRITTEN_OUT_MAX => {
            format!("{sign}{digits}e{exponent}")
        }
        _ if -exponent >= length => format!("{sign}0.{}{digits}", noughts(-exponent - length)),
        _ => {
            let point = usize::try_from(length + exponent).unwrap_or(0);
            format!("{sign}{}.{}", &digits[..point], &digits[point..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_spelling() {
        for (spelling, written) in [
            ("0", &["0", "-0", "0.00", "0e7", "-0.0E-999999999999999999999"][..]),
            ("7", &["7", "7.0", "70e-1", "0.07E+2", "0.00000007e00000000000000000000008"]),
            ("-1200", &["-1200", "-1.2e3", "-12E2", "-1200.000"]),
            ("0.05", &["0.05", "5e-2", "0.50e-1"]),
            ("12.75", &["12.75", "1275e-2", "1.275e1"]),
            ("1e41", &["1e41", "100000000000000000000000000000000000000000"]),
            ("18446744073709551617", &["18446744073709551617", "1844674407370955161.7e1"]),
            ("1e-999999999999999999", &["1e-999999999999999999", "0.1e-999999999999999998"]),
        ] {
            for text in written {
                assert_eq!(Number::parse(text).map(|number| number.0).as_deref(), Some(spelling), "{text}");
            }
        }
        for text in ["", "-", "+1", "01", ".5", "5.", "1e", "1e+", "0x7", "7 ", "1_000", "nan"] {
            assert_eq!(Number::parse(text), None, "{text}");
        }
        assert_eq!(Number::parse("1e1000000000000000000"), None, "no more than 18 digits of exponent");
    }

    /// Every pair of small decimals is equal as spelt if and only if it is equal as a fraction.
    #[test]
    fn spellings_are_equal_if_the_numbers_are() {
        let mut all = Vec::new();
        for mantissa in [-120, -12, -1, 0, 1, 3, 10, 12, 100, 120] {
            for exponent in -3..=3_i32 {
                let thousandths = i64::from(mantissa) * 10_i64.pow((exponent + 3) as u32);
                let spelt = Number::parse(&format!("{mantissa}e{exponent}")).unwrap();
                all.push((spelt, thousandths));
            }
        }
        for (one, number) in &all {
            for (other, other_number) in &all {
                assert_eq!(one == other, number == other_number, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn values_are_shown_so_that_nothing_is_mistaken() {
        assert_eq!(Value::from("7").to_string(), "\"7\"");
        assert_eq!(Value::from(7).to_string(), "7");
        assert_eq!(Value::from("a \"b\"\u{1b}[2J").to_string(), r#""a \"b\"\u{1b}[2J""#);
        let long = Value::from("x".repeat(7_000)).to_string();
        assert!(long.len() < 90 && long.ends_with("... (7000 bytes)"), "{long}");
    }
}
