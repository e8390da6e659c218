//! Reading rows by their keys: what is there now, in the very form a backup captures, and what is in the recycle bin
//! (`dataverse`, sections 3.1, 3.3, 6.15).

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dynavault_model::{Call, Deletion, Row, RowKey, RowSink, SharedSink, SourceError, Stopped, TableSchema, minify};
use dynavault_odata::RequestError;
use serde_json::Value;

use crate::ask::{Form, is_about_form};
use crate::definition::Definition;
use crate::refusals;
use crate::source::{DataverseSource, SESSION_ASKED, first_page, lock};
use crate::wire::{address, encoded, id, plain_text, with_row, without_context};

/// Pages of one question; each question is for less than a page.
const PAGES_MAX: usize = 1_000;
/// Keys of one question to the recycle bin, where each takes more room.
const BIN_KEYS_MAX: usize = 200;
/// Largest row that is asked for alone.
const ROW_BYTES_MAX: usize = 64 << 20;
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

/// Passes on the rows that were asked for: those whose two halves of the key were asked for together, and no others where a
/// service does not heed the question.
struct Asked {
    inner: SharedSink,
    members: Vec<String>,
    keys: HashSet<Vec<String>>,
}

impl RowSink for Asked {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        let text = |member: &String| row.get(member).and_then(plain_text).unwrap_or_default().to_ascii_lowercase();
        let key: Vec<String> = self.members.iter().map(text).collect();
        if self.keys.contains(&key) { lock(&self.inner).row(row) } else { Ok(()) }
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
    let lower = |text: &str| text.to_ascii_lowercase();
    let key = |key: &RowKey| match second {
        Some(_) => vec![lower(&key.id), lower(key.partition.as_deref().unwrap_or_default())],
        None => vec![lower(&key.id)],
    };
    let members = std::iter::once(member).chain(second).map(str::to_string).collect();
    let asked = Asked { inner: sink, members, keys: keys.iter().map(key).collect() };
    let sink: SharedSink = Arc::new(Mutex::new(asked));
    let keys: Vec<&RowKey> = keys.iter().collect();
    let reader = Reader { source, table, call, headers: source.session(table) };
    // A link has no address of its own that anybody knew.
    let of_ends = second.is_some() && definition.is_intersect == Some(true);
    reader
        .ask(|form| reader.rows(form, (member, of_ends), &keys, &sink))
        .await
        .map_err(|error| refusals::of_table(&table.table, error, false))
}

/// A few members of rows, and their entity tags, by id in lower case; rows that are gone are missing.
pub(crate) async fn members(
    source: &DataverseSource,
    table: &TableSchema,
    select: &[&str],
    keys: &[&RowKey],
    call: &Call,
) -> Result<HashMap<String, Value>, SourceError> {
    let reader = Reader { source, table, call, headers: source.session(table) };
    reader
        .ask(|form| reader.members(form, select, keys))
        .await
        .map_err(|error| refusals::of_table(&table.table, error, false))
}

/// Reads rows of one table.
struct Reader<'a> {
    source: &'a DataverseSource,
    table: &'a TableSchema,
    call: &'a Call,
    headers: Option<String>,
}

impl Reader<'_> {
    /// Asks in the form that the service takes, or finds out which one that is. When it takes none, its first words count.
    async fn ask<T, F>(&self, ask: impl Fn(Form) -> F) -> Result<T, RequestError>
    where
        F: Future<Output = Result<T, RequestError>>,
    {
        let mut refused = None;
        for form in self.source.asked.forms() {
            match ask(*form).await {
                Ok(found) => {
                    self.source.asked.note(*form);
                    return Ok(found);
                }
                Err(error) if is_about_form(&error) => {
                    tracing::debug!(table = %self.table.table, ?form, %error, "rows cannot be asked for in this form");
                    refused.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.expect("there is at least one form"))
    }

    fn headers(&self) -> Vec<(&str, &str)> {
        self.headers.iter().map(|token| (SESSION_ASKED, token.as_str())).collect()
    }

    async fn rows(
        &self,
        form: Form,
        (member, of_ends): (&str, bool),
        keys: &[&RowKey],
        sink: &SharedSink,
    ) -> Result<(), RequestError> {
        let (source, table) = (self.source, self.table);
        let slot = source.slot(&table.table.name);
        // The same columns and annotations as the pages of a backup have, so that rows compare byte for byte.
        let prefer = source.prefer(table, false);
        let (what, headers) = (format!("reading rows of table {}", table.table), self.headers());
        let first = first_page(table);
        if form == Form::OneByOne && !of_ends {
            let columns = first.split_once('?').map(|(_, columns)| format!("?{columns}")).unwrap_or_default();
            for key in keys {
                let Ok(address) = address(table, key) else { continue };
                if let Some(row) = self.one(&format!("{address}{columns}"), &prefer).await? {
                    deliver(&row, sink, &what)?;
                }
            }
            return Ok(());
        }
        for mut address in form.addresses(&first, member, keys) {
            for _ in 0..PAGES_MAX {
                let sink = SharedSink::clone(sink);
                let page = source.client.read_page(&slot, &address, Some(&prefer), &headers, sink, &what, self.call);
                match page.await?.next {
                    Some(next) => address = next,
                    None => break,
                }
            }
        }
        Ok(())
    }

    async fn members(
        &self,
        form: Form,
        select: &[&str],
        keys: &[&RowKey],
    ) -> Result<HashMap<String, Value>, RequestError> {
        let table = self.table;
        let slot = self.source.slot(&table.table.name);
        let primary = table.key.first().map(String::as_str).unwrap_or_default();
        let select = [&[primary], select].concat().join(",");
        let mut rows: Vec<Value> = Vec::new();
        let json = |body: &[u8]| -> Result<Value, RequestError> {
            serde_json::from_slice(body).map_err(|error| RequestError::Protocol {
                what: format!("reading rows of table {}", table.table),
                detail: error.to_string(),
            })
        };
        if form == Form::OneByOne {
            for key in keys {
                let Ok(address) = address(table, key) else { continue };
                if let Some(row) = self.one(&format!("{address}?$select={select}"), "").await? {
                    rows.push(json(&row)?);
                }
            }
        } else {
            let headers = self.headers();
            for address in form.addresses(&format!("{}?$select={select}", table.entity_set), primary, keys) {
                let asking = self.source.client.get(&slot, &address, None, &headers, ANSWER_BYTES_MAX, self.call);
                let mut answer = json(&asking.await?.body)?;
                rows.extend(answer["value"].as_array_mut().map(std::mem::take).unwrap_or_default());
            }
        }
        Ok(rows.into_iter().filter_map(|row| Some((row[primary].as_str()?.to_ascii_lowercase(), row))).collect())
    }

    /// One row as it came; none if it is gone.
    async fn one(&self, address: &str, prefer: &str) -> Result<Option<Bytes>, RequestError> {
        let slot = self.source.slot(&self.table.table.name);
        let prefer = Some(prefer).filter(|prefer| !prefer.is_empty());
        let headers = self.headers();
        match self.source.client.get(&slot, address, prefer, &headers, ROW_BYTES_MAX, self.call).await {
            Ok(reply) => Ok(Some(reply.body)),
            // The set is there, or the other forms would have said so.
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Hands a row that came alone to a sink, in the form it has in a page.
fn deliver(body: &[u8], sink: &SharedSink, what: &str) -> Result<(), RequestError> {
    let strange = || RequestError::Protocol { what: what.to_string(), detail: "a row is not a JSON object".into() };
    let mut compact = Vec::with_capacity(body.len());
    minify(body, &mut compact);
    let row = without_context(&compact).map_err(|_| strange())?;
    with_row(&row, |row| lock(sink).row(row)).map_err(|_| strange())?.map_err(|Stopped| RequestError::SinkStopped)
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
            // Not set up, or not for this table, or not for us: then a row is made anew (section 6.15).
            Err(RequestError::Service { code: Some(code), .. }) if NO_BIN.contains(&code) => return Ok(Vec::new()),
            Err(error) if error.status().is_some_and(|status| matches!(status, 400 | 403..=405 | 501)) => {
                match refusals::of_table(&table.table, error, false) {
                    SourceError::Refused { reason, .. } => {
                        tracing::warn!(table = %table.table, reason, "the recycle bin of the table cannot be read");
                        return Ok(Vec::new());
                    }
                    other => return Err(other),
                }
            }
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

    fn addresses(form: Form, table: &TableSchema, keys: &[RowKey]) -> Vec<String> {
        form.addresses(&first_page(table), "accountid", &keys.iter().collect::<Vec<_>>())
    }

    #[test]
    fn addresses_ask_for_every_key_once_and_stay_short() {
        for (columns, form) in [3, 1000, 1400, 3000].into_iter().flat_map(|n| [(n, Form::In), (n, Form::AnyOf)]) {
            let table = table(columns);
            let mut asked = keys(1000);
            asked.extend(keys(3));
            let addresses = addresses(form, &table, &asked);
            let sent = |address: &String| address.replace('\'', "%27").replace(' ', "%20").len();
            assert!(addresses.iter().all(|address| sent(address) < 32_768), "{columns}");
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
        assert_eq!(addresses(Form::In, &table(1), &asked)[0].matches('\'').count(), 4);
        assert!(!addresses(Form::AnyOf, &table(1), &asked)[0].contains("true"));
        assert!(!bin_fetch("account", "accountid", &asked).contains("true"));
    }
}
