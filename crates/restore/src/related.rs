//! Rows around the selected ones.
//!
//! ```text
//!  down:N   rows of the snapshot whose lookups name a row of the set, level by level; links count as such rows
//!  up:N     rows that the rows of the set name, level by level, those added by down included
//!  then     links between rows of the set
//! ```
//!
//! A lookup to a row of a partitioned table holds the first part of its key alone (`dataverse` protocol, section 8.12): every
//! row that begins with it is meant, in whichever partition.
//!
//! Who created, changed or owns a row relates it to nothing. All lookups of the snapshot are written once into a scratch
//! file, and each level reads that file: memory holds the ids of the set, nothing else.

use std::collections::HashSet;
use std::path::Path;

use dynavault_model::{Birth, RowId, RowTarget};

use crate::captured::Captured;
use crate::compare::{reference, references, text};
use crate::error::RestoreError;
use crate::spill::Spill;
use crate::tables::{Role, Tables};

type Place = (u16, RowId);

/// Bytes of an edge: two places.
const EDGE_BYTES: usize = 36;

/// Adds related rows to `selected`; gives the ids of each table, sorted.
pub(crate) fn add(
    captured: &Captured,
    tables: &Tables,
    selected: Vec<(u16, Vec<RowId>)>,
    (up, down): (u32, u32),
    scratch: &Path,
) -> Result<Vec<(u16, Vec<RowId>)>, RestoreError> {
    let mut set: HashSet<Place> = selected.iter().flat_map(|(table, ids)| ids.iter().map(|id| (*table, *id))).collect();
    if down > 0 {
        let mut edges = edges(captured, tables, scratch)?;
        let mut level = set.clone();
        for _ in 0..down {
            let mut next = HashSet::new();
            let named = as_named(captured, &level)?;
            edges.scan(|edge| {
                let (from, to) = unpack(edge);
                if named.contains(&to) && !set.contains(&from) {
                    next.insert(from);
                }
                Ok(())
            })?;
            if next.is_empty() {
                break;
            }
            set.extend(&next);
            level = next;
        }
    }
    let mut level = set.clone();
    for _ in 0..up {
        let mut next: HashSet<Place> = HashSet::new();
        for (table, ids) in sorted(&level) {
            captured.each(usize::from(table), &ids, |_, row| {
                each_place(tables, table, row, |to| {
                    if !set.contains(&to) {
                        next.insert(to);
                    }
                });
                Ok(())
            })?;
        }
        // A lookup may name a row that the snapshot does not have.
        level = HashSet::new();
        for (table, ids) in sorted(&next) {
            let present = match first_part(captured, table) {
                Some(key) => beginning_with(captured, table, &key, &ids)?,
                None => captured.present(usize::from(table), &ids)?,
            };
            level.extend(present.into_iter().map(|id| (table, id)).filter(|place| !set.contains(place)));
        }
        if level.is_empty() {
            break;
        }
        set.extend(&level);
    }
    let inside = links_between(captured, tables, &set)?;
    set.extend(&inside);
    Ok(sorted(&set))
}

/// The first part of the key of a table that has several.
fn first_part(captured: &Captured, table: u16) -> Option<String> {
    let [first, _, ..] = captured.table(usize::from(table)).key.as_slice() else { return None };
    Some(first.clone())
}

/// Places as lookups name them.
fn as_named(captured: &Captured, places: &HashSet<Place>) -> Result<HashSet<Place>, RestoreError> {
    let mut named = HashSet::with_capacity(places.len());
    for (table, ids) in sorted(places) {
        match first_part(captured, table) {
            Some(key) => captured.each(usize::from(table), &ids, |_, row| {
                named.extend(row.get(&key).map(|part| (table, RowId::of_key(&[part]))));
                Ok(())
            })?,
            None => named.extend(ids.into_iter().map(|id| (table, id))),
        }
    }
    Ok(named)
}

/// Rows of a partitioned table whose keys begin with one of `parts`, which must be sorted.
fn beginning_with(captured: &Captured, table: u16, key: &str, parts: &[RowId]) -> Result<Vec<RowId>, RestoreError> {
    let mut found = Vec::new();
    captured.all(usize::from(table), |id, row| {
        let part = row.get(key).map(|part| RowId::of_key(&[part]));
        found.extend(part.filter(|part| parts.binary_search(part).is_ok()).map(|_| id));
        Ok(())
    })?;
    Ok(found)
}

/// Adds rows that come into being with a row of the set and are part of it, such as an account's own addresses.
pub(crate) fn add_companions(
    captured: &Captured,
    tables: &Tables,
    target: &dyn RowTarget,
    selected: Vec<(u16, Vec<RowId>)>,
) -> Result<Vec<(u16, Vec<RowId>)>, RestoreError> {
    let mut set: HashSet<Place> = selected.iter().flat_map(|(table, ids)| ids.iter().map(|id| (*table, *id))).collect();
    let mut companions = Vec::new();
    for number in tables.planned() {
        let Some(rules) = tables.get(number).rules.clone().filter(|rules| target.has_companions(rules)) else {
            continue;
        };
        captured.all(usize::from(number), |id, row| {
            if let Birth::WithParent(member) = target.birth(&rules, row)
                && let Some(parent) = reference(row, &member, rules.column(&member))
                && let Some(table) = parent.table.and_then(|name| tables.number(&name))
                && set.contains(&(table, parent.id))
            {
                companions.push((number, id));
            }
            Ok(())
        })?;
    }
    set.extend(companions);
    Ok(sorted(&set))
}

/// Links whose two rows are both in the set.
fn links_between(captured: &Captured, tables: &Tables, set: &HashSet<Place>) -> Result<Vec<Place>, RestoreError> {
    let mut inside = Vec::new();
    for table in tables.planned().into_iter().filter(|table| !tables.get(*table).is_rows()) {
        captured.all(usize::from(table), |id, row| {
            let mut ends = 0;
            each_place(tables, table, row, |end| ends += usize::from(set.contains(&end)));
            if ends == 2 {
                inside.push((table, id));
            }
            Ok(())
        })?;
    }
    Ok(inside)
}

fn sorted(set: &HashSet<Place>) -> Vec<(u16, Vec<RowId>)> {
    let mut places: Vec<Place> = set.iter().copied().collect();
    places.sort_unstable();
    places.chunk_by(|a, b| a.0 == b.0).map(|chunk| (chunk[0].0, chunk.iter().map(|(_, id)| *id).collect())).collect()
}

/// Every lookup of every planned table, as an edge.
fn edges(captured: &Captured, tables: &Tables, scratch: &Path) -> Result<Spill, RestoreError> {
    let mut spill = Spill::new(scratch)?;
    let mut edge = Vec::with_capacity(EDGE_BYTES);
    for table in tables.planned() {
        captured.all(usize::from(table), |id, row| {
            let mut failed = Ok(());
            each_place(tables, table, row, |(to, to_id)| {
                edge.clear();
                for (table, id) in [(table, id), (to, to_id)] {
                    edge.extend_from_slice(&table.to_le_bytes());
                    edge.extend_from_slice(&id.0);
                }
                if failed.is_ok() {
                    failed = spill.push(&edge).map(|_| ());
                }
            });
            failed
        })?;
    }
    Ok(spill)
}

fn unpack(edge: &[u8]) -> (Place, Place) {
    let place = |bytes: &[u8]| {
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[2..18]);
        (u16::from_le_bytes([bytes[0], bytes[1]]), RowId(id))
    };
    (place(&edge[..18]), place(&edge[18..]))
}

/// Calls `each` with every planned row that a row names.
fn each_place(tables: &Tables, number: u16, row: &dynavault_model::Row<'_>, mut each: impl FnMut(Place)) {
    let table = tables.get(number);
    if let Role::Links { first, second } = &table.role {
        for end in [first, second] {
            let id = row.get(&end.member).and_then(text).and_then(|text| RowId::from_guid(text.as_bytes()));
            if let (Some(id), Some(to)) = (id, tables.number(&end.table))
                && tables.get(to).is_rows()
            {
                each((to, id));
            }
        }
        return;
    }
    references(row, table.rules.as_deref(), |_, reference| {
        let to = reference.table.and_then(|name| tables.number(&name));
        if let Some(to) = to.filter(|to| tables.get(*to).is_rows()) {
            each((to, reference.id));
        }
    });
}
