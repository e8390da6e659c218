//! Answers that the protocol notes allow and the simulator does not give (`dataverse`, by section).
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dynavault_model::{
    Ability, ColumnKind, ContentColumn, ContentItem, ContentKind, Guard, PageRequest, RowId, RowKey, RowSource,
    RowTarget, RowWrite, SharedContentSink, SharedSink, SourceError, TableSchema, Treatment, Upload, UploadSource,
    WriteKind, WriteOptions, WriteOutcome,
};
use fake::{Answer, Kept, Request, Service, json, parts, refusal, table};
use serde_json::{Value, json as value};

const ID: &str = "0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f";
const OTHER: &str = "1fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f";
const OWNER: &str = "2fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f";

/// Answers to what a target asks before it writes: names of tables, and which take bulk messages.
fn prelude(request: &Request, bulk: &[&str]) -> Option<Answer> {
    if request.path.starts_with("sdkmessagefilters") {
        let tables: Vec<Value> = bulk.iter().map(|table| value!({"primaryobjecttypecode": table})).collect();
        return Some(json(&value!({"value": tables})));
    }
    request.path.starts_with("EntityDefinitions").then(|| {
        let set = |name: &str| value!({"LogicalName": name, "EntitySetName": format!("{name}s")});
        json(&value!({"value": [set("account"), set("systemuser"), set("new_event")]}))
    })
}

fn write(id: &str, set: &Value, guard: Guard) -> RowWrite {
    RowWrite {
        key: RowKey::new(id),
        set: set.to_string().into_bytes().into(),
        guard,
        parties: Vec::new(),
        close: None,
        from_state: None,
        on_behalf: None,
    }
}

async fn written(service: &Service, table: &TableSchema, kind: WriteKind, rows: &[RowWrite]) -> Vec<WriteOutcome> {
    service.target.write(table, kind, rows, &WriteOptions::default(), &service.call).await.unwrap()
}

fn class(outcome: &WriteOutcome) -> String {
    match outcome {
        WriteOutcome::Rejected(rejection) => format!("{:?}", rejection.class),
        other => format!("{other:?}").split([' ', '{']).next().unwrap().to_string(),
    }
}

/// A table described piece by piece, as section 2.2 says, without `RetrieveMetadataChanges`.
fn pieces(request: &Request) -> Answer {
    let all = |list: Value| json(&value!({"value": list}));
    let column = |name: &str, base: &str, real: Value| {
        value!({"LogicalName": name, "AttributeType": base, "AttributeTypeName": real, "IsValidForRead": true,
            "IsValidForCreate": true, "IsValidForUpdate": true, "SourceType": 0, "RequiredLevel": {"Value": "None"}})
    };
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    match path {
        "EntityDefinitions" => all(value!([{"LogicalName": "account", "EntitySetName": "accounts",
            "PrimaryIdAttribute": "accountid", "ChangeTrackingEnabled": true, "IsOptimisticConcurrencyEnabled": true,
            "DataProviderId": "00000000-0000-0000-0000-000000000000"}])),
        // A property that this version does not know.
        "EntityDefinitions(LogicalName='account')/Attributes" if query.contains("IsPrimaryName") => {
            refusal(400, "0x0", "Could not find a property named 'IsPrimaryName'")
        }
        "EntityDefinitions(LogicalName='account')/Attributes" => all(value!([
            column("accountid", "Uniqueidentifier", value!({"Value": "UniqueidentifierType"})),
            column("name", "String", value!({"Value": "StringType"})),
            column("statecode", "State", value!({"Value": null})),
            column("statuscode", "Status", Value::Null),
            column("ownerid", "Owner", Value::Null),
            column("primarycontactid", "Lookup", value!({"Value": "LookupType"})),
            column("new_logo", "Virtual", value!({"Value": "ImageType"})),
        ])),
        "EntityDefinitions(LogicalName='account')/Attributes/Microsoft.Dynamics.CRM.StringAttributeMetadata" => {
            all(value!([{"LogicalName": "name", "MaxLength": 160}]))
        }
        "EntityDefinitions(LogicalName='account')/Attributes/Microsoft.Dynamics.CRM.LookupAttributeMetadata" => {
            all(value!([{"LogicalName": "primarycontactid", "Targets": ["contact"]}]))
        }
        "EntityDefinitions(LogicalName='account')/Attributes/Microsoft.Dynamics.CRM.StateAttributeMetadata" => {
            all(value!([{"LogicalName": "statecode", "OptionSet": {"Options": [{"Value": 0}, {"Value": 1}]}}]))
        }
        "EntityDefinitions(LogicalName='account')/Attributes/Microsoft.Dynamics.CRM.StatusAttributeMetadata" => all(
            value!([{"LogicalName": "statuscode", "OptionSet": {"Options": [{"Value": 1, "State": 0}, {"Value": 2, "State": 1}]}}]),
        ),
        "EntityDefinitions(LogicalName='account')/ManyToOneRelationships" => all(value!([
            {"ReferencingAttribute": "primarycontactid", "ReferencedEntity": "contact",
             "ReferencingEntityNavigationPropertyName": "primarycontactid"}])),
        "EntityDefinitions(LogicalName='account')/ManyToManyRelationships" => refusal(501, "", "not offered"),
        _ => refusal(404, "0x8006088a", "Resource not found for the segment"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_writable_also_where_its_definition_comes_piece_by_piece() {
    let service = Service::new(pieces).await;
    let listings = service.source.discover(&service.call).await.unwrap();
    let schema = listings.into_iter().next().unwrap().schema.unwrap();
    assert!(schema.tracked);
    let members: Vec<&str> = schema.columns.iter().map(|column| column.member.as_str()).collect();
    assert_eq!(
        members,
        ["accountid", "name", "new_logo", "_ownerid_value", "_primarycontactid_value", "statecode", "statuscode"]
    );
    let rules = service.target.rules(&schema);
    assert_eq!(rules.treatment, Treatment::Rows);
    assert!(rules.guards_versions);
    assert_eq!(rules.owner.as_deref(), Some("_ownerid_value"));
    assert_eq!(rules.state.as_ref().unwrap().initial_statuses, [1]);
    assert_eq!(rules.column("name").unwrap().kind, ColumnKind::Text(Some(160)));
    assert!(rules.column("name").unwrap().update);
    let contact = &rules.column("_primarycontactid_value").unwrap().kind;
    assert_eq!(*contact, ColumnKind::Lookup { targets: vec!["contact".into()] });
    // Only types that the table has are asked for.
    assert!(
        service.requests("EntityDefinitions(LogicalName='account')/Attributes/Microsoft.Dynamics.CRM.Memo").is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pages_of_one_reading_are_asked_for_alike() {
    let service = Service::new(|request| {
        let next = (!request.path.contains("skiptoken"))
            .then(|| format!("http://{}/api/data/v9.2/accounts?$skiptoken=2", request.header("host").unwrap()));
        json(&value!({"value": [{"accountid": ID}], "@odata.nextLink": next}))
    })
    .await;
    let table = table("account", &["name"], Value::Null);
    let base = &service.base;
    let delta = format!("{base}accounts?$select=name&$deltatoken=1");
    for first in [PageRequest::First { tracked: true }, PageRequest::First { tracked: false }, PageRequest::Link(delta)]
    {
        let before = service.requests("accounts").len();
        let mut page = first.clone();
        for _ in 0..2 {
            let sink = Arc::new(Mutex::new(Kept::default())) as SharedSink;
            let end = service.source.read_page(&table, &page, sink, &service.call).await.unwrap();
            let Some(next) = end.next else { break };
            page = PageRequest::Link(next);
        }
        let requests = service.requests("accounts").split_off(before);
        let prefer: Vec<&str> = requests.iter().map(|request| request.header("prefer").unwrap()).collect();
        assert_eq!(prefer.len(), 2);
        assert_eq!(prefer[0], prefer[1], "{first:?}");
        assert_eq!(prefer[0].contains("track-changes"), matches!(first, PageRequest::First { tracked: true }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_found_by_their_keys_whatever_form_of_question_a_service_takes() {
    // Without the query function; without conditions on many ids; with a filter that is not heeded at all.
    for (least, requests) in [("In(", 1), (" eq ", 2), ("(", 4), ("", 1)] {
        let service = Service::new(move |request| {
            let row = |id: &str| value!({"@odata.etag": "W/\"7\"", "accountid": id, "name": "a"});
            let path = &request.path;
            if path.starts_with("accounts?") && (least.is_empty() || path.contains(least) && least != "(") {
                return json(&value!({"value": [row(ID), row(OWNER), row(OTHER)]}));
            }
            if !path.starts_with("accounts(") {
                return refusal(400, "0x80060888", "the query is not supported");
            }
            assert_eq!(least, "(", "{path}");
            if path.contains(OTHER) {
                return refusal(404, "0x80040217", "account With Id = 1 Does Not Exist");
            }
            let mut alone = row(ID);
            alone["@odata.context"] = value!("x");
            let text = serde_json::to_string_pretty(&alone).unwrap();
            (200, vec![("Content-Type", "application/json".into())], text.into_bytes())
        })
        .await;
        let accounts = table("account", &["name"], Value::Null);
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (keys, sink) = ([ID, OTHER].map(RowKey::new), Arc::clone(&kept) as SharedSink);
        service.target.read_rows(&accounts, &keys, sink, &service.call).await.unwrap();
        let rows = std::mem::take(&mut kept.lock().unwrap().rows);
        let found: Vec<&str> = rows.iter().map(|row| row["accountid"].as_str().unwrap()).collect();
        assert_eq!(found, if least == "(" { vec![ID] } else { vec![ID, OTHER] }, "{least:?}");
        assert_eq!(rows[0], value!({"@odata.etag": "W/\"7\"", "accountid": ID, "name": "a"}));
        assert_eq!(service.requests("accounts").len(), requests, "{least:?}");
        // What was found out is remembered.
        let sink = Arc::new(Mutex::new(Kept::default())) as SharedSink;
        service.target.read_rows(&accounts, &keys[..1], sink, &service.call).await.unwrap();
        assert_eq!(service.requests("accounts").len(), requests + 1, "{least:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_of_a_write_into_an_elastic_table_is_used_by_the_next_reading() {
    let service = Service::new(|request| {
        if let Some(answer) = prelude(request, &["new_event"]) {
            return answer;
        }
        match request.method.as_str() {
            "POST" => (200, vec![("x-ms-session-token", "0:1#17".into())], b"{\"Ids\":[]}".to_vec()),
            _ => json(&value!({"value": []})),
        }
    })
    .await;
    let events = table("new_event", &["name"], value!({"TableType": "Elastic"}));
    let read = async |asked: Option<&str>| {
        let sink = Arc::new(Mutex::new(Kept::default())) as SharedSink;
        service.target.read_rows(&events, &[RowKey::new(ID)], sink, &service.call).await.unwrap();
        let request = service.requests("new_events?").pop().unwrap();
        assert_eq!(request.header("mscrm.sessiontoken"), asked);
    };
    read(None).await;
    let rows = [ID, OTHER].map(|id| write(id, &value!({"name": "a"}), Guard::Absent));
    assert_eq!(written(&service, &events, WriteKind::Create, &rows).await, [WriteOutcome::Done, WriteOutcome::Done]);
    read(Some("0:1#17")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_an_elastic_table_lists_as_written_are_done() {
    for details in [
        r#"[{"RequestIndex":0,"Id":"x","StatusCode":204},{"RequestIndex":1,"Id":"y","StatusCode":409}]"#,
        r#"[{"RequestIndex":"1","StatusCode":"409"}]"#,
    ] {
        let service = Service::new(move |request| {
            prelude(request, &["new_event"]).unwrap_or_else(|| {
                let body = value!({"error": {"code": "0x80044150", "message": "some failed",
                    "@Microsoft.PowerApps.CDS.ErrorDetails.Plugin.BulkApiErrorDetails": details}});
                (400, vec![("Content-Type", "application/json".into())], body.to_string().into_bytes())
            })
        })
        .await;
        let events = table("new_event", &["name"], value!({"TableType": "Elastic"}));
        let rows = [ID, OTHER].map(|id| write(id, &value!({"name": "a"}), Guard::Absent));
        let outcomes = written(&service, &events, WriteKind::Create, &rows).await;
        assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), ["Done", "Conflict"], "{details}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_compared_by_us_where_a_table_refuses_to() {
    let service = Service::new(|request| {
        if let Some(answer) = prelude(request, &[]) {
            return answer;
        }
        if request.method == "GET" {
            let row = |id: &str, etag: &str| value!({"accountid": id, "@odata.etag": etag});
            return json(&value!({"value": [row(ID, "W/\"7\""), row(OTHER, "W/\"9\"")]}));
        }
        let text = value!({"error": {"code": "0x8006088d", "message": "not enabled"}}).to_string();
        let count = request.body.matches("HTTP/1.1\r\n").count();
        let tagged = request.body.contains("W/\"7\"");
        parts(&vec![if tagged { (400, text) } else { (204, String::new()) }; count])
    })
    .await;
    let accounts = table("account", &["name"], value!({"IsOptimisticConcurrencyEnabled": true}));
    let rows = [ID, OTHER].map(|id| write(id, &value!({"name": "a"}), Guard::Unchanged("W/\"7\"".into())));
    let outcomes = written(&service, &accounts, WriteKind::Update, &rows).await;
    assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), ["Done", "Conflict"]);
    let last = service.requests("$batch").pop().unwrap();
    assert!(last.body.contains("If-Match: *") && last.body.contains(ID) && !last.body.contains(OTHER), "{}", last.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privilege_that_an_owner_lacks_costs_neither_the_table_nor_rows_of_others() {
    let service = Service::new(|request| {
        prelude(request, &["account"]).unwrap_or_else(|| {
            let text =
                format!("Principal user (Id={OWNER}, type=8) is missing prvReadAccount privilege (Id=1) on OTC=1");
            let refused = value!({"error": {"code": "0x80040220", "message": text}}).to_string();
            if request.path == "$batch" {
                let bodies = request.body.split("HTTP/1.1\r\n").skip(1);
                let part =
                    |body: &str| if body.contains(OWNER) { (403, refused.clone()) } else { (204, String::new()) };
                return parts(&bodies.map(part).collect::<Vec<_>>());
            }
            assert!(request.body.contains(OWNER), "a bulk message");
            refusal(403, "0x80040220", &text)
        })
    })
    .await;
    let column = value!({"LogicalName": "ownerid", "AttributeTypeName": {"Value": "OwnerType"}});
    let accounts = table("account", &["name"], value!({"Attributes": [column]}));
    let with_owner = value!({"name": "a", "_ownerid_value": OWNER,
        "_ownerid_value@Microsoft.Dynamics.CRM.lookuplogicalname": "systemuser"});
    let rows = [write(ID, &value!({"name": "b"}), Guard::Absent), write(OTHER, &with_owner, Guard::Absent)];
    let outcomes = written(&service, &accounts, WriteKind::Create, &rows).await;
    assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), ["Done", "Owner"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privilege_to_bypass_logic_that_is_missing_stops_the_run_with_the_way_out() {
    let service = Service::new(|request| {
        prelude(request, &["account"]).unwrap_or_else(|| {
            refusal(
                403,
                "0x80040220",
                "Principal user (Id=1, type=8) is missing prvBypassCustomBusinessLogic privilege",
            )
        })
    })
    .await;
    let accounts = table("account", &["name"], Value::Null);
    let rows = [ID, OTHER].map(|id| write(id, &value!({"name": "a"}), Guard::Absent));
    let error = service
        .target
        .write(&accounts, WriteKind::Create, &rows, &WriteOptions::default(), &service.call)
        .await
        .unwrap_err();
    let SourceError::StopRun { remedy: Some(remedy), .. } = error else { panic!("{error:?}") };
    assert!(remedy.contains("prvBypassCustomBusinessLogic") && remedy.contains("--run-automation"), "{remedy}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_of_creation_that_may_not_be_kept_is_left_out_of_this_and_all_later_rows() {
    let service = Service::new(|request| {
        prelude(request, &["account"]).unwrap_or_else(|| {
            let message = "Principal user (Id=1, type=8) is missing prvOverrideCreatedOnCreatedBy privilege";
            let kept = request.body.contains("overriddencreatedon");
            if kept { refusal(403, "0x80040220", message) } else { json(&value!({"Ids": []})) }
        })
    })
    .await;
    let accounts = table("account", &["name"], Value::Null);
    let old = value!({"name": "a", "overriddencreatedon": "2019-03-01T08:00:00Z"});
    for requests in [2, 1] {
        let before = service.requests("accounts/").len();
        let rows = [ID, OTHER].map(|id| write(id, &old, Guard::Absent));
        assert_eq!(
            written(&service, &accounts, WriteKind::Create, &rows).await,
            [WriteOutcome::Done, WriteOutcome::Done]
        );
        assert_eq!(service.requests("accounts/").len() - before, requests);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_lists_no_privileges_is_asked_with_a_request_that_bypasses_logic() {
    for (refuses, expected) in
        [(true, Ability::Missing("prvBypassCustomBusinessLogic".into())), (false, Ability::Unknown)]
    {
        let service = Service::new(move |request| {
            if let Some(answer) = prelude(request, &[]) {
                return answer;
            }
            let bypasses = request.header("mscrm.bypassbusinesslogicexecution").is_some();
            match request.path.as_str() {
                "WhoAmI" if bypasses && refuses => refusal(403, "0x80040220", "no"),
                "WhoAmI" => json(&value!({"OrganizationId": OTHER, "UserId": ID, "BusinessUnitId": OTHER})),
                _ => refusal(404, "", "No HTTP resource was found"),
            }
        })
        .await;
        let abilities = service.target.abilities(&service.call).await.unwrap();
        assert_eq!((abilities.bypass_logic, abilities.created_on), (expected, Ability::Unknown));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_bin_says_a_row_is_made_anew() {
    for (status, code) in [(404, "0x80040800"), (501, ""), (403, "0x80040220"), (400, "0x80049959")] {
        let service = Service::new(move |request| {
            prelude(request, &[]).unwrap_or_else(|| {
                let text = value!({"error": {"code": code, "message": "no"}}).to_string();
                let restores = request.body.contains("/Restore HTTP/1.1");
                parts(&[if restores { (status, text) } else { (204, String::new()) }])
            })
        })
        .await;
        let accounts = table("account", &["name"], Value::Null);
        let rows = [write(ID, &value!({"name": "a"}), Guard::Absent)];
        assert_eq!(written(&service, &accounts, WriteKind::Undelete, &rows).await, [WriteOutcome::Done], "{code}");
    }
    let service = Service::new(|_| refusal(400, "0x80041102", "Data source bin is not supported for table")).await;
    let accounts = table("account", &["name"], Value::Null);
    assert!(service.target.in_bin(&accounts, &[RowKey::new(ID)], &service.call).await.unwrap().is_empty());
}

fn file() -> (ContentColumn, ContentItem) {
    let column = ContentColumn {
        column: "new_contract".into(),
        kind: ContentKind::File,
        version_member: "new_contract".into(),
        presence_member: "new_contract".into(),
        name_member: None,
    };
    let item = ContentItem {
        row: RowId::from_guid(ID.as_bytes()).unwrap(),
        key: ID.into(),
        column: "new_contract".into(),
        version: String::new(),
        name: None,
        bytes: None,
    };
    (column, item)
}

const WHOLE: &[u8] = b"the bytes of a contract, in pieces";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_comes_in_small_pieces_without_its_size_header_is_whole() {
    let service = Service::new(|request| {
        let range = request.header("range").unwrap().strip_prefix("bytes=").unwrap();
        let from: usize = range.split_once('-').unwrap().0.parse().unwrap();
        let to = (from + 10).min(WHOLE.len());
        let range = format!("bytes {from}-{}/{}", to - 1, WHOLE.len());
        (206, vec![("Content-Range", range)], WHOLE[from..to].to_vec())
    })
    .await;
    assert_eq!(downloaded(&service).await, WHOLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_the_service_does_not_cut_comes_whole() {
    for (status, code) in [(400, "0x80090017"), (416, ""), (501, "")] {
        let service = Service::new(move |request| match request.header("range") {
            Some(_) => refusal(status, code, "no ranges"),
            None => (200, vec![("x-ms-file-size", WHOLE.len().to_string())], WHOLE.to_vec()),
        })
        .await;
        assert_eq!(downloaded(&service).await, WHOLE);
    }
}

async fn downloaded(service: &Service) -> Vec<u8> {
    let (column, item) = file();
    let kept = Arc::new(Mutex::new(Kept::default()));
    let sink = Arc::clone(&kept) as SharedContentSink;
    let accounts = table("account", &["new_contract"], Value::Null);
    service.source.read_content(&accounts, &column, &item, sink, &service.call).await.unwrap();
    std::mem::take(&mut kept.lock().unwrap().bytes)
}

struct Stored;

impl UploadSource for Stored {
    fn open(&self) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        Ok(Box::new(WHOLE))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_repeat_the_name_of_the_file_where_a_header_can_hold_it() {
    for (name, in_header) in [("contract 1.pdf", Some("contract 1.pdf")), ("Verträge.pdf", None)] {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let service = Service::new(move |request| {
            if let Some(answer) = prelude(request, &[]) {
                return answer;
            }
            if request.header("x-ms-transfer-mode").is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                let session = format!(
                    "http://{}/api/data/v9.2/accounts({ID})/new_contract?sessiontoken=s1",
                    request.header("host").unwrap()
                );
                return (200, vec![("Location", session), ("x-ms-chunk-size", "20".into())], Vec::new());
            }
            (if request.header("content-range").unwrap().contains("-33/") { 204 } else { 206 }, vec![], vec![])
        })
        .await;
        let upload = Upload { name: Some(name.into()), mime: None, size: WHOLE.len() as u64, source: Arc::new(Stored) };
        let accounts = table("account", &["new_contract"], Value::Null);
        let (column, key) = (file().0, RowKey::new(ID));
        let options = WriteOptions::default();
        let outcome = service.target.upload(&accounts, &column, &key, &upload, &options, &service.call).await.unwrap();
        assert_eq!(outcome, WriteOutcome::Done);
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        let chunks: Vec<Request> =
            service.requests("accounts(").into_iter().filter(|one| one.path.contains("session")).collect();
        assert_eq!(chunks.iter().map(|chunk| chunk.body.as_str()).collect::<String>().as_bytes(), WHOLE);
        assert!(chunks.iter().all(|chunk| chunk.header("x-ms-file-name") == in_header), "{name}");
    }
}
