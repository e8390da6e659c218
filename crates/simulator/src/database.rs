//! The rows, in memory, with the one counter that orders every change.
//!
//! A row is one string of all its cells and the places where they end: a null costs four bytes, and two
//! hundred thousand rows fit in a few hundred megabytes. Cells hold raw JSON text, so that a number is
//! printed exactly as it was made (dataverse 3.5, RULE 3.3). An empty cell is null. A lookup cell holds the
//! id and the logical name of its target, a body cell the id of its content.
//!
//! - Every change raises `version`, and no two changes share one (dataverse 3.5, `versionnumber`).
//! - A deletion is kept in a log with its version; a row created and deleted in between still shows there
//!   (dataverse 4.4).
//! - `activitypointer` mirrors the activities, with the same versions (dataverse 8.2).

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use crate::big::Big;
use crate::bin::{Bin, Binned};
use crate::catalogue::{ACTIVITY_COLUMNS, POINTER};
use crate::content::Contents;
use crate::guid::Guid;
use crate::schema::{Slot, Storage, TableDef};
use crate::uploads::Sessions;

/// Primary key, with the partition of an elastic row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RowKey {
    pub(crate) id: Guid,
    pub(crate) partition: Option<Box<str>>,
}

impl From<Guid> for RowKey {
    fn from(id: Guid) -> Self {
        Self { id, partition: None }
    }
}

/// A stored row.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) version: u64,
    text: Box<str>,
    ends: Box<[u32]>,
}

impl Row {
    fn new(version: u64, cells: &[String]) -> Self {
        let mut text = String::with_capacity(cells.iter().map(String::len).sum());
        let ends = cells
            .iter()
            .map(|cell| {
                text.push_str(cell);
                text.len() as u32
            })
            .collect();
        Self { version, text: text.into(), ends }
    }

    /// Raw text of a cell; empty for null, also for a column younger than the row.
    pub(crate) fn cell(&self, index: usize) -> &str {
        let Some(end) = self.ends.get(index) else { return "" };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start as usize..*end as usize]
    }

    /// All cells, padded with nulls to `count`.
    pub(crate) fn cells(&self, count: usize) -> Vec<String> {
        (0..count).map(|index| self.cell(index).to_owned()).collect()
    }
}

/// A row as the printer sees it: stored, or computed from its number.
#[derive(Clone, Copy)]
pub(crate) enum RowView<'a> {
    Stored(&'a Row),
    Generated { number: u64, version: u64, revision: u64 },
}

impl RowView<'_> {
    pub(crate) fn version(self) -> u64 {
        match self {
            Self::Stored(row) => row.version,
            Self::Generated { version, .. } => version,
        }
    }
}

/// A table: definition, rows, changes.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) def: TableDef,
    pub(crate) rows: BTreeMap<RowKey, Row>,
    by_version: BTreeMap<u64, RowKey>,
    deleted: BTreeMap<u64, RowKey>,
    pub(crate) big: Option<Big>,
    /// Deleted rows that can be restored; `None` where the recycle bin is off.
    pub(crate) bin: Option<Bin>,
}

impl Table {
    pub(crate) fn new(def: TableDef) -> Self {
        Self { def, rows: BTreeMap::new(), by_version: BTreeMap::new(), deleted: BTreeMap::new(), big: None, bin: None }
    }

    /// Number of live rows.
    pub(crate) fn len(&self) -> u64 {
        self.big.as_ref().map_or(self.rows.len() as u64, Big::len)
    }

    /// Finds one row.
    pub(crate) fn get(&self, key: &RowKey) -> Option<RowView<'_>> {
        match &self.big {
            Some(big) => big.get(key.id),
            None => self.rows.get(key).map(RowView::Stored),
        }
    }

    /// Visits rows in key order from `from` until `visit` says false.
    pub(crate) fn scan<'a>(&'a self, from: Bound<&RowKey>, mut visit: impl FnMut(&RowKey, RowView<'a>) -> bool) {
        if let Some(big) = &self.big {
            let from = match from {
                Bound::Unbounded => Bound::Unbounded,
                Bound::Included(key) => Bound::Included(key.id),
                Bound::Excluded(key) => Bound::Excluded(key.id),
            };
            big.scan(from, visit);
            return;
        }
        for (key, row) in self.rows.range::<RowKey, _>((from, Bound::Unbounded)) {
            if !visit(key, RowView::Stored(row)) {
                return;
            }
        }
    }

    /// Visits rows changed after `version`, oldest change first, until `visit` says false.
    pub(crate) fn scan_changes<'a>(&'a self, version: u64, mut visit: impl FnMut(&RowKey, RowView<'a>) -> bool) {
        if let Some(big) = &self.big {
            big.scan_changes(version, visit);
            return;
        }
        for (_, key) in self.by_version.range((Bound::Excluded(version), Bound::Unbounded)) {
            if let Some(row) = self.rows.get(key)
                && !visit(key, RowView::Stored(row))
            {
                return;
            }
        }
    }

    /// Deletions after `version`, oldest first.
    pub(crate) fn deletions(&self, version: u64) -> impl Iterator<Item = (u64, &RowKey)> {
        let log = self.big.as_ref().map_or(&self.deleted, |big| &big.deleted);
        log.range((Bound::Excluded(version), Bound::Unbounded)).map(|(version, key)| (*version, key))
    }

    /// A live row near a random id, the first one after the last.
    pub(crate) fn near(&self, id: Guid) -> Option<&RowKey> {
        let key = RowKey::from(id);
        self.rows.range(&key..).next().or_else(|| self.rows.iter().next()).map(|(key, _)| key)
    }
}

/// How to take back one change of a row.
#[derive(Debug)]
pub(crate) enum Undo {
    /// The row was written over `old`, or was new.
    Put { table: usize, key: RowKey, version: u64, old: Option<Row> },
    /// The row was removed.
    Removed { table: usize, key: RowKey, version: u64, row: Row },
    /// The row was taken out of the recycle bin.
    Unbinned { table: usize, key: RowKey, binned: Binned },
}

/// The environment's database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) tables: Vec<Table>,
    names: HashMap<String, usize>,
    sets: HashMap<String, usize>,
    /// Last version handed out.
    pub(crate) version: u64,
    /// Rises with every change of the schema.
    pub(crate) schema_version: u64,
    /// Bytes that were uploaded.
    pub(crate) contents: Contents,
    /// Uploads under way.
    pub(crate) uploads: Sessions,
    /// Columns of an activity and of `activitypointer` that are the same: name, pointer cell.
    shared: Vec<(String, usize)>,
    /// Changes of the request under way, newest last; `None` outside of requests.
    journal: Option<Vec<Undo>>,
}

impl Database {
    pub(crate) fn new(tables: Vec<Table>, version: u64) -> Self {
        let mut database = Self {
            tables: Vec::new(),
            names: HashMap::new(),
            sets: HashMap::new(),
            version,
            schema_version: 1,
            contents: Contents::default(),
            uploads: Sessions::default(),
            shared: Vec::new(),
            journal: None,
        };
        for table in tables {
            database.add_table(table);
        }
        database
    }

    pub(crate) fn add_table(&mut self, mut table: Table) {
        let index = self.tables.len();
        table.def.contents = self.contents.clone();
        self.names.insert(table.def.name.clone(), index);
        if let Some(set) = &table.def.set {
            self.sets.insert(set.clone(), index);
        }
        if table.def.name == POINTER {
            self.shared = shared_columns(&table.def);
        }
        self.tables.push(table);
    }

    /// Table by logical name.
    pub(crate) fn table(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Table by entity set name; case matters (dataverse 1.5).
    pub(crate) fn set(&self, set: &str) -> Option<usize> {
        self.sets.get(set).copied()
    }

    pub(crate) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Writes a whole row, new or not.
    pub(crate) fn put(&mut self, table: usize, key: RowKey, cells: &[String]) {
        let version = self.next_version();
        if self.tables[table].def.activity && self.tables[table].def.name != POINTER {
            self.mirror(table, &key, cells, version);
        }
        self.put_version(table, key, cells, version);
    }

    fn put_version(&mut self, table: usize, key: RowKey, cells: &[String], version: u64) {
        let entry = &mut self.tables[table];
        let old = entry.rows.insert(key.clone(), Row::new(version, cells));
        if let Some(old) = &old {
            entry.by_version.remove(&old.version);
        }
        entry.by_version.insert(version, key.clone());
        if let Some(journal) = &mut self.journal {
            journal.push(Undo::Put { table, key, version, old });
        }
    }

    /// From here on changes can be taken back; a position for [`Database::roll_back`].
    pub(crate) fn savepoint(&mut self) -> usize {
        self.journal.get_or_insert_default().len()
    }

    /// Takes back every change since the savepoint, but those of elastic tables, which have no transactions (dataverse
    /// 8.12). Versions stay used, as numbers of a sequence do.
    pub(crate) fn roll_back(&mut self, savepoint: usize) {
        let Some(journal) = &mut self.journal else { return };
        let undone = journal.split_off(savepoint.min(journal.len()));
        for undo in undone.into_iter().rev() {
            let (Undo::Put { table, .. } | Undo::Removed { table, .. } | Undo::Unbinned { table, .. }) = &undo;
            if self.tables[*table].def.storage == Storage::Elastic {
                continue;
            }
            match undo {
                Undo::Put { table, key, version, old } => {
                    let entry = &mut self.tables[table];
                    entry.by_version.remove(&version);
                    match old {
                        Some(old) => {
                            entry.by_version.insert(old.version, key.clone());
                            entry.rows.insert(key, old);
                        }
                        None => {
                            entry.rows.remove(&key);
                        }
                    }
                }
                Undo::Unbinned { table, key, binned } => {
                    if let Some(bin) = &mut self.tables[table].bin {
                        bin.0.insert(key, binned);
                    }
                }
                Undo::Removed { table, key, version, row } => {
                    let entry = &mut self.tables[table];
                    entry.deleted.remove(&version);
                    if let Some(bin) = &mut entry.bin {
                        bin.discard(&key, version);
                    }
                    entry.by_version.insert(row.version, key.clone());
                    entry.rows.insert(key, row);
                }
            }
        }
    }

    /// Takes a row out of the recycle bin.
    pub(crate) fn unbin(&mut self, table: usize, key: &RowKey) -> Option<Binned> {
        let binned = self.tables[table].bin.as_mut()?.0.remove(key)?;
        if let Some(journal) = &mut self.journal {
            journal.push(Undo::Unbinned { table, key: key.clone(), binned: binned.clone() });
        }
        Some(binned)
    }

    /// Ends the request: its changes can no longer be taken back.
    pub(crate) fn commit(&mut self) {
        self.journal = None;
    }

    fn mirror(&mut self, table: usize, key: &RowKey, cells: &[String], version: u64) {
        let Some(pointer) = self.table(POINTER) else { return };
        let def = &self.tables[table].def;
        let mut shared = vec![String::new(); self.tables[pointer].def.cells];
        for (name, cell) in &self.shared {
            if let Some(value) = def.cell(name).and_then(|from| cells.get(from)) {
                shared[*cell].clone_from(value);
            }
        }
        self.put_version(pointer, key.clone(), &shared, version);
    }

    /// Changes some cells of a row; false if there is no such row.
    pub(crate) fn update(
        &mut self,
        table: usize,
        key: &RowKey,
        change: impl FnOnce(&TableDef, &mut Vec<String>),
    ) -> bool {
        let entry = &self.tables[table];
        let Some(row) = entry.rows.get(key) else { return false };
        let mut cells = row.cells(entry.def.cells);
        change(&entry.def, &mut cells);
        self.put(table, key.clone(), &cells);
        true
    }

    /// Deletes one row and nothing else; false if there is none.
    pub(crate) fn remove(&mut self, table: usize, key: &RowKey) -> bool {
        if !self.tables[table].rows.contains_key(key) {
            return false;
        }
        let version = self.next_version();
        if self.tables[table].def.activity
            && let Some(pointer) = self.table(POINTER).filter(|pointer| *pointer != table)
        {
            self.remove_version(pointer, key, version);
        }
        self.remove_version(table, key, version);
        true
    }

    fn remove_version(&mut self, table: usize, key: &RowKey, version: u64) {
        let entry = &mut self.tables[table];
        if let Some(row) = entry.rows.remove(key) {
            entry.by_version.remove(&row.version);
            entry.deleted.insert(version, key.clone());
            if let Some(bin) = &mut entry.bin {
                bin.keep(key, &row, version);
            }
            if let Some(journal) = &mut self.journal {
                journal.push(Undo::Removed { table, key: key.clone(), version, row });
            }
        }
    }
}

fn shared_columns(pointer: &TableDef) -> Vec<(String, usize)> {
    debug_assert!(ACTIVITY_COLUMNS.contains("subject"), "activities share their subject");
    pointer
        .columns
        .iter()
        .filter_map(|column| match column.slot {
            Slot::Cell(cell) => Some((column.name.clone(), cell)),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Database, RowKey, Table};
    use crate::guid::Guid;
    use crate::schema::{Ownership, TableDef};

    #[test]
    fn changes_and_deletions_have_their_own_versions() {
        let mut def = TableDef::new("thing", Some("things"), "thingid");
        def.add("name:s10*");
        def.add_common(Ownership::None);
        let mut database = Database::new(vec![Table::new(def)], 100);
        let keys: Vec<RowKey> = (1..=3).map(|number| Guid::from_order(number).into()).collect();
        for key in &keys {
            database.put(0, key.clone(), &["\"a\"".to_owned()]);
        }
        let since = database.version;
        database.update(0, &keys[2], |_, cells| cells[0] = String::new());
        database.update(0, &keys[0], |_, cells| cells[0] = "\"b\"".to_owned());
        database.remove(0, &keys[1]);
        let mut changed = Vec::new();
        database.tables[0].scan_changes(since, |key, _| {
            changed.push(key.clone());
            true
        });
        assert_eq!(changed, [keys[2].clone(), keys[0].clone()]);
        assert_eq!(
            database.tables[0].deletions(since).map(|(_, key)| key.clone()).collect::<Vec<_>>(),
            [keys[1].clone()]
        );
        assert_eq!(database.tables[0].rows[&keys[2]].cell(0), "");
    }

    #[test]
    fn what_is_rolled_back_never_happened() {
        let mut def = TableDef::new("thing", Some("things"), "thingid");
        def.add("name:s10*");
        def.add_common(Ownership::None);
        let mut database = Database::new(vec![Table::new(def)], 100);
        let keys: Vec<RowKey> = (1..=3).map(|number| Guid::from_order(number).into()).collect();
        database.put(0, keys[0].clone(), &["\"a\"".to_owned()]);
        database.put(0, keys[1].clone(), &["\"b\"".to_owned()]);
        let first = database.savepoint();
        database.update(0, &keys[0], |_, cells| cells[0] = "\"c\"".to_owned());
        let second = database.savepoint();
        database.remove(0, &keys[0]);
        database.put(0, keys[2].clone(), &["\"d\"".to_owned()]);
        database.remove(0, &keys[1]);
        database.roll_back(second);
        assert_eq!(database.tables[0].rows[&keys[0]].cell(0), "\"c\"");
        assert!(database.tables[0].rows.contains_key(&keys[1]) && !database.tables[0].rows.contains_key(&keys[2]));
        database.roll_back(first);
        database.commit();
        assert_eq!(database.tables[0].rows[&keys[0]].cell(0), "\"a\"");
        assert_eq!(database.tables[0].deletions(0).count(), 0);
        let mut seen = 0;
        database.tables[0].scan_changes(100, |_, _| {
            seen += 1;
            true
        });
        assert_eq!(seen, 2);
    }
}
