//! Content objects: file, image and attachment bytes, stored once under the SHA-256 of what they are.
//!
//! The name is known only when the last byte has arrived, so the bytes (encrypted already, if the vault is) wait in a nameless
//! scratch file; memory holds one chunk. Content is not compressed: documents and pictures mostly are already.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;

use bytes::Bytes;
use dynavault_model::{ContentSink, Stopped};
use dynavault_store::StoreError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::crypt::Layer;
use crate::upload::hex;
use crate::vault::VaultWriter;
use crate::{VaultError, names};

/// Bytes handed to the store at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Largest piece of content that is captured: the platform's own limit for file columns
/// (`dataverse` protocol, section 7.1) with room.
const CONTENT_BYTES_MAX: u64 = 16 << 30;

/// What a content segment says of one piece of content. The index hash of such a row is [`version_hash`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentReference {
    /// Key of the row, as the service addresses it.
    pub row: String,
    /// Logical name of the column.
    pub column: String,
    /// Raw JSON of the version member when the content was read.
    pub version: String,
    /// File name, where there is one.
    pub name: Option<String>,
    /// MIME type, where the service told it.
    pub mime: Option<String>,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes; names the content object.
    pub sha256: String,
    /// Whether the content object is inside an age layer.
    pub encrypted: bool,
    /// What was captured, when it is less than the original.
    pub note: Option<String>,
}

/// 64-bit hash of a version value; what the index of a content segment holds in place of a row hash, so that a host
/// without keys can tell whether a version has been captured.
pub fn version_hash(version: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(version.as_bytes()).max(1)
}

/// Receives the bytes of one piece of content.
pub struct ContentSpool {
    scratch: std::path::PathBuf,
    vault: VaultWriter,
    out: Option<Layer<BufWriter<File>>>,
    hasher: Sha256,
    bytes: u64,
    error: Option<VaultError>,
}

/// A content object that is durable in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredContent {
    /// SHA-256 of the bytes before encryption, in hexadecimal.
    pub sha256: String,
    /// Bytes before encryption.
    pub bytes: u64,
    /// Bytes written to the store; 0 if the object was there already.
    pub bytes_stored: u64,
}

impl ContentSpool {
    /// An empty spool in the scratch folder.
    pub fn new(vault: &VaultWriter, scratch: &Path) -> Self {
        Self {
            scratch: scratch.to_path_buf(),
            vault: vault.clone(),
            out: None,
            hasher: Sha256::new(),
            bytes: 0,
            error: None,
        }
    }

    fn failed(&self, source: std::io::Error) -> VaultError {
        VaultError::Scratch { path: self.scratch.display().to_string(), source }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Result<(), VaultError> {
        if self.bytes + bytes.len() as u64 > CONTENT_BYTES_MAX {
            return Err(VaultError::Row {
                table: "content".into(),
                detail: format!("it is larger than {CONTENT_BYTES_MAX} bytes"),
            });
        }
        if self.out.is_none() {
            let file = tempfile::tempfile_in(&self.scratch).map_err(|error| self.failed(error))?;
            let layer = self.vault.recipients().wrap(BufWriter::new(file)).map_err(|error| self.failed(error))?;
            self.out = Some(layer);
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        match self.out.as_mut().map(|out| out.write_all(bytes)) {
            Some(Err(error)) => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    /// Moves the bytes into the vault and empties the spool. Must run on a blocking thread.
    pub fn store(&mut self, handle: &Handle) -> Result<StoredContent, VaultError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.try_write(b"")?;
        let Some(out) = self.out.take() else { return Err(VaultError::Cancelled) };
        let mut file = out
            .finish()
            .and_then(|writer| writer.into_inner().map_err(std::io::Error::from))
            .map_err(|error| self.failed(error))?;
        let sha256 = hex(&std::mem::take(&mut self.hasher).finalize());
        let bytes = std::mem::take(&mut self.bytes);
        let name = names::content(self.vault.environment(), &sha256, !self.vault.recipients().is_empty());
        file.rewind().map_err(|error| self.failed(error))?;
        let store = self.vault.store();
        let there = || VaultError::store(format!("write {name}"));
        let mut writer = match handle.block_on(store.create(&name)) {
            Ok(writer) => writer,
            Err(StoreError::AlreadyExists { .. }) => return Ok(StoredContent { sha256, bytes, bytes_stored: 0 }),
            Err(error) => return Err(there()(error)),
        };
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = file.read(&mut chunk).map_err(|error| self.failed(error))?;
            if read == 0 {
                break;
            }
            handle.block_on(writer.write(Bytes::copy_from_slice(&chunk[..read]))).map_err(there())?;
        }
        match handle.block_on(writer.finish()) {
            Ok(bytes_stored) => Ok(StoredContent { sha256, bytes, bytes_stored }),
            // The name is the hash of the content: what is there is what we have.
            Err(StoreError::AlreadyExists { .. }) => Ok(StoredContent { sha256, bytes, bytes_stored: 0 }),
            Err(error) => Err(there()(error)),
        }
    }
}

impl ContentSink for ContentSpool {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.try_write(bytes).map_err(|error| {
            self.error = Some(error);
            Stopped
        })
    }

    fn restarted(&mut self) {
        self.out = None;
        self.hasher = Sha256::new();
        self.bytes = 0;
    }
}
