//! What a person should know before applying: the first of each kind one by one, the rest as a number.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::Finding;

/// Rows listed one by one of each kind, table and column.
const LISTED_MAX: usize = 10;

#[derive(Debug, Default)]
struct Kind {
    rows: u64,
    /// Row, sentence, and how many rows the sentence is about.
    listed: Vec<(Option<String>, String, u64)>,
}

/// Findings by code, table and column.
#[derive(Debug, Default)]
pub(crate) struct Findings(BTreeMap<(&'static str, String, String), Kind>);

impl Findings {
    /// A finding about a row; an empty column means the row as a whole.
    pub(crate) fn row(&mut self, code: &'static str, table: &str, id: &str, column: &str, message: impl Into<String>) {
        self.add(code, table, column, Some(id.to_string()), message.into(), 1);
    }

    /// A finding about rows of a table, or about the table.
    pub(crate) fn table(&mut self, code: &'static str, table: &str, rows: u64, message: impl Into<String>) {
        self.add(code, table, "", None, message.into(), rows);
    }

    fn add(&mut self, code: &'static str, table: &str, column: &str, id: Option<String>, message: String, rows: u64) {
        let kind = self.0.entry((code, table.to_string(), column.to_string())).or_default();
        kind.rows += rows;
        if let Some((None, said, about)) = kind.listed.last_mut()
            && id.is_none()
            && *said == message
        {
            *about += rows;
        } else if kind.listed.len() < LISTED_MAX {
            kind.listed.push((id, message, rows));
        }
    }

    /// The findings as a plan lists them: the rows of a kind add up to its total.
    pub(crate) fn list(&self) -> Vec<Finding> {
        let mut list = Vec::new();
        for ((code, table, column), kind) in &self.0 {
            let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
            let finding = |id: Option<String>, message: String, rows: u64| Finding {
                code: (*code).to_string(),
                table: some(table),
                id,
                column: some(column),
                message,
                rows,
            };
            list.extend(kind.listed.iter().map(|(id, message, rows)| finding(id.clone(), message.clone(), *rows)));
            let more = kind.rows - kind.listed.iter().map(|(_, _, rows)| rows).sum::<u64>();
            if more > 0 {
                list.push(finding(None, format!("and {more} more"), more));
            }
        }
        list
    }
}

/// Columns that are not written, by reason.
#[derive(Debug, Default)]
pub(crate) struct NotWritten(BTreeMap<String, BTreeSet<String>>);

impl NotWritten {
    pub(crate) fn add(&mut self, code: &str, column: &str) {
        if !self.0.get(code).is_some_and(|columns| columns.contains(column)) {
            self.0.entry(code.to_string()).or_default().insert(column.to_string());
        }
    }

    pub(crate) fn list(self) -> BTreeMap<String, Vec<String>> {
        self.0.into_iter().map(|(code, columns)| (code, columns.into_iter().collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_kind_are_listed_and_the_rest_counted() {
        let mut findings = Findings::default();
        for n in 0..25 {
            findings.row("too-long", "account", &n.to_string(), "name", "the text is too long");
        }
        findings.table("never", "audit", 3, "written by the service");
        findings.table("never", "audit", 4, "written by the service");
        let list = findings.list();
        assert_eq!(list.len(), 12);
        assert_eq!((list[0].code.as_str(), list[0].rows, list[0].id.as_deref()), ("never", 7, None));
        assert_eq!((list[11].rows, list[11].message.as_str()), (15, "and 15 more"));
        assert_eq!(
            list.iter().filter(|finding| finding.code == "too-long").map(|finding| finding.rows).sum::<u64>(),
            25
        );
    }
}
