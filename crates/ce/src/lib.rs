//! Dataverse in both directions: which tables there are, how each is read, what may be written and how, and what the service's
//! refusals mean.
//!
//! The facts are in Microsoft's Web API documentation; comments name the sections of the project's protocol notes
//! (`dataverse`, by section) that quote them. A [`DataverseSource`] sends nothing that changes an environment; a
//! [`DataverseTarget`] does, through a client that was made for it.

mod abilities;
mod ask;
mod base64_body;
mod bulk;
mod defaults;
mod definition;
mod files;
mod known;
mod look;
mod metadata;
mod refusals;
mod rules;
mod sizes;
mod source;
mod target;
mod transitions;
mod upload;
mod verdicts;
mod wire;
mod writer;

pub use defaults::excluded_by_default;
pub use source::{DataverseSource, SourceOptions};
pub use target::DataverseTarget;
