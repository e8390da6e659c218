//! Reading rows by their keys: what is there now, in the very form a backup captures, and what is in the recycle bin
//! (`dataverse`, sections 3.1, 3.3, 6.15).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use dynavault_model::{
    Call, Deletion, PageRequest, Row, RowKey, RowSink, SharedSink, SourceError, Stopped, TableSchema,
};
use dynavault_odata::RequestError;
use serde_json::Value;

use crate::definition::Definition;
use crate::refusals;
use crate::source::{DataverseSource, first_page, lock};
use crate::wire::{encoded, id, plain_text};

/// Keys asked for at a time.
const KEYS_MAX: usize = 250;
/// Longest address, which leaves room for what the service adds (section 1.1: 32,768).
const ADDRESS_CHARS_MAX: usize = 30_000;
/// Characters of an address that a key takes: a GUID, its quotes, the comma.
const KEY_CHARS: usize = 36 + 2 * "%27".len() + 3;
/// Pages of one question; each question is for less than a page.
const PAGES_MAX: usize = 1_000;
/// Keys of one question to the recycle bin, where each takes more room.
const BIN_KEYS_MAX: usize = 200;
/// Largest answer about a few members of rows.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The recycle bin is not set up in this environment (section 2.8): it is empty.
const NO_BIN: [u32; 2] = [0x8009_7528, 0x8009_752b];

/// Which member the keys are of. Links are asked for by the ids of their two ends, where the keys have both: the id of a link's
/// own row means nothing (section 2.4).
struct Question<'a> {
    member: &'a str,
    /// The member of the other half of the key: the partition, or the second end of a link.
    second: Option<&'a str>,
}

/// Members and keys that are asked for: pairs where a key has two halves.
fn question<'a>(table: &'a TableSchema, definition: &'a Definition, keys: &[RowKey]) -> Question<'a> {
    let pairs = keys.iter().any(|key| key.partition.is_some());
    match definition.links(&table.table.name) {
        Some(links) if pairs => Question { member: &links.first_column, second: Some(&links.second_column) },
        _ => Question {
            member: table.key.first().map(String::as_str).unwrap_or_default(),
            second: table.key.get(1).map(String::as_str).filter(|_| pairs),
        },
    }
}

/// `In` over ids (a documented query function). Ids that are none are left out: no row can have them.
fn in_filter(member: &str, ids: &[&str]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    format!("$filter=Microsoft.Dynamics.CRM.In(PropertyName='{member}',PropertyValues=[{}])", ids.join(","))
}

/// Addresses that together ask for `keys`, each of a length the service takes.
fn addresses(table: &TableSchema, member: &str, keys: &[RowKey]) -> Vec<String> {
    let first = first_page(table);
    let joint = if first.contains('?') { '&' } else { '?' };
    let room = ADDRESS_CHARS_MAX.saturating_sub(first.len() + member.len() + 200) / KEY_CHARS;
    // Two links may share an end, and so may two rows of different partitions share an id.
    let mut seen = HashSet::new();
    let ids: Vec<&str> = keys.iter().filter_map(|key| id(&key.id).ok()).filter(|id| seen.insert(*id)).collect();
    ids.chunks(room.clamp(1, KEYS_MAX)).map(|ids| format!("{first}{joint}{}", in_filter(member, ids))).collect()
}

/// Passes on the rows whose two halves of the key were asked for together.
struct Asked {
    inner: SharedSink,
    members: [String; 2],
    pairs: HashSet<(String, String)>,
}

impl RowSink for Asked {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        let [first, second] = &self.members;
        let text = |member: &str| row.get(member).and_then(plain_text).unwrap_or_default().to_ascii_lowercase();
        if self.pairs.contains(&(text(first), text(second))) { lock(&self.inner).row(row) } else { Ok(()) }
    }

    fn deleted(&mut self, deletion: Deletion) -> Result<(), Stopped> {
        lock(&self.inner).deleted(deletion)
    }

    fn oversized(&mut self, start: &[u8], bytes: u64) -> Result<(), Stopped> {
        lock(&self.inner).oversized(start, bytes)
    }

    fn restarted(&mut self) {
        lock(&self.inner).restarted();
    }

    fn row_bytes_max(&self) -> usize {
        lock(&self.inner).row_bytes_max()
    }
}

/// See [`dynavault_model::RowTarget::read_rows`].
pub(crate) async fn read_rows(
    source: &DataverseSource,
    table: &TableSchema,
    keys: &[RowKey],
    sink: SharedSink,
    call: &Call,
) -> Result<(), SourceError> {
    let definition = Definition::of(table);
    let Question { member, second } = question(table, &definition, keys);
    let sink = match second {
        Some(second) => {
            let half = |text: &Option<String>| text.as_deref().unwrap_or_default().to_ascii_lowercase();
            let pairs = keys.iter().map(|key| (key.id.to_ascii_lowercase(), half(&key.partition))).collect();
            let members = [member.to_string(), second.to_string()];
            Arc::new(Mutex::new(Asked { inner: sink, members, pairs })) as SharedSink
        }
        None => sink,
    };
    let slot = source.slot(&table.table.name);
    // The same columns and annotations as the pages of a backup have, so that rows compare byte for byte.
    let prefer = source.prefer(table, &PageRequest::First { tracked: false });
    let what = format!("reading rows of table {}", table.table);
    for first in addresses(table, member, keys) {
        let mut address = first;
        for _ in 0..PAGES_MAX {
            let end = source
                .client
                .read_page(&slot, &address, Some(&prefer), SharedSink::clone(&sink), &what, call)
                .await
                .map_err(|error| refusals::of_table(&table.table, error, false))?;
            match end.next {
                Some(next) => address = next,
                None => break,
            }
        }
    }
    Ok(())
}

/// A few members of rows, and their entity tags, by id in lower case; rows that are gone are missing.
pub(crate) async fn members(
    source: &DataverseSource,
    table: &TableSchema,
    select: &[&str],
    keys: &[&RowKey],
    call: &Call,
) -> Result<HashMap<String, Value>, SourceError> {
    let slot = source.slot(&table.table.name);
    let primary = table.key.first().map(String::as_str).unwrap_or_default();
    let mut found = HashMap::new();
    for keys in keys.chunks(KEYS_MAX) {
        let ids: Vec<&str> = keys.iter().filter_map(|key| id(&key.id).ok()).collect();
        let select = [&[primary], select].concat().join(",");
        let address = format!("{}?$select={select}&{}", table.entity_set, in_filter(primary, &ids));
        let reply = source.client.get(&slot, &address, None, &[], ANSWER_BYTES_MAX, call).await;
        let reply = reply.map_err(|error| refusals::of_table(&table.table, error, false))?;
        let mut answer: Value = serde_json::from_slice(&reply.body).map_err(|error| SourceError::Protocol {
            what: format!("rows of table {}", table.table),
            detail: error.to_string(),
        })?;
        let rows = answer["value"].as_array_mut().map(std::mem::take).unwrap_or_default();
        found.extend(rows.into_iter().filter_map(|row| Some((row[primary].as_str()?.to_ascii_lowercase(), row))));
    }
    Ok(found)
}

/// See [`dynavault_model::RowTarget::in_bin`]. Only FetchXML reads the bin (section 3.3).
pub(crate) async fn in_bin(
    source: &DataverseSource,
    table: &TableSchema,
    keys: &[RowKey],
    call: &Call,
) -> Result<Vec<RowKey>, SourceError> {
    let slot = source.slot(&table.table.name);
    let primary = table.key.first().map(String::as_str).unwrap_or_default();
    let mut found = HashSet::new();
    for keys in keys.chunks(BIN_KEYS_MAX) {
        let fetch = bin_fetch(&table.table.name, primary, keys);
        let address = format!("{}?fetchXml={}", table.entity_set, encoded(&fetch));
        let reply = match source.client.get(&slot, &address, None, &[], ANSWER_BYTES_MAX, call).await {
            Ok(reply) => reply,
            Err(RequestError::Service { code: Some(code), .. }) if NO_BIN.contains(&code) => return Ok(Vec::new()),
            Err(error) => return Err(refusals::of_table(&table.table, error, false)),
        };
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let rows = answer["value"].as_array().map(Vec::as_slice).unwrap_or_default();
        found.extend(rows.iter().filter_map(|row| Some(row[primary].as_str()?.to_ascii_lowercase())));
    }
    Ok(keys.iter().filter(|key| found.contains(&key.id.to_ascii_lowercase())).cloned().collect())
}

fn bin_fetch(table: &str, primary: &str, keys: &[RowKey]) -> String {
    let values = keys.iter().filter_map(|key| id(&key.id).ok()).map(|id| format!("<value>{id}</value>"));
    format!(
        "<fetch datasource='bin'><entity name='{table}'><attribute name='{primary}'/><filter>\
         <condition attribute='{primary}' operator='in'>{}</condition></filter></entity></fetch>",
        values.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use dynavault_model::{Column, TableRef};

    use super::*;

    fn table(columns: usize) -> TableSchema {
        let column = |number: usize| Column {
            name: format!("new_column{number:04}"),
            member: format!("new_column{number:04}"),
            kind: "StringType".into(),
            secured: false,
        };
        TableSchema {
            table: TableRef::ce("account"),
            entity_set: "accounts".into(),
            key: vec!["accountid".into()],
            columns: (0..columns).map(column).collect(),
            content: Vec::new(),
            tracked: true,
            page_rows_max: 5000,
            not_captured: Vec::new(),
            definition: Value::Null,
        }
    }

    fn keys(count: u32) -> Vec<RowKey> {
        (0..count).map(|n| RowKey::new(format!("{n:08x}-0000-4000-8000-000000000000"))).collect()
    }

    #[test]
    fn addresses_ask_for_every_key_once_and_stay_short() {
        for columns in [3, 1000, 1400, 3000] {
            let table = table(columns);
            let mut asked = keys(1000);
            asked.extend(keys(3));
            let addresses = addresses(&table, "accountid", &asked);
            assert!(addresses.iter().all(|address| address.replace('\'', "%27").len() < 32_768), "{columns}");
            let count: usize = addresses.iter().map(|address| address.matches("-0000-4000-8000-").count()).sum();
            assert_eq!(count, 1000, "{columns}");
            let selects = addresses.iter().filter(|address| address.contains("?$select=")).count();
            assert!(selects == addresses.len() || columns > 1000);
        }
    }

    #[test]
    fn links_are_asked_for_by_both_ends_where_the_keys_have_them() {
        let mut links = table(0);
        links.table = TableRef::ce("accountleads");
        links.key = vec!["accountleadid".into()];
        links.definition = serde_json::json!({"ManyToManyRelationships": [{"IntersectEntityName": "accountleads",
            "Entity1LogicalName": "account", "Entity1IntersectAttribute": "accountid", "Entity1NavigationPropertyName": "nav",
            "Entity2LogicalName": "lead", "Entity2IntersectAttribute": "leadid"}]});
        let definition = Definition::of(&links);
        let own = question(&links, &definition, &keys(1));
        assert_eq!((own.member, own.second), ("accountleadid", None));
        let pair = RowKey { partition: Some("x".into()), ..keys(1).remove(0) };
        let ends = question(&links, &definition, &[pair]);
        assert_eq!((ends.member, ends.second), ("accountid", Some("leadid")));
    }

    #[test]
    fn only_ids_get_into_a_question() {
        let mut asked = keys(1);
        asked.push(RowKey::new("x'] or true"));
        assert_eq!(addresses(&table(1), "accountid", &asked)[0].matches('\'').count(), 4);
        assert!(!bin_fetch("account", "accountid", &asked).contains("true"));
    }
}
