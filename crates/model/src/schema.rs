//! Tables and columns as the backup needs them, with the service's own metadata kept beside.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ContentColumn;

/// Which family of services an environment belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Customer Engagement: Dataverse.
    Ce,
    /// Unified Operations: Finance & Operations.
    Uo,
}

/// A table of a platform. A bare name is never a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableRef {
    /// The platform.
    pub platform: Platform,
    /// Logical name (CE) or entity set name (UO).
    pub name: String,
}

impl TableRef {
    /// A Dataverse table by logical name.
    pub fn ce(name: impl Into<String>) -> Self {
        Self { platform: Platform::Ce, name: name.into() }
    }

    /// Whether the name can be a folder of the vault: letters, digits and `_`, at most 128. Logical names always are
    /// of that form (`dataverse` protocol, section 2.1); anything else is refused rather than escaped.
    pub fn has_plain_name(&self) -> bool {
        (1..=128).contains(&self.name.len()) && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Logical name.
    pub name: String,
    /// Member name in a row, e.g. `_primarycontactid_value` for a lookup.
    pub member: String,
    /// The service's type name, e.g. `MoneyType`.
    pub kind: String,
    /// Column security is on: a `null` may mean "not allowed to read" (`dataverse` protocol, section 3.6).
    #[serde(default)]
    pub secured: bool,
}

/// What is needed to read a table and to understand its rows later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The table.
    pub table: TableRef,
    /// URL segment of the table.
    pub entity_set: String,
    /// Members that make up the key, in order. One GUID for most tables.
    pub key: Vec<String>,
    /// Columns that are read, in the order they are asked for.
    pub columns: Vec<Column>,
    /// Columns whose bytes are stored beside the rows.
    pub content: Vec<ContentColumn>,
    /// Whether the service tracks changes of this table and its deletions can be trusted.
    pub tracked: bool,
    /// Largest page the service gives.
    pub page_rows_max: u32,
    /// Names of columns that exist but are not captured, with the reason.
    #[serde(default)]
    pub not_captured: Vec<(String, String)>,
    /// The service's own metadata of the table, as sent.
    pub definition: serde_json::Value,
}

/// Why a table cannot be read, or rows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One sentence.
    pub reason: String,
    /// What the operator can do, if anything.
    pub remedy: Option<String>,
}

/// One table as discovery found it.
#[derive(Debug, Clone)]
pub struct TableListing {
    /// The table.
    pub table: TableRef,
    /// How to read it, or why it cannot be read.
    pub schema: Result<TableSchema, Refusal>,
}
