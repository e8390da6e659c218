//! Finding out what became of writes whose answer was lost: the rows are read again, and never written twice blindly.
//!
//! ```text
//!               row as planned          row as before           row otherwise
//!  create       done                    (absent) not done       done: it was absent when we sent it
//!  update       done                    not done                conflict if its version was to be kept, else not done
//!  state        done                    not done                not done: the target looks at the state itself
//!  delete       (absent) done           not done                not done; the guard decides
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dynavault_model::{
    Call, Deletion, Guard, Row, RowKey, RowSink, RowTarget, SharedSink, SourceError, Stopped, TableSchema, WriteKind,
    scan,
};
use serde_json::value::RawValue;

use crate::plan::{Action, Op};

/// Largest row that is read back.
const ROW_BYTES_MAX: usize = 64 << 20;

/// A row as it is now.
#[derive(Debug, Clone)]
pub(crate) struct LiveRow {
    /// Compact JSON object, with its entity tag.
    pub(crate) bytes: Vec<u8>,
}

impl LiveRow {
    /// Calls `with` with the row's members.
    pub(crate) fn with<T>(&self, with: impl FnOnce(&Row<'_>) -> T) -> Option<T> {
        let mut members = Vec::new();
        scan(&self.bytes, &mut members).ok()?;
        Some(with(&Row::new(&self.bytes, &members)))
    }

    /// The entity tag, as text.
    pub(crate) fn etag(&self) -> Option<String> {
        self.with(|row| row.get("@odata.etag").and_then(|tag| serde_json::from_slice(tag).ok())).flatten()
    }
}

/// Gathers rows by their key.
struct Gather {
    key: Vec<String>,
    rows: HashMap<RowKey, LiveRow>,
}

impl RowSink for Gather {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        if let Some(key) = key_of(&self.key, row) {
            self.rows.insert(key, LiveRow { bytes: row.bytes().to_vec() });
        }
        Ok(())
    }

    fn deleted(&mut self, _deletion: Deletion) -> Result<(), Stopped> {
        Ok(())
    }

    fn oversized(&mut self, _start: &[u8], _bytes: u64) -> Result<(), Stopped> {
        Err(Stopped)
    }

    fn restarted(&mut self) {}

    fn row_bytes_max(&self) -> usize {
        ROW_BYTES_MAX
    }
}

fn text(value: &[u8]) -> Option<String> {
    serde_json::from_slice(value).ok()
}

/// The address of a captured row: its primary key, and its partition where it has one.
pub(crate) fn key_of(members: &[String], row: &Row<'_>) -> Option<RowKey> {
    let id = text(row.get(members.first()?)?)?.to_ascii_lowercase();
    let partition = members.get(1).and_then(|member| row.get(member)).and_then(text);
    Some(RowKey { id, partition })
}

/// Reads rows by key; those that exist.
pub(crate) async fn read_live(
    target: &dyn RowTarget,
    schema: &TableSchema,
    keys: &[RowKey],
    call: &Call,
) -> Result<HashMap<RowKey, LiveRow>, SourceError> {
    let gather = Arc::new(Mutex::new(Gather { key: schema.key.clone(), rows: HashMap::with_capacity(keys.len()) }));
    let sink: SharedSink = Arc::clone(&gather) as SharedSink;
    target.read_rows(schema, keys, sink, call).await?;
    let mut gather = gather.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(std::mem::take(&mut gather.rows))
}

/// Whether two raw values say the same: null and absent do, and ids in either case.
pub(crate) fn same_value(a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
    let present = |value: Option<&'_ [u8]>| value.filter(|value| *value != b"null").map(<[u8]>::to_vec);
    match (present(a), present(b)) {
        (None, None) => true,
        (Some(a), Some(b)) => a == b || (a.len() == 38 && a.eq_ignore_ascii_case(&b)),
        _ => false,
    }
}

/// Whether a member of a plan says something about the row itself, and not about how the value is to be understood.
pub(crate) fn is_value(member: &str) -> bool {
    !member.contains('@') && member != "overriddencreatedon"
}

/// Whether a live row has every value of `set`.
pub(crate) fn holds(set: &RawValue, live: &LiveRow) -> bool {
    let bytes = set.get().as_bytes();
    let mut members = Vec::new();
    if scan(bytes, &mut members).is_err() {
        return false;
    }
    let set = Row::new(bytes, &members);
    live.with(|live| {
        set.members().iter().all(|member| {
            let name = String::from_utf8_lossy(set.key(member));
            !is_value(&name) || same_value(Some(set.value(member)), live.get(&name))
        })
    })
    .unwrap_or(false)
}

/// Whether a row differs from an earlier version only as the run itself explains: references that the deletion of rows has
/// emptied, an owner or a state that it got along with the row above (`user` is our own user in the environment), and the marks
/// of the change itself.
pub(crate) fn differs_by_cascade_only(from: &RawValue, live: &LiveRow, user: &str) -> bool {
    let bytes = from.get().as_bytes();
    let mut members = Vec::new();
    if scan(bytes, &mut members).is_err() {
        return false;
    }
    let before = Row::new(bytes, &members);
    let marks = ["versionnumber", "modifiedon", "_modifiedby_value", "_modifiedonbehalfby_value"];
    live.with(|now| {
        let by_us = now.get(MODIFIED_BY[0]).and_then(text).is_some_and(|by| by.eq_ignore_ascii_case(user));
        before.members().iter().all(|member| {
            let name = String::from_utf8_lossy(before.key(member));
            let reference = name.starts_with('_') && name.ends_with("_value");
            let emptied = reference && now.get(&name).is_none_or(|value| value == b"null");
            !is_value(&name)
                || marks.contains(&&*name)
                || emptied
                || (by_us && FROM_ABOVE.contains(&&*name))
                || same_value(Some(before.value(member)), now.get(&name))
        })
    })
    .unwrap_or(false)
}

/// Time of the last change of a row.
pub(crate) const MODIFIED: &str = "modifiedon";
/// What a row may get from the row above it: who owns it, and its state (`dataverse` protocol, sections 6.7 and 8.6).
const FROM_ABOVE: [&str; 6] = [
    "_ownerid_value",
    "_owninguser_value",
    "_owningteam_value",
    "_owningbusinessunit_value",
    "statecode",
    "statuscode",
];
/// Who made it: the user, and the application that acted on the user's behalf (`dataverse` protocol, section 6.6).
const MODIFIED_BY: [&str; 2] = ["_modifiedby_value", "_modifiedonbehalfby_value"];

/// Whether a person or another program has modified a row since the plan was made. Writes of the run itself reach other rows
/// too, an address its account: those carry `user`, who is us. A version that moved without a modification is nobody's.
fn modified_by_others(op: &Op, live: &LiveRow, user: &str) -> bool {
    let Some(seen) = &op.modified else { return false };
    live.with(|live| {
        let by_us = |member: &&str| live.get(member).and_then(text).is_some_and(|by| by.eq_ignore_ascii_case(user));
        live.get(MODIFIED).and_then(text).is_some_and(|now| now != *seen) && !MODIFIED_BY.iter().any(by_us)
    })
    .unwrap_or(false)
}

/// Whether nobody else has changed a row since the plan was made, and every value that an update is about is the one that the
/// plan saw, or the one that it writes. `user` is our own user in the environment.
pub(crate) fn still_as_seen(op: &Op, live: &LiveRow, user: &str) -> bool {
    if modified_by_others(op, live, user) {
        return false;
    }
    let (Some(set), Some(from)) = (op.set.as_deref(), op.from.as_deref()) else { return false };
    let (set, from) = (set.get().as_bytes(), from.get().as_bytes());
    let (mut written, mut seen) = (Vec::new(), Vec::new());
    if scan(set, &mut written).is_err() || scan(from, &mut seen).is_err() {
        return false;
    }
    let (set, from) = (Row::new(set, &written), Row::new(from, &seen));
    live.with(|live| {
        set.members().iter().all(|member| {
            let name = String::from_utf8_lossy(set.key(member));
            let now = live.get(&name);
            !is_value(&name) || same_value(from.get(&name), now) || same_value(Some(set.value(member)), now)
        })
    })
    .unwrap_or(false)
}

/// What reading a row again says about a lost write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It was carried out.
    Done,
    /// It was not; it may be sent again.
    NotDone,
    /// Somebody else changed the row.
    Conflict,
}

/// Decides by the row as it is now; `user` is our own user in the environment.
pub(crate) fn settle(op: &Op, live: Option<&LiveRow>, user: &str) -> Settled {
    let Action::Write(kind) = op.action else { return Settled::NotDone };
    let planned = |live: &LiveRow| op.set.as_deref().is_none_or(|set| holds(set, live));
    match (kind, live) {
        (WriteKind::Create | WriteKind::Undelete, Some(_)) | (WriteKind::Delete, None) => Settled::Done,
        (WriteKind::Create | WriteKind::Undelete | WriteKind::Parties, _) | (WriteKind::Delete, Some(_)) => {
            Settled::NotDone
        }
        (WriteKind::Update | WriteKind::State, None) => Settled::Conflict,
        (WriteKind::Update | WriteKind::State, Some(live)) if planned(live) => Settled::Done,
        (WriteKind::State, Some(_)) => Settled::NotDone,
        (WriteKind::Update, Some(live)) => match &op.guard {
            Guard::Unchanged(etag) if live.etag().as_ref() != Some(etag) && !still_as_seen(op, live, user) => {
                Settled::Conflict
            }
            _ => Settled::NotDone,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Step;

    const US: &str = "0a0b0c0d-1111-4222-8333-444455556666";

    fn op(kind: WriteKind, guard: Guard, set: &str) -> Op {
        Op {
            n: 0,
            step: Step::Rows,
            wave: 0,
            table: "account".into(),
            action: Action::Write(kind),
            key: RowKey::new("0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f"),
            set: Some(RawValue::from_string(set.into()).unwrap()),
            from: None,
            guard,
            parties: Vec::new(),
            from_parties: Vec::new(),
            along: Vec::new(),
            close: None,
            content: None,
            on_behalf: None,
            modified: None,
            follows: false,
        }
    }

    fn live(text: &str) -> LiveRow {
        LiveRow { bytes: text.as_bytes().to_vec() }
    }

    #[test]
    fn a_row_that_is_there_after_a_lost_creation_was_created() {
        let create = op(WriteKind::Create, Guard::Absent, r#"{"name":"A"}"#);
        assert_eq!(settle(&create, Some(&live(r#"{"name":"A by a plug-in"}"#)), US), Settled::Done);
        assert_eq!(settle(&create, None, US), Settled::NotDone);
    }

    #[test]
    fn a_lost_update_is_sent_again_only_while_the_row_is_the_same_version() {
        let update = op(WriteKind::Update, Guard::Unchanged("W/\"1\"".into()), r#"{"name":"A","fax":null}"#);
        let row = |etag: &str, name: &str| live(&format!(r#"{{"@odata.etag":"W/\"{etag}\"","name":"{name}"}}"#));
        assert_eq!(settle(&update, Some(&row("2", "A")), US), Settled::Done);
        assert_eq!(settle(&update, Some(&row("1", "B")), US), Settled::NotDone);
        assert_eq!(settle(&update, Some(&row("2", "C")), US), Settled::Conflict);
        assert_eq!(settle(&update, None, US), Settled::Conflict);
    }

    #[test]
    fn an_update_is_about_its_own_values_only() {
        let from = RawValue::from_string(r#"{"name":"B","fax":"1"}"#.into()).unwrap();
        let update = Op {
            from: Some(from),
            ..op(WriteKind::Update, Guard::Unchanged("W/\"1\"".into()), r#"{"name":"A","fax":null}"#)
        };
        let row = |name: &str, fax: &str| {
            live(&format!(r#"{{"@odata.etag":"W/\"2\"","name":"{name}","fax":{fax},"city":"C"}}"#))
        };
        assert!(still_as_seen(&update, &row("B", "\"1\""), US) && still_as_seen(&update, &row("A", "\"1\""), US));
        assert!(!still_as_seen(&update, &row("B", "\"2\""), US) && !still_as_seen(&update, &row("C", "null"), US));
        assert_eq!(settle(&update, Some(&row("B", "\"1\"")), US), Settled::NotDone);
        assert_eq!(settle(&update, Some(&row("C", "\"1\"")), US), Settled::Conflict);
    }

    #[test]
    fn a_row_that_others_modified_since_is_left_alone_and_one_that_we_touched_is_not() {
        let from = RawValue::from_string(r#"{"name":"B"}"#.into()).unwrap();
        let update = Op {
            from: Some(from),
            modified: Some("2026-01-01T00:00:00Z".into()),
            ..op(WriteKind::Update, Guard::Unchanged("W/\"1\"".into()), r#"{"name":"A"}"#)
        };
        let row = |time: &str, by: &str, behalf: &str| {
            live(&format!(
                r#"{{"@odata.etag":"W/\"2\"","name":"B","modifiedon":"{time}","_modifiedby_value":"{by}","_modifiedonbehalfby_value":{behalf}}}"#
            ))
        };
        let (then, later, other) =
            ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "ffffffff-1111-4222-8333-444455556666");
        assert!(!still_as_seen(&update, &row(later, other, "null"), US));
        assert_eq!(settle(&update, Some(&row(later, other, "null")), US), Settled::Conflict);
        assert!(still_as_seen(&update, &row(later, &US.to_uppercase(), "null"), US));
        assert!(still_as_seen(&update, &row(later, other, &format!("\"{US}\"")), US));
        assert!(still_as_seen(&update, &row(then, other, "null"), US), "a version without a modification");
    }

    #[test]
    fn an_owner_that_a_row_got_along_with_the_one_above_does_not_keep_it_from_being_deleted() {
        let row = |owner: &str, by: &str, name: &str| {
            let text = format!(r#"{{"name":"{name}","_ownerid_value":"{owner}","_modifiedby_value":"{by}"}}"#);
            (RawValue::from_string(text.clone()).unwrap(), live(&text))
        };
        let (from, _) = row("a", "somebody", "A");
        assert!(differs_by_cascade_only(&from, &row("b", US, "A").1, US));
        assert!(!differs_by_cascade_only(&from, &row("b", "somebody", "A").1, US));
        assert!(!differs_by_cascade_only(&from, &row("b", US, "B").1, US));
    }

    #[test]
    fn annotations_and_the_creation_time_are_not_compared() {
        let set = RawValue::from_string(
            r#"{"_a_value":"0FE1C2D3-A4B5-46C7-88D9-EAFB0C1D2E3F","_a_value@x.lookuplogicalname":"b","overriddencreatedon":"2019"}"#
                .into(),
        )
        .unwrap();
        assert!(holds(&set, &live(r#"{"_a_value":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f"}"#)));
        assert!(!holds(&set, &live(r#"{"_a_value":null}"#)));
    }
}
