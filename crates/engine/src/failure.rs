//! How a use case fails: the error with its causes, what the operator can do, and the class that decides the exit code.

use dynavault_model::{Diagnose, FaultKind};

/// A failed use case.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn std::error::Error + Send + Sync>,
    remedy: Option<String>,
    kind: FaultKind,
}

impl Failure {
    /// A failure in our own words.
    pub fn new(kind: FaultKind, message: impl Into<String>, remedy: Option<String>) -> Self {
        Self { error: message.into().into(), remedy, kind }
    }

    /// A usage or configuration failure.
    pub fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(FaultKind::Usage, message, Some(remedy.into()))
    }

    /// The message with its causes.
    pub fn message(&self) -> String {
        dynavault_model::chain(self.error.as_ref())
    }

    /// One sentence the operator can act on.
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// The class, which decides the exit code.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }
}

impl<E: Diagnose + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { remedy: error.remedy(), kind: error.kind(), error: Box::new(error) }
    }
}
