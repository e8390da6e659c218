//! The small part of `$filter` that a backup and a restore need.
//!
//! Comparisons, `Microsoft.Dynamics.CRM.In(…)`, joined by `or` and by `and`; where both occur, parentheses
//! enclose the alternatives: `(a eq 1 or a eq 2) and b gt 3`. Enough for reading rows by their ids and for the
//! watermark `versionnumber gt N` (dataverse 4.7). Anything else is refused, not misread.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::answer::Refusal;
use crate::big;
use crate::database::{RowKey, RowView};
use crate::schema::{Column, Kind, Slot, TableDef};

/// The function that compares a property with a list.
const IN: &str = "Microsoft.Dynamics.CRM.In(";

enum Term<'a> {
    Compare {
        column: &'a Column,
        operator: String,
        literal: String,
    },
    /// One of these values, in lower case.
    In {
        column: &'a Column,
        values: HashSet<String>,
    },
}

/// A parsed filter over one table: all of these, of each any.
pub(crate) struct Filter<'a> {
    groups: Vec<Vec<Term<'a>>>,
}

/// Splits at a word that stands outside of quotes and parentheses.
fn split<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let (mut parts, mut start, mut depth, mut quoted) = (Vec::new(), 0, 0_usize, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'\'' => quoted = !quoted,
            b'(' | b'[' if !quoted => depth += 1,
            b')' | b']' if !quoted => depth = depth.saturating_sub(1),
            b' ' if !quoted && depth == 0 && index >= start && text[index..].starts_with(word) => {
                parts.push(text[start..index].trim());
                start = index + word.len();
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// Takes away parentheses around the whole.
fn bare(text: &str) -> &str {
    text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).map_or(text, str::trim)
}

impl<'a> Filter<'a> {
    pub(crate) fn parse(def: &'a TableDef, text: &str) -> Result<Self, Refusal> {
        let alternatives = split(text.trim(), " or ");
        let conditions = split(text.trim(), " and ");
        if alternatives.len() > 1 && conditions.len() > 1 {
            return Err(Refusal::not_simulated("A filter that mixes 'and' with 'or' without parentheses"));
        }
        let groups = if alternatives.len() > 1 { vec![text.trim()] } else { conditions };
        let groups = groups.into_iter().map(|group| Self::group(def, group)).collect::<Result<_, _>>()?;
        Ok(Self { groups })
    }

    fn group(def: &'a TableDef, text: &str) -> Result<Vec<Term<'a>>, Refusal> {
        let terms = split(bare(text), " or ");
        let terms: Vec<Term<'a>> =
            terms.into_iter().map(|term| Term::parse(def, bare(term))).collect::<Result<_, _>>()?;
        Ok(gather(terms))
    }

    pub(crate) fn matches(&self, key: &RowKey, row: RowView<'_>) -> bool {
        self.groups.iter().all(|group| group.iter().any(|term| term.matches(key, row)))
    }
}

/// Many comparisons of one column are a list.
fn gather(terms: Vec<Term<'_>>) -> Vec<Term<'_>> {
    let mut values = HashSet::new();
    let mut of: Option<&Column> = None;
    for term in &terms {
        let Term::Compare { column, operator, literal } = term else { return terms };
        let Some(text) = text_of(literal).filter(|_| operator == "eq" && of.is_none_or(|of| of.name == column.name))
        else {
            return terms;
        };
        of = Some(*column);
        values.insert(text.to_lowercase());
    }
    match of {
        Some(column) if terms.len() > 1 => vec![Term::In { column, values }],
        _ => terms,
    }
}

/// The text a literal stands for; `None` for null.
fn text_of(literal: &str) -> Option<String> {
    match literal.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(text) => Some(text.replace("''", "'")),
        None if literal == "null" => None,
        None => Some(literal.to_owned()),
    }
}

impl<'a> Term<'a> {
    fn parse(def: &'a TableDef, term: &str) -> Result<Self, Refusal> {
        if let Some(inside) = term.strip_prefix(IN).and_then(|rest| rest.strip_suffix(')')) {
            return Self::parse_in(def, inside);
        }
        if term.contains('(') && !term.contains('\'') {
            return Err(Refusal::not_simulated("A filter that uses other functions"));
        }
        let mut words = term.splitn(3, ' ');
        let (Some(property), Some(operator), Some(literal)) = (words.next(), words.next(), words.next()) else {
            return Err(Refusal::bad_query(format!("Syntax error in '{term}'.")));
        };
        let column = def.property(property).ok_or_else(|| Refusal::no_property(property, &def.name))?;
        if !matches!(operator, "eq" | "ne" | "gt" | "ge" | "lt" | "le") {
            return Err(Refusal::bad_query(format!("Syntax error at '{operator}'.")));
        }
        Ok(Self::Compare { column, operator: operator.to_owned(), literal: literal.trim().to_owned() })
    }

    /// `PropertyName='accountid',PropertyValues=['…','…']`
    fn parse_in(def: &'a TableDef, inside: &str) -> Result<Self, Refusal> {
        let wrong = || Refusal::bad_query("Syntax error in the function 'In'.");
        let (name, values) = inside.split_once(",PropertyValues=").ok_or_else(wrong)?;
        let name = name.trim().strip_prefix("PropertyName=").map(|name| name.trim_matches('\'')).ok_or_else(wrong)?;
        // Lookups go by their logical name here.
        let column = def
            .property(name)
            .or_else(|| def.column(name).filter(|column| column.kind.is_lookup()))
            .ok_or_else(|| Refusal::no_property(name, &def.name))?;
        let values = values.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).ok_or_else(wrong)?;
        // JSON writes texts in other quotes.
        let values = values.split(',').map(|value| value.trim().trim_matches(['\'', '"']).to_lowercase()).collect();
        Ok(Self::In { column, values })
    }

    fn matches(&self, key: &RowKey, row: RowView<'_>) -> bool {
        let (column, operator, literal) = match self {
            Self::In { column, values } => {
                return plain(column, key, row).is_some_and(|value| values.contains(&value.to_lowercase()));
            }
            Self::Compare { column, operator, literal } => (column, operator, literal),
        };
        let (value, literal) = (plain(column, key, row), text_of(literal));
        let order = match (&value, &literal) {
            (Some(value), Some(literal)) => match (value.parse::<i128>(), literal.parse::<i128>()) {
                (Ok(value), Ok(literal)) => Some(value.cmp(&literal)),
                // The collation of the database ignores case.
                _ => Some(value.to_lowercase().cmp(&literal.to_lowercase())),
            },
            (None, None) => Some(Ordering::Equal),
            _ => None,
        };
        match operator.as_str() {
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

#[cfg(test)]
mod tests {
    use super::Filter;
    use crate::database::{Database, RowView, Table};
    use crate::guid::Guid;
    use crate::schema::{Ownership, TableDef};

    #[test]
    fn lists_and_groups_find_their_rows() {
        let mut def = TableDef::new("thing", Some("things"), "thingid");
        def.add("name:s40* size:int");
        def.add_common(Ownership::None);
        let mut database = Database::new(vec![Table::new(def)], 100);
        for (number, name) in (1_u128..).zip(["one or two", "O'Neil and son", "three"]) {
            database.put(0, Guid::from_order(number).into(), &[format!("\"{name}\""), number.to_string()]);
        }
        let table = &database.tables[0];
        let ids: Vec<String> = table.rows.keys().map(|key| key.id.to_string()).collect();
        let found = |text: &str| {
            let filter = Filter::parse(&table.def, text).unwrap();
            table.rows.iter().filter(|(key, row)| filter.matches(key, RowView::Stored(row))).count()
        };
        assert_eq!(found(&format!("thingid eq {} or thingid eq {}", ids[0], ids[2].to_uppercase())), 2);
        let list =
            format!("Microsoft.Dynamics.CRM.In(PropertyName='thingid',PropertyValues=['{}','{}'])", ids[0], ids[1]);
        assert_eq!(found(&list), 2);
        assert_eq!(found(&format!("{list} and size gt 1")), 1);
        assert_eq!(found("(size eq 1 or size eq 2) and name eq 'o''neil and son'"), 1);
        assert_eq!(found("name eq 'one or two'"), 1);
        assert_eq!(found("size eq 1 or name eq 'three'"), 2);
        assert!(Filter::parse(&table.def, "size eq 1 or size eq 2 and size eq 3").is_err());
        assert!(Filter::parse(&table.def, "contains(name,x)").is_err());
    }
}
