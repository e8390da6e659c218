//! Files, images, notes and attachments of the rows of a plan: which have to be uploaded, and which removed.
//!
//! Which pieces are wanted follows from the rows; where their bytes are in the vault is said by the content references of the
//! table, which are read once. A wanted piece without a reference was not captured, and is reported.
//!
//! A file or an image has an id that changes with each upload. A note's or an attachment's body has none: its row's version
//! stands for it, and changes with any column. Where only these differ the bytes may be the same: see `doubts`.

use std::collections::{BTreeSet, HashMap};

use dynavault_model::{ContentColumn, Row, RowId, RowKey};
use dynavault_vault::ContentReference;
use serde::{Deserialize, Serialize};

use crate::captured::Captured;
use crate::compare::{NULL, Winner, value};
use crate::doubts::{Doubt, LivePiece};
use crate::error::RestoreError;
use crate::findings::Findings;
use crate::plan::ContentOp;
use crate::settle::same_value;
use crate::spill::Spill;
use crate::tables::{Table, Tables};
use crate::waves::Node;
use crate::work::Conflicts;

/// A piece of content that is uploaded or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) row: u32,
    pub(crate) key: RowKey,
    pub(crate) upload: bool,
    pub(crate) content: ContentOp,
}

/// What is to be done about a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    Upload,
    Remove,
    Conflict,
}

fn is_there(row: &Row<'_>, column: &ContentColumn) -> bool {
    !matches!(value(row, &column.presence_member), NULL | b"0")
}

/// What is to be done about a piece of a row that is not there.
pub(crate) fn of_created(row: &Row<'_>, column: &ContentColumn) -> Wish {
    if is_there(row, column) { Wish::Upload } else { Wish::Nothing }
}

/// What is to be done about a piece of a row that is there.
pub(crate) fn of_existing(captured: &Row<'_>, live: &Row<'_>, column: &ContentColumn, winner: Winner) -> Wish {
    let same = |member: &str| same_value(captured.get(member), live.get(member));
    let (before, now) = (is_there(captured, column), is_there(live, column));
    if !now {
        return match winner {
            _ if !before => Wish::Nothing,
            Winner::Live => Wish::Conflict,
            Winner::Snapshot | Winner::Fill => Wish::Upload,
        };
    }
    if before && same(&column.version_member) {
        return Wish::Nothing;
    }
    if winner == Winner::Snapshot {
        return if before { Wish::Upload } else { Wish::Remove };
    }
    // The row's version says that something changed, its size says that it was not the bytes, as far as one can see.
    let unseen = before && column.version_member != column.presence_member && same(&column.presence_member);
    if unseen { Wish::Nothing } else { Wish::Conflict }
}

/// Whether a piece of a row that is there may have the same bytes although its version differs: both sides have one, and no
/// size tells them apart.
pub(crate) fn may_be_same(captured: &Row<'_>, live: &Row<'_>, column: &ContentColumn) -> bool {
    let sized = column.version_member != column.presence_member;
    let same_size = || same_value(captured.get(&column.presence_member), live.get(&column.presence_member));
    is_there(captured, column) && is_there(live, column) && (!sized || same_size())
}

/// Pieces of all tables.
#[derive(Debug)]
pub(crate) struct Pieces {
    /// With the place of the live piece that may be the same.
    wanted: HashMap<(Node, u16), Option<u64>>,
    live: Option<Spill>,
    doubts: Option<Spill>,
    /// Rows about which nothing else is to be done.
    alone: BTreeSet<Node>,
    /// By table number: pieces to upload or remove.
    drafts: Vec<Option<Spill>>,
    scratch: std::path::PathBuf,
}

impl Pieces {
    pub(crate) fn new(tables: u16, scratch: &std::path::Path) -> Self {
        let drafts = (0..tables).map(|_| None).collect();
        let (live, doubts, alone) = (None, None, BTreeSet::new());
        Self { wanted: HashMap::new(), live, doubts, alone, drafts, scratch: scratch.to_path_buf() }
    }

    /// Notes that a piece has to be uploaded, unless `live` is the same; `column` is its place in the schema of the environment.
    pub(crate) fn want(&mut self, node: Node, column: u16, live: Option<&LivePiece>) -> Result<(), RestoreError> {
        let offset = match live {
            Some(live) => Some(opened(&mut self.live, &self.scratch)?.push_json(live)?),
            None => None,
        };
        self.wanted.insert((node, column), offset);
        Ok(())
    }

    /// Notes that nothing is to be done about a row but for pieces that may be the same.
    pub(crate) fn is_alone(&mut self, node: Node) {
        self.alone.insert(node);
    }

    /// Takes back [`Self::is_alone`].
    pub(crate) fn not_alone(&mut self, node: Node) {
        self.alone.remove(&node);
    }

    /// Rows whose pieces were the same.
    pub(crate) fn take_alone(&mut self) -> BTreeSet<Node> {
        std::mem::take(&mut self.alone)
    }

    /// Pieces that have to be compared.
    pub(crate) fn take_doubts(&mut self) -> Option<Spill> {
        self.doubts.take()
    }

    /// Notes that a piece has to be removed.
    pub(crate) fn remove(&mut self, node: Node, key: &RowKey, column: &str) -> Result<(), RestoreError> {
        let content =
            ContentOp { column: column.into(), sha256: None, encrypted: false, size: 0, name: None, mime: None };
        self.push(node.table, &Piece { row: node.row, key: key.clone(), upload: false, content })
    }

    pub(crate) fn push(&mut self, table: u16, piece: &Piece) -> Result<(), RestoreError> {
        opened(&mut self.drafts[usize::from(table)], &self.scratch)?.push_json(piece).map(|_| ())
    }

    fn live(&mut self, offset: u64) -> Result<LivePiece, RestoreError> {
        let mut record = Vec::new();
        opened(&mut self.live, &self.scratch)?.read(offset, &mut record)?;
        serde_json::from_slice(&record)
            .map_err(|error| RestoreError::Worker(format!("a piece of content changed in the scratch folder: {error}")))
    }

    /// Rows of a table with pieces to upload or remove.
    pub(crate) fn rows(&mut self, table: u16) -> Result<Vec<u32>, RestoreError> {
        let mut rows = Vec::new();
        if let Some(spill) = &mut self.drafts[usize::from(table)] {
            spill.scan_json(|piece: Piece| {
                rows.push(piece.row);
                Ok(())
            })?;
        }
        Ok(rows)
    }

    /// Pieces of a table.
    pub(crate) fn take(&mut self, table: u16) -> Option<Spill> {
        self.drafts[usize::from(table)].take()
    }

    /// Finds the bytes of the wanted pieces.
    pub(crate) fn attach(
        &mut self,
        captured: &Captured,
        tables: &Tables,
        findings: &mut Findings,
        conflicts: &mut Conflicts,
    ) -> Result<(), RestoreError> {
        let mut numbers: Vec<u16> = self.wanted.keys().map(|(node, _)| node.table).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let table = tables.get(number);
            captured.content(usize::from(number), |row| {
                let reference: ContentReference = serde_json::from_slice(row.bytes())
                    .map_err(|error| RestoreError::Worker(format!("a content reference is not understood: {error}")))?;
                let Some((node, column)) = place(table, number, &reference) else { return Ok(()) };
                let Some(offset) = self.wanted.remove(&(node, column)) else { return Ok(()) };
                if let (Some(note), None) = (&reference.note, offset) {
                    findings.row("content-reduced", &table.name, &reference.row, &reference.column, note.clone());
                }
                let content = ContentOp {
                    column: reference.column,
                    sha256: Some(reference.sha256),
                    encrypted: reference.encrypted,
                    size: reference.bytes,
                    name: reference.name,
                    mime: reference.mime,
                };
                let key = RowKey::new(reference.row);
                let piece = Piece { row: node.row, key, upload: true, content };
                let Some(offset) = offset else { return self.push(number, &piece) };
                let doubt = Doubt { table: number, column, piece, live: self.live(offset)?, note: reference.note };
                opened(&mut self.doubts, &self.scratch)?.push_json(&doubt).map(|_| ())
            })?;
        }
        let mut left: Vec<_> = self.wanted.drain().collect();
        left.sort_unstable();
        for ((node, column), offset) in left {
            self.not_alone(node);
            let table = tables.get(node.table);
            let id = table.ids.get(node.row as usize).map(ToString::to_string).unwrap_or_default();
            let column = table.target().content.get(usize::from(column)).map_or("", |column| column.column.as_str());
            let contested = offset.map(|offset| self.live(offset)).transpose()?.and_then(|live| live.contested);
            if let Some(contested) = contested {
                conflicts.add(&table.name, &id, column, contested.captured.as_bytes(), contested.live.as_bytes())?;
                continue;
            }
            findings.row("content-not-captured", &table.name, &id, column, "the snapshot does not have the bytes");
        }
        Ok(())
    }
}

fn opened<'a>(spill: &'a mut Option<Spill>, scratch: &std::path::Path) -> Result<&'a mut Spill, RestoreError> {
    match spill {
        Some(spill) => Ok(spill),
        None => Ok(spill.insert(Spill::new(scratch)?)),
    }
}

/// The row and the column a reference belongs to.
fn place(table: &Table, number: u16, reference: &ContentReference) -> Option<(Node, u16)> {
    let id = RowId::of_key(&[format!("\"{}\"", reference.row).as_bytes()]);
    let row = table.ids.binary_search(&id).ok()? as u32;
    let column = table.target().content.iter().position(|column| column.column == reference.column)?;
    Some((Node { table: number, row }, column as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynavault_model::{ContentKind, scan};

    fn column(kind: ContentKind, version: &str, presence: &str) -> ContentColumn {
        ContentColumn {
            column: "doc".into(),
            kind,
            version_member: version.into(),
            presence_member: presence.into(),
            name_member: None,
        }
    }

    fn existing(captured: &str, live: &str, column: &ContentColumn, winner: Winner) -> Wish {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        scan(captured.as_bytes(), &mut a).unwrap();
        scan(live.as_bytes(), &mut b).unwrap();
        of_existing(&Row::new(captured.as_bytes(), &a), &Row::new(live.as_bytes(), &b), column, winner)
    }

    #[test]
    fn files_are_filled_and_replaced_as_the_policy_says() {
        let file = column(ContentKind::File, "doc", "doc");
        let (one, two, none) = (r#"{"doc":"1"}"#, r#"{"doc":"2"}"#, r#"{"doc":null}"#);
        assert_eq!(existing(one, one, &file, Winner::Snapshot), Wish::Nothing);
        assert_eq!(existing(one, none, &file, Winner::Fill), Wish::Upload);
        assert_eq!(existing(one, none, &file, Winner::Live), Wish::Conflict);
        assert_eq!(existing(one, two, &file, Winner::Fill), Wish::Conflict);
        assert_eq!(existing(one, two, &file, Winner::Snapshot), Wish::Upload);
        assert_eq!(existing(none, two, &file, Winner::Snapshot), Wish::Remove);
        assert_eq!(existing(none, two, &file, Winner::Fill), Wish::Conflict);
        assert_eq!(existing("{}", none, &file, Winner::Snapshot), Wish::Nothing);
    }

    #[test]
    fn a_body_of_the_same_size_is_no_conflict() {
        let body = column(ContentKind::Base64Body, "versionnumber", "filesize");
        let row = |version: u32, size: u32| format!(r#"{{"versionnumber":{version},"filesize":{size}}}"#);
        assert_eq!(existing(&row(1, 10), &row(2, 10), &body, Winner::Fill), Wish::Nothing);
        assert_eq!(existing(&row(1, 10), &row(2, 11), &body, Winner::Fill), Wish::Conflict);
        assert_eq!(existing(&row(1, 10), &row(2, 10), &body, Winner::Snapshot), Wish::Upload);
        assert_eq!(existing(&row(1, 10), &row(2, 0), &body, Winner::Fill), Wish::Upload);
    }
}
