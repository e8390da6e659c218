//! The plan file: what a restore will do, one JSON object per line.
//!
//! ```text
//!  {"plan":{…}}        head: format, what is restored where, options, who the environment said it is
//!  {"table":{…}}       one per table: counts, what cannot be written and why
//!  {"finding":{…}}     something a person should know before applying
//!  {"conflict":{…}}    a value that differs and is left alone, both sides shown
//!  {"op":{…}}          operations, in the order in which they are carried out
//!  {"end":{…}}         counts and the digest of every byte before this line
//! ```
//!
//! Operations of one step and wave may run side by side; the next wave begins when they are done.

use std::collections::BTreeMap;

use dynavault_model::{EnvironmentIdentity, Guard, RowKey, SnapshotId, WriteKind, WriteOptions};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Version of the plan format.
pub const FORMAT: u32 = 1;

/// What kind of plan it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanKind {
    /// Puts rows of a snapshot back.
    Restore,
    /// Takes back what a restore did.
    Undo,
}

/// What to do with a value that differs between the snapshot and the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictPolicy {
    /// Leave rows that exist alone.
    Skip,
    /// The snapshot wins.
    Overwrite,
    /// Fill what is empty in the environment; leave every other value alone.
    #[default]
    FillEmpty,
    /// The side that was modified last wins, row by row.
    NewerWins,
    /// Make no plan when there is a conflict.
    Fail,
}

/// First line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanHead {
    /// Format version.
    pub format: u32,
    /// Kind.
    pub kind: PlanKind,
    /// Program and version that made it.
    pub tool: String,
    /// When it was made.
    pub created: Timestamp,
    /// Configured name of the environment whose snapshot is restored.
    pub source: String,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// For an undo: the run that is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
    /// Configured name of the environment that is written to.
    pub target: String,
    /// Who that environment said it is; applying it elsewhere is refused.
    pub identity: EnvironmentIdentity,
    /// The selection in words, as on the command line.
    pub selection: Vec<String>,
    /// Conflict policy.
    pub conflict: ConflictPolicy,
    /// Rows that the snapshot does not have are deleted.
    pub mirror: bool,
    /// How writes are made.
    pub options: WriteOptions,
}

/// What one table's part of the plan is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TablePlan {
    /// Logical name.
    pub table: String,
    /// Wave in which its rows are written.
    pub wave: u32,
    /// Rows selected from the snapshot.
    pub selected: u64,
    /// Operations.
    pub counts: Counts,
    /// Columns of the snapshot that cannot be written, by reason code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_written: BTreeMap<String, Vec<String>>,
    /// Requests it takes when nothing is refused.
    pub requests: u64,
}

/// Operations by what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Rows made.
    pub create: u64,
    /// Rows brought back from the recycle bin.
    pub undelete: u64,
    /// Rows changed, lookups filled in later included.
    pub update: u64,
    /// Rows that are already as in the snapshot.
    pub unchanged: u64,
    /// Links made.
    pub link: u64,
    /// Links removed.
    pub unlink: u64,
    /// Pieces of content uploaded.
    pub content: u64,
    /// Changes of state, reopening included.
    pub state: u64,
    /// Rows deleted.
    pub delete: u64,
    /// Values left alone because of the conflict policy.
    pub conflicts: u64,
    /// Rows left alone because they cannot be restored.
    pub impossible: u64,
}

impl Counts {
    /// Adds the operations of another table.
    pub(crate) fn add(&mut self, other: &Self) {
        self.create += other.create;
        self.undelete += other.undelete;
        self.update += other.update;
        self.unchanged += other.unchanged;
        self.link += other.link;
        self.unlink += other.unlink;
        self.content += other.content;
        self.state += other.state;
        self.delete += other.delete;
        self.conflicts += other.conflicts;
        self.impossible += other.impossible;
    }
}

/// Something a person should know before applying.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// A code of the restore guide, e.g. `missing-target`.
    pub code: String,
    /// Table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// One sentence.
    pub message: String,
    /// How many rows it is about; only the first of each kind are listed one by one.
    #[serde(default = "one")]
    pub rows: u64,
}

fn one() -> u64 {
    1
}

/// A value that is left alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conflict {
    /// Table.
    pub table: String,
    /// Row.
    pub id: String,
    /// Member.
    pub column: String,
    /// Value in the snapshot.
    pub snapshot: Box<RawValue>,
    /// Value in the environment.
    pub live: Box<RawValue>,
}

/// The order of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Closed rows that have to be changed are opened.
    Reopen,
    /// Rows are made, brought back and changed.
    Rows,
    /// Lookups that had to wait for their rows.
    Lookups,
    /// Parties of activities that exist.
    Parties,
    /// Links of many-to-many relationships.
    Links,
    /// Files, images, notes, attachments.
    Content,
    /// Owners, parents first.
    Owners,
    /// State and status, last of all writes to a row.
    State,
    /// Rows and links the snapshot does not have, children first.
    Deletes,
}

/// One operation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Op {
    /// Number within the plan, from 0, without gaps.
    pub n: u64,
    /// Step.
    pub step: Step,
    /// Wave within the step.
    pub wave: u32,
    /// Logical name.
    pub table: String,
    /// What is done.
    #[serde(rename = "do")]
    pub action: Action,
    /// The row.
    pub key: RowKey,
    /// Members written, in captured form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Box<RawValue>>,
    /// The same members as they are now; for a deletion, the whole row; for a row that an undo makes again, the row that it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Box<RawValue>>,
    /// Condition.
    pub guard: Guard,
    /// When the row was last modified, as the plan saw it: tells a person's change from a side effect of the run's own writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
    /// Party rows of an activity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parties: Vec<Box<RawValue>>,
    /// Party rows as they are now, for `parties` and for the deletion of an activity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_parties: Vec<Box<RawValue>>,
    /// Rows of other tables that go with a deletion and are no operations of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub along: Vec<Gone>,
    /// The close activity that belongs to a state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close: Option<Box<RawValue>>,
    /// Content to upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ContentOp>,
    /// User on whose behalf it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf: Option<String>,
    /// An earlier operation of the plan is about the same row; results count rows once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows: bool,
}

/// A row that the service deletes along with another: an address of an account, the other half of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// Logical name.
    pub table: String,
    /// The row as it was.
    pub row: Box<RawValue>,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Content is uploaded.
    Upload,
    /// Content is removed.
    Clear,
    /// A write of rows or links.
    #[serde(untagged)]
    Write(WriteKind),
}

/// Content of a column of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContentOp {
    /// Column.
    pub column: String,
    /// SHA-256 of the bytes in the vault; none when removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Whether the object is encrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Size in bytes.
    pub size: u64,
    /// File name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// MIME type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime: Option<String>,
}

/// Last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanEnd {
    /// Operations.
    pub ops: u64,
    /// Sums over all tables.
    pub counts: Counts,
    /// Requests it takes when nothing is refused.
    pub requests: u64,
    /// Estimated minutes under the service's limits.
    pub minutes: u64,
    /// BLAKE3 of every byte before this line, in hexadecimal.
    pub digest: String,
}

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanLine {
    /// First.
    #[serde(rename = "plan")]
    Head(Box<PlanHead>),
    /// A table.
    Table(TablePlan),
    /// A finding.
    Finding(Finding),
    /// A conflict.
    Conflict(Conflict),
    /// An operation.
    Op(Box<Op>),
    /// Last.
    End(PlanEnd),
}
