//! The words of the domain as types, and the ports between layers.
//!
//! A *row* travels from a [`RowSource`] (an environment) through a [`RowSink`] (the backup pipeline) as the bytes the
//! service sent; nothing in this crate parses a value into a number or a string. No I/O happens here and no runtime is
//! needed: everything is a plain function on values, or a trait that outer layers implement.

mod clock;
mod content;
mod diagnose;
mod ids;
mod ports;
mod report;
mod row;
mod scan;
mod schema;
mod source_error;
mod tally;
mod target;

pub use clock::Clock;
pub use content::{ContentColumn, ContentItem, ContentKind};
pub use diagnose::{Diagnose, FaultKind, Retry, chain};
pub use ids::{ParseIdError, RowId, RunId, SegmentId, SnapshotId};
pub use ports::{
    Call, ContentEnd, ContentSink, Deletion, EnvironmentIdentity, Observer, PageEnd, PageRequest, RowSink, RowSource,
    SharedContentSink, SharedSink, Stopped, TableEvent,
};
pub use report::{RunKind, RunReport, RunStatus, SchemaDrift, TableMode, TableReport, TableStatus, UnobservedInterval};
pub use row::Row;
pub use scan::{Malformed, Member, Scan, Scanner, array_items, minify, scan};
pub use schema::{Column, Platform, Refusal, TableListing, TableRef, TableSchema};
pub use source_error::SourceError;
pub use tally::{Tally, TallyTotals};
pub use target::{
    Abilities, Ability, Birth, ColumnKind, ColumnRule, Guard, LinkEnd, Rejection, RejectionClass, Relationship, RowKey,
    RowTarget, RowWrite, StateRule, TableRules, Treatment, Upload, UploadSource, WriteKind, WriteOptions, WriteOutcome,
};
