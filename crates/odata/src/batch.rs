//! Many requests in one `$batch`, with one answer for each (`dataverse` protocol, section 6.11).
//!
//! ```text
//!  items ─▶ as many as fit one request ─▶ sent as in `write` ─▶ answers in order ─┬─▶ one PartReply per part
//!               ▲                                                                 │
//!               └───────── parts that were surely not carried out and may pass ◀──┘
//! ```
//!
//! What an answer leaves open is told part by part: carried out, refused, surely not carried out, unknown. A part that
//! was throttled, or refused for a reason that passes by itself, is sent again within the budget of `retry`; with
//! [`OnError::Stop`] together with all that came after it, so that the order is kept, with [`OnError::Continue`] alone, so
//! such parts must not depend on each other. A batch that only reads is sent again as freely as any read.
//!
//! Not promised: that a change set is one transaction on elastic tables. The service accepts it there and does not keep it.

mod codec;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use dynavault_model::Call;
use jiff::Timestamp;

use self::codec::{Decoded, DecodedItem, DecodedPart};
use crate::client::{Client, Reply, UserSlot};
use crate::exchange::Outgoing;
use crate::fault::RequestError;
use crate::governor::{Ask, Outcome, RequestKind, Signals, Throttle};
use crate::refusal::{Refusal, RefusalClass, proves_nothing_done};
use crate::retry::Failure;
use crate::write::{Answer, Delivered, Judgement, Method, Nature, Sending, Series, WriteFault, judge};

/// Most parts of one batch (`dataverse` protocol, section 5.5).
pub const BATCH_PARTS_MAX: usize = 1000;
/// Most bytes of one batch, unless a single item is larger; our choice, as no number is documented (section 5.5).
pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Repeats of a part that reads and met a server error without a code (section 5.7).
const READ_REPEATS_MAX: u32 = 2;

/// One request in a batch.
#[derive(Clone)]
pub struct Part {
    /// Method.
    pub method: Method,
    /// Path relative to the Web API, an absolute link of the same environment, or a reference such as `$1` to an earlier
    /// part of the same change set, counted from 1.
    pub path: String,
    /// Headers; those of the batch do not reach its parts (section 6.10).
    pub headers: Vec<(String, String)>,
    /// The body without line breaks, e.g. compact JSON; empty for none.
    pub body: Bytes,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("method", &self.method).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

impl Part {
    /// Bytes in a batch, at most.
    fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        // What has to be encoded in a path takes three bytes each.
        codec::FRAME_BYTES + 3 * self.path.len() + headers + self.body.len()
    }
}

/// What a batch is made of.
#[derive(Debug, Clone)]
pub enum Item {
    /// One request, its own transaction.
    Part(Part),
    /// Requests that are carried out together or not at all; none of them reads.
    ChangeSet(Vec<Part>),
}

impl Item {
    /// The requests in it.
    pub fn parts(&self) -> &[Part] {
        match self {
            Self::Part(part) => std::slice::from_ref(part),
            Self::ChangeSet(parts) => parts,
        }
    }

    fn bytes(&self) -> usize {
        codec::FRAME_BYTES + self.parts().iter().map(Part::bytes).sum::<usize>()
    }
}

/// What the service does when an item fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Goes on with the next.
    Continue,
    /// Leaves the rest undone.
    Stop,
}

/// A batch; sent in several requests where it is too much for one.
#[derive(Debug, Clone)]
pub struct BatchRequest<'a> {
    /// What to send, in order.
    pub items: &'a [Item],
    /// What a failing item means for the next.
    pub on_error: OnError,
    /// What is being done, for errors; no row values.
    pub what: &'a str,
    /// Largest answer to one request in bytes; a larger one counts as lost.
    pub bytes_max: usize,
}

/// What became of one part.
#[derive(Debug, Clone)]
pub enum PartReply {
    /// Carried out.
    Done(Reply),
    /// Refused: surely not carried out. Every part of a change set is refused when one is, with the same words. A part
    /// that stayed throttled has [`RefusalClass::Throttled`].
    Refused(Refusal),
    /// Surely not carried out, because something else came first.
    NotSent,
    /// It may or may not have been carried out.
    Unknown {
        /// What was seen instead of an answer.
        message: String,
    },
}

/// How one request with a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Every item has its replies.
    Answered,
    /// Nothing was done, because it was too much at once: the same in smaller requests may be taken (section 5.7).
    TooMuch,
}

/// What became of a batch.
#[derive(Debug)]
pub struct BatchReply {
    /// One reply for each part, in order, change sets laid out flat.
    pub parts: Vec<PartReply>,
    /// Why parts are [`PartReply::NotSent`], where it was not the service that stopped at a failing part.
    pub stopped: Option<RequestError>,
}

impl Client {
    /// Sends requests in batches. Never fails as a whole: what is known of each part is in the reply. A client made for
    /// reading refuses batches with parts that are not GET. On a cancelled run, see [`Client::write`].
    pub async fn batch(&self, slot: &UserSlot, request: &BatchRequest<'_>, call: &Call) -> BatchReply {
        let count = request.items.iter().map(|item| item.parts().len()).sum();
        let mut parts = vec![PartReply::NotSent; count];
        let stopped = self.batches(slot, request, &mut parts, call).await.err();
        BatchReply { parts, stopped }
    }

    async fn batches(
        &self,
        slot: &UserSlot,
        request: &BatchRequest<'_>,
        replies: &mut [PartReply],
        call: &Call,
    ) -> Result<(), RequestError> {
        let reads = request.items.iter().flat_map(Item::parts).all(|part| part.method == Method::Get);
        if !reads {
            self.may_write(request.what)?;
        }
        let protocol = |detail| RequestError::Protocol { what: request.what.to_owned(), detail };
        // All of it is looked at before any of it is sent.
        for item in request.items {
            codec::check(item).map_err(protocol)?;
            if item.parts().len() > BATCH_PARTS_MAX {
                return Err(protocol(format!("a change set has more than {BATCH_PARTS_MAX} parts")));
            }
            for part in item.parts().iter().filter(|part| !part.path.starts_with('$')) {
                self.target(&part.path)?;
            }
        }
        let (mut items, mut first) = (request.items, 0);
        let mut items_max = usize::MAX;
        while !items.is_empty() {
            let chunk = fitting(items).min(items_max);
            let count: usize = items[..chunk].iter().map(|item| item.parts().len()).sum();
            let now = &mut replies[first..first + count];
            let nature = if reads { Nature::Reads } else { Nature::Parts };
            if self.one_batch(slot, (request, &items[..chunk], nature), now, call).await? == Taken::TooMuch {
                items_max = chunk / 2;
                continue;
            }
            if request.on_error == OnError::Stop && !now.iter().all(is_done) {
                return Ok(());
            }
            (items, first) = (&items[chunk..], first + count);
        }
        Ok(())
    }

    /// Sends items that fit one request, and again those that may pass.
    async fn one_batch(
        &self,
        slot: &UserSlot,
        (request, items, nature): (&BatchRequest<'_>, &[Item], Nature),
        replies: &mut [PartReply],
        call: &Call,
    ) -> Result<Taken, RequestError> {
        let content_type = codec::content_type();
        let mut series = Series::new(self, slot, request.what, call);
        // Items not yet settled, each with the place of its first reply.
        let mut pending: Vec<(&Item, usize)> = Vec::with_capacity(items.len());
        let mut first = 0;
        for item in items {
            pending.push((item, first));
            first += item.parts().len();
        }
        while !pending.is_empty() {
            let sent: Vec<&Item> = pending.iter().map(|(item, _)| *item).collect();
            let whole = sent.len() == items.len();
            let sending = Sending {
                outgoing: Outgoing {
                    url: self.check_link("$batch")?,
                    prefer: (request.on_error == OnError::Continue).then_some("odata.continue-on-error"),
                    headers: &[],
                    body: Some(codec::encode(&sent, |path| self.target(path))?),
                    ask: Ask {
                        kind: if nature == Nature::Reads { RequestKind::Page } else { RequestKind::Bulk },
                        operations: sent.iter().map(|item| item.parts().len() as u32).sum(),
                    },
                    what: request.what,
                },
                method: Method::Post,
                content_type: &content_type,
                nature,
                bytes_max: request.bytes_max,
            };
            let answers = match series.deliver(&sending).await {
                Ok(Delivered::Answer(answer)) => self.read_answer(&sent, answer, request.on_error, call),
                Ok(Delivered::Refused(refusal))
                    if refusal.class() == RefusalClass::Split && sent.len() > 1 && whole =>
                {
                    return Ok(Taken::TooMuch);
                }
                Ok(Delivered::Refused(refusal)) => same(&sent, &PartReply::Refused(refusal)),
                Err(WriteFault::Unknown { message, .. }) => same(&sent, &PartReply::Unknown { message }),
                Err(WriteFault::NotDone(error)) => return Err(error),
            };
            drop(sending);
            let mut again = Vec::new();
            let mut reason = None;
            for ((item, first), answers) in pending.iter().zip(answers) {
                // What follows an item that is sent again was not sent either, and goes along.
                let follows = request.on_error == OnError::Stop && !again.is_empty();
                if let Some(why) = may_pass(item, &answers, series.repeats()) {
                    again.push((*item, *first));
                    reason = Some(more_urgent(reason, why));
                } else if follows {
                    again.push((*item, *first));
                }
                for (place, answer) in replies[*first..].iter_mut().zip(answers) {
                    *place = answer;
                }
            }
            let Some((failure, last)) = reason else { return Ok(Taken::Answered) };
            match series.pause_for(failure, last).await {
                Ok(()) => {}
                // The parts keep the refusals they have.
                Err(RequestError::Exhausted { .. }) => return Ok(Taken::Answered),
                Err(error) => return Err(error),
            }
            pending = again;
        }
        Ok(Taken::Answered)
    }

    /// Reads an answer and tells the governor what is in it.
    fn read_answer(&self, items: &[&Item], mut answer: Answer, on_error: OnError, call: &Call) -> Vec<Vec<PartReply>> {
        let kind = answer.headers.get("content-type").unwrap_or_default();
        let replies = match codec::decode(kind, &answer.body) {
            Ok(decoded) => {
                answer.signals.retry_after = longest_pause(&decoded, &answer.signals, self.clock.now());
                align(items, decoded, answer.is_success(), on_error)
            }
            Err(message) => same(items, &PartReply::Unknown { message }),
        };
        let throttled = replies.iter().flatten().find_map(|reply| match reply {
            PartReply::Refused(refusal) if refusal.class() == RefusalClass::Throttled => Some(refusal.error_body()),
            _ => None,
        });
        if throttled.is_some() {
            call.tally.throttled(1);
        }
        answer.close(throttled.map_or(Outcome::Answered, |body| Outcome::Throttled(Throttle::read(&body))));
        replies
    }
}

fn is_done(reply: &PartReply) -> bool {
    matches!(reply, PartReply::Done(_))
}

/// How many of the items fit one request; at least one.
fn fitting(items: &[Item]) -> usize {
    let (mut parts, mut bytes) = (0, 0);
    let fits = |item: &&Item| {
        parts += item.parts().len();
        bytes += item.bytes();
        parts <= BATCH_PARTS_MAX && bytes <= BATCH_BYTES_MAX
    };
    items.iter().take_while(fits).count().max(1)
}

/// The same reply for every part.
fn same(items: &[&Item], reply: &PartReply) -> Vec<Vec<PartReply>> {
    items.iter().map(|item| vec![reply.clone(); item.parts().len()]).collect()
}

/// Whether an item was surely not carried out and may pass when it is sent again.
fn may_pass(item: &Item, replies: &[PartReply], repeats: u32) -> Option<(Failure, String)> {
    let Some(PartReply::Refused(refusal)) = replies.first() else { return None };
    let class = refusal.class();
    if class == RefusalClass::Throttled {
        return Some((Failure::Throttled, refusal.message.clone()));
    }
    let read = item.parts().iter().all(|part| part.method == Method::Get);
    let doubtful_read = read && !proves_nothing_done(refusal.status, refusal.code) && repeats < READ_REPEATS_MAX;
    (class.repeats_max() > repeats || doubtful_read).then(|| (class.failure(), refusal.message.clone()))
}

/// Being throttled outweighs other reasons to wait.
fn more_urgent(known: Option<(Failure, String)>, new: (Failure, String)) -> (Failure, String) {
    match known {
        Some(known) if known.0 == Failure::Throttled || new.0 != Failure::Throttled => known,
        _ => new,
    }
}

/// The longest pause that the answer or a part of it asks for.
fn longest_pause(decoded: &Decoded, signals: &Signals, now: Timestamp) -> Option<Duration> {
    let parts = decoded.items.iter().flat_map(|item| match item {
        DecodedItem::Part(part) => std::slice::from_ref(part),
        DecodedItem::ChangeSet(parts) => parts.as_deref().unwrap_or_default(),
    });
    let asked = parts.filter_map(|part| Signals::read(|name| part.headers.get(name), now).retry_after);
    asked.chain(signals.retry_after).max()
}

/// Gives every item its replies. The answer has one entry per item, in order; it ends with the failing one where the
/// service stopped there.
fn align(items: &[&Item], decoded: Decoded, success: bool, on_error: OnError) -> Vec<Vec<PartReply>> {
    if decoded.items.len() > items.len() {
        return same(items, &PartReply::Unknown { message: "the answer has more parts than were sent".to_owned() });
    }
    let answered = decoded.items.len();
    let mut replies: Vec<Vec<PartReply>> =
        items.iter().zip(decoded.items).map(|(item, answer)| item_replies(item.parts(), answer)).collect();
    let failed_last = replies.last().is_some_and(|last| !last.iter().all(is_done));
    let stopped = decoded.closed && failed_last && (on_error == OnError::Stop || !success);
    let missing = if stopped {
        PartReply::NotSent
    } else {
        PartReply::Unknown { message: "the answer ends before this part".to_owned() }
    };
    replies.extend(items[answered..].iter().map(|item| vec![missing.clone(); item.parts().len()]));
    replies
}

fn item_replies(parts: &[Part], answer: DecodedItem) -> Vec<PartReply> {
    let unknown = |message: &str| vec![PartReply::Unknown { message: message.to_owned() }; parts.len()];
    match answer {
        DecodedItem::Part(answer) => {
            let reply = part_reply(&parts[0], answer);
            // A failed change set is answered by one part; a success for several requests says nothing about each.
            if parts.len() > 1 && is_done(&reply) {
                return unknown("one answer came for several parts of a change set");
            }
            vec![reply; parts.len()]
        }
        DecodedItem::ChangeSet(None) => unknown("the answer to the change set is cut"),
        DecodedItem::ChangeSet(Some(answers)) => {
            let failed = answers.iter().position(|answer| !is_success(answer.status));
            if let Some(index) = failed {
                // The set is undone as a whole.
                let answer = answers.into_iter().nth(index).expect("the index was found in it");
                return vec![part_reply(&parts[index.min(parts.len() - 1)], answer); parts.len()];
            }
            if answers.len() != parts.len() {
                return unknown("the change set has another number of answers than parts");
            }
            let mut answers: Vec<(u32, DecodedPart)> = answers
                .into_iter()
                .zip(1..)
                .map(|(answer, place)| (answer.content_id.unwrap_or(place), answer))
                .collect();
            answers.sort_by_key(|(id, _)| *id);
            if !answers.iter().zip(1..).all(|((id, _), expected)| *id == expected) {
                return unknown("the change set's answers cannot be told apart");
            }
            parts.iter().zip(answers).map(|(part, (_, answer))| part_reply(part, answer)).collect()
        }
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status) || status == 304
}

fn part_reply(part: &Part, answer: DecodedPart) -> PartReply {
    if is_success(answer.status) {
        return PartReply::Done(Reply { status: answer.status, headers: answer.headers, body: answer.body });
    }
    let refusal = Refusal::read(answer.status, &answer.headers, answer.body);
    // A part is one transaction of its own, whatever the batch is.
    match judge(Nature::Whole, &refusal) {
        Judgement::Lost if part.method != Method::Get => {
            PartReply::Unknown { message: format!("status {}: {}", refusal.status, refusal.message) }
        }
        _ => PartReply::Refused(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(method: Method) -> Part {
        Part { method, path: "accounts(1)".to_owned(), headers: Vec::new(), body: Bytes::new() }
    }

    fn answer(status: u16, content_id: Option<u32>) -> DecodedPart {
        let code = if status >= 400 { r#"{"error":{"code":"0x80040237","message":"no"}}"# } else { "" };
        let body = Bytes::from_static(code.as_bytes());
        DecodedPart { status, headers: crate::client::ReplyHeaders::default(), body, content_id }
    }

    fn word(reply: &PartReply) -> String {
        match reply {
            PartReply::Done(reply) => reply.status.to_string(),
            PartReply::Refused(refusal) => format!("refused {}", refusal.status),
            PartReply::NotSent => "not sent".to_owned(),
            PartReply::Unknown { .. } => "unknown".to_owned(),
        }
    }

    fn aligned(items: &[Item], answers: Vec<DecodedItem>, closed: bool, on_error: OnError) -> Vec<String> {
        let items: Vec<&Item> = items.iter().collect();
        let replies = align(&items, Decoded { items: answers, closed }, true, on_error);
        replies.iter().flatten().map(word).collect()
    }

    #[test]
    fn a_failed_change_set_fails_all_its_parts_and_nothing_else() {
        let set = || Item::ChangeSet(vec![part(Method::Post), part(Method::Post), part(Method::Patch)]);
        let items = [Item::Part(part(Method::Patch)), set(), Item::Part(part(Method::Patch)), set()];
        let error = answer(400, Some(2));
        let mixed = vec![answer(204, Some(1)), error.clone()];
        let answers = vec![
            DecodedItem::Part(answer(204, None)),
            DecodedItem::Part(error),
            DecodedItem::Part(answer(204, None)),
            DecodedItem::ChangeSet(Some(mixed)),
        ];
        let expected =
            ["204", "refused 400", "refused 400", "refused 400", "204", "refused 400", "refused 400", "refused 400"];
        assert_eq!(aligned(&items, answers, true, OnError::Continue), expected);
    }

    #[test]
    fn answers_of_a_change_set_are_matched_by_content_id() {
        let items = [Item::ChangeSet(vec![part(Method::Post), part(Method::Patch)])];
        let of = |answers| aligned(&items, vec![DecodedItem::ChangeSet(answers)], true, OnError::Stop);
        assert_eq!(of(Some(vec![answer(204, Some(2)), answer(201, Some(1))])), ["201", "204"]);
        assert_eq!(of(Some(vec![answer(201, None), answer(204, None)])), ["201", "204"]);
        assert_eq!(of(Some(vec![answer(201, Some(1)), answer(204, Some(1))])), ["unknown", "unknown"]);
        assert_eq!(of(Some(vec![answer(204, Some(1))])), ["unknown", "unknown"]);
        assert_eq!(of(None), ["unknown", "unknown"]);
    }

    #[test]
    fn missing_answers_mean_not_sent_only_behind_a_failing_part_of_a_whole_answer() {
        let items: Vec<Item> = (0..3).map(|_| Item::Part(part(Method::Patch))).collect();
        let failing = || vec![DecodedItem::Part(answer(204, None)), DecodedItem::Part(answer(400, None))];
        let good = || vec![DecodedItem::Part(answer(204, None))];
        let stop = OnError::Stop;
        assert_eq!(aligned(&items, failing(), true, stop), ["204", "refused 400", "not sent"]);
        assert_eq!(aligned(&items, failing(), false, stop), ["204", "refused 400", "unknown"]);
        assert_eq!(aligned(&items, failing(), true, OnError::Continue), ["204", "refused 400", "unknown"]);
        assert_eq!(aligned(&items, good(), true, stop), ["204", "unknown", "unknown"]);
        let many = (0..4).map(|_| DecodedItem::Part(answer(204, None))).collect();
        assert_eq!(aligned(&items, many, true, stop), ["unknown", "unknown", "unknown"]);
    }

    #[test]
    fn a_part_that_met_a_gateway_is_unknown_unless_it_reads() {
        let gateway = || DecodedPart { body: Bytes::from_static(b"<html>"), ..answer(502, None) };
        assert_eq!(word(&part_reply(&part(Method::Patch), gateway())), "unknown");
        assert_eq!(word(&part_reply(&part(Method::Get), gateway())), "refused 502");
    }

    #[test]
    fn batches_are_cut_at_a_thousand_parts_or_at_their_bytes_and_never_inside_a_change_set() {
        let single = Item::Part(part(Method::Patch));
        assert_eq!(fitting(&vec![single.clone(); 1001]), 1000);
        assert_eq!(fitting(&vec![single.clone(); 7]), 7);
        let set = Item::ChangeSet(vec![part(Method::Patch); 600]);
        assert_eq!(fitting(&[set.clone(), set, single]), 1);
        let large = Item::Part(Part { body: Bytes::from(vec![b'x'; BATCH_BYTES_MAX / 2]), ..part(Method::Patch) });
        assert_eq!(fitting(&[large.clone(), large.clone(), large]), 1);
    }
}
