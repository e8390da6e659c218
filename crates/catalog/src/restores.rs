//! The journal of restores: which operations of a plan were begun, and what became of them.
//!
//! An operation is recorded before it is sent (`sent`) and again when its answer is known. After a crash, `sent` is the
//! only state that says nothing: the row has to be read before anything is done about it.

use dynavault_model::{RunId, RunStatus};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::runs::word;
use crate::{Catalog, CatalogError};

/// Most operations read at once.
const OPS_MAX: u32 = 10_000;

/// What is known of one operation of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpState {
    /// Begun; no answer is recorded.
    Sent,
    /// Carried out.
    Done,
    /// It was so already.
    Unchanged,
    /// The row is not what the plan was made for; it was left alone.
    Conflict,
    /// The service refused it.
    Rejected,
}

impl OpState {
    fn code(self) -> i64 {
        self as i64
    }

    fn from_code(code: i64) -> Self {
        match code {
            1 => Self::Done,
            2 => Self::Unchanged,
            3 => Self::Conflict,
            4 => Self::Rejected,
            // An unknown state is settled like a lost answer: the row is read.
            _ => Self::Sent,
        }
    }
}

/// The outcome of one operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpOutcome {
    /// Number within the plan.
    pub n: u64,
    /// What is known.
    pub state: OpState,
    /// The service's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The service's message, or what was done differently from the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Content that was there before, as JSON; what an undo puts back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// A restore as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreRow {
    /// The run.
    pub run: String,
    /// `restore` or `undo`.
    pub kind: String,
    /// Environment whose folder of the vault holds plan and outcomes.
    pub environment: String,
    /// Environment that is written to.
    pub target: String,
    /// Digest of the plan.
    pub digest: String,
    /// Where the plan was read.
    pub plan: String,
    /// Operations of the plan.
    pub ops: u64,
    /// Status of the run.
    pub status: String,
}

/// How a restore ended.
#[derive(Debug, Clone)]
pub struct RestoreEnd {
    /// Status.
    pub status: RunStatus,
    /// When.
    pub finished: Timestamp,
    /// Why it failed.
    pub error: Option<String>,
    /// Requests sent.
    pub requests: u64,
    /// Requests the service asked to slow down for.
    pub throttled: u64,
    /// The result as JSON.
    pub report: String,
}

impl Catalog {
    /// Records the start of a restore, beside its run.
    pub async fn begin_restore(&self, row: RestoreRow) -> Result<(), CatalogError> {
        self.transact("record the start of a restore", move |tx| {
            tx.execute(
                "INSERT INTO restore (run, kind, environment, target, digest, plan, ops) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![row.run, row.kind, row.environment, row.target, row.digest, row.plan, row.ops as i64],
            )?;
            Ok(())
        })
        .await
    }

    /// The newest restore of a plan that did not come to its end.
    pub async fn unfinished_restore(&self, digest: &str) -> Result<Option<RunId>, CatalogError> {
        let digest = digest.to_string();
        let ends = [RunStatus::Succeeded, RunStatus::Partial].map(|status| word(&status));
        self.transact("look for an unfinished restore", move |tx| {
            let found: Option<String> = tx
                .query_row(
                    "SELECT restore.run FROM restore JOIN run ON run.run = restore.run
                     WHERE restore.digest = ?1 AND run.status NOT IN (?2, ?3) ORDER BY restore.run DESC LIMIT 1",
                    params![digest, ends[0], ends[1]],
                    |row| row.get(0),
                )
                .optional()?;
            Ok(found.and_then(|text| text.parse().ok()))
        })
        .await
    }

    /// The newest restore of a plan that came to its end.
    pub async fn finished_restore(&self, digest: &str) -> Result<Option<RunId>, CatalogError> {
        let digest = digest.to_string();
        self.transact("look for a finished restore", move |tx| {
            let found: Option<String> = tx
                .query_row("SELECT run FROM restore WHERE digest = ?1 ORDER BY run DESC LIMIT 1", [digest], |row| {
                    row.get(0)
                })
                .optional()?;
            Ok(found.and_then(|text| text.parse().ok()))
        })
        .await
    }

    /// A restore by its run.
    pub async fn restore(&self, run: RunId) -> Result<Option<RestoreRow>, CatalogError> {
        self.transact("read a restore", move |tx| {
            tx.query_row(
                "SELECT restore.run, restore.kind, restore.environment, target, digest, plan, ops, run.status
                 FROM restore JOIN run ON run.run = restore.run WHERE restore.run = ?1",
                [run.to_string()],
                |row| {
                    Ok(RestoreRow {
                        run: row.get(0)?,
                        kind: row.get(1)?,
                        environment: row.get(2)?,
                        target: row.get(3)?,
                        digest: row.get(4)?,
                        plan: row.get(5)?,
                        ops: row.get::<_, i64>(6)? as u64,
                        status: row.get(7)?,
                    })
                },
            )
            .optional()
        })
        .await
    }

    /// Records the end of a restore; `report` is its result as JSON.
    pub async fn finish_restore(&self, run: RunId, end: RestoreEnd) -> Result<(), CatalogError> {
        self.transact("record the end of a restore", move |tx| {
            tx.execute(
                "UPDATE run SET status = ?2, finished = ?3, error = ?4, requests = ?5, throttled = ?6, report = ?7 WHERE run = ?1",
                params![
                    run.to_string(),
                    word(&end.status),
                    end.finished.to_string(),
                    end.error,
                    end.requests as i64,
                    end.throttled as i64,
                    end.report
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Marks a run as going on again.
    pub async fn resume_restore(&self, run: RunId) -> Result<(), CatalogError> {
        self.transact("record that a restore goes on", move |tx| {
            tx.execute(
                "UPDATE run SET status = 'running', finished = NULL, error = NULL WHERE run = ?1",
                [run.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// Records that operations are about to be sent. Durable when it returns.
    pub async fn intend(&self, run: RunId, ops: Vec<u64>) -> Result<(), CatalogError> {
        self.transact("record what is about to be written", move |tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO restore_op (run, n, state) VALUES (?1, ?2, ?3)
                 ON CONFLICT (run, n) DO UPDATE SET state = excluded.state, code = NULL, message = NULL",
            )?;
            let run = run.to_string();
            for n in ops {
                insert.execute(params![run, n as i64, OpState::Sent.code()])?;
            }
            Ok(())
        })
        .await
    }

    /// Records outcomes. Durable when it returns.
    pub async fn conclude(&self, run: RunId, outcomes: Vec<OpOutcome>) -> Result<(), CatalogError> {
        self.transact("record what was written", move |tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO restore_op (run, n, state, code, message, before) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (run, n) DO UPDATE SET state = excluded.state, code = excluded.code,
                    message = excluded.message, before = coalesce(excluded.before, before)",
            )?;
            let run = run.to_string();
            for outcome in outcomes {
                insert.execute(params![
                    run,
                    outcome.n as i64,
                    outcome.state.code(),
                    outcome.code,
                    outcome.message,
                    outcome.before
                ])?;
            }
            Ok(())
        })
        .await
    }

    /// What is known of operations `from` and later, in order, at most 10,000.
    pub async fn op_outcomes(&self, run: RunId, from: u64) -> Result<Vec<OpOutcome>, CatalogError> {
        self.transact("read the outcomes of a restore", move |tx| {
            let mut select = tx.prepare_cached(
                "SELECT n, state, code, message, before FROM restore_op WHERE run = ?1 AND n >= ?2 ORDER BY n LIMIT ?3",
            )?;
            let rows = select.query_map(params![run.to_string(), from as i64, OPS_MAX], |row| {
                Ok(OpOutcome {
                    n: row.get::<_, i64>(0)? as u64,
                    state: OpState::from_code(row.get(1)?),
                    code: row.get(2)?,
                    message: row.get(3)?,
                    before: row.get(4)?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// How many operations of a restore are in each state.
    pub async fn op_totals(&self, run: RunId) -> Result<Vec<(OpState, u64)>, CatalogError> {
        self.transact("count the outcomes of a restore", move |tx| {
            let mut select = tx.prepare_cached(
                "SELECT state, count(*) FROM restore_op WHERE run = ?1 GROUP BY state ORDER BY state",
            )?;
            let rows = select.query_map([run.to_string()], |row| {
                Ok((OpState::from_code(row.get(0)?), row.get::<_, i64>(1)? as u64))
            })?;
            rows.collect()
        })
        .await
    }
}
