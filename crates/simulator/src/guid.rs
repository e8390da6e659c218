//! Row ids in the order in which SQL Server sorts them.
//!
//! The service reads rows by primary key, and the database compares a `uniqueidentifier` from its last
//! group to its first (dataverse 3.1, RULE 3.1). A client that expects byte order must fail here as it
//! would fail against the real thing, so the ordering lives in the type: the number inside is the
//! sixteen bytes already rearranged, most significant first.

use std::fmt;

/// Position in the text form (big-endian bytes) of each byte, most significant for SQL Server first.
const SQL_ORDER: [usize; 16] = [10, 11, 12, 13, 14, 15, 8, 9, 7, 6, 5, 4, 3, 2, 1, 0];

/// A row id; `Ord` is the order of SQL Server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Guid(u128);

impl Guid {
    /// The id whose rearranged value is `order`; ids made from ascending numbers sort ascending.
    pub(crate) const fn from_order(order: u128) -> Self {
        Self(order)
    }

    /// The rearranged value.
    pub(crate) const fn order(self) -> u128 {
        self.0
    }

    /// An id whose text form shows these bytes, marked as a random (version 4) one.
    pub(crate) fn random(high: u64, low: u64) -> Self {
        let mut bytes = [0_u8; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self::from_bytes(bytes)
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        let mut order = 0_u128;
        for index in SQL_ORDER {
            order = (order << 8) | u128::from(bytes[index]);
        }
        Self(order)
    }

    /// The bytes in the order of the text form.
    pub(crate) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0_u8; 16];
        for (index, byte) in SQL_ORDER.iter().zip(self.0.to_be_bytes()) {
            bytes[*index] = byte;
        }
        bytes
    }

    /// Sixty-four bits that stand for the id when something is derived from it.
    pub(crate) fn fold(self) -> u64 {
        (self.0 >> 64) as u64 ^ self.0 as u64
    }

    /// Reads the 36-character form, in either case, with or without braces.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        let text = text.as_bytes();
        if text.len() != 36 {
            return None;
        }
        let mut bytes = [0_u8; 16];
        let mut at = 0;
        for byte in &mut bytes {
            if matches!(at, 8 | 13 | 18 | 23) {
                if text[at] != b'-' {
                    return None;
                }
                at += 1;
            }
            *byte = (hex(text[at])? << 4) | hex(text[at + 1])?;
            at += 2;
        }
        Some(Self::from_bytes(bytes))
    }

    /// Appends the 36-character lower-case form.
    pub(crate) fn write(self, out: &mut String) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for (index, byte) in self.bytes().into_iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                out.push('-');
            }
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
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

impl fmt::Display for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(36);
        self.write(&mut text);
        formatter.write_str(&text)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::Guid;

    #[test]
    fn text_survives_a_round_trip() {
        let text = "01234567-89ab-4def-8123-456789abcdef";
        assert_eq!(Guid::parse(text).unwrap().to_string(), text);
        assert_eq!(Guid::parse("{01234567-89AB-4DEF-8123-456789ABCDEF}").unwrap().to_string(), text);
        assert!(Guid::parse("01234567089ab-4def-8123-456789abcdef").is_none());
    }

    #[test]
    fn the_last_group_decides_the_order() {
        let low = Guid::parse("ffffffff-ffff-4fff-bfff-000000000001").unwrap();
        let high = Guid::parse("00000000-0000-4000-8000-000000000002").unwrap();
        assert!(low < high);
    }
}
