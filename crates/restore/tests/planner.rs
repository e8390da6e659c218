//! Plans of small worlds, operation by operation.

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]

mod again;
mod closes;
mod fakes;
mod files;
mod special;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dynavault_model::{Ability, Birth, Guard, Treatment};
use dynavault_restore::{ConflictPolicy, PlanRequest, Selection, Step};
use fakes::{Table, World, id, planned, planned_in, snapshot};
use proptest::prelude::*;
use serde_json::json;

fn request(conflict: ConflictPolicy) -> PlanRequest {
    PlanRequest { conflict, tool: "test".into(), ..PlanRequest::default() }
}

fn fill() -> PlanRequest {
    request(ConflictPolicy::FillEmpty)
}

fn tables(names: &[&str]) -> Selection {
    Selection { tables: names.iter().map(|name| (*name).to_string()).collect(), ..Selection::default() }
}

/// Accounts with parents and contacts, contacts with accounts.
fn crm() -> (Table, Table, Table) {
    let user = Table::new("systemuser").treated(Treatment::Reference("users come from elsewhere".into()));
    let account = Table::new("account")
        .text("name", 20)
        .number("revenue")
        .lookup("parentaccountid", &["account"])
        .lookup("primarycontactid", &["contact"])
        .owner()
        .created_on()
        .state(None);
    let contact = Table::new("contact").text("name", 20).lookup("parentcustomerid", &["account", "contact"]).owner();
    (user, account, contact)
}

fn world() -> World {
    let (user, account, contact) = crm();
    let mut world = World::new(&[&user, &account, &contact]);
    world.put("systemuser", 900, json!({}));
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_environment_needs_nothing() {
    let mut before = world();
    for n in 1..=7 {
        before.put("account", n, json!({"name": "A", "versionnumber": n, "_ownerid_value": "systemuser:900"}));
    }
    let mut now = world();
    now.tables.insert("account".into(), before.tables["account"].clone());
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    assert!(plan.ops.is_empty(), "{:?}", plan.short());
    assert_eq!((plan.summary.counts.unchanged, plan.summary.requests, plan.summary.minutes), (7, 0, 0));
    assert_eq!(plan.codes()["reference"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_rows_are_made_in_waves_and_circles_are_closed_afterwards() {
    let mut before = world();
    let owner = "systemuser:900";
    before.put(
        "account",
        1,
        json!({"name": "Parent", "revenue": 20, "createdon": "2019-03-01T08:00:00Z",
        "_primarycontactid_value": "contact:11", "_ownerid_value": owner, "statecode": 0, "statuscode": 2}),
    );
    before.put(
        "account",
        2,
        json!({"name": "Child", "_parentaccountid_value": "account:1", "_ownerid_value": owner,
        "statecode": 1, "statuscode": 3}),
    );
    before.put("contact", 11, json!({"name": "C", "_parentcustomerid_value": "account:2"}));
    let plan = planned(&before, &[], world(), fill()).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"rows 0 account create 1 {"name":"Parent","revenue":20,"statuscode":2,"overriddencreatedon":"2019-03-01T08:00:00Z","_ownerid_value":"900","_ownerid_value@":"systemuser"}"#,
            r#"rows 0 account create 2 {"name":"Child","_ownerid_value":"900","_ownerid_value@":"systemuser"}"#,
            r#"rows 0 contact create 11 {"name":"C"}"#,
            r#"lookups 0 account update 1 {"_primarycontactid_value":"011","_primarycontactid_value@":"contact"}"#,
            r#"lookups 0 account update 2 {"_parentaccountid_value":"001","_parentaccountid_value@":"account"}"#,
            r#"lookups 0 contact update 11 {"_parentcustomerid_value":"002","_parentcustomerid_value@":"account"}"#,
            r#"state 0 account state 2 {"statecode":1,"statuscode":3}"#,
        ]
    );
    assert_eq!(plan.ops[0].guard, Guard::Absent);
    assert_eq!(plan.ops[6].from.as_ref().unwrap().get(), r#"{"statecode":0}"#);
    assert!(!plan.ops[0].follows && plan.ops[3].follows && plan.ops[6].follows);
    let counts = plan.summary.counts;
    assert_eq!((counts.create, counts.update, counts.state), (3, 3, 1));
    assert_eq!(plan.summary.requests, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_only_points_up_is_made_after_its_parent_with_its_lookup() {
    let (account, order) =
        (Table::new("account").text("name", 9), Table::new("order").lookup("customerid", &["account"]).required());
    let mut before = World::new(&[&order, &account]);
    before.put("account", 1, json!({"name": "A"}));
    before.put("order", 2, json!({"_customerid_value": "account:1"}));
    let plan = planned(&before, &[], World::new(&[&order, &account]), fill()).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"rows 0 account create 1 {"name":"A"}"#,
            r#"rows 1 order create 2 {"_customerid_value":"001","_customerid_value@":"account"}"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_exists_is_written_as_the_policy_says() {
    let mut before = world();
    let values = json!({"name": "Old", "revenue": 20000.5, "_primarycontactid_value": "contact:11",
        "_ownerid_value": "systemuser:900", "statecode": 0, "statuscode": 1,
        "modifiedon": "2024-02-01T00:00:00Z", "versionnumber": 1});
    before.put("account", 1, values);
    before.put("contact", 11, json!({"name": "C"}));
    let now = || {
        let mut now = world();
        now.put("systemuser", 901, json!({}));
        now.put(
            "account",
            1,
            json!({"name": "New", "revenue": null, "_primarycontactid_value": null,
            "_ownerid_value": "systemuser:901", "statecode": 1, "statuscode": 3,
            "modifiedon": "2024-01-01T00:00:00Z", "versionnumber": 2}),
        );
        now.put("contact", 11, json!({"name": "C"}));
        now
    };
    let fills = r#"{"revenue":20000.5,"_primarycontactid_value":"011","_primarycontactid_value@":"contact"}"#;
    let plan = planned(&before, &[], now(), fill()).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"reopen 0 account state 1 {"statecode":0,"statuscode":1}"#.to_string(),
            format!("rows 0 account update 1 {fills}"),
            r#"state 0 account state 1 {"statecode":1,"statuscode":3}"#.to_string(),
        ]
    );
    assert_eq!(plan.ops[0].guard, Guard::Unchanged("W/\"1\"".into()));
    assert_eq!(plan.ops[1].guard, Guard::Present);
    assert_eq!(plan.ops[1].from.as_ref().unwrap().get(), r#"{"revenue":null,"_primarycontactid_value":null}"#);
    assert_eq!(plan.summary.counts.conflicts, 4);
    for column in ["name", "_ownerid_value", "statecode", "statuscode"] {
        assert!(plan.text.contains(&format!(r#""column":"{column}","snapshot""#)), "{column}");
    }

    let all =
        r#"{"name":"Old","revenue":20000.5,"_primarycontactid_value":"011","_primarycontactid_value@":"contact"}"#;
    let everything = [
        r#"reopen 0 account state 1 {"statecode":0,"statuscode":1}"#.to_string(),
        format!("rows 0 account update 1 {all}"),
        r#"owners 0 account update 1 {"_ownerid_value":"900","_ownerid_value@":"systemuser"}"#.to_string(),
    ];
    for policy in [ConflictPolicy::Overwrite, ConflictPolicy::NewerWins] {
        let plan = planned(&before, &[], now(), request(policy)).await.unwrap();
        assert_eq!(plan.short(), everything, "{policy:?}");
        assert_eq!(plan.summary.counts.conflicts, 0);
    }

    let plan = planned(&before, &[], now(), request(ConflictPolicy::Skip)).await.unwrap();
    assert!(plan.ops.is_empty());
    assert_eq!(plan.summary.counts.conflicts, 6);

    let error = planned(&before, &[], now(), request(ConflictPolicy::Fail)).await.unwrap_err().to_string();
    assert!(error.contains("4 values differ") && error.contains(&format!("account {} name", id(1))), "{error}");
    assert!(!error.contains("Old") && !error.contains("New"));

    let columns = PlanRequest { columns: vec!["revenue".into()], ..request(ConflictPolicy::Overwrite) };
    let plan = planned(&before, &[], now(), columns).await.unwrap();
    assert_eq!(plan.short()[1], r#"rows 0 account update 1 {"revenue":20000.5}"#);
    assert_eq!(plan.ops.len(), 3);

    let newer = World { tables: before.tables.clone(), ..world() };
    let plan = planned(&now(), &[], newer, request(ConflictPolicy::NewerWins)).await.unwrap();
    assert!(plan.ops.iter().all(|op| op.table != "account"), "{:?}", plan.short());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overwriting_empties_what_was_empty() {
    let mut before = world();
    before.put("account", 1, json!({"name": null, "_primarycontactid_value": null}));
    let mut now = world();
    now.put("contact", 11, json!({}));
    now.put("account", 1, json!({"name": "New", "_primarycontactid_value": "contact:11"}));
    let plan = planned(&before, &[], now, request(ConflictPolicy::Overwrite)).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"rows 0 account update 1 {"name":null,"_primarycontactid_value":null,"_primarycontactid_value@":"contact"}"#
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_target_does_not_take_is_left_out_and_said() {
    let source = Table::new("account").text("name", 50).choice("kind", &[1, 2]).number("gone").fixed("total");
    let target = Table::new("account").text("name", 5).choice("kind", &[1]).fixed("total");
    let mut before = World::new(&[&source]);
    before.put("account", 1, json!({"name": "123456", "kind": 2, "gone": 7, "total": 9}));
    before.put("account", 2, json!({"name": "12345", "kind": 1}));
    let plan = planned(&before, &[], World::new(&[&target]), fill()).await.unwrap();
    assert_eq!(plan.short(), ["rows 0 account create 1 {}", r#"rows 0 account create 2 {"kind":1,"name":"12345"}"#,]);
    let codes: Vec<String> = plan.codes().into_keys().collect();
    assert_eq!(codes, ["choice-gone", "missing-column", "too-long"]);
    assert!(!plan.finding("too-long").contains("123456"));
    let not_written = &plan.summary.tables[0].not_written;
    assert_eq!(not_written["missing-column"], ["gone"]);
    assert_eq!(not_written["server-set"], ["total"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_target_costs_an_optional_lookup_and_a_chain_of_required_ones() {
    let mut order = Table::new("order").lookup("customerid", &["account"]).required();
    order = order.lookup("managerid", &["systemuser"]);
    let line = Table::new("line").lookup("orderid", &["order"]).required().lookup("noteid", &["order"]);
    let piece = Table::new("piece").lookup("lineid", &["line"]).required();
    let account = Table::new("account").treated(Treatment::Never("not today".into()));
    let user = Table::new("systemuser").treated(Treatment::Reference("elsewhere".into()));
    let all = [&order, &line, &piece, &account, &user];
    let mut before = World::new(&all);
    before.put("order", 1, json!({"_customerid_value": "account:50"}));
    before.put("order", 2, json!({"_customerid_value": "account:51", "_managerid_value": "systemuser:99"}));
    before.put("line", 3, json!({"_orderid_value": "order:1"}));
    before.put("line", 4, json!({"_orderid_value": "order:2", "_noteid_value": "order:1"}));
    before.put("piece", 5, json!({"_lineid_value": "line:3"}));
    before.put("piece", 6, json!({"_lineid_value": "line:4"}));
    let mut now = World::new(&all);
    now.put("account", 51, json!({}));
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"rows 0 order create 2 {"_customerid_value":"051","_customerid_value@":"account"}"#,
            r#"rows 1 line create 4 {"_orderid_value":"002","_orderid_value@":"order"}"#,
            r#"rows 2 piece create 6 {"_lineid_value":"004","_lineid_value@":"line"}"#,
        ]
    );
    assert_eq!(plan.codes()["missing-required"], 3);
    assert_eq!(plan.codes()["missing-target"], 2);
    assert_eq!(plan.summary.counts.impossible, 3);
    let chain = plan.summary.findings.iter().find(|finding| finding.id.as_deref() == Some(&id(5))).unwrap();
    let words = format!("line {}, which needs order {}, which needs account {}", id(3), id(1), id(50));
    assert!(chain.message.contains(&words), "{}", chain.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_the_recycle_bin_are_brought_back_and_creation_times_need_a_privilege() {
    let (account, contact) = (Table::new("account").text("name", 9).created_on(), Table::new("contact"));
    let mut before = World::new(&[&account, &contact]);
    before.put("account", 1, json!({"name": "A", "createdon": "2019-03-01T08:00:00Z"}));
    before.put("account", 2, json!({"name": "B"}));
    let mut now = World::new(&[&account, &contact]);
    now.abilities.recycle_bin = vec!["account".into()];
    now.abilities.created_on = Ability::Missing("prvOverrideCreatedOnCreatedBy".into());
    now.bin.insert(id(1));
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    assert_eq!(plan.short(), [r#"rows 0 account create 2 {"name":"B"}"#, r#"rows 0 account undelete 1 {"name":"A"}"#,]);
    assert_eq!(plan.codes()["created-on-lost"], 1);
    assert_eq!(plan.summary.counts.undelete, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_are_compared_by_their_rows() {
    let (account, tag) = (Table::new("account"), Table::new("tag"));
    let link = Table::links("account_tag", ("account", "accountid"), ("tag", "tagid"));
    let all = [&account, &tag, &link];
    let mut before = World::new(&all);
    before.put("account", 1, json!({}));
    before.put("tag", 2, json!({}));
    before.put("tag", 3, json!({}));
    before.put("account_tag", 10, json!({"accountid": id(1), "tagid": id(2)}));
    before.put("account_tag", 11, json!({"accountid": id(1), "tagid": id(3)}));
    before.put("account_tag", 12, json!({"accountid": id(1), "tagid": id(77)}));
    let mut now = World::new(&all);
    now.put("account", 1, json!({}));
    now.put("tag", 2, json!({}));
    // The same link under another id.
    now.put("account_tag", 20, json!({"accountid": id(1), "tagid": id(2)}));
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            "rows 0 tag create 3 {}".to_string(),
            r#"links 0 account_tag create 11 {"accountid":"001","tagid":"003","account_tagid":"011"}"#.to_string(),
        ]
    );
    assert_eq!(plan.codes()["missing-target"], 1);
    assert_eq!((plan.summary.counts.link, plan.summary.counts.impossible), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn related_rows_come_along_and_only_deleted_ones_are_roots() {
    let (account, tag) = (Table::new("account").text("name", 9), Table::new("tag"));
    let contact = Table::new("contact").text("name", 9).lookup("accountid", &["account"]);
    let task = Table::new("task").lookup("regardingid", &["contact"]);
    let link = Table::links("account_tag", ("account", "accountid"), ("tag", "tagid"));
    let all = [&account, &contact, &task, &tag, &link];
    let mut before = World::new(&all);
    for n in [1, 2] {
        before.put("account", n, json!({"name": "A"}));
        before.put("contact", 10 + n, json!({"name": "C", "_accountid_value": format!("account:{n}")}));
        before.put("task", 20 + n, json!({"_regardingid_value": format!("contact:1{n}")}));
    }
    before.put("tag", 5, json!({}));
    before.put("account_tag", 30, json!({"accountid": id(1), "tagid": id(5)}));
    let mut now = World::new(&all);
    // Account 1 was deleted, and its contact lost its lookup; the tag and account 2 are there, tasks are all gone.
    now.put("account", 2, json!({"name": "changed"}));
    now.put("tag", 5, json!({}));
    now.put("contact", 11, json!({"name": "C", "_accountid_value": null}));
    now.put("contact", 12, json!({"name": "C", "_accountid_value": "account:2"}));
    let now = Arc::new(now);
    let folder = tempfile::tempdir().unwrap();
    let (vault, manifest) = snapshot(&before, &[]).await;
    let run = |selection: Selection| {
        let request = PlanRequest { selection, ..request(ConflictPolicy::Overwrite) };
        planned_in(folder.path(), &vault, Arc::clone(&manifest), Arc::clone(&now), request)
    };
    let deleted = Selection { deleted_only: true, ..tables(&["account"]) };
    assert_eq!(run(deleted.clone()).await.unwrap().short(), [r#"rows 0 account create 1 {"name":"A"}"#]);
    let plan = run(Selection { down: 1, ..deleted.clone() }).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            r#"rows 0 account create 1 {"name":"A"}"#,
            r#"lookups 0 contact update 11 {"_accountid_value":"001","_accountid_value@":"account"}"#,
            r#"links 0 account_tag create 30 {"accountid":"001","tagid":"005","account_tagid":"030"}"#,
        ]
    );
    let plan = run(Selection { down: 2, ..deleted }).await.unwrap();
    assert!(plan.short().iter().any(|op| op.contains("task create 21")));
    assert!(!plan.short().iter().any(|op| op.contains("task create 22")));
    let up = Selection { up: 2, filter: Some(format!("regardingid = '{}'", id(11))), ..tables(&["task"]) };
    let plan = run(up).await.unwrap();
    assert_eq!(plan.summary.tables.iter().map(|table| table.selected).sum::<u64>(), 3);
    let by_id = Selection { ids: vec![id(12)], ..Selection::default() };
    assert_eq!(run(by_id).await.unwrap().summary.counts.unchanged, 1);
    let error = run(Selection { ids: vec![id(99)], ..Selection::default() }).await.unwrap_err();
    assert!(error.to_string().contains("has a row 00000000"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_follow_their_rows() {
    let account = Table::new("account").file("logo");
    let mut before = World::new(&[&account]);
    for n in 1..=4 {
        before.put("account", n, json!({"logo": "v"}));
    }
    let mut now = World::new(&[&account]);
    now.put("account", 2, json!({"logo": null}));
    now.put("account", 3, json!({"logo": "w"}));
    let content = [("account", 1, "logo"), ("account", 2, "logo"), ("account", 3, "logo")];
    let plan = planned(&before, &content, now, fill()).await.unwrap();
    let uploads: Vec<_> = plan.ops.iter().filter(|op| op.content.is_some()).map(|op| op.key.id.clone()).collect();
    assert_eq!(uploads, [id(1), id(2)]);
    assert_eq!(plan.summary.counts.conflicts, 1);
    assert_eq!(plan.codes()["content-not-captured"], 1);
    // Two blocks of 4 MiB and two requests around them, twice, and one request for the rows.
    assert_eq!(plan.summary.requests, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parties_go_along_with_their_activities() {
    let email = Table::new("email").text("subject", 20).activity();
    let contact = Table::new("contact");
    let party = Table::new("activityparty")
        .lookup("activityid", &["activitypointer"])
        .lookup("partyid", &["contact", "systemuser"])
        .number("participationtypemask")
        .text("addressused", 50)
        .treated(Treatment::Along { parent: "_activityid_value".into() });
    let all = [&email, &contact, &party];
    let member = |activity: u32, contact: u32, mask: u32, address: &str| {
        json!({"_activityid_value": format!("activitypointer:{activity}"), "_partyid_value": format!("contact:{contact}"),
            "participationtypemask": mask, "addressused": address})
    };
    let mut before = World::new(&all);
    before.put("email", 1, json!({"subject": "new"}));
    before.put("email", 2, json!({"subject": "there", "versionnumber": 1}));
    before.put("activityparty", 10, member(1, 5, 1, "a@x"));
    before.put("activityparty", 11, member(1, 6, 2, "gone@x"));
    before.put("activityparty", 12, member(1, 5, 9, "owner@x"));
    before.put("activityparty", 13, member(2, 5, 1, "a@x"));
    let mut now = World::new(&all);
    now.put("contact", 5, json!({}));
    now.put("email", 2, json!({"subject": "there", "versionnumber": 2}));
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    let create = plan.ops.iter().find(|op| op.key.id == id(1)).unwrap();
    let parties: Vec<&str> = create.parties.iter().map(|party| party.get()).collect();
    assert_eq!(parties.len(), 2);
    assert!(parties[0].contains("_partyid_value") && parties[0].contains("a@x"));
    assert_eq!(parties[1], r#"{"participationtypemask":2,"addressused":"gone@x"}"#);
    assert!(plan.short().contains(&"parties 0 email parties 2 ".to_string()), "{:?}", plan.short());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_come_with_their_parent_are_changed_after_it() {
    let account = Table::new("account");
    let address = Table::new("address").text("line1", 20).lookup("parentid", &["account"]);
    let mut before = World::new(&[&account, &address]);
    before.put("account", 1, json!({}));
    before.put("address", 2, json!({"line1": "Main", "_parentid_value": "account:1"}));
    before.put("address", 3, json!({"line1": "Lost", "_parentid_value": "account:7"}));
    let mut now = World::new(&[&account, &address]);
    now.birth = Box::new(|rules, _| match rules.table.as_str() {
        "address" => Birth::WithParent("_parentid_value".into()),
        _ => Birth::Written,
    });
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    assert_eq!(
        plan.short(),
        [
            "rows 0 account create 1 {}",
            r#"lookups 0 address update 2 {"line1":"Main","_parentid_value":"001","_parentid_value@":"account"}"#,
        ]
    );
    assert_eq!(plan.ops[1].guard, Guard::Present);
    assert_eq!(plan.codes()["with-parent"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_deletes_children_first_and_nothing_that_a_kept_row_points_to() {
    let account = Table::new("account").text("name", 9).lookup("mainid", &["contact"]);
    let contact = Table::new("contact").lookup("accountid", &["account"]).required().lookup("bossid", &["contact"]);
    let outside = Table::new("outside").lookup("contactid", &["contact"]);
    let link = Table::links("account_contact", ("account", "accountid"), ("contact", "contactid"));
    let all = [&account, &contact, &outside, &link];
    let mut before = World::new(&all);
    before.put("account", 1, json!({"name": "A", "_mainid_value": null}));
    before.put("account_contact", 40, json!({"accountid": id(1), "contactid": id(1)}));
    let mut now = World::new(&all);
    now.put("account", 1, json!({"name": "A", "_mainid_value": "contact:12"}));
    now.put("account", 2, json!({"name": "new"}));
    now.put("contact", 11, json!({"_accountid_value": "account:2"}));
    now.put("contact", 12, json!({"_accountid_value": "account:2", "_bossid_value": "contact:11"}));
    now.put("contact", 13, json!({"_accountid_value": "account:1", "_bossid_value": "contact:14"}));
    now.put("contact", 14, json!({}));
    now.put("outside", 30, json!({"_contactid_value": "contact:13"}));
    now.put("account_contact", 41, json!({"accountid": id(1), "contactid": id(13)}));
    now.put("account_contact", 42, json!({"accountid": id(1), "contactid": id(11)}));
    let selection = tables(&["account", "contact", "account_contact"]);
    let mirror = PlanRequest { mirror: true, selection, ..request(ConflictPolicy::Overwrite) };
    let plan = planned(&before, &[], now, mirror).await.unwrap();
    let deletes: Vec<String> = plan.short().into_iter().filter(|op| op.contains("delete")).collect();
    assert_eq!(deletes.len(), 5, "{deletes:?}");
    assert!(deletes[0].starts_with("deletes 0 account_contact delete 41"), "{deletes:?}");
    let wave = |n: u32| {
        plan.ops
            .iter()
            .find(|op| {
                op.key.id == id(n) && op.guard != Guard::Absent && op.table != "account_contact" && op.set.is_none()
            })
            .map(|op| op.wave)
    };
    assert!(wave(12) < wave(11) && wave(11) < wave(2), "{deletes:?}");
    // 13 is pointed to from outside, 14 from 13.
    assert_eq!((wave(13), wave(14)), (None, None));
    assert_eq!(plan.codes()["still-referenced"], 2);
    assert!(plan.ops.last().unwrap().from.as_ref().unwrap().get().contains("accountid"));
    assert_eq!((plan.summary.counts.delete, plan.summary.counts.unlink), (3, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elsewhere_users_are_found_by_their_keys_and_the_rest_is_written_down() {
    let user = Table::new("systemuser").text("domainname", 50).treated(Treatment::Reference("elsewhere".into()));
    let account = Table::new("account").text("name", 9).owner().lookup("managerid", &["systemuser"]);
    let all = [&user, &account];
    let mut before = World::new(&all);
    before.put("systemuser", 1, json!({"domainname": "a@x"}));
    before.put("systemuser", 2, json!({"domainname": "b@x"}));
    before.put("systemuser", 3, json!({"domainname": "never used"}));
    before.put(
        "account",
        10,
        json!({"name": "A", "_ownerid_value": "systemuser:1", "_managerid_value": "systemuser:2"}),
    );
    let mut now = World::new(&all);
    now.organization = "22222222-0000-0000-0000-000000000000".into();
    now.put("systemuser", 101, json!({"domainname": "A@x"}));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("map.toml");
    let (vault, manifest) = snapshot(&before, &[]).await;
    let now = Arc::new(now);
    let run = || {
        let request = PlanRequest { mapping: Some(path.clone()), ..fill() };
        planned_in(folder.path(), &vault, Arc::clone(&manifest), Arc::clone(&now), request)
    };
    let plan = run().await.unwrap();
    let made = r#"rows 0 account create 10 {"name":"A","_ownerid_value":"101","_ownerid_value@":"systemuser""#;
    assert_eq!(plan.short(), [format!("{made}}}")]);
    assert_eq!((plan.codes()["unmapped"], plan.summary.unmapped), (1, 1));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("domainname=b@x") && !text.contains("never used"), "{text}");
    std::fs::write(&path, text.replace("target = \"\"", &format!("target = \"{}\"", id(101)))).unwrap();
    let plan = run().await.unwrap();
    assert!(plan.short()[0].contains(r#""_managerid_value":"101""#), "{:?}", plan.short());
    assert_eq!(plan.summary.unmapped, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_selection_is_read_by_key() {
    let mut before = world();
    let mut now = world();
    for n in 1..=40 {
        before.put("account", n, json!({"name": "A", "versionnumber": 1}));
        now.put("account", n, json!({"name": "B", "versionnumber": 2}));
    }
    let selection = Selection { ids: vec![id(7)], ..tables(&["account"]) };
    let now = Arc::new(now);
    let folder = tempfile::tempdir().unwrap();
    let (vault, manifest) = snapshot(&before, &[]).await;
    let one = PlanRequest { selection, ..request(ConflictPolicy::Overwrite) };
    let plan = planned_in(folder.path(), &vault, manifest, Arc::clone(&now), one).await.unwrap();
    assert_eq!(plan.short(), [r#"rows 0 account update 7 {"name":"A"}"#]);
    assert_eq!(now.requests.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(*now.asked.lock().unwrap(), ["account"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_be_read_is_reported_and_does_not_stop_the_others() {
    let mut before = world();
    before.put("account", 1, json!({"name": "A", "_primarycontactid_value": "contact:11"}));
    before.put("contact", 11, json!({"name": "C"}));
    let mut now = world();
    now.refused.insert("contact".into());
    let plan = planned(&before, &[], now, fill()).await.unwrap();
    // Whether the contact is there cannot be known, so the lookup is written and the service decides.
    assert_eq!(
        plan.short(),
        [
            r#"rows 0 account create 1 {"name":"A","_primarycontactid_value":"011","_primarycontactid_value@":"contact"}"#
        ]
    );
    assert_eq!((plan.codes()["unreadable-table"], plan.codes()["unchecked-target"]), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_that_no_table_understands_is_refused_before_anything_is_read() {
    let mut before = world();
    before.put("account", 1, json!({"name": "A"}));
    let selection = Selection { filter: Some("nome = 'A'".into()), ..tables(&["account"]) };
    let error = planned(&before, &[], world(), PlanRequest { selection, ..fill() }).await.unwrap_err();
    assert_eq!(error.to_string(), "the condition is wrong at character 1: table account has no captured column nome");
    let selection = tables(&["acount"]);
    let error = planned(&before, &[], world(), PlanRequest { selection, ..fill() }).await.unwrap_err();
    assert!(error.to_string().contains("no table of the snapshot is named acount"));
}

/// Tables of the random worlds: `a` and `b` point to each other, `c` requires an `a` and may name another `c`.
fn random_tables() -> [Table; 3] {
    [
        Table::new("a").lookup("own", &["a"]).lookup("other", &["b"]),
        Table::new("b").lookup("own", &["b"]).lookup("other", &["a"]),
        Table::new("c").lookup("own", &["c"]).lookup("other", &["a"]).required(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_lookup_of_a_random_world_is_written_once_and_never_before_its_row(
        rows in prop::collection::vec((0_usize..3, prop::option::of(0_u32..12), prop::option::of(0_u32..12), any::<bool>()), 1..12)
    ) {
        let tables = random_tables();
        let all: Vec<&Table> = tables.iter().collect();
        let (mut before, mut now) = (World::new(&all), World::new(&all));
        let name = |kind: usize| ["a", "b", "c"][kind];
        let other = |kind: usize| ["b", "a", "a"][kind];
        for (n, (kind, own, next, live)) in rows.iter().enumerate() {
            let mut values = json!({});
            if let Some(own) = own {
                values["_own_value"] = json!(format!("{}:{own}", name(*kind)));
            }
            if let Some(next) = next {
                values["_other_value"] = json!(format!("{}:{next}", other(*kind)));
            }
            before.put(name(*kind), n as u32, values);
            if *live {
                now.put(name(*kind), n as u32, json!({}));
            }
        }
        let live: BTreeSet<String> = now.tables.values().flat_map(|(_, rows)| rows.keys().cloned()).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let plan = runtime.block_on(planned(&before, &[], now, fill())).unwrap();
        let made: BTreeMap<String, u32> = plan
            .ops
            .iter()
            .filter(|op| op.guard == Guard::Absent)
            .map(|op| (op.key.id.clone(), op.wave))
            .collect();
        let mut written: BTreeSet<(String, String)> = BTreeSet::new();
        for op in &plan.ops {
            let set: serde_json::Value = serde_json::from_str(op.set.as_ref().unwrap().get()).unwrap();
            for member in ["_own_value", "_other_value"] {
                let Some(target) = set[member].as_str() else { continue };
                prop_assert!(written.insert((op.key.id.clone(), member.into())), "{} {member} twice", op.key.id);
                let ready = live.contains(target)
                    || made.get(target).is_some_and(|wave| op.step == Step::Lookups || *wave < op.wave);
                prop_assert!(ready, "{} {member} names {target} too early: {:?}", op.key.id, plan.short());
            }
        }
        for (n, (kind, own, next, _)) in rows.iter().enumerate() {
            let there = |n: &u32, table: &str| {
                let named = rows.get(*n as usize).is_some_and(|(kind, ..)| name(*kind) == table);
                named && (live.contains(&id(*n)) || made.contains_key(&id(*n)))
            };
            let row = id(n as u32);
            let exists = live.contains(&row) || made.contains_key(&row);
            // A row is left out only when it requires one that is neither there nor made.
            let needs = *kind == 2 && next.is_some_and(|next| !there(&next, "a"));
            prop_assert_eq!(exists, live.contains(&row) || !needs);
            for (member, target, table) in [("_own_value", own, name(*kind)), ("_other_value", next, other(*kind))] {
                let expected = exists && target.is_some_and(|target| there(&target, table));
                prop_assert_eq!(written.contains(&(row.clone(), member.into())), expected, "{} {}", row, member);
            }
        }
    }
}
