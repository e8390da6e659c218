//! What can go wrong with the catalog.

use dynavault_model::{Diagnose, FaultKind};

/// A catalog operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The file cannot be opened or made.
    #[error("could not open the catalog {path}")]
    Open {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The folder of the file cannot be made.
    #[error("could not make the folder of the catalog {path}")]
    Folder {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file was made by a newer version.
    #[error("the catalog {path} has version {found}, this program knows up to {known}")]
    TooNew {
        /// The file.
        path: String,
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// A statement failed.
    #[error("could not {what} in the catalog")]
    Statement {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The catalog's thread is gone.
    #[error("the catalog has been closed")]
    Closed,
}

/// The disk is full, or failed in a way that a full disk does too.
fn no_room(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::SystemIoFailure))
}

/// The file is not a database, or not one any more.
fn spoilt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}

impl Diagnose for CatalogError {
    fn remedy(&self) -> Option<String> {
        match self {
            Self::Open { path, source } if no_room(source) => Some(format!("free space on the disk of {path}")),
            Self::Open { path, source } if spoilt(source) => Some(format!(
                "if {path} is the catalog, move it away and run `dynavault catalog rebuild`: the vault has every snapshot; \
                 else check catalog.path"
            )),
            Self::Open { path, .. } | Self::Folder { path, .. } => {
                Some(format!("check catalog.path and that {path} may be written"))
            }
            Self::TooNew { .. } => {
                Some("use a newer dynavault, or move the file away and run `dynavault catalog rebuild`".into())
            }
            Self::Statement { source, .. } if no_room(source) => Some("free space on the disk of the catalog".into()),
            Self::Statement { source, .. } if spoilt(source) => {
                Some("move the file away and run `dynavault catalog rebuild`: the vault has every snapshot".into())
            }
            Self::Statement { .. } | Self::Closed => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Open { source, .. } if no_room(source) => FaultKind::Failed,
            Self::Open { .. } | Self::Folder { .. } | Self::TooNew { .. } => FaultKind::Usage,
            _ => FaultKind::Failed,
        }
    }
}
