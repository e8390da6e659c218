//! The port: what every store can do.
//!
//! Objects are created whole and once. Nothing of an object is visible before its writer is finished, an existing
//! object is never replaced, and a finished object is durable. Deleting is for prune alone.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::{BlobName, StoreError};

/// Longest range of one [`BlobStore::read`], in bytes: two frames of a segment.
pub const READ_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most entries of one [`BlobStore::list`]: a page of Azure.
pub const LIST_ENTRIES_MAX: usize = 5000;

/// An object as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobEntry {
    /// Its name.
    pub name: BlobName,
    /// Its length in bytes.
    pub size: u64,
}

/// A place that keeps objects. Methods are safe to drop at any await point: what is not finished leaves nothing visible.
#[async_trait]
pub trait BlobStore: Send + Sync + fmt::Debug {
    /// Starts an object. [`StoreError::AlreadyExists`] may come at once or from [`BlobWriter::finish`].
    async fn create(&self, name: &BlobName) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// Creates a small object in one go; [`StoreError::AlreadyExists`] if there is one of this name.
    async fn put(&self, name: &BlobName, bytes: Bytes) -> Result<(), StoreError>;

    /// Reads the range, shorter or empty where the object ends. At most [`READ_BYTES_MAX`] bytes.
    async fn read(&self, name: &BlobName, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Length of the object in bytes.
    async fn size(&self, name: &BlobName) -> Result<u64, StoreError>;

    /// The first `limit` objects whose name starts with `prefix` and sorts after `after`, in byte order, from all
    /// levels. `limit` is cut to [`LIST_ENTRIES_MAX`]; fewer entries than that mean that there are no more.
    ///
    /// Objects that come or go while pages are read may or may not be seen; all others are seen once.
    async fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobEntry>, StoreError>;

    /// Deletes an object; [`StoreError::NotFound`] if there is none.
    async fn delete(&self, name: &BlobName) -> Result<(), StoreError>;

    /// Takes the lock called `name`, or fails with [`StoreError::Busy`]. Never waits. The lock is an object of that
    /// name; it stays when the lock is released.
    async fn lock(&self, name: &BlobName, owner: &LockOwner) -> Result<Box<dyn StoreLock>, StoreError>;

    /// Where the store is, without secrets.
    fn describe(&self) -> String;
}

/// Writes one object. Dropping it before [`BlobWriter::finish`] abandons the object.
#[async_trait]
pub trait BlobWriter: Send {
    /// Appends bytes; waits while too much is on its way.
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError>;

    /// Makes the object durable and visible; its length in bytes.
    async fn finish(self: Box<Self>) -> Result<u64, StoreError>;
}

/// A held lock. Dropping it gives it up at once (folder) or when its lease ends within a minute (Azure).
#[async_trait]
pub trait StoreLock: Send + Sync + fmt::Debug {
    /// Whether another process may hold the lock by now. Once true, nothing more must be written under it.
    fn lost(&self) -> bool;

    /// Gives the lock up.
    async fn release(self: Box<Self>);
}

/// Who takes a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    id: String,
    description: String,
}

impl LockOwner {
    /// `id` names one holder: whoever comes with the same `id` takes over the lock of its own earlier life, without
    /// waiting for the lease of a crashed process to end. So it must belong to something that only one process can use
    /// at a time, such as the locked catalog. `description` is shown to those who find the lock taken.
    pub fn new(id: impl Into<String>, description: impl Into<String>) -> Self {
        Self { id: id.into(), description: description.into() }
    }

    /// What others are shown.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// A GUID made of the id; Azure wants lease ids in that form.
    pub(crate) fn lease_id(&self) -> String {
        let digest = Sha256::digest(self.id.as_bytes());
        let number = digest[..16].iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        let hex = format!("{number:032x}");
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }
}

/// Refuses a range that is longer than allowed.
pub(crate) fn check_range(name: &BlobName, range: &Range<u64>) -> Result<(), StoreError> {
    match range.end.saturating_sub(range.start) {
        length if length > READ_BYTES_MAX => Err(StoreError::ReadTooLong { name: name.clone(), length }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_id_is_a_guid_that_depends_on_the_id_only() {
        let id = LockOwner::new("catalog-1", "host a").lease_id();
        assert_eq!(id, LockOwner::new("catalog-1", "host b").lease_id());
        assert_ne!(id, LockOwner::new("catalog-2", "host a").lease_id());
        assert_eq!(id.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    }
}
