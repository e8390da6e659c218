//! The proof: rows that a restore wrote are read back and compared, value by value, and every difference has a reason.
//!
//! ```text
//!  for every row the run touched        made by the run: the whole row of the snapshot against the row as it is now
//!                                       changed by the run: the values that were written
//!                                       deleted by the run: it must be gone
//! ```
//!
//! | reason | meaning |
//! |---|---|
//! | `server-set`, `calculated`, `read-only`, `content` | the service sets the column itself (from the table's rules) |
//! | `missing-column`, `too-long`, `choice-gone`, `other-kind`, `wrong-target`, … | the plan could not write the value, and says so |
//! | `left-out` | the plan says that this value cannot be written, and why |
//! | `default-set` | the snapshot has no value, and the service fills in its own where none is sent |
//! | `state-from-above` | publishing a product family has published its members |
//! | `missing-target` | the service said that the row it refers to does not exist, and the row was written without it |
//! | `owner-refused` | the owner cannot own rows; the row belongs to the user who restored it |
//! | `not-written` | the operation that carries the value was refused or skipped |
//! | `changed-by-automation` | custom logic was not bypassed and the value differs from what was written |
//! | `changed-since` | somebody else modified the row after it was written |
//! | `unexplained` | none of these: the proof has failed |

use std::collections::BTreeMap;

use dynavault_model::{ColumnKind, Row, TableRules, WriteKind, WriteOptions};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::history::RowHistory;
use crate::outcomes::LISTED_MAX;
use crate::plan::{Action, Op};
use crate::project::{fits, reason};
use crate::settle::{LiveRow, is_value, same_value};

/// One value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Table.
    pub table: String,
    /// Row.
    pub id: String,
    /// Member; none when the whole row is missing or still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Reason code.
    pub reason: String,
}

/// What was compared in one table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableProof {
    /// Rows compared.
    pub rows: u64,
    /// Rows without any difference.
    pub equal: u64,
    /// Values that differ, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// The same by column and reason: complete, where the list of single differences ends after the first ones.
    #[serde(default)]
    pub columns: BTreeMap<String, BTreeMap<String, u64>>,
}

/// The proof of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Proof {
    /// By table.
    pub tables: BTreeMap<String, TableProof>,
    /// Links compared.
    pub links: u64,
    /// Pieces of content compared byte for byte.
    pub content: u64,
    /// Pieces of content too large to be read again for the proof.
    pub content_not_compared: u64,
    /// Differences with the reason `unexplained`.
    pub unexplained: u64,
    /// Differences that are not the rule for their column: the first thousand with a reason, and of those without.
    pub differences: Vec<Difference>,
    /// Listed differences that have a reason.
    #[serde(skip)]
    explained: usize,
}

impl Proof {
    /// Whether every difference has a reason.
    pub fn holds(&self) -> bool {
        self.unexplained == 0
    }

    pub(crate) fn add(&mut self, difference: Difference) {
        let table = self.tables.entry(difference.table.clone()).or_default();
        *table.reasons.entry(difference.reason.clone()).or_default() += 1;
        if let Some(column) = &difference.column {
            let column = table.columns.entry(column.clone()).or_default();
            *column.entry(difference.reason.clone()).or_default() += 1;
        }
        let unexplained = difference.reason == UNEXPLAINED;
        self.unexplained += u64::from(unexplained);
        let expected = ["server-set", "calculated", "read-only", "content"].contains(&difference.reason.as_str());
        // Explained differences never take the place of one that somebody has to look into.
        let room = if unexplained { self.unexplained <= LISTED_MAX as u64 } else { self.explained < LISTED_MAX };
        if room && !expected {
            self.explained += usize::from(!unexplained);
            self.differences.push(difference);
        }
    }
}

/// Reason of a state that a write of another row has changed.
const STATE_FROM_ABOVE: &str = "state-from-above";
/// Reason of a difference that has none.
pub(crate) const UNEXPLAINED: &str = "unexplained";

/// What comparing rows of a table needs to know.
pub(crate) struct Prover<'a> {
    pub(crate) table: &'a str,
    pub(crate) rules: &'a TableRules,
    pub(crate) options: &'a WriteOptions,
    /// Our own user in the environment.
    pub(crate) user: &'a str,
}

impl Prover<'_> {
    /// Compares one row. `snapshot` is the captured row, for rows that the run made.
    pub(crate) fn compare(
        &self,
        history: &RowHistory,
        snapshot: Option<&Row<'_>>,
        live: Option<&LiveRow>,
        proof: &mut Proof,
    ) {
        let Some(first) = history.tried.first() else { return };
        let id = first.op.key.id.clone();
        let deleted =
            history.tried.iter().any(|tried| tried.done && tried.op.action == Action::Write(WriteKind::Delete));
        proof.tables.entry(self.table.to_string()).or_default().rows += 1;
        let before: u64 = proof.tables[self.table].reasons.values().sum();
        let difference = |column: Option<&str>, reason: &str| Difference {
            table: self.table.to_string(),
            id: id.clone(),
            column: column.map(str::to_string),
            reason: reason.to_string(),
        };
        match (deleted, live) {
            (true, Some(_)) => proof.add(difference(None, UNEXPLAINED)),
            (false, None) if history.was_touched() => {
                // It was there when it was written. Only somebody else can have deleted it.
                proof.add(difference(None, "changed-since"));
            }
            (true | false, None) => {}
            (false, Some(live)) => {
                let written = history.written();
                for (member, reason) in self.differing(history, &written, snapshot, live) {
                    proof.add(difference(Some(&member), reason));
                }
            }
        }
        let table = proof.tables.entry(self.table.to_string()).or_default();
        let after: u64 = table.reasons.values().sum();
        table.equal += u64::from(after == before);
    }

    /// Members that differ, with their reasons.
    fn differing(
        &self,
        history: &RowHistory,
        written: &BTreeMap<String, Box<RawValue>>,
        snapshot: Option<&Row<'_>>,
        live: &LiveRow,
    ) -> Vec<(String, &'static str)> {
        let mut found = Vec::new();
        let refused = |member: &str| {
            history.tried.iter().any(|tried| {
                !tried.done
                    && tried.op.set.as_deref().is_some_and(|set| {
                        serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(set.get())
                            .is_ok_and(|members| members.contains_key(member))
                    })
            })
        };
        let _compared = live.with(|now| {
            let changed = self.who_changed(history, now);
            for (member, value) in written.iter().filter(|(member, _)| is_value(member)) {
                if same_value(Some(value.get().as_bytes()), now.get(member)) {
                    continue;
                }
                let reason = match history.left_out(member) {
                    Some(reason) => reason,
                    None if self.moved_from_above(member) => STATE_FROM_ABOVE,
                    None => changed.unwrap_or(UNEXPLAINED),
                };
                found.push((member.clone(), reason));
            }
            // A message that closes a row fills these in itself where nothing was sent.
            let closed =
                history.tried.iter().any(|tried| tried.done && tried.op.action == Action::Write(WriteKind::State));
            if let Some(rule) = self.rules.state.as_ref().filter(|_| closed && !history.was_created()) {
                let filled = |member: &&String| now.get(member).is_some_and(|value| value != b"null");
                let unsent = rule.closing_writes.iter().filter(|member| !written.contains_key(*member)).filter(filled);
                found.extend(unsent.map(|member| (member.clone(), "default-set")));
            }
            let Some(snapshot) = snapshot.filter(|_| history.was_created()) else { return };
            for member in snapshot.members() {
                let name = String::from_utf8_lossy(snapshot.key(member)).into_owned();
                if !is_value(&name) || written.contains_key(&name) || name == "versionnumber" {
                    continue;
                }
                if same_value(Some(snapshot.value(member)), now.get(&name)) {
                    continue;
                }
                let value = snapshot.value(member);
                let reason = match self.rules.column(&name) {
                    _ if refused(&name) => "not-written",
                    None => reason::MISSING_COLUMN,
                    Some(rule) if rule.not_written.is_some() => rule.not_written.unwrap_or("read-only"),
                    Some(_) if self.moved_from_above(&name) => STATE_FROM_ABOVE,
                    // Nothing was sent, and the service has put something there.
                    Some(_) if value == b"null" => "default-set",
                    Some(rule) if matches!(rule.kind, ColumnKind::Lookup { .. }) => reason::MISSING_TARGET,
                    Some(rule) => fits(rule, value).err().map_or("left-out", |(code, _)| code),
                };
                found.push((name, reason));
            }
            // The row that an undo makes again is kept without what was empty; the service may fill that in.
            for member in now.members().iter().filter(|_| history.remade_from().is_some()) {
                let name = String::from_utf8_lossy(now.key(member)).into_owned();
                let empty =
                    now.value(member) == b"null" || snapshot.get(&name).is_some() || written.contains_key(&name);
                if empty || !is_value(&name) || name == "versionnumber" {
                    continue;
                }
                if let Some(rule) = self.rules.column(&name) {
                    found.push((name, rule.not_written.unwrap_or("default-set")));
                }
            }
        });
        found
    }

    /// Whether a member is a state that writes of other rows may change.
    fn moved_from_above(&self, member: &str) -> bool {
        self.rules
            .state
            .as_ref()
            .is_some_and(|rule| rule.reaches_below && (rule.state == member || rule.status == member))
    }

    /// Why a value may differ from what was written, if there is a reason.
    fn who_changed(&self, history: &RowHistory, now: &Row<'_>) -> Option<&'static str> {
        let modified_by: Option<String> =
            now.get("_modifiedby_value").and_then(|value| serde_json::from_slice(value).ok());
        // A row that was made on behalf of its creator was last modified by that user.
        let ours = |user: &str| {
            let behalf = |op: &Op| op.on_behalf.as_ref().is_some_and(|creator| creator.eq_ignore_ascii_case(user));
            user.eq_ignore_ascii_case(self.user) || history.tried.iter().any(|tried| behalf(&tried.op))
        };
        if modified_by.is_some_and(|user| !ours(&user)) {
            return Some("changed-since");
        }
        (!self.options.bypass_logic).then_some("changed-by-automation")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_full_of_explained_differences_still_names_the_one_without_a_reason() {
        let difference = |id: usize, reason: &str| Difference {
            table: "account".into(),
            id: id.to_string(),
            column: Some("name".into()),
            reason: reason.into(),
        };
        let mut proof = Proof::default();
        (0..LISTED_MAX + 5).for_each(|id| proof.add(difference(id, "default-set")));
        proof.add(difference(0, "server-set"));
        proof.add(difference(7_777, UNEXPLAINED));
        assert!(!proof.holds());
        assert_eq!(proof.differences.len(), LISTED_MAX + 1);
        assert_eq!(proof.differences.last().map(|one| one.id.as_str()), Some("7777"));
        let counted = &proof.tables["account"].columns["name"];
        assert_eq!(
            (counted["default-set"], counted["server-set"], counted[UNEXPLAINED]),
            (LISTED_MAX as u64 + 5, 1, 1)
        );
    }
}
