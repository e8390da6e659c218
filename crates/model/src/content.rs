//! File, image, note and attachment bytes: which columns have them and how a piece of content is named.

use serde::{Deserialize, Serialize};

use crate::RowId;

/// How the bytes of a content column are read (`dataverse` protocol, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContentKind {
    /// A file column, read by ranges.
    File,
    /// An image column; the full image where it is stored, else the thumbnail.
    Image,
    /// A base64 text column of a note or a mail attachment.
    Base64Body,
}

/// A column whose bytes are stored beside the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentColumn {
    /// Logical name of the column.
    pub column: String,
    /// How its bytes are read.
    pub kind: ContentKind,
    /// Row member whose value changes whenever the bytes do (file id, image id, row version).
    pub version_member: String,
    /// Row member that says whether there are bytes at all: absent, `null` or `0` means none.
    pub presence_member: String,
    /// Row member with the file name, if the row has one.
    pub name_member: Option<String>,
}

/// One piece of content to be read: a column of one row at one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentItem {
    /// The row.
    pub row: RowId,
    /// Key of the row as the service addresses it, e.g. a GUID.
    pub key: String,
    /// Logical name of the column.
    pub column: String,
    /// Raw JSON of the version member when the row was read.
    pub version: String,
    /// Raw JSON of the file name, if the row has one.
    pub name: Option<String>,
    /// Bytes of the content as the row tells, for content whose own answer does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}
