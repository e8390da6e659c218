//! Committed snapshots, their tokens, and the local state files that belong to them.

use dynavault_model::{RunId, SegmentId, SnapshotId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use serde::Serialize;

use crate::runs::signed;
use crate::{Catalog, CatalogError};

/// What is recorded of a table of a committed snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSummary {
    /// Logical name.
    pub table: String,
    /// How it fared, in the manifest's word.
    pub status: String,
    /// How it was read, in the manifest's word.
    pub mode: String,
    /// Snapshot whose run captured its state.
    pub captured_by: SnapshotId,
    /// Rows.
    pub live_rows: u64,
    /// End of its last read.
    pub last_read: Timestamp,
    /// Delta link and the time it was given.
    pub token: Option<(String, Timestamp)>,
    /// Segments: id, kind, rows, raw bytes, stored bytes, hash.
    pub segments: Vec<(SegmentId, String, u64, u64, u64, String)>,
}

/// A snapshot whose manifest is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The run that made it.
    pub run: RunId,
    /// When it was committed.
    pub created: Timestamp,
    /// Whether everything in scope was captured.
    pub whole: bool,
    /// Whether its manifest is inside an age layer.
    pub encrypted: bool,
    /// SHA-256 of its manifest object.
    pub sha256: String,
    /// The manifest as JSON.
    pub manifest: String,
    /// Its tables.
    pub tables: Vec<TableSummary>,
}

/// A snapshot in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotSummary {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The environment.
    pub environment: String,
    /// When it was committed.
    pub created: Timestamp,
    /// Whether everything in scope was captured.
    pub whole: bool,
    /// Rows over all tables.
    pub rows: u64,
    /// Whether its manifest is inside an age layer.
    pub encrypted: bool,
    /// SHA-256 of its manifest object.
    pub sha256: String,
}

/// A local file of (row id, hash) pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFile {
    /// Logical name of its table.
    pub table: String,
    /// `rows` or `content`.
    pub kind: String,
    /// File name in the state folder.
    pub file: String,
    /// Pairs.
    pub entries: u64,
}

fn insert_snapshot(tx: &Transaction<'_>, environment: &str, committed: &Committed) -> rusqlite::Result<()> {
    let snapshot = committed.snapshot.to_string();
    let rows: u64 = committed.tables.iter().map(|table| table.live_rows).sum();
    // The newest manifest is what the next one is made from; older ones are in the vault.
    tx.execute(
        "UPDATE snapshot SET manifest = NULL WHERE environment = ?1 AND snapshot < ?2",
        params![environment, snapshot],
    )?;
    tx.execute(
        "INSERT OR REPLACE INTO snapshot (environment, snapshot, run, created, whole, rows, encrypted, sha256, manifest)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            environment,
            snapshot,
            committed.run.to_string(),
            committed.created.to_string(),
            committed.whole,
            signed(rows),
            committed.encrypted,
            committed.sha256,
            committed.manifest
        ],
    )?;
    let mut table_row = tx.prepare_cached(
        "INSERT OR REPLACE INTO snapshot_table (environment, snapshot, table_name, status, mode, captured_by, live_rows, last_read)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let mut token_row = tx.prepare_cached(
        "INSERT OR REPLACE INTO token (environment, table_name, snapshot, link, given) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let mut segment_row = tx.prepare_cached(
        "INSERT OR IGNORE INTO segment (environment, table_name, segment, kind, snapshot, rows, bytes_raw, bytes_stored, sha256)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    tx.execute("DELETE FROM token WHERE environment = ?1 AND snapshot <= ?2", params![environment, snapshot])?;
    for table in &committed.tables {
        table_row.execute(params![
            environment,
            snapshot,
            table.table,
            table.status,
            table.mode,
            table.captured_by.to_string(),
            signed(table.live_rows),
            table.last_read.to_string()
        ])?;
        if let Some((link, given)) = &table.token {
            token_row.execute(params![environment, table.table, snapshot, link, given.to_string()])?;
        }
        for (id, kind, rows, raw, stored, sha256) in &table.segments {
            segment_row.execute(params![
                environment,
                table.table,
                id.to_string(),
                kind,
                snapshot,
                signed(*rows),
                signed(*raw),
                signed(*stored),
                sha256
            ])?;
        }
    }
    Ok(())
}

fn replace_state(
    tx: &Transaction<'_>,
    environment: &str,
    table: &str,
    kind: &str,
    files: &[&StateFile],
) -> rusqlite::Result<()> {
    tx.execute(
        "DELETE FROM state_file WHERE environment = ?1 AND table_name = ?2 AND kind = ?3",
        params![environment, table, kind],
    )?;
    for (sequence, file) in files.iter().enumerate() {
        tx.execute(
            "INSERT INTO state_file (environment, table_name, kind, sequence, file, entries) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![environment, table, kind, sequence as i64, file.file, signed(file.entries)],
        )?;
    }
    Ok(())
}

impl Catalog {
    /// Records a snapshot whose manifest has just become durable, ends the draft, and adopts its state files, all or nothing.
    pub async fn commit_snapshot(
        &self,
        environment: &str,
        committed: Committed,
        state: Vec<StateFile>,
    ) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("record a snapshot", move |tx| {
            insert_snapshot(tx, &environment, &committed)?;
            tx.execute("DELETE FROM draft WHERE environment = ?1", [&environment])?;
            tx.execute("DELETE FROM state_file WHERE environment = ?1", [&environment])?;
            for (sequence, file) in state.iter().enumerate() {
                tx.execute(
                    "INSERT INTO state_file (environment, table_name, kind, sequence, file, entries)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![environment, file.table, file.kind, sequence as i64, file.file, signed(file.entries)],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Records a snapshot found in the vault, for a rebuild. Snapshots must be given oldest first.
    pub async fn adopt_snapshot(&self, environment: &str, committed: Committed) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("adopt a snapshot", move |tx| insert_snapshot(tx, &environment, &committed)).await
    }

    /// Forgets what the catalog knows of an environment's snapshots, before a rebuild. History stays.
    pub async fn forget_environment(&self, environment: &str) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("forget an environment", move |tx| {
            for table in
                ["snapshot", "snapshot_table", "segment", "token", "state_file", "draft", "vault", "damaged_segment"]
            {
                tx.execute(&format!("DELETE FROM {table} WHERE environment = ?1"), [&environment])?;
            }
            Ok(())
        })
        .await
    }

    /// The newest snapshot of an environment: id, hash of its manifest object, the manifest as JSON.
    pub async fn newest_snapshot(
        &self,
        environment: &str,
    ) -> Result<Option<(SnapshotId, String, Option<String>)>, CatalogError> {
        let environment = environment.to_string();
        self.transact("read the newest snapshot", move |tx| {
            tx.query_row(
                "SELECT snapshot, sha256, manifest FROM snapshot WHERE environment = ?1 ORDER BY snapshot DESC LIMIT 1",
                [&environment],
                |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()
        })
        .await
        .map(|found| found.and_then(|(id, sha256, manifest)| Some((id.parse().ok()?, sha256, manifest))))
    }

    /// Snapshots of an environment, or of all, oldest first.
    pub async fn snapshots(&self, environment: Option<&str>) -> Result<Vec<SnapshotSummary>, CatalogError> {
        let environment = environment.map(str::to_string);
        self.transact("list snapshots", move |tx| {
            let mut statement = tx.prepare(
                "SELECT snapshot, environment, created, whole, rows, encrypted, sha256 FROM snapshot
                 WHERE ?1 IS NULL OR environment = ?1 ORDER BY environment, snapshot",
            )?;
            let rows = statement.query_map([environment], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get(1)?,
                    row.get::<_, String>(2)?,
                    row.get(3)?,
                    row.get::<_, i64>(4)?,
                    row.get(5)?,
                    row.get(6)?,
                ))
            })?;
            let mut found = Vec::new();
            for row in rows {
                let (snapshot, environment, created, whole, rows, encrypted, sha256) = row?;
                if let (Ok(snapshot), Ok(created)) = (snapshot.parse(), created.parse()) {
                    let rows = rows.unsigned_abs();
                    found.push(SnapshotSummary { snapshot, environment, created, whole, rows, encrypted, sha256 });
                }
            }
            Ok(found)
        })
        .await
    }

    /// State files of an environment, in order per table and kind.
    pub async fn state_files(&self, environment: &str) -> Result<Vec<StateFile>, CatalogError> {
        let environment = environment.to_string();
        self.transact("list state files", move |tx| {
            let mut statement = tx.prepare(
                "SELECT table_name, kind, file, entries FROM state_file WHERE environment = ?1 ORDER BY table_name, kind, sequence",
            )?;
            let rows = statement.query_map([&environment], |row| {
                Ok(StateFile {
                    table: row.get(0)?,
                    kind: row.get(1)?,
                    file: row.get(2)?,
                    entries: row.get::<_, i64>(3)?.unsigned_abs(),
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Replaces the state files of one table and kind, after they were folded or rebuilt.
    pub async fn replace_state_files(
        &self,
        environment: &str,
        table: &str,
        kind: &str,
        files: Vec<StateFile>,
    ) -> Result<(), CatalogError> {
        let (environment, table, kind) = (environment.to_string(), table.to_string(), kind.to_string());
        self.transact("replace state files", move |tx| {
            replace_state(tx, &environment, &table, &kind, &files.iter().collect::<Vec<_>>())
        })
        .await
    }
}
