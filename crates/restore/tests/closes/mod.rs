//! Plans of close activities: what closing a row leaves behind.

use dynavault_model::Birth;
use dynavault_restore::{ConflictPolicy, PlanRequest, Step};
use serde_json::{Value, json};

use crate::fakes::{Planned, Table, World, id, planned};
use crate::{fill, request};

/// Cases, what closed them, and notes about that.
fn tables() -> [Table; 3] {
    [
        Table::new("incident")
            .text("title", 9)
            .lookup("parentid", &["incident"])
            .state(Some(("resolution", "_incidentid_value"))),
        Table::new("resolution").text("subject", 9).lookup("incidentid", &["incident"]).created_on(),
        Table::new("note").lookup("objectid", &["resolution"]),
    ]
}

fn world() -> World {
    let tables = tables();
    let mut world = World::new(&tables.iter().collect::<Vec<_>>());
    world.birth = Box::new(|rules, _| match rules.table.as_str() {
        "resolution" => Birth::ByState("_incidentid_value".into()),
        _ => Birth::Written,
    });
    world
}

fn closed(title: &str) -> Value {
    json!({"title": title, "statecode": 1, "statuscode": 5})
}

fn resolution(day: u32, subject: &str, of: u32) -> Value {
    json!({"subject": subject, "createdon": format!("2024-01-{day:02}T00:00:00Z"), "_incidentid_value": format!("incident:{of}")})
}

/// Operations on resolutions, and which of the states of cases carry one.
fn in_short(plan: &Planned) -> (Vec<String>, Vec<Option<bool>>) {
    let made = plan.short().into_iter().filter(|op| op.contains(" resolution "));
    let made = made.map(|op| op.split(" {").next().unwrap_or_default().to_string()).collect();
    let states = plan.ops.iter().filter(|op| op.table == "incident" && op.step == Step::State);
    (made, states.map(|op| Some(op.close.is_some())).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_row_is_closed_with_its_newest_closing_activity_and_earlier_ones_are_made() {
    let mut before = world();
    before.put("incident", 1, closed("T"));
    before.put("resolution", 2, resolution(2, "new", 1));
    before.put("resolution", 3, resolution(1, "old", 1));
    let plan = planned(&before, &[], world(), fill()).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"rows 0 incident create 1 {"title":"T"}"#,
            r#"rows 1 resolution create 3 {"subject":"old","overriddencreatedon":"2024-01-01T00:00:00Z","_incidentid_value":"001","_incidentid_value@":"incident"}"#,
            r#"state 1 incident state 1 {"statecode":1,"statuscode":5}"#,
        ]
    );
    let close = plan.ops[2].close.as_ref().unwrap().get();
    assert!(close.contains(r#""subject":"new""#) && close.contains(&id(2)), "{close}");
    assert_eq!((plan.codes()["by-state"], plan.summary.counts.impossible), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_activity_that_was_deleted_alone_is_made_while_its_row_stays_closed() {
    let (mut before, mut now) = (world(), world());
    for world in [&mut before, &mut now] {
        world.put("incident", 1, closed("T"));
        // This one was opened again after it had been closed.
        world.put("incident", 4, json!({"title": "T", "statecode": 0, "statuscode": 1}));
    }
    before.put("resolution", 2, resolution(1, "S", 1));
    before.put("resolution", 5, resolution(1, "S", 4));
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    assert_eq!(
        in_short(&plan),
        (vec!["rows 0 resolution create 2".into(), "rows 0 resolution create 5".into()], vec![])
    );
    assert_eq!((plan.ops.len(), plan.summary.counts.impossible), (2, 0));
    assert!(!plan.codes().contains_key("by-state"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_closed_again_brings_its_close_activity_back() {
    let (mut before, mut now) = (world(), world());
    before.put("incident", 1, closed("old"));
    before.put("incident", 2, closed("T"));
    before.put("resolution", 11, resolution(1, "S", 1));
    before.put("resolution", 12, resolution(1, "S", 2));
    // The first is closed and has another title, the second was opened.
    now.put("incident", 1, closed("new"));
    now.put("incident", 2, json!({"title": "T", "statecode": 0, "statuscode": 1}));
    let plan = planned(&before, &[], now, request(ConflictPolicy::Overwrite)).await.unwrap();
    assert_eq!(in_short(&plan), (vec![], vec![Some(true), Some(true)]));
    assert_eq!(plan.codes()["by-state"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_activity_that_others_refer_to_is_made_before_them() {
    let mut before = world();
    before.put("incident", 1, closed("T"));
    before.put("resolution", 2, resolution(1, "S", 1));
    before.put("note", 3, json!({"_objectid_value": "resolution:2"}));
    let plan = planned(&before, &[], world(), fill()).await.unwrap();
    assert_eq!(in_short(&plan), (vec!["rows 1 resolution create 2".into()], vec![Some(false)]));
    let note = plan.short().into_iter().find(|op| op.contains(" note ")).unwrap();
    assert!(note.starts_with("rows 2 note create 3") && note.contains("_objectid_value"), "{note}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_deletes_close_activities_that_were_added() {
    let (mut before, mut now) = (world(), world());
    before.put("incident", 1, json!({"title": "T", "statecode": 0, "statuscode": 1}));
    before.put("incident", 2, closed("T"));
    before.put("resolution", 12, resolution(1, "S", 2));
    // The first was closed since, the second was opened and closed once more, the third is new.
    for n in [1, 2, 3] {
        now.put("incident", n, closed("T"));
        now.put("resolution", 20 + n, resolution(9, "since", n));
    }
    now.put("resolution", 12, resolution(1, "S", 2));
    let mirror = PlanRequest { mirror: true, ..request(ConflictPolicy::Overwrite) };
    let plan = planned(&before, &[], now, mirror).await.unwrap();
    let short: Vec<String> =
        plan.short().iter().map(|op| op.split(" {").next().unwrap_or_default().to_string()).collect();
    assert_eq!(
        short,
        [
            "state 0 incident state 1",
            "deletes 1 resolution delete 21 ",
            "deletes 1 resolution delete 22 ",
            "deletes 1 resolution delete 23 ",
            "deletes 2 incident delete 3 ",
        ]
    );
    assert!(!plan.codes().contains_key("not-deleted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closing_activity_comes_back_from_the_bin_and_is_not_made_twice() {
    let case = Table::new("incident").text("title", 9).state(Some(("resolution", "_incidentid_value")));
    let close = Table::new("resolution").text("subject", 9).lookup("incidentid", &["incident"]);
    let all = [&case, &close];
    let mut before = World::new(&all);
    for n in [1, 2, 3] {
        before.put("incident", n, json!({"title": "T", "statecode": 1, "statuscode": 5}));
        before.put("resolution", 10 + n, json!({"subject": "S", "_incidentid_value": format!("incident:{n}")}));
    }
    let mut now = World::new(&all);
    now.birth = Box::new(|rules, _| match rules.table.as_str() {
        "resolution" => Birth::ByState("_incidentid_value".into()),
        _ => Birth::Written,
    });
    // The first case is there, the second in the bin, the third gone; all their resolutions are in the bin.
    now.put("incident", 1, json!({"title": "T", "statecode": 1, "statuscode": 5}));
    now.abilities.recycle_bin = vec!["incident".into(), "resolution".into()];
    now.bin.extend([2, 11, 12, 13].map(id));
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    let back: Vec<&str> = plan.ops.iter().filter(|op| op.table == "resolution").map(|op| &op.key.id[24..]).collect();
    assert_eq!(back, [&id(11)[24..], &id(12)[24..]]);
    let closed: Vec<(String, bool)> =
        plan.ops.iter().filter(|op| op.step == Step::State).map(|op| (op.key.id.clone(), op.close.is_some())).collect();
    assert_eq!(closed, [(id(2), false), (id(3), true)]);
    assert_eq!(plan.codes()["by-state"], 1);
}
