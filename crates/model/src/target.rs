//! The port towards an environment that takes rows, and what the platform knows about writing a table.
//!
//! ```text
//!  RowTarget::rules(schema)         what may be written, in which order, and what never
//!  RowTarget::read_rows(keys)       the rows as they are now                (plan, re-read, proof)
//!  RowTarget::write(kind, rows)     one request's worth of rows ──▶ one outcome for each
//!  RowTarget::upload(file)          bytes of a file, image, note or attachment
//! ```
//!
//! Values travel in the form rows are captured: members of a JSON object, a lookup as `_name_value` with its
//! `lookuplogicalname` annotation. The platform turns them into what its service wants.
//!
//! A target never sends a write twice on its own when the first answer was lost: such a row comes back as
//! [`WriteOutcome::Unknown`], and whoever asked reads it again before deciding.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Call, ContentColumn, Row, SharedSink, SourceError, TableSchema};

/// The address of one row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowKey {
    /// Primary key as the service prints it, e.g. a GUID in lower case.
    pub id: String,
    /// Partition of a row in a partitioned store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
}

impl RowKey {
    /// A key of one part.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), partition: None }
    }
}

/// What has to hold for a write to be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    /// The row must not exist.
    Absent,
    /// The row must exist.
    Present,
    /// The row must still be the version with this entity tag, exactly as the service gave it.
    Unchanged(String),
}

/// What kind of write a batch holds. A batch holds one kind, of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteKind {
    /// A row with its own id; in a link table, a link.
    Create,
    /// Brings a deleted row back from the service's own recycle bin, with the members of `set` on top; where the bin refuses, a
    /// plain creation.
    Undelete,
    /// Some members of an existing row.
    Update,
    /// State and status alone, through the message the table needs.
    State,
    /// Replaces the parties of an activity.
    Parties,
    /// Deletes the row; in a link table, the link.
    Delete,
}

/// One write of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowWrite {
    /// Which row.
    pub key: RowKey,
    /// Members to set, as one compact JSON object in captured form. For a link or the deletion of one, the captured link row.
    pub set: Arc<[u8]>,
    /// Condition.
    pub guard: Guard,
    /// Party rows of an activity in captured form, for `Create` and `Parties`.
    pub parties: Vec<Arc<[u8]>>,
    /// The captured close activity that belongs to a state, for `State`; the message makes it.
    pub close: Option<Arc<[u8]>>,
    /// The state the row is in, for `State`: value of the state member.
    pub from_state: Option<i64>,
    /// User on whose behalf the row is written, as the key of its row in this environment.
    pub on_behalf: Option<String>,
}

/// How writes are made, the same for a whole run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WriteOptions {
    /// Skip the customer's synchronous and asynchronous logic; needs a privilege.
    pub bypass_logic: bool,
    /// Do not trigger flows.
    pub suppress_flows: bool,
}

/// What became of one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Carried out.
    Done,
    /// Not needed: it was so already (the link exists, the row is in that state, the row to delete is gone).
    Unchanged,
    /// The row is not what the guard asked for.
    Conflict {
        /// The service's words.
        message: String,
    },
    /// The service refused this row.
    Rejected(Rejection),
    /// The answer was lost: it may or may not have been carried out. The row has to be read again.
    Unknown {
        /// What was seen.
        message: String,
    },
    /// Surely not sent or not carried out, because another row of the request or the end of the run came first.
    NotSent,
}

/// A refusal in the service's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The service's code as it prints it, e.g. `0x80040217`; empty where it gave none.
    pub code: String,
    /// The service's message.
    pub message: String,
    /// What the engine should do about it.
    #[serde(default)]
    pub class: RejectionClass,
}

/// What a refusal means for the rest of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectionClass {
    /// This row only.
    #[default]
    Row,
    /// A row it refers to is missing; worth another try after that one.
    MissingReference,
    /// The owner cannot own it: unknown, disabled, or without a role.
    Owner,
    /// The row is closed and must be reopened first.
    Closed,
    /// Nothing of this table can be written, e.g. a missing privilege.
    Table,
}

/// Bytes to upload; may be opened again for another try.
pub trait UploadSource: Send + Sync {
    /// A reader from the first byte. Called on a blocking thread.
    fn open(&self) -> io::Result<Box<dyn io::Read + Send>>;
}

/// One piece of content to upload.
#[derive(Clone)]
pub struct Upload {
    /// File name.
    pub name: Option<String>,
    /// MIME type.
    pub mime: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Where the bytes come from.
    pub source: Arc<dyn UploadSource>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Whether the signed-in user may do something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ability {
    /// Yes.
    Granted,
    /// No; the privilege that is missing.
    Missing(String),
    /// The service does not say.
    Unknown,
}

/// What the signed-in user may do in the environment, as far as a restore needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// Skip custom logic.
    pub bypass_logic: Ability,
    /// Keep the original creation time.
    pub created_on: Ability,
    /// Write on behalf of another user.
    pub on_behalf: Ability,
    /// All privileges held, where the service lists them.
    pub privileges: Option<BTreeSet<String>>,
    /// Tables whose deleted rows the service keeps for a while.
    pub recycle_bin: Vec<String>,
    /// Base currency of the environment, where it tells.
    pub base_currency_id: Option<String>,
}

/// What the platform knows about writing one table, from its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRules {
    /// Logical name.
    pub table: String,
    /// How its rows are written.
    pub treatment: Treatment,
    /// Every captured member of a row, and members that exist for writing only.
    pub columns: Vec<ColumnRule>,
    /// State and status, where the table has them.
    pub state: Option<StateRule>,
    /// Member of the owner, e.g. `_ownerid_value`.
    pub owner: Option<String>,
    /// Member that keeps the original creation time when sent at creation, e.g. `overriddencreatedon`, and the member it is
    /// taken from.
    pub created_on: Option<(String, String)>,
    /// Member of the user who made the row, for writing on its behalf.
    pub created_by: Option<String>,
    /// The service compares entity tags on this table.
    pub guards_versions: bool,
    /// Relationships in which rows of this table are the children.
    pub parents: Vec<Relationship>,
    /// The activity tables' party rows go along with them.
    pub is_activity: bool,
}

impl TableRules {
    /// The rule of a member.
    pub fn column(&self, member: &str) -> Option<&ColumnRule> {
        self.columns.iter().find(|column| column.member == member)
    }
}

/// How the rows of a table get into an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Treatment {
    /// Row by row.
    Rows,
    /// Links between two rows: the members that hold their ids, and their tables.
    Links {
        /// First end.
        first: LinkEnd,
        /// Second end.
        second: LinkEnd,
    },
    /// Rows of another table's row, written along with it: parties of activities.
    Along {
        /// Member that names the row they go along with.
        parent: String,
    },
    /// Not as rows; why.
    Never(String),
    /// Only used to find the counterpart of a user, team, business unit, currency or role; never written.
    Reference(String),
}

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEnd {
    /// Table at this end.
    pub table: String,
    /// Member of the link row that holds the id.
    pub member: String,
}

/// What may be written into a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnRule {
    /// Member of a captured row.
    pub member: String,
    /// Logical name of the column.
    pub column: String,
    /// What it holds.
    pub kind: ColumnKind,
    /// May be set when a row is made.
    pub create: bool,
    /// May be set later.
    pub update: bool,
    /// The service refuses a row without it.
    pub required: bool,
    /// Why it is not written, where neither `create` nor `update` holds: a reason code of the restore guide
    /// (`server-set`, `calculated`, `read-only`, `secured`, `content`).
    pub not_written: Option<&'static str>,
}

/// What a column holds, as far as writing needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnKind {
    /// The primary key or a part of it.
    Key,
    /// Text of at most so many characters, where the service tells.
    Text(Option<u64>),
    /// A choice, with the values that exist, where the service tells; several at once for `multi`.
    Choice {
        /// Values in order.
        values: Vec<i64>,
        /// Several values in one string.
        multi: bool,
    },
    /// A reference to a row of one of these tables.
    Lookup {
        /// Logical names.
        targets: Vec<String>,
    },
    /// File, image or body: see the schema's content columns.
    Content,
    /// Anything else.
    Value,
}

/// State and status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRule {
    /// Member of the state, e.g. `statecode`.
    pub state: String,
    /// Member of the status, e.g. `statuscode`.
    pub status: String,
    /// State that new rows are in.
    pub initial: i64,
    /// Statuses that belong to the initial state, where the service tells; such a status may be sent at creation.
    pub initial_statuses: Vec<i64>,
    /// States in which the service refuses other changes until the row is reopened.
    pub closed: Vec<i64>,
    /// Table of the activities that the messages for closing make, and its member that refers to this table.
    pub close_table: Option<(String, String)>,
    /// States that those messages bring a row into.
    pub close_states: Vec<i64>,
    /// Members that the messages for closing write themselves: they go along with the state, or the service's own values win.
    pub closing_writes: Vec<String>,
    /// The state of a row changes those of rows below it: publishing a product family publishes its members.
    pub reaches_below: bool,
}

/// A relationship from a child's lookup to its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relationship {
    /// Member of the child, e.g. `_parentaccountid_value`.
    pub member: String,
    /// Table of the parent.
    pub parent: String,
    /// Deleting the parent deletes the child.
    pub deletes: bool,
    /// Giving the parent to another owner gives the child to that owner too.
    pub assigns: bool,
}

/// How a particular row comes into being.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Birth {
    /// By being written.
    Written,
    /// Together with the row it belongs to: to be updated, not created. Member that names that row.
    WithParent(String),
    /// Through a message that changes the state of the row this member names; where none is sent, by being written.
    ByState(String),
    /// Together with another row of the same table: `connection`'s reciprocal, instances of a recurring series; why.
    Mirrored(String),
    /// Not at all; why.
    Never(String),
}

/// An environment, for writing.
#[async_trait]
pub trait RowTarget: Send + Sync {
    /// What the user may do. A few requests.
    async fn abilities(&self, call: &Call) -> Result<Abilities, SourceError>;

    /// What the platform knows about a table. Pure.
    fn rules(&self, schema: &TableSchema) -> TableRules;

    /// How one captured row comes into being. Pure.
    fn birth(&self, rules: &TableRules, row: &Row<'_>) -> Birth;

    /// Whether rows of the table may come into being with their parents ([`Birth::WithParent`]); such rows belong to them.
    fn has_companions(&self, _rules: &TableRules) -> bool {
        false
    }

    /// Most rows of one request, as learned from the time earlier ones took. At least 1.
    fn batch_rows(&self, table: &TableSchema, kind: WriteKind) -> usize;

    /// How many requests `rows` writes take when none is refused; for plans.
    fn requests_for(&self, table: &TableSchema, kind: WriteKind, rows: u64) -> u64;

    /// How many requests an upload of `size` bytes takes when none is refused; for plans.
    fn upload_requests(&self, _column: &ContentColumn, size: u64, _mime: Option<&str>) -> u64 {
        size.div_ceil(4 << 20).max(1) + 2
    }

    /// Delivers the rows that exist among `keys`, each with its entity tag, in any order. Retries inside. A link is asked for
    /// by the id of its own row, or by its two ends: the first as `id`, the second as `partition`.
    async fn read_rows(
        &self,
        table: &TableSchema,
        keys: &[RowKey],
        sink: SharedSink,
        call: &Call,
    ) -> Result<(), SourceError>;

    /// Which of `keys` are in the service's recycle bin. Only for tables named by [`Abilities::recycle_bin`].
    async fn in_bin(&self, table: &TableSchema, keys: &[RowKey], call: &Call) -> Result<Vec<RowKey>, SourceError>;

    /// Writes rows, at most [`Self::batch_rows`] of them, and gives one outcome for each, in order. One refused row does not
    /// keep the others from being written. An error means that no row is known to have been written beyond those whose
    /// outcome an earlier call gave; rows of this call have to be read again.
    async fn write(
        &self,
        table: &TableSchema,
        kind: WriteKind,
        rows: &[RowWrite],
        options: &WriteOptions,
        call: &Call,
    ) -> Result<Vec<WriteOutcome>, SourceError>;

    /// Puts content into an existing row, replacing what is there.
    async fn upload(
        &self,
        table: &TableSchema,
        column: &ContentColumn,
        key: &RowKey,
        upload: &Upload,
        options: &WriteOptions,
        call: &Call,
    ) -> Result<WriteOutcome, SourceError>;

    /// Removes content from a row.
    async fn clear(
        &self,
        table: &TableSchema,
        column: &ContentColumn,
        key: &RowKey,
        options: &WriteOptions,
        call: &Call,
    ) -> Result<WriteOutcome, SourceError>;
}
