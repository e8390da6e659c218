//! What a plan asks the environment: the rows as they are now, the recycle bin, counterparts of users and units, and whether
//! rows exist that are named from within the plan.

use std::collections::HashMap;
use std::sync::Arc;

use dynavault_model::{RowId, RowKey, RowTarget, SourceError, TableSchema};
use futures::StreamExt;

use crate::error::RestoreError;
use crate::live::{self, Live, Packed, State, Wanted};
use crate::mapping::{Known, MAPPED_TABLES, Mapping, MappingFile, check_base_currency};
use crate::settle::key_of;
use crate::tables::{Role, Tables};
use crate::work::Work;

/// Tables read at once: each has a scratch file and may hold its largest row.
const TABLES_AT_ONCE: usize = 4;
/// Keys asked for in one look into the recycle bin.
const BIN_KEYS: usize = 500;

impl Work {
    /// Reads the live side of every table with rows in the plan.
    pub(crate) fn read_live(&mut self, hashes_count: bool) -> Result<(), RestoreError> {
        let numbers: Vec<u16> = (0..self.tables.len())
            .filter(|number| {
                let table = self.tables.get(*number);
                table.is_rows() && (!table.ids.is_empty() || (self.mirror && table.whole))
            })
            .collect();
        let approximate = self.approximate(&numbers)?;
        let mut jobs = Vec::with_capacity(numbers.len());
        for number in numbers {
            let table = self.tables.get(number);
            let others = self.mirror && table.whole;
            let rows = self.captured.table(usize::from(number)).live_rows;
            let rows = approximate.get(&table.name).copied().unwrap_or(rows);
            let by_key = !others && live::by_key_is_cheaper(table.target(), table.ids.len() as u64, rows);
            let keys = if by_key { Some(self.keys(number)?) } else { None };
            let hashes = if hashes_count && self.mapping.identity {
                self.captured.hashes(usize::from(number), &table.ids)?
            } else {
                Vec::new()
            };
            let wanted = Wanted { schema: Arc::clone(table.target()), ids: Arc::clone(&table.ids), hashes, others };
            jobs.push((number, wanted, keys));
        }
        let (source, target) = (self.source.as_ref(), self.target.as_ref());
        let (scratch, call) = (&self.scratch, &self.call);
        let reads = futures::stream::iter(jobs)
            .map(|(number, wanted, keys)| async move {
                let live = match keys {
                    Some(keys) => live::compare_keys(target, wanted, &keys, scratch, call).await,
                    None => live::compare_whole(source, wanted, scratch, call).await,
                };
                (number, live)
            })
            .buffer_unordered(TABLES_AT_ONCE)
            .collect::<Vec<_>>();
        for (number, live) in self.captured.handle.block_on(reads) {
            self.take_live(number, live)?;
        }
        Ok(())
    }

    fn take_live(&mut self, number: u16, live: Result<Live, RestoreError>) -> Result<(), RestoreError> {
        let table = self.tables.get_mut(number);
        match live {
            Ok(live) => {
                if live.oversized > 0 {
                    let message = "live rows are too large to be compared; they look as if they were not there";
                    self.findings.table("oversized", &table.name, live.oversized, message);
                }
                table.states = live.states;
                table.live = Some(live.rows);
                table.others = live.others;
                Ok(())
            }
            // One table that cannot be read does not stop the others; its rows are not planned.
            Err(RestoreError::Environment(SourceError::Refused { reason, .. })) => {
                let message = format!("the table cannot be read in the environment: {reason}");
                self.findings.table("unreadable-table", &table.name, table.ids.len() as u64, message.clone());
                table.role = Role::Left("unreadable-table", message);
                table.ids = Arc::default();
                table.states = Vec::new();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Row counts of the tables, where it matters whether a table is large.
    fn approximate(&self, numbers: &[u16]) -> Result<HashMap<String, u64>, RestoreError> {
        let partial = |number: &&u16| {
            let rows = self.captured.table(usize::from(**number)).live_rows;
            (self.tables.get(**number).ids.len() as u64) < rows
        };
        let schemas: Vec<TableSchema> = numbers
            .iter()
            .filter(partial)
            .map(|number| TableSchema {
                definition: serde_json::Value::Null,
                ..self.tables.get(*number).target().as_ref().clone()
            })
            .collect();
        if schemas.is_empty() || self.mirror {
            return Ok(HashMap::new());
        }
        let counts = self.captured.handle.block_on(self.source.approximate_rows(&schemas, &self.call))?;
        Ok(counts.into_iter().collect())
    }

    /// Keys of the rows of the plan. A key of several parts is only in the captured row.
    fn keys(&self, number: u16) -> Result<Vec<RowKey>, RestoreError> {
        let table = self.tables.get(number);
        if table.target().key.len() == 1 {
            return Ok(table.ids.iter().map(|id| RowKey::new(id.to_string())).collect());
        }
        let mut keys = Vec::with_capacity(table.ids.len());
        self.captured.each(usize::from(number), &table.ids, |_, row| {
            keys.extend(key_of(&table.source().key, row));
            Ok(())
        })?;
        Ok(keys)
    }

    /// Looks which of the absent rows the service keeps in its recycle bin.
    pub(crate) fn look_into_bin(&mut self) -> Result<(), RestoreError> {
        // A bin holds the rows of its own environment.
        if !self.mapping.identity {
            return Ok(());
        }
        for number in self.tables.with_rows() {
            let table = self.tables.get(number);
            if !self.abilities.recycle_bin.contains(&table.name) || table.target().key.len() != 1 {
                continue;
            }
            let absent = |at: &usize| table.states[*at].state() == State::Absent;
            let absent: Vec<usize> = (0..table.ids.len()).filter(absent).collect();
            let mut binned = Vec::new();
            for block in absent.chunks(BIN_KEYS) {
                self.stopped()?;
                let keys: Vec<RowKey> = block.iter().map(|at| RowKey::new(table.ids[*at].to_string())).collect();
                let found = self.captured.handle.block_on(self.target.in_bin(table.target(), &keys, &self.call))?;
                binned.extend(found.iter().filter_map(|key| {
                    let id = RowId::from_guid(key.id.as_bytes())?;
                    table.ids.binary_search(&id).ok()
                }));
            }
            let states = &mut self.tables.get_mut(number).states;
            for at in binned {
                states[at] = Packed::BINNED;
            }
        }
        Ok(())
    }

    /// Notes the rows whose keys have several parts by the first part: a lookup knows only that one (`dataverse` protocol,
    /// section 8.12).
    pub(crate) fn index_first_parts(&mut self) -> Result<(), RestoreError> {
        for number in self.tables.with_rows() {
            let table = self.tables.get(number);
            let [key, _, ..] = table.source().key.as_slice() else { continue };
            let mut parts = Vec::with_capacity(table.ids.len());
            self.captured.each(usize::from(number), &table.ids, |at, row| {
                parts.extend(row.get(key).map(|part| (RowId::of_key(&[part]), at as u32)));
                Ok(())
            })?;
            parts.sort_unstable();
            self.tables.get_mut(number).first_parts = parts;
        }
        Ok(())
    }

    /// Finds the counterparts of users, teams, units, currencies, roles and queues.
    pub(crate) fn map_references(&mut self, file: &MappingFile) -> Result<(), RestoreError> {
        let (mut captured, mut live) = (HashMap::new(), HashMap::new());
        for table in MAPPED_TABLES {
            self.stopped()?;
            if let Some(number) = self.tables.number(table) {
                let (_, schema) = self.captured.schemas(&[usize::from(number)])?.remove(0);
                let mut rows = Vec::new();
                self.captured.all(usize::from(number), |_, row| {
                    rows.extend(Known::read(table, &schema, row));
                    Ok(())
                })?;
                captured.insert(table, rows);
            }
            if let Some(schema) = self.live_schema(table) {
                let own = Arc::clone(&schema);
                let make = move |row: &dynavault_model::Row<'_>| Ok(Known::read(table, &own, row));
                let read = live::gather(self.source.as_ref(), &schema, make, &self.call);
                let mut rows = self.captured.handle.block_on(read)?;
                rows.reverse();
                rows.sort_by_key(|row| row.id);
                rows.dedup_by_key(|row| row.id);
                live.insert(table, rows);
            }
        }
        let base = |rows: &HashMap<&'static str, Vec<Known>>, id: Option<&String>| {
            let id = RowId::from_guid(id?.as_bytes())?;
            rows.get("transactioncurrency")?.iter().find(|row| row.id == Some(id)).cloned()
        };
        let captured_base = base(&captured, self.captured.manifest.identity.base_currency_id.as_ref());
        let live_base = base(&live, self.abilities.base_currency_id.as_ref());
        check_base_currency(captured_base.as_ref(), live_base.as_ref())?;
        if captured_base.is_none() || live_base.is_none() {
            let message = "the base currencies of the two environments could not be compared";
            self.findings.table("base-currency", "", 0, message);
        }
        self.mapping = Mapping::new(&captured, &live, file)?;
        Ok(())
    }

    /// Schema in the environment of any table.
    pub(crate) fn live_schema(&self, table: &str) -> Option<Arc<TableSchema>> {
        schema_of(&self.tables, &self.listings, table)
    }

    /// Asks which of the rows exist that are named from within the plan and are not part of it.
    pub(crate) fn ask_outside(&mut self) -> Result<(), RestoreError> {
        let asked = self.outside.asked();
        let target: &dyn RowTarget = self.target.as_ref();
        let call = &self.call;
        let jobs: Vec<(usize, Option<Arc<TableSchema>>, Vec<RowId>)> = asked
            .into_iter()
            .enumerate()
            .map(|(at, (table, ids))| (at, schema_of(&self.tables, &self.listings, &table), ids))
            .collect();
        let mut found: Vec<Vec<RowId>> = vec![Vec::new(); jobs.len()];
        let reads = futures::stream::iter(jobs)
            .map(|(at, schema, ids)| async move {
                let existing = match &schema {
                    Some(schema) => live::existing(target, schema, &ids, call).await,
                    // The environment does not have the table, so it does not have its rows.
                    None => Ok(Vec::new()),
                };
                (at, schema, existing, ids)
            })
            .buffer_unordered(TABLES_AT_ONCE)
            .collect::<Vec<_>>();
        for (at, schema, existing, ids) in self.captured.handle.block_on(reads) {
            found[at] = match existing {
                Ok(existing) => existing,
                // Not allowed to look is not the same as not there: the service will say when the lookup is written.
                Err(RestoreError::Environment(SourceError::Refused { reason, .. })) => {
                    let table = schema.map(|schema| schema.table.name.clone()).unwrap_or_default();
                    let message = format!("rows of the table cannot be looked for: {reason}");
                    self.findings.table("unchecked-target", &table, ids.len() as u64, message);
                    ids
                }
                Err(error) => return Err(error),
            };
        }
        self.outside.answered(&found);
        Ok(())
    }
}

fn schema_of(tables: &Tables, listings: &[dynavault_model::TableListing], table: &str) -> Option<Arc<TableSchema>> {
    if let Some(number) = tables.number(table) {
        return tables.get(number).target.clone();
    }
    let listing = listings.iter().find(|listing| listing.table.name == table)?;
    listing.schema.as_ref().ok().cloned().map(Arc::new)
}
