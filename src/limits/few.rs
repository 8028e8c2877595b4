//! Lists in messages that may have so many elements and no more.

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// So many elements and no more: each takes more memory than it took in the message, and an empty one takes almost nothing there.
pub(crate) fn few<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Few<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Few<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
            let count = elements.size_hint().unwrap_or(0);
            if count > MAX {
                return Err(A::Error::invalid_length(count, &self));
            }
            let mut found = Vec::with_capacity(count);
            while let Some(element) = elements.next_element()? {
                if found.len() == MAX {
                    return Err(A::Error::invalid_length(MAX + 1, &self));
                }
                found.push(element);
            }
            Ok(found)
        }
    }

    deserializer.deserialize_seq(Few::<T, MAX>(PhantomData))
}
