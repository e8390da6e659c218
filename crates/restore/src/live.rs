//! The environment as it is now, as far as a plan needs it.
//!
//! ```text
//!  whole table ─▶ page by page ─┐    id not wanted      ─▶ dropped, or kept for `--mirror`
//!  rows by id  ─▶ in blocks    ─┴─▶  hash as captured   ─▶ "same", nothing kept
//!                                    otherwise          ─▶ row into a scratch file, its offset kept
//! ```
//!
//! Of every wanted row 8 bytes stay in memory. A page may be delivered twice and a row on two pages; the last delivery counts.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_model::{
    Call, Deletion, PageRequest, Row, RowId, RowKey, RowSink, RowSource, RowTarget, SharedSink, SourceError, Stopped,
    TableSchema,
};

use crate::error::RestoreError;
use crate::spill::Spill;

/// Largest row that is held; several tables are read at once.
const ROW_BYTES_MAX: usize = 64 << 20;
/// Keys asked for in one call; the target cuts them into requests.
const KEYS_PER_CALL: usize = 500;
/// Ids that fit into the address of one request; for weighing, not for cutting.
const KEYS_PER_REQUEST: u64 = 100;
/// Times a table is read from its start because the service no longer accepts a next link.
const RESTARTS_MAX: u32 = 3;
/// Most pages of a table; ends a loop of links that never repeat.
const PAGES_MAX: u64 = 10_000_000;

/// What is known of a wanted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not there.
    Absent,
    /// Not there, but in the service's recycle bin.
    Binned,
    /// Not there, and it will not be made.
    Unmade,
    /// There, as captured.
    Same,
    /// There, differently: offset of the live row.
    Differs(u64),
}

impl State {
    /// Whether the row is there now.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Same | Self::Differs(_))
    }
}

/// [`State`] in 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packed(u64);

impl Packed {
    pub(crate) const ABSENT: Self = Self(u64::MAX);
    pub(crate) const BINNED: Self = Self(u64::MAX - 1);
    pub(crate) const UNMADE: Self = Self(u64::MAX - 2);
    pub(crate) const SAME: Self = Self(u64::MAX - 3);

    pub(crate) fn differs(offset: u64) -> Self {
        Self(offset)
    }

    pub(crate) fn state(self) -> State {
        match self {
            Self::ABSENT => State::Absent,
            Self::BINNED => State::Binned,
            Self::UNMADE => State::Unmade,
            Self::SAME => State::Same,
            Self(offset) => State::Differs(offset),
        }
    }

    /// Whether the row is there now.
    pub(crate) fn is_live(self) -> bool {
        self.state().is_live()
    }
}

/// The live side of a table.
#[derive(Debug)]
pub(crate) struct Live {
    /// One for each wanted id, in order.
    pub(crate) states: Vec<Packed>,
    /// Live rows that differ, and those of `others`.
    pub(crate) rows: Spill,
    /// Rows that were not wanted, sorted by id, with their offsets; only where asked for.
    pub(crate) others: Vec<(RowId, u64)>,
    /// Rows too large to be held; they look absent.
    pub(crate) oversized: u64,
}

/// Which rows of a table are looked for.
pub(crate) struct Wanted {
    pub(crate) schema: Arc<TableSchema>,
    /// Sorted.
    pub(crate) ids: Arc<Vec<RowId>>,
    /// Hashes of the captured rows; empty when rows are always compared value by value.
    pub(crate) hashes: Vec<u64>,
    /// Keep the rows that are not wanted.
    pub(crate) others: bool,
}

struct Compare {
    wanted: Wanted,
    live: Live,
    error: Option<RestoreError>,
}

impl RowSink for Compare {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        let Some(id) = self.wanted.schema.row_id(row) else { return Ok(()) };
        let kept = match self.wanted.ids.binary_search(&id) {
            Ok(at) if self.wanted.hashes.get(at) == Some(&row.hash()) => {
                self.live.states[at] = Packed::SAME;
                Ok(())
            }
            Ok(at) => self.live.rows.push(row.bytes()).map(|offset| self.live.states[at] = Packed::differs(offset)),
            Err(_) if self.wanted.others => {
                self.live.rows.push(row.bytes()).map(|offset| self.live.others.push((id, offset)))
            }
            Err(_) => Ok(()),
        };
        kept.map_err(|error| {
            self.error = Some(error);
            Stopped
        })
    }

    fn deleted(&mut self, _deletion: Deletion) -> Result<(), Stopped> {
        Ok(())
    }

    fn oversized(&mut self, _start: &[u8], _bytes: u64) -> Result<(), Stopped> {
        self.live.oversized += 1;
        Ok(())
    }

    fn restarted(&mut self) {}

    fn row_bytes_max(&self) -> usize {
        ROW_BYTES_MAX
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn comparing(wanted: Wanted, scratch: &Path) -> Result<Arc<Mutex<Compare>>, RestoreError> {
    let states = vec![Packed::ABSENT; wanted.ids.len()];
    let live = Live { states, rows: Spill::new(scratch)?, others: Vec::new(), oversized: 0 };
    Ok(Arc::new(Mutex::new(Compare { wanted, live, error: None })))
}

fn compared(sink: &Mutex<Compare>, read: Result<(), SourceError>, scratch: &Path) -> Result<Live, RestoreError> {
    let mut sink = lock(sink);
    if let Some(error) = sink.error.take() {
        return Err(error);
    }
    read?;
    let empty = Live { states: Vec::new(), rows: Spill::new(scratch)?, others: Vec::new(), oversized: 0 };
    let mut live = std::mem::replace(&mut sink.live, empty);
    // Of two deliveries the last counts.
    live.others.reverse();
    live.others.sort_by_key(|(id, _)| *id);
    live.others.dedup_by_key(|(id, _)| *id);
    Ok(live)
}

/// Reads a whole table and compares it with what is wanted.
pub(crate) async fn compare_whole(
    source: &dyn RowSource,
    wanted: Wanted,
    scratch: &Path,
    call: &Call,
) -> Result<Live, RestoreError> {
    let schema = Arc::clone(&wanted.schema);
    let sink = comparing(wanted, scratch)?;
    let read = read_table(source, &schema, Arc::clone(&sink) as SharedSink, call).await;
    compared(&sink, read, scratch)
}

/// Reads rows by key and compares them with what is wanted.
pub(crate) async fn compare_keys(
    target: &dyn RowTarget,
    wanted: Wanted,
    keys: &[RowKey],
    scratch: &Path,
    call: &Call,
) -> Result<Live, RestoreError> {
    let schema = Arc::clone(&wanted.schema);
    let sink = comparing(wanted, scratch)?;
    let read = read_keys(target, &schema, keys, Arc::clone(&sink) as SharedSink, call).await;
    compared(&sink, read, scratch)
}

async fn read_keys(
    target: &dyn RowTarget,
    schema: &TableSchema,
    keys: &[RowKey],
    sink: SharedSink,
    call: &Call,
) -> Result<(), SourceError> {
    for block in keys.chunks(KEYS_PER_CALL) {
        if call.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        target.read_rows(schema, block, Arc::clone(&sink), call).await?;
    }
    Ok(())
}

/// Reads every row of a table.
pub(crate) async fn read_table(
    source: &dyn RowSource,
    schema: &TableSchema,
    sink: SharedSink,
    call: &Call,
) -> Result<(), SourceError> {
    let first = PageRequest::First { tracked: false };
    let mut page = first.clone();
    let mut restarts = 0;
    for _ in 0..PAGES_MAX {
        if call.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        match source.read_page(schema, &page, Arc::clone(&sink), call).await {
            Ok(end) => match end.next {
                Some(link) => page = PageRequest::Link(link),
                None => return Ok(()),
            },
            Err(SourceError::LinkRejected { .. }) if restarts < RESTARTS_MAX => {
                restarts += 1;
                page = first.clone();
            }
            Err(error) => return Err(error),
        }
    }
    Err(SourceError::Protocol {
        what: format!("table {}", schema.table),
        detail: format!("it does not end after {PAGES_MAX} pages"),
    })
}

/// Whether reading by key takes fewer requests than reading the whole table of about `rows` rows.
pub(crate) fn by_key_is_cheaper(schema: &TableSchema, wanted: u64, rows: u64) -> bool {
    wanted.div_ceil(KEYS_PER_REQUEST) < rows.div_ceil(u64::from(schema.page_rows_max.max(1))).max(1) + 1
}

/// Makes something of each row.
type Make<T> = Box<dyn FnMut(&Row<'_>) -> Result<Option<T>, RestoreError> + Send>;

struct Gather<T> {
    make: Make<T>,
    found: Vec<T>,
    error: Option<RestoreError>,
}

impl<T: Send> RowSink for Gather<T> {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        match (self.make)(row) {
            Ok(found) => {
                self.found.extend(found);
                Ok(())
            }
            Err(error) => {
                self.error = Some(error);
                Err(Stopped)
            }
        }
    }

    fn deleted(&mut self, _deletion: Deletion) -> Result<(), Stopped> {
        Ok(())
    }

    fn oversized(&mut self, _start: &[u8], _bytes: u64) -> Result<(), Stopped> {
        Ok(())
    }

    fn restarted(&mut self) {}

    fn row_bytes_max(&self) -> usize {
        ROW_BYTES_MAX
    }
}

/// What `make` makes of every row of a table. A row may be delivered more than once.
pub(crate) async fn gather<T: Send + 'static>(
    source: &dyn RowSource,
    schema: &TableSchema,
    make: impl FnMut(&Row<'_>) -> Result<Option<T>, RestoreError> + Send + 'static,
    call: &Call,
) -> Result<Vec<T>, RestoreError> {
    let gather = Arc::new(Mutex::new(Gather { make: Box::new(make), found: Vec::new(), error: None }));
    let read = read_table(source, schema, Arc::clone(&gather) as SharedSink, call).await;
    gathered(&gather, read)
}

/// What `make` makes of the rows that exist among these ids. Only for tables whose key is one GUID.
pub(crate) async fn existing_rows<T: Send + 'static>(
    target: &dyn RowTarget,
    schema: &TableSchema,
    ids: &[RowId],
    make: impl FnMut(&Row<'_>) -> Result<Option<T>, RestoreError> + Send + 'static,
    call: &Call,
) -> Result<Vec<T>, RestoreError> {
    let keys: Vec<RowKey> = ids.iter().map(|id| RowKey::new(id.to_string())).collect();
    let gather = Arc::new(Mutex::new(Gather { make: Box::new(make), found: Vec::new(), error: None }));
    let read = read_keys(target, schema, &keys, Arc::clone(&gather) as SharedSink, call).await;
    gathered(&gather, read)
}

/// Which of these ids exist; sorted.
pub(crate) async fn existing(
    target: &dyn RowTarget,
    schema: &TableSchema,
    ids: &[RowId],
    call: &Call,
) -> Result<Vec<RowId>, RestoreError> {
    // A partitioned row's id is made of both parts of its key; what refers to it knows the first.
    let key = schema.key.first().cloned().unwrap_or_default();
    let make = move |row: &Row<'_>| Ok(row.get(&key).map(|value| RowId::of_key(&[value])));
    let mut found = existing_rows(target, schema, ids, make, call).await?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn gathered<T>(gather: &Mutex<Gather<T>>, read: Result<(), SourceError>) -> Result<Vec<T>, RestoreError> {
    let mut gather = lock(gather);
    if let Some(error) = gather.error.take() {
        return Err(error);
    }
    read?;
    Ok(std::mem::take(&mut gather.found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_packing() {
        for state in [Packed::ABSENT, Packed::BINNED, Packed::UNMADE, Packed::SAME, Packed::differs(0)] {
            assert_eq!(state.is_live(), matches!(state.state(), State::Same | State::Differs(_)));
        }
        assert_eq!(Packed::differs(77).state(), State::Differs(77));
        assert_eq!(Packed::BINNED.state(), State::Binned);
    }
}
