//! From a row as it was captured to the body the service takes (`dataverse`, sections 2.4, 3.5, 6.1, 6.2, 6.4).
//!
//! ```text
//!  "name":"A"                                            "name":"A"                       bytes as they are
//!  "_customerid_value":"7d1f…",                      ─▶  "customerid_contact@odata.bind":"/contacts(7d1f…)"
//!  "_customerid_value@…lookuplogicalname":"contact"
//!  "_customerid_value":null                          ─▶  "customerid_account@odata.bind":null, "customerid_contact@…":null
//!  "…@OData.Community.Display.V1.FormattedValue"         nothing
//! ```
//!
//! No value is parsed: a number keeps its digits, a text its escapes. Names of navigation properties come from the metadata of
//! the table that is written, never from a rule; what the captured row says of them is used where the metadata is silent.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dynavault_model::{Member, Row, RowId, RowKey, TableSchema, scan};

use crate::definition::{Definition, Navigations};

const TARGET: &str = "@Microsoft.Dynamics.CRM.lookuplogicalname";
const NAVIGATION: &str = "@Microsoft.Dynamics.CRM.associatednavigationproperty";
/// Members of a party that are written; the rest the service derives (section 6.4).
const PARTY_MEMBERS: &[&str] = &["participationtypemask", "addressused", "effort"];
/// Parties that the service derives from the regarding row and the owner (section 6.4).
const DERIVED_PARTIES: [&[u8]; 2] = [b"8", b"9"];

/// Why a row cannot be put into a request. Never contains a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unwritable {
    #[error("the planned values are not a JSON object")]
    NotAnObject,
    #[error("the key is not an id of the service")]
    Key,
    #[error("column {0} does not say which table it refers to")]
    NoTarget(String),
    #[error("column {column} cannot refer to table {table} in this environment")]
    NoNavigation { column: String, table: String },
    #[error("table {0} cannot be referred to in this environment")]
    NoSet(String),
    #[error("column {0} does not hold an id")]
    NotAnId(String),
    #[error("the row has no value for {0}")]
    Missing(String),
}

/// Entity set names by table (section 2.7: irregular).
#[derive(Debug, Default)]
pub(crate) struct Sets(HashMap<String, String>);

impl Sets {
    pub(crate) fn new(names: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(names.into_iter().collect())
    }

    pub(crate) fn get(&self, table: &str) -> Result<&str, Unwritable> {
        self.0.get(table).map(String::as_str).ok_or_else(|| Unwritable::NoSet(table.to_string()))
    }
}

/// What a body is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A new row: empty lookups are left out.
    Create,
    /// An existing row: empty lookups are cleared.
    Update,
}

/// A JSON object that is being written.
#[derive(Debug)]
pub(crate) struct Object(Vec<u8>);

impl Object {
    pub(crate) fn new() -> Self {
        Self(vec![b'{'])
    }

    /// A member whose value is JSON already; `name` needs no escapes.
    pub(crate) fn raw(&mut self, name: &str, value: &[u8]) {
        self.name(name.as_bytes());
        self.0.extend_from_slice(value);
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.raw(name, serde_json::Value::from(value).to_string().as_bytes());
    }

    /// Bytes as base64 text, encoded in place: blocks of files are large.
    pub(crate) fn base64(&mut self, name: &str, bytes: &[u8]) {
        self.name(name.as_bytes());
        self.0.push(b'"');
        let start = self.0.len();
        let length = bytes.len().div_ceil(3) * 4;
        self.0.resize(start + length, 0);
        let written = STANDARD.encode_slice(bytes, &mut self.0[start..]).expect("the room was made for it");
        self.0.truncate(start + written);
        self.0.push(b'"');
    }

    fn name(&mut self, name: &[u8]) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(b"\":");
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }
}

/// A JSON array of objects.
pub(crate) fn array<'a>(items: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = vec![b'['];
    for item in items {
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(item);
    }
    out.push(b']');
    out
}

/// Calls `with` with the members of an object in captured form.
pub(crate) fn with_row<T>(bytes: &[u8], with: impl FnOnce(&Row<'_>) -> T) -> Result<T, Unwritable> {
    let mut members: Vec<Member> = Vec::new();
    scan(bytes, &mut members).map_err(|_| Unwritable::NotAnObject)?;
    Ok(with(&Row::new(bytes, &members)))
}

/// The members of an object whose names `keep` accepts, with their annotations.
pub(crate) fn only(bytes: &[u8], keep: impl Fn(&str) -> bool) -> Result<Vec<u8>, Unwritable> {
    with_row(bytes, |row| {
        let mut kept = Object::new();
        for member in row.members() {
            let name = String::from_utf8_lossy(row.key(member));
            if keep(name.split('@').next().unwrap_or_default()) {
                kept.raw(&name, row.value(member));
            }
        }
        kept.finish()
    })
}

/// The members of an object but the address of its description, which only a row that comes alone has.
pub(crate) fn without_context(bytes: &[u8]) -> Result<Vec<u8>, Unwritable> {
    with_row(bytes, |row| {
        let mut kept = Object::new();
        for member in row.members().iter().filter(|member| row.key(member) != b"@odata.context") {
            kept.raw(&String::from_utf8_lossy(row.key(member)), row.value(member));
        }
        kept.finish()
    })
}

/// The id of a row as it goes into an address; anything else would let a key escape from its place there.
pub(crate) fn id(text: &str) -> Result<&str, Unwritable> {
    RowId::from_guid(text.as_bytes()).map(|_| text).filter(|text| !text.starts_with('{')).ok_or(Unwritable::Key)
}

/// Text as a part of an address: everything that is not plain is encoded.
pub(crate) fn encoded(text: &str) -> String {
    // Form encoding writes a space as a plus, which an address takes literally.
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// The address of a row, relative to the service's root (sections 1.1 and 8.12).
pub(crate) fn address(table: &TableSchema, key: &RowKey) -> Result<String, Unwritable> {
    let (set, row) = (&table.entity_set, id(&key.id)?);
    Ok(match (&key.partition, table.key.as_slice()) {
        (Some(partition), [primary, member, ..]) => {
            format!("{set}({primary}={row},{member}='{}')", encoded(&partition.replace('\'', "''")))
        }
        _ => format!("{set}({row})"),
    })
}

/// Writes bodies for one table.
pub(crate) struct Wire<'a> {
    table: &'a TableSchema,
    navigations: Navigations,
    sets: &'a Sets,
}

impl<'a> Wire<'a> {
    /// The address of a row of another table, by its id.
    pub(crate) fn address_of(&self, table: &str, id: &str) -> Result<String, Unwritable> {
        Ok(format!("{}({id})", self.sets.get(table)?))
    }

    pub(crate) fn new(table: &'a TableSchema, sets: &'a Sets) -> Self {
        Self { table, navigations: Navigations::of(&Definition::of(table)), sets }
    }

    /// The table that is written.
    pub(crate) fn table(&self) -> &'a TableSchema {
        self.table
    }

    /// Its logical name.
    pub(crate) fn table_name(&self) -> &'a str {
        &self.table.table.name
    }

    /// The address of a row.
    pub(crate) fn address(&self, key: &RowKey) -> Result<String, Unwritable> {
        address(self.table, key)
    }

    /// The property through which `column` is set to a row of `target`.
    pub(crate) fn navigation(&self, column: &str, target: &str) -> Option<&str> {
        self.navigations.get(column, target)
    }

    /// The key of a row as members of a body.
    pub(crate) fn key(&self, key: &RowKey, out: &mut Object) -> Result<(), Unwritable> {
        if let Some(primary) = self.table.key.first() {
            out.text(primary, id(&key.id)?);
        }
        if let (Some(member), Some(partition)) = (self.table.key.get(1), &key.partition) {
            out.text(member, partition);
        }
        Ok(())
    }

    /// The members of `set`, without the key, annotations, and content.
    pub(crate) fn members(&self, set: &[u8], purpose: Purpose, out: &mut Object) -> Result<(), Unwritable> {
        with_row(set, |row| {
            for member in row.members() {
                // Names of columns are plain (section 2.1); an escaped one is none of ours.
                let Ok(name) = std::str::from_utf8(row.key(member)) else { continue };
                let is_content = self.table.content.iter().any(|content| content.column == name);
                if name.contains(['@', '\\']) || is_content || self.table.key.iter().any(|key| key == name) {
                    continue;
                }
                match lookup(name) {
                    Some(column) => self.lookup(row, name, column, row.value(member), purpose, out)?,
                    None => out.raw(name, row.value(member)),
                }
            }
            Ok(())
        })?
    }

    fn lookup(
        &self,
        row: &Row<'_>,
        member: &str,
        column: &str,
        value: &[u8],
        purpose: Purpose,
        out: &mut Object,
    ) -> Result<(), Unwritable> {
        let annotation = |name: &str| row.get(&format!("{member}{name}")).and_then(plain_text);
        if value == b"null" {
            if purpose == Purpose::Update {
                let all = self.navigations.all(column);
                if all.is_empty() {
                    return Err(Unwritable::NoTarget(column.to_string()));
                }
                for navigation in all {
                    out.raw(&format!("{navigation}@odata.bind"), b"null");
                }
            }
            return Ok(());
        }
        let target = annotation(TARGET).or_else(|| self.navigations.only_target(column).map(str::to_string));
        // Some lookups of system tables say `entity`, which names nothing (section 2.4).
        let target = target.filter(|target| target != "entity").ok_or_else(|| Unwritable::NoTarget(column.into()))?;
        let known = self.navigations.get(column, &target).map(str::to_string);
        let navigation = known
            .or_else(|| annotation(NAVIGATION).filter(|name| is_plain_name(name)))
            .ok_or_else(|| Unwritable::NoNavigation { column: column.into(), table: target.clone() })?;
        let reference = plain_text(value).filter(|text| id(text).is_ok());
        let reference = reference.ok_or_else(|| Unwritable::NotAnId(column.into()))?;
        out.text(&format!("{navigation}@odata.bind"), &format!("/{}({reference})", self.sets.get(&target)?));
        Ok(())
    }

    /// A body with the key and the members: an item of a bulk message, a nested row, the target of a message.
    pub(crate) fn item(&self, key: &RowKey, set: &[u8], purpose: Purpose) -> Result<Object, Unwritable> {
        let mut item = Object::new();
        item.text("@odata.type", &format!("Microsoft.Dynamics.CRM.{}", self.table.table.name));
        self.key(key, &mut item)?;
        self.members(set, purpose, &mut item)?;
        Ok(item)
    }

    /// A body without the key.
    pub(crate) fn body(&self, set: &[u8], purpose: Purpose) -> Result<Vec<u8>, Unwritable> {
        let mut body = Object::new();
        self.members(set, purpose, &mut body)?;
        Ok(body.finish())
    }

    /// Party rows as a collection. This wire must be that of the table of parties. A party that says neither who it is nor an
    /// address is left out: the service has no way to take it.
    pub(crate) fn parties<'b>(&self, rows: impl Iterator<Item = &'b [u8]>) -> Result<Vec<u8>, Unwritable> {
        let mut parties = Vec::new();
        for bytes in rows {
            let party = with_row(bytes, |row| {
                if row.get("participationtypemask").is_none_or(|mask| DERIVED_PARTIES.contains(&mask)) {
                    return Ok(None);
                }
                let mut party = Object::new();
                let present = |name: &str| row.get(name).filter(|value| *value != b"null");
                let person = present("_partyid_value");
                if let Some(value) = person {
                    match self.lookup(row, "_partyid_value", "partyid", value, Purpose::Create, &mut party) {
                        // The address alone keeps a participant whose row cannot be referred to (section 6.4).
                        Err(_) if present("addressused").is_some() => party = Object::new(),
                        other => other?,
                    }
                } else if present("addressused").is_none() {
                    return Ok(None);
                }
                for name in PARTY_MEMBERS {
                    if let Some(value) = present(name) {
                        party.raw(name, value);
                    }
                }
                Ok(Some(party.finish()))
            })??;
            parties.extend(party);
        }
        Ok(array(parties.iter().map(Vec::as_slice)))
    }
}

/// The lookup column of a member such as `_parentaccountid_value`.
pub(crate) fn lookup(member: &str) -> Option<&str> {
    member.strip_prefix('_')?.strip_suffix("_value").filter(|column| !column.is_empty())
}

/// The value of a JSON text.
pub(crate) fn plain_text(value: &[u8]) -> Option<String> {
    serde_json::from_slice(value).ok()
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests;
