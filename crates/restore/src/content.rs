//! Content: bytes from the vault into a row, after what was there has been stored.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_catalog::{OpOutcome, OpState};
use dynavault_model::{
    ContentColumn, ContentItem, Row, RowId, SharedContentSink, SourceError, TableSchema, Upload, UploadSource,
    WriteOutcome, scan,
};
use dynavault_vault::{ContentSpool, Vault};
use serde_json::value::RawValue;
use tokio::runtime::Handle;

use crate::RestoreError;
use crate::apply::{Applier, noted};
use crate::plan::{Action, ContentOp, Op};
use crate::settle::read_live;

/// Times an upload is begun when its answer is lost each time.
const UPLOADS_MAX: u32 = 4;

/// A content object of the vault.
struct FromVault {
    vault: Vault,
    handle: Handle,
    environment: String,
    sha256: String,
    encrypted: bool,
}

impl UploadSource for FromVault {
    fn open(&self) -> io::Result<Box<dyn io::Read + Send>> {
        self.vault.content(&self.handle, &self.environment, &self.sha256, self.encrypted).map_err(io::Error::other)
    }
}

impl Applier {
    /// Uploads or removes one piece of content. `kept` is what an earlier process stored of what was there before it: what is
    /// there now may be what that process has put there.
    pub(crate) async fn content(
        &self,
        schema: &TableSchema,
        op: &Op,
        kept: Option<String>,
    ) -> Result<OpOutcome, RestoreError> {
        let Some(content) = &op.content else {
            return Ok(noted(op.n, OpState::Rejected, None, Some("the operation names no content".into())));
        };
        let Some(column) = schema.content.iter().find(|column| column.column == content.column) else {
            let message = format!("the table has no column {} for files in this environment", content.column);
            return Ok(noted(op.n, OpState::Rejected, Some("missing-column".into()), Some(message)));
        };
        if kept.is_none() {
            let before = match self.live_item(schema, column, op).await? {
                Some(item) => self.keep(schema, column, &item).await?,
                None => None,
            };
            // An empty list says that there was nothing.
            let before = serde_json::to_string(before.as_slice()).ok();
            self.journal(OpOutcome { before, ..noted(op.n, OpState::Sent, None, None) }).await?;
        }
        self.put(schema, column, op, content).await
    }

    async fn put(
        &self,
        schema: &TableSchema,
        column: &ContentColumn,
        op: &Op,
        content: &ContentOp,
    ) -> Result<OpOutcome, RestoreError> {
        let (target, options, call) = (&self.parts.target, &self.parts.options, &self.parts.call);
        let mut last = None;
        for _ in 0..UPLOADS_MAX {
            let answer = match (&content.sha256, op.action) {
                (Some(sha256), Action::Upload) => {
                    let source = FromVault {
                        vault: self.parts.vault.clone(),
                        handle: Handle::current(),
                        environment: self.parts.content_from.clone(),
                        sha256: sha256.clone(),
                        encrypted: content.encrypted,
                    };
                    let upload = Upload {
                        name: content.name.clone(),
                        mime: content.mime.clone(),
                        size: content.size,
                        source: Arc::new(source),
                    };
                    target.upload(schema, column, &op.key, &upload, options, call).await?
                }
                _ => target.clear(schema, column, &op.key, options, call).await?,
            };
            match answer {
                WriteOutcome::Done => return Ok(noted(op.n, OpState::Done, None, None)),
                WriteOutcome::Unchanged => return Ok(noted(op.n, OpState::Unchanged, None, None)),
                WriteOutcome::Conflict { message } => return Ok(noted(op.n, OpState::Conflict, None, Some(message))),
                WriteOutcome::Rejected(rejection) => {
                    return Ok(noted(op.n, OpState::Rejected, Some(rejection.code), Some(rejection.message)));
                }
                // The same bytes may be put there twice.
                WriteOutcome::Unknown { message } => last = Some(message),
                WriteOutcome::NotSent => {}
            }
        }
        Err(RestoreError::Environment(SourceError::Exhausted {
            what: format!("uploading {} of row {} of table {}", content.column, op.key.id, schema.table),
            tries: UPLOADS_MAX,
            elapsed: std::time::Duration::ZERO,
            limit: format!("UPLOADS_MAX = {UPLOADS_MAX}"),
            last: last.unwrap_or_default(),
        }))
    }

    /// What a row's column holds now, if anything.
    async fn live_item(
        &self,
        schema: &TableSchema,
        column: &ContentColumn,
        op: &Op,
    ) -> Result<Option<ContentItem>, RestoreError> {
        let keys = [op.key.clone()];
        let live = read_live(self.parts.target.as_ref(), schema, &keys, &self.parts.call).await?;
        Ok(live.get(&op.key).and_then(|row| row.with(|row| item(schema, column, row)).flatten()))
    }

    /// Stores all content of a row that is about to be deleted; its description as JSON.
    pub(crate) async fn content_of_row(&self, schema: &TableSchema, op: &Op) -> Result<Option<String>, RestoreError> {
        let Some(from) = op.from.as_deref() else { return Ok(None) };
        let mut kept = Vec::new();
        for column in &schema.content {
            if let Some(item) = with_row(from, |row| item(schema, column, row)).flatten()
                && let Some(content) = self.keep(schema, column, &item).await?
            {
                kept.push(content);
            }
        }
        Ok(if kept.is_empty() { None } else { serde_json::to_string(&kept).ok() })
    }

    /// Stores content that is about to be replaced.
    async fn keep(
        &self,
        schema: &TableSchema,
        column: &ContentColumn,
        item: &ContentItem,
    ) -> Result<Option<ContentOp>, RestoreError> {
        let writer = self.parts.vault.writer(&self.parts.records_in);
        let encrypted = writer.is_encrypted();
        let spool = Arc::new(Mutex::new(ContentSpool::new(&writer, Path::new(&self.parts.scratch))));
        let sink: SharedContentSink = Arc::clone(&spool) as SharedContentSink;
        let end = match self.parts.source.read_content(schema, column, item, sink, &self.parts.call).await {
            Ok(end) => end,
            Err(SourceError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let handle = Handle::current();
        let stored =
            tokio::task::spawn_blocking(move || spool.lock().unwrap_or_else(PoisonError::into_inner).store(&handle))
                .await
                .map_err(|error| RestoreError::Worker(error.to_string()))??;
        Ok(Some(ContentOp {
            column: column.column.clone(),
            sha256: Some(stored.sha256),
            encrypted,
            size: stored.bytes,
            name: end.name.or_else(|| item.name.as_ref().and_then(|name| serde_json::from_str(name).ok())),
            mime: end.mime,
        }))
    }
}

fn with_row<T>(value: &RawValue, with: impl FnOnce(&Row<'_>) -> T) -> Option<T> {
    let bytes = value.get().as_bytes();
    let mut members = Vec::new();
    scan(bytes, &mut members).ok()?;
    Some(with(&Row::new(bytes, &members)))
}

/// The content of a column as a captured row names it; `None` where there is none.
pub(crate) fn item(schema: &TableSchema, column: &ContentColumn, row: &Row<'_>) -> Option<ContentItem> {
    let present = row.get(&column.presence_member)?;
    if matches!(present, b"null" | b"false" | b"0" | b"\"\"") {
        return None;
    }
    let version = row.get(&column.version_member).filter(|value| *value != b"null")?;
    let key: String = serde_json::from_slice(row.get(schema.key.first()?)?).ok()?;
    let id: RowId = schema.row_id(row)?;
    let name = column.name_member.as_ref().and_then(|member| row.get(member)).filter(|name| *name != b"null");
    Some(ContentItem {
        row: id,
        key,
        column: column.column.clone(),
        version: String::from_utf8_lossy(version).into_owned(),
        name: name.map(|name| String::from_utf8_lossy(name).into_owned()),
        bytes: None,
    })
}
