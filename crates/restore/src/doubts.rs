//! Files, images, notes and attachments that may be the same although their versions differ: the bytes decide.
//!
//! The service tells no hash. A file's id changes with every upload, also with that of a restore, and the version of a note's
//! row with any of its columns (`dataverse` protocol, section 7.3). So live content of up to 16 MiB is read and hashed, the
//! same bound as in the proof (rule 7.2): what is equal is neither uploaded nor a conflict. Reading it takes no longer than
//! the upload it saves. Larger content is taken for different: a name and a size prove nothing, and the plan says so.

use std::sync::{Arc, Mutex, PoisonError};

use dynavault_model::{
    ContentColumn, ContentItem, ContentSink, RowSource, SharedContentSink, SourceError, Stopped, TableSchema,
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::RestoreError;
use crate::pieces::Piece;
use crate::waves::Node;
use crate::work::Work;

/// Content up to this size is read to compare it.
const COMPARED_BYTES_MAX: u64 = 16 << 20;
/// Pieces of content read at once.
const COMPARED_AT_ONCE: usize = 4;
/// Pieces of content whose outcomes are awaited together.
const BLOCK: usize = 64;

/// A value that is left alone unless the bytes turn out to be the same: both sides as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contested {
    pub(crate) captured: String,
    pub(crate) live: String,
}

/// The live side of a piece that may be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LivePiece {
    pub(crate) item: ContentItem,
    /// Set where the snapshot does not win.
    pub(crate) contested: Option<Contested>,
}

/// A piece of the snapshot beside the live one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Doubt {
    pub(crate) table: u16,
    pub(crate) column: u16,
    pub(crate) piece: Piece,
    pub(crate) live: LivePiece,
    /// What the snapshot says about its own piece.
    pub(crate) note: Option<String>,
}

/// What became of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Same,
    Different,
    TooLarge,
}

/// Hashes content that is not longer than expected.
struct Hashing {
    hasher: Sha256,
    bytes: u64,
    expected: u64,
}

impl ContentSink for Hashing {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.expected {
            return Err(Stopped);
        }
        self.hasher.update(bytes);
        Ok(())
    }

    fn restarted(&mut self) {
        self.hasher = Sha256::new();
        self.bytes = 0;
    }
}

impl Work {
    /// Compares the pieces in doubt; those that differ are written, or left alone as conflicts.
    pub(crate) fn compare_content(&mut self) -> Result<(), RestoreError> {
        let Some(mut doubts) = self.pieces.take_doubts() else { return Ok(()) };
        self.notice(None, "comparing files");
        let mut block: Vec<Doubt> = Vec::with_capacity(BLOCK);
        doubts.scan_json(|doubt: Doubt| {
            block.push(doubt);
            if block.len() == BLOCK { self.compare_block(std::mem::take(&mut block)) } else { Ok(()) }
        })?;
        self.compare_block(block)?;
        for node in self.pieces.take_alone() {
            self.tables.get_mut(node.table).plan.counts.unchanged += 1;
        }
        Ok(())
    }

    fn compare_block(&mut self, block: Vec<Doubt>) -> Result<(), RestoreError> {
        self.stopped()?;
        let (source, tables, call) = (self.source.as_ref(), &self.tables, &self.call);
        let compared = futures::stream::iter(&block)
            .map(|doubt| async move {
                let schema = tables.get(doubt.table).target();
                let Some(column) = schema.content.get(usize::from(doubt.column)) else {
                    return Ok(Compared::Different);
                };
                compare(source, schema, column, doubt, call).await
            })
            .buffered(COMPARED_AT_ONCE)
            .collect::<Vec<_>>();
        for (doubt, compared) in block.iter().zip(self.captured.handle.block_on(compared)) {
            self.settle_doubt(doubt, compared?)?;
        }
        Ok(())
    }

    fn settle_doubt(&mut self, doubt: &Doubt, compared: Compared) -> Result<(), RestoreError> {
        let Doubt { table, piece, live, .. } = doubt;
        let node = Node { table: *table, row: piece.row };
        let name = self.tables.get(*table).name.clone();
        let column = &piece.content.column;
        if compared == Compared::Same {
            return Ok(());
        }
        self.pieces.not_alone(node);
        if let Some(contested) = &live.contested {
            let (captured, now) = (contested.captured.as_bytes(), contested.live.as_bytes());
            self.tables.get_mut(*table).plan.counts.conflicts += 1;
            return self.conflicts.add(&name, &piece.key.id, column, captured, now);
        }
        if let Some(note) = &doubt.note {
            self.findings.row("content-reduced", &name, &piece.key.id, column, note.clone());
        }
        if compared == Compared::TooLarge {
            let sentence = format!(
                "the file is larger than {} MiB and is not compared: it is written although it may be the same",
                COMPARED_BYTES_MAX >> 20
            );
            self.findings.row("content-not-compared", &name, &piece.key.id, column, sentence);
        }
        self.pieces.push(node.table, piece)
    }
}

async fn compare(
    source: &dyn RowSource,
    schema: &TableSchema,
    column: &ContentColumn,
    doubt: &Doubt,
    call: &dynavault_model::Call,
) -> Result<Compared, RestoreError> {
    let content = &doubt.piece.content;
    let item = &doubt.live.item;
    if item.bytes.is_some_and(|bytes| bytes != content.size) {
        return Ok(Compared::Different);
    }
    if content.size > COMPARED_BYTES_MAX {
        return Ok(Compared::TooLarge);
    }
    let hashing = Arc::new(Mutex::new(Hashing { hasher: Sha256::new(), bytes: 0, expected: content.size }));
    let sink: SharedContentSink = Arc::clone(&hashing) as SharedContentSink;
    let end = match source.read_content(schema, column, item, sink, call).await {
        Ok(end) => end,
        Err(SourceError::Cancelled) => return Err(RestoreError::Cancelled),
        // What cannot be read, or is longer, is not known to be the same.
        Err(SourceError::NotFound { .. } | SourceError::SinkStopped | SourceError::Refused { .. }) => {
            return Ok(Compared::Different);
        }
        Err(error) => return Err(error.into()),
    };
    let renamed = end.name.is_some() && content.name.is_some() && end.name != content.name;
    let mut hashing = hashing.lock().unwrap_or_else(PoisonError::into_inner);
    let hash = std::mem::take(&mut hashing.hasher).finalize();
    let same = content.sha256.as_deref().is_some_and(|wanted| wanted.eq_ignore_ascii_case(&hex(&hash)));
    Ok(if same && !renamed { Compared::Same } else { Compared::Different })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
        text
    })
}
