//! How operations are cut into requests. The planner counts with the same rule that applying follows, so that the number
//! of calls in a plan is the number of calls made when nothing is refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dynavault_model::{RowTarget, TableSchema, WriteKind};

use crate::plan::{Action, Op, Step};

/// Most bytes of values in one batch: with a few batches under way at once, memory stays inside the budget.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Execution time of one write request on average, for estimates: batches are sized to stay well under the service's time
/// limits, and most requests are batches.
const EXECUTION_MS_PER_REQUEST: u64 = 1_000;

/// What operations must share to go into one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchKey {
    pub(crate) step: Step,
    pub(crate) wave: u32,
    pub(crate) table: String,
    pub(crate) action: Action,
    /// Guards of different kinds are different requests.
    guarded: bool,
    /// A bulk message has one caller.
    on_behalf: Option<String>,
}

impl BatchKey {
    pub(crate) fn of(op: &Op) -> Self {
        Self {
            step: op.step,
            wave: op.wave,
            table: op.table.clone(),
            action: op.action,
            guarded: matches!(op.guard, dynavault_model::Guard::Unchanged(_)),
            on_behalf: op.on_behalf.clone(),
        }
    }
}

/// Bytes of the values an operation carries.
pub(crate) fn weight(op: &Op) -> usize {
    let raw = |value: &Option<Box<serde_json::value::RawValue>>| value.as_ref().map_or(0, |value| value.get().len());
    let rows = |rows: &[Box<serde_json::value::RawValue>]| rows.iter().map(|row| row.get().len()).sum::<usize>();
    let along = op.along.iter().map(|gone| gone.row.get().len()).sum::<usize>();
    raw(&op.set) + raw(&op.from) + raw(&op.close) + rows(&op.parties) + rows(&op.from_parties) + along + 128
}

/// Cuts a stream of operations into batches.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    key: Option<BatchKey>,
    rows: usize,
    bytes: usize,
}

impl Cutter {
    /// Whether `op` begins a new batch, where a batch holds `rows_max` rows.
    pub(crate) fn begins(&mut self, op: &Op, rows_max: usize) -> bool {
        let key = BatchKey::of(op);
        let bytes = weight(op);
        let fits = self.key.as_ref() == Some(&key)
            && self.rows < rows_max.max(1)
            && self.bytes + bytes <= BATCH_BYTES_MAX
            && matches!(op.action, Action::Write(_));
        if fits {
            self.rows += 1;
            self.bytes += bytes;
        } else {
            self.key = Some(key);
            self.rows = 1;
            self.bytes = bytes;
        }
        !fits
    }
}

/// Counts the requests of a stream of operations, table by table.
pub(crate) struct RequestTotals<'a> {
    target: &'a dyn RowTarget,
    schemas: &'a HashMap<String, Arc<TableSchema>>,
    cutter: Cutter,
    open: Option<(String, WriteKind, u64)>,
    tables: BTreeMap<String, u64>,
}

impl<'a> RequestTotals<'a> {
    pub(crate) fn new(target: &'a dyn RowTarget, schemas: &'a HashMap<String, Arc<TableSchema>>) -> Self {
        Self { target, schemas, cutter: Cutter::default(), open: None, tables: BTreeMap::new() }
    }

    /// Takes the next operation.
    pub(crate) fn push(&mut self, op: &Op) {
        let Some(schema) = self.schemas.get(&op.table) else { return };
        let rows_max = match op.action {
            Action::Write(kind) => self.target.batch_rows(schema, kind),
            Action::Upload | Action::Clear => 1,
        };
        if self.cutter.begins(op, rows_max) {
            self.close();
        }
        match op.action {
            Action::Write(kind) => {
                self.open.get_or_insert_with(|| (op.table.clone(), kind, 0)).2 += 1;
            }
            Action::Upload => {
                let column = op.content.as_ref().and_then(|content| {
                    let column = schema.content.iter().find(|column| column.column == content.column)?;
                    Some((column, content.size, content.mime.as_deref()))
                });
                let requests = column.map_or(1, |(column, size, mime)| self.target.upload_requests(column, size, mime));
                *self.tables.entry(op.table.clone()).or_default() += requests;
            }
            Action::Clear => *self.tables.entry(op.table.clone()).or_default() += 1,
        }
    }

    fn close(&mut self) {
        if let Some((table, kind, rows)) = self.open.take()
            && let Some(schema) = self.schemas.get(&table)
        {
            *self.tables.entry(table).or_default() += self.target.requests_for(schema, kind, rows);
        }
    }

    /// Requests by table, and their sum.
    pub(crate) fn finish(mut self) -> (BTreeMap<String, u64>, u64) {
        self.close();
        let total = self.tables.values().sum();
        (self.tables, total)
    }
}

/// Whole minutes that so many write requests take under the service's limits, at least: 1,200 s of execution in 5 minutes
/// (`dataverse` protocol, section 5.1) and about one second of execution for a batch.
pub(crate) fn minutes(requests: u64) -> u64 {
    // 4 s of execution a second are permitted.
    (requests * EXECUTION_MS_PER_REQUEST).div_ceil(4 * 60_000)
}
