//! Typed ids. ULIDs for what we create (they sort by time), 16 bytes for rows.

use std::fmt;
use std::str::FromStr;

use crate::Clock;

/// The text is not an id of the expected form.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a valid {what}")]
pub struct ParseIdError {
    what: &'static str,
    text: String,
}

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(ulid::Ulid);

        impl $name {
            /// Makes a new id from the clock and the operating system's randomness.
            pub fn new(clock: &dyn Clock) -> Self {
                Self(new_ulid(clock))
            }

            /// Milliseconds since 1970 at which the id was made.
            pub fn timestamp_ms(self) -> u64 {
                self.0.timestamp_ms()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                ulid::Ulid::from_string(text)
                    .map(Self)
                    .map_err(|_| ParseIdError { what: $what, text: text.chars().take(64).collect() })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

ulid_id!(
    /// One execution of a backup, restore, verify or prune.
    RunId,
    "run id"
);
ulid_id!(
    /// What can be restored: the state of an environment's tables as one manifest describes it.
    SnapshotId,
    "snapshot id"
);
ulid_id!(
    /// One immutable object of rows, tombstones or content references of one table.
    SegmentId,
    "segment id"
);

fn new_ulid(clock: &dyn Clock) -> ulid::Ulid {
    let mut random = [0_u8; 16];
    // The operating system's generator does not fail after boot on any platform we run on; if it ever does, the
    // process has no safe way to name an object that must not collide.
    getrandom::fill(&mut random).expect("the operating system provides randomness");
    let milliseconds = u64::try_from(clock.now().as_millisecond()).unwrap_or(0);
    ulid::Ulid::from_parts(milliseconds, u128::from_le_bytes(random))
}

/// Identity of a row inside its table: the GUID primary key in the byte order of its text, or BLAKE3-128 of the canonical
/// key of a composite key (see [`RowId::of_key`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub [u8; 16]);

impl RowId {
    /// Reads the textual form of a GUID, with or without braces, in any case.
    pub fn from_guid(text: &[u8]) -> Option<Self> {
        let text = match text {
            [b'{', inner @ .., b'}'] => inner,
            plain => plain,
        };
        if text.len() != 36 {
            return None;
        }
        let mut bytes = [0_u8; 16];
        let mut at = 0;
        for (index, byte) in bytes.iter_mut().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                if text[at] != b'-' {
                    return None;
                }
                at += 1;
            }
            *byte = (hex(text[at])? << 4) | hex(text[at + 1])?;
            at += 2;
        }
        Some(Self(bytes))
    }

    /// Id of a row from the raw JSON tokens of its key columns, in key order.
    ///
    /// A single GUID string is the id itself. Anything else is BLAKE3-128 over the tokens, each preceded by its length
    /// as a little-endian u32, so that no two different keys share their bytes.
    pub fn of_key(tokens: &[&[u8]]) -> Self {
        if let [single] = tokens
            && let [b'"', text @ .., b'"'] = single
            && let Some(id) = Self::from_guid(text)
        {
            return id;
        }
        let mut hasher = blake3::Hasher::new();
        for token in tokens {
            hasher.update(&u32::try_from(token.len()).unwrap_or(u32::MAX).to_le_bytes());
            hasher.update(token);
        }
        let mut bytes = [0_u8; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(bytes)
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RowId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Self::from_guid(text.as_bytes())
            .ok_or_else(|| ParseIdError { what: "row id", text: text.chars().take(64).collect() })
    }
}

impl serde::Serialize for RowId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for RowId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guid_text_round_trips_and_bad_text_is_refused() {
        let text = "0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f";
        let id: RowId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(RowId::from_guid(b"{0FE1C2D3-A4B5-46C7-88D9-EAFB0C1D2E3F}"), Some(id));
        assert_eq!(RowId::from_guid(b"0fe1c2d3xa4b5-46c7-88d9-eafb0c1d2e3f"), None);
        assert_eq!(RowId::from_guid(b"short"), None);
    }

    #[test]
    fn composite_keys_do_not_collide_by_concatenation() {
        assert_ne!(RowId::of_key(&[b"\"a\"", b"\"bc\""]), RowId::of_key(&[b"\"ab\"", b"\"c\""]));
        let guid: &[u8] = b"\"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f\"";
        assert_eq!(RowId::of_key(&[guid]).to_string(), "0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f");
    }
}
