//! The requests that bring a row into a state (`dataverse`, section 6.5).

use dynavault_model::{Guard, Row, RowId, RowWrite};
use dynavault_odata::Method;

use crate::rules::rules;
use crate::rules::state::{CLOSED_ON, CLOSED_VALUE, CloseMessage, Passing, Step, steps};
use crate::wire::{Object, Purpose, Unwritable, Wire, lookup, only, plain_text, with_row};

/// The status of a message that leaves the choice to the service.
const DEFAULT_STATUS: &[u8] = b"-1";

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

/// The body of a message that closes a row. The close activity gets the id and the plain values of the one that was captured; its
/// lookups stay with what the service gives them, because a missing target of theirs would keep the row from being closed.
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
    if let (Some(captured), Some(close)) = (&row.close, close) {
        let id = with_row(captured, |captured| captured.get("activityid").and_then(plain_text))?;
        if let Some(id) = id {
            activity.text("activityid", crate::wire::id(&id)?);
        }
        let rules = rules(close.table());
        let own = with_row(&row.set, |set| (set.get(CLOSED_ON).is_some(), set.get(CLOSED_VALUE).is_some()))?;
        let is_plain = |member: &str| {
            if (member == "actualend" && own.0) || (member == "actualrevenue" && own.1) {
                return false;
            }
            let state = rules.state.as_ref().is_some_and(|rule| rule.state == member || rule.status == member);
            lookup(member).is_none() && !state && rules.column(member).is_some_and(|rule| rule.create)
        };
        let plain = only(captured, is_plain)?;
        let plain = without_nulls(&plain)?;
        close.members(&plain, Purpose::Create, &mut activity)?;
    }
    if row.close.is_none() {
        activity.text("activityid", &passing.to_string());
    }
    outcome(row, &mut activity)?;
    let status = with_row(&row.set, |set| set.get("statuscode").filter(|value| *value != b"null").map(<[u8]>::to_vec))?;
    let mut body = Object::new();
    body.raw("Status", status.as_deref().unwrap_or(DEFAULT_STATUS));
    body.raw(message.parameter, &activity.finish());
    Ok(body.finish())
}

/// When and for how much it was closed, in the words of the close activity: the service copies both back into the row.
fn outcome(row: &RowWrite, activity: &mut Object) -> Result<(), Unwritable> {
    with_row(&row.set, |set| {
        let given = |member: &str| set.get(member).filter(|value| *value != b"null");
        if let Some(day) = given(CLOSED_ON).and_then(plain_text) {
            let time = if day.len() == 10 { format!("{day}T00:00:00Z") } else { day };
            activity.text("actualend", &time);
        }
        if let Some(value) = given(CLOSED_VALUE) {
            activity.raw("actualrevenue", value);
        }
    })
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
