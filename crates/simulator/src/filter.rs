//! The small part of `$filter` that a backup needs.
//!
//! Comparisons joined by `or`, or by `and`, but not both: enough for `activityid eq {guid} or …` and for the
//! watermark `versionnumber gt N` (dataverse 4.7). Anything else is refused, not misread.

use std::cmp::Ordering;

use crate::answer::Refusal;
use crate::big;
use crate::database::{RowKey, RowView};
use crate::schema::{Column, Kind, Slot, TableDef};

struct Term<'a> {
    column: &'a Column,
    operator: String,
    literal: String,
}

/// A parsed filter over one table.
pub(crate) struct Filter<'a> {
    terms: Vec<Term<'a>>,
    all: bool,
}

impl<'a> Filter<'a> {
    pub(crate) fn parse(def: &'a TableDef, text: &str) -> Result<Self, Refusal> {
        let text = text.trim();
        let all = !text.contains(" or ");
        if !all && text.contains(" and ") || text.contains('(') {
            return Err(Refusal::not_simulated("A filter that mixes 'and' with 'or', or uses functions,"));
        }
        let mut terms = Vec::new();
        for term in text.split(if all { " and " } else { " or " }) {
            let mut words = term.trim().splitn(3, ' ');
            let (Some(property), Some(operator), Some(literal)) = (words.next(), words.next(), words.next()) else {
                return Err(Refusal::bad_query(format!("Syntax error in '{term}'.")));
            };
            let column = def.property(property).ok_or_else(|| Refusal::no_property(property, &def.name))?;
            if !matches!(operator, "eq" | "ne" | "gt" | "ge" | "lt" | "le") {
                return Err(Refusal::bad_query(format!("Syntax error at '{operator}'.")));
            }
            terms.push(Term { column, operator: operator.to_owned(), literal: literal.trim().to_owned() });
        }
        Ok(Self { terms, all })
    }

    pub(crate) fn matches(&self, key: &RowKey, row: RowView<'_>) -> bool {
        if self.all {
            self.terms.iter().all(|term| term.matches(key, row))
        } else {
            self.terms.iter().any(|term| term.matches(key, row))
        }
    }
}

impl Term<'_> {
    fn matches(&self, key: &RowKey, row: RowView<'_>) -> bool {
        let value = plain(self.column, key, row);
        let literal = match self.literal.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
            Some(text) => Some(text.replace("''", "'")),
            None if self.literal == "null" => None,
            None => Some(self.literal.clone()),
        };
        let order = match (&value, &literal) {
            (Some(value), Some(literal)) => match (value.parse::<i128>(), literal.parse::<i128>()) {
                (Ok(value), Ok(literal)) => Some(value.cmp(&literal)),
                // The collation of the database ignores case.
                _ => Some(value.to_lowercase().cmp(&literal.to_lowercase())),
            },
            (None, None) => Some(Ordering::Equal),
            _ => None,
        };
        match self.operator.as_str() {
            "eq" => order == Some(Ordering::Equal),
            "ne" => order != Some(Ordering::Equal),
            "gt" => order == Some(Ordering::Greater),
            "ge" => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            "lt" => order == Some(Ordering::Less),
            _ => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        }
    }
}

/// Value of a column without JSON quoting; `None` for null.
fn plain(column: &Column, key: &RowKey, row: RowView<'_>) -> Option<String> {
    let raw = match (column.slot, row) {
        (Slot::Key, _) => return Some(key.id.to_string()),
        (Slot::Partition, _) => return key.partition.as_deref().map(str::to_owned),
        (Slot::Version, row) => return Some(row.version().to_string()),
        (Slot::Cell(cell), RowView::Stored(row)) => row.cell(cell).to_owned(),
        (Slot::Cell(cell), RowView::Generated { number, revision, .. }) => {
            let mut text = String::new();
            big::write_cell(&mut text, number, revision, cell);
            text
        }
        _ => return None,
    };
    if raw.is_empty() {
        return None;
    }
    if column.kind.is_lookup() || column.kind == Kind::Body {
        return raw.get(..36).map(str::to_owned);
    }
    if raw.starts_with('"') { serde_json::from_str(&raw).ok() } else { Some(raw) }
}
