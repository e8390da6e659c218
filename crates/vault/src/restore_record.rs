//! What a restore leaves in the vault: the plan it carried out, with every value it overwrote, and what became of each
//! operation. Both are streams of JSON lines, compressed and, where the vault is, encrypted; memory holds one block.
//!
//! The plan is durable before the first write, so that whatever a restore did can be taken back from the vault alone.

use std::io::{self, BufReader, Read, Write};

use dynavault_model::RunId;
use dynavault_store::StoreError;
use tokio::runtime::Handle;

use crate::blob_file::{BlobFile, LOOKUP_BYTES, SCAN_BYTES};
use crate::upload::Upload;
use crate::vault::{Vault, VaultWriter};
use crate::{VaultError, names};

/// Compression level: written once, seldom read.
const LEVEL: i32 = 3;
/// Bytes copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreRecord {
    /// The plan, with the values that are overwritten.
    Plan,
    /// One line for each operation that was tried.
    Outcomes,
}

impl RestoreRecord {
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Outcomes => "outcomes",
        }
    }
}

impl VaultWriter {
    /// Stores a record of a run; one that is there already stays as it is. Must run on a blocking thread.
    pub fn put_restore_record(
        &self,
        handle: &Handle,
        run: RunId,
        record: RestoreRecord,
        mut lines: impl Read,
    ) -> Result<(), VaultError> {
        let name = names::restore_record(self.environment(), run, record, self.is_encrypted());
        // A host that may only write cannot look; creating says it too, later.
        if handle.block_on(self.store().size(&name)).is_ok() {
            return Ok(());
        }
        let upload = match Upload::create(handle, self.store(), &name) {
            Err(VaultError::Store { source: StoreError::AlreadyExists { .. }, .. }) => return Ok(()),
            other => other?,
        };
        let failed = |error: io::Error| VaultError::io(&name)(error);
        let layer = self.recipients().wrap(upload).map_err(failed)?;
        let mut packer = zstd::Encoder::new(layer, LEVEL).map_err(failed)?;
        packer.include_checksum(true).map_err(failed)?;
        let mut chunk = vec![0; COPY_BYTES];
        loop {
            let read = lines.read(&mut chunk).map_err(failed)?;
            if read == 0 {
                break;
            }
            packer.write_all(&chunk[..read]).map_err(failed)?;
        }
        let upload = packer.finish().and_then(crate::crypt::Layer::finish).map_err(failed)?;
        match upload.finish() {
            Ok(_) | Err(VaultError::Store { source: StoreError::AlreadyExists { .. }, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Vault {
    /// Opens a record of a run for reading. Must be used on a blocking thread.
    pub fn restore_record(
        &self,
        handle: &Handle,
        environment: &str,
        run: RunId,
        record: RestoreRecord,
    ) -> Result<Box<dyn Read + Send>, VaultError> {
        for encrypted in [false, true] {
            let name = names::restore_record(environment, run, record, encrypted);
            match handle.block_on(self.store().size(&name)) {
                Ok(_) => {}
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(VaultError::store(format!("look at {name}"))(error)),
            }
            let file = BlobFile::open(handle, self.store(), &name, SCAN_BYTES)?;
            let plain: Box<dyn Read + Send> = if encrypted {
                let opened = self.identities().open(file);
                Box::new(opened.ok_or_else(|| VaultError::NoKey { object: name.to_string() })?)
            } else {
                Box::new(file)
            };
            let unpacker = zstd::Decoder::with_buffer(BufReader::with_capacity(LOOKUP_BYTES, plain));
            return Ok(Box::new(unpacker.map_err(VaultError::io(&name))?));
        }
        let name = names::restore_record(environment, run, record, false);
        Err(VaultError::store(format!("read {name}"))(StoreError::NotFound { name }))
    }

    /// Opens the bytes of a content object. Must be used on a blocking thread.
    pub fn content(
        &self,
        handle: &Handle,
        environment: &str,
        sha256: &str,
        encrypted: bool,
    ) -> Result<Box<dyn Read + Send>, VaultError> {
        let name = names::content(environment, sha256, encrypted);
        let file = BlobFile::open(handle, self.store(), &name, SCAN_BYTES)?;
        if encrypted {
            let opened = self.identities().open(file);
            return Ok(Box::new(opened.ok_or_else(|| VaultError::NoKey { object: name.to_string() })?));
        }
        Ok(Box::new(file))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dynavault_store::MemoryStore;

    use super::*;
    use crate::{Identities, Recipients};

    struct NoClock;

    #[async_trait::async_trait]
    impl dynavault_model::Clock for NoClock {
        fn now(&self) -> jiff::Timestamp {
            jiff::Timestamp::UNIX_EPOCH
        }
        fn elapsed(&self) -> std::time::Duration {
            std::time::Duration::ZERO
        }
        async fn sleep(&self, _: std::time::Duration) {}
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_record_comes_back_as_it_was_and_is_written_once() {
        let store = Arc::new(MemoryStore::new());
        let vault =
            Vault::open_or_create(store, Recipients::default(), Identities::default(), Arc::new(NoClock), "test")
                .await
                .unwrap();
        let run = RunId::new(&NoClock);
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let writer = vault.writer("contoso");
            let lines = "{\"n\":1}\n".repeat(100_000);
            writer.put_restore_record(&handle, run, RestoreRecord::Plan, lines.as_bytes()).unwrap();
            writer.put_restore_record(&handle, run, RestoreRecord::Plan, &b"other"[..]).unwrap();
            let mut text = String::new();
            vault
                .restore_record(&handle, "contoso", run, RestoreRecord::Plan)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, lines);
            assert!(vault.restore_record(&handle, "contoso", run, RestoreRecord::Outcomes).is_err());
        })
        .await
        .unwrap();
    }
}
