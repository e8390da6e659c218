//! What a target learns once and keeps: names of tables, which tables take bulk messages, how custom logic is bypassed, and
//! the definitions of tables that are written along with others.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use dynavault_model::{Call, SourceError, TableRef, TableSchema};
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::metadata::{LIST_BYTES_MAX, Metadata};
use crate::refusals;
use crate::source::{DataverseSource, lock};
use crate::wire::Sets;

/// Largest list of tables that take a message.
const MESSAGES_BYTES_MAX: usize = 8 << 20;
/// Pages of that list; a page holds 5,000 tables.
const MESSAGES_PAGES_MAX: usize = 4;

/// Tables that take bulk messages (section 6.12).
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    pub(crate) create: HashSet<String>,
    pub(crate) update: HashSet<String>,
}

/// How custom logic is bypassed (section 6.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Bypass {
    /// Synchronous and asynchronous logic.
    #[default]
    All,
    /// Synchronous logic only, with the older header.
    SynchronousOnly,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Known {
    sets: OnceCell<Sets>,
    bulk: OnceCell<Bulk>,
    related: Mutex<HashMap<String, Arc<TableSchema>>>,
    pub(crate) bypass: OnceCell<Bypass>,
    /// The service refuses to keep the time of creation.
    pub(crate) creation_refused: AtomicBool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TableName {
    logical_name: String,
    #[serde(default)]
    entity_set_name: Option<String>,
}

#[derive(Deserialize)]
struct List<T> {
    value: Vec<T>,
    #[serde(rename = "@odata.nextLink")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct MessageFilter {
    primaryobjecttypecode: Option<String>,
}

impl Known {
    /// Entity set names of all tables.
    pub(crate) async fn sets(&self, source: &DataverseSource, call: &Call) -> Result<&Sets, SourceError> {
        self.sets
            .get_or_try_init(|| async {
                let path = "EntityDefinitions?$select=LogicalName,EntitySetName";
                let list: List<TableName> = get(source, path, LIST_BYTES_MAX, call).await?;
                let named =
                    list.value.into_iter().filter_map(|table| Some((table.logical_name, table.entity_set_name?)));
                Ok(Sets::new(named))
            })
            .await
    }

    /// Tables that take bulk messages. A service that does not say has none: rows are then written in batches.
    pub(crate) async fn bulk(&self, source: &DataverseSource, call: &Call) -> Result<&Bulk, SourceError> {
        self.bulk
            .get_or_try_init(|| async {
                let create = tables_of(source, "CreateMultiple", call).await?;
                let update = tables_of(source, "UpdateMultiple", call).await?;
                Ok(Bulk { create, update })
            })
            .await
    }

    /// The same, if it has been asked for.
    pub(crate) fn bulk_so_far(&self) -> Option<&Bulk> {
        self.bulk.get()
    }

    /// The definition of a table that is written along with another.
    pub(crate) async fn related(
        &self,
        source: &DataverseSource,
        table: &str,
        call: &Call,
    ) -> Result<Arc<TableSchema>, SourceError> {
        if let Some(schema) = lock(&self.related).get(table) {
            return Ok(Arc::clone(schema));
        }
        let slot = source.slot("");
        let listing = Metadata { client: &source.client, slot: &slot, call }.table(&TableRef::ce(table)).await?;
        let schema = listing.schema.map_err(|refusal| SourceError::Refused {
            table: TableRef::ce(table),
            reason: refusal.reason,
            remedy: refusal.remedy,
        })?;
        let schema = Arc::new(schema);
        lock(&self.related).insert(table.to_string(), Arc::clone(&schema));
        Ok(schema)
    }
}

async fn get<T: for<'de> Deserialize<'de>>(
    source: &DataverseSource,
    path: &str,
    bytes_max: usize,
    call: &Call,
) -> Result<T, SourceError> {
    let slot = source.slot("");
    let reply = source.client.get(&slot, path, None, &[], bytes_max, call).await.map_err(refusals::of_run)?;
    serde_json::from_slice(&reply.body)
        .map_err(|error| SourceError::Protocol { what: "the names of the tables".into(), detail: error.to_string() })
}

async fn tables_of(source: &DataverseSource, message: &str, call: &Call) -> Result<HashSet<String>, SourceError> {
    let slot = source.slot("");
    let mut path = format!("sdkmessagefilters?$select=primaryobjecttypecode&$filter=sdkmessageid/name eq '{message}'");
    let mut tables = HashSet::new();
    for _ in 0..MESSAGES_PAGES_MAX {
        let answer = match source.client.get(&slot, &path, None, &[], MESSAGES_BYTES_MAX, call).await {
            Ok(reply) => reply.body,
            Err(error) if error.status().is_some_and(|status| status != 401) => return Ok(HashSet::new()),
            Err(error) => return Err(refusals::of_run(error)),
        };
        let Ok(list) = serde_json::from_slice::<List<MessageFilter>>(&answer) else { return Ok(HashSet::new()) };
        tables.extend(list.value.into_iter().filter_map(|filter| filter.primaryobjecttypecode));
        match list.next {
            Some(next) => path = next,
            None => break,
        }
    }
    Ok(tables)
}
