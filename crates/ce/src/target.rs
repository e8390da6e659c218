//! [`RowTarget`] over a Dataverse environment.

use std::sync::Arc;

use async_trait::async_trait;
use dynavault_model::{
    Abilities, Birth, Call, Clock, ContentColumn, Row, RowKey, RowTarget, RowWrite, SharedSink, SourceError,
    TableRules, TableSchema, Upload, WriteKind, WriteOptions, WriteOutcome,
};

use crate::abilities;
use crate::definition::Definition;
use crate::known::{Bypass, Known};
use crate::look;
use crate::rules;
use crate::sizes::{BATCH_ROWS, BULK_ROWS, ELASTIC_ROWS, LINK_ROWS, Sizes};
use crate::source::DataverseSource;
use crate::upload::{self, Uploader};
use crate::wire::Wire;
use crate::writer::{Writer, headers};

/// A Dataverse environment, for writing. Its source must be over a client that may write.
///
/// [`RowTarget::abilities`] also learns which tables take bulk messages; before it has been asked, [`RowTarget::batch_rows`]
/// and [`RowTarget::requests_for`] count with batches only.
pub struct DataverseTarget {
    source: Arc<DataverseSource>,
    known: Known,
    sizes: Sizes,
    clock: Arc<dyn Clock>,
}

impl DataverseTarget {
    /// A target that reads through `source` and writes through its client.
    pub fn new(source: Arc<DataverseSource>, clock: Arc<dyn Clock>) -> Self {
        Self { source, known: Known::default(), sizes: Sizes::default(), clock }
    }

    /// The environment, for reading.
    pub fn source(&self) -> &DataverseSource {
        &self.source
    }

    /// Rows of the first request of a kind. Looks at single properties only, because it is asked for every row.
    fn start(&self, table: &TableSchema, kind: WriteKind) -> usize {
        let is = |property: &str| table.definition[property].as_bool() == Some(true);
        let bulk = self.known.bulk_so_far().is_some_and(|bulk| bulk.create.contains(&table.table.name));
        match kind {
            _ if is("IsIntersect") => LINK_ROWS,
            _ if table.definition["TableType"] == "Elastic" || table.key.len() > 1 => ELASTIC_ROWS,
            WriteKind::Create if bulk && !is("IsActivity") => BULK_ROWS,
            _ => BATCH_ROWS,
        }
    }

    /// How custom logic is bypassed. Without an answer of the service, with the newer header.
    async fn bypass(&self, options: &WriteOptions, call: &Call) -> Result<Bypass, SourceError> {
        if !options.bypass_logic {
            return Ok(Bypass::default());
        }
        let ask = || async { abilities::abilities(&self.source, call).await.map(|(_, bypass)| bypass) };
        self.known.bypass.get_or_try_init(ask).await.copied()
    }

    /// The table whose rows are written along with those of `table`.
    fn related(table: &TableSchema, kind: WriteKind, rows: &[RowWrite]) -> Option<String> {
        match kind {
            WriteKind::State if rows.iter().any(|row| row.close.is_some()) => {
                rules::state::close_table(&table.table.name).map(|(close_table, _)| close_table)
            }
            WriteKind::Parties => Some("activityparty".into()),
            WriteKind::Create | WriteKind::Undelete if rows.iter().any(|row| !row.parties.is_empty()) => {
                Some("activityparty".into())
            }
            _ => None,
        }
    }
}

#[async_trait]
impl RowTarget for DataverseTarget {
    async fn abilities(&self, call: &Call) -> Result<Abilities, SourceError> {
        self.known.bulk(&self.source, call).await?;
        let (abilities, bypass) = abilities::abilities(&self.source, call).await?;
        self.known.bypass.get_or_init(|| async { bypass }).await;
        Ok(abilities)
    }

    fn rules(&self, schema: &TableSchema) -> TableRules {
        rules::rules(schema)
    }

    fn birth(&self, rules: &TableRules, row: &Row<'_>) -> Birth {
        rules::birth(rules, row)
    }

    fn has_companions(&self, rules: &TableRules) -> bool {
        // The addresses of accounts and contacts (section 8.1).
        rules.table == "customeraddress"
    }

    fn batch_rows(&self, table: &TableSchema, kind: WriteKind) -> usize {
        self.sizes.get(&table.table.name, kind, self.start(table, kind))
    }

    fn requests_for(&self, table: &TableSchema, kind: WriteKind, rows: u64) -> u64 {
        rows.div_ceil(self.batch_rows(table, kind) as u64)
    }

    fn upload_requests(&self, column: &ContentColumn, size: u64, mime: Option<&str>) -> u64 {
        upload::requests(column, size, mime)
    }

    async fn read_rows(
        &self,
        table: &TableSchema,
        keys: &[RowKey],
        sink: SharedSink,
        call: &Call,
    ) -> Result<(), SourceError> {
        look::read_rows(&self.source, table, keys, sink, call).await
    }

    async fn in_bin(&self, table: &TableSchema, keys: &[RowKey], call: &Call) -> Result<Vec<RowKey>, SourceError> {
        look::in_bin(&self.source, table, keys, call).await
    }

    async fn write(
        &self,
        table: &TableSchema,
        kind: WriteKind,
        rows: &[RowWrite],
        options: &WriteOptions,
        call: &Call,
    ) -> Result<Vec<WriteOutcome>, SourceError> {
        let sets = self.known.sets(&self.source, call).await?;
        let bulk = self.known.bulk(&self.source, call).await?;
        let related = match Self::related(table, kind, rows) {
            Some(name) => Some(self.known.related(&self.source, &name, call).await?),
            None => None,
        };
        let definition = Definition::of(table);
        let is_activity = definition.is_activity == Some(true);
        let name = &table.table.name;
        let writer = Writer {
            source: &self.source,
            table,
            definition,
            wire: Wire::new(table, sets),
            sets,
            related,
            bulk_create: bulk.create.contains(name) && !is_activity,
            bulk_update: bulk.update.contains(name),
            headers: headers(options, self.bypass(options, call).await?),
            creation_refused: &self.known.creation_refused,
            sizes: &self.sizes,
            clock: &*self.clock,
            slot: self.source.slot(name).as_ref().clone(),
            call,
        };
        writer.write(kind, rows).await
    }

    async fn upload(
        &self,
        table: &TableSchema,
        column: &ContentColumn,
        key: &RowKey,
        upload: &Upload,
        options: &WriteOptions,
        call: &Call,
    ) -> Result<WriteOutcome, SourceError> {
        self.uploading(table, column, key, options, call, Some(upload)).await
    }

    async fn clear(
        &self,
        table: &TableSchema,
        column: &ContentColumn,
        key: &RowKey,
        options: &WriteOptions,
        call: &Call,
    ) -> Result<WriteOutcome, SourceError> {
        self.uploading(table, column, key, options, call, None).await
    }
}

impl DataverseTarget {
    /// Puts content into a row, or takes it out where there is none to put.
    async fn uploading(
        &self,
        table: &TableSchema,
        column: &ContentColumn,
        key: &RowKey,
        options: &WriteOptions,
        call: &Call,
        upload: Option<&Upload>,
    ) -> Result<WriteOutcome, SourceError> {
        let sets = self.known.sets(&self.source, call).await?;
        let headers = headers(options, self.bypass(options, call).await?);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let uploader = Uploader {
            client: &self.source.client,
            slot: &self.source.slot(&table.table.name),
            table,
            column,
            key,
            wire: &Wire::new(table, sets),
            prefer: &self.source.prefer(table, false),
            headers: &headers,
            call,
        };
        match upload {
            Some(upload) => uploader.put(upload).await,
            None => uploader.clear().await,
        }
    }
}
