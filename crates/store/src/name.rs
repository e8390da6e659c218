//! Names of objects: the same in every store.

use std::fmt;
use std::str::FromStr;

use crate::StoreError;

/// Longest name, in bytes; the limit of Azure Blob.
pub const NAME_BYTES_MAX: usize = 1024;
/// Longest segment between two `/`, in bytes; the limit of file systems.
pub const SEGMENT_BYTES_MAX: usize = 255;

/// Name of an object, relative to the store.
///
/// Segments separated by `/`, none of them empty. Printable ASCII only, so that all stores sort alike, and no
/// backslash, which Azure turns into `/`. A segment neither starts with a dot (`.`, `..` and our temporary files) nor
/// ends with one (Azure advises against it).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobName(String);

impl BlobName {
    /// Checks the name.
    pub fn new(name: impl Into<String>) -> Result<Self, StoreError> {
        let name = name.into();
        match defect(&name) {
            None => Ok(Self(name)),
            Some(reason) => Err(StoreError::Name { name: name.chars().take(100).collect(), reason }),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Segments in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

fn defect(name: &str) -> Option<&'static str> {
    if name.len() > NAME_BYTES_MAX {
        return Some("it is longer than 1024 bytes");
    }
    if !name.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'\\') {
        return Some("only printable ASCII without backslash is allowed");
    }
    name.split('/').find_map(|segment| match segment {
        "" => Some("a segment is empty"),
        _ if segment.len() > SEGMENT_BYTES_MAX => Some("a segment is longer than 255 bytes"),
        _ if segment.starts_with('.') || segment.ends_with('.') => Some("a segment starts or ends with a dot"),
        _ => None,
    })
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for BlobName {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        Self::new(text)
    }
}

impl AsRef<str> for BlobName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_the_same_everywhere_are_accepted() {
        for name in ["dynavault.json", "a/b/c.jsonl.zst.age", "a b/%20?#+&=", "x", &"s".repeat(255)] {
            assert_eq!(BlobName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_a_store_would_change_or_follow_are_refused() {
        let long = ["x"; 513].join("/");
        let segment = "s".repeat(256);
        for name in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/./b",
            ".partial-1",
            "a/.b",
            "a./b",
            "a\\b",
            "a\nb",
            "a\0b",
            "ä",
            &long,
            &segment,
        ] {
            assert!(BlobName::new(name).is_err(), "{name:?}");
        }
    }
}
