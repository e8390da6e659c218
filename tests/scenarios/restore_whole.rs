//! Whole environments lost and put back.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::World;
use crate::restored::{State, reasons};

/// Rows of the environment; `DYNAVAULT_SCENARIO_ROWS` may raise it.
const ROWS: u64 = 2_000;
const ROWS_MAX: u64 = 50_000;
/// Reasons that a whole restore into the same environment may give, with the columns they are true of.
const WHOLE: [(&str, &[&str]); 12] = [
    (
        "server-set",
        &[
            "modifiedon",
            "_modifiedby_value",
            "_modifiedonbehalfby_value",
            "_createdby_value",
            "_createdonbehalfby_value",
            "versionnumber",
            "overriddencreatedon",
            "_owningbusinessunit_value",
            "_owninguser_value",
            "_owningteam_value",
            "_organizationid_value",
        ],
    ),
    ("calculated", &["exchangerate", "aging30", "openrevenue", "openrevenue_date", "openrevenue_state"]),
    ("read-only", &["merged", "enteredon", "revisionnumber"]),
    (
        "content",
        &[
            "attachmentid",
            "entityimageid",
            "entityimage_url",
            "entityimage_timestamp",
            "new_pictureid",
            "new_picture_url",
            "new_picture_timestamp",
            "new_contract",
            "new_cv",
            "new_document",
            "entityimage",
            "new_picture",
        ],
    ),
    ("choice-gone", &[]),
    ("default-set", &["_transactioncurrencyid_value", "actualclosedate", "actualvalue", "addressnumber"]),
    ("owner-refused", &["_ownerid_value"]),
    ("state-from-above", &["statecode", "statuscode"]),
    ("by-state", &[]),
    ("mirrored", &[]),
    ("party-lost", &[]),
    ("never", &[]),
];

pub(crate) fn rows() -> u64 {
    let wanted = std::env::var("DYNAVAULT_SCENARIO_ROWS").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(ROWS).clamp(ROWS, ROWS_MAX)
}

/// Columns stand only under reasons that can be true of them.
pub(crate) fn expect_reasons(found: &BTreeMap<String, BTreeSet<String>>) {
    for (reason, places) in found {
        let columns = WHOLE.iter().find(|(known, _)| known == reason).map(|(_, columns)| *columns);
        let columns = columns.unwrap_or_else(|| panic!("{reason} is no reason here: {places:?}"));
        for place in places {
            let (table, column) = place.split_once(' ').expect("a table and a column");
            let base = reason == "calculated" && column.ends_with("_base");
            // Addresses come with their parent and have no creation time of their own (dataverse 8.1).
            let born = reason == "server-set" && table == "customeraddress" && column == "createdon";
            assert!(columns.is_empty() || base || born || columns.contains(&column), "{place}: {reason}");
        }
    }
}

#[test]
fn a_wiped_environment_comes_back_whole() {
    let world = World::of_rows(301, rows());
    let site = world.simple_site();
    let before = State::of(&world.simulator);
    site.backup();
    assert!(world.simulator.wipe() > 1_000);
    let plan = site.plan("whole", &["restore"]);
    assert_eq!((plan.count("delete"), plan.count("conflicts")), (0, 0));
    let applied = site.apply(&plan);
    applied.expect_clean();
    let after = State::of(&world.simulator);
    let found = after.by_meaning().since(&before.by_meaning());
    expect_reasons(&reasons(&found, &plan, &applied));
    let made = |state: &State, table: &str| state.tables[table].len();
    for table in before.tables.keys().filter(|table| *table != "activityparty") {
        assert_eq!(made(&after, table), made(&before, table), "rows of {table}");
    }
    after.expect_files_of(&before, &plan);
    // Nothing is left to do.
    let again = site.plan("again", &["restore"]);
    assert_eq!((again.count("create"), again.count("link"), again.count("content")), (0, 0, 0));
}
