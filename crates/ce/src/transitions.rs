//! The requests that bring a row into a state (`dataverse`, section 6.5).

use dynavault_model::{Guard, Row, RowId, RowWrite, TableSchema};
use dynavault_odata::Method;

use crate::rules::rules;
use crate::rules::state::{CLOSED_ON, CLOSED_VALUE, CloseMessage, Passing, Step, steps};
use crate::wire::{Object, Purpose, Unwritable, Wire, lookup, only, plain_text, with_row};

/// The status of a message that leaves the choice to the service.
const DEFAULT_STATUS: &[u8] = b"-1";

/// When and for how much a row was closed, as a close activity says it.
const ENDED: &str = "actualend";
const EARNED: &str = "actualrevenue";

/// Method, path, condition and body of one request.
type Request = (Method, String, Option<String>, Vec<u8>);

/// The requests of one row, in order. `close` writes the table of close activities. `passing` is an id for an activity that
/// must not stay: where no captured one belongs to the state, the message makes one all the same, which is removed again
/// in the same breath (section 6.5: otherwise there are two).
pub(crate) fn parts(
    wire: &Wire<'_>,
    close: Option<&Wire<'_>>,
    row: &RowWrite,
    passing: RowId,
) -> Result<Vec<Request>, Unwritable> {
    let wanted = with_row(&row.set, |set| number(set, "statecode"))?;
    let address = wire.address(&row.key)?;
    let condition = match &row.guard {
        Guard::Unchanged(etag) => etag.clone(),
        Guard::Present | Guard::Absent => "*".to_string(),
    };
    let change = |body: Vec<u8>, condition: &str| (Method::Patch, address.clone(), Some(condition.to_string()), body);
    let Some(wanted) = wanted else {
        return Ok(vec![change(wire.body(&row.set, Purpose::Update)?, &condition)]);
    };
    let steps = steps(wire.table_name(), row.from_state, wanted);
    let extra = steps.iter().find_map(|step| match step {
        Step::Close(message) if row.close.is_none() => Some(wire.address_of(message.close_table, &passing.to_string())),
        _ => None,
    });
    let mut parts: Vec<Request> = steps
        .into_iter()
        .enumerate()
        .map(|(place, step)| {
            // The first step changes the row, and with it the tag.
            let condition = if place == 0 { condition.as_str() } else { "*" };
            Ok(match step {
                Step::Change(_, Passing::Arriving) => change(wire.body(&row.set, Purpose::Update)?, condition),
                Step::Change(state, Passing::Through) => {
                    let mut body = Object::new();
                    body.raw("statecode", state.to_string().as_bytes());
                    change(body.finish(), condition)
                }
                Step::Bound(name) => {
                    (Method::Post, format!("{address}/Microsoft.Dynamics.CRM.{name}"), None, Vec::new())
                }
                Step::Close(message) => {
                    (Method::Post, message.name.to_string(), None, close_body(message, wire, close, row, passing)?)
                }
            })
        })
        .collect::<Result<_, Unwritable>>()?;
    if let Some(address) = extra {
        parts.push((Method::Delete, address?, None, Vec::new()));
    }
    Ok(parts)
}

/// The body of a message that closes a row. The close activity gets the id and the values of the one that was captured.
fn close_body(
    message: &CloseMessage,
    wire: &Wire<'_>,
    close: Option<&Wire<'_>>,
    row: &RowWrite,
    passing: RowId,
) -> Result<Vec<u8>, Unwritable> {
    let mut activity = Object::new();
    activity.text("@odata.type", &format!("Microsoft.Dynamics.CRM.{}", message.close_table));
    let navigation = close.and_then(|close| close.navigation(message.parent, wire.table_name()));
    let navigation = navigation.unwrap_or(message.parent);
    activity.text(&format!("{navigation}@odata.bind"), &format!("/{}", wire.address(&row.key)?));
    let mut said = Outcome::default();
    if let (Some(captured), Some(close)) = (&row.close, close) {
        let id = with_row(captured, |captured| captured.get("activityid").and_then(plain_text))?;
        if let Some(id) = id {
            activity.text("activityid", crate::wire::id(&id)?);
        }
        said = with_row(captured, |captured| with_row(&row.set, |set| Outcome::of(captured, set)))??;
        let rules = rules(close.table());
        let taker = rules.created_on.as_ref().map(|(taker, _)| taker.as_str());
        let parent = format!("_{}_value", message.parent);
        let goes_along = |member: &str| {
            let outcome =
                (member == ENDED && said.day == Said::Otherwise) || (member == EARNED && said.value == Said::Otherwise);
            let state = rules.state.as_ref().is_some_and(|rule| rule.state == member || rule.status == member);
            let written = rules.column(member).is_some_and(|rule| rule.create) || taker == Some(member);
            written && !outcome && !state && member != parent
        };
        let members = without_nulls(&only(captured, goes_along)?)?;
        close.members(&members, Purpose::Create, &mut activity)?;
    }
    if row.close.is_none() {
        activity.text("activityid", &passing.to_string());
    }
    said.complete(row, &mut activity)?;
    let status = with_row(&row.set, |set| set.get("statuscode").filter(|value| *value != b"null").map(<[u8]>::to_vec))?;
    let mut body = Object::new();
    body.raw("Status", status.as_deref().unwrap_or(DEFAULT_STATUS));
    body.raw(message.parameter, &activity.finish());
    Ok(body.finish())
}

/// What is left out of a close activity, more and more, where the service refuses to close a row with all of it.
pub(crate) const LESS: [Less; 3] = [Less::Owner, Less::Lookups, Less::CreationTime];

/// See [`LESS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Less {
    /// The owner, who may not be able to own rows any more.
    Owner,
    /// Every lookup: what one names may be gone.
    Lookups,
    /// The time of its creation as well.
    CreationTime,
}

/// A captured close activity without some of it; none when that changes nothing.
pub(crate) fn reduced(close: &TableSchema, captured: &[u8], less: Less) -> Result<Option<Vec<u8>>, Unwritable> {
    let rules = rules(close);
    let taker = rules.created_on.as_ref().map(|(taker, _)| taker.as_str());
    let stays = |member: &str| {
        rules.owner.as_deref() != Some(member)
            && (less < Less::Lookups || lookup(member).is_none())
            && (less < Less::CreationTime || taker != Some(member))
    };
    let plain = only(captured, stays)?;
    Ok((plain.len() < captured.len()).then_some(plain))
}

/// What of the outcome of a row the captured close activity says as the row does.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    day: Said,
    value: Said,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Said {
    /// The row says nothing that is to be written.
    #[default]
    Nothing,
    /// The same: the activity keeps its own words, which are more exact.
    Alike,
    /// Otherwise: the service copies it back into the row, so the row's own value counts.
    Otherwise,
}

impl Outcome {
    fn of(captured: &Row<'_>, set: &Row<'_>) -> Self {
        let given = |row: &Row<'_>, member: &str| {
            row.get(member).filter(|value| *value != b"null").map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let compare = |own: &str, activity: &str, same: fn(&str, &str) -> bool| match given(set, own) {
            None => Said::Nothing,
            Some(own) if given(captured, activity).is_some_and(|said| same(&own, &said)) => Said::Alike,
            Some(_) => Said::Otherwise,
        };
        let same_day = |own: &str, said: &str| own.get(1..11).is_some_and(|day| said.get(1..11) == Some(day));
        Self {
            day: compare(CLOSED_ON, ENDED, same_day),
            value: compare(CLOSED_VALUE, EARNED, |own, said| amount_of(own) == amount_of(said)),
        }
    }

    /// When and for how much the row was closed, in the words of the close activity, where those do not say it.
    fn complete(self, row: &RowWrite, activity: &mut Object) -> Result<(), Unwritable> {
        let wanted = |said: Said| said != Said::Alike;
        with_row(&row.set, |set| {
            let given = |member: &str| set.get(member).filter(|value| *value != b"null");
            if let Some(day) = given(CLOSED_ON).and_then(plain_text).filter(|_| wanted(self.day)) {
                let time = if day.len() == 10 { format!("{day}T00:00:00Z") } else { day };
                activity.text(ENDED, &time);
            }
            if let Some(value) = given(CLOSED_VALUE).filter(|_| wanted(self.value)) {
                activity.raw(EARNED, value);
            }
        })
    }
}

/// An amount without the zeros at its end.
fn amount_of(text: &str) -> (&str, &str) {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    (whole, places.trim_end_matches('0'))
}

fn without_nulls(bytes: &[u8]) -> Result<Vec<u8>, Unwritable> {
    with_row(bytes, |row| {
        let mut kept = Object::new();
        for member in row.members().iter().filter(|member| row.value(member) != b"null") {
            kept.raw(&String::from_utf8_lossy(row.key(member)), row.value(member));
        }
        kept.finish()
    })
}

fn number(row: &Row<'_>, member: &str) -> Option<i64> {
    row.get(member).and_then(|value| serde_json::from_slice(value).ok())
}
