//! The bridge from blocking writers to the asynchronous store: a `Write` that hashes and counts what it passes on.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use dynavault_store::{BlobName, BlobStore, BlobWriter};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::VaultError;

/// Bytes gathered before they go to the store.
const CHUNK_BYTES: usize = 256 * 1024;

/// An object being written. Must be used on a blocking thread: it waits for the store.
pub(crate) struct Upload {
    handle: Handle,
    name: BlobName,
    writer: Option<Box<dyn BlobWriter>>,
    buffer: BytesMut,
    hasher: Sha256,
    bytes: u64,
}

/// What was written.
#[derive(Debug, Clone)]
pub(crate) struct Uploaded {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Upload {
    pub(crate) fn create(handle: &Handle, store: &dyn BlobStore, name: &BlobName) -> Result<Self, VaultError> {
        let writer = handle.block_on(store.create(name)).map_err(VaultError::store(format!("create {name}")))?;
        Ok(Self {
            handle: handle.clone(),
            name: name.clone(),
            writer: Some(writer),
            buffer: BytesMut::with_capacity(CHUNK_BYTES),
            hasher: Sha256::new(),
            bytes: 0,
        })
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let chunk: Bytes = self.buffer.split().freeze();
        self.buffer.reserve(CHUNK_BYTES);
        self.hasher.update(&chunk);
        self.bytes += chunk.len() as u64;
        let Some(writer) = self.writer.as_mut() else { return Err(io::Error::other("the object has failed before")) };
        if let Err(error) = self.handle.block_on(writer.write(chunk)) {
            self.writer = None;
            return Err(io::Error::other(VaultError::store(format!("write {}", self.name))(error)));
        }
        Ok(())
    }

    /// Makes the object durable and visible.
    pub(crate) fn finish(mut self) -> Result<Uploaded, VaultError> {
        self.pass_on().map_err(VaultError::io(&self.name))?;
        let Some(writer) = self.writer.take() else { return Err(VaultError::Cancelled) };
        let stored =
            self.handle.block_on(writer.finish()).map_err(VaultError::store(format!("finish {}", self.name)))?;
        if stored != self.bytes {
            return Err(VaultError::damaged(
                &self.name,
                format!("{} bytes were written, {stored} were kept", self.bytes),
            ));
        }
        Ok(Uploaded { bytes: self.bytes, sha256: hex(&self.hasher.finalize()) })
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - self.buffer.len().min(CHUNK_BYTES);
        let taken = bytes.len().min(room.max(1));
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() >= CHUNK_BYTES {
            self.pass_on()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
