//! The simulated environment at one moment, and what differs between two moments.

use std::collections::{BTreeMap, BTreeSet};

use dynavault_simulator::{Handle, OracleFile, TableKind};
use serde_json::value::RawValue;

/// Values that the service sets with every write: the counter of changes, who wrote last and when, when a restored row was
/// really made, the rate of its currency, when it came into its queue.
const SERVER_SET: [&str; 8] = [
    "versionnumber",
    "overriddencreatedon",
    "modifiedon",
    "_modifiedby_value",
    "_modifiedonbehalfby_value",
    "ispartydeleted",
    "exchangerate",
    "enteredon",
];
/// Party rows get new ids whenever their activity is written; what counts is who took part.
const PARTIES: &str = "activityparty";

/// For every table its rows as the service would print them, sorted; and the files.
pub(super) struct Moment {
    pub(super) rows: BTreeMap<String, Vec<String>>,
    pub(super) files: Vec<OracleFile>,
    /// Primary key of each table, and whether its rows have ids of their own that stay.
    keys: BTreeMap<String, (String, bool)>,
}

/// The list of all activities, which the service keeps from the activities themselves; those are compared.
const POINTER: &str = "activitypointer";

/// What may differ, because the plan or the proof names it.
#[derive(Default)]
pub(super) struct Excuses {
    /// Rows, as (table, row), that only the service can make: when another row is closed.
    pub(super) rows: BTreeSet<(String, String)>,
    /// Tables with rows that the service makes along with another one, under ids of its own.
    pub(super) own_ids: BTreeSet<String>,
    /// Columns by table.
    pub(super) columns: BTreeMap<String, BTreeSet<String>>,
    /// Single values, as (table, row, column).
    pub(super) values: BTreeSet<(String, String, String)>,
}

type Row = BTreeMap<String, Box<RawValue>>;

impl Moment {
    pub(super) fn of(simulator: &Handle) -> Self {
        let tables = simulator.tables();
        let readable = || tables.iter().filter(|table| table.readable);
        let rows = readable()
            .map(|table| {
                let mut rows: Vec<String> =
                    simulator.rows(&table.logical_name).into_iter().map(|row| row.json).collect();
                rows.sort_unstable();
                (table.logical_name.clone(), rows)
            })
            .collect();
        let keys = readable()
            .map(|table| {
                let stays = table.kind != TableKind::Intersect && table.logical_name != PARTIES;
                (table.logical_name.clone(), (table.primary_id.clone(), stays))
            })
            .collect();
        Self { rows, files: simulator.files(), keys }
    }

    /// What differs from another moment and is not excused: sentences, the first few of each table.
    pub(super) fn differences(&self, other: &Self, excuses: &Excuses) -> Vec<String> {
        let mut found = Vec::new();
        for (table, rows) in &self.rows {
            let empty = Vec::new();
            let theirs = other.rows.get(table).unwrap_or(&empty);
            if rows == theirs || table == POINTER {
                continue;
            }
            let (key, stays) = &self.keys[table];
            if *stays {
                self.compare_rows(table, key, rows, theirs, excuses, &mut found);
            } else {
                let set = |rows: &[String]| -> BTreeSet<String> {
                    rows.iter().filter_map(|row| without_key(row, key)).collect()
                };
                let odd = set(rows).symmetric_difference(&set(theirs)).count();
                if odd > 0 {
                    found.push(format!("{table}: {odd} rows"));
                }
            }
        }
        // Files are compared by their bytes; their ids are new with each upload.
        let file = |file: &OracleFile| (file.table.clone(), file.row.clone(), file.column.clone(), file.bytes.clone());
        let own: BTreeSet<_> = self.files.iter().map(file).collect();
        let others: BTreeSet<_> = other.files.iter().map(file).collect();
        let odd: BTreeSet<_> =
            own.symmetric_difference(&others).map(|(table, row, column, _)| (table, row, column)).collect();
        for (table, row, column) in odd {
            if !excuses.values.contains(&(table.clone(), row.clone(), column.clone())) {
                found.push(format!("{table} {row}: file {column}"));
            }
        }
        found
    }

    fn compare_rows(
        &self,
        table: &str,
        key: &str,
        rows: &[String],
        theirs: &[String],
        excuses: &Excuses,
        found: &mut Vec<String>,
    ) {
        let (own, others) = (by_key(rows, key), by_key(theirs, key));
        let columns = excuses.columns.get(table);
        for id in own.keys().chain(others.keys()).collect::<BTreeSet<_>>() {
            if excuses.rows.contains(&(table.to_string(), id.clone())) {
                continue;
            }
            let (Some(one), Some(other)) = (own.get(id), others.get(id)) else {
                if excuses.own_ids.contains(table) && own.len() == others.len() {
                    continue;
                }
                found.push(format!("{table} {id}: the row is in one of the two only"));
                continue;
            };
            for member in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                let may_differ = member.contains('@')
                    || SERVER_SET.contains(&member.as_str())
                    || self.files.iter().any(|file| file.table == table && file.column == **member)
                    || columns.is_some_and(|columns| columns.contains(member))
                    || excuses.values.contains(&(table.to_string(), id.clone(), member.clone()));
                let text = |row: &Row| row.get(member).map_or("null".to_string(), |value| value.get().to_string());
                if !may_differ && text(one) != text(other) {
                    found.push(format!("{table} {id}: {member}"));
                }
            }
        }
    }
}

fn parsed(row: &str) -> Row {
    serde_json::from_str(row).unwrap_or_default()
}

fn by_key(rows: &[String], key: &str) -> BTreeMap<String, Row> {
    rows.iter()
        .map(|text| {
            let row = parsed(text);
            let id = row.get(key).and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default();
            (id, row)
        })
        .collect()
}

/// A row without what is new whenever it is made; none for a party that is nobody, which a deletion leaves behind and no one
/// can make.
fn without_key(row: &str, key: &str) -> Option<String> {
    let mut row = parsed(row);
    let is_null = |member: &str| row.get(member).is_some_and(|value| value.get() == "null");
    if is_null("_partyid_value") && is_null("addressused") {
        return None;
    }
    row.retain(|member, _| member != key && !SERVER_SET.contains(&member.as_str()) && !member.contains('@'));
    serde_json::to_string(&row).ok()
}
