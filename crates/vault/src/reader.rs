//! Reading a segment: its index block by block, one row by one frame, or all rows in order.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use dynavault_model::RowId;
use dynavault_store::{BlobName, BlobStore};
use tokio::runtime::Handle;

use crate::VaultError;
use crate::batch::Batch;
use crate::blob_file::{BlobFile, LOOKUP_BYTES};
use crate::crypt::Identities;
use crate::index::{self, BlockPlace, FOOTER_BYTES, Filter, Footer, IndexEntry};
use crate::segment::{INDEX_FRAME_MAGIC, SEEK_FRAME_MAGIC, SEEKABLE_MAGIC};

/// Largest frame that is decompressed: the largest row, its neighbours and the words of the batch fit in with room.
const FRAME_RAW_BYTES_MAX: u32 = 192 << 20;
/// Most frames of a segment; a segment of the default size has about 16.
const FRAMES_MAX: u32 = 1 << 20;
/// Bytes after the entries of a seek table: count, descriptor, magic.
const SEEK_FOOTER_BYTES: usize = 9;

trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

#[derive(Debug, Clone, Copy)]
struct FramePlace {
    offset: u64,
    compressed: u32,
    raw: u32,
}

/// An open segment. Must be used on a blocking thread.
pub struct SegmentReader {
    name: BlobName,
    input: Box<dyn ReadSeek>,
    /// Size of the object.
    bytes_stored: u64,
    frames: Vec<FramePlace>,
    /// Offset of the index payload in the plain bytes.
    index_offset: u64,
    footer: Footer,
    directory: Vec<BlockPlace>,
    /// Number of the first row of each frame, and of the row after the last.
    first_rows: Vec<u32>,
}

impl SegmentReader {
    /// Size of the object.
    pub(crate) fn bytes_stored(&self) -> u64 {
        self.bytes_stored
    }

    /// Opens a segment; `ahead` is how much is fetched at a time.
    pub(crate) fn open(
        handle: &Handle,
        store: &Arc<dyn BlobStore>,
        name: &BlobName,
        encrypted: bool,
        identities: &Identities,
        ahead: usize,
    ) -> Result<Self, VaultError> {
        let file = BlobFile::open(handle, store, name, ahead)?;
        let bytes_stored = file.size();
        let mut input: Box<dyn ReadSeek> = if encrypted {
            Box::new(identities.open(file).ok_or_else(|| VaultError::NoKey { object: name.to_string() })?)
        } else {
            Box::new(file)
        };
        let io = |error| VaultError::io(name)(error);
        let damaged = |detail: &str| VaultError::damaged(name, detail);
        let size = input.seek(SeekFrom::End(0)).map_err(io)?;
        let mut footer = [0; SEEK_FOOTER_BYTES];
        if size < (SEEK_FOOTER_BYTES + 8) as u64 {
            return Err(damaged("it is too short for a segment"));
        }
        // Most footers and directories are within one read-ahead of the end.
        input.seek(SeekFrom::Start(size.saturating_sub(LOOKUP_BYTES as u64))).map_err(io)?;
        input.read_exact(&mut [0; 1]).map_err(io)?;
        input.seek(SeekFrom::Start(size - SEEK_FOOTER_BYTES as u64)).map_err(io)?;
        input.read_exact(&mut footer).map_err(io)?;
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let count = word(&footer[0..4]);
        if word(&footer[5..9]) != SEEKABLE_MAGIC || footer[4] != 0 || count == 0 || count > FRAMES_MAX {
            return Err(damaged("it does not end in a seek table"));
        }
        let table_bytes = u64::from(count) * 8 + SEEK_FOOTER_BYTES as u64 + 8;
        let table_offset = size.checked_sub(table_bytes).ok_or_else(|| damaged("its seek table is cut"))?;
        let mut table = vec![0; table_bytes as usize];
        input.seek(SeekFrom::Start(table_offset)).map_err(io)?;
        input.read_exact(&mut table).map_err(io)?;
        if word(&table) != SEEK_FRAME_MAGIC || u64::from(word(&table[4..8])) + 8 != table_bytes {
            return Err(damaged("its seek table is malformed"));
        }
        let mut offset = 0_u64;
        let mut frames: Vec<FramePlace> = table[8..table.len() - SEEK_FOOTER_BYTES]
            .chunks_exact(8)
            .map(|entry| {
                let place = FramePlace { offset, compressed: word(entry), raw: word(&entry[4..]) };
                offset += u64::from(place.compressed);
                place
            })
            .collect();
        let index_frame = frames.pop().ok_or_else(|| damaged("it has no index"))?;
        if offset != table_offset || index_frame.raw != 0 || (index_frame.compressed as usize) < FOOTER_BYTES + 8 {
            return Err(damaged("its seek table does not match its size"));
        }
        let mut reader = Self {
            name: name.clone(),
            input,
            bytes_stored,
            frames,
            index_offset: index_frame.offset + 8,
            footer: Footer {
                entries: 0,
                rows_stored: 0,
                filter_offset: 0,
                directory_offset: 0,
                blocks: 0,
                first: RowId([0; 16]),
                last: RowId([0; 16]),
                frames: 0,
            },
            directory: Vec::new(),
            first_rows: Vec::new(),
        };
        reader.read_directory(u64::from(index_frame.compressed) - 8)?;
        Ok(reader)
    }

    fn read_directory(&mut self, index_bytes: u64) -> Result<(), VaultError> {
        let header = self.read_at(self.index_offset - 8, 8)?;
        if header[..4] != INDEX_FRAME_MAGIC.to_le_bytes() {
            return Err(VaultError::damaged(&self.name, "its index frame is missing"));
        }
        let footer = self.read_at(self.index_offset + index_bytes - FOOTER_BYTES as u64, FOOTER_BYTES)?;
        let bad = |error| VaultError::damaged(&self.name, error);
        self.footer = Footer::decode(&footer, index_bytes).map_err(bad)?;
        if self.footer.frames as usize != self.frames.len() {
            return Err(VaultError::damaged(&self.name, "its index and its seek table count different frames"));
        }
        let places_offset = self.index_offset + u64::from(self.footer.directory_offset);
        let places = self.read_at(places_offset, self.footer.places_bytes() as usize)?;
        (self.directory, self.first_rows) =
            index::decode_places(&places, &self.footer).map_err(|error| VaultError::damaged(&self.name, error))?;
        Ok(())
    }

    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, VaultError> {
        let mut bytes = vec![0; length];
        self.input.seek(SeekFrom::Start(offset)).map_err(VaultError::io(&self.name))?;
        self.input.read_exact(&mut bytes).map_err(VaultError::io(&self.name))?;
        Ok(bytes)
    }

    /// Rows in the index.
    pub fn entries(&self) -> u64 {
        u64::from(self.footer.entries)
    }

    /// Rows in the frames.
    pub fn rows_stored(&self) -> u32 {
        self.footer.rows_stored
    }

    pub(crate) fn block_count(&self) -> usize {
        self.directory.len()
    }

    /// One block of the index, sorted by id; blocks follow each other in order.
    pub(crate) fn block(&mut self, number: usize) -> Result<Vec<IndexEntry>, VaultError> {
        let place = self.directory[number];
        let bytes = self.read_at(self.index_offset + u64::from(place.offset), place.length as usize)?;
        let entries = index::decode_block(&bytes, place.entries as usize)
            .map_err(|error| VaultError::damaged(&self.name, error))?;
        if entries.first().is_none_or(|entry| entry.id != place.first) {
            return Err(VaultError::damaged(&self.name, "its index does not match its directory"));
        }
        let last = number + 1 == self.directory.len();
        if last && entries.last().is_none_or(|entry| entry.id != self.footer.last) {
            return Err(VaultError::damaged(&self.name, "its index does not end where its footer says"));
        }
        if entries.iter().any(|entry| entry.row >= self.footer.rows_stored) {
            return Err(VaultError::damaged(&self.name, "its index names a row that is not there"));
        }
        Ok(entries)
    }

    /// Id and hash of every row number that counts; `None` for rows that a later delivery replaced.
    pub(crate) fn by_row(&mut self) -> Result<Vec<Option<(RowId, u64)>>, VaultError> {
        let mut rows = vec![None; self.footer.rows_stored as usize];
        for number in 0..self.block_count() {
            for entry in self.block(number)? {
                rows[entry.row as usize] = Some((entry.id, entry.hash));
            }
        }
        Ok(rows)
    }

    /// Looks a row up. An absent id mostly costs 32 bytes of the filter, a present one its index block.
    pub fn find(&mut self, id: RowId) -> Result<Option<IndexEntry>, VaultError> {
        if self.footer.entries == 0 || id < self.footer.first || id > self.footer.last {
            return Ok(None);
        }
        let filter_bytes = self.footer.directory_offset - self.footer.filter_offset;
        let blocks = filter_bytes / Filter::BLOCK_BYTES as u32;
        if blocks > 0 {
            let (block, mask) = Filter::place(id, blocks);
            let offset = u64::from(self.footer.filter_offset) + u64::from(block) * Filter::BLOCK_BYTES as u64;
            let bytes = self.read_at(self.index_offset + offset, Filter::BLOCK_BYTES)?;
            if !Filter::may_hold(&bytes, mask) {
                return Ok(None);
            }
        }
        let number = self.directory.partition_point(|place| place.first <= id);
        if number == 0 {
            return Ok(None);
        }
        let block = self.block(number - 1)?;
        Ok(block.binary_search_by_key(&id, |entry| entry.id).ok().map(|at| block[at]))
    }

    /// The row at a row number, as the JSON object that was captured. Reads one frame.
    pub fn row(&mut self, number: u32) -> Result<Vec<u8>, VaultError> {
        let frame = self.first_rows.partition_point(|first| *first <= number) - 1;
        if frame >= self.frames.len() {
            return Err(VaultError::damaged(&self.name, "a row of its index is in none of its frames"));
        }
        let line = self.frame(frame)?;
        let batch = self.batch(frame, &line)?;
        let mut row = Vec::new();
        batch.write_row(number - self.first_rows[frame], &mut row);
        Ok(row)
    }

    fn batch<'a>(&self, frame: usize, line: &'a [u8]) -> Result<Batch<'a>, VaultError> {
        let batch =
            Batch::parse(line).map_err(|error| VaultError::damaged(&self.name, format!("frame {frame}: {error}")))?;
        if batch.rows() != self.first_rows[frame + 1] - self.first_rows[frame] {
            return Err(VaultError::damaged(&self.name, format!("frame {frame} has not the rows its index says")));
        }
        Ok(batch)
    }

    fn frame(&mut self, number: usize) -> Result<Vec<u8>, VaultError> {
        let place = self.frames[number];
        if place.raw > FRAME_RAW_BYTES_MAX {
            return Err(VaultError::damaged(&self.name, format!("frame {number} claims {} bytes", place.raw)));
        }
        let compressed = self.read_at(place.offset, place.compressed as usize)?;
        let line = zstd::bulk::decompress(&compressed, place.raw as usize)
            .map_err(|error| VaultError::damaged(&self.name, format!("frame {number}: {error}")))?;
        if line.len() != place.raw as usize {
            return Err(VaultError::damaged(&self.name, format!("frame {number} has the wrong size")));
        }
        Ok(line)
    }

    /// Calls `each` with every row whose number `wanted` accepts, in stored order.
    pub fn scan(
        &mut self,
        wanted: impl Fn(u32) -> bool,
        mut each: impl FnMut(u32, &[u8]) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let mut row = Vec::new();
        for frame in 0..self.frames.len() {
            let numbers = self.first_rows[frame]..self.first_rows[frame + 1];
            if !numbers.clone().any(&wanted) {
                continue;
            }
            let line = self.frame(frame)?;
            let batch = self.batch(frame, &line)?;
            for number in numbers.clone().filter(|number| wanted(*number)) {
                row.clear();
                batch.write_row(number - numbers.start, &mut row);
                each(number, &row)?;
            }
        }
        Ok(())
    }
}
