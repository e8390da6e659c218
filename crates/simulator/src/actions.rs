//! Unbound and bound actions that change states, and the register of all actions (dataverse 6.5, 8.6).
//!
//! Closing a sales or service row is more than a state: the message writes a close activity next to it, with
//! the id the client supplies or a new one. A restorer that also restores close activities as rows meets them
//! twice, which is why this part has to be honest.
//!
//! | message | row | from | to | close activity |
//! |---|---|---|---|---|
//! | WinOpportunity, LoseOpportunity | opportunity | open | won, lost | opportunityclose |
//! | CloseIncident | incident | active | resolved | incidentresolution |
//! | WinQuote, CloseQuote | quote | active | won, closed | quoteclose |
//! | CancelSalesOrder, FulfillSalesOrder | salesorder | active, submitted | canceled, fulfilled | orderclose |

use serde_json::json;

use crate::answer::{Answer, Refusal};
use crate::database::RowKey;
use crate::query::Options;
use crate::route::Request;
use crate::rows::set;
use crate::write::{Body, WriteContext, bad_payload, create, force_state, resolve, row_key, stamp_update, state_of};
use crate::{bin, links, uploads};

/// A message that closes a row.
struct Closing {
    message: &'static str,
    table: &'static str,
    /// Parameter and table of the close activity, and its lookup to the closed row.
    member: &'static str,
    activity: &'static str,
    lookup: &'static str,
    /// States it starts from, and the one it leads to.
    from: &'static [i32],
    to: i32,
}

const CLOSINGS: [Closing; 7] = [
    Closing {
        message: "WinOpportunity",
        table: "opportunity",
        member: "OpportunityClose",
        activity: "opportunityclose",
        lookup: "opportunityid",
        from: &[0],
        to: 1,
    },
    Closing {
        message: "LoseOpportunity",
        table: "opportunity",
        member: "OpportunityClose",
        activity: "opportunityclose",
        lookup: "opportunityid",
        from: &[0],
        to: 2,
    },
    Closing {
        message: "CloseIncident",
        table: "incident",
        member: "IncidentResolution",
        activity: "incidentresolution",
        lookup: "incidentid",
        from: &[0],
        to: 1,
    },
    Closing {
        message: "WinQuote",
        table: "quote",
        member: "QuoteClose",
        activity: "quoteclose",
        lookup: "quoteid",
        from: &[1],
        to: 2,
    },
    Closing {
        message: "CloseQuote",
        table: "quote",
        member: "QuoteClose",
        activity: "quoteclose",
        lookup: "quoteid",
        from: &[1],
        to: 3,
    },
    Closing {
        message: "CancelSalesOrder",
        table: "salesorder",
        member: "OrderClose",
        activity: "orderclose",
        lookup: "salesorderid",
        from: &[0, 1],
        to: 2,
    },
    Closing {
        message: "FulfillSalesOrder",
        table: "salesorder",
        member: "OrderClose",
        activity: "orderclose",
        lookup: "salesorderid",
        from: &[0, 1],
        to: 3,
    },
];

/// States of a product (dataverse 6.5).
const PRODUCT_ACTIVE: i32 = 0;
const PRODUCT_DRAFT: i32 = 2;
const PRODUCT_UNDER_REVISION: i32 = 3;
/// Deepest product hierarchy that is published at once; deeper ones are loops.
const HIERARCHY_DEPTH_MAX: usize = 100;

/// `POST {name}`: an action bound to nothing.
pub(crate) fn message(context: &mut WriteContext<'_>, name: &str, request: &Request) -> Result<Answer, Refusal> {
    if let Some(closing) = CLOSINGS.iter().find(|closing| closing.message == name) {
        return close(context, closing, &Body::parse(&request.body)?);
    }
    if let Some(answer) = uploads::message(context, name, request) {
        return answer;
    }
    match name {
        "Restore" => bin::restore(context, &Body::parse(&request.body)?),
        _ => Err(Refusal::no_segment(name)),
    }
}

/// `POST {set}({key})/Microsoft.Dynamics.CRM.{name}`.
pub(crate) fn bound(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &str,
    name: &str,
    request: &Request,
) -> Result<Answer, Refusal> {
    let def = &context.database.tables[table].def;
    match (def.name.as_str(), name) {
        ("product", "PublishProductHierarchy") => {
            let key = row_key(context, table, key, &Options::default())?;
            publish(context, table, &key)
        }
        ("team", "AddMembersTeam" | "RemoveMembersTeam") => {
            let key = row_key(context, table, key, &Options::default())?;
            change_members(context, table, &key, &Body::parse(&request.body)?, name == "AddMembersTeam")
        }
        _ => Err(Refusal::no_segment(name)),
    }
}

fn close(context: &mut WriteContext<'_>, closing: &Closing, body: &Body) -> Result<Answer, Refusal> {
    let missing = |name: &str| bad_payload(&format!("The parameter '{name}' is missing."));
    let status: i32 = body.raw("Status").and_then(|raw| raw.parse().ok()).ok_or_else(|| missing("Status"))?;
    let activity = body.object(closing.member)?.ok_or_else(|| missing(closing.member))?;
    if activity.type_name().is_some_and(|name| name != closing.activity) {
        return Err(bad_payload(&format!("The parameter '{}' is no {}.", closing.member, closing.activity)));
    }
    let lookup = format!("{}@odata.bind", closing.lookup);
    let reference = activity.text(&lookup).ok_or_else(|| missing(&lookup))?;
    let (table, key) = resolve(context, &reference)?;
    if context.database.tables[table].def.name != closing.table {
        return Err(bad_payload(&format!("The navigation property '{}' leads to another table.", closing.lookup)));
    }
    context.require("Write", table)?;
    let state = state_of(context, table, &key).unwrap_or_default();
    if !closing.from.contains(&state) {
        // Closed already, or not yet where it can be closed (dataverse 6.5).
        let (code, reason) = if closing.from.iter().all(|from| state > *from) {
            ("0x80040516", "is closed already")
        } else {
            ("0x8004f00e", "is not in a state it could be closed from")
        };
        return Err(Refusal::new(400, code, format!("The {} cannot be closed: it {reason}.", closing.table)));
    }
    let activities = context.database.table(closing.activity).ok_or_else(|| Refusal::no_segment(closing.message))?;
    create(context, activities, &activity)?;
    force_state(context, table, &key, closing.to, Some(status))?;
    if closing.table == "opportunity" {
        record_outcome(context, table, &key, &activity);
    }
    Ok(Answer::empty(204))
}

/// What a close activity says about the deal goes into the opportunity, over what was there.
fn record_outcome(context: &mut WriteContext<'_>, table: usize, key: &RowKey, activity: &Body) {
    let entry = &context.database.tables[table];
    let Some(row) = entry.rows.get(key) else { return };
    let mut cells = row.cells(entry.def.cells);
    let day = activity.text("actualend").unwrap_or_else(|| context.now.to_string());
    set(&entry.def, &mut cells, "actualclosedate", day.get(..10).map(|day| format!("\"{day}\"")));
    if let Some(revenue) = activity.raw("actualrevenue").filter(|raw| *raw != "null") {
        // Four places, as the column has (dataverse 3.5).
        let (whole, places) = revenue.split_once('.').unwrap_or((revenue, ""));
        set(&entry.def, &mut cells, "actualvalue", Some(format!("{whole}.{places:0<4.4}")));
    }
    stamp_update(context, table, &mut cells);
    context.database.put(table, key.clone(), &cells);
}

/// Makes a draft, and every draft below it, an active product (dataverse 8.6).
fn publish(context: &mut WriteContext<'_>, table: usize, key: &RowKey) -> Result<Answer, Refusal> {
    context.require("Write", table)?;
    let publishable = |state: Option<i32>| matches!(state, Some(PRODUCT_DRAFT | PRODUCT_UNDER_REVISION));
    match state_of(context, table, key) {
        None => {
            let name = &context.database.tables[table].def.name;
            return Err(Refusal::no_row(name, &key.id.to_string()));
        }
        state if !publishable(state) => {
            return Err(Refusal::new(400, "0x8004f00e", "Only a draft or a product under revision can be published."));
        }
        _ => {}
    }
    let mut generation = vec![key.clone()];
    for _ in 0..HIERARCHY_DEPTH_MAX {
        let mut next = Vec::new();
        for key in generation {
            if publishable(state_of(context, table, &key)) {
                force_state(context, table, &key, PRODUCT_ACTIVE, None)?;
            }
            let entry = &context.database.tables[table];
            if let Some(parent) = entry.def.cell("parentproductid") {
                let id = key.id.to_string();
                let below = entry.rows.iter().filter(|(_, row)| row.cell(parent).get(..36) == Some(id.as_str()));
                next.extend(below.map(|(key, _)| key.clone()));
            }
        }
        if next.is_empty() {
            break;
        }
        generation = next;
    }
    Ok(Answer::empty(204))
}

/// Who belongs to a team; users who do already, or do not, are passed over (dataverse 6.3).
fn change_members(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &RowKey,
    body: &Body,
    joining: bool,
) -> Result<Answer, Refusal> {
    let listed = body.list("Members")?.ok_or_else(|| bad_payload("The parameter 'Members' is missing."))?;
    let mut users = Vec::new();
    for member in listed {
        let id = member.text("systemuserid").or_else(|| member.text("ownerid"));
        let id = id.ok_or_else(|| bad_payload("A member has no 'systemuserid'."))?;
        users.push(resolve(context, &format!("systemusers({id})"))?.1);
    }
    links::members(context, table, key, "teammembership_association", &users, joining)?;
    Ok(Answer::empty(204))
}

/// The answer of a message that returns the id of a row.
pub(crate) fn id_answer(context: &WriteContext<'_>, name: &str, key: &RowKey) -> Answer {
    let kind = format!("{}$metadata#Microsoft.Dynamics.CRM.{name}Response", context.base());
    Answer::json(json!({"@odata.context": kind, "id": key.id.to_string()}).to_string())
}
