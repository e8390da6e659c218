//! Reading one table of a snapshot. All methods wait for the store and must run on a blocking thread.

use std::path::Path;

use dynavault_model::{Malformed, Row, RowId, Scan};
use dynavault_store::BlobName;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::blob_file::{LOOKUP_BYTES, SCAN_BYTES};
use crate::liveness::{self, RowSet};
use crate::manifest::{SegmentInfo, SegmentKind, TableManifest};
use crate::reader::SegmentReader;
use crate::sorted::RowSorter;
use crate::vault::Vault;
use crate::{VaultError, names};

/// Read-ahead of all indexes of a merge together.
const MERGE_BYTES: usize = 8 << 20;

/// A table of a snapshot, for reading.
pub struct TableReader<'a> {
    vault: &'a Vault,
    handle: Handle,
    environment: &'a str,
    table: &'a TableManifest,
    cancel: CancellationToken,
}

impl<'a> TableReader<'a> {
    /// A reader for a table of a manifest.
    pub fn new(
        vault: &'a Vault,
        handle: Handle,
        environment: &'a str,
        table: &'a TableManifest,
        cancel: CancellationToken,
    ) -> Self {
        Self { vault, handle, environment, table, cancel }
    }

    fn segments(&self, content: bool) -> impl DoubleEndedIterator<Item = &'a SegmentInfo> + use<'a> {
        self.table.segments.iter().filter(move |info| (info.kind == SegmentKind::Content) == content)
    }

    fn name(&self, info: &SegmentInfo) -> BlobName {
        names::segment(self.environment, &self.table.table, info)
    }

    /// Opens a segment of the table.
    pub fn open(&self, info: &SegmentInfo) -> Result<SegmentReader, VaultError> {
        self.open_ahead(info, LOOKUP_BYTES)
    }

    fn open_ahead(&self, info: &SegmentInfo, ahead: usize) -> Result<SegmentReader, VaultError> {
        if self.cancel.is_cancelled() {
            return Err(VaultError::Cancelled);
        }
        let name = self.name(info);
        let reader = SegmentReader::open(
            &self.handle,
            self.vault.store(),
            &name,
            info.encrypted,
            self.vault.identities(),
            ahead,
        )?;
        // A whole segment in the wrong place is not what its own checksums can tell.
        if reader.bytes_stored() != info.bytes_stored
            || reader.entries() != info.rows
            || u64::from(reader.rows_stored()) != info.rows_stored
        {
            return Err(VaultError::damaged(name, "it holds other rows than its manifest says"));
        }
        Ok(reader)
    }

    /// Calls `each` with id and hash of every live row, in order of ids. Holds ids of one block per segment only.
    pub fn live_ids(&self, mut each: impl FnMut(RowId, u64) -> Result<(), VaultError>) -> Result<(), VaultError> {
        self.merge(false, |_, entry| each(entry.id, entry.hash))
    }

    /// The same for the table's content references; the id is of the pair of row and column.
    pub fn live_content_ids(
        &self,
        mut each: impl FnMut(RowId, u64) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        self.merge(true, |_, entry| each(entry.id, entry.hash))
    }

    fn merge(
        &self,
        content: bool,
        each: impl FnMut(usize, crate::index::IndexEntry) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let count = self.segments(content).count().max(1);
        let ahead = (MERGE_BYTES / count).clamp(4096, LOOKUP_BYTES);
        let mut open = self
            .segments(content)
            .map(|info| self.open_ahead(info, ahead).map(|reader| (info.kind, reader)))
            .collect::<Result<Vec<_>, _>>()?;
        liveness::merge(&mut open, each)
    }

    /// Calls `each` with every live row, in stored order. Every row is checked against its hash.
    pub fn scan(&self, each: impl FnMut(RowId, &Row<'_>) -> Result<(), VaultError>) -> Result<(), VaultError> {
        self.scan_kind(false, each)
    }

    /// Calls `each` with every live content reference of the table.
    pub fn scan_content(&self, each: impl FnMut(RowId, &Row<'_>) -> Result<(), VaultError>) -> Result<(), VaultError> {
        self.scan_kind(true, each)
    }

    fn scan_kind(
        &self,
        content: bool,
        mut each: impl FnMut(RowId, &Row<'_>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let infos: Vec<&SegmentInfo> = self.segments(content).collect();
        let mut live: Vec<RowSet> = infos.iter().map(|info| RowSet::new(info.rows_stored as u32)).collect();
        self.merge(content, |segment, entry| {
            live[segment].insert(entry.row);
            Ok(())
        })?;
        for (info, live) in infos.into_iter().zip(live) {
            if !live.is_empty() {
                self.scan_segment(info, |row| live.contains(row), &mut each)?;
            }
        }
        Ok(())
    }

    /// Calls `each` with the wanted rows of one segment, each checked against its hash.
    pub(crate) fn scan_segment(
        &self,
        info: &SegmentInfo,
        wanted: impl Fn(u32) -> bool,
        each: &mut impl FnMut(RowId, &Row<'_>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let mut reader = self.open_ahead(info, SCAN_BYTES)?;
        let by_row = reader.by_row()?;
        let name = self.name(info);
        let mut members = Vec::new();
        let hashed = info.kind != SegmentKind::Content;
        reader.scan(
            |row| wanted(row) && by_row[row as usize].is_some(),
            |number, bytes| {
                if self.cancel.is_cancelled() {
                    return Err(VaultError::Cancelled);
                }
                let (id, hash) = by_row[number as usize].unwrap_or((RowId([0; 16]), 0));
                let row = scan_row(bytes, &mut members).map_err(|error| VaultError::damaged(&name, error))?;
                if hashed && row.hash() != hash {
                    return Err(VaultError::damaged(&name, format!("row {id} does not match its hash")));
                }
                each(id, &row)
            },
        )
    }

    /// Calls `each` with every live row in order of row ids, using at most about `memory_bytes` and files in `scratch`.
    pub fn sorted(
        &self,
        scratch: &Path,
        memory_bytes: usize,
        mut each: impl FnMut(RowId, &Row<'_>) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let mut sorter = RowSorter::new(scratch, memory_bytes);
        self.scan(|id, row| sorter.push(id, row.bytes()))?;
        let mut members = Vec::new();
        sorter.finish(|id, bytes| {
            if self.cancel.is_cancelled() {
                return Err(VaultError::Cancelled);
            }
            let row = scan_row(bytes, &mut members).map_err(|error| VaultError::damaged("scratch file", error))?;
            each(id, &row)
        })
    }

    /// The row with an id, if it is in the snapshot. Costs a few small ranged reads per segment, newest first, and one frame.
    pub fn find(&self, id: RowId) -> Result<Option<Vec<u8>>, VaultError> {
        for info in self.segments(false).rev() {
            let mut reader = self.open(info)?;
            if let Some(entry) = reader.find(id)? {
                return if info.kind == SegmentKind::Deleted { Ok(None) } else { reader.row(entry.row).map(Some) };
            }
        }
        Ok(None)
    }
}

/// Scans a row that was stored by us: it must be whole and without white space.
pub(crate) fn scan_row<'r>(
    bytes: &'r [u8],
    members: &'r mut Vec<dynavault_model::Member>,
) -> Result<Row<'r>, Malformed> {
    match dynavault_model::scan(bytes, members)? {
        Scan::Complete { length, spaced: false } if length == bytes.len() => Ok(Row::new(bytes, members)),
        _ => Err(Malformed { at: 0, what: "a stored row is not one compact object" }),
    }
}
