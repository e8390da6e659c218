//! What ends a run, as opposed to a table of it.

use dynavault_catalog::CatalogError;
use dynavault_model::{Diagnose, FaultKind, Retry, SourceError};
use dynavault_vault::VaultError;

use crate::state::StateError;

/// A failure of the backup path. Failures of single tables are not errors: they are in the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The environment cannot be read at all.
    #[error("could not read the environment")]
    Source(#[source] SourceError),
    /// The vault cannot be written, or what is needed of it cannot be read.
    #[error("could not use the vault")]
    Vault(#[source] VaultError),
    /// The catalog cannot be used.
    #[error("could not use the catalog")]
    Catalog(#[from] CatalogError),
    /// Local state cannot be used.
    #[error("could not use the local state")]
    State(#[from] StateError),
    /// The environment is not the one the vault has under this name.
    #[error("environment {environment} is organization {found}, the vault's last snapshot is of organization {known}")]
    OtherEnvironment {
        /// Configured name.
        environment: String,
        /// What the service says now.
        found: String,
        /// What the last snapshot says.
        known: String,
    },
    /// The lock of the environment was lost while the run went on.
    #[error("lost the lock of environment {environment}; another run may be writing")]
    LockLost {
        /// Configured name.
        environment: String,
    },
    /// No table could be captured.
    #[error("no table of environment {environment} could be captured: {reason}")]
    NothingCaptured {
        /// Configured name.
        environment: String,
        /// Why the first of them could not.
        reason: String,
    },
    /// What was asked for is not there.
    #[error("{text:?} {reason}")]
    NothingSelected {
        /// What was typed.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A part of the run ended in a way it never should.
    #[error("a part of the run broke off: {what}")]
    Broken {
        /// Which part.
        what: String,
    },
    /// Stopped by the operator.
    #[error("cancelled")]
    Cancelled,
}

impl From<VaultError> for PipelineError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Cancelled => Self::Cancelled,
            other => Self::Vault(other),
        }
    }
}

impl From<SourceError> for PipelineError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Cancelled => Self::Cancelled,
            other => Self::Source(other),
        }
    }
}

impl Diagnose for PipelineError {
    fn retry(&self) -> Retry {
        match self {
            Self::Source(source) => source.retry(),
            Self::Vault(source) => source.retry(),
            Self::Cancelled => Retry::Cancelled,
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Source(source) => source.remedy(),
            Self::Vault(source) => source.remedy(),
            Self::Catalog(source) => source.remedy(),
            Self::State(_) => {
                Some("check that the disk is not full; state files may be deleted, they are made again".into())
            }
            Self::OtherEnvironment { .. } => {
                Some("give the other organization its own environment name in the configuration".into())
            }
            Self::LockLost { .. } => Some("run the backup again: it goes on from the last durable segment".into()),
            Self::NothingSelected { .. } => {
                Some("`dynavault env tables` lists the tables; their names are in lower case".into())
            }
            Self::NothingCaptured { .. } => {
                Some("`dynavault env tables` shows every table with the reason it cannot be read".into())
            }
            Self::Broken { .. } | Self::Cancelled => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Source(source) => source.kind(),
            Self::Vault(source) => source.kind(),
            Self::Catalog(source) => source.kind(),
            Self::OtherEnvironment { .. } | Self::NothingSelected { .. } => FaultKind::Usage,
            Self::LockLost { .. } => FaultKind::Busy,
            Self::Cancelled => FaultKind::Cancelled,
            _ => FaultKind::Failed,
        }
    }
}
