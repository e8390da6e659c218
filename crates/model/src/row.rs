//! A row as the bytes the service sent: members by name, and the hash of its content.

use crate::scan::Member;

/// One row: a JSON object without white space between tokens, and where its members are.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    bytes: &'a [u8],
    members: &'a [Member],
    serial: u64,
}

/// The one member that is not part of a row's content: the service's concurrency tag.
const ETAG: &[u8] = b"@odata.etag";

impl<'a> Row<'a> {
    /// A row from the result of [`scan`](crate::scan): `bytes` is exactly the object, and it was not spaced.
    pub fn new(bytes: &'a [u8], members: &'a [Member]) -> Self {
        Self { bytes, members, serial: 0 }
    }

    /// The same, from the result of a [`Scanner`](crate::Scanner) with this serial.
    pub fn numbered(bytes: &'a [u8], members: &'a [Member], serial: u64) -> Self {
        Self { bytes, members, serial }
    }

    /// Serial of the scanner whose numbers the members have; 0 for none.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// The whole object.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The members, in the order sent.
    pub fn members(&self) -> &'a [Member] {
        self.members
    }

    /// The key of a member, as sent (escapes kept).
    #[inline]
    pub fn key(&self, member: &Member) -> &'a [u8] {
        &self.bytes[member.key_start as usize..member.key_end as usize]
    }

    /// The raw value of a member.
    #[inline]
    pub fn value(&self, member: &Member) -> &'a [u8] {
        &self.bytes[member.value_start as usize..member.value_end as usize]
    }

    /// The raw value of the member called `name`.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.members.iter().find(|member| self.key(member) == name.as_bytes()).map(|member| self.value(member))
    }

    /// 64-bit XXH3 of the row's content: the members except `@odata.etag`, in order, as sent. Never 0, which marks a
    /// tombstone in state files.
    pub fn hash(&self) -> u64 {
        let hash = match self.members.first() {
            None => xxhash_rust::xxh3::xxh3_64(b""),
            Some(first) => {
                let etags = self.members.iter().filter(|member| self.key(member) == ETAG).count();
                let rest = match (etags, self.key(first) == ETAG) {
                    (0, _) => Some(first),
                    (1, true) => self.members.get(1),
                    _ => None,
                };
                match rest {
                    Some(member) => {
                        let from = member.key_start as usize - 1;
                        xxhash_rust::xxh3::xxh3_64(&self.bytes[from..self.bytes.len() - 1])
                    }
                    None => xxhash_rust::xxh3::xxh3_64(&self.content_without_etag()),
                }
            }
        };
        hash.max(1)
    }

    fn content_without_etag(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(self.bytes.len());
        self.write_content(&mut content);
        content
    }

    /// Appends the members except `@odata.etag`, separated by commas, without braces.
    pub fn write_content(&self, out: &mut Vec<u8>) {
        let mut first = true;
        for member in self.members.iter().filter(|member| self.key(member) != ETAG) {
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(&self.bytes[member.key_start as usize - 1..member.value_end as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan;

    #[test]
    fn hash_ignores_the_etag_wherever_it_stands() {
        let mut hashes = Vec::new();
        for text in [r#"{"@odata.etag":"1","a":1,"b":2}"#, r#"{"a":1,"b":2}"#, r#"{"a":1,"@odata.etag":"7","b":2}"#] {
            let mut members = Vec::new();
            scan(text.as_bytes(), &mut members).unwrap();
            hashes.push(Row::new(text.as_bytes(), &members).hash());
        }
        assert_eq!(hashes[0], hashes[1]);
        assert_eq!(hashes[1], hashes[2]);
        let mut members = Vec::new();
        let other = r#"{"a":1.0,"b":2}"#;
        scan(other.as_bytes(), &mut members).unwrap();
        assert_ne!(Row::new(other.as_bytes(), &members).hash(), hashes[0]);
    }
}
