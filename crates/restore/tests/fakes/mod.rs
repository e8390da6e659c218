//! An environment and a vault in memory, small enough to be written down beside a test.

mod planned;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dynavault_model::{
    Abilities, Ability, Birth, Call, Clock, Column, ColumnKind, ColumnRule, ContentColumn, ContentEnd, ContentItem,
    ContentKind, EnvironmentIdentity, LinkEnd, PageEnd, PageRequest, Platform, Relationship, Row, RowId, RowKey,
    RowSource, RowTarget, RowWrite, RunId, RunKind, RunReport, RunStatus, SharedContentSink, SharedSink, SnapshotId,
    SourceError, StateRule, TableListing, TableMode, TableRef, TableRules, TableSchema, TableStatus, Tally, Treatment,
    Upload, WriteKind, WriteOptions, WriteOutcome, scan,
};
use dynavault_restore::{Op, PlanFile, PlanRequest, PlanSummary, PlanTarget, RestoreError, plan};
use dynavault_store::MemoryStore;
use dynavault_vault::{
    ContentReference, Coverage, CutWindow, FORMAT, Identities, Manifest, Recipients, SegmentKind, SegmentWriter,
    TableManifest, Vault, version_hash,
};
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub(crate) use planned::{Planned, identity, planned, planned_in, snapshot};

/// Rows of a page: pages have to be followed.
const PAGE_ROWS: u32 = 3;
/// Rows of a write request.
const BATCH_ROWS: u64 = 10;

/// A clock that stands still.
pub(crate) struct Still;

#[async_trait]
impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, _duration: Duration) {}
}

/// The id of a test row: `id(7)` ends in 7.
pub(crate) fn id(n: u32) -> String {
    format!("00000000-0000-0000-0000-{n:012}")
}

/// A table being described.
#[derive(Clone)]
pub(crate) struct Table {
    pub(crate) schema: TableSchema,
    pub(crate) rules: TableRules,
}

impl Table {
    pub(crate) fn new(name: &str) -> Self {
        let key = format!("{name}id");
        let table = Self {
            schema: TableSchema {
                table: TableRef { platform: Platform::Ce, name: name.into() },
                entity_set: format!("{name}s"),
                key: vec![key.clone()],
                columns: Vec::new(),
                content: Vec::new(),
                tracked: false,
                page_rows_max: PAGE_ROWS,
                not_captured: Vec::new(),
                definition: serde_json::json!({"LogicalName": name}),
            },
            rules: TableRules {
                table: name.into(),
                treatment: Treatment::Rows,
                columns: Vec::new(),
                state: None,
                owner: None,
                created_on: None,
                created_by: None,
                guards_versions: true,
                parents: Vec::new(),
                is_activity: false,
            },
        };
        table.column(&key, &key, ColumnKind::Key, (true, false), None).fixed("versionnumber").fixed("modifiedon")
    }

    fn column(
        mut self,
        name: &str,
        member: &str,
        kind: ColumnKind,
        (create, update): (bool, bool),
        not_written: Option<&'static str>,
    ) -> Self {
        let (column, member) = (name.to_string(), member.to_string());
        self.schema.columns.push(Column {
            name: column.clone(),
            member: member.clone(),
            kind: "StringType".into(),
            secured: false,
        });
        self.rules.columns.push(ColumnRule { member, column, kind, create, update, required: false, not_written });
        self
    }

    /// A column the service sets.
    pub(crate) fn fixed(self, name: &str) -> Self {
        self.column(name, name, ColumnKind::Value, (false, false), Some("server-set"))
    }

    pub(crate) fn text(self, name: &str, most: u64) -> Self {
        self.column(name, name, ColumnKind::Text(Some(most)), (true, true), None)
    }

    pub(crate) fn number(self, name: &str) -> Self {
        self.column(name, name, ColumnKind::Value, (true, true), None)
    }

    pub(crate) fn choice(self, name: &str, values: &[i64]) -> Self {
        self.column(name, name, ColumnKind::Choice { values: values.to_vec(), multi: false }, (true, true), None)
    }

    /// A lookup that deletes nothing.
    pub(crate) fn lookup(mut self, name: &str, targets: &[&str]) -> Self {
        let member = format!("_{name}_value");
        for target in targets {
            let parent = (*target).to_string();
            self.rules.parents.push(Relationship { member: member.clone(), parent, deletes: false, assigns: false });
        }
        let targets = targets.iter().map(|target| (*target).to_string()).collect();
        self.column(name, &member, ColumnKind::Lookup { targets }, (true, true), None)
    }

    /// The last column is required; its relationships delete.
    pub(crate) fn required(mut self) -> Self {
        if let Some(rule) = self.rules.columns.last_mut() {
            rule.required = true;
            let member = rule.member.clone();
            for relation in self.rules.parents.iter_mut().filter(|relation| relation.member == member) {
                relation.deletes = true;
            }
        }
        self
    }

    /// Assigning what the last column points to assigns the row.
    pub(crate) fn assigned(mut self) -> Self {
        let member = self.rules.columns.last().map(|rule| rule.member.clone());
        for relation in self.rules.parents.iter_mut().filter(|relation| Some(&relation.member) == member.as_ref()) {
            relation.assigns = true;
        }
        self
    }

    pub(crate) fn owner(mut self) -> Self {
        self.rules.owner = Some("_ownerid_value".into());
        let targets = vec!["systemuser".into(), "team".into()];
        self.column("ownerid", "_ownerid_value", ColumnKind::Lookup { targets }, (true, true), None)
    }

    pub(crate) fn created_on(mut self) -> Self {
        self.rules.created_on = Some(("overriddencreatedon".into(), "createdon".into()));
        self.fixed("createdon")
    }

    /// States 0 (open, statuses 1 and 2) and 1 (closed).
    pub(crate) fn state(mut self, close: Option<(&str, &str)>) -> Self {
        self.rules.state = Some(StateRule {
            state: "statecode".into(),
            status: "statuscode".into(),
            initial: 0,
            initial_statuses: vec![1, 2],
            closed: vec![1],
            close_table: close.map(|(table, member)| (table.into(), member.into())),
            close_states: if close.is_some() { vec![1] } else { Vec::new() },
            closing_writes: Vec::new(),
            reaches_below: false,
        });
        let all = ColumnKind::Choice { values: Vec::new(), multi: false };
        self.column("statecode", "statecode", all.clone(), (false, true), None).column(
            "statuscode",
            "statuscode",
            all,
            (true, true),
            None,
        )
    }

    /// Closing a row fills this column in.
    pub(crate) fn filled_by_closing(mut self, member: &str) -> Self {
        if let Some(state) = &mut self.rules.state {
            state.closing_writes.push(member.into());
        }
        self
    }

    /// A state reaches the rows below.
    pub(crate) fn reaches_below(mut self) -> Self {
        if let Some(state) = &mut self.rules.state {
            state.reaches_below = true;
        }
        self
    }

    /// The key has a second part.
    pub(crate) fn partitioned(mut self) -> Self {
        self.schema.key.push("partitionid".into());
        self.column("partitionid", "partitionid", ColumnKind::Key, (true, false), None)
    }

    pub(crate) fn created_by(mut self) -> Self {
        self.rules.created_by = Some("_createdby_value".into());
        let targets = vec!["systemuser".into()];
        let kind = ColumnKind::Lookup { targets };
        self.column("createdby", "_createdby_value", kind, (false, false), Some("server-set"))
    }

    pub(crate) fn file(self, name: &str) -> Self {
        self.content(name, ContentKind::File)
    }

    pub(crate) fn body(self, name: &str) -> Self {
        self.content(name, ContentKind::Base64Body)
    }

    fn content(mut self, name: &str, kind: ContentKind) -> Self {
        self.schema.content.push(ContentColumn {
            column: name.into(),
            kind,
            version_member: name.into(),
            presence_member: name.into(),
            name_member: None,
        });
        self.column(name, name, ColumnKind::Content, (false, false), Some("content"))
    }

    pub(crate) fn activity(mut self) -> Self {
        self.rules.is_activity = true;
        self
    }

    pub(crate) fn treated(mut self, treatment: Treatment) -> Self {
        self.rules.treatment = treatment;
        self
    }

    /// A table of links between two tables.
    pub(crate) fn links(name: &str, first: (&str, &str), second: (&str, &str)) -> Self {
        let end = |(table, member): (&str, &str)| LinkEnd { table: table.into(), member: member.into() };
        let closed = (false, false);
        Self::new(name)
            .column(first.1, first.1, ColumnKind::Value, closed, None)
            .column(second.1, second.1, ColumnKind::Value, closed, None)
            .treated(Treatment::Links { first: end(first), second: end(second) })
    }

    /// A row of the table as the service sends it. Members whose names are columns with lookups are given as `"table:n"`.
    pub(crate) fn row(&self, n: u32, values: &serde_json::Value) -> String {
        let mut text = format!("{{\"@odata.etag\":\"W/\\\"{n}\\\"\",\"{}\":\"{}\"", self.schema.key[0], id(n));
        for (name, value) in values.as_object().into_iter().flatten() {
            let lookup = value.as_str().and_then(|value| value.split_once(':')).filter(|_| name.starts_with('_'));
            let value = match lookup {
                Some((table, n)) => {
                    let target = id(n.parse().unwrap());
                    format!("\"{target}\",\"{name}@Microsoft.Dynamics.CRM.lookuplogicalname\":\"{table}\"")
                }
                None => value.to_string(),
            };
            text.push_str(",\"");
            text.push_str(name);
            text.push_str("\":");
            text.push_str(&value);
        }
        text + "}"
    }
}

type Rows = BTreeMap<String, String>;
type BirthOf = Box<dyn Fn(&TableRules, &Row<'_>) -> Birth + Send + Sync>;

/// An environment.
pub(crate) struct World {
    pub(crate) organization: String,
    pub(crate) tables: BTreeMap<String, (Table, Rows)>,
    pub(crate) bin: BTreeSet<String>,
    pub(crate) birth: BirthOf,
    pub(crate) abilities: Abilities,
    pub(crate) requests: AtomicU64,
    /// Tables that the service refuses to read.
    pub(crate) refused: BTreeSet<String>,
    /// Files by table, row and column.
    pub(crate) files: BTreeMap<(String, String, String), Vec<u8>>,
    /// Tables whose rows were read by key, call by call.
    pub(crate) asked: Mutex<Vec<String>>,
}

impl World {
    pub(crate) fn new(tables: &[&Table]) -> Self {
        let tables = tables.iter().map(|t| (t.schema.table.name.clone(), ((*t).clone(), Rows::new()))).collect();
        Self {
            organization: "11111111-0000-0000-0000-000000000000".into(),
            tables,
            bin: BTreeSet::new(),
            birth: Box::new(|_, _| Birth::Written),
            abilities: Abilities {
                bypass_logic: Ability::Granted,
                created_on: Ability::Granted,
                on_behalf: Ability::Granted,
                privileges: None,
                recycle_bin: Vec::new(),
                base_currency_id: None,
            },
            requests: AtomicU64::new(0),
            refused: BTreeSet::new(),
            files: BTreeMap::new(),
            asked: Mutex::default(),
        }
    }

    /// Puts a row in.
    pub(crate) fn put(&mut self, table: &str, n: u32, values: serde_json::Value) {
        let (described, rows) = self.tables.get_mut(table).unwrap();
        let row = described.row(n, &values);
        let key = match values["partitionid"].as_str() {
            Some(partition) => format!("{}/{partition}", id(n)),
            None => id(n),
        };
        rows.insert(key, row);
    }

    fn check(&self, table: &TableSchema) -> Result<(), SourceError> {
        if self.refused.contains(&table.table.name) {
            return Err(SourceError::Refused { table: table.table.clone(), reason: "no".into(), remedy: None });
        }
        Ok(())
    }

    fn described(&self, table: &TableSchema) -> &(Table, Rows) {
        &self.tables[&table.table.name]
    }
}

fn deliver(row: &str, sink: &SharedSink) {
    let mut members = Vec::new();
    scan(row.as_bytes(), &mut members).unwrap();
    sink.lock().unwrap().row(&Row::new(row.as_bytes(), &members)).unwrap();
}

#[async_trait]
impl RowSource for World {
    async fn identity(&self, _call: &Call) -> Result<EnvironmentIdentity, SourceError> {
        Ok(identity(&self.organization))
    }

    async fn discover(&self, _call: &Call) -> Result<Vec<TableListing>, SourceError> {
        let listing = |(table, _): &(Table, Rows)| TableListing {
            table: table.schema.table.clone(),
            schema: Ok(table.schema.clone()),
        };
        Ok(self.tables.values().map(listing).collect())
    }

    async fn rediscover(&self, _table: &TableSchema, _call: &Call) -> Result<TableListing, SourceError> {
        Err(SourceError::Cancelled)
    }

    async fn read_page(
        &self,
        table: &TableSchema,
        page: &PageRequest,
        sink: SharedSink,
        _call: &Call,
    ) -> Result<PageEnd, SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.check(table)?;
        let from: usize = match page {
            PageRequest::First { .. } => 0,
            PageRequest::Link(link) => link.parse().unwrap(),
        };
        let rows = &self.described(table).1;
        rows.values().skip(from).take(PAGE_ROWS as usize).for_each(|row| deliver(row, &sink));
        let next = from + PAGE_ROWS as usize;
        Ok(PageEnd { next: (next < rows.len()).then(|| next.to_string()), ..PageEnd::default() })
    }

    async fn is_live(&self, _table: &TableSchema, _key: &str, _call: &Call) -> Result<bool, SourceError> {
        Ok(false)
    }

    async fn read_content(
        &self,
        table: &TableSchema,
        column: &ContentColumn,
        item: &ContentItem,
        sink: SharedContentSink,
        _call: &Call,
    ) -> Result<ContentEnd, SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let place = (table.table.name.clone(), item.key.clone(), column.column.clone());
        let Some(bytes) = self.files.get(&place) else {
            return Err(SourceError::NotFound { what: item.key.clone() });
        };
        let mut sink = sink.lock().unwrap();
        for piece in bytes.chunks(3) {
            sink.write(piece).map_err(|_| SourceError::SinkStopped)?;
        }
        Ok(ContentEnd { name: Some("a.txt".into()), ..ContentEnd::default() })
    }

    async fn approximate_rows(&self, tables: &[TableSchema], _call: &Call) -> Result<Vec<(String, u64)>, SourceError> {
        let count = |table: &TableSchema| (table.table.name.clone(), self.described(table).1.len() as u64);
        Ok(tables.iter().map(count).collect())
    }

    fn service_time(&self) -> Option<Timestamp> {
        None
    }
}

#[async_trait]
impl RowTarget for World {
    async fn abilities(&self, _call: &Call) -> Result<Abilities, SourceError> {
        Ok(self.abilities.clone())
    }

    fn rules(&self, schema: &TableSchema) -> TableRules {
        self.described(schema).0.rules.clone()
    }

    fn birth(&self, rules: &TableRules, row: &Row<'_>) -> Birth {
        (self.birth)(rules, row)
    }

    fn batch_rows(&self, _table: &TableSchema, _kind: WriteKind) -> usize {
        BATCH_ROWS as usize
    }

    fn requests_for(&self, _table: &TableSchema, _kind: WriteKind, rows: u64) -> u64 {
        rows.div_ceil(BATCH_ROWS)
    }

    async fn read_rows(
        &self,
        table: &TableSchema,
        keys: &[RowKey],
        sink: SharedSink,
        _call: &Call,
    ) -> Result<(), SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.check(table)?;
        self.asked.lock().unwrap().push(table.table.name.clone());
        let rows = &self.described(table).1;
        for key in keys {
            let asked = |row: &str| {
                let (id, partition) = row.split_once('/').unzip();
                id.unwrap_or(row) == key.id && (key.partition.is_none() || key.partition.as_deref() == partition)
            };
            rows.iter().filter(|(row, _)| asked(row)).for_each(|(_, row)| deliver(row, &sink));
        }
        Ok(())
    }

    async fn in_bin(&self, _table: &TableSchema, keys: &[RowKey], _call: &Call) -> Result<Vec<RowKey>, SourceError> {
        Ok(keys.iter().filter(|key| self.bin.contains(&key.id)).cloned().collect())
    }

    async fn write(
        &self,
        _table: &TableSchema,
        _kind: WriteKind,
        _rows: &[RowWrite],
        _options: &WriteOptions,
        _call: &Call,
    ) -> Result<Vec<WriteOutcome>, SourceError> {
        panic!("a planner never writes");
    }

    async fn upload(
        &self,
        _table: &TableSchema,
        _column: &ContentColumn,
        _key: &RowKey,
        _upload: &Upload,
        _options: &WriteOptions,
        _call: &Call,
    ) -> Result<WriteOutcome, SourceError> {
        panic!("a planner never writes");
    }

    async fn clear(
        &self,
        _table: &TableSchema,
        _column: &ContentColumn,
        _key: &RowKey,
        _options: &WriteOptions,
        _call: &Call,
    ) -> Result<WriteOutcome, SourceError> {
        panic!("a planner never writes");
    }
}
