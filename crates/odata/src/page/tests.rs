//! Tests of the page splitter, among them the property that chunking never matters.

use dynavault_model::{Deletion, PageEnd, Row, RowSink, Stopped};
use proptest::prelude::*;

use super::{OVERSIZED_START_BYTES_MAX, PageFault, PageSplitter};

/// Keeps everything it is given.
#[derive(Debug, Default, PartialEq)]
struct Kept {
    rows: Vec<String>,
    deletions: Vec<Deletion>,
    oversized: Vec<(usize, u64)>,
    rows_max: Option<usize>,
}

impl RowSink for Kept {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        if self.rows_max.is_some_and(|limit| self.rows.len() >= limit) {
            return Err(Stopped);
        }
        self.rows.push(String::from_utf8(row.bytes().to_vec()).unwrap());
        for member in row.members() {
            serde_json::from_slice::<serde_json::Value>(row.value(member)).unwrap();
        }
        Ok(())
    }

    fn deleted(&mut self, deletion: Deletion) -> Result<(), Stopped> {
        self.deletions.push(deletion);
        Ok(())
    }

    fn oversized(&mut self, start: &[u8], bytes: u64) -> Result<(), Stopped> {
        self.oversized.push((start.len(), bytes));
        Ok(())
    }

    fn restarted(&mut self) {}

    fn row_bytes_max(&self) -> usize {
        ROW_BYTES_MAX
    }
}

const ROW_BYTES_MAX: usize = 16 * 1024;

fn split_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Kept, PageEnd), PageFault> {
    let mut kept = Kept::default();
    let mut splitter = PageSplitter::new(ROW_BYTES_MAX);
    for piece in pieces {
        splitter.feed(piece, &mut kept)?;
    }
    Ok((kept, splitter.finish()?))
}

fn split(page: &str) -> Result<(Kept, PageEnd), PageFault> {
    split_pieces([page.as_bytes()])
}

#[test]
fn rows_links_and_metadata_version_come_out_of_a_page() {
    let page = r#"{"@odata.context":"https://o/$metadata#accounts","@Microsoft.Dynamics.CRM.globalmetadataversion":"4711",
        "value":[{"@odata.etag":"W/\"1\"","n":20000.0000},{"n":null}],
        "@odata.nextLink":"https:\/\/o/accounts?$skiptoken=%3Ccookie\u0020/%3E"}"#;
    let (kept, end) = split(page).unwrap();
    assert_eq!(kept.rows, [r#"{"@odata.etag":"W/\"1\"","n":20000.0000}"#, r#"{"n":null}"#]);
    assert_eq!(end.next.as_deref(), Some("https://o/accounts?$skiptoken=%3Ccookie /%3E"));
    assert_eq!(end.metadata_version.as_deref(), Some("4711"));
    assert_eq!(end.delta, None);
}

#[test]
fn links_may_stand_before_the_rows_and_white_space_anywhere() {
    let page = " {\n\"@odata.deltaLink\" : \"https://o/d\" ,\t\"value\" : [ { \"a\" : [ 1 , \"x y\" ] } , { \"a\" : 2 } ] }\r\n ";
    let (kept, end) = split(page).unwrap();
    assert_eq!(kept.rows, [r#"{"a":[1,"x y"]}"#, r#"{"a":2}"#]);
    assert_eq!(end.delta.as_deref(), Some("https://o/d"));
}

#[test]
fn a_version_may_be_a_number_and_an_empty_link_leads_nowhere() {
    let page = r#"{"@Microsoft.Dynamics.CRM.globalmetadataversion":4711,"value":[],"@odata.nextLink":""}"#;
    let (_, end) = split(page).unwrap();
    assert_eq!((end.metadata_version.as_deref(), end.next), (Some("4711"), None));
    assert!(split(r#"{"value":[],"@odata.nextLink":7}"#).is_err());
}

#[test]
fn an_empty_page_with_a_next_link_is_a_page() {
    let (kept, end) = split(r#"{"value":[],"@odata.nextLink":"https://o/n"}"#).unwrap();
    assert!(kept.rows.is_empty());
    assert_eq!(end.next.as_deref(), Some("https://o/n"));
}

#[test]
fn deletions_of_both_forms_are_not_rows() {
    let page = r#"{"value":[{"accountid":"a","@odata.context":"https://o/$metadata#accounts/$entity"},
        {"@odata.context":"https://o/$metadata#accounts/$deletedEntity","id":"a\u002d2","reason":"deleted"},
        {"@removed":{"reason":"changed"},"@id":"a3"}]}"#;
    let (kept, _) = split(page).unwrap();
    assert_eq!(kept.rows.len(), 1);
    let deletion = |key: &str, reason: &str| Deletion { key: key.into(), reason: reason.into() };
    assert_eq!(kept.deletions, [deletion("a-2", "deleted"), deletion("a3", "changed")]);
    assert!(matches!(split(r#"{"value":[{"@removed":{}}]}"#), Err(PageFault::Malformed { .. })));
}

#[test]
fn an_oversized_row_is_passed_over_and_its_neighbours_survive() {
    let giant = format!(r#"{{"id":"g","body":"{}"}}"#, "}\\\"".repeat(20_000));
    let page = format!(r#"{{"value":[{{"id":1}},{giant},{{"id":2}}]}}"#);
    for size in [1, 7, 1000, 4096, 16 * 1024, 16 * 1024 + 1, page.len()] {
        let (kept, _) = split_pieces(page.as_bytes().chunks(size)).unwrap();
        assert_eq!(kept.rows, [r#"{"id":1}"#, r#"{"id":2}"#], "pieces of {size}");
        assert_eq!(kept.oversized, [(OVERSIZED_START_BYTES_MAX, giant.len() as u64)], "pieces of {size}");
    }
}

#[test]
fn an_error_inside_a_page_is_a_fault_with_its_code() {
    let page = r#"{"value":[{"id":1}],"error":{"code":"0x80040216","message":"An unexpected error occurred."}}"#;
    match split(page) {
        Err(PageFault::Service(error)) => assert_eq!(error.code, Some(0x8004_0216)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(split(r#"{"error":{"code":"","message":"x"}}"#), Err(PageFault::Service(_))));
}

#[test]
fn what_is_not_a_page_is_refused() {
    for page in [
        "<html></html>",
        "[]",
        r#"{"value":{}}"#,
        r#"{"value":[1]}"#,
        r#"{"value":[{}{}]}"#,
        r#"{"value":[{},]}"#,
        r#"{"value":[,{}]}"#,
        r#"{"value":[]},"#,
        r#"{"value":[]}{}"#,
        r#"{"value":[],"value":[]}"#,
        r#"{"value":[] "a":1}"#,
        r#"{"value":[],}"#,
        r#"{"a":01,"value":[]}"#,
        r#"{"a":{"b":],"value":[]}"#,
        r#"{"@odata.nextLink":7,"value":[]}"#,
        r#"{"value":[{"a":[}]}"#,
        r#"{"value":[{"a":tru}]}"#,
        "{}",
        r#"{"@odata.context":"x"}"#,
    ] {
        for size in [1, 3, page.len()] {
            let result = split_pieces(page.as_bytes().chunks(size));
            assert!(matches!(result, Err(PageFault::Malformed { .. })), "{page} in pieces of {size}: {result:?}");
        }
    }
    let long = format!(r#"{{"@odata.nextLink":"{}","value":[]}}"#, "x".repeat(70_000));
    assert!(matches!(split(&long), Err(PageFault::MemberTooLarge)));
}

#[test]
fn a_sink_that_stops_ends_the_page() {
    let mut kept = Kept { rows_max: Some(1), ..Kept::default() };
    let mut splitter = PageSplitter::new(ROW_BYTES_MAX);
    let result = splitter.feed(br#"{"value":[{"a":1},{"a":2},{"a":3}]}"#, &mut kept);
    assert!(matches!(result, Err(PageFault::Stopped)));
    assert_eq!(kept.rows.len(), 1);
}

fn json_text() -> impl Strategy<Value = String> {
    // Everything that could mislead a splitter: quotes, backslashes, brackets, commas, other scripts.
    proptest::collection::vec(
        prop_oneof![
            Just("\\\"".to_owned()),
            Just("\\\\".to_owned()),
            Just("\\u0022".to_owned()),
            Just("}".to_owned()),
            Just("]".to_owned()),
            Just("{".to_owned()),
            Just(",".to_owned()),
            Just("é漢😀".to_owned()),
            "[a-z]{0,30}",
        ],
        0..6,
    )
    .prop_map(|parts| format!("\"{}\"", parts.concat()))
}

fn json_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        json_text(),
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?[1-9][0-9]{0,17}(\\.[0-9]{1,10})?",
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            proptest::collection::vec((json_text(), inner), 0..4).prop_map(|pairs| {
                let pairs: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("{{{}}}", pairs.join(","))
            }),
        ]
    })
}

prop_compose! {
    fn row()(values in proptest::collection::vec(json_value(), 0..8)) -> String {
        let members: Vec<String> =
            values.into_iter().enumerate().map(|(index, value)| format!("\"m{index}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    }
}

fn space() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\r\n\t")]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_page_in_any_chunks_gives_the_same_rows_and_no_prefix_of_it_is_a_page(
        rows in proptest::collection::vec(row(), 0..12),
        links_first in any::<bool>(),
        space in space(),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
    ) {
        let links = format!("\"@odata.nextLink\":{space}\"https://o/n?a=\\\"\"");
        let value = format!("\"value\"{space}:{space}[{space}{}{space}]", rows.join(&format!("{space},{space}")));
        let (first, second) = if links_first { (&links, &value) } else { (&value, &links) };
        let page = format!("{{{space}\"@odata.context\":\"c\",{first}{space},{second}{space}}}");

        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(page.len())).collect();
        cuts.extend([0, page.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &page.as_bytes()[pair[0]..pair[1]]);
        let (kept, end) = split_pieces(pieces).unwrap();
        prop_assert_eq!(&kept.rows, &rows);
        prop_assert_eq!(end.next.as_deref(), Some("https://o/n?a=\""));

        for piece in [1, 5] {
            let (again, _) = split_pieces(page.as_bytes().chunks(piece)).unwrap();
            prop_assert_eq!(&again, &kept);
        }
        for cut in 0..page.len() {
            let result = split(&page[..page.floor_char_boundary(cut)]);
            prop_assert!(matches!(result, Err(PageFault::Truncated { .. })), "cut at {}: {:?}", cut, result);
        }
    }
}
