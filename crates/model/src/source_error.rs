//! What can go wrong while reading from an environment, in the terms the pipeline decides on.

use std::time::Duration;

use crate::{Diagnose, FaultKind, Retry, TableRef};

/// A failure of a [`crate::RowSource`]. Retries have been made already; what arrives here is final for this request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The delta token is too old; the table has to be compared in full.
    #[error("the change token of table {table} has expired")]
    TokenExpired {
        /// The table.
        table: TableRef,
    },
    /// A stored next link is no longer accepted; the table has to be read from its start.
    #[error("the service no longer accepts the page link of table {table}: {message}")]
    LinkRejected {
        /// The table.
        table: TableRef,
        /// The service's words.
        message: String,
    },
    /// The service does not track changes of this table after all.
    #[error("the service does not track changes of table {table}: {message}")]
    NotTracked {
        /// The table.
        table: TableRef,
        /// The service's words.
        message: String,
    },
    /// This table cannot be read; others can.
    #[error("table {table} cannot be read: {reason}")]
    Refused {
        /// The table.
        table: TableRef,
        /// The service's words or ours.
        reason: String,
        /// What the operator can do.
        remedy: Option<String>,
    },
    /// No request of this run can succeed.
    #[error("{reason}")]
    StopRun {
        /// One sentence.
        reason: String,
        /// What the operator can do.
        remedy: Option<String>,
    },
    /// Sign-in failed or the environment does not accept the identity.
    #[error("{reason}")]
    SignIn {
        /// One sentence.
        reason: String,
        /// What the operator can do.
        remedy: Option<String>,
    },
    /// Every try within the budget failed.
    #[error("gave up {what} after {tries} tries in {seconds} s (limit: {limit}): {last}", seconds = elapsed.as_secs())]
    Exhausted {
        /// What was being read.
        what: String,
        /// Tries made.
        tries: u32,
        /// Time spent.
        elapsed: Duration,
        /// The limit that ended it, by name and value.
        limit: String,
        /// The last failure.
        last: String,
    },
    /// The service broke its own protocol: paging loop, link to a foreign host, malformed JSON.
    #[error("unusable answer while reading {what}: {detail}")]
    Protocol {
        /// What was being read.
        what: String,
        /// What was wrong.
        detail: String,
    },
    /// The thing asked for does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The sink stopped the reading; it holds its own error.
    #[error("writing stopped the reading")]
    SinkStopped,
    /// The operator stopped the run.
    #[error("cancelled")]
    Cancelled,
}

impl Diagnose for SourceError {
    fn retry(&self) -> Retry {
        match self {
            Self::Cancelled => Retry::Cancelled,
            Self::Exhausted { .. } => Retry::Backoff,
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Refused { remedy, .. } | Self::StopRun { remedy, .. } | Self::SignIn { remedy, .. } => remedy.clone(),
            Self::Exhausted { .. } => {
                Some("check the connection and the service's health page, then run the backup again: it goes on from the last durable segment".into())
            }
            _ => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::SignIn { .. } => FaultKind::SignIn,
            Self::Cancelled => FaultKind::Cancelled,
            _ => FaultKind::Failed,
        }
    }
}
