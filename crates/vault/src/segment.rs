//! Writing a segment: frames of rows, then the index, then the seek table; plain or inside one age file.
//!
//! ```text
//! zstd frame │ zstd frame │ … │ skippable 0x184D2A5D: our index │ skippable 0x184D2A5E: zstd seekable-format seek table
//!  one line of column-major JSON each, about 4 MiB of rows, checksum on
//! ```
//!
//! Nothing is visible in the store until [`SegmentWriter::finish`] has returned, and what it returns is durable.

use std::io::Write;

use dynavault_model::{Row, RowId, SegmentId};
use dynavault_store::BlobName;
use tokio::runtime::Handle;

use crate::batch::BatchBuilder;
use crate::crypt::Layer;
use crate::index::{self, IndexEntry};
use crate::manifest::{SegmentInfo, SegmentKind};
use crate::upload::Upload;
use crate::vault::VaultWriter;
use crate::{VaultError, names};

/// Row JSON in a frame. A frame is what a reader of one row decompresses.
pub const FRAME_BYTES: usize = 4 << 20;
/// Magic number of the skippable frame with our index.
pub(crate) const INDEX_FRAME_MAGIC: u32 = 0x184D_2A5D;
/// Magic number of the skippable frame with the seek table, fixed by the zstd seekable format.
pub(crate) const SEEK_FRAME_MAGIC: u32 = 0x184D_2A5E;
/// Last four bytes of the seek table, fixed by the zstd seekable format.
pub(crate) const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Column-major rows leave the compressor little to find: level 3 makes them 2 % smaller than level 1 and takes a third
/// longer (`benches/RESULTS.md`).
const COMPRESSION_LEVEL: i32 = 1;

/// A segment being written. Must be used on a blocking thread.
pub struct SegmentWriter {
    id: SegmentId,
    kind: SegmentKind,
    table: String,
    name: BlobName,
    encrypted: bool,
    out: Layer<Upload>,
    compressor: zstd::bulk::Compressor<'static>,
    batch: BatchBuilder,
    line: Vec<u8>,
    compressed: Vec<u8>,
    /// Compressed and raw size of each frame.
    frames: Vec<(u32, u32)>,
    /// Rows in each frame.
    frame_rows: Vec<u32>,
    index: Vec<IndexEntry>,
    raw_bytes: u64,
}

/// A durable segment.
#[derive(Debug, Clone)]
pub struct FinishedSegment {
    /// What a manifest says of it.
    pub info: SegmentInfo,
    /// Its index: id and hash of each row, sorted by id.
    pub entries: Vec<(RowId, u64)>,
}

impl SegmentWriter {
    /// Starts a segment of a table.
    pub fn create(vault: &VaultWriter, handle: &Handle, table: &str, kind: SegmentKind) -> Result<Self, VaultError> {
        let id = SegmentId::new(vault.clock());
        let encrypted = !vault.recipients().is_empty();
        let name = names::new_segment(vault.environment(), table, id, kind, encrypted);
        let upload = Upload::create(handle, vault.store(), &name)?;
        let out = vault.recipients().wrap(upload).map_err(VaultError::io(&name))?;
        let mut compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL).map_err(VaultError::io(&name))?;
        compressor.include_checksum(true).map_err(VaultError::io(&name))?;
        Ok(Self {
            id,
            kind,
            table: table.to_string(),
            encrypted,
            out,
            compressor,
            batch: BatchBuilder::default(),
            line: Vec::new(),
            compressed: Vec::new(),
            frames: Vec::new(),
            frame_rows: Vec::new(),
            index: Vec::new(),
            raw_bytes: 0,
            name,
        })
    }

    /// Bytes of row JSON so far.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Rows so far, repeated deliveries included.
    pub fn rows(&self) -> usize {
        self.index.len()
    }

    /// Adds a row. A later row with the same id replaces an earlier one.
    pub fn push(&mut self, id: RowId, hash: u64, row: &Row<'_>) -> Result<(), VaultError> {
        self.batch
            .push(row)
            .map_err(|error| VaultError::Row { table: self.table.clone(), detail: format!("{error} (row {id})") })?;
        self.index.push(IndexEntry { id, row: self.index.len() as u32, hash });
        self.raw_bytes += row.bytes().len() as u64;
        if self.batch.raw_bytes() >= FRAME_BYTES || self.batch.columns_full() {
            self.write_frame()?;
        }
        Ok(())
    }

    fn write_frame(&mut self) -> Result<(), VaultError> {
        if self.batch.rows() == 0 {
            return Ok(());
        }
        self.line.clear();
        self.frame_rows.push(self.batch.rows());
        self.batch.write_line(&mut self.line).map_err(VaultError::io(&self.name))?;
        self.line.push(b'\n');
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(self.line.len()));
        self.compressor.compress_to_buffer(&self.line, &mut self.compressed).map_err(VaultError::io(&self.name))?;
        self.frames.push((self.compressed.len() as u32, self.line.len() as u32));
        self.out.write_all(&self.compressed).map_err(VaultError::io(&self.name))?;
        // One huge row must not be paid for ever.
        self.line.shrink_to(2 * FRAME_BYTES);
        self.compressed.shrink_to(2 * FRAME_BYTES);
        Ok(())
    }

    /// Writes the index and the seek table and makes the segment durable.
    pub fn finish(mut self) -> Result<FinishedSegment, VaultError> {
        self.write_frame()?;
        let rows_stored = self.index.len() as u64;
        index::newest_per_id(&mut self.index);
        let payload = index::encode(&self.index, &self.frame_rows).map_err(VaultError::io(&self.name))?;
        let mut tail = skippable(INDEX_FRAME_MAGIC, &payload);
        self.frames.push((tail.len() as u32, 0));
        tail.extend_from_slice(&seek_table(&self.frames));
        self.out.write_all(&tail).map_err(VaultError::io(&self.name))?;
        let uploaded = self.out.finish().map_err(VaultError::io(&self.name))?.finish()?;
        Ok(FinishedSegment {
            info: SegmentInfo {
                id: self.id,
                kind: self.kind,
                rows: self.index.len() as u64,
                rows_stored,
                bytes_raw: self.raw_bytes,
                bytes_stored: uploaded.bytes,
                sha256: uploaded.sha256,
                encrypted: self.encrypted,
            },
            entries: self.index.iter().map(|entry| (entry.id, entry.hash)).collect(),
        })
    }
}

fn skippable(magic: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&magic.to_le_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The seek table of the zstd seekable format, version 0.1.0, without checksums. Our index frame is listed with raw size
/// 0, as the format asks for every frame before the table.
fn seek_table(frames: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(frames.len() * 8 + 9);
    for (compressed, raw) in frames {
        payload.extend_from_slice(&compressed.to_le_bytes());
        payload.extend_from_slice(&raw.to_le_bytes());
    }
    payload.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    payload.push(0);
    payload.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
    skippable(SEEK_FRAME_MAGIC, &payload)
}
