//! State and status: in which state rows are born, which states close a row, and by which steps a row gets from one state to
//! another (`dataverse`, section 6.5: the graph of a widely used client, and Microsoft's page on special updates).

use dynavault_model::StateRule;

use crate::definition::{Attribute, Definition};

/// A state is reached by changing the row, or by a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// State and status in a change of their own. The state, and whether it is only passed through: then the service's
    /// default status is taken.
    Change(i64, Passing),
    /// A message that closes the row and makes a close activity.
    Close(&'static CloseMessage),
    /// A message bound to the row, without parameters.
    Bound(&'static str),
}

/// Whether a state is where a row shall stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    /// On the way to another state.
    Through,
    /// The state asked for.
    Arriving,
}

/// A message that closes a row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CloseMessage {
    /// Table of the row.
    table: &'static str,
    /// State the row is in afterwards.
    state: i64,
    /// Name of the message.
    pub(crate) name: &'static str,
    /// Parameter that takes the close activity.
    pub(crate) parameter: &'static str,
    /// Table of the close activity.
    pub(crate) close_table: &'static str,
    /// Lookup of the close activity that refers to the row, which is also its navigation property.
    pub(crate) parent: &'static str,
}

const fn close(
    table: &'static str,
    state: i64,
    name: &'static str,
    parameter: &'static str,
    close_table: &'static str,
    parent: &'static str,
) -> CloseMessage {
    CloseMessage { table, state, name, parameter, close_table, parent }
}

static CLOSE_MESSAGES: &[CloseMessage] = &[
    close("opportunity", 1, "WinOpportunity", "OpportunityClose", "opportunityclose", "opportunityid"),
    close("opportunity", 2, "LoseOpportunity", "OpportunityClose", "opportunityclose", "opportunityid"),
    close("incident", 1, "CloseIncident", "IncidentResolution", "incidentresolution", "incidentid"),
    close("quote", 2, "WinQuote", "QuoteClose", "quoteclose", "quoteid"),
    close("quote", 3, "CloseQuote", "QuoteClose", "quoteclose", "quoteid"),
    close("salesorder", 2, "CancelSalesOrder", "OrderClose", "orderclose", "salesorderid"),
    close("salesorder", 3, "FulfillSalesOrder", "OrderClose", "orderclose", "salesorderid"),
];

/// Columns of an opportunity that winning or losing it takes from the close activity (`actualend`, `actualrevenue`).
pub(crate) const CLOSED_ON: &str = "actualclosedate";
/// See [`CLOSED_ON`].
pub(crate) const CLOSED_VALUE: &str = "actualvalue";

const PUBLISH: Step = Step::Bound("PublishProductHierarchy");
const PRODUCT_ACTIVE: i64 = 0;
const PRODUCT_RETIRED: i64 = 1;
const PRODUCT_DRAFT: i64 = 2;
const QUOTE_ACTIVE: i64 = 1;

/// The table and member through which a close activity belongs to a row.
pub(crate) fn close_table(table: &str) -> Option<(String, String)> {
    let message = CLOSE_MESSAGES.iter().find(|message| message.table == table)?;
    Some((message.close_table.to_string(), format!("_{}_value", message.parent)))
}

/// The member of a close activity that refers to the row it closed.
pub(super) fn closes(close_table: &str) -> Option<String> {
    let message = CLOSE_MESSAGES.iter().find(|message| message.close_table == close_table)?;
    Some(format!("_{}_value", message.parent))
}

/// The steps from one state to another: one to three.
pub(crate) fn steps(table: &str, from: Option<i64>, to: i64) -> Vec<Step> {
    let arrive = Step::Change(to, Passing::Arriving);
    if from == Some(to) {
        return vec![arrive];
    }
    let through = |state: i64| Step::Change(state, Passing::Through);
    let message = CLOSE_MESSAGES.iter().find(|message| message.table == table && message.state == to).map(Step::Close);
    // A row that is closed, in whichever way, is closed in another way only after it was opened.
    let is_closed = from.is_some_and(|from| closed_by_table(table).contains(&from));
    match (table, message) {
        // Only an active quote can be won or closed, and a closed one becomes a draft first.
        ("quote", Some(message)) if is_closed => vec![through(0), through(QUOTE_ACTIVE), message],
        ("quote", Some(message)) if from != Some(QUOTE_ACTIVE) => vec![through(QUOTE_ACTIVE), message],
        (_, Some(message)) if is_closed => vec![through(0), message],
        (_, Some(message)) => vec![message],
        ("opportunity" | "incident" | "quote" | "salesorder", None) if is_closed && to != 0 => {
            vec![through(0), arrive]
        }
        // A closed lead is opened before it is closed in another way.
        ("lead", None) if to != 0 && from.is_some_and(|from| from != 0) => {
            vec![through(0), arrive]
        }
        // Drafts and revisions become active by publishing, and drafts only then anything else; a retired product begins anew as
        // a draft (section 8.6; the way back from there is assumed).
        ("product", None) if to == PRODUCT_DRAFT => vec![arrive],
        ("product", None) if to == PRODUCT_ACTIVE => match from {
            Some(PRODUCT_RETIRED) => vec![through(PRODUCT_DRAFT), PUBLISH],
            _ => vec![PUBLISH],
        },
        ("product", None) if from == Some(PRODUCT_DRAFT) => vec![PUBLISH, arrive],
        ("product", None) if from == Some(PRODUCT_RETIRED) => vec![through(PRODUCT_DRAFT), PUBLISH, arrive],
        _ => vec![arrive],
    }
}

/// The rule of a table that has state and status.
pub(super) fn rule(table: &str, definition: &Definition) -> Option<StateRule> {
    let of_kind = |kind: &str| definition.attributes().iter().find(|attribute| attribute.kind() == kind);
    let (state, status) = (of_kind("StateType")?, of_kind("StatusType")?);
    let initial = initial(table, state);
    // A close activity may be complete from the start, so no status goes along with its creation; its state is set afterwards.
    let born = |state: Option<i64>| state == Some(initial) && closes(table).is_none();
    let statuses = status.choices().iter().filter(|choice| born(choice.state));
    Some(StateRule {
        state: state.logical_name.clone(),
        status: status.logical_name.clone(),
        initial,
        // In which state the service makes a close activity is not known, so its creation names no status.
        initial_statuses: statuses.filter_map(|choice| choice.value).filter(|_| closes(table).is_none()).collect(),
        closed: closed(table, definition).to_vec(),
        close_table: close_table(table),
        close_states: CLOSE_MESSAGES.iter().filter(|message| message.table == table).map(|one| one.state).collect(),
        closing_writes: if table == "opportunity" {
            vec![CLOSED_ON.to_string(), CLOSED_VALUE.to_string()]
        } else {
            Vec::new()
        },
        reaches_below: table == "product",
    })
}

/// Rows are born in the first state, products as drafts (sections 6.5 and 8.6).
fn initial(table: &str, state: &Attribute) -> i64 {
    let wanted = if table == "product" { PRODUCT_DRAFT } else { 0 };
    let mut values = state.choices().iter().filter_map(|choice| choice.value);
    let lowest = values.clone().min();
    if values.any(|value| value == wanted) { wanted } else { lowest.unwrap_or(wanted) }
}

/// States whose rows take no changes until they are reopened; most inactive rows do take them (section 6.5).
fn closed(table: &str, definition: &Definition) -> &'static [i64] {
    match closed_by_table(table) {
        [] if definition.is_activity == Some(true) => &[1, 2],
        own => own,
    }
}

fn closed_by_table(table: &str) -> &'static [i64] {
    match table {
        "opportunity" | "incident" => &[1, 2],
        "quote" => &[2, 3],
        "salesorder" => &[2, 3, 4],
        "invoice" => &[1, 2, 3],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_need_a_message_are_reached_by_it_and_others_by_a_change() {
        let names = |table: &str, from: i64, to: i64| -> Vec<String> {
            let name = |step: &Step| match step {
                Step::Change(state, Passing::Through) => format!("through {state}"),
                Step::Change(state, Passing::Arriving) => format!("to {state}"),
                Step::Close(message) => message.name.to_string(),
                Step::Bound(name) => (*name).to_string(),
            };
            let steps = steps(table, Some(from), to);
            steps.iter().map(name).collect()
        };
        assert_eq!(names("opportunity", 0, 1), ["WinOpportunity"]);
        assert_eq!(names("opportunity", 0, 2), ["LoseOpportunity"]);
        assert_eq!(names("opportunity", 2, 0), ["to 0"]);
        assert_eq!(names("opportunity", 1, 1), ["to 1"]);
        assert_eq!(names("opportunity", 2, 1), ["through 0", "WinOpportunity"]);
        assert_eq!(names("incident", 0, 1), ["CloseIncident"]);
        assert_eq!(names("incident", 0, 2), ["to 2"]);
        assert_eq!(names("incident", 2, 1), ["through 0", "CloseIncident"]);
        assert_eq!(names("incident", 1, 2), ["through 0", "to 2"]);
        assert_eq!(names("quote", 0, 1), ["to 1"]);
        assert_eq!(names("quote", 0, 2), ["through 1", "WinQuote"]);
        assert_eq!(names("quote", 1, 3), ["CloseQuote"]);
        assert_eq!(names("quote", 2, 3), ["through 0", "through 1", "CloseQuote"]);
        assert_eq!(names("quote", 3, 1), ["through 0", "to 1"]);
        assert_eq!(names("salesorder", 3, 2), ["through 0", "CancelSalesOrder"]);
        assert_eq!(names("salesorder", 0, 3), ["FulfillSalesOrder"]);
        assert_eq!(names("salesorder", 0, 4), ["to 4"]);
        assert_eq!(names("product", 2, 0), ["PublishProductHierarchy"]);
        assert_eq!(names("product", 2, 1), ["PublishProductHierarchy", "to 1"]);
        assert_eq!(names("product", 3, 0), ["PublishProductHierarchy"]);
        assert_eq!(names("product", 1, 0), ["through 2", "PublishProductHierarchy"]);
        assert_eq!(names("product", 1, 3), ["through 2", "PublishProductHierarchy", "to 3"]);
        assert_eq!((names("product", 0, 2), names("product", 0, 1)), (vec!["to 2".into()], vec!["to 1".into()]));
        assert_eq!(names("account", 0, 1), ["to 1"]);
    }
}
