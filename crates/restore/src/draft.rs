//! What is to be written to one row, before it is known which of its lookups can be: the captured row, compared with the live
//! one and fitted to what the target takes.
//!
//! A draft is made once for each row that has to be written and waits in a scratch file until all tables have been
//! looked at; `emit` turns it into operations. Values are kept as the JSON text that goes into the plan.

use dynavault_model::{Birth, ColumnKind, ColumnRule, Row, RowId, RowKey, StateRule, TableRules, TableSchema};
use serde::{Deserialize, Serialize};

use crate::compare::{NULL, Verdict, Winner, integer, reference, value, verdict};
use crate::creators::Creators;
use crate::findings::{Findings, NotWritten};
use crate::project::{Use, closed, fits, reason};
use crate::resolve::Resolver;
use crate::select::Columns;
use crate::settle::{MODIFIED, key_of};
use crate::tables::ColumnIndex;
use crate::waves::Node;

/// What a draft is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// A row is made.
    Create,
    /// A row is brought back from the recycle bin.
    Undelete,
    /// A row that comes into being with its parent is changed to what it was.
    WithParent,
    /// A row that is there is changed.
    Change,
}

/// A lookup that is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lookup {
    pub(crate) member: String,
    /// Members as they are written, without braces.
    pub(crate) set: String,
    /// The same members as they are now.
    pub(crate) from: String,
    /// The row it names, where it is not certain that it is there.
    pub(crate) node: Option<Node>,
    /// May be written after the row was made.
    pub(crate) later: bool,
}

/// Values written and what they replace, as JSON objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) set: String,
    pub(crate) from: String,
}

/// What is to be written to one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Draft {
    pub(crate) row: u32,
    pub(crate) key: RowKey,
    pub(crate) kind: Kind,
    /// Members other than lookups as they are written, without braces.
    pub(crate) set: String,
    /// The same members as they are now.
    pub(crate) from: String,
    pub(crate) lookups: Vec<Lookup>,
    /// Entity tag of the live row.
    pub(crate) etag: Option<String>,
    /// When the live row was last modified, as its value says.
    pub(crate) modified: Option<String>,
    /// A new owner of a row that is there.
    pub(crate) owner: Option<Lookup>,
    /// Opens a closed row, once it is known that something is written to it: one that is there, or one that is closed when it
    /// comes back from the recycle bin.
    pub(crate) reopen: Option<Pair>,
    /// State and status at the end.
    pub(crate) state: Option<Pair>,
    /// The user on whose behalf the row is made.
    pub(crate) on_behalf: Option<String>,
}

/// Appends a member to the text of an object without braces.
pub(crate) fn push_member(text: &mut String, member: &str, value: &[u8]) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push('"');
    text.push_str(member);
    text.push_str("\":");
    text.push_str(&String::from_utf8_lossy(value));
}

/// What drafting looks at and writes to, apart from the row.
pub(crate) struct Drafting<'a> {
    pub(crate) name: &'a str,
    pub(crate) rules: &'a TableRules,
    pub(crate) columns: ColumnIndex<'a>,
    /// As the table was captured.
    pub(crate) source: &'a TableSchema,
    pub(crate) allowed: &'a Columns,
    pub(crate) resolver: Resolver<'a>,
    pub(crate) findings: &'a mut Findings,
    pub(crate) not_written: &'a mut NotWritten,
    /// The creation time is kept.
    pub(crate) keeps_created_on: bool,
    /// Rows are made on behalf of those who made them.
    pub(crate) creators: Option<&'a Creators>,
}

/// A row that cannot be made; the finding has been added.
#[derive(Debug)]
pub(crate) struct Impossible;

/// A value that is left alone.
pub(crate) struct Left<'a> {
    pub(crate) member: &'a str,
    pub(crate) captured: &'a [u8],
    pub(crate) live: &'a [u8],
}

/// Edges of a draft: the row that is named, whether the row cannot be without it, whether it must be written along.
pub(crate) type Need = (Node, bool, bool);

impl Drafting<'_> {
    fn is_ordinary(&self, rule: &ColumnRule) -> bool {
        let state = self.rules.state.as_ref();
        !matches!(rule.kind, ColumnKind::Key | ColumnKind::Content)
            && state.is_none_or(|state| rule.member != state.state && rule.member != state.status)
            && self.rules.owner.as_deref() != Some(rule.member.as_str())
            && self.rules.created_on.as_ref().is_none_or(|(member, _)| rule.member != *member)
    }

    /// The draft of a row that is not there, and the rows it names.
    pub(crate) fn created(&mut self, at: u32, row: &Row<'_>, kind: Kind) -> Result<(Draft, Vec<Need>), Impossible> {
        let usage = if kind == Kind::WithParent { Use::Update } else { Use::Create };
        let key = self.key(row)?;
        let mut draft = Draft {
            row: at,
            kind,
            set: String::new(),
            from: String::new(),
            lookups: Vec::new(),
            etag: None,
            modified: None,
            owner: None,
            reopen: None,
            state: None,
            on_behalf: if kind == Kind::Create { self.creator(row) } else { None },
            key,
        };
        let mut needs = Vec::new();
        for member in row.members() {
            let (name, raw) = (row.key(member), row.value(member));
            if raw == NULL || name.contains(&b'@') {
                continue;
            }
            let rule = self.columns.get(name);
            let Ok(name) = std::str::from_utf8(name) else { continue };
            if rule.is_some_and(|rule| !self.is_ordinary(rule)) {
                continue;
            }
            let open = rule.filter(|rule| closed(Some(rule), usage).is_none());
            let Some(rule) = open else {
                self.leave_column(closed(rule, usage).unwrap_or(reason::READ_ONLY), &draft.key.id, name);
                continue;
            };
            if matches!(rule.kind, ColumnKind::Lookup { .. }) {
                if let Some(lookup) = self.lookup(row, rule, &draft.key.id)? {
                    if let Some(node) = lookup.node {
                        needs.push((node, rule.required, rule.required || !rule.update));
                    }
                    draft.lookups.push(lookup);
                }
            } else if let Err((code, sentence)) = fits(rule, raw) {
                self.misfit(code, sentence, &draft.key.id, rule)?;
            } else {
                push_member(&mut draft.set, name, raw);
            }
        }
        if kind != Kind::WithParent {
            self.birth_values(row, &mut draft, &mut needs);
        }
        Ok((draft, needs))
    }

    fn key(&mut self, row: &Row<'_>) -> Result<RowKey, Impossible> {
        key_of(&self.source.key, row).ok_or_else(|| {
            self.findings.table("no-key", self.name, 1, "a row has no key that can be addressed");
            Impossible
        })
    }

    /// Owner, status and creation time, which have their own rules when a row is made.
    fn birth_values(&mut self, row: &Row<'_>, draft: &mut Draft, needs: &mut Vec<Need>) {
        if let Some(rule) = self.rules.owner.as_deref().and_then(|owner| self.rules.column(owner))
            && rule.create
            && let Ok(Some(mut owner)) = self.lookup(row, rule, &draft.key.id)
        {
            // Without its owner a row belongs to whoever restores it; a later assignment could take others along.
            owner.later = false;
            if let Some(node) = owner.node {
                needs.push((node, false, true));
            }
            draft.lookups.push(owner);
        }
        if let Some(rule) = &self.rules.state {
            let (state, status) = (value(row, &rule.state), value(row, &rule.status));
            let initial = integer(state) == Some(rule.initial);
            if initial && integer(status).is_some_and(|status| rule.initial_statuses.contains(&status)) {
                push_member(&mut draft.set, &rule.status, status);
            } else if state != NULL {
                let mut pair = state_pair(rule, state, status, rule.initial.to_string().as_bytes(), NULL);
                pair.set = with_closing(rule, state, pair.set, |member| value(row, member));
                draft.state = Some(pair);
                if draft.kind == Kind::Undelete && is_closed(rule, state) {
                    draft.reopen = Some(opening(rule, state, status));
                }
            }
        }
        if let Some((member, taken_from)) = &self.rules.created_on
            && let Some(time) = row.get(taken_from).filter(|time| *time != NULL)
        {
            if self.keeps_created_on {
                push_member(&mut draft.set, member, time);
            } else {
                let message = "the privilege to keep the time of creation is missing: the rows will be as new";
                self.findings.table("created-on-lost", self.name, 1, message);
            }
        }
    }

    fn leave_column(&mut self, code: &'static str, id: &str, member: &str) {
        self.not_written.add(code, member);
        if code == reason::MISSING_COLUMN {
            self.findings.row(code, self.name, id, member, "the environment does not have the column");
        }
    }

    fn misfit(&mut self, code: &'static str, sentence: String, id: &str, rule: &ColumnRule) -> Result<(), Impossible> {
        if !rule.required {
            self.findings.row(code, self.name, id, &rule.member, sentence);
            return Ok(());
        }
        let sentence = format!("the row needs the column, and {sentence}");
        self.findings.row(code, self.name, id, &rule.member, sentence);
        Err(Impossible)
    }

    /// A lookup as it is written; none when it is empty or leads nowhere.
    pub(crate) fn lookup(&mut self, row: &Row<'_>, rule: &ColumnRule, id: &str) -> Result<Option<Lookup>, Impossible> {
        let Some(reference) = reference(row, &rule.member, Some(rule)) else { return Ok(None) };
        let takes = match (&rule.kind, &reference.table) {
            (ColumnKind::Lookup { targets }, Some(table)) => targets.is_empty() || targets.contains(table),
            _ => true,
        };
        let led = if takes { self.resolver.lead(&reference) } else { Err(reason::WRONG_TARGET) };
        match led {
            Ok(led) => {
                let set = lookup_text(row, &rule.member, led.id, reference.table.as_deref());
                let later = rule.update;
                Ok(Some(Lookup { member: rule.member.clone(), set, from: String::new(), node: led.node, later }))
            }
            Err(code) => {
                let table = reference.table.as_deref().unwrap_or("a row of an unknown table");
                let sentence = match code {
                    reason::UNMAPPED => format!("{table} {} has no counterpart in the environment", reference.id),
                    reason::WRONG_TARGET => format!("the column does not take rows of table {table}"),
                    _ => "the snapshot does not say which table it points to".into(),
                };
                self.misfit(code, sentence, id, rule).map(|()| None)
            }
        }
    }

    /// The draft of a row that is there, with the rows it names; none when nothing has to be written. Values left alone go
    /// to `left`.
    pub(crate) fn changed(
        &mut self,
        at: u32,
        captured: &Row<'_>,
        live: &Row<'_>,
        winner: Winner,
        mut left: impl FnMut(Left<'_>),
    ) -> Option<(Draft, Vec<Need>)> {
        let key = self.key(captured).ok()?;
        let mut draft = Draft {
            row: at,
            kind: Kind::Change,
            set: String::new(),
            from: String::new(),
            lookups: Vec::new(),
            etag: live.get("@odata.etag").and_then(|tag| serde_json::from_slice(tag).ok()),
            modified: live.get(MODIFIED).and_then(|time| serde_json::from_slice(time).ok()),
            owner: None,
            reopen: None,
            state: None,
            on_behalf: None,
            key,
        };
        let mut needs = Vec::new();
        for column in &self.source.columns {
            let Some(rule) = self.columns.get(column.member.as_bytes()) else { continue };
            if !self.is_ordinary(rule) || !self.allowed.allow(&rule.member, &rule.column) {
                continue;
            }
            let (before, now) = (value(captured, &rule.member), value(live, &rule.member));
            // A null of a secured column may mean "not allowed to read" (`dataverse` protocol, rule 3.5).
            if column.secured && before == NULL {
                if now != NULL {
                    self.not_written.add("secured", &rule.member);
                }
                continue;
            }
            // What closing fills in would be filled in again when the row is closed again.
            if before == NULL && self.is_filled_by_closing(captured, &rule.member) {
                continue;
            }
            let is_lookup = matches!(rule.kind, ColumnKind::Lookup { .. });
            let equal = is_lookup.then(|| self.same_lookup(captured, live, rule));
            let verdict = verdict(winner, before, now, equal);
            if verdict == Verdict::Same {
                continue;
            }
            if let Some(code) = closed(Some(rule), Use::Update) {
                self.leave_column(code, &draft.key.id, &rule.member);
                continue;
            }
            match verdict {
                Verdict::Conflict => left(Left { member: &rule.member, captured: before, live: now }),
                _ if is_lookup && before != NULL => {
                    if let Ok(Some(mut lookup)) = self.lookup(captured, rule, &draft.key.id) {
                        lookup.from = live_lookup_text(live, rule);
                        if let Some(node) = lookup.node {
                            needs.push((node, false, false));
                        }
                        draft.lookups.push(lookup);
                    }
                }
                _ => self.write_value(&mut draft, rule, before, live),
            }
        }
        self.change_owner(captured, live, winner, &mut draft, &mut needs, &mut left);
        self.change_state(captured, live, winner, &mut draft, &mut left);
        let nothing =
            draft.set.is_empty() && draft.lookups.is_empty() && draft.owner.is_none() && draft.state.is_none();
        if nothing { None } else { Some((draft, needs)) }
    }

    fn is_filled_by_closing(&self, captured: &Row<'_>, member: &str) -> bool {
        self.rules.state.as_ref().is_some_and(|rule| {
            rule.closing_writes.iter().any(|filled| filled == member) && is_closed(rule, value(captured, &rule.state))
        })
    }

    fn write_value(&mut self, draft: &mut Draft, rule: &ColumnRule, before: &[u8], live: &Row<'_>) {
        if let Err((code, sentence)) = fits(rule, before) {
            self.findings.row(code, self.name, &draft.key.id, &rule.member, sentence);
            return;
        }
        if matches!(rule.kind, ColumnKind::Lookup { .. }) {
            // Which of several navigation properties is cleared depends on the table the lookup points to now.
            let from = live_lookup_text(live, rule);
            let mut set = String::new();
            push_member(&mut set, &rule.member, NULL);
            if let Some(table) = reference(live, &rule.member, Some(rule)).and_then(|reference| reference.table) {
                push_target(&mut set, &rule.member, &table);
            }
            let member = rule.member.clone();
            draft.lookups.push(Lookup { member, set, from, node: None, later: true });
            return;
        }
        push_member(&mut draft.set, &rule.member, before);
        push_member(&mut draft.from, &rule.member, value(live, &rule.member));
    }

    /// Whether a lookup is the same on both sides, once its row has been looked for in the environment.
    fn same_lookup(&mut self, captured: &Row<'_>, live: &Row<'_>, rule: &ColumnRule) -> bool {
        let was = reference(captured, &rule.member, Some(rule));
        let now = reference(live, &rule.member, Some(rule));
        match (was, now) {
            (None, None) => true,
            (Some(was), Some(now)) => {
                let tables = was.table.is_none() || now.table.is_none() || was.table == now.table;
                let same = was.id == now.id || self.resolver.mapping.identity;
                let id = if same { was.id } else { self.resolver.lead(&was).map_or(was.id, |led| led.id) };
                tables && id == now.id
            }
            _ => false,
        }
    }

    fn change_owner(
        &mut self,
        captured: &Row<'_>,
        live: &Row<'_>,
        winner: Winner,
        draft: &mut Draft,
        needs: &mut Vec<Need>,
        left: &mut impl FnMut(Left<'_>),
    ) {
        let Some(rule) = self.rules.owner.as_deref().and_then(|owner| self.rules.column(owner)) else { return };
        let (before, now) = (value(captured, &rule.member), value(live, &rule.member));
        if before == NULL || !rule.update || !self.allowed.allow(&rule.member, &rule.column) {
            return;
        }
        let equal = self.same_lookup(captured, live, rule);
        match verdict(winner, before, now, Some(equal)) {
            Verdict::Same => {}
            Verdict::Conflict => left(Left { member: &rule.member, captured: before, live: now }),
            Verdict::Write => {
                if let Ok(Some(mut owner)) = self.lookup(captured, rule, &draft.key.id) {
                    owner.from = live_lookup_text(live, rule);
                    if let Some(node) = owner.node {
                        needs.push((node, false, false));
                    }
                    draft.owner = Some(owner);
                }
            }
        }
    }

    fn change_state(
        &mut self,
        captured: &Row<'_>,
        live: &Row<'_>,
        winner: Winner,
        draft: &mut Draft,
        left: &mut impl FnMut(Left<'_>),
    ) {
        let Some(rule) = &self.rules.state else { return };
        let (state, status) = (value(captured, &rule.state), value(captured, &rule.status));
        let (now, status_now) = (value(live, &rule.state), value(live, &rule.status));
        if state == NULL || now == NULL {
            return;
        }
        let allowed = [&rule.state, &rule.status].iter().any(|member| self.allowed.allow(member, member));
        let mut last = (now, status_now);
        let mut closing = live;
        if allowed && (state, status) != (now, status_now) {
            if winner == Winner::Snapshot {
                last = (state, status);
                closing = captured;
            } else {
                for (member, captured, live) in [(&rule.state, state, now), (&rule.status, status, status_now)] {
                    if captured != live {
                        left(Left { member, captured, live });
                    }
                }
            }
        }
        let written = !draft.set.is_empty() || !draft.lookups.is_empty() || draft.owner.is_some();
        if written && is_closed(rule, now) {
            let (initial, open) = open_state(rule);
            let (initial, open) = (initial.as_bytes(), open.as_bytes());
            draft.reopen = Some(opening(rule, now, status_now));
            if last != (initial, open) {
                draft.state = Some(state_pair(rule, last.0, last.1, initial, open));
            }
        } else if last != (now, status_now) {
            draft.state = Some(state_pair(rule, last.0, last.1, now, status_now));
        }
        if let Some(pair) = &mut draft.state {
            // A value that the plan writes into the row is the one to close it with; quotes inside of values are escaped.
            let writes = |member: &str| draft.set.contains(&format!("\"{member}\":"));
            let closing = |member: &str| value(if writes(member) { captured } else { closing }, member);
            pair.set = with_closing(rule, last.0, std::mem::take(&mut pair.set), closing);
            pair.from = with_closing(rule, last.0, std::mem::take(&mut pair.from), |member| value(live, member));
        }
    }

    /// Whether a row that is not there comes into being by being written; reports it otherwise. `None` for a row that comes
    /// into being with its parent.
    pub(crate) fn is_written(&mut self, birth: Birth, id: RowId) -> Option<bool> {
        let counterpart = self.resolver.mapping.counterpart(self.name, id);
        let id = id.to_string();
        if let Some(counterpart) = counterpart {
            let sentence = format!("{counterpart} is its counterpart in the environment");
            self.findings.row("matched", self.name, &id, "", sentence);
            return Some(false);
        }
        match birth {
            // A close activity that no message makes is an activity like any other.
            Birth::Written | Birth::ByState(_) => return Some(true),
            Birth::WithParent(_) => return None,
            Birth::Mirrored(why) => self.findings.row("mirrored", self.name, &id, "", why),
            Birth::Never(why) => self.findings.row("never", self.name, &id, "", why),
        }
        Some(false)
    }
}

/// State and status as they are set and as they are now.
fn state_pair(rule: &StateRule, state: &[u8], status: &[u8], now: &[u8], status_now: &[u8]) -> Pair {
    let object = |state: &[u8], status: &[u8]| {
        let mut text = String::new();
        push_member(&mut text, &rule.state, state);
        if status != NULL {
            push_member(&mut text, &rule.status, status);
        }
        format!("{{{text}}}")
    };
    Pair { set: object(state, status), from: object(now, status_now) }
}

/// Whether rows in this state take no changes until they are opened.
pub(crate) fn is_closed(rule: &StateRule, state: &[u8]) -> bool {
    integer(state).is_some_and(|state| rule.closed.contains(&state))
}

/// The state of an open row with its status, as JSON.
fn open_state(rule: &StateRule) -> (String, String) {
    let status = rule.initial_statuses.first().map_or_else(|| "null".to_string(), ToString::to_string);
    (rule.initial.to_string(), status)
}

/// Opens a row that is in this state.
fn opening(rule: &StateRule, now: &[u8], status_now: &[u8]) -> Pair {
    let (state, status) = open_state(rule);
    state_pair(rule, state.as_bytes(), status.as_bytes(), now, status_now)
}

/// Opens a closed row and closes it again as it was; none for an open one.
pub(crate) fn open_and_close(rule: &StateRule, row: &Row<'_>) -> Option<(Pair, Pair)> {
    let (state, status) = (value(row, &rule.state), value(row, &rule.status));
    if !is_closed(rule, state) {
        return None;
    }
    let (initial, open) = open_state(rule);
    let mut close = state_pair(rule, state, status, initial.as_bytes(), open.as_bytes());
    close.set = with_closing(rule, state, close.set, |member| value(row, member));
    close.from = with_closing(rule, state, close.from, |member| value(row, member));
    Some((opening(rule, state, status), close))
}

/// The text of a state with what the message for closing writes into the row, for a state that closes it: those values would
/// otherwise be the service's own.
fn with_closing<'a>(rule: &StateRule, state: &[u8], text: String, outcome: impl Fn(&str) -> &'a [u8]) -> String {
    if !is_closed(rule, state) {
        return text;
    }
    let mut members = text.trim_start_matches('{').trim_end_matches('}').to_string();
    for member in &rule.closing_writes {
        let value = outcome(member);
        if value != NULL {
            push_member(&mut members, member, value);
        }
    }
    format!("{{{members}}}")
}

/// A lookup as it is written: the id, the table, and the navigation property where it was captured.
fn lookup_text(row: &Row<'_>, member: &str, id: RowId, table: Option<&str>) -> String {
    let mut text = String::new();
    push_member(&mut text, member, format!("\"{id}\"").as_bytes());
    if let Some(table) = table {
        push_target(&mut text, member, table);
    }
    let navigation = format!("{member}@Microsoft.Dynamics.CRM.associatednavigationproperty");
    if let Some(property) = row.get(&navigation).filter(|property| *property != NULL) {
        push_member(&mut text, &navigation, property);
    }
    text
}

fn push_target(text: &mut String, member: &str, table: &str) {
    let annotation = format!("{member}@Microsoft.Dynamics.CRM.lookuplogicalname");
    push_member(text, &annotation, serde_json::Value::from(table).to_string().as_bytes());
}

/// A lookup as it is now.
pub(crate) fn live_lookup_text(live: &Row<'_>, rule: &ColumnRule) -> String {
    let mut text = String::new();
    push_member(&mut text, &rule.member, value(live, &rule.member));
    if let Some(table) = reference(live, &rule.member, Some(rule)).and_then(|reference| reference.table) {
        push_target(&mut text, &rule.member, &table);
    }
    text
}
