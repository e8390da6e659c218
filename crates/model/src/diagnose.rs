//! The two questions every public error answers: is it worth trying again, and what can the operator do.

use std::fmt::Write;
use std::time::Duration;

/// Whether the same operation may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Trying again changes nothing.
    Permanent,
    /// The other side named a time.
    After(Duration),
    /// Worth trying again with growing pauses.
    Backoff,
    /// Somebody asked to stop.
    Cancelled,
}

/// Coarse class of a failure; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The operation failed.
    Failed,
    /// Usage or configuration is wrong.
    Usage,
    /// Sign-in or permission.
    SignIn,
    /// Another run holds the lock.
    Busy,
    /// Stored data is damaged.
    Damage,
    /// Interrupted by the operator.
    Cancelled,
}

/// Implemented by every public error of the libraries.
pub trait Diagnose: std::error::Error {
    /// Whether the same operation may succeed later.
    fn retry(&self) -> Retry {
        Retry::Permanent
    }

    /// One sentence the operator can act on.
    fn remedy(&self) -> Option<String> {
        None
    }

    /// Coarse class; decides the exit code.
    fn kind(&self) -> FaultKind {
        FaultKind::Failed
    }
}

/// The messages of an error and its causes, joined by `: `. Causes are not repeated in our own messages.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let message = inner.to_string();
        // Foreign errors often repeat their cause in their own text.
        if !text.ends_with(&message) {
            let _infallible = write!(text, ": {message}");
        }
        cause = inner.source();
    }
    text
}
