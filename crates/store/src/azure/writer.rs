//! One object as staged blocks that one conditional commit makes visible.
//!
//! Blocks are numbered below a nonce of the writer, so that two writers of one name cannot mix their blocks, and so that
//! a commit whose answer was lost can be recognised by its list of blocks. At most [`UPLOADS_MAX`] blocks are on their
//! way while the next one fills: a writer holds at most three blocks. Blocks of an abandoned object are removed by the
//! service after a week.

use std::sync::Arc;

use async_trait::async_trait;
use azure_storage_blob::models::{BlockBlobClientCommitBlockListOptions, BlockListType, BlockLookupList};
use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use crate::azure::fault::Class;
use crate::azure::retry::Failure;
use crate::azure::{BLOCK_BYTES, Shared};
use crate::{BlobName, BlobWriter, StoreError};

const UPLOADS_MAX: usize = 2;
/// Blocks of one blob, a limit of the service; 195 GiB.
const BLOCKS_MAX: usize = 50_000;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    name: BlobName,
    nonce: u64,
    buffer: BytesMut,
    blocks: usize,
    uploads: JoinSet<Result<(), StoreError>>,
    length: u64,
    failed: bool,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, name: BlobName) -> Result<Self, StoreError> {
        let nonce = getrandom::u64().map_err(|error| StoreError::Failed {
            action: "creating",
            what: name.to_string(),
            source: error.to_string().into(),
        })?;
        // Checked here rather than after the upload of its first block.
        shared.blob(&name)?;
        let (buffer, uploads) = (BytesMut::new(), JoinSet::new());
        Ok(Self { shared, name, nonce, buffer, blocks: 0, uploads, length: 0, failed: false })
    }

    /// Creates a small object by block and commit instead of in one request.
    pub(crate) async fn put_staged(shared: Arc<Shared>, name: BlobName, bytes: Bytes) -> Result<(), StoreError> {
        let mut writer = Self::new(shared, name)?;
        writer.buffer.extend_from_slice(&bytes);
        writer.commit().await
    }

    /// All ids of a blob have to be of one length.
    fn block_id(nonce: u64, index: usize) -> Vec<u8> {
        format!("{nonce:016x}{index:08}").into_bytes()
    }

    async fn stage(&mut self, block: Bytes) -> Result<(), StoreError> {
        if self.blocks == BLOCKS_MAX {
            return Err(StoreError::TooLarge { name: self.name.clone() });
        }
        while self.uploads.len() >= UPLOADS_MAX {
            self.join_one().await?;
        }
        let id = Self::block_id(self.nonce, self.blocks);
        self.blocks += 1;
        let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
        self.uploads.spawn(async move { stage_block(&shared, &name, &id, block).await });
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), StoreError> {
        match self.uploads.join_next().await {
            None => Ok(()),
            Some(Ok(staged)) => staged,
            Some(Err(error)) => Err(StoreError::Failed {
                action: "writing",
                what: self.name.to_string(),
                source: error.to_string().into(),
            }),
        }
    }

    async fn append(&mut self, mut chunk: Bytes) -> Result<(), StoreError> {
        while !chunk.is_empty() {
            if self.buffer.len() == BLOCK_BYTES {
                // Only now that more comes: an object of exactly one block is one request.
                let block = self.buffer.split().freeze();
                self.buffer.reserve(BLOCK_BYTES);
                self.stage(block).await?;
            }
            let part = chunk.split_to(chunk.len().min(BLOCK_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(&part);
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        let rest = self.buffer.split().freeze();
        // An empty object is an empty list; there are no empty blocks.
        if !rest.is_empty() {
            self.stage(rest).await?;
        }
        while !self.uploads.is_empty() {
            self.join_one().await?;
        }
        let ids: Vec<Vec<u8>> = (0..self.blocks).map(|index| Self::block_id(self.nonce, index)).collect();
        let (shared, name) = (&self.shared, &self.name);
        let blob = shared.blob(name)?.block_blob_client();
        let committed = shared.retrier.run("writing", name.as_str(), || {
            let (blob, latest) = (&blob, Some(ids.clone()));
            async move {
                let list = BlockLookupList { latest, ..BlockLookupList::default() };
                let options = BlockBlobClientCommitBlockListOptions {
                    if_none_match: Some("*".into()),
                    ..BlockBlobClientCommitBlockListOptions::default()
                };
                blob.commit_block_list(list.try_into()?, Some(options)).await.map(|_| ())
            }
        });
        match committed.await {
            Ok(()) => Ok(()),
            Err(Failure::Answer { class: Class::Exists | Class::BadBlocks, cause, ambiguous: true }) => {
                match self.committed_ids().await {
                    Ok(found) if found == ids => Ok(()),
                    Ok(_) => Err(StoreError::AlreadyExists { name: name.clone() }),
                    Err(StoreError::Denied { .. }) => Err(StoreError::Unsettled { name: name.clone(), source: cause }),
                    Err(error) => Err(error),
                }
            }
            // Another writer's commit takes our blocks away; that is the same as finding its object.
            Err(Failure::Answer { class: Class::BadBlocks, cause, .. }) => match self.committed_ids().await {
                Ok(_) | Err(StoreError::Denied { .. }) => Err(StoreError::AlreadyExists { name: name.clone() }),
                Err(_) => Err(StoreError::Failed { action: "writing", what: name.to_string(), source: cause }),
            },
            Err(failure) => Err(shared.write_error(failure, name)),
        }
    }

    async fn committed_ids(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let (shared, name) = (&self.shared, &self.name);
        let blob = shared.blob(name)?.block_blob_client();
        let listed = shared.retrier.run("looking at", name.as_str(), || {
            let blob = &blob;
            async move { blob.get_block_list(BlockListType::Committed, None).await?.into_model() }
        });
        let list = listed.await.map_err(|failure| shared.error(failure, "looking at", name))?;
        Ok(list.committed_blocks.unwrap_or_default().into_iter().filter_map(|block| block.name).collect())
    }
}

async fn stage_block(shared: &Shared, name: &BlobName, id: &[u8], block: Bytes) -> Result<(), StoreError> {
    let blob = shared.blob(name)?.block_blob_client();
    let staged = shared.retrier.run("writing", name.as_str(), || {
        let (blob, block) = (&blob, block.clone());
        // The service refuses a block that does not fit the checksum of our policy.
        async move { blob.stage_block(id, block.len() as u64, block.into(), None).await.map(|_| ()) }
    });
    staged.await.map_err(|failure| shared.write_error(failure, name))
}

#[async_trait]
impl BlobWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        // Set for the time of the write, so that one that was abandoned half-way is noticed.
        if std::mem::replace(&mut self.failed, true) {
            return Err(unfinished(&self.name));
        }
        self.length += chunk.len() as u64;
        self.append(chunk).await?;
        self.failed = false;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<u64, StoreError> {
        if self.failed {
            return Err(unfinished(&self.name));
        }
        if self.blocks == 0 {
            let bytes = self.buffer.split().freeze();
            self.shared.put_small(&self.name, bytes).await?;
        } else {
            self.commit().await?;
        }
        Ok(self.length)
    }
}

fn unfinished(name: &BlobName) -> StoreError {
    StoreError::Failed {
        action: "writing",
        what: name.to_string(),
        source: "an earlier write was abandoned or failed".into(),
    }
}
