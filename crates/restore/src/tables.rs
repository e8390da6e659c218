//! The tables of a plan: what the snapshot has, what the environment takes, and what became of each on the way.

use std::collections::HashMap;
use std::sync::Arc;

use dynavault_model::{ColumnRule, LinkEnd, Row, RowId, RowTarget, TableListing, TableRules, TableSchema, Treatment};
use dynavault_vault::Manifest;

use crate::error::RestoreError;
use crate::findings::NotWritten;
use crate::live::{Packed, State};
use crate::plan::TablePlan;
use crate::spill::Spill;
use crate::waves::Node;

/// Most tables of a snapshot: they are numbered with 16 bits, and tables outside of it share the numbers.
const TABLES_MAX: usize = 30_000;

/// How the rows of a table are planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// Row by row.
    Rows,
    /// Links between two rows.
    Links { first: LinkEnd, second: LinkEnd },
    /// Along with the row that a member names.
    Along(String),
    /// Not at all: code and reason.
    Left(&'static str, String),
}

/// One table of the snapshot.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// As it was captured, without the service's own metadata; read when it is needed.
    pub(crate) source: Option<TableSchema>,
    /// As it is in the environment.
    pub(crate) target: Option<Arc<TableSchema>>,
    pub(crate) rules: Option<Arc<TableRules>>,
    /// Selected by name as a whole.
    pub(crate) whole: bool,
    /// Rows of the plan, sorted.
    pub(crate) ids: Arc<Vec<RowId>>,
    /// Where a key has several parts: the rows by the first, which is what lookups name.
    pub(crate) first_parts: Vec<(RowId, u32)>,
    /// The live side, one for each row.
    pub(crate) states: Vec<Packed>,
    /// Live rows that differ.
    pub(crate) live: Option<Spill>,
    /// Live rows that the snapshot does not have; only for `--mirror`.
    pub(crate) others: Vec<(RowId, u64)>,
    pub(crate) drafts: Option<Spill>,
    pub(crate) plan: TablePlan,
    pub(crate) not_written: NotWritten,
}

impl Table {
    pub(crate) fn is_rows(&self) -> bool {
        self.role == Role::Rows
    }

    pub(crate) fn is_planned(&self) -> bool {
        matches!(self.role, Role::Rows | Role::Links { .. })
    }

    pub(crate) fn state(&self, row: u32) -> State {
        self.states.get(row as usize).map_or(State::Absent, |packed| packed.state())
    }

    /// Rules of a table whose role says that it has them.
    pub(crate) fn rules(&self) -> &Arc<TableRules> {
        self.rules.as_ref().expect("a planned table has rules: its role comes from them")
    }

    /// Schema in the environment of a table whose role says that it is there.
    pub(crate) fn target(&self) -> &Arc<TableSchema> {
        self.target.as_ref().expect("a planned table is in the environment: its role comes from its schema")
    }

    /// Schema in the snapshot, which is read before rows are.
    pub(crate) fn source(&self) -> &TableSchema {
        self.source.as_ref().expect("schemas of planned tables are read first")
    }
}

/// All tables of the snapshot, by number.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) list: Vec<Table>,
    pub(crate) by_name: HashMap<String, u16>,
    /// Tables whose rows are activities, which other rows may name by their common list.
    activities: Vec<u16>,
}

impl Tables {
    pub(crate) fn new(
        manifest: &Manifest,
        listings: &[TableListing],
        target: &dyn RowTarget,
    ) -> Result<Self, RestoreError> {
        if manifest.tables.len() > TABLES_MAX {
            return Err(RestoreError::Selection {
                reason: format!("the snapshot has more than {TABLES_MAX} tables"),
                remedy: "restore it with a version that numbers more tables".into(),
            });
        }
        let listed: HashMap<&str, &TableListing> =
            listings.iter().map(|listing| (listing.table.name.as_str(), listing)).collect();
        let mut tables = Self::default();
        for (number, entry) in manifest.tables.iter().enumerate() {
            let listing = listed.get(entry.table.as_str());
            let schema = listing.and_then(|listing| listing.schema.as_ref().ok()).cloned().map(Arc::new);
            let rules = schema.as_ref().map(|schema| Arc::new(target.rules(schema)));
            let role = match (listing, &rules) {
                (_, Some(rules)) => role(&rules.treatment),
                (Some(listing), None) => {
                    let reason =
                        listing.schema.as_ref().err().map_or_else(String::new, |refusal| refusal.reason.clone());
                    Role::Left("unreadable-table", format!("the table cannot be read in the environment: {reason}"))
                }
                (None, None) => Role::Left("missing-table", "the environment does not have the table".into()),
            };
            if rules.as_ref().is_some_and(|rules| rules.is_activity) && role == Role::Rows {
                tables.activities.push(number as u16);
            }
            tables.by_name.insert(entry.table.clone(), number as u16);
            tables.list.push(Table {
                name: entry.table.clone(),
                role,
                source: None,
                target: schema,
                rules,
                whole: false,
                ids: Arc::default(),
                first_parts: Vec::new(),
                states: Vec::new(),
                live: None,
                others: Vec::new(),
                drafts: None,
                plan: TablePlan { table: entry.table.clone(), ..TablePlan::default() },
                not_written: NotWritten::default(),
            });
        }
        Ok(tables)
    }

    pub(crate) fn len(&self) -> u16 {
        self.list.len() as u16
    }

    pub(crate) fn number(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn get(&self, number: u16) -> &Table {
        &self.list[usize::from(number)]
    }

    pub(crate) fn get_mut(&mut self, number: u16) -> &mut Table {
        &mut self.list[usize::from(number)]
    }

    /// Numbers of the tables that are planned row by row or link by link.
    pub(crate) fn planned(&self) -> Vec<u16> {
        (0..self.len()).filter(|number| self.get(*number).is_planned()).collect()
    }

    /// Numbers of the tables that are planned row by row and have rows in the plan.
    pub(crate) fn with_rows(&self) -> Vec<u16> {
        let has = |number: &u16| self.get(*number).is_rows() && !self.get(*number).ids.is_empty();
        (0..self.len()).filter(has).collect()
    }

    /// A row of the plan. A row of the common list of activities is found in the table of its kind.
    pub(crate) fn find(&self, name: &str, id: RowId) -> Option<Node> {
        let within = |number: u16| {
            let table = self.get(number);
            let by_part = table.first_parts.binary_search_by_key(&id, |(part, _)| *part);
            let row = match by_part {
                Ok(at) => table.first_parts[at].1,
                Err(_) => table.ids.binary_search(&id).ok()? as u32,
            };
            table.is_rows().then_some(Node { table: number, row })
        };
        let number = self.number(name);
        number.and_then(within).or_else(|| {
            let common = number.is_none_or(|number| !self.get(number).is_planned());
            if common { self.activities.iter().find_map(|number| within(*number)) } else { None }
        })
    }

    /// An activity of the plan.
    pub(crate) fn activity(&self, id: RowId) -> Option<Node> {
        self.activities.iter().find_map(|number| {
            let row = self.get(*number).ids.binary_search(&id).ok()? as u32;
            Some(Node { table: *number, row })
        })
    }
}

fn role(treatment: &Treatment) -> Role {
    match treatment {
        Treatment::Rows => Role::Rows,
        Treatment::Links { first, second } => Role::Links { first: first.clone(), second: second.clone() },
        Treatment::Along { parent } => Role::Along(parent.clone()),
        Treatment::Never(reason) => Role::Left("never", reason.clone()),
        Treatment::Reference(reason) => Role::Left("reference", reason.clone()),
    }
}

/// Rules by the bytes of their members: rows have hundreds of them.
pub(crate) struct ColumnIndex<'a>(HashMap<&'a [u8], &'a ColumnRule>);

impl<'a> ColumnIndex<'a> {
    pub(crate) fn new(rules: &'a TableRules) -> Self {
        Self(rules.columns.iter().map(|rule| (rule.member.as_bytes(), rule)).collect())
    }

    pub(crate) fn get(&self, member: &[u8]) -> Option<&'a ColumnRule> {
        self.0.get(member).copied()
    }
}

/// A stored live row, for reading.
pub(crate) fn with_row<T>(
    bytes: &[u8],
    what: &str,
    with: impl FnOnce(&Row<'_>) -> Result<T, RestoreError>,
) -> Result<T, RestoreError> {
    let mut members = Vec::new();
    match dynavault_model::scan(bytes, &mut members) {
        Ok(_) => with(&Row::new(bytes, &members)),
        Err(error) => Err(RestoreError::Worker(format!("a row of {what} changed in the scratch folder: {error}"))),
    }
}
