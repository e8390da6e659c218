//! The index of a segment: which rows it holds, where, and what they hash to. Lives in a zstd skippable frame.
//!
//! ```text
//! blocks     1,024 entries each, zstd with checksum: ids byte-transposed · row numbers byte-transposed · hashes (u64 LE)
//! filter     split-block Bloom filter, 32 bytes a block, about 10 bits an id
//! directory  one entry per block: first id (16) · offset (u32) · length (u32) · entries (u32)
//! frames     one entry per frame: rows in it (u32)
//! footer     64 bytes, see `Footer`
//! ```
//!
//! Entries are sorted by row id, one per id; a row delivered twice is listed where it was delivered last. A reader takes
//! the footer and the directory (a few KiB), then one block for one row; a merge takes the blocks in order. Sorted ids
//! share their first bytes, which is why they are transposed before compression.

use std::io;

use dynavault_model::RowId;

/// First bytes of the index and of its footer.
pub(crate) const INDEX_MAGIC: [u8; 4] = *b"DVIX";
/// Version of the index layout.
const INDEX_VERSION: u16 = 1;
/// Entries in a block; a block is what one lookup reads.
pub(crate) const BLOCK_ENTRIES: usize = 1024;
/// Bytes of the footer.
pub(crate) const FOOTER_BYTES: usize = 64;
/// Bytes of a directory entry.
pub(crate) const DIRECTORY_ENTRY_BYTES: usize = 28;
const ENTRY_BYTES: usize = 28;

/// One row of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// The row.
    pub id: RowId,
    /// Number of the row in the segment, counted over all frames, rows that a later delivery replaced included.
    pub row: u32,
    /// Hash of the row's content ([`dynavault_model::Row::hash`]).
    pub hash: u64,
}

/// Sorts entries by id and keeps, per id, the one that came last.
pub(crate) fn newest_per_id(entries: &mut Vec<IndexEntry>) {
    entries.sort_unstable_by(|a, b| a.id.cmp(&b.id).then(b.row.cmp(&a.row)));
    entries.dedup_by_key(|entry| entry.id);
}

/// Encodes sorted entries as the payload of the index frame. `frame_rows` is the number of rows in each frame.
pub(crate) fn encode(entries: &[IndexEntry], frame_rows: &[u32]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(entries.len() * 26 + 256);
    let mut directory = Vec::new();
    let mut block = Vec::with_capacity(BLOCK_ENTRIES * ENTRY_BYTES);
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    // Rows have their hashes; ids have only this. A flipped bit in a tombstone's id would bring a deleted row back.
    compressor.include_checksum(true)?;
    for chunk in entries.chunks(BLOCK_ENTRIES) {
        encode_block(chunk, &mut block);
        let compressed = compressor.compress(&block)?;
        directory.extend_from_slice(&chunk[0].id.0);
        directory.extend_from_slice(&(out.len() as u32).to_le_bytes());
        directory.extend_from_slice(&(compressed.len() as u32).to_le_bytes());
        directory.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
        out.extend_from_slice(&compressed);
    }
    let filter_offset = out.len() as u32;
    let filter = Filter::build(entries);
    out.extend_from_slice(&filter);
    let footer = Footer {
        entries: entries.len() as u32,
        rows_stored: frame_rows.iter().sum(),
        filter_offset,
        directory_offset: out.len() as u32,
        blocks: (directory.len() / DIRECTORY_ENTRY_BYTES) as u32,
        first: entries.first().map_or(RowId([0; 16]), |entry| entry.id),
        last: entries.last().map_or(RowId([0; 16]), |entry| entry.id),
        frames: frame_rows.len() as u32,
    };
    out.extend_from_slice(&directory);
    for rows in frame_rows {
        out.extend_from_slice(&rows.to_le_bytes());
    }
    out.extend_from_slice(&footer.encode());
    Ok(out)
}

fn encode_block(entries: &[IndexEntry], out: &mut Vec<u8>) {
    out.clear();
    for byte in 0..16 {
        out.extend(entries.iter().map(|entry| entry.id.0[byte]));
    }
    for byte in 0..4 {
        out.extend(entries.iter().map(|entry| entry.row.to_le_bytes()[byte]));
    }
    for entry in entries {
        out.extend_from_slice(&entry.hash.to_le_bytes());
    }
}

/// The bytes are not an index block or footer of this format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid segment index: {0}")]
pub(crate) struct NotAnIndex(pub(crate) &'static str);

/// Decodes one block of `count` entries.
pub(crate) fn decode_block(compressed: &[u8], count: usize) -> Result<Vec<IndexEntry>, NotAnIndex> {
    if count > BLOCK_ENTRIES {
        return Err(NotAnIndex("a block has too many entries"));
    }
    let block = zstd::bulk::decompress(compressed, count * ENTRY_BYTES)
        .map_err(|_| NotAnIndex("a block does not decompress"))?;
    if block.len() != count * ENTRY_BYTES {
        return Err(NotAnIndex("a block has the wrong size"));
    }
    let (ids, rest) = block.split_at(count * 16);
    let (rows, hashes) = rest.split_at(count * 4);
    let entries: Vec<IndexEntry> = (0..count)
        .map(|n| {
            let mut id = [0; 16];
            for (byte, value) in id.iter_mut().enumerate() {
                *value = ids[byte * count + n];
            }
            let mut hash = [0; 8];
            hash.copy_from_slice(&hashes[n * 8..n * 8 + 8]);
            IndexEntry {
                id: RowId(id),
                row: u32::from_le_bytes([rows[n], rows[count + n], rows[2 * count + n], rows[3 * count + n]]),
                hash: u64::from_le_bytes(hash),
            }
        })
        .collect();
    if entries.windows(2).any(|pair| pair[0].id >= pair[1].id) {
        return Err(NotAnIndex("a block is not sorted"));
    }
    Ok(entries)
}

/// The last 64 bytes of the index: where its parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) entries: u32,
    pub(crate) rows_stored: u32,
    pub(crate) filter_offset: u32,
    pub(crate) directory_offset: u32,
    pub(crate) blocks: u32,
    pub(crate) first: RowId,
    pub(crate) last: RowId,
    pub(crate) frames: u32,
}

impl Footer {
    fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[0..4].copy_from_slice(&self.entries.to_le_bytes());
        out[4..8].copy_from_slice(&self.rows_stored.to_le_bytes());
        out[8..12].copy_from_slice(&self.filter_offset.to_le_bytes());
        out[12..16].copy_from_slice(&self.directory_offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.blocks.to_le_bytes());
        out[20..36].copy_from_slice(&self.first.0);
        out[36..52].copy_from_slice(&self.last.0);
        out[52..54].copy_from_slice(&INDEX_VERSION.to_le_bytes());
        out[56..60].copy_from_slice(&self.frames.to_le_bytes());
        out[60..64].copy_from_slice(&INDEX_MAGIC);
        out
    }

    /// Reads a footer and checks that its parts fit into an index of `index_bytes`.
    pub(crate) fn decode(bytes: &[u8], index_bytes: u64) -> Result<Self, NotAnIndex> {
        if bytes.len() != FOOTER_BYTES || bytes[60..64] != INDEX_MAGIC {
            return Err(NotAnIndex("the footer is missing"));
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u16::from_le_bytes([bytes[52], bytes[53]]) != INDEX_VERSION {
            return Err(NotAnIndex("the index has an unknown version"));
        }
        let id = |at: usize| {
            let mut id = [0; 16];
            id.copy_from_slice(&bytes[at..at + 16]);
            RowId(id)
        };
        let footer = Self {
            entries: word(0),
            rows_stored: word(4),
            filter_offset: word(8),
            directory_offset: word(12),
            blocks: word(16),
            first: id(20),
            last: id(36),
            frames: word(56),
        };
        let end = u64::from(footer.directory_offset) + footer.places_bytes() + FOOTER_BYTES as u64;
        if footer.filter_offset > footer.directory_offset || end != index_bytes {
            return Err(NotAnIndex("the footer does not fit the index"));
        }
        Ok(footer)
    }
}

impl Footer {
    /// Bytes of the directory and the frame list.
    pub(crate) fn places_bytes(&self) -> u64 {
        u64::from(self.blocks) * DIRECTORY_ENTRY_BYTES as u64 + u64::from(self.frames) * 4
    }
}

/// One entry of the directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockPlace {
    pub(crate) first: RowId,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) entries: u32,
}

/// Reads the directory, and the number of the first row of each frame with one more entry for the end.
pub(crate) fn decode_places(bytes: &[u8], footer: &Footer) -> Result<(Vec<BlockPlace>, Vec<u32>), NotAnIndex> {
    let (directory, frames) = bytes.split_at(footer.blocks as usize * DIRECTORY_ENTRY_BYTES);
    let mut total = 0_u64;
    let mut places = Vec::with_capacity(footer.blocks as usize);
    for entry in directory.chunks_exact(DIRECTORY_ENTRY_BYTES) {
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let mut first = [0; 16];
        first.copy_from_slice(&entry[..16]);
        let place = BlockPlace { first: RowId(first), offset: word(16), length: word(20), entries: word(24) };
        if u64::from(place.offset) + u64::from(place.length) > u64::from(footer.filter_offset) {
            return Err(NotAnIndex("a block lies outside the index"));
        }
        total += u64::from(place.entries);
        places.push(place);
    }
    // Neither has a checksum of its own; that they agree is all that can be asked of them.
    let first = places.first().map_or(RowId([0; 16]), |place| place.first);
    if total != u64::from(footer.entries) || first != footer.first {
        return Err(NotAnIndex("the directory does not match the footer"));
    }
    let mut first_rows = vec![0_u32];
    for rows in frames.chunks_exact(4) {
        let rows = u32::from_le_bytes([rows[0], rows[1], rows[2], rows[3]]);
        let next = first_rows.last().and_then(|first| first.checked_add(rows));
        first_rows.push(next.ok_or(NotAnIndex("the frames hold too many rows"))?);
    }
    if first_rows.last() != Some(&footer.rows_stored) {
        return Err(NotAnIndex("the frames and the footer count different rows"));
    }
    Ok((places, first_rows))
}

/// Split-block Bloom filter: an id sets one bit in each of the eight words of one 32-byte block, so a lookup reads 32 bytes.
pub(crate) struct Filter;

impl Filter {
    /// Bytes of a block.
    pub(crate) const BLOCK_BYTES: usize = 32;
    const BITS_PER_ENTRY: usize = 10;
    /// Odd multipliers that spread one 32-bit hash over the eight words, as in the Parquet format.
    const SALT: [u32; 8] =
        [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

    fn build(entries: &[IndexEntry]) -> Vec<u8> {
        let blocks = (entries.len() * Self::BITS_PER_ENTRY).div_ceil(Self::BLOCK_BYTES * 8).max(1);
        let mut filter = vec![0_u8; blocks * Self::BLOCK_BYTES];
        for entry in entries {
            let (block, mask) = Self::place(entry.id, blocks as u32);
            let start = block as usize * Self::BLOCK_BYTES;
            for (word, bit) in filter[start..start + Self::BLOCK_BYTES].chunks_exact_mut(4).zip(mask) {
                let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]) | bit;
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
        filter
    }

    /// The block of an id and the bits it needs there.
    pub(crate) fn place(id: RowId, blocks: u32) -> (u32, [u32; 8]) {
        let hash = xxhash_rust::xxh3::xxh3_64(&id.0);
        let block = ((hash >> 32) * u64::from(blocks)) >> 32;
        let low = hash as u32;
        (block as u32, Self::SALT.map(|salt| 1 << (low.wrapping_mul(salt) >> 27)))
    }

    /// Whether the block may hold the id.
    pub(crate) fn may_hold(block: &[u8], mask: [u32; 8]) -> bool {
        block
            .chunks_exact(4)
            .zip(mask)
            .all(|(word, bit)| u32::from_le_bytes([word[0], word[1], word[2], word[3]]) & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u32) -> Vec<IndexEntry> {
        let mut entries: Vec<IndexEntry> = (0..count)
            .map(|n| {
                let bytes = blake3_like(n);
                IndexEntry { id: RowId(bytes), row: n, hash: u64::from(n) + 1 }
            })
            .collect();
        newest_per_id(&mut entries);
        entries
    }

    fn blake3_like(n: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()).to_le_bytes());
        bytes[8..12].copy_from_slice(&n.to_le_bytes());
        bytes
    }

    #[test]
    fn blocks_directory_and_filter_find_every_entry() {
        for count in [0_u32, 1, 1023, 1024, 1025, 5000] {
            let entries = entries(count);
            let index = encode(&entries, &[count]).unwrap();
            let footer = Footer::decode(&index[index.len() - FOOTER_BYTES..], index.len() as u64).unwrap();
            assert_eq!((footer.entries, footer.rows_stored), (count, count));
            let places = &index[footer.directory_offset as usize..index.len() - FOOTER_BYTES];
            let mut back = Vec::new();
            let (places, first_rows) = decode_places(places, &footer).unwrap();
            assert_eq!(first_rows, [0, count]);
            for place in places {
                let block = &index[place.offset as usize..(place.offset + place.length) as usize];
                let block = decode_block(block, place.entries as usize).unwrap();
                assert_eq!(block[0].id, place.first);
                back.extend(block);
            }
            assert_eq!(back, entries);
            let filter = &index[footer.filter_offset as usize..footer.directory_offset as usize];
            let blocks = (filter.len() / Filter::BLOCK_BYTES) as u32;
            let may_hold = |id: RowId| {
                let (block, mask) = Filter::place(id, blocks);
                Filter::may_hold(&filter[block as usize * 32..][..32], mask)
            };
            assert!(entries.iter().all(|entry| may_hold(entry.id)));
            let false_positives = (10_000_000..10_010_000).filter(|n| may_hold(RowId(blake3_like(*n)))).count();
            assert!(false_positives < 300, "{false_positives} of 10,000 absent ids pass the filter");
        }
    }

    #[test]
    fn the_last_delivery_of_a_row_wins() {
        let id = RowId([7; 16]);
        let mut entries = vec![
            IndexEntry { id, row: 1, hash: 1 },
            IndexEntry { id, row: 9, hash: 2 },
            IndexEntry { id, row: 4, hash: 3 },
        ];
        newest_per_id(&mut entries);
        assert_eq!(entries, [IndexEntry { id, row: 9, hash: 2 }]);
    }

    #[test]
    fn a_damaged_index_is_refused() {
        let index = encode(&entries(10), &[4, 6]).unwrap();
        let Ok(Footer { filter_offset: block_bytes, .. }) =
            Footer::decode(&index[index.len() - FOOTER_BYTES..], index.len() as u64)
        else {
            panic!("the footer is whole")
        };
        for bit in 0..block_bytes as usize * 8 {
            let mut block = index[..block_bytes as usize].to_vec();
            block[bit / 8] ^= 1 << (bit % 8);
            // Some bits of a frame header mean nothing; none may change an entry.
            let same = decode_block(&block, 10).is_ok_and(|decoded| decoded == entries(10));
            assert!(same || decode_block(&block, 10).is_err(), "bit {bit} changes the index unnoticed");
        }
        let footer = &index[index.len() - FOOTER_BYTES..];
        for bit in 20 * 8..36 * 8 {
            let mut footer = footer.to_vec();
            footer[bit / 8] ^= 1 << (bit % 8);
            let decoded = Footer::decode(&footer, index.len() as u64).unwrap();
            let places = &index[decoded.directory_offset as usize..index.len() - FOOTER_BYTES];
            assert!(decode_places(places, &decoded).is_err(), "bit {bit} of the first id changes unnoticed");
        }
        assert!(Footer::decode(footer, index.len() as u64 + 1).is_err());
        assert!(Footer::decode(&[0; FOOTER_BYTES], 64).is_err());
        assert!(decode_block(&[1, 2, 3], 10).is_err());
        assert!(decode_block(&index[..20], 5000).is_err());
    }
}
