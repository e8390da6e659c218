//! Writes of one table and one kind: which request carries them, and one outcome for each row (`dataverse`, section 6).
//!
//! One call sends one request as long as nothing is refused, whatever the rows are: a plan counts on that. Bulk messages take
//! rows that share one caller and need no entity tags; everything else goes in a batch, whose parts have headers of their own.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dynavault_model::{
    Call, Clock, Guard, Rejection, RejectionClass, RowId, RowWrite, SourceError, TableSchema, WriteKind, WriteOptions,
    WriteOutcome,
};
use dynavault_odata::fault::privilege;
use dynavault_odata::governor::RequestKind;
use dynavault_odata::refusal::classify;
use dynavault_odata::{
    Atomicity, BatchRequest, ErrorBody, Item, Method, OnError, Part, PartReply, Refusal, RefusalClass, UserSlot,
    WriteFault, WriteReply, WriteRequest,
};
use serde_json::Value;

use crate::bulk::{self, Answer, Fate};
use crate::definition::{Definition, ManyToMany};
use crate::known::Bypass;
use crate::look;
use crate::refusals;
use crate::sizes::Sizes;
use crate::source::DataverseSource;
use crate::transitions::{LESS, reduced};
use crate::verdicts::{Refused, Tried, Verdict, is_about_principal, rejection, stopped, verdict};
use crate::wire::{Object, Purpose, Sets, Unwritable, Wire, address, array, id, plain_text, with_row};

/// Largest answer to a batch: each part answers with a few headers, or with an error and its trace.
const BATCH_ANSWER_BYTES_MAX: usize = 32 << 20;
/// Which rows of an elastic table failed (section 6.12).
const ELASTIC_DETAILS: &str = "Plugin.BulkApiErrorDetails";
/// Column that takes the original time of creation, and the privilege for it (section 6.6).
const CREATION: &str = "overriddencreatedon";
const CREATION_PRIVILEGE: &str = "prvOverrideCreatedOnCreatedBy";
/// Said of a row that is not the version it was to be.
const CHANGED: &str = "the row has changed since it was read";
/// Columns that say in which state a row is.
const STATE_COLUMNS: [&str; 2] = ["statecode", "statuscode"];

/// See the module.
pub(crate) struct Writer<'a> {
    pub(crate) source: &'a DataverseSource,
    pub(crate) table: &'a TableSchema,
    pub(crate) definition: Definition,
    pub(crate) wire: Wire<'a>,
    pub(crate) sets: &'a Sets,
    /// Definition of the table that is written along: parties of an activity, close activities.
    pub(crate) related: Option<Arc<TableSchema>>,
    /// Takes `CreateMultiple` and `UpdateMultiple`.
    pub(crate) bulk_create: bool,
    pub(crate) bulk_update: bool,
    pub(crate) headers: Vec<(String, String)>,
    /// The service was found to refuse the time of creation.
    pub(crate) creation_refused: &'a AtomicBool,
    pub(crate) sizes: &'a Sizes,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) slot: UserSlot,
    pub(crate) call: &'a Call,
}

/// Rows in order, and what is known of each.
type Outcomes = Result<Vec<WriteOutcome>, SourceError>;

/// The outcome of a row that cannot be put into a request.
pub(crate) fn unwritable(why: &Unwritable) -> WriteOutcome {
    WriteOutcome::Rejected(Rejection { code: String::new(), message: why.to_string(), class: RejectionClass::Row })
}

/// Headers of every write (section 6.10). Those of a batch do not reach its parts, so every part has them.
pub(crate) fn headers(options: &WriteOptions, bypass: Bypass) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    let mut add = |name: &str, value: &str| headers.push((name.to_string(), value.to_string()));
    match (options.bypass_logic, bypass) {
        (true, Bypass::All) => add("MSCRM.BypassBusinessLogicExecution", "CustomSync,CustomAsync"),
        (true, Bypass::SynchronousOnly) => add("MSCRM.BypassCustomPluginExecution", "true"),
        (false, _) => {}
    }
    if options.suppress_flows {
        add("MSCRM.SuppressCallbackRegistrationExpanderJob", "true");
    }
    headers
}

impl Writer<'_> {
    /// Writes the rows; without their times of creation where the service does not let us keep them, which it may tell only
    /// now (section 6.6).
    pub(crate) async fn write(&self, kind: WriteKind, rows: &[RowWrite]) -> Outcomes {
        if !matches!(kind, WriteKind::Create | WriteKind::Undelete) {
            return self.write_as_given(kind, rows).await;
        }
        if self.creation_refused.load(Ordering::Relaxed) {
            return self.write_as_given(kind, &rows.iter().map(without_creation).collect::<Vec<_>>()).await;
        }
        let mut outcomes = self.write_as_given(kind, rows).await?;
        let refused: Vec<usize> = (0..rows.len()).filter(|index| refuses_creation(&outcomes[*index])).collect();
        if refused.is_empty() {
            return Ok(outcomes);
        }
        if !self.creation_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                privilege = CREATION_PRIVILEGE,
                "the user who restores may not keep the time of creation; rows will be as new"
            );
        }
        let again: Vec<RowWrite> = refused.iter().map(|index| without_creation(&rows[*index])).collect();
        for (index, outcome) in refused.into_iter().zip(self.write_as_given(kind, &again).await?) {
            outcomes[index] = outcome;
        }
        Ok(outcomes)
    }

    async fn write_as_given(&self, kind: WriteKind, rows: &[RowWrite]) -> Outcomes {
        let rows: Vec<&RowWrite> = rows.iter().collect();
        match kind {
            WriteKind::Undelete => self.undelete(&rows).await,
            WriteKind::State | WriteKind::Parties => self.guarded_messages(kind, &rows).await,
            _ => self.plain(kind, &rows).await,
        }
    }

    async fn plain(&self, kind: WriteKind, rows: &[&RowWrite]) -> Outcomes {
        match self.bulk_message(kind, rows) {
            Some(message) => self.bulk(kind, message, rows).await,
            None => self.batch(kind, rows).await,
        }
    }

    /// The bulk message that can carry all of `rows`.
    fn bulk_message(&self, kind: WriteKind, rows: &[&RowWrite]) -> Option<&'static str> {
        let one_caller = rows.windows(2).all(|pair| pair[0].on_behalf == pair[1].on_behalf);
        // A row that comes twice is written once and nobody says so (section 6.12).
        let mut seen = HashSet::new();
        let fits = rows.len() > 1 && one_caller && rows.iter().all(|row| seen.insert(&row.key));
        match kind {
            // Parties are nested, and a bulk message is not known to take them (section 6.12).
            WriteKind::Create => (fits && self.bulk_create).then_some("CreateMultiple"),
            WriteKind::Update => {
                let unguarded = rows.iter().all(|row| !matches!(row.guard, Guard::Unchanged(_)));
                (fits && unguarded && self.bulk_update).then_some("UpdateMultiple")
            }
            _ => None,
        }
    }

    fn what(&self) -> String {
        format!("writing rows of table {}", self.table.table)
    }

    fn headers_of(&self, row: &RowWrite) -> Vec<(String, String)> {
        let mut headers = self.headers.clone();
        headers.extend(row.on_behalf.iter().map(|user| ("MSCRMCallerID".to_string(), user.clone())));
        headers
    }

    fn tried<'b>(&self, kind: WriteKind, row: &'b RowWrite) -> Tried<'b> {
        Tried { kind, link: self.link().is_some(), key: &row.key, on_behalf: row.on_behalf.is_some() }
    }

    fn link(&self) -> Option<&ManyToMany> {
        self.definition.links(&self.table.table.name).filter(|_| self.definition.is_intersect == Some(true))
    }

    // Bulk messages.

    async fn bulk(&self, kind: WriteKind, message: &str, rows: &[&RowWrite]) -> Outcomes {
        let purpose = if kind == WriteKind::Create { Purpose::Create } else { Purpose::Update };
        let mut outcomes = vec![WriteOutcome::NotSent; rows.len()];
        let mut items = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            match self.wire.item(&row.key, &row.set, purpose) {
                Ok(item) => items.push((index, item.finish())),
                Err(why) => outcomes[index] = unwritable(&why),
            }
        }
        // All rows have the same caller, or this would not be a bulk message.
        let headers = rows.first().map(|row| self.headers_of(row)).unwrap_or_default();
        let send = |range: Range<usize>| self.send_bulk(kind, message, (&items[range], rows), &headers);
        let (fates, error) = bulk::divide(items.len(), send).await;
        // What was written before is worth more than the reason why it cannot go on, which the next call meets.
        if let Some(error) = error.filter(|_| !fates.contains(&Fate::Done)) {
            return Err(error);
        }
        let mut one_by_one = Vec::new();
        for ((index, _), fate) in items.iter().zip(fates) {
            outcomes[*index] = match fate {
                Fate::Done => WriteOutcome::Done,
                Fate::Refused(refused) => self.row_outcome(self.tried(kind, rows[*index]), &refused)?,
                Fate::Unknown(message) => WriteOutcome::Unknown { message },
                Fate::NotSent => WriteOutcome::NotSent,
                Fate::OneByOne => {
                    one_by_one.push(*index);
                    WriteOutcome::NotSent
                }
            };
        }
        let rest: Vec<&RowWrite> = one_by_one.iter().map(|index| rows[*index]).collect();
        for (index, outcome) in one_by_one.iter().zip(self.batch(kind, &rest).await?) {
            outcomes[*index] = outcome;
        }
        Ok(outcomes)
    }

    async fn send_bulk(
        &self,
        kind: WriteKind,
        message: &str,
        (items, rows): (&[(usize, Vec<u8>)], &[&RowWrite]),
        headers: &[(String, String)],
    ) -> Result<Answer, SourceError> {
        let elastic = self.definition.is_elastic();
        let mut headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if elastic {
            // Which rows failed comes as an annotation of the error.
            headers.push(("Prefer", "odata.include-annotations=\"*\""));
        }
        let path = format!("{}/Microsoft.Dynamics.CRM.{message}", self.table.entity_set);
        let mut body = Object::new();
        body.raw("Targets", &array(items.iter().map(|(_, item)| item.as_slice())));
        let what = self.what();
        let request = WriteRequest {
            headers: &headers,
            kind: RequestKind::Bulk,
            atomicity: if elastic { Atomicity::Parts } else { Atomicity::Whole },
            ..WriteRequest::new(Method::Post, &path, body.finish().into(), &what)
        };
        let sending = self.source.client.write(&self.slot, &request, self.call);
        match self.timed(kind, items.len(), sending).await {
            Ok(WriteReply::Done(reply)) => {
                self.source.note_session(self.table, &reply.headers);
                Ok(Answer::Done)
            }
            Ok(WriteReply::Refused(refusal)) if refusal.is_partial() => Ok(partly(&refusal, items.len())),
            Ok(WriteReply::Refused(refusal)) => {
                let sent = items.iter().map(|(index, _)| rows[*index]);
                Ok(Answer::Refused(self.refused(&refusal, sent)))
            }
            Err(WriteFault::NotDone(error)) => Err(refusals::of_run(error)),
            Err(WriteFault::Unknown { message, .. }) => Ok(Answer::Lost(message)),
            Err(other) => Ok(Answer::Lost(other.to_string())),
        }
    }

    fn row_outcome(&self, tried: Tried<'_>, refused: &Refused) -> Result<WriteOutcome, SourceError> {
        match verdict(tried, refused) {
            Verdict::Row(outcome) => Ok(outcome),
            Verdict::Stop => Err(stopped(&self.table.table, refused.clone())),
            Verdict::LookAtState | Verdict::Make | Verdict::Untagged => {
                Ok(WriteOutcome::Rejected(rejection(refused, RejectionClass::Row)))
            }
        }
    }

    /// A refusal of these rows. A privilege that is missing may be one of the new owner's, who is named then.
    fn refused<'b>(&self, refusal: &Refusal, mut rows: impl Iterator<Item = &'b RowWrite>) -> Refused {
        let refused = Refused::from(refusal);
        let owns = |row: &RowWrite| self.owner_of(row).is_some_and(|owner| is_about_principal(&refused, &owner));
        if rows.any(owns) { Refused { class: RefusalClass::Owner, ..refused } } else { refused }
    }

    /// The owner that a row is to have.
    fn owner_of(&self, row: &RowWrite) -> Option<String> {
        let column = self.definition.attributes().iter().find(|attribute| attribute.kind() == "OwnerType")?;
        let member = format!("_{}_value", column.logical_name);
        with_row(&row.set, |set| set.get(&member).and_then(plain_text)).ok().flatten()
    }

    /// Learns the size of the next request from the time this one takes. Pauses that the service asked for say nothing about
    /// the size.
    async fn timed<T>(&self, kind: WriteKind, rows: usize, request: impl Future<Output = T>) -> T {
        let disturbed = || {
            let totals = self.call.tally.totals();
            (totals.retries, totals.throttled)
        };
        let (begun, before): (Duration, _) = (self.clock.elapsed(), disturbed());
        let result = request.await;
        if before == disturbed() {
            self.sizes.took(&self.table.table.name, kind, rows, self.clock.elapsed().saturating_sub(begun));
        }
        result
    }

    // Batches.

    async fn batch(&self, kind: WriteKind, rows: &[&RowWrite]) -> Outcomes {
        let (mut outcomes, open) = self.batch_with_verdicts(kind, rows).await?;
        let untagged = open.iter().filter(|(_, verdict)| *verdict == Verdict::Untagged).map(|(index, _)| *index);
        let untagged: Vec<usize> = untagged.collect();
        if !untagged.is_empty() {
            let compared: Vec<&RowWrite> = untagged.iter().map(|index| rows[*index]).collect();
            for (index, outcome) in untagged.into_iter().zip(self.untagged(kind, &compared).await?) {
                outcomes[index] = outcome;
            }
        }
        Ok(outcomes)
    }

    /// Writes rows of a table that refuses to compare entity tags: they are compared here, just before (section 6.16).
    async fn untagged(&self, kind: WriteKind, rows: &[&RowWrite]) -> Outcomes {
        let changed = self.changed(rows).await?;
        let same: Vec<usize> = (0..rows.len()).filter(|index| !changed[*index]).collect();
        let plain: Vec<RowWrite> =
            same.iter().map(|index| RowWrite { guard: Guard::Present, ..rows[*index].clone() }).collect();
        let mut outcomes = vec![WriteOutcome::Conflict { message: CHANGED.to_string() }; rows.len()];
        let (sent, _) = self.batch_with_verdicts(kind, &plain.iter().collect::<Vec<_>>()).await?;
        for (index, outcome) in same.into_iter().zip(sent) {
            outcomes[index] = outcome;
        }
        Ok(outcomes)
    }

    /// Which of the rows are no longer the version that their guards name.
    async fn changed(&self, rows: &[&RowWrite]) -> Result<Vec<bool>, SourceError> {
        let guarded: Vec<_> =
            rows.iter().filter(|row| matches!(row.guard, Guard::Unchanged(_))).map(|row| &row.key).collect();
        let mut changed = vec![false; rows.len()];
        if !guarded.is_empty() {
            let live = look::members(self.source, self.table, &[], &guarded, self.call).await?;
            for (row, changed) in rows.iter().zip(&mut changed) {
                if let Guard::Unchanged(etag) = &row.guard {
                    let tag = live.get(&row.key.id.to_ascii_lowercase()).and_then(|row| row["@odata.etag"].as_str());
                    *changed = tag != Some(etag);
                }
            }
        }
        Ok(changed)
    }

    /// The outcomes, and the rows that need another look or another way, by index.
    async fn batch_with_verdicts(
        &self,
        kind: WriteKind,
        rows: &[&RowWrite],
    ) -> Result<(Vec<WriteOutcome>, Vec<(usize, Verdict)>), SourceError> {
        let mut outcomes = vec![WriteOutcome::NotSent; rows.len()];
        let mut open = Vec::new();
        let (mut items, mut sent) = (Vec::new(), Vec::new());
        for (index, row) in rows.iter().enumerate() {
            match self.item(kind, row) {
                Ok(item) => {
                    items.push(item);
                    sent.push(index);
                }
                Err(why) => outcomes[index] = unwritable(&why),
            }
        }
        if items.is_empty() {
            return Ok((outcomes, open));
        }
        let what = self.what();
        let request =
            BatchRequest { items: &items, on_error: OnError::Continue, what: &what, bytes_max: BATCH_ANSWER_BYTES_MAX };
        let sending = self.source.client.batch(&self.slot, &request, self.call);
        let reply = self.timed(kind, items.len(), sending).await;
        let mut answers = reply.parts.into_iter();
        for (item, index) in items.iter().zip(sent) {
            let answers: Vec<PartReply> = answers.by_ref().take(item.parts().len()).collect();
            // The parts of a change set share their fate; the last says it.
            outcomes[index] = match answers.into_iter().last() {
                Some(PartReply::Done(reply)) => {
                    self.source.note_session(self.table, &reply.headers);
                    WriteOutcome::Done
                }
                Some(PartReply::Unknown { message }) => WriteOutcome::Unknown { message },
                Some(PartReply::NotSent) | None => WriteOutcome::NotSent,
                Some(PartReply::Refused(refusal)) => {
                    let refused = self.refused(&refusal, std::iter::once(rows[index]));
                    match verdict(self.tried(kind, rows[index]), &refused) {
                        Verdict::Row(outcome) => outcome,
                        Verdict::Stop => return Err(stopped(&self.table.table, refused)),
                        other => {
                            open.push((index, other));
                            WriteOutcome::Rejected(rejection(&refused, RejectionClass::Row))
                        }
                    }
                }
            };
        }
        match reply.stopped {
            Some(error) if outcomes.iter().all(|outcome| *outcome == WriteOutcome::NotSent) => {
                Err(refusals::of_run(error))
            }
            _ => Ok((outcomes, open)),
        }
    }

    fn item(&self, kind: WriteKind, row: &RowWrite) -> Result<Item, Unwritable> {
        if let Some(user) = &row.on_behalf {
            id(user)?;
        }
        if let Some(link) = self.link() {
            return self.link_item(link, kind, row);
        }
        let part = |method, path, condition: Option<(&str, &str)>, body: Vec<u8>| {
            let mut headers = self.headers_of(row);
            headers.extend(condition.map(|(name, value)| (name.to_string(), value.to_string())));
            Item::Part(Part { method, path, headers, body: Bytes::from(body) })
        };
        let address = || address(self.table, &row.key);
        Ok(match kind {
            WriteKind::Create if !row.parties.is_empty() => {
                let mut body = Object::new();
                self.wire.key(&row.key, &mut body)?;
                self.wire.members(&row.set, Purpose::Create, &mut body)?;
                body.raw(&self.parties_property(), &self.parties(row)?);
                part(Method::Post, self.table.entity_set.clone(), None, body.finish())
            }
            WriteKind::Create => {
                let body = self.wire.body(&row.set, Purpose::Create)?;
                part(Method::Patch, address()?, Some(("If-None-Match", "*")), body)
            }
            WriteKind::Undelete => {
                let set = crate::wire::only(&row.set, |member| member != CREATION)?;
                let mut body = Object::new();
                body.raw("Target", &self.wire.item(&row.key, &set, Purpose::Update)?.finish());
                part(Method::Post, "Restore".to_string(), None, body.finish())
            }
            WriteKind::Update => {
                let body = self.wire.body(&row.set, Purpose::Update)?;
                part(Method::Patch, address()?, Some(("If-Match", tag(&row.guard))), body)
            }
            WriteKind::Delete => {
                let condition = matches!(row.guard, Guard::Unchanged(_)).then(|| ("If-Match", tag(&row.guard)));
                part(Method::Delete, address()?, condition, Vec::new())
            }
            WriteKind::Parties => {
                let mut body = Object::new();
                body.raw("value", &self.parties(row)?);
                part(Method::Put, format!("{}/{}", address()?, self.parties_property()), None, body.finish())
            }
            WriteKind::State => self.state_item(row)?,
        })
    }

    fn parties_property(&self) -> String {
        format!("{}_activity_parties", self.table.table.name)
    }

    fn parties(&self, row: &RowWrite) -> Result<Vec<u8>, Unwritable> {
        let table = self.related.as_deref().ok_or_else(|| Unwritable::Missing("the definition of parties".into()))?;
        Wire::new(table, self.sets).parties(row.parties.iter().map(|party| &**party))
    }

    /// A link is made and removed through the navigation property of its first end, whose column it is in: for a table linked
    /// with itself the two roles differ (sections 2.4 and 6.3).
    fn link_item(&self, link: &ManyToMany, kind: WriteKind, row: &RowWrite) -> Result<Item, Unwritable> {
        let navigation = link.first_navigation.as_deref();
        let navigation = navigation.ok_or_else(|| Unwritable::Missing("a navigation property".into()))?;
        let (first, second) = with_row(&row.set, |row| {
            let end = |column: &str| {
                let text = row.get(column).and_then(plain_text).ok_or_else(|| Unwritable::Missing(column.into()))?;
                id(&text).map(str::to_string)
            };
            Ok((end(&link.first_column)?, end(&link.second_column)?))
        })??;
        let (own, other) = (self.sets.get(&link.first_table)?, self.sets.get(&link.second_table)?);
        let (method, path, body) = match kind {
            WriteKind::Create => {
                let mut body = Object::new();
                body.text("@odata.id", &format!("{}{other}({second})", self.source.client.base_url()));
                (Method::Post, format!("{own}({first})/{navigation}/$ref"), body.finish())
            }
            WriteKind::Delete => (Method::Delete, format!("{own}({first})/{navigation}({second})/$ref"), Vec::new()),
            _ => return Err(Unwritable::Missing("anything but its two ends".into())),
        };
        Ok(Item::Part(Part { method, path, headers: self.headers_of(row), body: body.into() }))
    }

    // State, parties, recycle bin.

    fn state_item(&self, row: &RowWrite) -> Result<Item, Unwritable> {
        let close_wire = self.related.as_deref().map(|table| Wire::new(table, self.sets));
        // Unlike any other id: the row's own, turned by the time.
        let now = self.clock.now().as_nanosecond().unsigned_abs();
        let own = RowId::from_guid(row.key.id.as_bytes()).unwrap_or(RowId([0; 16]));
        let passing = RowId((u128::from_be_bytes(own.0) ^ now).to_be_bytes());
        let parts = crate::transitions::parts(&self.wire, close_wire.as_ref(), row, passing)?;
        let parts: Vec<Part> = parts
            .into_iter()
            .map(|(method, path, condition, body)| {
                let mut headers = self.headers_of(row);
                headers.extend(condition.map(|value| ("If-Match".to_string(), value)));
                Part { method, path, headers, body: body.into() }
            })
            .collect();
        // Several steps happen together or not at all, in their order.
        Ok(match <[Part; 1]>::try_from(parts) {
            Ok([single]) => Item::Part(single),
            Err(parts) => Item::ChangeSet(parts),
        })
    }

    /// Messages and collections take no entity tag, so rows that must not have changed are looked at first.
    async fn guarded_messages(&self, kind: WriteKind, rows: &[&RowWrite]) -> Outcomes {
        let changed = self.changed(rows).await?;
        let places: Vec<usize> = (0..rows.len()).filter(|index| !changed[*index]).collect();
        let unchanged: Vec<&RowWrite> = places.iter().map(|index| rows[*index]).collect();
        let mut outcomes = vec![WriteOutcome::Conflict { message: CHANGED.to_string() }; rows.len()];
        let (mut sent, open) = self.batch_with_verdicts(kind, &unchanged).await?;
        self.look_at_states(&unchanged, &open, &mut sent).await?;
        self.close_with_less(&unchanged, &mut sent).await?;
        for (index, outcome) in places.into_iter().zip(sent) {
            outcomes[index] = outcome;
        }
        Ok(outcomes)
    }

    /// Accepts refusals of rows that are in their state already (section 6.5), and goes on from where a row is when that is
    /// not where it was.
    async fn look_at_states(
        &self,
        rows: &[&RowWrite],
        open: &[(usize, Verdict)],
        outcomes: &mut [WriteOutcome],
    ) -> Result<(), SourceError> {
        if open.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = open.iter().map(|(index, _)| &rows[*index].key).collect();
        let live = look::members(self.source, self.table, &STATE_COLUMNS, &keys, self.call).await?;
        let mut moved: Vec<(usize, RowWrite)> = Vec::new();
        for (index, _) in open {
            let row = rows[*index];
            let Some(now) = live.get(&row.key.id.to_ascii_lowercase()) else { continue };
            let same = with_row(&row.set, |set| {
                STATE_COLUMNS.iter().all(|column| {
                    let wanted =
                        set.get(column).and_then(|value| serde_json::from_slice::<serde_json::Value>(value).ok());
                    wanted.is_none_or(|wanted| wanted == now[*column])
                })
            });
            if same == Ok(true) {
                outcomes[*index] = WriteOutcome::Unchanged;
            } else if now["statecode"].as_i64().is_some_and(|state| row.from_state != Some(state)) {
                moved.push((*index, RowWrite { from_state: now["statecode"].as_i64(), ..row.clone() }));
            }
        }
        if !moved.is_empty() {
            let again: Vec<&RowWrite> = moved.iter().map(|(_, row)| row).collect();
            let (sent, _) = self.batch_with_verdicts(WriteKind::State, &again).await?;
            for ((index, _), outcome) in moved.iter().zip(sent) {
                outcomes[*index] = outcome;
            }
        }
        Ok(())
    }

    /// Closes rows with less and less of their captured activities where the service refuses all of it: a row that cannot be named
    /// any more, or an owner that cannot own, must not keep a row from being closed.
    async fn close_with_less(&self, rows: &[&RowWrite], outcomes: &mut [WriteOutcome]) -> Result<(), SourceError> {
        let Some(close) = self.related.as_deref() else { return Ok(()) };
        for less in LESS {
            let mut again: Vec<(usize, RowWrite)> = Vec::new();
            for (index, row) in rows.iter().enumerate() {
                let refused = matches!(outcomes.get(index), Some(WriteOutcome::Rejected(_)));
                let Some(captured) = row.close.as_deref().filter(|_| refused) else { continue };
                if let Ok(Some(reduced)) = reduced(close, captured, less) {
                    again.push((index, RowWrite { close: Some(reduced.into()), ..(*row).clone() }));
                }
            }
            if again.is_empty() {
                continue;
            }
            let writes: Vec<&RowWrite> = again.iter().map(|(_, row)| row).collect();
            let (sent, _) = self.batch_with_verdicts(WriteKind::State, &writes).await?;
            for ((index, _), outcome) in again.iter().zip(sent) {
                // The first refusal is about the whole of it, and is what is reported in the end.
                if !matches!(outcome, WriteOutcome::Rejected(_) | WriteOutcome::NotSent) {
                    outcomes[*index] = outcome;
                }
            }
        }
        Ok(())
    }

    async fn undelete(&self, rows: &[&RowWrite]) -> Outcomes {
        let (mut outcomes, open) = self.batch_with_verdicts(WriteKind::Undelete, rows).await?;
        let make: Vec<usize> = open.iter().map(|(index, _)| *index).collect();
        if make.is_empty() {
            return Ok(outcomes);
        }
        tracing::debug!(table = %self.table.table, rows = make.len(), "not in the recycle bin; making the rows");
        let subset: Vec<&RowWrite> = make.iter().map(|index| rows[*index]).collect();
        for (index, outcome) in make.iter().zip(self.plain(WriteKind::Create, &subset).await?) {
            outcomes[*index] = outcome;
        }
        Ok(outcomes)
    }
}

/// Whether a row was refused because its time of creation may not be kept.
fn refuses_creation(outcome: &WriteOutcome) -> bool {
    matches!(outcome, WriteOutcome::Rejected(refusal) if privilege(&refusal.message) == Some(CREATION_PRIVILEGE))
}

/// A row that will be as new.
fn without_creation(row: &RowWrite) -> RowWrite {
    let set = crate::wire::only(&row.set, |member| member != CREATION);
    RowWrite { set: set.map_or_else(|_| Arc::clone(&row.set), Into::into), ..row.clone() }
}

/// Which rows of an elastic table were refused, as the service lists them (section 6.12).
fn partly(refusal: &Refusal, rows: usize) -> Answer {
    // Numbers may be printed as texts.
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
    let listed = refusal.detail(ELASTIC_DETAILS).and_then(|text| serde_json::from_str::<Vec<Value>>(&text).ok());
    let failed = listed.and_then(|listed| {
        let one = |one: &Value| {
            let place = usize::try_from(number(&one["RequestIndex"])?).ok().filter(|place| *place < rows)?;
            Some((place, u16::try_from(number(&one["StatusCode"]).unwrap_or(0)).unwrap_or(0)))
        };
        listed.iter().map(one).collect::<Option<Vec<_>>>()
    });
    let Some(failed) = failed else {
        return Answer::Lost("the service does not say which rows it wrote".into());
    };
    // Rows that were written may be in the list as well.
    let failed = failed.into_iter().filter(|(_, status)| !(200..300).contains(status));
    let refused = failed.map(|(place, status)| {
        let message = refusal.message.clone();
        let class = classify(status, &ErrorBody { code: None, message: message.clone() });
        (place, Refused { status, code: None, printed_code: status.to_string(), message, class })
    });
    Answer::Partly(refused.collect())
}

/// The entity tag of a condition.
fn tag(guard: &Guard) -> &str {
    match guard {
        Guard::Unchanged(etag) => etag,
        Guard::Present | Guard::Absent => "*",
    }
}

#[cfg(test)]
mod tests;
