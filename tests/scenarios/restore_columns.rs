//! Parts of an environment put back: one record with what belongs to it, blanked columns beside what people did since,
//! everything over later edits; and taken back again.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::{Site, World};
use crate::restore_whole::expect_reasons;
use crate::restored::{Applied, Differing, Plan, State, besides_stamps, is_file_id, reasons, shown};

/// A row and one of its columns.
type Cell = (String, String);

const ROWS: u64 = 1_000;
/// Lookups that relate a row to nothing: who made it, owns it, and in which currency its amounts are.
const NO_RELATION: [&str; 10] = [
    "_createdby_value",
    "_createdonbehalfby_value",
    "_modifiedby_value",
    "_modifiedonbehalfby_value",
    "_ownerid_value",
    "_owningbusinessunit_value",
    "_owninguser_value",
    "_owningteam_value",
    "_transactioncurrencyid_value",
    "_organizationid_value",
];
/// Columns of accounts that a bad import empties.
const BLANKED: [&str; 3] = ["telephone1", "emailaddress1", "description"];

/// The ids a row refers to.
fn named<'a>(state: &State, table: &str, members: &'a BTreeMap<String, String>) -> Vec<&'a str> {
    let link = state.links.contains(table);
    let own = format!("{table}id");
    let refers = |name: &str| {
        (name.starts_with('_') && name.ends_with("_value") && !NO_RELATION.contains(&name))
            || (link && name != own && name != "versionnumber")
    };
    let values = members.iter().filter(|(name, value)| refers(name) && *value != "null");
    values.map(|(_, value)| value.trim_matches('"')).collect()
}

/// A row and what refers to it, level by level: keys by table.
fn closure(state: &State, table: &str, id: &str, levels: u32) -> BTreeSet<(String, String)> {
    let mut set = BTreeSet::from([(table.to_string(), id.to_string())]);
    for _ in 0..levels {
        let ids: BTreeSet<String> = set.iter().map(|(_, key)| key.clone()).collect();
        for (table, rows) in &state.tables {
            let below =
                rows.iter().filter(|(_, members)| named(state, table, members).iter().any(|id| ids.contains(*id)));
            set.extend(below.map(|(key, _)| (table.clone(), key.clone())));
        }
    }
    set
}

/// Deletes the account that takes most along; gives its id.
fn delete_an_account(world: &World, before: &State) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (table, rows) in &before.tables {
        for id in rows.values().flat_map(|members| named(before, table, members)) {
            *counts.entry(id).or_default() += 1;
        }
    }
    let mut accounts: Vec<&String> = before.tables["account"].keys().collect();
    accounts.sort_by_key(|id| std::cmp::Reverse(counts.get(id.as_str()).copied().unwrap_or_default()));
    let gone = |id: &&&String| {
        let done = world.simulator.delete_rows("account", &[id.as_str()]);
        let (deleted, updated) =
            done.tables.values().fold((0, 0), |sum, one| (sum.0 + one.deleted, sum.1 + one.updated));
        deleted > 5 && updated > 0
    };
    // Others keep some accounts from being deleted.
    (*accounts.iter().find(gone).expect("an account that goes with others")).clone()
}

#[test]
fn one_deleted_account_comes_back_with_its_closure_and_nothing_else_changes() {
    let world = World::of_rows(311, ROWS);
    let site = world.simple_site();
    // Everybody can own rows, so that nothing is refused.
    let users = State::of(&world.simulator);
    for (id, _) in users.tables["systemuser"].iter().filter(|(_, user)| user["isdisabled"] == "true") {
        world.simulator.edit_row("systemuser", id, "isdisabled", "false").expect("an administrator may enable users");
    }
    let before = State::of(&world.simulator);
    site.backup();
    // Deletes others as well until one fits: what is compared below is the one.
    let id = delete_an_account(&world, &before);
    let damaged = State::of(&world.simulator);
    let mut related = closure(&before, "account", &id, 2);
    // Addresses come with their account or contact (dataverse 8.1).
    let parents: BTreeSet<String> = related.iter().map(|(_, key)| format!("\"{key}\"")).collect();
    let addresses =
        before.tables["customeraddress"].iter().filter(|(_, row)| parents.contains(&row["_parentid_value"]));
    related.extend(addresses.map(|(key, _)| ("customeraddress".to_string(), key.clone())));
    let plan = site.plan("one", &["restore", "--table", "account", "--id", &id, "--related", "down:2"]);
    assert_eq!((plan.count("delete"), plan.count("conflicts")), (0, 0));
    world.simulator.reset_stats();
    let applied = site.apply(&plan);
    let stats = world.simulator.stats();
    applied.expect_clean();
    assert_eq!(stats.write_requests, plan.requests(), "requests that write: {:?}", stats.by_kind);
    assert_eq!(stats.plugins_run + stats.flows_started, 0, "custom logic");
    let after = State::of(&world.simulator);

    // Outside of the closure nothing moved, not even a stamp. Addresses and the list of activities follow their rows.
    let (meant_before, meant_damaged, meant_after) = (before.by_meaning(), damaged.by_meaning(), after.by_meaning());
    for one in after.since(&damaged) {
        let inside = related.contains(&(one.table.clone(), one.key.clone()));
        let renamed = one.table == "activityparty" || one.table == "connection" || after.links.contains(&one.table);
        assert!(inside || renamed, "{}", shown(&[one]));
    }
    let new = meant_after.since(&meant_damaged);
    let back = new.iter().filter(|one| one.member.is_none() && one.before.is_none()).count();
    assert!(back > 5, "{back} rows came back");
    // Inside of it everything is as it was.
    let still: Vec<Differing> = meant_after
        .since(&meant_before)
        .into_iter()
        .filter(|one| related.contains(&(one.table.clone(), one.key.clone())))
        .collect();
    assert!(still.iter().all(|one| one.member.is_some()), "{}", shown(&still));
    expect_reasons(&reasons(&still, &plan, &applied));
    // Lookups that the deletion had emptied name the account again.
    let emptied: Vec<Differing> = damaged
        .since(&before)
        .into_iter()
        .filter(|one| one.before.as_deref() == Some(&format!("\"{id}\"")) && one.after.as_deref() == Some("null"))
        .collect();
    assert!(!emptied.is_empty());
    for one in emptied {
        let member = one.member.as_deref().expect("a member");
        assert_eq!(after.value(&one.table, &one.key, member), one.before.as_deref(), "{} {}", one.table, one.key);
    }
}

/// An environment in which a bad import emptied columns and people went on working.
struct Blanked {
    world: World,
    site: Site,
    captured: State,
    now: State,
}

impl Blanked {
    fn new(seed: u64) -> Self {
        let world = World::of_rows(seed, ROWS);
        let site = world.simple_site();
        let captured = State::of(&world.simulator);
        site.backup();
        let simulator = &world.simulator;
        assert!(simulator.blank("account", &BLANKED, 0.6, seed).values > 50);
        // Some of the emptied values were entered anew, and other columns were changed, of these rows and of others.
        for (number, id) in captured.tables["account"].keys().enumerate() {
            let edit = |column: &str, text: &str| {
                let json = format!("\"{text} {number}\"");
                simulator
                    .edit_row("account", id, column, &json)
                    .unwrap_or_else(|refusal| panic!("{column}: {refusal}"));
            };
            match number % 5 {
                0 => edit("telephone1", "entered anew"),
                1 => edit("name", "renamed"),
                2 => {
                    edit("fax", "another fax");
                    edit("description", "described anew");
                }
                _ => {}
            }
        }
        let now = State::of(simulator);
        Self { world, site, captured, now }
    }

    /// Members of accounts that differ from the snapshot: emptied ones, and others.
    fn damage(&self) -> (BTreeSet<Cell>, BTreeMap<Cell, (String, String)>) {
        let mut emptied = BTreeSet::new();
        let mut edited = BTreeMap::new();
        for one in besides_stamps(self.now.since(&self.captured)).into_iter().filter(|one| one.table == "account") {
            let member = one.member.expect("no account was made or deleted");
            if one.after.as_deref() == Some("null") {
                emptied.insert((one.key, member));
            } else {
                edited.insert((one.key, member), (one.before.expect("a value"), one.after.expect("a value")));
            }
        }
        (emptied, edited)
    }

    /// Carries a plan out, checks what it changed, and takes it back.
    fn expect(&self, name: &str, arguments: &[&str], filled: impl Fn(&str, &str) -> bool) -> Plan {
        let mut all = vec!["restore", "--table", "account"];
        all.extend(arguments);
        let start = State::of(&self.world.simulator);
        let plan = self.site.plan(name, &all);
        let applied = self.site.apply(&plan);
        applied.expect_clean();
        let after = State::of(&self.world.simulator);
        let mut touched = BTreeSet::new();
        let mut changed = BTreeSet::new();
        for one in besides_stamps(after.since(&self.now)) {
            let member = one.member.clone().expect("no row comes or goes");
            assert_eq!(
                (one.table.as_str(), filled(&one.key, &member)),
                ("account", true),
                "{}",
                shown(std::slice::from_ref(&one))
            );
            assert_eq!(
                one.after.as_ref(),
                self.captured.tables["account"][&one.key].get(&member),
                "{}",
                shown(std::slice::from_ref(&one))
            );
            touched.insert(one.key.clone());
            changed.insert((one.key, member));
        }
        let wanted: BTreeSet<(String, String)> = besides_stamps(self.captured.since(&self.now))
            .into_iter()
            .filter_map(|one| Some((one.table, one.key, one.member?)))
            .filter(|(table, key, member)| table == "account" && filled(key, member))
            .map(|(_, key, member)| (key, member))
            .collect();
        assert_eq!(changed, wanted, "{name}: values put back");
        // Rows that needed nothing were not even touched.
        for one in after.since(&start) {
            assert!(touched.contains(&one.key), "{name}: {}", shown(std::slice::from_ref(&one)));
        }
        assert_eq!(plan.count("update"), touched.len() as u64, "{name}: rows changed");
        let (_, undone) = self.site.undo(&applied);
        undone.expect_clean();
        let left = besides_stamps(State::of(&self.world.simulator).since(&self.now));
        assert!(left.is_empty(), "{name}: after the undo\n{}", shown(&left));
        plan
    }

    /// The plan's list of conflicts.
    fn conflicts(plan: &Plan) -> BTreeMap<(String, String), (String, String)> {
        let text = |value: &serde_json::Value| value.to_string();
        plan.lines("conflict")
            .iter()
            .map(|one| {
                assert_eq!(one["table"], "account");
                let name = |member: &str| one[member].as_str().expect("text").to_string();
                ((name("id"), name("column")), (text(&one["snapshot"]), text(&one["live"])))
            })
            .collect()
    }
}

#[test]
fn blanked_columns_are_filled_and_what_people_did_since_stays() {
    let scene = Blanked::new(321);
    let (emptied, edited) = scene.damage();
    let is_emptied = |key: &str, member: &str| emptied.contains(&(key.to_string(), member.to_string()));
    assert!(emptied.len() > 20 && edited.len() > 20, "{} and {}", emptied.len(), edited.len());

    let plan = scene.expect("default", &[], is_emptied);
    assert_eq!(Blanked::conflicts(&plan), edited, "the list shows both values");
    let plan = scene.expect("columns", &["--columns", "telephone1"], |key, member| {
        member == "telephone1" && is_emptied(key, member)
    });
    let shown: BTreeSet<String> = Blanked::conflicts(&plan).into_keys().map(|(_, member)| member).collect();
    assert_eq!(shown, BTreeSet::from(["telephone1".to_string()]), "other columns are not asked for");
    let plan = scene.expect("overwrite", &["--conflict", "overwrite"], |_, _| true);
    assert_eq!(plan.count("conflicts"), 0);
    // People worked later than the backup, row by row.
    let plan = scene.expect("newer", &["--conflict", "newer-wins"], |_, _| false);
    assert_eq!(Blanked::conflicts(&plan).len(), emptied.len() + edited.len());
    let plan = scene.expect("skip", &["--conflict", "skip"], |_, _| false);
    assert_eq!(Blanked::conflicts(&plan).len(), emptied.len() + edited.len());

    let path = scene.site.folder.join("none.jsonl");
    let file = path.to_str().expect("text");
    let ended = scene.site.run(&["restore", "--table", "account", "--conflict", "fail", "-o", file]).expect_code(2);
    assert!(!path.exists() && ended.stderr.contains("conflict"), "{}", ended.stderr);
    // Nothing is in the way of columns that only lost values.
    let fax: BTreeSet<&String> = edited.keys().map(|(_, member)| member).collect();
    assert!(!fax.contains(&"emailaddress1".to_string()));
    scene.expect("fail", &["--conflict", "fail", "--columns", "emailaddress1"], |key, member| {
        member == "emailaddress1" && is_emptied(key, member)
    });
}

/// Takes a restore back and expects the environment as it was before it, but for what the undo itself names.
fn expect_undone(world: &World, site: &Site, applied: &Applied, was: &State) {
    let (plan, undone) = site.undo(applied);
    undone.expect_clean();
    let now = State::of(&world.simulator);
    let left = besides_stamps(now.by_meaning().since(&was.by_meaning()));
    // A file that is put back is a new file with the old bytes.
    let left: Vec<Differing> = left.into_iter().filter(|one| !is_file_id(one)).collect();
    expect_reasons(&reasons(&left, &plan, &undone));
    assert_eq!(now.files, was.files, "files after the undo");
}

#[test]
fn restored_rows_are_taken_back() {
    let world = World::of_rows(331, ROWS);
    let site = world.simple_site();
    let captured = State::of(&world.simulator);
    site.backup();
    for table in ["task", "email", "new_widget", "annotation", "account"] {
        let ids: Vec<&str> = captured.tables[table].keys().map(String::as_str).take(30).collect();
        assert!(!world.simulator.delete_rows(table, &ids).tables.is_empty(), "{table}");
    }
    let damaged = State::of(&world.simulator);
    let plan = site.plan("deleted", &["restore", "--deleted-only"]);
    assert!(plan.count("create") > 50 && plan.count("link") > 0, "{:#}", plan.summary["counts"]);
    let applied = site.apply(&plan);
    applied.expect_clean();
    let made = State::of(&world.simulator).since(&damaged);
    assert!(made.iter().any(|one| one.before.is_none()));
    expect_undone(&world, &site, &applied, &damaged);
}

/// Reasons without what is given once, when a row is made, or follows from another row, and cannot be put back afterwards.
fn besides_once(mut found: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    let once = |column: &str| {
        column.ends_with(" importsequencenumber") || column.ends_with("_addressid") || column == "connection name"
    };
    if let Some(columns) = found.get_mut("read-only") {
        columns.retain(|column| !once(column));
    }
    // What may have been hidden from the backup stays as it is.
    let hidden = found.remove("secured").unwrap_or_default();
    assert!(hidden.iter().all(|column| column == "account new_taxid"), "{hidden:?}");
    // Addresses come and go with their account, and one half of a connection with the other.
    for (code, tables) in
        [("with-parent", &["customeraddress"][..]), ("not-deleted", &["customeraddress", "connection"])]
    {
        let rows = found.remove(code).unwrap_or_default();
        assert!(rows.iter().all(|row| tables.contains(&row.trim_end())), "{code}: {rows:?}");
    }
    found
}

/// Environments in which people edited, added and deleted everywhere since the backup.
const EDITED: [u64; 8] = [340, 341, 345, 346, 359, 363, 364, 370];

#[test]
fn a_mirror_is_the_snapshot_again_after_any_edits() {
    for seed in EDITED {
        let world = World::of_rows(seed, ROWS);
        let site = world.simple_site();
        let captured = State::of(&world.simulator);
        site.backup();
        let edits = world.simulator.edit(seed, 400);
        let plan = site.plan("mirror", &["restore", "--conflict", "overwrite", "--mirror"]);
        assert!(
            plan.count("delete") > 0 && plan.count("update") > 0 && plan.count("create") > 0,
            "{:#}",
            plan.summary["counts"]
        );
        let requests = world.simulator.stats().requests;
        let refused = site.try_apply(&plan, false).expect_code(2);
        assert!(refused.stderr.contains("--confirm-deletes"), "{}", refused.stderr);
        assert_eq!(world.simulator.stats().requests, requests, "nothing was asked of the service");
        let applied = site.apply(&plan);
        applied.expect_clean();
        let after = State::of(&world.simulator);
        let mut found = after.by_meaning().since(&captured.by_meaning());
        // A row that somebody deleted and made again is there: it keeps the time at which it was made, and a connection its other
        // half.
        let again = |one: &Differing| edits.recreated.iter().any(|id| one.key.contains(id.as_str()));
        found.retain(|one| {
            !again(one) || (one.member.as_deref() != Some("createdon") && !one.key.starts_with("half of "))
        });
        expect_reasons(&besides_once(reasons(&found, &plan, &applied)));
        after.expect_files_of(&captured, &plan);
    }
}

#[test]
fn a_mirror_can_be_taken_back() {
    let world = World::of_rows(341, ROWS);
    let site = world.simple_site();
    site.backup();
    world.simulator.edit(341, 400);
    let edited = State::of(&world.simulator);
    let applied = site.apply(&site.plan("mirror", &["restore", "--conflict", "overwrite", "--mirror"]));
    applied.expect_clean();
    expect_undone(&world, &site, &applied, &edited);
}
