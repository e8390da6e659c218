//! Runs and their tables: the history operators ask for.

use dynavault_model::{RunId, RunKind, RunReport, RunStatus};
use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, params, params_from_iter};
use serde::Serialize;

use crate::{Catalog, CatalogError};

/// Most runs listed at once.
pub(crate) const RUNS_MAX: u32 = 10_000;

/// Which runs to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only of this environment.
    pub environment: Option<String>,
    /// Only with this status.
    pub status: Option<RunStatus>,
    /// Only started at or after.
    pub since: Option<Timestamp>,
    /// At most so many; 0 for the maximum.
    pub limit: u32,
}

/// A run in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunSummary {
    /// The run.
    pub run: String,
    /// What it did.
    pub kind: String,
    /// The environment.
    pub environment: String,
    /// How it ended.
    pub status: String,
    /// The snapshot it made.
    pub snapshot: Option<String>,
    /// Start.
    pub started: String,
    /// End.
    pub finished: Option<String>,
    /// Requests sent.
    pub requests: u64,
    /// Bytes written to the vault.
    pub bytes_stored: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// What is read for a [`RunSummary`].
const SUMMARY: &str = "run, kind, environment, status, snapshot, started, finished, requests, bytes_stored, error";

/// A row that begins with the columns of [`SUMMARY`].
fn summary(row: &Row<'_>) -> rusqlite::Result<RunSummary> {
    Ok(RunSummary {
        run: row.get(0)?,
        kind: row.get(1)?,
        environment: row.get(2)?,
        status: row.get(3)?,
        snapshot: row.get(4)?,
        started: row.get(5)?,
        finished: row.get(6)?,
        requests: row.get::<_, i64>(7)?.unsigned_abs(),
        bytes_stored: row.get::<_, i64>(8)?.unsigned_abs(),
        error: row.get(9)?,
    })
}

/// The kebab-case word of a unit enum.
pub(crate) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_string)).unwrap_or_default()
}

impl Catalog {
    /// Records the start of a run.
    pub async fn begin_run(
        &self,
        run: RunId,
        kind: RunKind,
        environment: &str,
        started: Timestamp,
    ) -> Result<(), CatalogError> {
        let environment = environment.to_string();
        self.transact("record the start of a run", move |tx| {
            tx.execute(
                "INSERT INTO run (run, kind, environment, status, started) VALUES (?1, ?2, ?3, 'running', ?4)",
                params![run.to_string(), word(&kind), environment, started.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// Marks runs of a kind and an environment that never ended as interrupted; gives the newest. The caller holds the lock
    /// for that kind, so whatever still says `running` is dead.
    pub async fn interrupt_dead_runs(
        &self,
        kind: RunKind,
        environment: &str,
        but: RunId,
        now: Timestamp,
    ) -> Result<Option<RunId>, CatalogError> {
        let (kind, environment) = (word(&kind), environment.to_string());
        self.transact("mark dead runs", move |tx| {
            let newest: Option<String> = tx
                .query_row(
                    "SELECT max(run) FROM run WHERE environment = ?1 AND status = 'running' AND kind = ?3 AND run <> ?2",
                    params![environment, but.to_string(), kind],
                    |row| row.get(0),
                )
                .optional()?
                .flatten();
            tx.execute(
                "UPDATE run SET status = 'interrupted', finished = ?3, error = 'the process ended before the run did'
                 WHERE environment = ?1 AND status = 'running' AND kind = ?4 AND run <> ?2",
                params![environment, but.to_string(), now.to_string(), kind],
            )?;
            Ok(newest.and_then(|text| text.parse().ok()))
        })
        .await
    }

    /// Records the end of a run.
    pub async fn finish_run(&self, report: &RunReport) -> Result<(), CatalogError> {
        let report = report.clone();
        self.transact("record the end of a run", move |tx| {
            let text = serde_json::to_string(&report).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            tx.execute(
                "INSERT INTO run (run, kind, environment, status, snapshot, started, finished, resumed_from, error,
                                  requests, throttled, bytes_raw, bytes_stored, report)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
                 ON CONFLICT (run) DO UPDATE SET status = excluded.status, snapshot = excluded.snapshot,
                    finished = excluded.finished, resumed_from = excluded.resumed_from, error = excluded.error,
                    requests = excluded.requests, throttled = excluded.throttled, bytes_raw = excluded.bytes_raw,
                    bytes_stored = excluded.bytes_stored, report = excluded.report",
                params![
                    report.run.to_string(),
                    word(&report.kind),
                    report.environment,
                    word(&report.status),
                    report.snapshot.map(|id| id.to_string()),
                    report.started.to_string(),
                    report.finished.map(|time| time.to_string()),
                    report.resumed_from.map(|id| id.to_string()),
                    report.error,
                    signed(report.requests),
                    signed(report.throttled),
                    signed(report.bytes_raw),
                    signed(report.bytes_stored),
                    text,
                ],
            )?;
            tx.execute("DELETE FROM run_table WHERE run = ?1", [report.run.to_string()])?;
            let mut insert = tx.prepare(
                "INSERT INTO run_table (run, table_name, mode, status, rows_read, rows_stored, created, changed, deleted,
                                        live_rows, bytes_stored, requests, reason)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?;
            for table in &report.tables {
                insert.execute(params![
                    report.run.to_string(),
                    table.table,
                    word(&table.mode),
                    word(&table.status),
                    signed(table.rows_read),
                    signed(table.rows_stored),
                    signed(table.created),
                    signed(table.changed),
                    signed(table.deleted),
                    signed(table.live_rows),
                    signed(table.bytes_stored),
                    signed(table.requests),
                    table.reason,
                ])?;
            }
            Ok(())
        })
        .await
    }

    /// Lists runs, newest first.
    pub async fn runs(&self, filter: RunFilter) -> Result<Vec<RunSummary>, CatalogError> {
        self.transact("list runs", move |tx| {
            let limit = if filter.limit == 0 { RUNS_MAX } else { filter.limit.min(RUNS_MAX) };
            let mut sql = format!("SELECT {SUMMARY} FROM run WHERE true");
            let mut values: Vec<Value> = Vec::new();
            if let Some(environment) = filter.environment {
                sql.push_str(" AND environment = ?");
                values.push(environment.into());
            }
            if let Some(status) = filter.status {
                sql.push_str(" AND status = ?");
                values.push(word(&status).into());
            }
            if let Some(since) = filter.since {
                // Times are written with as many digits as they need, so the "Z" would be compared with a "." or a digit.
                sql.push_str(" AND rtrim(started, 'Z') >= rtrim(?, 'Z')");
                values.push(since.to_string().into());
            }
            sql.push_str(" ORDER BY run DESC LIMIT ?");
            values.push(i64::from(limit).into());
            let mut statement = tx.prepare(&sql)?;
            let rows = statement.query_map(params_from_iter(values), summary)?;
            rows.collect()
        })
        .await
    }

    /// The report of a run as JSON, and its summary; `None` if there is no such run.
    pub async fn run(&self, run: RunId) -> Result<Option<(RunSummary, Option<String>)>, CatalogError> {
        self.transact("read a run", move |tx| {
            tx.query_row(&format!("SELECT {SUMMARY}, report FROM run WHERE run = ?1"), [run.to_string()], |row| {
                Ok((summary(row)?, row.get(10)?))
            })
            .optional()
        })
        .await
    }
}

/// SQLite integers are signed; counts beyond 2^63 do not occur.
pub(crate) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn runs_since_a_time_are_found_whatever_fraction_of_a_second_they_started_at() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog.db")).unwrap();
        let starts = ["09:59:59.999999999", "10:00:00", "10:00:00.000000001", "10:00:00.5", "10:00:00.52", "10:00:01"];
        let time = |clock: &str| format!("2026-03-01T{clock}Z").parse::<Timestamp>().unwrap();
        for (number, start) in starts.iter().enumerate() {
            let run = format!("01ARZ3NDEKTSV4RRFFQ69G5FA{number}").parse().unwrap();
            catalog.begin_run(run, RunKind::Backup, "e", time(start)).await.unwrap();
        }
        for (number, since) in starts.iter().enumerate() {
            let filter = RunFilter { since: Some(time(since)), ..RunFilter::default() };
            let found = catalog.runs(filter).await.unwrap();
            assert_eq!(found.len(), starts.len() - number, "since {since}: {found:?}");
        }
    }
}
