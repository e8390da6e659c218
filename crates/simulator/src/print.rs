//! Printing rows as the service prints them.
//!
//! A [`Plan`] is made once per request: for every column the text before its value is ready, with comma,
//! quotes and annotations. Printing a row is then copying pieces. `@odata.etag` comes first, columns follow
//! in the order of the definition whatever the order of `$select`, unset columns are `null`
//! (dataverse 3.1, 3.4, 3.5).

use std::fmt::Write as _;

use crate::answer::Refusal;
use crate::big;
use crate::content::{ContentKind, Contents, base64};
use crate::database::{RowKey, RowView};
use crate::dice::mix;
use crate::guid::Guid;
use crate::query::{FORMATTED, LOOKUP_NAME, NAVIGATION, Prefer};
use crate::schema::{Column, Kind, Slot, Storage, TableDef};

/// Elastic versions are unlike those of standard tables (dataverse 3.5).
const ELASTIC_VERSION: u64 = 638_751_518_483_842_799;

enum Source {
    Key,
    Partition,
    Version,
    Cell(usize),
    /// Text before the id, for each possible target; `fallback` when no annotation is wanted.
    Lookup {
        cell: usize,
        before: Vec<(String, String)>,
    },
    Thumbnail(usize),
    Body(usize),
}

struct Item {
    /// `,"name":`
    before: String,
    source: Source,
    /// `,"name@…FormattedValue":` when wanted.
    formatted: Option<String>,
}

/// How rows of one request are printed.
pub(crate) struct Plan {
    items: Vec<Item>,
    etag: bool,
    elastic: bool,
    contents: Contents,
}

/// Which columns to print.
pub(crate) enum Columns<'a> {
    /// A query without `$select`: everything but images (dataverse 3.4).
    Default,
    /// A query with `$select`.
    Named(&'a [String]),
    /// Everything readable with images, but without the bodies of notes and attachments: what a backup holds.
    Oracle,
}

impl Plan {
    pub(crate) fn new(def: &TableDef, columns: &Columns<'_>, prefer: &Prefer) -> Result<Self, Refusal> {
        let oracle = matches!(columns, Columns::Oracle);
        if let Columns::Named(names) = columns {
            for name in *names {
                if def.property(name).is_none() {
                    return Err(Refusal::no_property(name, &def.name));
                }
            }
        }
        let chosen = |column: &Column, property: &str| match columns {
            Columns::Default => column.kind != Kind::Image,
            Columns::Oracle => column.kind != Kind::Body,
            Columns::Named(names) => {
                // The key always comes, elastic keys have two parts, and money brings its currency (dataverse 3.4).
                matches!(column.slot, Slot::Key | Slot::Partition)
                    || names.iter().any(|name| name == property)
                    || (property == "_transactioncurrencyid_value"
                        && names.iter().any(|name| {
                            def.property(name).is_some_and(|column| matches!(column.kind, Kind::Money { .. }))
                        }))
            }
        };
        let (navigation, target) = (oracle || prefer.wants(NAVIGATION), oracle || prefer.wants(LOOKUP_NAME));
        let mut items = Vec::new();
        for column in &def.columns {
            let Some(property) = column.property().filter(|property| chosen(column, property)) else { continue };
            let before = format!(",\"{property}\":");
            let source = match column.slot {
                Slot::Key => Source::Key,
                Slot::Partition => Source::Partition,
                Slot::Version => Source::Version,
                Slot::Thumbnail(cell) => Source::Thumbnail(cell),
                Slot::Cell(cell) if column.kind == Kind::Body => Source::Body(cell),
                Slot::Cell(cell) if column.kind.is_lookup() => {
                    Source::Lookup { cell, before: lookup_texts(def, column, &property, navigation, target) }
                }
                Slot::Cell(cell) => Source::Cell(cell),
                Slot::None => continue,
            };
            let has_format = column.kind.is_lookup()
                || matches!(
                    column.kind,
                    Kind::Boolean
                        | Kind::Choice { .. }
                        | Kind::MultiChoice { .. }
                        | Kind::State { .. }
                        | Kind::Status { .. }
                        | Kind::Money { .. }
                        | Kind::Date(_)
                        | Kind::Integer
                );
            let formatted = (has_format && prefer.wants(FORMATTED)).then(|| format!(",\"{property}@{FORMATTED}\":"));
            items.push(Item { before, source, formatted });
        }
        let contents = def.contents.clone();
        Ok(Self { items, etag: !oracle, elastic: def.storage == Storage::Elastic, contents })
    }

    /// Appends one row as a JSON object.
    pub(crate) fn write(&self, key: &RowKey, row: RowView<'_>, out: &mut String) {
        out.push('{');
        let start = out.len();
        if self.etag {
            self.write_etag(row.version(), out);
        }
        for item in &self.items {
            item.write(key, row, self, out);
        }
        if !self.etag && out.len() > start {
            // Without the etag the first item brought its comma.
            out.remove(start);
        }
        out.push('}');
    }

    fn write_etag(&self, version: u64, out: &mut String) {
        out.push_str("\"@odata.etag\":\"");
        etag(version, self.elastic, out);
        out.push('"');
    }
}

/// Appends the etag of a version as it stands inside of a JSON string.
pub(crate) fn etag(version: u64, elastic: bool, out: &mut String) {
    out.push_str("W/\\\"");
    if elastic {
        // A guid-like text without a relation to the version (dataverse 3.5).
        Guid::random(mix(version), mix(version ^ 1)).write(out);
    } else {
        write_number(version, out);
    }
    out.push_str("\\\"");
}

fn lookup_texts(
    def: &TableDef,
    column: &Column,
    property: &str,
    navigation: bool,
    target: bool,
) -> Vec<(String, String)> {
    let owners = ["systemuser".to_owned(), "team".to_owned()];
    let targets = if column.kind == Kind::Owner { &owners[..] } else { column.kind.targets() };
    targets
        .iter()
        .map(|name| {
            let mut before = String::new();
            if navigation {
                append(&mut before, format_args!(",\"{property}@{NAVIGATION}\":\"{}\"", def.navigation(column, name)));
            }
            if target {
                append(&mut before, format_args!(",\"{property}@{LOOKUP_NAME}\":\"{name}\""));
            }
            append(&mut before, format_args!(",\"{property}\":\""));
            (name.clone(), before)
        })
        .collect()
}

/// Appends formatted text.
pub(crate) fn append(out: &mut String, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "writing to a string");
}

fn write_number(number: u64, out: &mut String) {
    append(out, format_args!("{number}"));
}

impl Item {
    fn write(&self, key: &RowKey, row: RowView<'_>, plan: &Plan, out: &mut String) {
        let row = match row {
            RowView::Stored(row) => row,
            RowView::Generated { number, version, revision } => {
                out.push_str(&self.before);
                match self.source {
                    Source::Cell(cell) => big::write_cell(out, number, revision, cell),
                    Source::Version => write_number(version, out),
                    _ => {
                        out.push('"');
                        key.id.write(out);
                        out.push('"');
                    }
                }
                return;
            }
        };
        if let Source::Lookup { cell, before } = &self.source {
            let value = row.cell(*cell);
            if let (Some(formatted), Some(id)) = (&self.formatted, value.get(..8)) {
                out.push_str(formatted);
                append(out, format_args!("\"Record {id}\""));
            }
            let text = value.get(36..).and_then(|target| before.iter().find(|(name, _)| name == target));
            if let Some((_, text)) = text {
                out.push_str(text);
                out.push_str(&value[..36]);
                out.push('"');
            } else {
                out.push_str(&self.before);
                out.push_str("null");
            }
            return;
        }
        if let (Some(formatted), Source::Cell(cell)) = (&self.formatted, &self.source) {
            let value = row.cell(*cell);
            if !value.is_empty() {
                out.push_str(formatted);
                append(out, format_args!("\"{}\"", value.trim_matches('"')));
            }
        }
        out.push_str(&self.before);
        match &self.source {
            Source::Key => {
                out.push('"');
                key.id.write(out);
                out.push('"');
            }
            Source::Partition => crate::answer::write_json_text(key.partition.as_deref().unwrap_or_default(), out),
            Source::Version => write_number(row.version + if plan.elastic { ELASTIC_VERSION } else { 0 }, out),
            Source::Cell(cell) => {
                let value = row.cell(*cell);
                out.push_str(if value.is_empty() { "null" } else { value });
            }
            Source::Thumbnail(cell) => match Guid::parse(row.cell(*cell).trim_matches('"')) {
                Some(id) => {
                    out.push('"');
                    out.push_str(&base64(&plan.contents.find(id, ContentKind::Image).thumbnail()));
                    out.push('"');
                }
                None => out.push_str("null"),
            },
            Source::Body(cell) => match Guid::parse(row.cell(*cell)) {
                Some(id) => {
                    out.push('"');
                    out.push_str(&base64(&plan.contents.find(id, ContentKind::Body).bytes()));
                    out.push('"');
                }
                None => out.push_str("null"),
            },
            Source::Lookup { .. } => unreachable!("lookups were printed above"),
        }
    }
}
