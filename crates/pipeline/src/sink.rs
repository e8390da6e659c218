//! The sink of one table: rows in, durable segments out. Runs on the blocking thread that splits the page.
//!
//! ```text
//! row ─▶ id, hash ─▶ same as in the state? ──yes──▶ mark as seen
//!                            │no
//!                            ▼
//!                     SegmentWriter ──full──▶ durable segment + its state file
//! ```
//!
//! A page may be delivered again, in part or whole: rows are idempotent by id, the newest delivery winning. What is durable
//! becomes part of a checkpoint only at the end of a page, when no row of it is still in an open segment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dynavault_model::{
    Clock, ContentColumn, ContentItem, ContentKind, Deletion, Member, Row, RowId, RowSink, Scan, Stopped, TableSchema,
    Tally,
};
use dynavault_vault::{SegmentInfo, SegmentKind, SegmentWriter, VaultWriter, version_hash};
use jiff::Timestamp;
use serde::Serialize;
use tokio::runtime::Handle;

use crate::SegmentLimits;
use crate::error::PipelineError;
use crate::journal::Journal;
use crate::state::{GONE, State, write_file};

/// Deletions of one page that need a look at the environment; a page has at most 5,000 rows.
const CONFLICTS_MAX: usize = 10_000;
/// Reasons for refused rows that are kept; the rest is only counted.
const REASONS_MAX: usize = 5;

/// A durable segment and the state file that mirrors its index.
#[derive(Debug, Clone)]
pub(crate) struct DurableSegment {
    pub(crate) info: SegmentInfo,
    pub(crate) run_file: PathBuf,
}

/// What a sink works with; the same for all pages of a table.
pub(crate) struct SinkParts {
    pub(crate) vault: VaultWriter,
    pub(crate) handle: Handle,
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) limits: SegmentLimits,
    pub(crate) row_bytes_max: usize,
    pub(crate) tally: Arc<Tally>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) state_folder: PathBuf,
    /// Rows of the snapshot before; `None` when everything is to be stored.
    pub(crate) base: Option<State>,
    /// Content of the snapshot before.
    pub(crate) base_content: Option<State>,
    /// Rows already durable in this draft.
    pub(crate) draft: State,
    /// For a sweep: which records of the (single) base file have been seen.
    pub(crate) seen: Option<Seen>,
    /// Content to be fetched.
    pub(crate) items: Option<Journal>,
    /// Time of the last token, written into tombstones.
    pub(crate) gone_after: Option<Timestamp>,
}

/// Which records of a base file were seen.
pub(crate) struct Seen {
    pub(crate) bits: Vec<u64>,
    pub(crate) journal: Journal,
}

impl Seen {
    fn mark(&mut self, ordinal: u64) -> Result<(), PipelineError> {
        let (word, bit) = ((ordinal / 64) as usize, 1 << (ordinal % 64));
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.journal.append(&ordinal.to_le_bytes())?;
        }
        Ok(())
    }

    pub(crate) fn contains(&self, ordinal: u64) -> bool {
        self.bits[(ordinal / 64) as usize] & (1 << (ordinal % 64)) != 0
    }
}

#[derive(Serialize)]
struct Tombstone<'a> {
    id: String,
    key: &'a str,
    reason: &'a str,
    after: Option<Timestamp>,
    before: Timestamp,
}

/// See the module.
pub(crate) struct TableSink {
    parts: SinkParts,
    rows: Option<SegmentWriter>,
    tombstones: Option<SegmentWriter>,
    open_since: Duration,
    durable: Vec<DurableSegment>,
    conflicts: Vec<Deletion>,
    pub(crate) refused: u64,
    pub(crate) reasons: Vec<String>,
    error: Option<PipelineError>,
    members: Vec<Member>,
}

impl TableSink {
    pub(crate) fn new(parts: SinkParts) -> Self {
        let open_since = parts.clock.elapsed();
        Self {
            parts,
            rows: None,
            tombstones: None,
            open_since,
            durable: Vec::new(),
            conflicts: Vec::new(),
            refused: 0,
            reasons: Vec::new(),
            error: None,
            members: Vec::new(),
        }
    }

    pub(crate) fn take_error(&mut self) -> Option<PipelineError> {
        self.error.take()
    }

    pub(crate) fn take_conflicts(&mut self) -> Vec<Deletion> {
        std::mem::take(&mut self.conflicts)
    }

    pub(crate) fn seen_mut(&mut self) -> Option<&mut Seen> {
        self.parts.seen.as_mut()
    }

    pub(crate) fn items_mut(&mut self) -> Option<&mut Journal> {
        self.parts.items.as_mut()
    }

    /// Whether the open segment is large or old enough to be made durable at the end of a page.
    pub(crate) fn wants_cut(&self) -> bool {
        let limits = &self.parts.limits;
        let full = |writer: &SegmentWriter| {
            writer.raw_bytes() >= limits.bytes_max / 4 * 3 || writer.rows() as u32 >= limits.rows_max / 4 * 3
        };
        self.rows.as_ref().is_some_and(full)
            || self.tombstones.as_ref().is_some_and(full)
            || self.parts.clock.elapsed().saturating_sub(self.open_since) >= limits.age_max
    }

    /// Makes every row so far durable and gives the segments since the last call. Must run on a blocking thread.
    pub(crate) fn cut(&mut self) -> Result<Vec<DurableSegment>, PipelineError> {
        self.cut_rows()?;
        self.cut_tombstones()?;
        self.open_since = self.parts.clock.elapsed();
        Ok(std::mem::take(&mut self.durable))
    }

    fn cut_rows(&mut self) -> Result<(), PipelineError> {
        match self.rows.take() {
            Some(writer) => self.finish_segment(writer),
            None => Ok(()),
        }
    }

    fn cut_tombstones(&mut self) -> Result<(), PipelineError> {
        match self.tombstones.take() {
            Some(writer) => self.finish_segment(writer),
            None => Ok(()),
        }
    }

    fn finish_segment(&mut self, writer: SegmentWriter) -> Result<(), PipelineError> {
        let mut finished = writer.finish()?;
        if finished.info.kind == SegmentKind::Deleted {
            for entry in &mut finished.entries {
                entry.1 = GONE;
            }
        }
        self.parts.tally.bytes_stored(finished.info.bytes_stored);
        self.parts.tally.bytes_raw(finished.info.bytes_raw);
        let run_file = self.parts.state_folder.join(format!("{}.run", finished.info.id));
        write_file(&run_file, &finished.entries)?;
        self.parts.draft.add(&run_file)?;
        self.durable.push(DurableSegment { info: finished.info, run_file });
        Ok(())
    }

    fn refuse(&mut self, reason: String) {
        self.refused += 1;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(reason);
        }
    }

    fn try_row(&mut self, row: &Row<'_>) -> Result<(), PipelineError> {
        self.parts.tally.rows_read(1);
        let Some(id) = self.parts.schema.row_id(row) else {
            self.refuse("a row came without its key".into());
            return Ok(());
        };
        let hash = row.hash();
        let known = match &self.parts.base {
            Some(base) => base.find(id)?,
            None => None,
        };
        if let Some((ordinal, _)) = known
            && let Some(seen) = &mut self.parts.seen
        {
            seen.mark(ordinal)?;
        }
        self.note_content(id, row)?;
        if known.is_some_and(|(_, known)| known == hash) && !self.in_draft(id)? {
            return Ok(());
        }
        if self.rows.is_none() {
            self.rows = Some(self.create(SegmentKind::Rows)?);
        }
        let limits = self.parts.limits;
        let Some(writer) = self.rows.as_mut() else { return Ok(()) };
        if let Err(error) = writer.push(id, hash, row) {
            return match error {
                dynavault_vault::VaultError::Row { detail, .. } => {
                    self.refuse(detail);
                    Ok(())
                }
                other => Err(other.into()),
            };
        }
        self.parts.tally.rows_stored(1);
        if writer.raw_bytes() >= limits.bytes_max || writer.rows() as u32 >= limits.rows_max {
            self.cut_rows()?;
        }
        Ok(())
    }

    /// A row that went back to what it was before, after a different version of it was stored in this draft, must be
    /// stored again: the newest delivery wins.
    fn in_draft(&self, id: RowId) -> Result<bool, PipelineError> {
        Ok(self.parts.draft.records() > 0 && self.parts.draft.find(id)?.is_some())
    }

    fn create(&mut self, kind: SegmentKind) -> Result<SegmentWriter, PipelineError> {
        if self.rows.is_none() && self.tombstones.is_none() {
            self.open_since = self.parts.clock.elapsed();
        }
        Ok(SegmentWriter::create(&self.parts.vault, &self.parts.handle, &self.parts.schema.table.name, kind)?)
    }

    fn note_content(&mut self, id: RowId, row: &Row<'_>) -> Result<(), PipelineError> {
        let Some(items) = self.parts.items.as_mut() else { return Ok(()) };
        for column in &self.parts.schema.content {
            let present = row
                .get(&column.presence_member)
                .is_some_and(|value| !matches!(value, b"null" | b"0" | b"\"\"" | b"false"));
            if !present {
                continue;
            }
            let (Some(version), Some(key)) =
                (row.get(&column.version_member), self.parts.schema.key.first().and_then(|key| row.get(key)))
            else {
                continue;
            };
            let version = String::from_utf8_lossy(version).into_owned();
            let content = content_id(key, &column.column);
            if let Some(base) = &self.parts.base_content
                && base.hash(content)? == Some(version_hash(&version))
            {
                continue;
            }
            let item = ContentItem {
                row: id,
                key: String::from_utf8_lossy(key).trim_matches('"').to_string(),
                column: column.column.clone(),
                version,
                name: column
                    .name_member
                    .as_ref()
                    .and_then(|member| row.get(member))
                    .filter(|name| *name != b"null")
                    .map(|name| String::from_utf8_lossy(name).into_owned()),
                bytes: body_bytes(column, row),
            };
            let mut line = serde_json::to_vec(&item).unwrap_or_default();
            line.push(b'\n');
            items.append(&line)?;
        }
        Ok(())
    }

    fn try_deleted(&mut self, deletion: Deletion) -> Result<(), PipelineError> {
        self.parts.tally.rows_read(1);
        // Deletions come after all live rows of a delta; once the live rows are durable they can be asked for.
        self.cut_rows()?;
        let Some(id) = RowId::from_guid(deletion.key.as_bytes()) else {
            self.refuse("a deletion came without a usable id".into());
            return Ok(());
        };
        if self.parts.draft.hash(id)?.is_some() {
            // Listed as changed and as deleted in one delta: deleted and made again, or the other way round. Only the
            // environment knows (`dataverse` protocol, section 4.4).
            if self.conflicts.len() >= CONFLICTS_MAX {
                return Err(PipelineError::Broken { what: "more contradicting deletions than a page can hold".into() });
            }
            self.conflicts.push(deletion);
            return Ok(());
        }
        self.bury(id, &deletion.key, &deletion.reason)
    }

    /// Writes a tombstone, unless the row was never there.
    pub(crate) fn bury(&mut self, id: RowId, key: &str, reason: &str) -> Result<(), PipelineError> {
        let known = match &self.parts.base {
            Some(base) => base.hash(id)?.is_some(),
            // Without state every tombstone is kept: one too many does no harm.
            None => true,
        };
        if !known && self.parts.draft.hash(id)?.is_none() {
            return Ok(());
        }
        let tombstone =
            Tombstone { id: id.to_string(), key, reason, after: self.parts.gone_after, before: self.parts.clock.now() };
        let json = serde_json::to_vec(&tombstone).unwrap_or_default();
        if self.tombstones.is_none() {
            self.tombstones = Some(self.create(SegmentKind::Deleted)?);
        }
        let Some(writer) = self.tombstones.as_mut() else { return Ok(()) };
        let mut members = std::mem::take(&mut self.members);
        let scanned = dynavault_model::scan(&json, &mut members);
        let pushed = match scanned {
            Ok(Scan::Complete { .. }) => {
                let row = Row::new(&json, &members);
                writer.push(id, row.hash(), &row)
            }
            _ => return Err(PipelineError::Broken { what: "a tombstone is not a JSON object".into() }),
        };
        self.members = members;
        pushed?;
        if writer.rows() as u32 >= self.parts.limits.rows_max {
            self.cut_tombstones()?;
        }
        Ok(())
    }

    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Result<(), PipelineError>) -> Result<(), Stopped> {
        if self.error.is_some() {
            return Err(Stopped);
        }
        work(self).map_err(|error| {
            self.error = Some(error);
            Stopped
        })
    }
}

/// Size of a body as its row tells: what says that there is one is its length in bytes (`dataverse` protocol, section 7.3).
fn body_bytes(column: &ContentColumn, row: &Row<'_>) -> Option<u64> {
    let told = row.get(&column.presence_member).filter(|_| column.kind == ContentKind::Base64Body)?;
    serde_json::from_slice(told).ok()
}

/// Id of a piece of content: of the pair of the row's key and the column.
pub(crate) fn content_id(key: &[u8], column: &str) -> RowId {
    RowId::of_key(&[key, column.as_bytes()])
}

impl RowSink for TableSink {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        self.guarded(|sink| sink.try_row(row))
    }

    fn deleted(&mut self, deletion: Deletion) -> Result<(), Stopped> {
        self.guarded(|sink| sink.try_deleted(deletion))
    }

    fn oversized(&mut self, start: &[u8], bytes: u64) -> Result<(), Stopped> {
        // The key is nearly always among the first members; the bytes end inside a member, so it is looked for as text.
        let named = self.parts.schema.key.first().and_then(|key| {
            let text = String::from_utf8_lossy(start);
            let at = text.find(&format!("\"{key}\":\""))? + key.len() + 4;
            text.get(at..at + 36).and_then(|guid| guid.parse::<RowId>().ok())
        });
        let name = named.map_or_else(|| "a row".to_string(), |id| format!("row {id}"));
        self.refuse(format!(
            "{name} has {bytes} bytes, more than fits the memory budget ({} bytes a row); raise limits.memory_mib",
            self.parts.row_bytes_max
        ));
        Ok(())
    }

    fn restarted(&mut self) {
        self.conflicts.clear();
    }

    fn row_bytes_max(&self) -> usize {
        self.parts.row_bytes_max
    }
}
