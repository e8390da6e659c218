//! A plan that was carried out leaves nothing to do: planning again finds nothing to write.

use std::collections::BTreeMap;

use dynavault_model::{Treatment, WriteKind};
use dynavault_restore::{Action, ConflictPolicy, Op, PlanRequest};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::fakes::{Table, World, id, planned};
use crate::request;

const OWNER: &str = "_ownerid_value";
/// Versions of rows that were written in a test.
const WRITTEN: u32 = 1_000_000;

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

/// Carries out operations as the service would.
fn carry_out(world: &mut World, ops: &[Op]) {
    for (n, op) in ops.iter().enumerate() {
        let set = op.set.as_ref().map(|set| object(set.get())).unwrap_or_default();
        let (table, rows) = world.tables.get_mut(&op.table).unwrap();
        let key = table.schema.key[0].clone();
        let has_state = table.rules.state.is_some();
        match op.action {
            Action::Write(WriteKind::Delete) => {
                assert!(rows.remove(&op.key.id).is_some(), "{} {} is not there", op.table, op.key.id);
                forget(world, &op.key.id);
                continue;
            }
            Action::Write(WriteKind::Create) => {
                let mut row = Map::new();
                row.insert(key, json!(op.key.id));
                if has_state {
                    row.insert("statecode".into(), json!(0));
                    row.insert("statuscode".into(), json!(1));
                }
                assert!(rows.insert(op.key.id.clone(), Value::from(row).to_string()).is_none(), "made twice");
            }
            Action::Write(WriteKind::Update | WriteKind::State) => {}
            other => panic!("{other:?} is not part of these worlds"),
        }
        let mut row = object(rows.get(&op.key.id).unwrap_or_else(|| panic!("{} {} is not there", op.table, op.key.id)));
        let closed = row.get("statecode") == Some(&json!(1));
        assert!(!closed || op.action == Action::Write(WriteKind::State), "a closed row is changed: {op:?}");
        for (member, value) in set {
            // An empty lookup has no annotation.
            if value.is_null() {
                row.retain(|name, _| !name.starts_with(&format!("{member}@")));
            }
            row.insert(member, value);
        }
        row.retain(|name, value| !name.contains('@') || !value.is_null());
        let annotated: Vec<String> = row.keys().filter(|name| name.contains("@Microsoft")).cloned().collect();
        for name in annotated {
            if row[name.split('@').next().unwrap()].is_null() {
                row.remove(&name);
            }
        }
        row.insert("@odata.etag".into(), json!(format!("W/\"{}\"", WRITTEN + n as u32)));
        row.insert("versionnumber".into(), json!(WRITTEN + n as u32));
        let before = rows.insert(op.key.id.clone(), Value::from(row).to_string());
        let after = object(&rows[&op.key.id]);
        if before.is_some_and(|before| object(&before).get(OWNER) != after.get(OWNER))
            && op.action == Action::Write(WriteKind::Update)
        {
            hand_down(world, &op.key.id, &after[OWNER]);
        }
    }
}

/// Gives the rows below a row to its new owner, as the service does.
fn hand_down(world: &mut World, from: &str, owner: &Value) {
    let mut heirs = Vec::new();
    for (table, rows) in world.tables.values_mut() {
        for (key, text) in rows.iter_mut() {
            let mut row = object(text);
            let follows = table
                .rules
                .parents
                .iter()
                .any(|relation| relation.assigns && row.get(&relation.member) == Some(&json!(from)));
            if follows && row.get(OWNER) != Some(owner) {
                row.insert(OWNER.into(), owner.clone());
                *text = Value::from(row).to_string();
                heirs.push(key.clone());
            }
        }
    }
    for heir in heirs {
        hand_down(world, &heir, owner);
    }
}

/// Empties the lookups to a row that is deleted, and removes its links.
fn forget(world: &mut World, gone: &str) {
    for (table, rows) in world.tables.values_mut() {
        let link = matches!(table.rules.treatment, Treatment::Links { .. });
        let key = table.schema.key[0].clone();
        rows.retain(|_, text| {
            let mut row = object(text);
            let named: Vec<String> = row
                .iter()
                .filter(|(name, value)| **name != key && *value == gone)
                .map(|(name, _)| name.clone())
                .collect();
            if link && !named.is_empty() {
                return false;
            }
            for name in named {
                row.retain(|other, _| !other.starts_with(&format!("{name}@")));
                row.insert(name, Value::Null);
            }
            *text = Value::from(row).to_string();
            true
        });
    }
}

/// A row of a random world: table, state, name, lookups.
type Drawn = (usize, i64, u8, Option<u32>, Option<u32>, u8);

fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
    let number = || prop::option::of(0_u32..14);
    prop::collection::vec((0_usize..3, 0_i64..2, 0_u8..3, number(), number(), 0_u8..2), 14)
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn worlds() -> [Table; 5] {
    [
        Table::new("systemuser").treated(Treatment::Reference("elsewhere".into())),
        Table::new("a").text("name", 9).lookup("own", &["a"]).assigned().lookup("other", &["b"]).owner().state(None),
        Table::new("b").text("name", 9).lookup("own", &["b"]).lookup("other", &["a"]).assigned().owner(),
        Table::new("c").text("name", 9).lookup("own", &["c"]).lookup("other", &["a"]).required().state(None),
        Table::links("a_b", ("a", "aid"), ("b", "bid")),
    ]
}

/// A world of the rows whose bit is set; row numbers are the same in all worlds.
fn world(rows: &[Drawn], kinds: &[usize], present: u32, links: &[(u32, u32)]) -> World {
    let tables = worlds();
    let mut world = World::new(&tables.iter().collect::<Vec<_>>());
    world.put("systemuser", 900, json!({}));
    world.put("systemuser", 901, json!({}));
    let drawn = |n: u32, kind: usize| kinds.get(n as usize) == Some(&kind) && present & (1 << n) != 0;
    // A row cannot be without what it requires.
    let there =
        |n: u32, kind: usize| drawn(n, kind) && (kind != 2 || rows[n as usize].4.is_some_and(|other| drawn(other, 0)));
    for (n, (_, state, name, own, other, owner)) in rows.iter().enumerate() {
        let (n, kind) = (n as u32, kinds[n]);
        if !there(n, kind) {
            continue;
        }
        let other_kind = [1, 0, 0][kind];
        let name = [Some("x"), Some("y"), None][usize::from(*name)];
        let mut values = json!({"name": name, "versionnumber": n});
        if kind != 2 {
            values["_ownerid_value"] = json!(format!("systemuser:{}", 900 + u32::from(*owner)));
        }
        if kind != 1 {
            values["statecode"] = json!(state);
            values["statuscode"] = json!(if *state == 0 { 1 } else { 3 });
        }
        // Hierarchies have no circles: the service refuses them.
        if let Some(own) = own.filter(|own| there(*own, kind) && (kind != 0 || *own < n)) {
            values["_own_value"] = json!(format!("{}:{own}", NAMES[kind]));
        }
        if let Some(other) = other.filter(|other| there(*other, other_kind)) {
            values["_other_value"] = json!(format!("{}:{other}", NAMES[other_kind]));
        }
        world.put(NAMES[kind], n, values);
    }
    for (a, b) in links {
        let there = |table: &str, n: u32| world.tables[table].1.contains_key(&id(n));
        if there("a", *a) && there("b", *b) {
            world.put("a_b", 100 + a * 14 + b, json!({"aid": id(*a), "bid": id(*b)}));
        }
    }
    world
}

fn copy(world: &World) -> World {
    let tables = worlds();
    let mut copy = World::new(&tables.iter().collect::<Vec<_>>());
    copy.tables.clone_from(&world.tables);
    copy
}

/// Rows as they are compared: without versions and times, and without what is empty.
fn content(world: &World) -> BTreeMap<String, Vec<Value>> {
    let strip = |text: &String| {
        let mut row = object(text);
        row.retain(|name, value| !name.starts_with('@') && name != "versionnumber" && !value.is_null());
        Value::from(row)
    };
    world.tables.iter().map(|(name, (_, rows))| (name.clone(), rows.values().map(strip).collect())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_was_carried_out_needs_nothing_more_and_a_mirror_is_the_snapshot(
        was in drawn(),
        is in drawn(),
        (here, there) in (0_u32..1 << 14, 0_u32..1 << 14),
        links in prop::collection::vec((0_u32..14, 0_u32..14), 0..6),
        (mirror, overwrite) in (any::<bool>(), any::<bool>()),
    ) {
        let kinds: Vec<usize> = was.iter().map(|row| row.0).collect();
        let (half, rest) = links.split_at(links.len() / 2);
        let before = world(&was, &kinds, here, &[half, rest].concat());
        let mut now = world(&is, &kinds, there, &[rest, half].concat());
        let conflict = if overwrite || mirror { ConflictPolicy::Overwrite } else { ConflictPolicy::FillEmpty };
        let plan = || PlanRequest { mirror, ..request(conflict) };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let first = runtime.block_on(planned(&before, &[], copy(&now), plan())).unwrap();
        carry_out(&mut now, &first.ops);
        let second = runtime.block_on(planned(&before, &[], copy(&now), plan())).unwrap();
        prop_assert!(second.ops.is_empty(), "{:?}\nafter {:?}", second.short(), first.short());
        if mirror {
            let kept = ["still-referenced", "cascade-outside"].iter().any(|code| first.codes().contains_key(*code));
            if !kept {
                prop_assert_eq!(content(&now), content(&before));
            }
        }
    }
}
