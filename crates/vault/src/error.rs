//! What can go wrong with a vault.

use dynavault_model::{Diagnose, FaultKind, Retry, SnapshotId};
use dynavault_store::StoreError;

use crate::crypt::KeyError;

/// A vault operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The store failed.
    #[error("could not {what}")]
    Store {
        /// What was being done, e.g. `write segment accounts/01J….jsonl.zst`.
        what: String,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// An object does not hold what its name, its index or its manifest says.
    #[error("object {object} is damaged: {detail}")]
    Damaged {
        /// Name of the object.
        object: String,
        /// What does not fit.
        detail: String,
    },
    /// An object is encrypted and none of our keys opens it.
    #[error("object {object} is encrypted and cannot be opened with the keys at hand")]
    NoKey {
        /// Name of the object.
        object: String,
    },
    /// The place holds no vault.
    #[error("there is no vault at {place}")]
    NotAVault {
        /// The store.
        place: String,
    },
    /// The vault is of a format this version does not know.
    #[error("the vault has format {found}, this version reads and writes format {known}")]
    UnknownFormat {
        /// Format of the vault.
        found: u32,
        /// Format we know.
        known: u32,
    },
    /// There is no such snapshot.
    #[error("environment {environment} has no snapshot {wanted}")]
    NoSnapshot {
        /// The environment.
        environment: String,
        /// The snapshot asked for.
        wanted: String,
    },
    /// The snapshot does not have the table.
    #[error("snapshot {snapshot} does not have table {table}")]
    NoTable {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The table asked for.
        table: String,
    },
    /// A key cannot be used.
    #[error("could not use the vault's keys")]
    Key(#[source] KeyError),
    /// Local scratch space failed.
    #[error("could not use the scratch folder {path}")]
    Scratch {
        /// The folder or file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A row cannot be stored.
    #[error("a row of table {table} cannot be stored: {detail}")]
    Row {
        /// The table.
        table: String,
        /// Why.
        detail: String,
    },
    /// The work was stopped.
    #[error("cancelled")]
    Cancelled,
}

impl VaultError {
    /// A store failure while doing `what`.
    pub(crate) fn store(what: impl Into<String>) -> impl FnOnce(StoreError) -> Self {
        let what = what.into();
        move |source| Self::Store { what, source }
    }

    /// An I/O failure on `object`; our own errors travel inside `io::Error` through the age and zstd layers.
    pub(crate) fn io(object: impl ToString) -> impl FnOnce(std::io::Error) -> Self {
        let object = object.to_string();
        move |error| match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(foreign) => Self::Damaged { object, detail: foreign.to_string() },
        }
    }

    /// Damage in `object`.
    pub(crate) fn damaged(object: impl ToString, detail: impl ToString) -> Self {
        Self::Damaged { object: object.to_string(), detail: detail.to_string() }
    }
}

impl Diagnose for VaultError {
    fn retry(&self) -> Retry {
        match self {
            Self::Store { source, .. } => source.retry(),
            Self::Cancelled => Retry::Cancelled,
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Store { source, .. } => source.remedy(),
            Self::Damaged { .. } => {
                Some("run `dynavault verify --deep` to see what else is damaged and which snapshots are whole".into())
            }
            Self::NoKey { .. } => {
                Some("set vault.identity_file to the file with the secret key of one of the vault's recipients".into())
            }
            Self::NotAVault { .. } => Some("check vault.url; the first backup makes the vault".into()),
            Self::UnknownFormat { .. } => {
                Some("use the version of dynavault that wrote the vault, or a newer one".into())
            }
            Self::NoSnapshot { .. } => Some("`dynavault snapshot list` shows the snapshots".into()),
            Self::NoTable { .. } => Some("`dynavault snapshot show` lists the tables of a snapshot".into()),
            Self::Key(source) => source.remedy(),
            Self::Scratch { .. } => Some("check that the disk is not full and the folder may be written".into()),
            Self::Row { .. } | Self::Cancelled => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Store { source, .. } => source.kind(),
            Self::Damaged { .. } => FaultKind::Damage,
            Self::Key(_)
            | Self::NoKey { .. }
            | Self::NotAVault { .. }
            | Self::NoSnapshot { .. }
            | Self::NoTable { .. } => FaultKind::Usage,
            Self::Cancelled => FaultKind::Cancelled,
            _ => FaultKind::Failed,
        }
    }
}
