//! Reading back what a restore wrote: rows in blocks beside the snapshot, links by pairs, files by their hash.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_catalog::Catalog;
use dynavault_model::{
    Call, ContentSink, Deletion, PageRequest, Row, RowId, RowKey, RowSink, RowSource, RowTarget, RunId,
    SharedContentSink, SharedSink, SourceError, Stopped, TableSchema, Treatment, WriteKind, WriteOptions, scan,
};
use dynavault_vault::{Manifest, TableReader, Vault, VaultError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::RestoreError;
use crate::apply::Journal;
use crate::content::item;
use crate::history::{Histories, RowHistory, TableHistory};
use crate::plan::{Action, Op};
use crate::prove::{Difference, Proof, Prover, UNEXPLAINED};
use crate::settle::read_live;

/// Rows compared at a time.
const BLOCK_ROWS: usize = 200;
/// Rows of the snapshot on their way to being compared.
const ROWS_AHEAD: usize = 64;
/// Up to so many rows are looked up one by one; more are found in one pass over the table.
const FIND_ROWS_MAX: usize = 64;
/// Memory for bringing the rows of a snapshot's table into order.
const SORT_BYTES: usize = 32 << 20;
/// Content up to this size is read again and compared (`dataverse` protocol, rule 7.2).
const CONTENT_BYTES_MAX: u64 = 16 << 20;

/// Rows of the snapshot, as they are read.
type SnapshotRows = mpsc::Receiver<Result<(RowId, Vec<u8>), RestoreError>>;

/// What proving needs.
pub struct ProveParts {
    /// The environment, for whole tables and content.
    pub source: Arc<dyn RowSource>,
    /// The environment, for rows by key.
    pub target: Arc<dyn RowTarget>,
    /// The vault.
    pub vault: Vault,
    /// The snapshot that was restored; none for an undo, where only written values are compared.
    pub manifest: Option<Arc<Manifest>>,
    /// The journal.
    pub catalog: Catalog,
    /// Counting and stopping.
    pub call: Call,
    /// Present schemas of the tables of the plan.
    pub schemas: HashMap<String, Arc<TableSchema>>,
    /// Folder for files in passing.
    pub scratch: PathBuf,
    /// How writes were made.
    pub options: WriteOptions,
    /// Our own user in the environment.
    pub user: String,
}

/// The operations of a run with their outcomes, by table and row; also operations that were not tried, where `untried` wants them.
pub(crate) async fn histories(
    catalog: &Catalog,
    run: RunId,
    scratch: &std::path::Path,
    mut ops: crate::apply::Ops,
    untried: impl Fn(&Op) -> bool,
) -> Result<Histories, RestoreError> {
    let mut journal = Journal::default();
    let mut histories = Histories::default();
    while let Some(op) = ops.recv().await {
        let op = op?;
        let outcome = journal.state(catalog, run, op.n).await?;
        if outcome.is_some() || untried(&op) {
            histories.push(scratch, op, outcome)?;
        }
    }
    Ok(histories)
}

/// Reads back everything a run wrote and compares it.
pub async fn prove(parts: &ProveParts, run: RunId, ops: crate::apply::Ops) -> Result<Proof, RestoreError> {
    let mut histories = histories(&parts.catalog, run, &parts.scratch, ops, |_| false).await?;
    let mut proof = Proof::default();
    for (table, history) in &mut histories.tables {
        let Some(schema) = parts.schemas.get(table) else { continue };
        match parts.target.rules(schema).treatment {
            Treatment::Links { first, second } => {
                let ends = (first.member, second.member);
                parts.prove_links(schema, &ends, history, &mut proof).await?;
            }
            _ => parts.prove_rows(schema, history, &mut proof).await?,
        }
    }
    Ok(proof)
}

impl ProveParts {
    async fn prove_rows(
        &self,
        schema: &Arc<TableSchema>,
        history: &mut TableHistory,
        proof: &mut Proof,
    ) -> Result<(), RestoreError> {
        let rules = self.target.rules(schema);
        let table = schema.table.name.clone();
        let prover = Prover { table: &table, rules: &rules, options: &self.options, user: &self.user };
        let mut made = Vec::new();
        let mut rows = history.rows();
        while let Some(row) = rows.next_row()? {
            if row.was_created() {
                made.push(row.id);
            }
        }
        let mut snapshot = self.snapshot_rows(&table, made);
        let mut ahead: Option<(RowId, Vec<u8>)> = None;
        let mut rows = history.rows();
        let mut ended = false;
        while !ended {
            let mut block: Vec<(RowHistory, Option<Vec<u8>>)> = Vec::with_capacity(BLOCK_ROWS);
            while block.len() < BLOCK_ROWS {
                let Some(row) = rows.next_row()? else {
                    ended = true;
                    break;
                };
                let mut captured = None;
                if row.was_created()
                    && let Some(snapshot) = &mut snapshot
                {
                    while ahead.as_ref().is_none_or(|(id, _)| *id < row.id) {
                        match snapshot.recv().await {
                            Some(next) => ahead = Some(next?),
                            None => break,
                        }
                    }
                    captured = ahead.take_if(|(id, _)| *id == row.id).map(|(_, bytes)| bytes);
                }
                block.push((row, captured));
            }
            self.prove_block(schema, &prover, &block, proof).await?;
        }
        Ok(())
    }

    async fn prove_block(
        &self,
        schema: &Arc<TableSchema>,
        prover: &Prover<'_>,
        block: &[(RowHistory, Option<Vec<u8>>)],
        proof: &mut Proof,
    ) -> Result<(), RestoreError> {
        let keys: Vec<RowKey> =
            block.iter().filter_map(|(row, _)| row.tried.first().map(|tried| tried.op.key.clone())).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let live = read_live(self.target.as_ref(), schema, &keys, &self.call).await?;
        for (row, captured) in block {
            let now = row.tried.first().and_then(|tried| live.get(&tried.op.key));
            let mut members = Vec::new();
            // A row that an undo makes again is compared with what it was.
            let captured = captured.as_deref().or_else(|| row.remade_from().map(|row| row.get().as_bytes()));
            let captured = captured.filter(|bytes| scan(bytes, &mut members).is_ok());
            let captured = captured.map(|bytes| Row::new(bytes, &members));
            prover.compare(row, captured.as_ref(), now, proof);
            for tried in row.tried.iter().filter(|tried| tried.done && tried.op.action == Action::Upload) {
                let same = match now.and_then(|now| now.with(|now| content_item(schema, &tried.op, now)).flatten()) {
                    Some((column, item)) => self.same_content(schema, &column, &item, &tried.op, proof).await?,
                    None => false,
                };
                if !same {
                    proof.add(Difference {
                        table: schema.table.name.clone(),
                        id: tried.op.key.id.clone(),
                        column: tried.op.content.as_ref().map(|content| content.column.clone()),
                        reason: UNEXPLAINED.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    async fn same_content(
        &self,
        schema: &TableSchema,
        column: &dynavault_model::ContentColumn,
        item: &dynavault_model::ContentItem,
        op: &Op,
        proof: &mut Proof,
    ) -> Result<bool, RestoreError> {
        let Some(wanted) = &op.content else { return Ok(false) };
        if wanted.size > CONTENT_BYTES_MAX {
            proof.content_not_compared += 1;
            return Ok(true);
        }
        let hash = Arc::new(Mutex::new(Gathered::default()));
        let sink: SharedContentSink = Arc::clone(&hash) as SharedContentSink;
        match self.source.read_content(schema, column, item, sink, &self.call).await {
            Ok(_) => {}
            Err(SourceError::NotFound { .. } | SourceError::SinkStopped) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        proof.content += 1;
        let gathered = hash.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(wanted.sha256.as_deref() == Some(dynavault_vault::sha256_hex(&gathered.0).as_str()))
    }

    /// Rows of the snapshot with these ids, in order of ids.
    fn snapshot_rows(&self, table: &str, ids: Vec<RowId>) -> Option<SnapshotRows> {
        let manifest = self.manifest.clone().filter(|_| !ids.is_empty())?;
        let at = manifest.tables.iter().position(|entry| entry.table == table)?;
        let (sender, receiver) = mpsc::channel(ROWS_AHEAD);
        let (vault, handle, scratch) = (self.vault.clone(), Handle::current(), self.scratch.clone());
        let cancel = self.call.cancel.clone();
        tokio::task::spawn_blocking(move || {
            let reader = TableReader::new(&vault, handle, &manifest.environment, &manifest.tables[at], cancel);
            let send = |row: Result<(RowId, Vec<u8>), RestoreError>| {
                sender.blocking_send(row).map_err(|_| VaultError::Cancelled)
            };
            let result = if ids.len() <= FIND_ROWS_MAX {
                ids.iter().try_for_each(|id| match reader.find(*id)? {
                    Some(bytes) => send(Ok((*id, bytes))),
                    None => Ok(()),
                })
            } else {
                let mut next = 0;
                reader.sorted(&scratch, SORT_BYTES, |id, row| {
                    while next < ids.len() && ids[next] < id {
                        next += 1;
                    }
                    if ids.get(next) == Some(&id) { send(Ok((id, row.bytes().to_vec()))) } else { Ok(()) }
                })
            };
            if let Err(error) = result {
                // Nobody listens any more when the proof has failed for another reason.
                drop(sender.blocking_send(Err(error.into())));
            }
        });
        Some(receiver)
    }

    async fn prove_links(
        &self,
        schema: &Arc<TableSchema>,
        ends: &(String, String),
        history: &mut TableHistory,
        proof: &mut Proof,
    ) -> Result<(), RestoreError> {
        let pairs = Arc::new(Mutex::new(Pairs { ends: ends.clone(), found: HashSet::new() }));
        let mut request = PageRequest::First { tracked: false };
        loop {
            let sink: SharedSink = Arc::clone(&pairs) as SharedSink;
            let end = self.source.read_page(schema, &request, sink, &self.call).await?;
            match end.next {
                Some(next) => request = PageRequest::Link(next),
                None => break,
            }
        }
        let pairs = pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = history.rows();
        while let Some(row) = rows.next_row()? {
            for tried in row.tried.iter().filter(|tried| tried.done) {
                let Some(set) = tried.op.set.as_deref().or(tried.op.from.as_deref()) else { continue };
                let mut members = Vec::new();
                if scan(set.get().as_bytes(), &mut members).is_err() {
                    continue;
                }
                let Some(pair) = pair_of(ends, &Row::new(set.get().as_bytes(), &members)) else { continue };
                proof.links += 1;
                let wanted = tried.op.action != Action::Write(WriteKind::Delete);
                if pairs.found.contains(&pair) != wanted {
                    proof.add(Difference {
                        table: schema.table.name.clone(),
                        id: tried.op.key.id.clone(),
                        column: None,
                        reason: UNEXPLAINED.to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The content of an operation as the row names it now.
fn content_item(
    schema: &TableSchema,
    op: &Op,
    now: &Row<'_>,
) -> Option<(dynavault_model::ContentColumn, dynavault_model::ContentItem)> {
    let content = op.content.as_ref()?;
    let column = schema.content.iter().find(|column| column.column == content.column)?;
    Some((column.clone(), item(schema, column, now)?))
}

/// Content of modest size.
#[derive(Default)]
struct Gathered(Vec<u8>);

impl ContentSink for Gathered {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        if self.0.len() + bytes.len() > CONTENT_BYTES_MAX as usize {
            return Err(Stopped);
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn restarted(&mut self) {
        self.0.clear();
    }
}

/// Pairs of ids of a link table.
struct Pairs {
    ends: (String, String),
    found: HashSet<(RowId, RowId)>,
}

fn pair_of(ends: &(String, String), row: &Row<'_>) -> Option<(RowId, RowId)> {
    Some((RowId::of_key(&[row.get(&ends.0)?]), RowId::of_key(&[row.get(&ends.1)?])))
}

impl RowSink for Pairs {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        self.found.extend(pair_of(&self.ends, row));
        Ok(())
    }

    fn deleted(&mut self, _deletion: Deletion) -> Result<(), Stopped> {
        Ok(())
    }

    fn oversized(&mut self, _start: &[u8], _bytes: u64) -> Result<(), Stopped> {
        Ok(())
    }

    fn restarted(&mut self) {}

    fn row_bytes_max(&self) -> usize {
        1 << 20
    }
}
