//! Which rows of the snapshot a restore is about.
//!
//! Without a word, all of them. Tables are narrowed by patterns, rows by ids or by a condition; related rows are added level by
//! level (see `related`), and `deleted_only` keeps of the rows named only those that are gone from the environment:
//! their relatives are taken as they are, since a lookup that a deletion emptied is part of the damage.
//!
//! Party rows and content need no selection: they go along with their rows.

use std::collections::HashMap;

use dynavault_model::{Row, RowId};
use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::captured::Captured;
use crate::error::RestoreError;
use crate::filter::{Filter, member_of};
use crate::findings::Findings;
use crate::tables::{Role, Tables};

/// Most levels of related rows, in either direction.
const LEVELS_MAX: u32 = 64;

/// Which rows are restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Patterns of logical names; all tables when empty.
    pub tables: Vec<String>,
    /// Ids of rows, `ID/PARTITION` where a key has two parts; all rows when empty.
    pub ids: Vec<String>,
    /// A condition, see the restore guide.
    pub filter: Option<String>,
    /// Levels of rows that the selected ones point to.
    pub up: u32,
    /// Levels of rows that point to the selected ones.
    pub down: u32,
    /// Of the selected rows only those that no longer exist.
    pub deleted_only: bool,
}

impl Selection {
    /// The selection as it is written on the command line.
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.tables.iter().map(|table| format!("--table {table}")).collect();
        words.extend(self.ids.iter().map(|id| format!("--id {id}")));
        words.extend(self.filter.iter().map(|filter| format!("--where {filter}")));
        if self.has_related() {
            words.push(format!("--related up:{},down:{}", self.up, self.down));
        }
        if self.deleted_only {
            words.push("--deleted-only".into());
        }
        words
    }

    /// Whether related rows are added.
    pub(crate) fn has_related(&self) -> bool {
        self.up > 0 || self.down > 0
    }

    /// Whether the tables are taken with all their rows and nothing else.
    pub(crate) fn is_whole(&self) -> bool {
        self.ids.is_empty() && self.filter.is_none() && !self.has_related() && !self.deleted_only
    }

    pub(crate) fn check(&self, mirror: bool) -> Result<(), RestoreError> {
        let wrong =
            |reason: &str, remedy: &str| Err(RestoreError::Selection { reason: reason.into(), remedy: remedy.into() });
        if mirror && !self.is_whole() {
            return wrong(
                "--mirror deletes what the snapshot does not have, and needs whole tables for that",
                "leave out --id, --where, --related and --deleted-only, or --mirror",
            );
        }
        if self.up > LEVELS_MAX || self.down > LEVELS_MAX {
            return wrong("--related goes too far", "64 levels up and down at most");
        }
        Ok(())
    }
}

fn wrong(reason: String, remedy: &str) -> RestoreError {
    RestoreError::Selection { reason, remedy: remedy.into() }
}

fn patterns(tables: &[String]) -> Result<GlobSet, RestoreError> {
    let mut set = GlobSetBuilder::new();
    for pattern in tables {
        let glob = Glob::new(&pattern.to_lowercase()).map_err(|error| {
            wrong(format!("{pattern} is not a pattern: {error}"), "write for example --table 'new_*'")
        })?;
        set.add(glob);
    }
    set.build().map_err(|error| wrong(format!("the patterns cannot be used: {error}"), "use fewer or shorter patterns"))
}

/// Numbers of the tables that are named; those that are not planned are reported.
pub(crate) fn named(
    selection: &Selection,
    captured: &Captured,
    tables: &Tables,
    findings: &mut Findings,
) -> Result<Vec<u16>, RestoreError> {
    let set = patterns(&selection.tables)?;
    let all = selection.tables.is_empty();
    let chosen: Vec<u16> = (0..tables.len()).filter(|n| all || set.is_match(&tables.get(*n).name)).collect();
    let refused = captured.manifest.refused.iter().filter(|refused| !all && set.is_match(&refused.table));
    let refused: Vec<_> = refused.collect();
    for table in &refused {
        let message = format!("the snapshot does not have the table: {}", table.refusal.reason);
        findings.table("not-in-snapshot", &table.table, 0, message);
    }
    if chosen.is_empty() && refused.is_empty() {
        return Err(wrong(
            format!("no table of the snapshot is named {}", selection.tables.join(" or ")),
            "`dynavault snapshot show` lists the tables of a snapshot",
        ));
    }
    for number in &chosen {
        let (table, entry) = (tables.get(*number), captured.table(usize::from(*number)));
        if let Role::Left(code, reason) = &table.role
            && entry.live_rows > 0
        {
            findings.table(code, &table.name, entry.live_rows, reason.clone());
        }
        if table.is_planned() && entry.captured_by != captured.manifest.snapshot {
            let reason = entry.coverage.reason.as_deref().unwrap_or("it could not be read");
            let message = format!("the rows are those of snapshot {}: {reason}", entry.captured_by);
            findings.table("older-rows", &table.name, entry.live_rows, message);
        }
    }
    Ok(chosen.into_iter().filter(|number| tables.get(*number).is_planned()).collect())
}

/// Ids of the selected rows of each named table, sorted; related rows not yet added.
pub(crate) fn rows(
    selection: &Selection,
    captured: &Captured,
    tables: &Tables,
    named: &[u16],
) -> Result<Vec<(u16, Vec<RowId>)>, RestoreError> {
    let wanted = selection.ids.iter().map(|id| Wanted::parse(id)).collect::<Result<Vec<_>, _>>()?;
    let filter = match &selection.filter {
        Some(text) => Some(Filter::parse(text).map_err(filtered)?),
        None => None,
    };
    let mut selected = Vec::with_capacity(named.len());
    let mut seen = vec![false; wanted.len()];
    for number in named {
        let at = usize::from(*number);
        let asked = match wanted.as_slice() {
            [] => None,
            wanted => Some(ids_of(wanted, captured, tables, *number, &mut seen)?),
        };
        let mut ids = match (&filter, asked) {
            (None, None) => captured.ids(at)?,
            (None, Some(ids)) => ids,
            (Some(filter), asked) => {
                let filter = filter.bind(tables.get(*number).source()).map_err(filtered)?;
                let mut ids = Vec::new();
                let mut take = |id: RowId, row: &Row<'_>| {
                    if filter.matches(row) {
                        ids.push(id);
                    }
                    Ok(())
                };
                match asked {
                    None => captured.all(at, take)?,
                    Some(asked) => captured.each(at, &asked, |place, row| take(asked[place], row))?,
                }
                ids
            }
        };
        ids.sort_unstable();
        selected.push((*number, ids));
    }
    if let Some(at) = seen.iter().position(|seen| !seen) {
        return Err(wrong(
            format!("none of the chosen tables of the snapshot has a row {}", selection.ids[at]),
            "`dynavault find` looks for a row; name its table with --table",
        ));
    }
    Ok(selected)
}

/// A row as `--id` names it.
struct Wanted {
    /// The id, or the first part of the key where it has several.
    id: RowId,
    /// All parts, where they were given.
    whole: Option<RowId>,
    text: String,
}

impl Wanted {
    fn parse(text: &str) -> Result<Self, RestoreError> {
        let (first, partition) = text.split_once('/').map_or((text, None), |(first, rest)| (first, Some(rest)));
        let id: RowId = first.parse().map_err(|_| {
            let remedy = "ids look like 0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f; where a key has two parts, ID/PARTITION";
            wrong(format!("{text} is not an id"), remedy)
        })?;
        let token = |text: &str| serde_json::Value::from(text).to_string();
        let whole = partition.map(|partition| {
            let (first, second) = (token(&first.to_ascii_lowercase()), token(partition));
            RowId::of_key(&[first.as_bytes(), second.as_bytes()])
        });
        Ok(Self { id, whole, text: text.to_string() })
    }
}

/// Ids of the wanted rows that a table has, sorted.
fn ids_of(
    wanted: &[Wanted],
    captured: &Captured,
    tables: &Tables,
    number: u16,
    seen: &mut [bool],
) -> Result<Vec<RowId>, RestoreError> {
    let source = tables.get(number).source();
    let mut asked: Vec<(RowId, usize)> = Vec::new();
    if let [first, _, ..] = source.key.as_slice() {
        let parts: HashMap<RowId, usize> =
            wanted.iter().enumerate().filter(|(_, row)| row.whole.is_none()).map(|(at, row)| (row.id, at)).collect();
        asked.extend(wanted.iter().enumerate().filter_map(|(at, row)| Some((row.whole?, at))));
        if !parts.is_empty() {
            let mut found: Vec<(RowId, usize)> = Vec::new();
            captured.all(usize::from(number), |id, row| {
                let at = row.get(first).and_then(|part| parts.get(&RowId::of_key(&[part])));
                found.extend(at.map(|at| (id, *at)));
                Ok(())
            })?;
            found.sort_by_key(|(_, at)| *at);
            if let Some(pair) = found.windows(2).find(|pair| pair[0].1 == pair[1].1) {
                let (text, table) = (&wanted[pair[0].1].text, &tables.get(number).name);
                let reason = format!("several rows of table {table} have the id {text}");
                return Err(wrong(reason, "say which one with --id ID/PARTITION"));
            }
            asked.extend(found);
        }
    } else {
        asked.extend(wanted.iter().enumerate().filter(|(_, row)| row.whole.is_none()).map(|(at, row)| (row.id, at)));
    }
    asked.sort_unstable();
    let mut ids: Vec<RowId> = asked.iter().map(|(id, _)| *id).collect();
    ids.dedup();
    let ids = captured.present(usize::from(number), &ids)?;
    for (_, at) in asked.iter().filter(|(id, _)| ids.binary_search(id).is_ok()) {
        seen[*at] = true;
    }
    Ok(ids)
}

fn filtered(error: crate::filter::FilterError) -> RestoreError {
    let remedy = dynavault_model::Diagnose::remedy(&error).unwrap_or_default();
    RestoreError::Selection { reason: error.to_string(), remedy }
}

/// The members that may be written on existing rows, where `--columns` restricts them: one set for each table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Columns(Vec<String>);

impl Columns {
    /// Columns as given; each must be a column of some table of the plan.
    pub(crate) fn new(names: &[String], tables: &Tables, chosen: &[u16]) -> Result<Self, RestoreError> {
        for name in names {
            let known = chosen.iter().any(|number| {
                let source = tables.get(*number).source();
                member_of(source, name).is_some() || source.content.iter().any(|content| content.column == *name)
            });
            if !known {
                let reason = format!("none of the chosen tables has a captured column {name}");
                return Err(wrong(reason, "columns are named by their logical names"));
            }
        }
        Ok(Self(names.to_vec()))
    }

    /// Whether a member of a column may be written.
    pub(crate) fn allow(&self, member: &str, column: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| name == member || name == column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_reads_like_its_command_line() {
        let selection = Selection {
            tables: vec!["account".into(), "new_*".into()],
            ids: vec!["0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f".into()],
            filter: Some("name like 'A%'".into()),
            up: 0,
            down: 2,
            deleted_only: true,
        };
        assert_eq!(
            selection.words(),
            [
                "--table account",
                "--table new_*",
                "--id 0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f",
                "--where name like 'A%'",
                "--related up:0,down:2",
                "--deleted-only",
            ]
        );
        assert!(Selection::default().words().is_empty());
    }

    #[test]
    fn mirroring_parts_of_tables_is_refused() {
        let part = Selection { filter: Some("a = 1".into()), ..Selection::default() };
        assert!(part.check(true).unwrap_err().to_string().contains("whole tables"));
        part.check(false).unwrap();
        Selection { tables: vec!["account".into()], ..Selection::default() }.check(true).unwrap();
        assert!(Selection { up: 65, ..Selection::default() }.check(false).is_err());
    }

    #[test]
    fn patterns_match_logical_names() {
        let set = patterns(&["new_*".into(), "Account".into()]).unwrap();
        assert!(set.is_match("new_tag") && set.is_match("account") && !set.is_match("accountleads"));
        assert!(patterns(&["a[".into()]).is_err());
    }
}
