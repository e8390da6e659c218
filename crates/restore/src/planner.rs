//! Making a plan: what is in the snapshot, what is in the environment, and what has to be written.
//!
//! ```text
//!  selection ─▶ related rows ─▶ live rows ─▶ drafts ─▶ which named rows exist ─▶ order ─▶ operations ─▶ file
//!  (ids)        (ids)           (8 bytes     (scratch  (blocks of ids)           (waves)  (scratch,
//!                                a row)       files)                                       sorted)
//! ```
//!
//! Nothing is written to the environment. Memory holds ids and offsets of the rows of the plan, never the rows: about 24 bytes
//! a row, 16 an operation, and what its required lookups take.
//!
//! The estimate of minutes is the longer of two: what the requests take under the service's limits (see `batches`), and what
//! the rows take when the service makes 150 a second (`dataverse` protocol, section 5.6, the slowest of the measured kinds of
//! creation) and content travels with 4 MiB a second (assumed).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynavault_model::{
    Abilities, Call, Clock, EnvironmentIdentity, Observer, RowSource, RowTarget, SnapshotId, TableListing, TableSchema,
    WriteOptions,
};
use dynavault_vault::{Manifest, Vault};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::batches::{RequestTotals, minutes};
use crate::captured::Captured;
use crate::emit::{Emitter, Ops};
use crate::error::RestoreError;
use crate::file::PlanWriter;
use crate::findings::Findings;
use crate::mapping::{Mapping, MappingFile};
use crate::openings::Openings;
use crate::owners::Heirs;
use crate::pieces::Pieces;
use crate::plan::{Action, ConflictPolicy, Counts, FORMAT, Finding, Op, PlanHead, PlanKind, TablePlan};
use crate::related;
use crate::resolve::Outside;
use crate::select::{self, Columns, Selection};
use crate::spill::Spill;
use crate::tables::{Role, Tables};
use crate::waves::{Edges, Waves};
use crate::work::{Conflicts, Work};

/// Rows that the service takes in a second.
const ROWS_PER_SECOND: u64 = 150;
/// Bytes of content in a second.
const CONTENT_BYTES_PER_SECOND: u64 = 4 << 20;

/// What is to be restored and how.
#[derive(Debug, Clone, Default)]
pub struct PlanRequest {
    /// Which rows.
    pub selection: Selection,
    /// What to do about values that differ.
    pub conflict: ConflictPolicy,
    /// Columns that may be written on existing rows; all when empty.
    pub columns: Vec<String>,
    /// Delete what the snapshot does not have.
    pub mirror: bool,
    /// Make rows on behalf of those who made them.
    pub as_creator: bool,
    /// How writes are made.
    pub options: WriteOptions,
    /// The mapping file, read if it is there and written; only for another organization.
    pub mapping: Option<PathBuf>,
    /// Program and version.
    pub tool: String,
}

/// The environment that is restored to.
pub struct PlanTarget {
    /// For reading whole tables.
    pub rows: Arc<dyn RowSource>,
    /// For reading rows by key, and its rules.
    pub writes: Arc<dyn RowTarget>,
    /// Its tables.
    pub listings: Vec<TableListing>,
    /// What the user may do.
    pub abilities: Abilities,
    /// Who it says it is.
    pub identity: EnvironmentIdentity,
    /// Its configured name.
    pub name: String,
}

/// A plan in short, for printing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanSummary {
    /// The plan file.
    pub path: PathBuf,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Tables with something to say.
    pub tables: Vec<TablePlan>,
    /// Sums.
    pub counts: Counts,
    /// Findings; the first of each kind one by one.
    pub findings: Vec<Finding>,
    /// Operations.
    pub ops: u64,
    /// Requests they take when nothing is refused.
    pub requests: u64,
    /// Estimated minutes.
    pub minutes: u64,
    /// Rows without a counterpart in the mapping file.
    pub unmapped: u64,
}

/// Makes a plan for a snapshot and writes it to `out`. Scratch files go to `scratch`.
///
/// The work runs on a blocking thread. Dropping the future does not end it; cancelling the call does.
#[expect(clippy::too_many_arguments, reason = "what a plan is made of has no smaller form")]
pub async fn plan(
    vault: &Vault,
    manifest: Arc<Manifest>,
    target: PlanTarget,
    request: PlanRequest,
    scratch: &Path,
    out: &Path,
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    call: &Call,
) -> Result<PlanSummary, RestoreError> {
    let captured = Captured { vault: vault.clone(), handle: Handle::current(), manifest, cancel: call.cancel.clone() };
    let (scratch, out, call) = (scratch.to_path_buf(), out.to_path_buf(), call.clone());
    let planned = tokio::task::spawn_blocking(move || {
        let head = head(&captured, &target, &request, clock.as_ref());
        let work = Work::new(captured, target, &request, scratch, observer, call)?;
        work.plan(&request, &head, &out)
    });
    planned.await.map_err(|error| RestoreError::Worker(error.to_string()))?
}

fn head(captured: &Captured, target: &PlanTarget, request: &PlanRequest, clock: &dyn Clock) -> PlanHead {
    let mut selection = request.selection.words();
    selection.extend((!request.columns.is_empty()).then(|| format!("--columns {}", request.columns.join(","))));
    PlanHead {
        format: FORMAT,
        kind: PlanKind::Restore,
        tool: request.tool.clone(),
        created: clock.now(),
        source: captured.manifest.environment.clone(),
        snapshot: captured.manifest.snapshot,
        undoes: None,
        target: target.name.clone(),
        identity: target.identity.clone(),
        selection,
        conflict: request.conflict,
        mirror: request.mirror,
        options: request.options.clone(),
    }
}

impl Work {
    fn new(
        captured: Captured,
        target: PlanTarget,
        request: &PlanRequest,
        scratch: PathBuf,
        observer: Arc<dyn Observer>,
        call: Call,
    ) -> Result<Self, RestoreError> {
        request.selection.check(request.mirror)?;
        let tables = Tables::new(&captured.manifest, &target.listings, target.writes.as_ref())?;
        let (ours, theirs) = (&captured.manifest.identity.organization_id, &target.identity.organization_id);
        let same = ours.eq_ignore_ascii_case(theirs);
        Ok(Self {
            source: target.rows,
            target: target.writes,
            listings: target.listings,
            abilities: Abilities {
                base_currency_id: target.abilities.base_currency_id.clone().or(target.identity.base_currency_id),
                ..target.abilities
            },
            observer,
            call,
            conflict: request.conflict,
            mirror: request.mirror,
            columns: Columns::default(),
            outside: Outside::new(tables.len()),
            mapping: if same { Mapping::identity() } else { Mapping::default() },
            findings: Findings::default(),
            conflicts: Conflicts::new(&scratch)?,
            edges: Edges::default(),
            required: Vec::new(),
            pieces: Pieces::new(tables.len(), &scratch),
            changed_activities: HashMap::new(),
            parties: None,
            closing: HashMap::new(),
            named_closes: HashSet::new(),
            closes: Spill::new(&scratch)?,
            links: Vec::new(),
            creators: None,
            openings: Openings::default(),
            heirs: Heirs::default(),
            above: HashMap::new(),
            states_below: BTreeMap::new(),
            tables,
            scratch,
            captured,
        })
    }

    fn plan(mut self, request: &PlanRequest, head: &PlanHead, out: &Path) -> Result<PlanSummary, RestoreError> {
        self.select(request)?;
        let file = match &request.mapping {
            Some(path) if !self.mapping.identity => MappingFile::read(path)?,
            _ => MappingFile::default(),
        };
        if !self.mapping.identity {
            self.notice(None, "looking for the counterparts of users, teams and units");
            self.map_references(&file)?;
        }
        self.notice(None, "comparing with the environment");
        self.read_live(true)?;
        if request.selection.deleted_only && !request.selection.has_related() {
            self.keep_deleted();
        }
        self.look_into_bin()?;
        self.index_first_parts()?;
        if request.as_creator {
            self.read_creators(&head.identity.user_id)?;
        }
        for number in self.tables.with_rows() {
            self.draft_table(number)?;
        }
        self.draft_links()?;
        self.find_closes()?;
        self.read_parties()?;
        let (captured, tables, findings) = (&self.captured, &self.tables, &mut self.findings);
        self.pieces.attach(captured, tables, findings, &mut self.conflicts)?;
        self.compare_content()?;
        self.ask_outside()?;
        let waves = self.order();
        self.report_lost_closes();
        self.find_heirs()?;
        self.find_openings()?;
        let ops = self.operations(&waves)?;
        self.check_conflicts()?;
        let mut unmapped = 0;
        if let (false, Some(path)) = (self.mapping.identity, &request.mapping) {
            let file = self.mapping.file();
            unmapped = file.0.values().map(|table| table.unmatched.len() as u64).sum();
            file.write(path)?;
        }
        self.write(head, out, ops, &waves, unmapped)
    }

    /// Decides which rows of which tables the plan is about.
    fn select(&mut self, request: &PlanRequest) -> Result<(), RestoreError> {
        let selection = &request.selection;
        let named = select::named(selection, &self.captured, &self.tables, &mut self.findings)?;
        self.load_schemas(&named)?;
        let mut rows = select::rows(selection, &self.captured, &self.tables, &named)?;
        if selection.has_related() {
            if selection.deleted_only {
                self.set_rows(std::mem::take(&mut rows));
                self.read_live(false)?;
                self.keep_deleted();
                rows = (0..self.tables.len())
                    .map(|number| (number, self.tables.get(number).ids.to_vec()))
                    .filter(|(_, ids)| !ids.is_empty())
                    .collect();
            }
            let levels = (selection.up, selection.down);
            rows = related::add(&self.captured, &self.tables, rows, levels, &self.scratch)?;
        }
        // Chosen rows come with what is part of them, unless only some of their columns are wanted.
        if !selection.is_whole() && request.columns.is_empty() {
            rows = related::add_companions(&self.captured, &self.tables, self.target.as_ref(), rows)?;
        }
        self.set_rows(rows);
        let chosen: Vec<u16> = (0..self.tables.len()).filter(|n| !self.tables.get(*n).ids.is_empty()).collect();
        self.load_schemas(&chosen)?;
        self.columns = Columns::new(&request.columns, &self.tables, &chosen)?;
        if selection.is_whole() {
            for number in named {
                self.tables.get_mut(number).whole = true;
            }
        }
        Ok(())
    }

    fn set_rows(&mut self, rows: Vec<(u16, Vec<dynavault_model::RowId>)>) {
        for (number, ids) in rows {
            let table = self.tables.get_mut(number);
            table.plan.selected = ids.len() as u64;
            table.ids = Arc::new(ids);
        }
    }

    /// Reads the schemas of tables, and of the tables that go along with them.
    fn load_schemas(&mut self, chosen: &[u16]) -> Result<(), RestoreError> {
        let closes = chosen.iter().filter_map(|number| {
            let state = self.tables.get(*number).rules.as_ref()?.state.as_ref()?;
            self.tables.number(&state.close_table.as_ref()?.0)
        });
        let along = (0..self.tables.len()).filter(|n| matches!(self.tables.get(*n).role, Role::Along(_)));
        let mut wanted: Vec<u16> = chosen.iter().copied().chain(closes).chain(along).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|number| self.tables.get(*number).source.is_none());
        let wanted: Vec<usize> = wanted.into_iter().map(usize::from).collect();
        for (number, schema) in self.captured.schemas(&wanted)? {
            self.tables.list[number].source = Some(schema);
        }
        Ok(())
    }

    /// Keeps of the chosen rows those that are gone from the environment. Links follow their rows: those that exist are never
    /// written anyway.
    fn keep_deleted(&mut self) {
        for number in self.tables.with_rows() {
            let table = self.tables.get_mut(number);
            let keep: Vec<bool> = table.states.iter().map(|state| !state.is_live()).collect();
            let mut kept = keep.iter();
            let mut ids = table.ids.to_vec();
            ids.retain(|_| kept.next().copied().unwrap_or(false));
            table.states = vec![crate::live::Packed::ABSENT; ids.len()];
            table.plan.selected = ids.len() as u64;
            table.ids = Arc::new(ids);
        }
    }

    fn operations(&mut self, waves: &Waves) -> Result<Ops, RestoreError> {
        let mut ops = Ops::new(&self.scratch)?;
        if self.mirror {
            self.delete_others(&mut ops)?;
        }
        self.emit(waves, &mut ops)?;
        Ok(ops)
    }

    fn emit(&mut self, waves: &Waves, ops: &mut Ops) -> Result<(), RestoreError> {
        let owner_waves = self.owner_waves();
        let numbers: Vec<u16> = self.tables.with_rows();
        let (touched, stated) = (HashSet::new(), HashMap::new());
        let mut emitter = Emitter { work: self, waves, owner_waves: &owner_waves, ops, touched, stated };
        for number in &numbers {
            emitter.rows(*number)?;
        }
        emitter.report_states_from_above();
        emitter.openings()?;
        emitter.heirs()?;
        emitter.parties()?;
        emitter.links()?;
        for number in numbers {
            emitter.pieces(number)?;
        }
        Ok(())
    }

    fn check_conflicts(&self) -> Result<(), RestoreError> {
        if self.conflict == ConflictPolicy::Fail && self.conflicts.count > 0 {
            return Err(RestoreError::Conflicts {
                count: self.conflicts.count,
                first: self.conflicts.first.join(", "),
            });
        }
        Ok(())
    }

    /// Writes the plan: operations in order, with the requests they take.
    fn write(
        mut self,
        head: &PlanHead,
        out: &Path,
        mut ops: Ops,
        waves: &Waves,
        unmapped: u64,
    ) -> Result<PlanSummary, RestoreError> {
        ops.index.sort_unstable();
        let (content_bytes, rows) = self.count_requests(&mut ops)?;
        let mut tables = Vec::new();
        let mut counts = Counts::default();
        let mut requests = 0;
        for number in 0..self.tables.len() {
            let table = self.tables.get_mut(number);
            let mut plan = std::mem::take(&mut table.plan);
            plan.wave = waves.table(number);
            plan.not_written = std::mem::take(&mut table.not_written).list();
            if plan.selected == 0 && plan.counts == Counts::default() && plan.requests == 0 {
                continue;
            }
            counts.add(&plan.counts);
            requests += plan.requests;
            tables.push(plan);
        }
        let written = (rows / ROWS_PER_SECOND + content_bytes / CONTENT_BYTES_PER_SECOND).div_ceil(60);
        let minutes = if ops.index.is_empty() { 0 } else { written.max(minutes(requests)).max(1) };
        let mut writer = PlanWriter::create(out, head)?;
        tables.iter().try_for_each(|table| writer.table(table))?;
        let findings = self.findings.list();
        findings.iter().try_for_each(|finding| writer.finding(finding))?;
        let mut line = Vec::new();
        self.conflicts.lines.scan(|conflict| {
            line.clear();
            line.extend_from_slice(conflict);
            line.push(b'\n');
            writer.put(&line)
        })?;
        for (_, offset) in &ops.index {
            ops.lines.read(*offset, &mut line)?;
            writer.op_text(&line)?;
        }
        let end = writer.finish(counts, requests, minutes)?;
        Ok(PlanSummary {
            path: out.to_path_buf(),
            snapshot: head.snapshot,
            tables,
            counts,
            findings,
            ops: end.ops,
            requests,
            minutes,
            unmapped,
        })
    }

    /// Counts the requests of each table as applying will make them; gives bytes of content and number of writes.
    fn count_requests(&mut self, ops: &mut Ops) -> Result<(u64, u64), RestoreError> {
        #[derive(serde::Deserialize)]
        struct Line {
            op: Op,
        }
        let schemas: HashMap<String, Arc<TableSchema>> =
            self.tables.list.iter().filter_map(|table| Some((table.name.clone(), table.target.clone()?))).collect();
        let mut totals = RequestTotals::new(self.target.as_ref(), &schemas);
        let (mut bytes, mut rows) = (0, 0);
        let mut record = Vec::new();
        for (_, offset) in &ops.index {
            self.stopped()?;
            ops.lines.read(*offset, &mut record)?;
            let Line { op } = serde_json::from_slice(&record).map_err(|error| {
                RestoreError::Worker(format!("an operation changed in the scratch folder: {error}"))
            })?;
            totals.push(&op);
            match op.action {
                Action::Write(_) => rows += 1,
                Action::Upload | Action::Clear => bytes += op.content.map_or(0, |content| content.size),
            }
        }
        for (table, requests) in totals.finish().0 {
            if let Some(number) = self.tables.number(&table) {
                self.tables.get_mut(number).plan.requests = requests;
            }
        }
        Ok((bytes, rows))
    }
}
