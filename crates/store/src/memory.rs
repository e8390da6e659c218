//! Objects in memory, for tests.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::port::check_range;
use crate::{BlobEntry, BlobName, BlobStore, BlobWriter, LIST_ENTRIES_MAX, LockOwner, StoreError, StoreLock};

/// A store that forgets. Clones share the objects.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<BlobName, Bytes>,
    locks: BTreeMap<BlobName, String>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the bytes of an object, which no real store allows: for tests of damage.
    pub fn overwrite(&self, name: &BlobName, bytes: Bytes) {
        self.inner().objects.insert(name.clone(), bytes);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, name: &BlobName, bytes: Bytes) -> Result<(), StoreError> {
        let mut inner = self.inner();
        if inner.objects.contains_key(name) {
            return Err(StoreError::AlreadyExists { name: name.clone() });
        }
        inner.objects.insert(name.clone(), bytes);
        Ok(())
    }

    fn get(&self, name: &BlobName) -> Result<Bytes, StoreError> {
        self.inner().objects.get(name).cloned().ok_or_else(|| StoreError::NotFound { name: name.clone() })
    }
}

#[async_trait]
impl BlobStore for MemoryStore {
    async fn create(&self, name: &BlobName) -> Result<Box<dyn BlobWriter>, StoreError> {
        Ok(Box::new(Writer { store: self.clone(), name: name.clone(), bytes: BytesMut::new() }))
    }

    async fn put(&self, name: &BlobName, bytes: Bytes) -> Result<(), StoreError> {
        self.insert(name, bytes)
    }

    async fn read(&self, name: &BlobName, range: Range<u64>) -> Result<Bytes, StoreError> {
        check_range(name, &range)?;
        let bytes = self.get(name)?;
        let end = range.end.min(bytes.len() as u64);
        let start = range.start.min(end);
        Ok(bytes.slice(start as usize..end as usize))
    }

    async fn size(&self, name: &BlobName) -> Result<u64, StoreError> {
        Ok(self.get(name)?.len() as u64)
    }

    async fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobEntry>, StoreError> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let inner = self.inner();
        let entries = inner
            .objects
            .range::<BlobName, _>((start, Bound::Unbounded))
            .filter(|(name, _)| name.as_str().starts_with(prefix))
            .take(limit.min(LIST_ENTRIES_MAX))
            .map(|(name, bytes)| BlobEntry { name: name.clone(), size: bytes.len() as u64 });
        Ok(entries.collect())
    }

    async fn delete(&self, name: &BlobName) -> Result<(), StoreError> {
        match self.inner().objects.remove(name) {
            Some(_) => Ok(()),
            None => Err(StoreError::NotFound { name: name.clone() }),
        }
    }

    async fn lock(&self, name: &BlobName, owner: &LockOwner) -> Result<Box<dyn StoreLock>, StoreError> {
        let mut inner = self.inner();
        if let Some(holder) = inner.locks.get(name) {
            return Err(StoreError::Busy { name: name.clone(), holder: holder.clone() });
        }
        inner.locks.insert(name.clone(), owner.description().to_owned());
        inner.objects.entry(name.clone()).or_default();
        Ok(Box::new(Lock { store: self.clone(), name: name.clone() }))
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

struct Writer {
    store: MemoryStore,
    name: BlobName,
    bytes: BytesMut,
}

#[async_trait]
impl BlobWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64, StoreError> {
        let length = self.bytes.len() as u64;
        self.store.insert(&self.name, self.bytes.freeze())?;
        Ok(length)
    }
}

#[derive(Debug)]
struct Lock {
    store: MemoryStore,
    name: BlobName,
}

#[async_trait]
impl StoreLock for Lock {
    fn lost(&self) -> bool {
        false
    }

    async fn release(self: Box<Self>) {}
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.store.inner().locks.remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_memory_store_behaves_like_every_store() {
        crate::conformance::run(async || Arc::new(MemoryStore::new()) as Arc<dyn BlobStore>).await;
    }
}
