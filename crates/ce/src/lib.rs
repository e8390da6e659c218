//! Dataverse as a source of rows: which tables there are, how each is read, and what the service's refusals mean.
//!
//! The facts are in Microsoft's Web API documentation; comments name the sections of the project's protocol notes
//! (`dataverse`, by section) that quote them. This crate sends nothing that changes an environment.

mod base64_body;
mod defaults;
mod files;
mod metadata;
mod refusals;
mod source;

pub use defaults::excluded_by_default;
pub use source::{DataverseSource, SourceOptions};
