//! An object of the store as `Read + Seek`, fetched by ranges. Must be used on a blocking thread: it waits for the store.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use dynavault_store::{BlobName, BlobStore, StoreError};
use tokio::runtime::Handle;

use crate::VaultError;

/// Read-ahead for one row or one index block: an age chunk and its neighbours.
pub(crate) const LOOKUP_BYTES: usize = 64 * 1024;
/// Read-ahead for reading an object from end to end.
pub(crate) const SCAN_BYTES: usize = 1 << 20;

pub(crate) struct BlobFile {
    handle: Handle,
    store: Arc<dyn BlobStore>,
    name: BlobName,
    size: u64,
    position: u64,
    ahead: usize,
    buffer: Bytes,
    buffer_start: u64,
}

impl BlobFile {
    pub(crate) fn open(
        handle: &Handle,
        store: &Arc<dyn BlobStore>,
        name: &BlobName,
        ahead: usize,
    ) -> Result<Self, VaultError> {
        let size = handle.block_on(store.size(name)).map_err(|error| match error {
            // A manifest names it, so it should be there.
            StoreError::NotFound { .. } => VaultError::damaged(name, "it is missing"),
            error => VaultError::store(format!("open {name}"))(error),
        })?;
        Ok(Self {
            handle: handle.clone(),
            store: Arc::clone(store),
            name: name.clone(),
            size,
            position: 0,
            ahead,
            buffer: Bytes::new(),
            buffer_start: 0,
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}

impl Read for BlobFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.size || out.is_empty() {
            return Ok(0);
        }
        let buffered = self.buffer_start..self.buffer_start + self.buffer.len() as u64;
        if !buffered.contains(&self.position) {
            let wanted = self.ahead.max(out.len().min(SCAN_BYTES)) as u64;
            let range = self.position..(self.position + wanted).min(self.size);
            self.buffer = self
                .handle
                .block_on(self.store.read(&self.name, range))
                .map_err(|error| io::Error::other(VaultError::store(format!("read {}", self.name))(error)))?;
            self.buffer_start = self.position;
            if self.buffer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let from = (self.position - self.buffer_start) as usize;
        let taken = out.len().min(self.buffer.len() - from);
        out[..taken].copy_from_slice(&self.buffer[from..from + taken]);
        self.position += taken as u64;
        Ok(taken)
    }
}

impl Seek for BlobFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
