//! The snapshot as the planner reads it. Everything here waits for the store and must run on a blocking thread.

use std::sync::Arc;

use dynavault_model::{Member, Row, RowId, TableSchema};
use dynavault_vault::{Manifest, TableManifest, TableReader, Vault, VaultError};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::RestoreError;

/// Up to so many rows of a table are looked up one by one; more are found in one pass over the table.
const FIND_ROWS_MAX: usize = 64;
/// Schema objects read at the same time.
const SCHEMAS_IN_PARALLEL: usize = 16;

/// A snapshot, for reading.
pub(crate) struct Captured {
    pub(crate) vault: Vault,
    pub(crate) handle: Handle,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) cancel: CancellationToken,
}

impl Captured {
    pub(crate) fn table(&self, table: usize) -> &TableManifest {
        &self.manifest.tables[table]
    }

    pub(crate) fn reader(&self, table: usize) -> TableReader<'_> {
        let table = &self.manifest.tables[table];
        let handle = self.handle.clone();
        TableReader::new(&self.vault, handle, &self.manifest.environment, table, self.cancel.clone())
    }

    /// Schemas of some tables, without the service's own metadata: rules come from the metadata of the environment that is
    /// written to, and that of a thousand tables would fill the memory.
    pub(crate) fn schemas(&self, tables: &[usize]) -> Result<Vec<(usize, TableSchema)>, RestoreError> {
        let read = futures::stream::iter(tables.iter().copied())
            .map(|table| async move {
                let hash = &self.manifest.tables[table].schema;
                let mut schema = self.vault.schema(&self.manifest.environment, hash).await?;
                schema.definition = serde_json::Value::Null;
                Ok::<_, RestoreError>((table, schema))
            })
            .buffer_unordered(SCHEMAS_IN_PARALLEL)
            .collect::<Vec<_>>();
        self.handle.block_on(read).into_iter().collect()
    }

    /// Ids of all rows of a table, sorted.
    pub(crate) fn ids(&self, table: usize) -> Result<Vec<RowId>, RestoreError> {
        let mut ids = Vec::with_capacity(self.table(table).live_rows as usize);
        self.reader(table).live_ids(|id, _| {
            ids.push(id);
            Ok(())
        })?;
        Ok(ids)
    }

    /// Hashes of the rows with these ids, which must be sorted; 0 for a row that is not there.
    pub(crate) fn hashes(&self, table: usize, ids: &[RowId]) -> Result<Vec<u64>, RestoreError> {
        let mut hashes = vec![0; ids.len()];
        if ids.len() <= FIND_ROWS_MAX {
            self.each(table, ids, |at, row| {
                hashes[at] = row.hash();
                Ok(())
            })?;
            return Ok(hashes);
        }
        let mut next = 0;
        self.reader(table).live_ids(|id, hash| {
            while next < ids.len() && ids[next] < id {
                next += 1;
            }
            if ids.get(next) == Some(&id) {
                hashes[next] = hash;
            }
            Ok(())
        })?;
        Ok(hashes)
    }

    /// Which of these ids, sorted, the snapshot has.
    pub(crate) fn present(&self, table: usize, ids: &[RowId]) -> Result<Vec<RowId>, RestoreError> {
        let hashes = self.hashes(table, ids)?;
        Ok(ids.iter().zip(hashes).filter(|(_, hash)| *hash != 0).map(|(id, _)| *id).collect())
    }

    /// Calls `each` with the rows that have these ids, which must be sorted, and their places among the ids, in stored order.
    pub(crate) fn each(
        &self,
        table: usize,
        ids: &[RowId],
        mut each: impl FnMut(usize, &Row<'_>) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let reader = self.reader(table);
        if ids.len() > FIND_ROWS_MAX {
            let found = |id: &RowId| ids.binary_search(id).ok();
            return ours(|stop| reader.scan(|id, row| found(&id).map_or(Ok(()), |at| stop.keep(each(at, row)))));
        }
        let mut members: Vec<Member> = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            if let Some(bytes) = reader.find(*id)? {
                dynavault_model::scan(&bytes, &mut members).map_err(|error| VaultError::Damaged {
                    object: format!("table {}", self.table(table).table),
                    detail: format!("row {id}: {error}"),
                })?;
                each(at, &Row::new(&bytes, &members))?;
            }
        }
        Ok(())
    }

    /// Calls `each` with every row of a table, in stored order.
    pub(crate) fn all(
        &self,
        table: usize,
        mut each: impl FnMut(RowId, &Row<'_>) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let reader = self.reader(table);
        ours(|stop| reader.scan(|id, row| stop.keep(each(id, row))))
    }

    /// Calls `each` with every content reference of a table.
    pub(crate) fn content(
        &self,
        table: usize,
        mut each: impl FnMut(&Row<'_>) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let reader = self.reader(table);
        ours(|stop| reader.scan_content(|_, row| stop.keep(each(row))))
    }
}

/// Carries our error past a reader that knows only its own.
#[derive(Default)]
struct Stop(Option<RestoreError>);

impl Stop {
    fn keep(&mut self, result: Result<(), RestoreError>) -> Result<(), VaultError> {
        result.map_err(|error| {
            self.0 = Some(error);
            VaultError::Cancelled
        })
    }
}

fn ours(read: impl FnOnce(&mut Stop) -> Result<(), VaultError>) -> Result<(), RestoreError> {
    let mut stop = Stop::default();
    let result = read(&mut stop);
    match stop.0 {
        Some(error) => Err(error),
        None => result.map_err(|error| match error {
            VaultError::Cancelled => RestoreError::Cancelled,
            other => RestoreError::Vault(other),
        }),
    }
}
