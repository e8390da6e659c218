//! What a store cannot do, and what the operator can.

use std::time::Duration;

use dynavault_identity::TokenError;
use dynavault_model::{Diagnose, FaultKind, Retry};

use crate::BlobName;

/// A foreign cause. Boxed, because results of the store are on every hot path.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failure of a store. Retries have been made already.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The name cannot be used in every store.
    #[error("{name:?} cannot be the name of an object: {reason}")]
    Name {
        /// The start of the name.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The location cannot be understood or used.
    #[error("the vault location {text:?} cannot be used: {reason}")]
    Location {
        /// The location, without secrets.
        text: String,
        /// What is wrong.
        reason: String,
        /// What the operator can do.
        remedy: String,
    },
    /// No such object.
    #[error("there is no object {name}")]
    NotFound {
        /// The name.
        name: BlobName,
    },
    /// An object of that name is there; it was left as it is.
    #[error("object {name} exists already")]
    AlreadyExists {
        /// The name.
        name: BlobName,
    },
    /// A create request broke, a later one found an object of that name, and reading it is not allowed.
    #[error("it is not known whether object {name} was written by this run")]
    Unsettled {
        /// The name.
        name: BlobName,
        /// Why it could not be read.
        #[source]
        source: Cause,
    },
    /// Another process holds the lock.
    #[error("{name} is locked by {holder}")]
    Busy {
        /// Name of the lock.
        name: BlobName,
        /// The holder, as it describes itself.
        holder: String,
    },
    /// The range is longer than one read may be.
    #[error("{length} bytes of object {name} were asked for at once")]
    ReadTooLong {
        /// The object.
        name: BlobName,
        /// Bytes asked for.
        length: u64,
    },
    /// The object would be longer than the store can keep.
    #[error("object {name} is longer than the store can keep")]
    TooLarge {
        /// The object.
        name: BlobName,
    },
    /// The disk or quota is full.
    #[error("no space left while {action} {what}")]
    NoSpace {
        /// What was done.
        action: &'static str,
        /// With which object or folder.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file system is mounted read-only.
    #[error("the file system is read-only, which prevented {action} {what}")]
    ReadOnly {
        /// What was done.
        action: &'static str,
        /// With which object or folder.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Not allowed.
    #[error("not allowed: {action} {what}")]
    Denied {
        /// What was done.
        action: &'static str,
        /// With which object or folder.
        what: String,
        /// What the operator can do.
        remedy: String,
        /// What the service or system said.
        #[source]
        source: Cause,
    },
    /// No token for the store.
    #[error("could not sign in to the vault")]
    SignIn {
        /// Why.
        #[source]
        source: Box<TokenError>,
    },
    /// Every try within the budget failed.
    #[error("gave up {action} {what} after {tries} tries in {seconds} s (limit: {limit})", seconds = elapsed.as_secs())]
    Exhausted {
        /// What was done.
        action: &'static str,
        /// With which object.
        what: String,
        /// Where, without secrets.
        location: String,
        /// Tries made.
        tries: u32,
        /// Time spent.
        elapsed: Duration,
        /// The limit that ended it, by name and value.
        limit: String,
        /// The last failure.
        #[source]
        source: Cause,
    },
    /// Anything else the service or the system refuses.
    #[error("failed {action} {what}")]
    Failed {
        /// What was done.
        action: &'static str,
        /// With which object or folder.
        what: String,
        /// What it said.
        #[source]
        source: Cause,
    },
}

impl Diagnose for StoreError {
    fn retry(&self) -> Retry {
        match self {
            Self::Exhausted { .. } => Retry::Backoff,
            Self::SignIn { source } => source.retry(),
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Location { remedy, .. } | Self::Denied { remedy, .. } => Some(remedy.clone()),
            Self::Unsettled { .. } => Some(
                "run again, which uses new names; give the vault credential the read right to have this settled".into(),
            ),
            Self::Busy { .. } => Some("wait for the other run; the lock of a crashed one ends within a minute".into()),
            Self::NoSpace { .. } => {
                Some("free space or raise the quota, then run again: it goes on from the last durable segment".into())
            }
            Self::ReadOnly { .. } => Some("mount the file system of the vault writable".into()),
            Self::SignIn { source } => source.remedy(),
            Self::Exhausted { location, .. } => Some(format!(
                "check that {location} can be reached from this host, then run again: it goes on from the last durable segment"
            )),
            _ => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Name { .. } | Self::Location { .. } => FaultKind::Usage,
            Self::Busy { .. } => FaultKind::Busy,
            Self::Denied { .. } => FaultKind::SignIn,
            Self::SignIn { source } => source.kind(),
            _ => FaultKind::Failed,
        }
    }
}
