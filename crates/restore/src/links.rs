//! Links of many-to-many relationships: a link is the pair of its rows, whatever id its own row has.
//!
//! (`dataverse` protocol, section 6.3, rule 2.5.) A link that is missing is made under every conflict policy: there is nothing it
//! could overwrite. Small selections are looked for by the ids of their captured link rows; a link that was made again since
//! has another id, is planned once more, and applying it finds that it is there.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_model::{Call, LinkEnd, Row, RowId, RowKey, RowSource};
use serde::{Deserialize, Serialize};

use crate::captured::Captured;
use crate::compare::{NULL, Reference, text};
use crate::draft::push_member;
use crate::error::RestoreError;
use crate::findings::Findings;
use crate::live::gather;
use crate::resolve::Resolver;
use crate::settle::key_of;
use crate::spill::Spill;
use crate::tables::Table;
use crate::waves::Node;

/// A link that is made or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) key: RowKey,
    pub(crate) set: String,
    /// Its rows, where it is not certain that they are there.
    pub(crate) ends: Vec<Node>,
}

pub(crate) type Pair = (RowId, RowId);

/// The links of one table.
#[derive(Debug)]
pub(crate) struct Links {
    /// Links of the plan; those that exist are skipped when operations are made.
    pub(crate) drafts: Spill,
    /// One for each draft.
    pairs: Vec<Pair>,
    /// Links that exist, sorted.
    live: Vec<Pair>,
    /// Links that exist and are not in the plan: row, ids of both ends.
    pub(crate) others: Option<Spill>,
}

impl Links {
    /// Whether the link of a draft exists.
    pub(crate) fn is_live(&self, draft: usize) -> bool {
        self.pairs.get(draft).is_some_and(|pair| self.live.binary_search(pair).is_ok())
    }
}

fn end_id(row: &Row<'_>, end: &LinkEnd) -> Option<RowId> {
    RowId::from_guid(text(row.get(&end.member)?)?.as_bytes())
}

/// The links of the plan.
pub(crate) fn drafts(
    captured: &Captured,
    number: u16,
    table: &Table,
    (first, second): (&LinkEnd, &LinkEnd),
    resolver: &mut Resolver<'_>,
    findings: &mut Findings,
    scratch: &Path,
) -> Result<Links, RestoreError> {
    let mut links = Links { drafts: Spill::new(scratch)?, pairs: Vec::new(), live: Vec::new(), others: None };
    let source = table.source();
    captured.each(usize::from(number), &table.ids, |_, row| {
        let Some(key) = key_of(&source.key, row) else { return Ok(()) };
        let mut ends = Vec::new();
        let mut pair = Vec::new();
        let mut set = String::new();
        for end in [first, second] {
            let Some(id) = end_id(row, end) else {
                findings.row("no-target", &table.name, &key.id, &end.member, "the link has no id at this end");
                return Ok(());
            };
            match resolver.lead(&Reference { id, table: Some(end.table.clone()) }) {
                Ok(led) => {
                    ends.extend(led.node);
                    pair.push(led.id);
                    push_member(&mut set, &end.member, format!("\"{}\"", led.id).as_bytes());
                }
                Err(code) => {
                    let sentence = format!("{} {id} has no counterpart in the environment", end.table);
                    findings.row(code, &table.name, &key.id, &end.member, sentence);
                    return Ok(());
                }
            }
        }
        for member in row.members() {
            let Ok(name) = std::str::from_utf8(row.key(member)) else { continue };
            let plain = name != first.member && name != second.member && !name.contains('@');
            if plain && row.value(member) != NULL {
                push_member(&mut set, name, row.value(member));
            }
        }
        links.drafts.push_json(&Link { key, set: format!("{{{set}}}"), ends })?;
        links.pairs.push((pair[0], pair[1]));
        Ok(())
    })?;
    Ok(links)
}

/// Looks which links exist; with `others`, those that are not in the plan are kept too.
pub(crate) async fn compare(
    source: &dyn RowSource,
    table: &Table,
    ends: (LinkEnd, LinkEnd),
    links: &mut Links,
    others: bool,
    scratch: &Path,
    call: &Call,
) -> Result<(), RestoreError> {
    let mut wanted = links.pairs.clone();
    wanted.sort_unstable();
    let spill = Arc::new(Mutex::new(Spill::new(scratch)?));
    let (kept, (first, second)) = (Arc::clone(&spill), ends);
    let make = move |row: &Row<'_>| {
        let (Some(a), Some(b)) = (end_id(row, &first), end_id(row, &second)) else { return Ok(None) };
        if wanted.binary_search(&(a, b)).is_ok() {
            return Ok(Some((a, b)));
        }
        if others {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(row.bytes())?;
        }
        Ok(None)
    };
    let mut live = gather(source, table.target(), make, call).await?;
    live.sort_unstable();
    live.dedup();
    links.live = live;
    if others {
        let mut spill = spill.lock().unwrap_or_else(PoisonError::into_inner);
        links.others = Some(std::mem::replace(&mut *spill, Spill::new(scratch)?));
    }
    Ok(())
}

/// Takes the links of small selections by the ids of their rows.
pub(crate) fn compared_by_id(links: &mut Links, live: &[RowId]) -> Result<(), RestoreError> {
    let mut found = Vec::new();
    let mut at = 0;
    let pairs = &links.pairs;
    links.drafts.scan_json(|link: Link| {
        let id = RowId::from_guid(link.key.id.as_bytes());
        if id.is_some_and(|id| live.binary_search(&id).is_ok()) {
            found.push(pairs[at]);
        }
        at += 1;
        Ok(())
    })?;
    found.sort_unstable();
    links.live = found;
    Ok(())
}
