//! Which rows of which segments are current: a merge of the sorted indexes, holding ids of one block per segment only.
//!
//! The state of a table is the ordered list of its segments. For every row id the newest segment that names it decides:
//! a row segment makes its row live, a tombstone segment makes the id gone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dynavault_model::RowId;

use crate::VaultError;
use crate::index::IndexEntry;
use crate::manifest::SegmentKind;
use crate::reader::SegmentReader;

/// A set of row numbers.
#[derive(Debug, Clone, Default)]
pub struct RowSet {
    words: Vec<u64>,
    count: u64,
}

impl RowSet {
    /// An empty set for numbers below `rows`.
    pub fn new(rows: u32) -> Self {
        Self { words: vec![0; (rows as usize).div_ceil(64)], count: 0 }
    }

    /// Adds a number.
    pub fn insert(&mut self, row: u32) {
        let (word, bit) = (row as usize / 64, 1_u64 << (row % 64));
        if self.words[word] & bit == 0 {
            self.words[word] |= bit;
            self.count += 1;
        }
    }

    /// Whether the number is in the set.
    pub fn contains(&self, row: u32) -> bool {
        self.words.get(row as usize / 64).is_some_and(|word| word & (1 << (row % 64)) != 0)
    }

    /// Numbers in the set.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

struct Cursor<'a> {
    reader: &'a mut SegmentReader,
    kind: SegmentKind,
    next_block: usize,
    block: std::vec::IntoIter<IndexEntry>,
}

impl Cursor<'_> {
    fn next(&mut self) -> Result<Option<IndexEntry>, VaultError> {
        loop {
            if let Some(entry) = self.block.next() {
                return Ok(Some(entry));
            }
            if self.next_block == self.reader.block_count() {
                return Ok(None);
            }
            self.block = self.reader.block(self.next_block)?.into_iter();
            self.next_block += 1;
        }
    }
}

/// Merges segments, oldest first, and calls `live` for every current row: segment number, row number, id, hash.
/// Ids come in order.
pub(crate) fn merge(
    segments: &mut [(SegmentKind, SegmentReader)],
    mut live: impl FnMut(usize, IndexEntry) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let mut cursors: Vec<Cursor<'_>> = segments
        .iter_mut()
        .map(|(kind, reader)| Cursor { reader, kind: *kind, next_block: 0, block: Vec::new().into_iter() })
        .collect();
    // The heap gives the smallest id, and of equal ids the one of the newest segment first.
    let mut heap = BinaryHeap::with_capacity(cursors.len());
    for (number, cursor) in cursors.iter_mut().enumerate() {
        if let Some(entry) = cursor.next()? {
            heap.push(Reverse((entry.id, Reverse(number), entry.row, entry.hash)));
        }
    }
    let mut decided: Option<RowId> = None;
    while let Some(Reverse((id, Reverse(number), row, hash))) = heap.pop() {
        if let Some(entry) = cursors[number].next()? {
            heap.push(Reverse((entry.id, Reverse(number), entry.row, entry.hash)));
        }
        if decided == Some(id) {
            continue;
        }
        decided = Some(id);
        if cursors[number].kind != SegmentKind::Deleted {
            live(number, IndexEntry { id, row, hash })?;
        }
    }
    Ok(())
}
