//! How operations are cut into requests. The planner counts with the same rule that applying follows, so that the number
//! of calls in a plan is the number of calls made when nothing is refused.

use dynavault_model::{RowTarget, TableSchema, WriteKind};

use crate::plan::{Action, Op, Step};

/// Most bytes of values in one batch: with a few batches under way at once, memory stays inside the budget.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Bytes of content in one request (`dataverse` protocol, section 7.1: the service's own block size).
const CONTENT_BLOCK_BYTES: u64 = 4 << 20;
/// Requests for a piece of content beside its blocks: opening and closing the upload.
const CONTENT_FRAME_REQUESTS: u64 = 2;

/// What operations must share to go into one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchKey {
    pub(crate) step: Step,
    pub(crate) wave: u32,
    pub(crate) table: String,
    pub(crate) action: Action,
    /// Guards of different kinds are different requests.
    guarded: bool,
}

impl BatchKey {
    pub(crate) fn of(op: &Op) -> Self {
        Self {
            step: op.step,
            wave: op.wave,
            table: op.table.clone(),
            action: op.action,
            guarded: matches!(op.guard, dynavault_model::Guard::Unchanged(_)),
        }
    }
}

/// Bytes of the values an operation carries.
pub(crate) fn weight(op: &Op) -> usize {
    let raw = |value: &Option<Box<serde_json::value::RawValue>>| value.as_ref().map_or(0, |value| value.get().len());
    let rows = |rows: &[Box<serde_json::value::RawValue>]| rows.iter().map(|row| row.get().len()).sum::<usize>();
    raw(&op.set) + raw(&op.from) + raw(&op.close) + rows(&op.parties) + rows(&op.from_parties) + 128
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
pub(crate) struct RequestCounter<'a> {
    target: &'a dyn RowTarget,
    cutter: Cutter,
    open: Option<(WriteKind, u64)>,
}

impl<'a> RequestCounter<'a> {
    pub(crate) fn new(target: &'a dyn RowTarget) -> Self {
        Self { target, cutter: Cutter::default(), open: None }
    }

    /// Takes the next operation; gives the requests that are certain by now. `schema` is of the operation's table, `before`
    /// of the operation before it.
    pub(crate) fn push(&mut self, op: &Op, schema: &TableSchema, before: Option<&TableSchema>) -> (u64, u64) {
        match op.action {
            Action::Write(kind) => {
                let rows_max = self.target.batch_rows(schema, kind);
                let mut done = 0;
                if self.cutter.begins(op, rows_max) {
                    done = before.map_or(0, |before| self.close(before));
                    self.open = Some((kind, 0));
                }
                if let Some((_, rows)) = self.open.as_mut() {
                    *rows += 1;
                }
                (done, 0)
            }
            Action::Upload | Action::Clear => {
                let done = before.map_or(0, |before| self.close(before));
                let _begins = self.cutter.begins(op, 1);
                let size = op.content.as_ref().map_or(0, |content| content.size);
                let requests = match op.action {
                    Action::Upload => size.div_ceil(CONTENT_BLOCK_BYTES).max(1) + CONTENT_FRAME_REQUESTS,
                    _ => 1,
                };
                (done, requests)
            }
        }
    }

    /// Requests of the batch that is open; its table is `schema`.
    pub(crate) fn close(&mut self, schema: &TableSchema) -> u64 {
        self.open.take().map_or(0, |(kind, rows)| self.target.requests_for(schema, kind, rows))
    }
}
