//! The snapshot being made: checkpoints of its tables and the segments that are durable already.

use dynavault_model::{RunId, SegmentId, SnapshotId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use crate::{Catalog, CatalogError};

/// Where a table of a draft stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Rows are being read.
    Rows,
    /// All rows are durable; files and attachments are being read.
    Content,
    /// Everything is durable.
    Done,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Content => "content",
            Self::Done => "done",
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "done" => Self::Done,
            "content" => Self::Content,
            _ => Self::Rows,
        }
    }
}

/// How far a table has come. Everything before it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Logical name.
    pub table: String,
    /// Where it stands.
    pub phase: Phase,
    /// Link of the next page, while rows are being read.
    pub link: Option<String>,
    /// Rows stored so far, for people.
    pub rows: u64,
    /// The pipeline's own record, as JSON.
    pub progress: String,
}

/// A durable segment of a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftSegment {
    /// Logical name of its table.
    pub table: String,
    /// The segment.
    pub id: SegmentId,
    /// What a manifest says of it, as JSON.
    pub info: String,
}

/// A manifest whose bytes are fixed and which may or may not have reached the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The manifest as JSON.
    pub manifest: String,
    /// The bytes of its object.
    pub object: Vec<u8>,
    /// Whether they are inside an age layer.
    pub encrypted: bool,
    /// SHA-256 of the bytes, in hexadecimal.
    pub sha256: String,
}

/// The draft of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The snapshot it will become.
    pub snapshot: SnapshotId,
    /// The run that began it.
    pub run: RunId,
    /// When it was begun.
    pub started: Timestamp,
    /// When it last came forward.
    pub progressed: Timestamp,
    /// Checkpoints of its tables.
    pub checkpoints: Vec<Checkpoint>,
    /// Durable segments, in order per table.
    pub segments: Vec<DraftSegment>,
    /// Set once its manifest is fixed.
    pub prepared: Option<Prepared>,
}

fn bad(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, what.into())
}

impl Catalog {
    /// The draft of an environment, if there is one.
    pub async fn draft(&self, environment: &str) -> Result<Option<Draft>, CatalogError> {
        let environment = environment.to_string();
        self.transact("read the draft", move |tx| {
            let found = tx
                .query_row(
                    "SELECT snapshot, run, started, progressed, manifest, object, encrypted, sha256 FROM draft WHERE environment = ?1",
                    [&environment],
                    |row| {
                        let text = |column: usize| row.get::<_, String>(column);
                        let prepared = match row.get::<_, Option<String>>(4)? {
                            Some(manifest) => Some(Prepared {
                                manifest,
                                object: row.get(5)?,
                                encrypted: row.get(6)?,
                                sha256: row.get(7)?,
                            }),
                            None => None,
                        };
                        Ok(Draft {
                            snapshot: text(0)?.parse().map_err(|_| bad(0, "not a snapshot id"))?,
                            run: text(1)?.parse().map_err(|_| bad(1, "not a run id"))?,
                            started: text(2)?.parse().map_err(|_| bad(2, "not a time"))?,
                            progressed: text(3)?.parse().map_err(|_| bad(3, "not a time"))?,
                            checkpoints: Vec::new(),
                            segments: Vec::new(),
                            prepared,
                        })
                    },
                )
                .optional()?;
            let Some(mut draft) = found else { return Ok(None) };
            let mut statement = tx.prepare(
                "SELECT table_name, phase, link, rows, progress FROM checkpoint WHERE environment = ?1 ORDER BY table_name",
            )?;
            draft.checkpoints = statement
                .query_map([&environment], |row| {
                    Ok(Checkpoint {
                        table: row.get(0)?,
                        phase: Phase::of(&row.get::<_, String>(1)?),
                        link: row.get(2)?,
                        rows: row.get::<_, i64>(3)?.unsigned_abs(),
                        progress: row.get(4)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            let mut statement = tx.prepare(
                "SELECT table_name, json_extract(info, '$.id'), info FROM draft_segment WHERE environment = ?1
                 ORDER BY table_name, sequence",
            )?;
            draft.segments = statement
                .query_map([&environment], |row| {
                    Ok(DraftSegment {
                        table: row.get(0)?,
                        id: row.get::<_, String>(1)?.parse().map_err(|_| bad(1, "not a segment id"))?,
                        info: row.get(2)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Some(draft))
        })
        .await
    }

    /// Begins a draft, dropping one that may be there.
    pub async fn begin_draft(
        &self,
        environment: &str,
        snapshot: SnapshotId,
        run: RunId,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("begin a draft", move |tx| {
            tx.execute("DELETE FROM draft WHERE environment = ?1", [&environment])?;
            tx.execute(
                "INSERT INTO draft (environment, snapshot, run, started, progressed) VALUES (?1, ?2, ?3, ?4, ?4)",
                params![environment, snapshot.to_string(), run.to_string(), now.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// Drops the draft of an environment.
    pub async fn drop_draft(&self, environment: &str) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("drop a draft", move |tx| {
            tx.execute("DELETE FROM draft WHERE environment = ?1", [&environment])?;
            Ok(())
        })
        .await
    }

    /// Records how far a table has come, together with the segments that brought it there. The segments are durable.
    pub async fn checkpoint(
        &self,
        environment: &str,
        checkpoint: Checkpoint,
        segments: Vec<String>,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("record a checkpoint", move |tx| {
            tx.execute(
                "INSERT INTO checkpoint (environment, table_name, phase, link, rows, progress, written)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (environment, table_name) DO UPDATE SET phase = excluded.phase, link = excluded.link,
                    rows = excluded.rows, progress = excluded.progress, written = excluded.written",
                params![
                    environment,
                    checkpoint.table,
                    checkpoint.phase.word(),
                    checkpoint.link,
                    crate::runs::signed(checkpoint.rows),
                    checkpoint.progress,
                    now.to_string()
                ],
            )?;
            let mut insert = tx.prepare_cached(
                "INSERT INTO draft_segment (environment, table_name, sequence, info)
                 VALUES (?1, ?2, (SELECT coalesce(max(sequence), 0) + 1 FROM draft_segment
                                  WHERE environment = ?1 AND table_name = ?2), ?3)",
            )?;
            for info in segments {
                insert.execute(params![environment, checkpoint.table, info])?;
            }
            tx.execute(
                "UPDATE draft SET progressed = ?2 WHERE environment = ?1",
                params![environment, now.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// Forgets what a table of the draft has done: its segments become garbage.
    pub async fn reset_table(&self, environment: &str, table: &str) -> Result<(), CatalogError> {
        let (environment, table) = (environment.to_string(), table.to_string());
        self.transact("restart a table", move |tx| {
            for name in ["checkpoint", "draft_segment"] {
                tx.execute(
                    &format!("DELETE FROM {name} WHERE environment = ?1 AND table_name = ?2"),
                    params![environment, table],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Fixes the manifest of the draft, before it is put into the vault.
    pub async fn prepare_commit(&self, environment: &str, prepared: Prepared) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("fix the manifest", move |tx| {
            tx.execute(
                "UPDATE draft SET manifest = ?2, object = ?3, encrypted = ?4, sha256 = ?5 WHERE environment = ?1",
                params![environment, prepared.manifest, prepared.object, prepared.encrypted, prepared.sha256],
            )?;
            Ok(())
        })
        .await
    }
}
