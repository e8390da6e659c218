//! What the service has, value for value, and which differences a restore may leave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dynavault_engine::sha256_hex;
use dynavault_simulator::{Handle, TableKind};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::harness::{Finished, Site};

/// Columns that the service writes by itself at every write, in every table (dataverse 6.6).
pub(crate) const STAMPS: [&str; 4] = ["modifiedon", "_modifiedby_value", "_modifiedonbehalfby_value", "versionnumber"];
/// What the service notes about who made a row, and when, beside [`STAMPS`].
const AUTHORSHIP: [&str; 9] = [
    "createdon",
    "modifiedon",
    "_createdby_value",
    "_createdonbehalfby_value",
    "_modifiedby_value",
    "_modifiedonbehalfby_value",
    "_owningbusinessunit_value",
    "_owningteam_value",
    "_owninguser_value",
];
/// The service's own list of all activities.
const POINTER: &str = "activitypointer";
/// The choice that the simulator's rows have and its metadata have not.
const RETIRED_CHOICE: &str = "727000009";
/// Differences that a result lists one by one.
const LISTED_MAX: usize = 1_000;
/// The guide in which every reason code stands.
const GUIDE: &str = include_str!("../../docs/guide/restore-differences.md");

/// Members of a row with their JSON.
pub(crate) type Members = BTreeMap<String, String>;

/// The rows of an environment by table and key, and its files.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) tables: BTreeMap<String, BTreeMap<String, Members>>,
    pub(crate) links: BTreeSet<String>,
    pub(crate) files: BTreeMap<(String, String, String), String>,
}

/// One value, or a whole row, that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Differing {
    pub(crate) table: String,
    pub(crate) key: String,
    /// None when the row is on one side only.
    pub(crate) member: Option<String>,
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
}

impl State {
    pub(crate) fn of(simulator: &Handle) -> Self {
        let mut tables = BTreeMap::new();
        let mut links = BTreeSet::new();
        for table in simulator.tables().iter().filter(|table| table.readable && !table.operational) {
            if table.kind == TableKind::Intersect {
                links.insert(table.logical_name.clone());
            }
            let rows = simulator.rows(&table.logical_name).into_iter().map(|row| {
                let members: BTreeMap<String, Box<RawValue>> =
                    serde_json::from_str(&row.json).expect("the oracle prints JSON");
                let members = members.into_iter().map(|(name, value)| (name, value.get().to_string()));
                (row.keys.join("/"), members.collect())
            });
            tables.insert(table.logical_name.clone(), rows.collect());
        }
        let files = simulator.files().into_iter();
        let files = files.map(|file| ((file.table, file.row, file.column), sha256_hex(&file.bytes))).collect();
        Self { tables, links, files }
    }

    /// The value of a member; none for null and for what does not exist.
    pub(crate) fn value(&self, table: &str, key: &str, member: &str) -> Option<&str> {
        let value = self.tables.get(table)?.get(key)?.get(member)?;
        (value != "null").then_some(value.as_str())
    }

    /// Everything that is not the same in `self` as it was `before`, whatever the reason.
    pub(crate) fn since(&self, before: &Self) -> Vec<Differing> {
        let mut found = Vec::new();
        let empty = BTreeMap::new();
        let names: BTreeSet<&String> = before.tables.keys().chain(self.tables.keys()).collect();
        for table in names {
            let (old, new) = (before.tables.get(table).unwrap_or(&empty), self.tables.get(table).unwrap_or(&empty));
            let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let differing = |member: Option<&String>, before: Option<&String>, after: Option<&String>| Differing {
                    table: table.clone(),
                    key: key.clone(),
                    member: member.cloned(),
                    before: before.cloned(),
                    after: after.cloned(),
                };
                let (Some(was), Some(is)) = (old.get(key), new.get(key)) else {
                    let there = |row: Option<&Members>| row.map(|row| format!("{row:?}"));
                    found.push(differing(None, there(old.get(key)).as_ref(), there(new.get(key)).as_ref()));
                    continue;
                };
                let members: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
                for member in members.into_iter().filter(|member| !member.contains('@')) {
                    let (was, is) = (was.get(member), is.get(member));
                    if was != is {
                        found.push(differing(Some(member), was, is));
                    }
                }
            }
        }
        found
    }

    /// Fails when the bytes of a file are not those of `before`. An image of which only the small version was stored may have
    /// become a whole one.
    pub(crate) fn expect_files_of(&self, before: &Self, plan: &Plan) {
        for (place, hash) in &before.files {
            assert_eq!(self.files.get(place), Some(hash), "{place:?}");
        }
        for place in self.files.keys().filter(|place| !before.files.contains_key(place)) {
            assert!(plan.finds("content-reduced", &place.0, Some(&place.2)), "{place:?} is new");
        }
    }

    /// The same rows without the ids that the service gives anew: links by their pair, parties by what they say, the second
    /// half of a connection by the first. So two states can be compared edge by edge.
    pub(crate) fn by_meaning(&self) -> Self {
        let mut other = self.clone();
        for (table, rows) in &mut other.tables {
            let own = format!("{table}id");
            let renamed = self.links.contains(table) || table == "activityparty";
            if !renamed && table != "connection" {
                continue;
            }
            let mut named: BTreeMap<String, Members> = BTreeMap::new();
            for (key, mut members) in std::mem::take(rows) {
                let meaning = if renamed {
                    members.remove(&own);
                    // Whether a party's row was deleted is for the service to say.
                    members.remove("ispartydeleted");
                    let shown =
                        members.iter().filter(|(name, _)| !STAMPS.contains(&name.as_str()) && !name.contains('@'));
                    shown.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
                } else {
                    let partner = members.remove("_relatedconnectionid_value").unwrap_or_default();
                    if members.get("ismaster").is_some_and(|value| value == "false") {
                        members.remove(&own);
                        format!("half of {partner}")
                    } else {
                        key
                    }
                };
                // Two parties may say the same.
                let count = named.keys().filter(|name| name.starts_with(&meaning)).count();
                named.insert(if count == 0 { meaning } else { format!("{meaning} again {count}") }, members);
            }
            *rows = named;
        }
        other
    }
}

/// What is not the same, apart from what the service writes at every write.
pub(crate) fn besides_stamps(found: Vec<Differing>) -> Vec<Differing> {
    found.into_iter().filter(|one| one.member.as_deref().is_none_or(|member| !STAMPS.contains(&member))).collect()
}

/// Whether it is the id of a file, or what goes with it: new with each upload.
pub(crate) fn is_file_id(one: &Differing) -> bool {
    let member = one.member.as_deref().unwrap_or_default();
    let image = ["entityimage", "new_picture"].iter().any(|image| member.starts_with(image));
    image || ["new_contract", "new_cv", "new_document", "attachmentid"].contains(&member)
}

/// Shows the first of many differences.
pub(crate) fn shown(found: &[Differing]) -> String {
    let mut by_place: BTreeMap<(String, String), (usize, &Differing)> = BTreeMap::new();
    for one in found {
        let place = (one.table.clone(), one.member.clone().unwrap_or_else(|| "whole row".into()));
        by_place.entry(place).or_insert((0, one)).0 += 1;
    }
    let short = |text: &Option<String>| text.as_deref().unwrap_or("-").chars().take(300).collect::<String>();
    let lines: Vec<String> = by_place
        .into_iter()
        .map(|((table, member), (count, one))| {
            format!("{table} {member}: {count}, e.g. {}: {} -> {}", one.key, short(&one.before), short(&one.after))
        })
        .collect();
    lines.join("\n")
}

/// A plan as the program printed it, with its file.
pub(crate) struct Plan {
    pub(crate) path: PathBuf,
    pub(crate) summary: Value,
}

/// A finished run as the program printed it.
pub(crate) struct Applied {
    pub(crate) end: Value,
}

impl Plan {
    pub(crate) fn requests(&self) -> u64 {
        self.summary["requests"].as_u64().expect("a number of requests")
    }

    pub(crate) fn count(&self, what: &str) -> u64 {
        self.summary["counts"][what].as_u64().expect("a count")
    }

    /// Lines of the file of one kind, without their wrapping.
    pub(crate) fn lines(&self, kind: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).expect("the plan is text");
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of the plan is JSON"));
        lines.filter_map(|mut line| line.get_mut(kind).map(Value::take)).collect()
    }

    /// The reason for which the plan does not write a column.
    fn left_out(&self, table: &str, column: &str) -> Option<String> {
        let tables = self.summary["tables"].as_array().expect("tables");
        let reasons = tables.iter().find(|entry| entry["table"] == table)?["not_written"].as_object()?.clone();
        let names = |columns: &Value| columns.as_array().is_some_and(|list| list.iter().any(|name| name == column));
        reasons.into_iter().find(|(_, columns)| names(columns)).map(|(reason, _)| reason)
    }

    /// Whether the plan has a finding of this kind about a column; it lists only the first rows one by one.
    pub(crate) fn finds(&self, code: &str, table: &str, column: Option<&str>) -> bool {
        let findings = self.summary["findings"].as_array().expect("findings");
        let about = |one: &&Value| one["code"] == code && one["table"] == table && one["column"].as_str() == column;
        findings.iter().any(|one| about(&one))
    }
}

impl Applied {
    pub(crate) fn run(&self) -> &str {
        self.end["run"].as_str().expect("a run")
    }

    fn difference(&self, one: &Differing) -> Option<String> {
        let list = self.end["proof"]["differences"].as_array().expect("differences");
        let id = one.key.split('/').next().unwrap_or_default();
        let same = |entry: &&Value| {
            entry["table"] == one.table.as_str()
                && entry["id"] == id
                && entry["column"].as_str() == one.member.as_deref()
        };
        let listed = list.iter().find(same).and_then(|entry| entry["reason"].as_str()).map(str::to_string);
        // The list ends after a thousand; what there is of a column is counted to the end.
        let counted = || self.end["proof"]["tables"][&one.table]["columns"][one.member.as_deref()?].as_object();
        listed.or_else(|| (list.len() >= LISTED_MAX).then(counted)??.keys().next().cloned())
    }

    /// The proof holds and nothing was refused; rows may have been written without an owner that cannot own rows.
    pub(crate) fn expect_clean(&self) {
        let end = &self.end;
        assert_eq!(end["status"], "succeeded", "{end:#}");
        assert_eq!(end["proof"]["unexplained"], 0, "{end:#}");
        for list in ["rejections", "conflicts"] {
            assert_eq!(end[list].as_array().map(Vec::len), Some(0), "{list}: {:#}", end[list]);
        }
        for row in end["adjusted"].as_array().expect("a list") {
            let message = row["message"].as_str().unwrap_or_default();
            assert_eq!(message, "written without _ownerid_value (owner-refused)", "{row:#}");
        }
    }
}

/// The logical name behind a member.
fn column_of(member: &str) -> &str {
    member.strip_prefix('_').and_then(|name| name.strip_suffix("_value")).unwrap_or(member)
}

/// Gives every difference its reason, from the plan or from the proof; fails where there is none, or none that the guide has.
/// The answer names the columns of each reason.
pub(crate) fn reasons(found: &[Differing], plan: &Plan, applied: &Applied) -> BTreeMap<String, BTreeSet<String>> {
    let mut reasons: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut bare = Vec::new();
    let places: BTreeSet<(&str, Option<&str>)> =
        found.iter().filter(|one| one.table != POINTER).map(|one| (one.key.as_str(), one.member.as_deref())).collect();
    for one in found {
        let member = one.member.as_deref().unwrap_or_default();
        let reason = applied
            .difference(one)
            .or_else(|| plan.left_out(&one.table, member))
            .or_else(|| plan.left_out(&one.table, column_of(member)))
            .or_else(|| of_its_kind(one, plan, &places).map(str::to_string));
        match reason {
            Some(reason) => {
                assert!(GUIDE.contains(&format!("| `{reason}` |")), "the guide does not have {reason}");
                reasons.entry(reason).or_default().insert(format!("{} {member}", one.table));
            }
            None => bare.push(one.clone()),
        }
    }
    assert!(bare.is_empty(), "{} differences without a reason:\n{}", bare.len(), shown(&bare));
    reasons
}

/// The reason of a value in a row that is not written as a row, or is written by the service alone.
fn of_its_kind(one: &Differing, plan: &Plan, places: &BTreeSet<(&str, Option<&str>)>) -> Option<&'static str> {
    let table = one.table.as_str();
    let Some(member) = one.member.as_deref() else {
        // A party that names nobody cannot be written.
        let lost = table == "activityparty" && one.after.is_none();
        // Rows that come and go with others.
        let code = if one.after.is_some() { "not-deleted" } else { "with-parent" };
        if plan.finds(code, table, None) {
            return Some(code);
        }
        return (lost && one.key.contains("_partyid_value=null") && one.key.contains("addressused=null"))
            .then_some("party-lost");
    };
    if STAMPS.contains(&member) || member == "overriddencreatedon" || member.starts_with("_owning") {
        return Some("server-set");
    }
    // Copied to a row at each write, also where the snapshot has none.
    if member == "exchangerate" {
        return Some("calculated");
    }
    // The service notes when something entered a queue, also where the snapshot has no time.
    if table == "queueitem" && member == "enteredon" {
        return Some("read-only");
    }
    if table == POINTER && places.contains(&(one.key.as_str(), Some(member))) {
        return Some("never");
    }
    if one.key.starts_with("half of ") {
        let own = ["statecode", "statuscode", "_ownerid_value"];
        let named = plan.finds("mirrored", table, None);
        return (named || AUTHORSHIP.contains(&member) || own.contains(&member)).then_some("mirrored");
    }
    // Winning and losing fill in what an opportunity did not have.
    let outcome = ["actualclosedate", "actualvalue"].contains(&member);
    if table == "opportunity" && outcome && one.before.as_deref() == Some("null") {
        return Some("default-set");
    }
    let state = ["statecode", "statuscode"].contains(&member);
    if table == "product" && state && plan.finds("state-from-above", table, Some("statecode")) {
        return Some("state-from-above");
    }
    let stored = ["new_contract", "new_cv", "new_document"].contains(&member);
    if stored && one.before.is_some() && one.after.is_some() {
        return Some("content");
    }
    if plan.finds("by-state", table, None) {
        return Some("by-state");
    }
    // What cannot be written leaves what is there.
    let gone = one.before.as_deref() == Some(RETIRED_CHOICE);
    (gone && plan.finds("choice-gone", table, Some(member))).then_some("choice-gone")
}

impl Site {
    /// Makes a plan; `name` names its file.
    pub(crate) fn plan(&self, name: &str, arguments: &[&str]) -> Plan {
        let path = self.folder.join(format!("{name}.jsonl"));
        let all: Vec<&str> = arguments.iter().copied().chain(["-o", text(&path)]).collect();
        let ended = self.run(&all).expect_code(0);
        Plan { summary: ended.json(), path }
    }

    /// Carries a plan out; deletions are confirmed.
    pub(crate) fn apply(&self, plan: &Plan) -> Applied {
        Applied { end: self.try_apply(plan, true).expect_code(0).json() }
    }

    pub(crate) fn try_apply(&self, plan: &Plan, confirm: bool) -> Finished {
        let mut arguments = vec!["restore", "apply", text(&plan.path)];
        if confirm {
            arguments.push("--confirm-deletes");
        }
        self.run(&arguments)
    }

    /// Plans and carries out what takes a run back.
    pub(crate) fn undo(&self, applied: &Applied) -> (Plan, Applied) {
        let plan = self.plan(&format!("undo-{}", applied.run()), &["restore", "undo", applied.run()]);
        let undone = self.apply(&plan);
        (plan, undone)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}
