//! The catalog: a SQLite journal of runs and a cache of what the vault says, behind one thread.
//!
//! Two halves with different promises. The *journal* (runs, tables of runs) is history for operators. The *working half*
//! (draft, checkpoints, snapshots, tokens, state files) lets a run go on where the one before stopped, and lets a host
//! without keys write the next manifest. Either can be rebuilt or lost without losing a snapshot: the vault is the truth.
//!
//! Checkpoints are written after the segments they name are durable, and a draft becomes a snapshot only after its
//! manifest is. `docs/design/catalog.md` documents every table for people with a SQL prompt.

mod drafts;
mod error;
mod migrate;
mod restores;
mod runs;
mod snapshots;
mod trust;
mod worker;

pub use drafts::{Checkpoint, Draft, DraftSegment, Phase, Prepared};
pub use error::CatalogError;
pub use restores::{OpOutcome, OpState, RestoreEnd, RestoreRow};
pub use runs::{RunFilter, RunSummary};
pub use snapshots::{Committed, SnapshotSummary, StateFile, TableSummary};
pub use trust::KnownVault;
pub use worker::Catalog;
