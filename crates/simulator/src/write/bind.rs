//! Finding rows by what clients write: keys in a URL and references in a body (dataverse 1.1, 6.2, 6.8).

use crate::answer::{Refusal, write_json_text};
use crate::database::{Database, RowKey};
use crate::query::{Options, decode};
use crate::read::parse_key;
use crate::route::split_key;
use crate::schema::Storage;

use super::{WriteContext, bad_payload};

/// What the parentheses of `{set}({key})` name.
pub(super) enum Address {
    /// The primary key, whether there is such a row or not.
    Primary(RowKey),
    /// An alternate key: the row that has it, and column and cell to create one with it.
    Alternate { found: Option<RowKey>, column: String, value: String },
}

/// Reads the key of a URL.
pub(super) fn address(database: &Database, table: usize, text: &str, options: &Options) -> Result<Address, Refusal> {
    let def = &database.tables[table].def;
    let (name, value) = text.split_once('=').unwrap_or(("", text));
    if name.is_empty() || name == def.primary_id || def.storage == Storage::Elastic {
        // Users and teams inherit their key, so that it has no name of their own (dataverse 2.6).
        if !name.is_empty() && matches!(def.name.as_str(), "systemuser" | "team") {
            return Err(undefined_key(name, &def.name));
        }
        return parse_key(def, text, options.partition.as_deref()).map(Address::Primary);
    }
    let cell = def
        .key
        .as_deref()
        .filter(|key| *key == name)
        .and_then(|key| def.cell(key))
        .ok_or_else(|| undefined_key(name, &def.name))?;
    let inside = value
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''))
        .ok_or_else(|| Refusal::bad_query(format!("Error in URL key '{text}'.")))?
        .replace("''", "'");
    let found = with_key(database, table, cell, &inside);
    let mut raw = String::new();
    write_json_text(&inside, &mut raw);
    Ok(Address::Alternate { found, column: name.to_owned(), value: raw })
}

fn undefined_key(name: &str, table: &str) -> Refusal {
    Refusal::new(
        400,
        "0x80060890",
        format!("The specified key attributes '{name}' are not a defined key for the {table} entity."),
    )
}

/// The row that has a text in its alternate key; the database ignores case.
pub(super) fn with_key(database: &Database, table: usize, cell: usize, text: &str) -> Option<RowKey> {
    let wanted = text.to_lowercase();
    let is_same = |raw: &str| {
        // Most cells are a plain text of another length, which needs no decoding.
        let plain = raw.len() > 1 && !raw.contains('\\');
        if plain {
            raw[1..raw.len() - 1].to_lowercase() == wanted
        } else {
            serde_json::from_str::<String>(raw).is_ok_and(|text| text.to_lowercase() == wanted)
        }
    };
    database.tables[table].rows.iter().find(|(_, row)| is_same(row.cell(cell))).map(|(key, _)| key.clone())
}

/// The primary key behind the key of a URL; a row with it need not exist, one with an alternate key must.
pub(crate) fn row_key(
    context: &WriteContext<'_>,
    table: usize,
    text: &str,
    options: &Options,
) -> Result<RowKey, Refusal> {
    find_key(context.database, table, text, options)
}

/// The same for reading.
pub(crate) fn find_key(database: &Database, table: usize, text: &str, options: &Options) -> Result<RowKey, Refusal> {
    match address(database, table, text, options)? {
        Address::Primary(key) | Address::Alternate { found: Some(key), .. } => Ok(key),
        Address::Alternate { found: None, .. } => Err(no_key_match(&database.tables[table].def.name)),
    }
}

fn no_key_match(table: &str) -> Refusal {
    Refusal::new(404, "0x80060891", format!("A record with the specified key values does not exist in {table} entity."))
}

/// The row a reference leads to: `/set(key)`, `set(key)`, an absolute URL, or `$1` inside of a change set (dataverse 6.2,
/// 6.11). The row must exist.
pub(crate) fn resolve(context: &WriteContext<'_>, reference: &str) -> Result<(usize, RowKey), Refusal> {
    let reference = if reference.trim_start_matches('/').starts_with('$') {
        context.expand(reference.trim_start_matches('/'))?
    } else {
        reference.to_owned()
    };
    let wrong = || bad_payload(&format!("The reference '{reference}' is not a URL of a row."));
    let path = match reference.strip_prefix(&context.shared.url) {
        Some(path) => path,
        None if reference.contains("://") => return Err(wrong()),
        None => reference.as_str(),
    };
    let path = path.strip_prefix("/api/data/v9.").and_then(|rest| rest.split_once('/')).map_or(path, |(_, rest)| rest);
    let path = decode(&path.trim_start_matches('/').replace('+', "%2B"));
    let (set, rest) = path.split_at(path.find('(').ok_or_else(wrong)?);
    let table = context.database.set(set).ok_or_else(|| Refusal::no_segment(set))?;
    let (key, _) = split_key(rest).filter(|(_, rest)| rest.is_empty()).ok_or_else(wrong)?;
    let key = row_key(context, table, key, &Options::default())?;
    if context.database.tables[table].get(&key).is_none() {
        return Err(Refusal::no_row(&context.database.tables[table].def.name, &key.id.to_string()));
    }
    Ok((table, key))
}

impl WriteContext<'_> {
    /// Replaces `$1` at the front of a URL by the row it stands for (dataverse 6.11).
    pub(super) fn expand(&self, url: &str) -> Result<String, Refusal> {
        let Some(rest) = url.strip_prefix('$') else { return Ok(url.to_owned()) };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (id, rest) = rest.split_at(end);
        match self.references.get(id) {
            Some(row) => Ok(format!("{row}{rest}")),
            None => {
                Err(Refusal::plain(400, format!("Content-ID Reference: '${id}' does not exist in the batch context.")))
            }
        }
    }
}
