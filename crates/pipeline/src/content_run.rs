//! The bytes of files, images, notes and attachments, after the rows that point to them are durable.
//!
//! A failed piece of content does not fail its row: it is counted and named (`dataverse` protocol, rule 7.3), and tried again
//! by the next run, because nothing says it was captured.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_catalog::Phase;
use dynavault_model::{ContentItem, Member, Row, RowId, Scan, SharedContentSink, SourceError};
use dynavault_vault::{ContentReference, ContentSpool, SegmentKind, SegmentWriter, version_hash};
use futures::StreamExt;

use crate::error::PipelineError;
use crate::journal::ItemReader;
use crate::sink::{DurableSegment, content_id};
use crate::state::{State, write_file};
use crate::table_run::{TableRun, blocking, file_name};

/// Pieces of one table fetched at the same time; the governor decides how many really run.
const IN_PARALLEL: usize = 4;
/// Items taken from the journal at a time; after each lot the references may be made durable.
const LOT_ITEMS: usize = 64;
/// References in a content segment.
const REFERENCES_MAX: usize = 16_384;

/// What became of one item.
enum Fetched {
    Reference(RowId, Box<ContentReference>),
    /// The row or its content is gone since the row was read; the next run will see that.
    Gone,
    Refused(String),
}

impl TableRun<'_> {
    pub(crate) async fn read_content(&mut self) -> Result<(), PipelineError> {
        let path = self.shared.state_folder.join(format!("{}.items", self.schema.table.name));
        let mut writer: Option<SegmentWriter> = None;
        let mut opened = self.shared.clock.elapsed();
        let mut done = HashSet::new();
        while self.progress.items_done < self.progress.items_bytes {
            if self.shared.cancel.is_cancelled() {
                return Err(PipelineError::Cancelled);
            }
            let (items, offset) = self.take_lot(&path, &mut done).await?;
            let fetched: Vec<_> = futures::stream::iter(items.into_iter().map(|item| self.fetch(item)))
                .buffered(IN_PARALLEL)
                .collect()
                .await;
            let mut references = Vec::new();
            for result in fetched {
                match result? {
                    Fetched::Reference(id, reference) => references.push((id, reference)),
                    Fetched::Gone => {}
                    Fetched::Refused(reason) => {
                        self.progress.refused += 1;
                        if self.progress.reasons.len() < 5 {
                            self.progress.reasons.push(reason);
                        }
                    }
                }
            }
            self.progress.content_objects += references.len() as u64;
            self.progress.items_done = offset;
            if writer.is_none() {
                opened = self.shared.clock.elapsed();
            }
            writer = self.push(writer, references).await?;
            let old = self.shared.clock.elapsed().saturating_sub(opened) >= self.shared.limits.age_max;
            if old || writer.as_ref().is_some_and(|writer| writer.rows() >= REFERENCES_MAX) {
                let durable = self.finish_references(writer.take()).await?;
                self.checkpoint(Phase::Content, None, &durable).await?;
                done.clear();
            }
        }
        let durable = self.finish_references(writer).await?;
        self.finish_counts().await?;
        self.phase = Phase::Done;
        self.checkpoint(Phase::Done, None, &durable).await
    }

    /// The next items that this draft has not fetched yet, and the offset after them.
    async fn take_lot(
        &self,
        path: &std::path::Path,
        done: &mut HashSet<RowId>,
    ) -> Result<(Vec<ContentItem>, u64), PipelineError> {
        let (path, from, to) = (path.to_path_buf(), self.progress.items_done, self.progress.items_bytes);
        let captured: Vec<PathBuf> =
            self.progress.content_files.iter().map(|name| self.shared.state_folder.join(name)).collect();
        let (items, offset) = blocking(move || {
            let captured = State::open(&captured)?;
            let mut reader = ItemReader::open(&path, from, to)?;
            let mut items = Vec::new();
            let mut offset = from;
            while items.len() < LOT_ITEMS
                && let Some((item, after)) = reader.next()?
            {
                offset = after;
                // A page that was delivered twice lists its items twice.
                if captured.hash(id_of(&item))? != Some(version_hash(&item.version)) {
                    items.push(item);
                }
            }
            Ok((items, offset))
        })
        .await?;
        let items = items
            .into_iter()
            .filter(|item| done.insert(content_id(format!("{}{}", item.key, item.version).as_bytes(), &item.column)))
            .collect();
        Ok((items, offset))
    }

    async fn fetch(&self, item: ContentItem) -> Result<Fetched, PipelineError> {
        let Some(column) = self.schema.content.iter().find(|column| column.column == item.column) else {
            return Ok(Fetched::Gone);
        };
        let spool = Arc::new(Mutex::new(ContentSpool::new(&self.shared.writer, &self.shared.state_folder)));
        let sink: SharedContentSink = Arc::clone(&spool) as SharedContentSink;
        let read = self.shared.source.read_content(&self.schema, column, &item, sink, &self.call()).await;
        let end = match read {
            Ok(end) => end,
            Err(SourceError::NotFound { .. }) => return Ok(Fetched::Gone),
            Err(error @ (SourceError::StopRun { .. } | SourceError::SignIn { .. } | SourceError::Cancelled)) => {
                return Err(error.into());
            }
            // The spool holds the reason.
            Err(SourceError::SinkStopped) => dynavault_model::ContentEnd::default(),
            Err(error) => {
                return Ok(Fetched::Refused(format!("{} of row {} could not be read: {error}", item.column, item.row)));
            }
        };
        let handle = self.shared.handle.clone();
        let stored = blocking(move || {
            let mut spool = spool.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(spool.store(&handle)?)
        })
        .await;
        let stored = match stored {
            Ok(stored) => stored,
            Err(PipelineError::Vault(dynavault_vault::VaultError::Row { detail, .. })) => {
                return Ok(Fetched::Refused(format!("{} of row {} cannot be stored: {detail}", item.column, item.row)));
            }
            Err(error) => return Err(error),
        };
        self.job.tally.bytes_stored(stored.bytes_stored);
        let name = end.name.or_else(|| item.name.as_deref().and_then(|raw| serde_json::from_str(raw).ok()));
        Ok(Fetched::Reference(
            id_of(&item),
            Box::new(ContentReference {
                row: item.key,
                column: item.column,
                version: item.version,
                name,
                mime: end.mime,
                bytes: stored.bytes,
                sha256: stored.sha256,
                encrypted: self.shared.writer.is_encrypted(),
                note: end.note,
            }),
        ))
    }

    async fn push(
        &self,
        writer: Option<SegmentWriter>,
        references: Vec<(RowId, Box<ContentReference>)>,
    ) -> Result<Option<SegmentWriter>, PipelineError> {
        if references.is_empty() {
            return Ok(writer);
        }
        let (vault, handle) = (self.shared.writer.clone(), self.shared.handle.clone());
        let table = self.schema.table.name.clone();
        blocking(move || {
            let mut writer = match writer {
                Some(writer) => writer,
                None => SegmentWriter::create(&vault, &handle, &table, SegmentKind::Content)?,
            };
            let mut members: Vec<Member> = Vec::new();
            for (id, reference) in references {
                let json = serde_json::to_vec(&reference).unwrap_or_default();
                if !matches!(dynavault_model::scan(&json, &mut members), Ok(Scan::Complete { .. })) {
                    return Err(PipelineError::Broken { what: "a content reference is not a JSON object".into() });
                }
                writer.push(id, version_hash(&reference.version), &Row::new(&json, &members))?;
            }
            Ok(Some(writer))
        })
        .await
    }

    async fn finish_references(&mut self, writer: Option<SegmentWriter>) -> Result<Vec<DurableSegment>, PipelineError> {
        let Some(writer) = writer else { return Ok(Vec::new()) };
        let folder = self.shared.state_folder.clone();
        let durable = blocking(move || {
            let finished = writer.finish()?;
            let run_file = folder.join(format!("{}.run", finished.info.id));
            write_file(&run_file, &finished.entries)?;
            Ok(DurableSegment { info: finished.info, run_file })
        })
        .await?;
        self.job.tally.bytes_stored(durable.info.bytes_stored);
        self.progress.content_files.push(file_name(&durable.run_file));
        Ok(vec![durable])
    }
}

/// Id of an item's reference; the same as [`content_id`] of the row's key as JSON.
fn id_of(item: &ContentItem) -> RowId {
    content_id(format!("\"{}\"", item.key).as_bytes(), &item.column)
}
