//! What can go wrong in a restore as a whole. Refused rows are data, not errors.

use std::path::PathBuf;

use dynavault_catalog::CatalogError;
use dynavault_model::{Diagnose, FaultKind, Retry, SourceError};
use dynavault_vault::VaultError;

/// A restore that cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The selection makes no sense.
    #[error("{reason}")]
    Selection {
        /// What is wrong.
        reason: String,
        /// What to say instead.
        remedy: String,
    },
    /// The plan file cannot be used.
    #[error("the plan {path} cannot be carried out: {reason}", path = path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There are conflicts and the policy is to stop then.
    #[error("{count} values differ between the snapshot and the environment, the first in {first}")]
    Conflicts {
        /// How many.
        count: u64,
        /// Table, row and column of the first.
        first: String,
    },
    /// The environment could not be read or written.
    #[error(transparent)]
    Environment(#[from] SourceError),
    /// The vault could not be read or written.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The journal could not be written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A local file could not be read or written.
    #[error("could not use {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A table of the plan is not there.
    #[error("table {table} is not in environment {environment}")]
    NoTable {
        /// The table.
        table: String,
        /// The environment.
        environment: String,
    },
    /// A thread of ours ended without an answer.
    #[error("a worker of the restore ended early: {0}")]
    Worker(String),
    /// The operator stopped it.
    #[error("cancelled")]
    Cancelled,
}

impl Diagnose for RestoreError {
    fn retry(&self) -> Retry {
        match self {
            Self::Environment(error) => error.retry(),
            Self::Vault(error) => error.retry(),
            Self::Catalog(error) => error.retry(),
            Self::Cancelled => Retry::Cancelled,
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Selection { remedy, .. } => Some(remedy.clone()),
            Self::Plan { .. } => Some("make a new plan with `dynavault restore`".into()),
            Self::Conflicts { .. } => {
                Some("choose --conflict skip, fill-empty, newer-wins or overwrite, and read the plan".into())
            }
            Self::Environment(error) => error.remedy(),
            Self::Vault(error) => error.remedy(),
            Self::Catalog(error) => error.remedy(),
            Self::File { .. } => Some("check that the disk is not full and the folder may be written".into()),
            Self::NoTable { .. } => Some("import the solution that brings the table, then make a new plan".into()),
            Self::Worker(_) | Self::Cancelled => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Selection { .. } | Self::Plan { .. } | Self::Conflicts { .. } => FaultKind::Usage,
            Self::Environment(error) => error.kind(),
            Self::Vault(error) => error.kind(),
            Self::Catalog(error) => error.kind(),
            Self::Cancelled => FaultKind::Cancelled,
            _ => FaultKind::Failed,
        }
    }
}
