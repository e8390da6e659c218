//! Plans of rows that have rules of their own: closed ones, activities, families, partitioned ones, rows of other people.

use dynavault_model::{Ability, Guard, Treatment};
use dynavault_restore::{ConflictPolicy, PlanRequest, Selection, Step};
use serde_json::json;

use crate::fakes::{Table, World, id, planned};
use crate::{fill, request, tables};

fn user() -> Table {
    Table::new("systemuser").treated(Treatment::Reference("users come from elsewhere".into()))
}

fn email() -> Table {
    Table::new("email").text("subject", 20).state(None).activity()
}

fn party() -> Table {
    Table::new("activityparty")
        .lookup("activityid", &["activitypointer"])
        .lookup("partyid", &["contact"])
        .choice("participationtypemask", &[1, 2, 3, 8, 9])
        .text("addressused", 50)
        .treated(Treatment::Along { parent: "_activityid_value".into() })
}

fn member(activity: u32, contact: Option<u32>, mask: u32, address: &str) -> serde_json::Value {
    json!({"_activityid_value": format!("activitypointer:{activity}"),
        "_partyid_value": contact.map(|contact| format!("contact:{contact}")),
        "participationtypemask": mask, "addressused": address})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_made_on_behalf_of_those_who_made_them() {
    let (user, account) = (user(), Table::new("account").text("name", 9).created_by());
    let mut before = World::new(&[&user, &account]);
    for (n, creator) in [(1, 900), (2, 901), (3, 902), (4, 903), (5, 900), (6, 0)] {
        before.put("account", n, json!({"name": "A", "_createdby_value": format!("systemuser:{creator}")}));
    }
    before.put("account", 7, json!({"name": "by nobody", "_createdby_value": null}));
    let now = || {
        let mut now = World::new(&[&user, &account]);
        // Our own user is number 0.
        for n in [0, 900, 901] {
            now.put("systemuser", n, json!({"isdisabled": false}));
        }
        now.put("systemuser", 902, json!({"isdisabled": true}));
        now
    };
    let request = PlanRequest { as_creator: true, ..fill() };
    let plan = planned(&before, &[], now(), request.clone()).await.unwrap();
    let made: Vec<(String, Option<String>)> =
        plan.ops.iter().map(|op| (op.key.id.clone(), op.on_behalf.clone())).collect();
    let expected = [(3, None), (4, None), (6, None), (7, None), (1, Some(900)), (5, Some(900)), (2, Some(901))];
    assert_eq!(made, expected.map(|(n, creator)| (id(n), creator.map(id))));
    // One request for each caller.
    assert_eq!(plan.summary.requests, 3);
    let lost: Vec<_> = plan.summary.findings.iter().filter(|finding| finding.code == "creator-lost").collect();
    assert_eq!((lost.len(), lost[0].rows, lost[0].table.as_deref()), (1, 2, Some("account")));

    let mut without = now();
    without.abilities.on_behalf = Ability::Missing("prvActOnBehalfOfAnotherUser".into());
    let plan = planned(&before, &[], without, request).await.unwrap();
    assert!(plan.ops.iter().all(|op| op.on_behalf.is_none()));
    assert!(plan.finding("creator-lost").contains("prvActOnBehalfOfAnotherUser"));
    let plan = planned(&before, &[], now(), fill()).await.unwrap();
    assert!(plan.ops.iter().all(|op| op.on_behalf.is_none()) && !plan.codes().contains_key("creator-lost"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_activity_is_opened_for_its_parties_and_closed_again() {
    let (email, contact, party) = (email(), Table::new("contact"), party());
    let all = [&email, &contact, &party];
    let mut before = World::new(&all);
    before.put("contact", 5, json!({}));
    before.put("email", 1, json!({"subject": "S", "statecode": 1, "statuscode": 3, "versionnumber": 1}));
    before.put("activityparty", 10, member(1, Some(5), 1, "a@x"));
    let mut now = World::new(&all);
    now.put("contact", 5, json!({}));
    now.put("contact", 6, json!({}));
    now.put("email", 1, json!({"subject": "S", "statecode": 1, "statuscode": 3, "versionnumber": 2}));
    now.put("activityparty", 10, member(1, Some(6), 1, "b@x"));
    let plan = planned(&before, &[], now, request(ConflictPolicy::Overwrite)).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"reopen 0 email state 1 {"statecode":0,"statuscode":1}"#,
            "parties 0 email parties 1 ",
            r#"state 0 email state 1 {"statecode":1,"statuscode":3}"#,
        ]
    );
    assert_eq!(plan.ops[0].guard, Guard::Unchanged("W/\"1\"".into()));
    assert!(!plan.ops[0].follows && plan.ops[1].follows && plan.ops[2].follows);
    assert_eq!(plan.ops[2].from.as_ref().unwrap().get(), r#"{"statecode":0,"statuscode":1}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_row_is_opened_for_its_files_and_an_open_one_is_not_touched() {
    let case = Table::new("incident").text("title", 9).file("scan").state(None);
    let mut before = World::new(&[&case]);
    let mut now = World::new(&[&case]);
    for (n, state, status) in [(1, 1, 3), (2, 0, 1)] {
        let row = |scan: Option<&str>| json!({"scan": scan, "statecode": state, "statuscode": status});
        before.put("incident", n, row(Some("v")));
        now.put("incident", n, row(None));
    }
    // This one was open, and is closed now: it is opened once, and stays so.
    before.put("incident", 3, json!({"scan": "v", "statecode": 0, "statuscode": 1}));
    now.put("incident", 3, json!({"scan": null, "statecode": 1, "statuscode": 3}));
    let content = [1, 2, 3].map(|n| ("incident", n, "scan"));
    let plan = planned(&before, &content, now, request(ConflictPolicy::Overwrite)).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"reopen 0 incident state 3 {"statecode":0,"statuscode":1}"#,
            r#"reopen 0 incident state 1 {"statecode":0,"statuscode":1}"#,
            "content 0 incident upload 1 ",
            "content 0 incident upload 2 ",
            "content 0 incident upload 3 ",
            r#"state 0 incident state 1 {"statecode":1,"statuscode":3}"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attachments_open_the_closed_activity_they_belong_to() {
    let (email, account) = (email(), Table::new("account").state(None));
    let attachment = Table::new("attachment").body("body").text("name", 9).lookup("objectid", &["email", "account"]);
    let all = [&email, &account, &attachment];
    let closed = || json!({"subject": "S", "statecode": 1, "statuscode": 3});
    let mut before = World::new(&all);
    let mut now = World::new(&all);
    for world in [&mut before, &mut now] {
        world.put("email", 1, closed());
        world.put("email", 2, json!({"subject": "S", "statecode": 0, "statuscode": 1}));
        world.put("account", 3, json!({"statecode": 1, "statuscode": 3}));
    }
    for (n, above) in [(11, "email:1"), (12, "email:2"), (13, "account:3"), (14, "email:1")] {
        before.put("attachment", n, json!({"name": "n", "_objectid_value": above}));
    }
    now.put("attachment", 14, json!({"name": "n", "_objectid_value": "email:1"}));
    let opened = [
        r#"reopen 0 email state 1 {"statecode":0,"statuscode":1}"#,
        r#"state 0 email state 1 {"statecode":1,"statuscode":3}"#,
    ];
    // Whether or not the activity is part of the plan.
    for selection in [Selection::default(), tables(&["attachment"])] {
        let mut live = World::new(&all);
        live.tables.clone_from(&now.tables);
        let plan = planned(&before, &[], live, PlanRequest { selection, ..fill() }).await.unwrap();
        let states: Vec<String> =
            plan.short().into_iter().filter(|op| op.contains(" email ") || op.contains(" account state")).collect();
        assert_eq!(states, opened);
        assert_eq!(plan.summary.counts.create, 3);
        let last = plan.ops.last().unwrap();
        assert!(last.step == Step::State && last.follows, "{:?}", plan.short());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_comes_back_closed_is_opened_for_the_lookups_that_wait() {
    let case = Table::new("incident").text("title", 9).lookup("parentid", &["incident"]).state(None);
    let mut before = World::new(&[&case]);
    before.put("incident", 1, json!({"title": "T", "_parentid_value": "incident:2", "statecode": 1, "statuscode": 3}));
    before.put("incident", 2, json!({"title": "T", "statecode": 1, "statuscode": 3}));
    let mut now = World::new(&[&case]);
    now.abilities.recycle_bin = vec!["incident".into()];
    now.bin.extend([id(1), id(2)]);
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"rows 0 incident undelete 1 {"title":"T"}"#,
            r#"rows 0 incident undelete 2 {"title":"T"}"#,
            r#"lookups 0 incident state 1 {"statecode":0,"statuscode":1}"#,
            r#"lookups 1 incident update 1 {"_parentid_value":"002","_parentid_value@":"incident"}"#,
            r#"state 0 incident state 1 {"statecode":1,"statuscode":3}"#,
            r#"state 0 incident state 2 {"statecode":1,"statuscode":3}"#,
        ]
    );
    assert_eq!(plan.ops[2].from.as_ref().unwrap().get(), r#"{"statecode":1,"statuscode":3}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_party_in_a_role_that_is_gone_is_left_out() {
    let (email, contact, party) = (email(), Table::new("contact"), party());
    let all = [&email, &contact, &party];
    let mut before = World::new(&all);
    before.put("email", 1, json!({"subject": "S"}));
    before.put("email", 2, json!({"subject": "S", "versionnumber": 1}));
    before.put("contact", 5, json!({}));
    for (at, activity) in [(10, 1), (20, 2)] {
        before.put("activityparty", at, member(activity, Some(5), 1, "a@x"));
        before.put("activityparty", at + 1, member(activity, Some(5), 12, "retired@x"));
    }
    let mut now = World::new(&all);
    now.put("contact", 5, json!({}));
    now.put("email", 2, json!({"subject": "S", "versionnumber": 2}));
    now.put("activityparty", 20, member(2, Some(5), 1, "a@x"));
    let plan = planned(&before, &[], now, request(ConflictPolicy::Overwrite)).await.unwrap();
    assert_eq!(plan.ops.len(), 1, "what can be written of the other is there: {:?}", plan.short());
    assert_eq!(plan.ops[0].parties.len(), 1);
    assert_eq!(plan.codes()["party-lost"], 1);
    assert!(plan.finding("party-lost").contains("no longer has the choice 12"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parties_that_a_deletion_emptied_are_filled_without_a_trace_in_the_activity() {
    let (email, contact, party) = (email(), Table::new("contact"), party());
    let all = [&email, &contact, &party];
    let mut before = World::new(&all);
    before.put("contact", 5, json!({}));
    before.put("contact", 6, json!({}));
    let mut now = World::new(&all);
    now.put("contact", 6, json!({}));
    for world in [&mut before, &mut now] {
        world.put("email", 1, json!({"subject": "S", "statecode": 1, "statuscode": 3}));
        world.put("email", 2, json!({"subject": "S", "statecode": 0, "statuscode": 1}));
    }
    before.put("activityparty", 10, member(1, Some(5), 1, "a@x"));
    before.put("activityparty", 11, member(1, Some(6), 2, "b@x"));
    before.put("activityparty", 12, member(2, Some(6), 1, "b@x"));
    now.put("activityparty", 10, member(1, None, 1, "a@x"));
    now.put("activityparty", 11, member(1, Some(6), 2, "b@x"));
    // Somebody has removed the party of the other e-mail; nothing that is restored explains that.
    for policy in [ConflictPolicy::FillEmpty, ConflictPolicy::Overwrite, ConflictPolicy::NewerWins] {
        let mut live = World::new(&all);
        live.tables.clone_from(&now.tables);
        let plan = planned(&before, &[], live, request(policy)).await.unwrap();
        assert_eq!(
            plan.short(),
            [
                r#"reopen 0 email state 1 {"statecode":0,"statuscode":1}"#,
                "rows 0 contact create 5 {}",
                "parties 0 email parties 1 ",
                r#"state 0 email state 1 {"statecode":1,"statuscode":3}"#,
            ],
            "{policy:?}"
        );
        assert_eq!(plan.ops[2].parties.len(), 2);
    }
    let plan = planned(&before, &[], now, request(ConflictPolicy::Skip)).await.unwrap();
    assert!(plan.ops.iter().all(|op| op.table == "contact"), "{:?}", plan.short());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn families_get_their_states_from_the_top() {
    let product = Table::new("product").lookup("parentproductid", &["product"]).state(None).reaches_below();
    let task = Table::new("task").lookup("productid", &["product"]).state(None);
    let mut before = World::new(&[&product, &task]);
    let closed = |above: Option<u32>| {
        let above = above.map(|above| format!("product:{above}"));
        json!({"_parentproductid_value": above, "statecode": 1, "statuscode": 3})
    };
    before.put("product", 1, closed(Some(2)));
    before.put("product", 2, closed(Some(3)));
    before.put("product", 3, closed(None));
    before.put("task", 4, json!({"_productid_value": "product:1", "statecode": 1, "statuscode": 3}));
    let plan = planned(&before, &[], World::new(&[&product, &task]), fill()).await.unwrap();
    let states = plan.ops.iter().filter(|op| op.step == Step::State);
    let states: Vec<String> = states.map(|op| op.key.id.clone()).collect();
    assert_eq!(states, [4, 3, 2, 1].map(id));
    assert!(!plan.codes().contains_key("state-from-above"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draft_below_a_family_that_is_published_is_named() {
    let product = Table::new("product").lookup("parentproductid", &["product"]).state(None).reaches_below();
    let all = [&product];
    let (mut before, mut now) = (World::new(&all), World::new(&all));
    let draft = |above: Option<&str>| json!({"_parentproductid_value": above, "statecode": 0, "statuscode": 1});
    let published = |above: Option<&str>| json!({"_parentproductid_value": above, "statecode": 1, "statuscode": 3});
    before.put("product", 1, published(None));
    before.put("product", 2, draft(Some("product:1")));
    before.put("product", 3, draft(Some("product:2")));
    // Neither of these families is published by the plan.
    for world in [&mut before, &mut now] {
        world.put("product", 4, published(None));
        world.put("product", 5, draft(Some("product:4")));
    }
    before.put("product", 6, draft(None));
    before.put("product", 7, draft(Some("product:6")));
    // This one is there, as it was.
    now.put("product", 3, draft(Some("product:2")));
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    let named = plan.summary.findings.iter().filter(|finding| finding.code == "state-from-above");
    let named: Vec<(String, Option<&str>)> =
        named.map(|finding| (finding.id.clone().unwrap(), finding.column.as_deref())).collect();
    assert_eq!(named, [(id(2), Some("statecode")), (id(3), Some("statecode"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned_rows_are_named_by_one_part_or_both_and_found_by_lookups() {
    let reading = Table::new("reading").partitioned().number("value");
    let alarm = Table::new("alarm").lookup("readingid", &["reading"]);
    let mut before = World::new(&[&reading, &alarm]);
    before.put("reading", 1, json!({"partitionid": "a", "value": 1}));
    before.put("reading", 2, json!({"partitionid": "a", "value": 2}));
    before.put("reading", 2, json!({"partitionid": "b", "value": 3}));
    before.put("alarm", 9, json!({"_readingid_value": "reading:1"}));
    let now = || World::new(&[&reading, &alarm]);
    let by_id =
        |text: String| PlanRequest { selection: Selection { ids: vec![text], ..tables(&["reading"]) }, ..fill() };
    let plan = planned(&before, &[], now(), by_id(id(1))).await.unwrap();
    assert_eq!(plan.short(), [r#"rows 0 reading create 1 {"value":1}"#]);
    assert_eq!(plan.ops[0].key.partition.as_deref(), Some("a"));
    let plan = planned(&before, &[], now(), by_id(format!("{}/b", id(2)))).await.unwrap();
    assert_eq!(plan.short(), [r#"rows 0 reading create 2 {"value":3}"#]);
    let error = planned(&before, &[], now(), by_id(id(2))).await.unwrap_err();
    assert!(error.to_string().contains("several rows of table reading"), "{error}");
    let error = planned(&before, &[], now(), by_id(format!("{}/c", id(2)))).await.unwrap_err();
    assert!(error.to_string().contains("has a row"), "{error}");
    let plan = planned(&before, &[], now(), fill()).await.unwrap();
    assert!(
        plan.short().iter().any(|op| op.contains("alarm create 9") && op.contains("readingid")),
        "{:?}",
        plan.short()
    );
    assert!(!plan.codes().contains_key("missing-target"));
    // The same when it is there and not part of the plan.
    let mut there = now();
    there.put("reading", 1, json!({"partitionid": "a", "value": 1}));
    let plan = planned(&before, &[], there, PlanRequest { selection: tables(&["alarm"]), ..fill() }).await.unwrap();
    assert!(plan.short()[0].contains("readingid"), "{:?}", plan.short());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_closing_fills_in_is_no_reason_to_open_a_closed_row() {
    let order = Table::new("order").number("value").text("name", 9).state(None).filled_by_closing("value");
    let mut before = World::new(&[&order]);
    let mut now = World::new(&[&order]);
    before.put("order", 1, json!({"value": null, "name": "A", "statecode": 1, "statuscode": 3}));
    now.put("order", 1, json!({"value": 7, "name": "A", "statecode": 1, "statuscode": 3}));
    before.put("order", 2, json!({"value": 5, "name": "A", "statecode": 1, "statuscode": 3}));
    now.put("order", 2, json!({"value": 7, "name": "A", "statecode": 1, "statuscode": 3}));
    let plan = planned(&before, &[], now, request(ConflictPolicy::Overwrite)).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"reopen 0 order state 2 {"statecode":0,"statuscode":1}"#,
            r#"rows 0 order update 2 {"value":5}"#,
            r#"state 0 order state 2 {"statecode":1,"statuscode":3,"value":5}"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_assigned_along_with_others_get_their_own_owners_back_afterwards() {
    let user = user();
    let account = Table::new("account").lookup("parentid", &["account"]).assigned().owner();
    let task = Table::new("task").text("name", 9).lookup("regardingid", &["account"]).assigned().owner().state(None);
    let note = Table::new("note").lookup("taskid", &["task"]).owner();
    let all = [&user, &account, &task, &note];
    let (mut before, mut now) = (World::new(&all), World::new(&all));
    let owned = |owner: u32, above: &str, row: &str| {
        let mut values = json!({"_ownerid_value": format!("systemuser:{owner}")});
        values[above] = json!(row);
        values
    };
    for world in [&mut before, &mut now] {
        world.put("systemuser", 900, json!({}));
        world.put("systemuser", 901, json!({}));
        // Below account 1: account 2, whose owner is right; below that a closed task, and below that nothing that follows.
        world.put("account", 2, owned(901, "_parentid_value", "account:1"));
        let mut closed = owned(901, "_regardingid_value", "account:2");
        (closed["statecode"], closed["statuscode"]) = (json!(1), json!(3));
        world.put("task", 3, closed);
        world.put("note", 4, owned(901, "_taskid_value", "task:3"));
        world.put("account", 6, owned(901, "_other", "none"));
    }
    before.put("account", 1, json!({"_ownerid_value": "systemuser:900"}));
    now.put("account", 1, json!({"_ownerid_value": "systemuser:901"}));
    before.put("task", 5, owned(901, "_regardingid_value", "account:1"));
    let plan = planned(&before, &[], now, request(ConflictPolicy::Overwrite)).await.unwrap();
    let gives = |n: u32| format!(r#"{{"_ownerid_value":"{n}","_ownerid_value@":"systemuser"}}"#);
    let create = plan.short().into_iter().find(|op| op.starts_with("rows")).unwrap();
    assert!(create.contains("task create 5") && create.contains("_ownerid_value"), "{create}");
    let others: Vec<String> = plan.short().into_iter().filter(|op| !op.starts_with("rows")).collect();
    assert_eq!(
        others,
        [
            r#"reopen 0 task state 3 {"statecode":0,"statuscode":1}"#.to_string(),
            format!("owners 0 account update 1 {}", gives(900)),
            format!("owners 1 account update 2 {}", gives(901)),
            format!("owners 2 task update 3 {}", gives(901)),
            format!("owners 2 task update 5 {}", gives(901)),
            r#"state 0 task state 3 {"statecode":1,"statuscode":3}"#.to_string(),
        ]
    );
    let follows: Vec<(String, bool)> =
        plan.ops.iter().filter(|op| op.step == Step::Owners).map(|op| (op.key.id.clone(), op.follows)).collect();
    assert_eq!(follows, [(1, false), (2, false), (3, true), (5, true)].map(|(n, follows)| (id(n), follows)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_activity_that_comes_back_gets_the_parties_that_were_emptied_before() {
    let (email, contact, party) = (email(), Table::new("contact"), party());
    let all = [&email, &contact, &party];
    let mut before = World::new(&all);
    before.put("contact", 5, json!({}));
    before.put("email", 1, json!({"subject": "S", "statecode": 1, "statuscode": 3}));
    before.put("activityparty", 10, member(1, Some(5), 1, "a@x"));
    let mut now = World::new(&all);
    now.abilities.recycle_bin = vec!["email".into(), "contact".into()];
    now.bin.extend([id(1), id(5)]);
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    let others: Vec<String> = plan.short().into_iter().filter(|op| !op.starts_with("rows")).collect();
    assert_eq!(
        others,
        [
            r#"lookups 0 email state 1 {"statecode":0,"statuscode":1}"#,
            "parties 0 email parties 1 ",
            r#"state 0 email state 1 {"statecode":1,"statuscode":3}"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attachments_wait_until_their_activity_is_back_from_the_bin_and_open() {
    let email = email();
    let attachment = Table::new("attachment").body("body").text("name", 9).lookup("objectid", &["email"]).required();
    let all = [&email, &attachment];
    let mut before = World::new(&all);
    before.put("email", 1, json!({"subject": "S", "statecode": 1, "statuscode": 3}));
    before.put("email", 2, json!({"subject": "S", "statecode": 0, "statuscode": 1}));
    before.put("email", 3, json!({"subject": "S", "statecode": 1, "statuscode": 3}));
    for (n, above) in [(11, "email:1"), (12, "email:2"), (13, "email:3")] {
        before.put("attachment", n, json!({"name": "n", "_objectid_value": above}));
    }
    let mut now = World::new(&all);
    now.abilities.recycle_bin = vec!["email".into(), "attachment".into()];
    // The third e-mail is made anew, and open until the end.
    now.bin.extend([1, 2, 12].map(id));
    let plan = planned(&before, &[("attachment", 11, "body")], now, fill()).await.unwrap();
    let short: Vec<String> =
        plan.short().iter().map(|op| op.split(" {").next().unwrap_or_default().to_string()).collect();
    assert_eq!(
        short,
        [
            "rows 0 email create 3",
            "rows 0 email undelete 1",
            "rows 0 email undelete 2",
            "rows 1 attachment create 13",
            "lookups 0 email state 1",
            "lookups 1 attachment create 11",
            "lookups 1 attachment undelete 12",
            "state 1 email state 1",
            "state 1 email state 3",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn related_rows_are_followed_from_and_to_partitioned_ones() {
    let device = Table::new("device").text("name", 9);
    let reading = Table::new("reading").partitioned().number("value").lookup("deviceid", &["device"]);
    let alarm = Table::new("alarm").lookup("readingid", &["reading"]);
    let all = [&device, &reading, &alarm];
    let mut before = World::new(&all);
    for n in [1, 2] {
        before.put("device", n, json!({"name": "D"}));
    }
    before.put("reading", 11, json!({"partitionid": "a", "value": 1, "_deviceid_value": "device:1"}));
    // The same id in two partitions is two rows, and a lookup does not say which it means.
    before.put("reading", 12, json!({"partitionid": "a", "value": 2, "_deviceid_value": "device:1"}));
    before.put("reading", 12, json!({"partitionid": "b", "value": 3, "_deviceid_value": "device:2"}));
    before.put("alarm", 21, json!({"_readingid_value": "reading:11"}));
    before.put("alarm", 22, json!({"_readingid_value": "reading:12"}));
    before.put("alarm", 23, json!({"_readingid_value": "reading:99"}));
    let restored = async |table: &str, n: u32, up: u32, down: u32| {
        let selection = Selection { ids: vec![id(n)], up, down, ..tables(&[table]) };
        let plan = planned(&before, &[], World::new(&all), PlanRequest { selection, ..fill() }).await.unwrap();
        let made = plan.ops.iter().filter(|op| op.guard == Guard::Absent);
        let name = |n: &str| n.trim_start_matches('0').to_string();
        let mut made: Vec<String> =
            made.map(|op| name(&op.key.id[24..]) + op.key.partition.as_deref().unwrap_or_default()).collect();
        made.sort_unstable();
        made.join(" ")
    };
    assert_eq!(restored("device", 1, 0, 1).await, "1 11a 12a");
    assert_eq!(restored("device", 1, 0, 2).await, "1 11a 12a 21 22");
    assert_eq!(restored("alarm", 21, 1, 0).await, "11a 21");
    assert_eq!(restored("alarm", 22, 2, 0).await, "1 12a 12b 2 22");
    assert_eq!(restored("alarm", 23, 2, 0).await, "23");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parties_that_were_written_again_under_other_ids_are_not_written_once_more() {
    let (email, contact, party) = (email(), Table::new("contact"), party());
    let all = [&email, &contact, &party];
    let (mut before, mut now) = (World::new(&all), World::new(&all));
    for (world, version) in [(&mut before, 1), (&mut now, 2)] {
        world.put("contact", 5, json!({}));
        // Enough of them that reading by id would take fewer requests than reading all.
        for n in 1..=40 {
            world.put("email", n, json!({"subject": "S", "versionnumber": if n == 1 { version } else { 1 }}));
        }
    }
    for n in 1..=40 {
        before.put("activityparty", 100 + n, member(n, Some(5), 1, "a@x"));
        now.put("activityparty", if n == 1 { 200 } else { 100 + n }, member(n, Some(5), 1, "a@x"));
    }
    let plan = planned(&before, &[], now, request(ConflictPolicy::Overwrite)).await.unwrap();
    assert!(plan.ops.is_empty(), "{:?}", plan.short());
}
