//! The result of a restore: what became of the rows, and which the service refused.

use dynavault_catalog::{OpOutcome, OpState};
use dynavault_model::{RunId, RunStatus, WriteKind};
use serde::{Deserialize, Serialize};

use crate::plan::{Action, Op};

/// Refusals and conflicts listed one by one; all of them are in the outcomes kept in the vault.
pub const LISTED_MAX: usize = 1_000;

/// Rows by what became of them. A row that several operations are about counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcomes {
    /// Made or brought back.
    pub created: u64,
    /// Changed.
    pub updated: u64,
    /// As planned already.
    pub unchanged: u64,
    /// Deleted.
    pub deleted: u64,
    /// Left alone because they changed since the plan was made.
    pub skipped: u64,
    /// Refused by the service.
    pub rejected: u64,
}

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRow {
    /// Table.
    pub table: String,
    /// Row.
    pub id: String,
    /// What was tried.
    #[serde(rename = "do")]
    pub action: Action,
    /// The service's code.
    pub code: String,
    /// The service's message.
    pub message: String,
}

/// Result of a restore, in the shape that scripts rely on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The run.
    pub run: RunId,
    /// How it ended.
    pub status: RunStatus,
    /// Rows that the plan writes.
    pub planned: u64,
    /// What became of them.
    pub outcomes: Outcomes,
    /// Operations refused, the first ones.
    pub rejections: Vec<RejectedRow>,
    /// Operations left out because the row had changed, the first ones.
    pub conflicts: Vec<RejectedRow>,
    /// Rows written differently from the plan, e.g. without a lookup whose row is missing.
    pub adjusted: Vec<RejectedRow>,
    /// Follow-up operations (lookups, links, files, states) that were refused; their rows exist all the same.
    pub follow_ups_rejected: u64,
    /// Operations tried.
    pub operations: u64,
}

impl RestoreReport {
    /// An empty report.
    pub fn new(run: RunId) -> Self {
        Self {
            run,
            status: RunStatus::Running,
            planned: 0,
            outcomes: Outcomes::default(),
            rejections: Vec::new(),
            conflicts: Vec::new(),
            adjusted: Vec::new(),
            follow_ups_rejected: 0,
            operations: 0,
        }
    }

    /// Counts an operation with its outcome.
    pub(crate) fn count(&mut self, op: &Op, outcome: &OpOutcome) {
        self.operations += 1;
        let listed = |list: &mut Vec<RejectedRow>| {
            if list.len() < LISTED_MAX {
                list.push(RejectedRow {
                    table: op.table.clone(),
                    id: op.key.id.clone(),
                    action: op.action,
                    code: outcome.code.clone().unwrap_or_default(),
                    message: outcome.message.clone().unwrap_or_default(),
                });
            }
        };
        match outcome.state {
            OpState::Rejected => listed(&mut self.rejections),
            OpState::Conflict => listed(&mut self.conflicts),
            OpState::Done if outcome.message.is_some() => listed(&mut self.adjusted),
            _ => {}
        }
        if op.follows {
            self.follow_ups_rejected += u64::from(matches!(outcome.state, OpState::Rejected | OpState::Conflict));
            return;
        }
        self.planned += 1;
        let rows = &mut self.outcomes;
        *match (outcome.state, op.action) {
            (OpState::Rejected, _) => &mut rows.rejected,
            (OpState::Conflict | OpState::Sent, _) => &mut rows.skipped,
            (OpState::Unchanged, _) => &mut rows.unchanged,
            (OpState::Done, Action::Write(WriteKind::Create | WriteKind::Undelete)) => &mut rows.created,
            (OpState::Done, Action::Write(WriteKind::Delete)) => &mut rows.deleted,
            (OpState::Done, _) => &mut rows.updated,
        } += 1;
    }

    /// The status that follows from the outcomes.
    pub fn ended(&self) -> RunStatus {
        let clean = self.outcomes.rejected == 0 && self.outcomes.skipped == 0 && self.follow_ups_rejected == 0;
        if clean { RunStatus::Succeeded } else { RunStatus::Partial }
    }
}
