//! The simulator over real HTTP, seen by a client of a hundred lines that shares nothing with it.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
#![expect(clippy::disallowed_methods, reason = "answers are small, and this client has no budget to keep")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use dynavault_simulator::{Config, FaultKind, Faults, Limits, Simulator, TableFault, TableKind};
use serde_json::value::RawValue;
use serde_json::{Value, json};

type Rows = BTreeMap<Vec<String>, String>;

const ANNOTATIONS: &str = "odata.include-annotations=\"Microsoft.Dynamics.CRM.lookuplogicalname,Microsoft.Dynamics.CRM.associatednavigationproperty\"";

struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

struct Reply {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

async fn sign_in(simulator: &Simulator, client_id: &str, secret: &str) -> (u16, Value) {
    let url = format!("{}/{}/oauth2/v2.0/token", simulator.authority(), simulator.tenant());
    let scope = format!("{}/.default", simulator.url());
    let form =
        [("grant_type", "client_credentials"), ("client_id", client_id), ("client_secret", secret), ("scope", &scope)];
    let reply = reqwest::Client::new().post(url).form(&form).send().await.unwrap();
    (reply.status().as_u16(), reply.json().await.unwrap_or(Value::Null))
}

impl Client {
    async fn new(simulator: &Simulator) -> Self {
        let (status, body) = sign_in(simulator, &simulator.client_id(), &simulator.secret()).await;
        assert_eq!(status, 200, "{body}");
        Self {
            http: reqwest::Client::new(),
            url: simulator.url(),
            token: body["access_token"].as_str().unwrap().to_owned(),
        }
    }

    fn api(&self, path: &str) -> String {
        format!("{}/api/data/v9.2/{path}", self.url)
    }

    async fn try_get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Reply, reqwest::Error> {
        let mut request = self.http.get(url).bearer_auth(&self.token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = request.send().await?;
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        Ok(Reply { status, headers, body: reply.bytes().await?.to_vec() })
    }

    async fn get(&self, path: &str, prefer: &str) -> Reply {
        self.try_get(&self.api(path), &[("prefer", prefer)]).await.unwrap()
    }

    /// Columns a backup would name (dataverse RULE 2.1), but for those the oracle leaves out.
    async fn columns(&self, table: &str) -> Vec<String> {
        let names = "LogicalName,AttributeTypeName,AttributeOf,IsValidForRead,IsValidODataAttribute";
        let reply = self.get(&format!("EntityDefinitions(LogicalName='{table}')/Attributes?$select={names}"), "").await;
        assert_eq!(reply.status, 200);
        let mut columns = Vec::new();
        for column in reply.json()["value"].as_array().unwrap() {
            let (name, kind) =
                (column["LogicalName"].as_str().unwrap(), column["AttributeTypeName"]["Value"].as_str().unwrap());
            if !column["AttributeOf"].is_null() || kind == "PartyListType" || matches!(name, "documentbody" | "body") {
                continue;
            }
            columns.push(if matches!(kind, "LookupType" | "CustomerType" | "OwnerType") {
                format!("_{name}_value")
            } else {
                name.to_owned()
            });
        }
        columns
    }

    /// Reads pages to the end; rows by key, deleted ids, the delta link.
    async fn read(
        &self,
        first: &str,
        prefer: &str,
        keys: &[String],
    ) -> (Rows, BTreeSet<String>, Option<String>, usize) {
        let (mut rows, mut deleted, mut link, mut pages) = (Rows::new(), BTreeSet::new(), Some(first.to_owned()), 0);
        let mut delta = None;
        while let Some(url) = link.take() {
            let reply = self.try_get(&url, &[("prefer", prefer)]).await.unwrap();
            assert_eq!(reply.status, 200, "{url}: {}", String::from_utf8_lossy(&reply.body));
            pages += 1;
            let page: BTreeMap<&str, &RawValue> = serde_json::from_slice(&reply.body).unwrap();
            let values: Vec<&RawValue> = serde_json::from_str(page["value"].get()).unwrap();
            for raw in values {
                let row: Value = serde_json::from_str(raw.get()).unwrap();
                if row["reason"] == json!("deleted") {
                    deleted.insert(row["id"].as_str().unwrap().to_owned());
                    continue;
                }
                let etag_end = raw.get().find("\\\"\"").unwrap() + 4;
                let json = format!("{{{}", &raw.get()[etag_end..]);
                rows.insert(keys.iter().map(|key| row[key].as_str().unwrap().to_owned()).collect(), json);
            }
            let text = |name: &str| page.get(name).map(|raw| serde_json::from_str::<String>(raw.get()).unwrap());
            delta = text("@odata.deltaLink");
            link = text("@odata.nextLink");
        }
        (rows, deleted, delta, pages)
    }
}

fn oracle(simulator: &Simulator, table: &str) -> Rows {
    simulator.rows(table).into_iter().map(|row| (row.keys, row.json)).collect()
}

fn keys(primary_id: &str, kind: TableKind) -> Vec<String> {
    let mut keys = vec![primary_id.to_owned()];
    if kind == TableKind::Elastic {
        keys.push("partitionid".to_owned());
    }
    keys
}

async fn start(config: Config) -> Simulator {
    Simulator::start(config).await.unwrap()
}

#[tokio::test]
async fn every_table_reads_as_the_oracle_says_and_deltas_keep_up() {
    let simulator = start(Config { big_table_rows: 700, ..Config::default() }).await;
    let client = Client::new(&simulator).await;
    let mut links = BTreeMap::new();
    let mut total = 0;
    for table in simulator.tables().into_iter().filter(|table| table.readable) {
        let columns = client.columns(&table.logical_name).await;
        let url = client.api(&format!("{}?$select={}", table.entity_set.as_ref().unwrap(), columns.join(",")));
        let tracking = if table.trackable { ",odata.track-changes" } else { "" };
        let prefer = format!("odata.maxpagesize=37,{ANNOTATIONS}{tracking}");
        let keys = keys(&table.primary_id, table.kind);
        let (rows, deleted, delta, pages) = client.read(&url, &prefer, &keys).await;
        let expected = oracle(&simulator, &table.logical_name);
        assert_eq!(rows, expected, "{}", table.logical_name);
        assert_eq!(rows.len() as u64, table.rows, "{}", table.logical_name);
        assert!(deleted.is_empty());
        assert_eq!(pages, rows.len().div_ceil(37).max(1), "{}", table.logical_name);
        assert_eq!(delta.is_some(), table.trackable, "{}", table.logical_name);
        if let Some(delta) = delta {
            links.insert(table.logical_name.clone(), (delta, keys, rows));
        }
        total += table.rows;
    }
    assert!(links.len() > 20 && total > 2_000, "{} tables, {total} rows", links.len());
    for round in 0..3 {
        let summary = simulator.edit(40 + round, 300);
        assert!(summary.tables.len() > 10, "{summary:?}");
        for (table, (link, keys, before)) in &mut links {
            let prefer = format!("odata.maxpagesize=11,{ANNOTATIONS}");
            let (changed, deleted, delta, _) = client.read(link, &prefer, keys).await;
            let after = oracle(&simulator, table);
            let expected: Rows = after
                .iter()
                .filter(|(key, json)| before.get(*key) != Some(json))
                .map(|(key, json)| (key.clone(), json.clone()))
                .collect();
            assert_eq!(changed, expected, "{table}");
            let gone: BTreeSet<String> =
                before.keys().filter(|key| !after.contains_key(*key)).map(|key| key[0].clone()).collect();
            // Rows that came and went, and rows that came back, are reported as deleted too.
            assert!(gone.is_subset(&deleted), "{table}");
            let again = client.try_get(link, &[]).await.unwrap();
            assert_eq!(again.status, 200, "an old link may be repeated");
            *link = delta.unwrap();
            *before = after;
        }
    }
    let stats = simulator.stats();
    assert!(stats.by_kind["delta"] > 60 && stats.by_table["account"] > 3, "{stats:?}");
    simulator.stop().await;
}

#[tokio::test]
async fn refusals_have_the_codes_of_the_service() {
    let simulator = start(Config::default()).await;
    let client = Client::new(&simulator).await;
    let unsigned = reqwest::get(client.api("WhoAmI")).await.unwrap();
    assert_eq!(unsigned.status(), 401);
    assert!(unsigned.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer authorization_uri=http"));
    let tracked = "odata.track-changes";
    for (path, prefer, status, code) in [
        ("account", "", 404, "0x8006088a"),
        ("Accounts", "", 404, "0x8006088a"),
        ("accounts?$select=nonsense", "", 400, "0x0"),
        ("accounts?$select=ownerid", "", 400, "0x0"),
        ("accounts?$select=owneridname", "", 400, "0x0"),
        ("emails?$select=to", "", 400, "0x0"),
        ("accounts?$skip=3", "", 400, "0x80060888"),
        ("accounts?$skiptoken=nonsense", "", 400, "0x8004112a"),
        ("accounts(00000000-0000-0000-0000-000000000001)", "", 404, "0x80040217"),
        ("new_externals", "", 400, "0x80044822"),
        ("new_secrets", "", 403, "0x80040220"),
        ("new_blockeds", "", 501, "0x80040800"),
        ("new_notes", tracked, 400, "0x80072491"),
        ("new_widget_noteset", tracked, 400, "0x80072492"),
        ("accounts?$top=3", tracked, 400, "0x80060888"),
        ("accounts?$filter=name eq 'x'", tracked, 400, "0x80060888"),
        ("EntityDefinitions?$select=Nonsense", "", 400, "0x0"),
    ] {
        let reply = client.get(path, prefer).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{path}");
    }
    let secret = client.get("new_secrets", "").await.json();
    assert!(secret["error"]["message"].as_str().unwrap().contains("is missing prvReadnew_Secret privilege"));
    // The privilege can be taken and given back.
    simulator.deny("lead");
    assert_eq!(client.get("leads", "").await.status, 403);
    simulator.allow("lead");
    simulator.restrict("contact");
    assert_eq!(client.get("leads", "").await.status, 200);
    assert_eq!(client.get("contacts", "").await.status, 200);
    assert_eq!(client.get("contacts", tracked).await.code(), "0x80040220");
}

#[tokio::test]
async fn tokens_and_secrets_expire() {
    let simulator = start(Config { token_lifetime: Duration::from_millis(300), ..Config::default() }).await;
    let client = Client::new(&simulator).await;
    assert_eq!(client.get("WhoAmI", "").await.status, 200);
    tokio::time::sleep(Duration::from_millis(320)).await;
    assert_eq!(client.get("WhoAmI", "").await.status, 401);
    let client = Client::new(&simulator).await;
    simulator.revoke_tokens();
    assert_eq!(client.get("WhoAmI", "").await.status, 401);
    let (status, body) = sign_in(&simulator, &simulator.client_id(), "wrong").await;
    assert_eq!(
        (status, body["error"].as_str(), body["error_codes"][0].as_u64()),
        (401, Some("invalid_client"), Some(7_000_215))
    );
    assert_eq!(sign_in(&simulator, &simulator.clients()[2], &simulator.secret()).await.0, 200);
    simulator.set_faults(Faults { token_unavailable: 2, ..Faults::default() });
    for expected in [503, 503, 200] {
        assert_eq!(sign_in(&simulator, &simulator.client_id(), &simulator.secret()).await.0, expected);
    }
    simulator.expire_secret();
    let (status, body) = sign_in(&simulator, &simulator.client_id(), &simulator.secret()).await;
    assert_eq!((status, body["error_codes"][0].as_u64()), (401, Some(7_000_222)));
}

async fn tracked(client: &Client) -> String {
    client.read(&client.api("accounts?$select=name"), "odata.track-changes", &["accountid".to_owned()]).await.2.unwrap()
}

#[tokio::test]
async fn delta_tokens_expire_by_age_and_by_order() {
    let simulator = start(Config { expired_token_status: 410, ..Config::default() }).await;
    let client = Client::new(&simulator).await;
    let link = tracked(&client).await;
    simulator.advance(Duration::from_secs(6 * 86_400));
    assert_eq!(client.try_get(&link, &[]).await.unwrap().status, 200);
    simulator.advance(Duration::from_secs(2 * 86_400));
    let reply = client.try_get(&link, &[]).await.unwrap();
    assert_eq!((reply.status, reply.code().as_str()), (410, "0x80044352"));
    let link = tracked(&client).await;
    simulator.expire_delta_tokens();
    assert_eq!(client.try_get(&link, &[]).await.unwrap().code(), "0x80044352");
    let link = tracked(&client).await;
    assert_eq!(client.try_get(&link, &[]).await.unwrap().status, 200);
    // The formatted values cost the delta link (dataverse 4.6).
    let prefer = "odata.track-changes,odata.include-annotations=\"OData.Community.Display.V1.FormattedValue\"";
    let (_, _, delta, _) = client.read(&client.api("accounts?$select=name"), prefer, &["accountid".to_owned()]).await;
    assert!(delta.is_none());
}

#[tokio::test]
async fn changes_while_paging_are_seen_again() {
    let simulator = start(Config::default()).await;
    let client = Client::new(&simulator).await;
    let keys = ["accountid".to_owned()];
    let columns = client.columns("account").await.join(",");
    let first = client
        .try_get(
            &client.api(&format!("accounts?$select={columns}")),
            &[("prefer", &format!("odata.track-changes,odata.maxpagesize=20,{ANNOTATIONS}"))],
        )
        .await
        .unwrap();
    let next = first.json()["@odata.nextLink"].as_str().unwrap().to_owned();
    simulator.edit(5, 400);
    let mut state = Rows::new();
    let (rows, _, delta, _) = client.read(&next, ANNOTATIONS, &keys).await;
    state.extend(rows);
    let (changed, deleted, _, _) = client.read(&delta.unwrap(), ANNOTATIONS, &keys).await;
    state.retain(|key, _| !deleted.contains(&key[0]));
    state.extend(changed);
    // The first page was left out above; what is there must be right.
    let now = oracle(&simulator, "account");
    assert!(state.len() > 50);
    for (key, json) in &state {
        assert_eq!(now.get(key), Some(json));
    }
    // A link belongs to its query and its generation.
    let altered = next.replace("$select=", "$select=versionnumber,");
    assert_eq!(client.try_get(&altered, &[]).await.unwrap().code(), "0x8004112a");
    simulator.reject_links();
    assert_eq!(client.try_get(&next, &[]).await.unwrap().code(), "0x8004112a");
}

fn on(nth: u64, kind: FaultKind) -> Faults {
    Faults { on: vec![TableFault { table: "account".to_owned(), nth, kind }], ..Faults::default() }
}

#[tokio::test]
async fn faults_happen_where_the_plan_says() {
    let simulator = start(Config::default()).await;
    let client = Client::new(&simulator).await;
    let size = "odata.maxpagesize=40";
    let url = client.api("accounts?$select=name");
    let mut plain = Vec::new();
    let mut link = Some(url.clone());
    while let Some(url) = link {
        let page = client.try_get(&url, &[("prefer", size)]).await.unwrap().json();
        link = page["@odata.nextLink"].as_str().map(str::to_owned);
        plain.push((url, page));
    }
    assert!(plain.len() > 2);
    let (second, second_page) = plain[1].clone();
    let request = async |nth, kind| {
        simulator.set_faults(on(nth, kind));
        client.try_get(&second, &[("prefer", size)]).await
    };
    let looping = request(1, FaultKind::RepeatedLink).await.unwrap().json();
    assert_eq!(looping["@odata.nextLink"], json!(second));
    let empty = request(1, FaultKind::EmptyPage).await.unwrap().json();
    assert_eq!(empty["value"], json!([]));
    let continued =
        client.try_get(empty["@odata.nextLink"].as_str().unwrap(), &[("prefer", size)]).await.unwrap().json();
    assert_eq!(continued["value"], second_page["value"]);
    let repeated = request(1, FaultKind::RepeatedRow).await.unwrap().json();
    assert_eq!(repeated["value"][0], plain[0].1["value"][39]);
    assert_eq!(repeated["value"][1], second_page["value"][0]);
    assert!(request(1, FaultKind::CutBody).await.is_err());
    let truncated = request(1, FaultKind::TruncatedJson).await.unwrap();
    assert!(truncated.status == 200 && serde_json::from_slice::<Value>(&truncated.body).is_err());
    assert_eq!(request(1, FaultKind::SlowBody).await.unwrap().json(), second_page);
    for (kind, status) in [
        (FaultKind::ServerError, 500),
        (FaultKind::BadGateway, 502),
        (FaultKind::Unavailable, 503),
        (FaultKind::GatewayTimeout, 504),
        (FaultKind::Throttled, 429),
        (FaultKind::HtmlSuccess, 200),
    ] {
        assert_eq!(request(1, kind).await.unwrap().status, status, "{kind:?}");
    }
    assert_eq!(request(1, FaultKind::LinksRejected).await.unwrap().code(), "0x8004112a");
    simulator.set_faults(on(1, FaultKind::LostDeltaLink));
    let lost = client.get("accounts?$select=name", "odata.track-changes").await.json();
    assert!(
        lost.get("@odata.deltaLink").is_none() && lost.get("@odata.nextLink").is_none() && lost["value"].is_array()
    );
    let before = client.get("WhoAmI", "").await.status;
    simulator.set_faults(on(1, FaultKind::TokenRevoked));
    assert_eq!((before, client.get("accounts", "").await.status), (200, 401));
    assert_eq!(simulator.stats().faults.len(), 15);
}

#[tokio::test]
async fn limits_turn_requests_away() {
    let limits = Limits { requests: 5, window: Duration::from_secs(1), ..Limits::default() };
    let simulator =
        start(Config { limits: Some(limits), execution: Some(Duration::from_millis(70)), ..Config::default() }).await;
    let client = Client::new(&simulator).await;
    let first = client.get("WhoAmI", "").await;
    assert_eq!(first.headers["x-ms-ratelimit-burst-remaining-xrm-requests"], "4");
    assert_eq!(first.headers["x-ms-ratelimit-time-remaining-xrm-requests"], "1,200.00");
    assert_eq!(first.headers["x-ms-dop-hint"], "8");
    assert!(first.headers["set-cookie"].to_str().unwrap().starts_with("ARRAffinity="));
    for _ in 0..4 {
        client.get("WhoAmI", "").await;
    }
    let turned = client.get("WhoAmI", "").await;
    assert_eq!(
        (turned.status, turned.code().as_str(), turned.headers["retry-after"].to_str().unwrap()),
        (429, "0x80072322", "1")
    );
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(client.get("WhoAmI", "").await.status, 200);
    simulator.set_limits(Some(Limits { execution: Duration::from_millis(100), ..Limits::default() }));
    let codes = [client.get("WhoAmI", "").await, client.get("WhoAmI", "").await, client.get("WhoAmI", "").await];
    assert_eq!(codes[2].code(), "0x80072321");
    let stats = simulator.stats();
    assert_eq!((stats.throttled, stats.sent_while_blocked, stats.cookies_returned), (2, 0, 0));
}

#[tokio::test]
async fn too_many_at_once_are_turned_away() {
    let limits = Limits { concurrency: 3, ..Limits::default() };
    let simulator =
        start(Config { limits: Some(limits), latency: Duration::from_millis(150), ..Config::default() }).await;
    let client = Client::new(&simulator).await;
    let replies = futures::future::join_all((0..6).map(|_| client.get("WhoAmI", ""))).await;
    let turned: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 429).collect();
    assert_eq!(turned.len(), 3);
    assert!(turned.iter().all(|reply| reply.code() == "0x80072326"));
    assert!(simulator.stats().max_in_flight >= 4);
}

#[tokio::test]
async fn files_come_whole_in_ranges_and_in_blocks() {
    let simulator = start(Config::default()).await;
    let client = Client::new(&simulator).await;
    let tables: BTreeMap<String, _> =
        simulator.tables().into_iter().map(|table| (table.logical_name.clone(), table)).collect();
    let files = simulator.files();
    assert!(files.iter().any(|file| file.bytes.len() > 4_194_304));
    let mut unchunked = 0;
    for (index, file) in files.iter().enumerate() {
        let table = &tables[&file.table];
        let full = if file.column == "entityimage" || file.column == "new_picture" { "?size=full" } else { "" };
        let url =
            client.api(&format!("{}({})/{}/$value{full}", table.entity_set.as_ref().unwrap(), file.row, file.column));
        if matches!(file.column.as_str(), "documentbody" | "body") {
            let reply = client.try_get(&url, &[]).await.unwrap();
            assert_eq!(base64::engine::general_purpose::STANDARD.decode(&reply.body).unwrap(), file.bytes);
            continue;
        }
        let mut bytes = Vec::new();
        while bytes.len() < file.bytes.len() {
            let range = format!("bytes={}-{}", bytes.len(), bytes.len() + 4_194_303);
            let reply = client.try_get(&url, &[("range", &range)]).await.unwrap();
            assert_eq!(
                (reply.status, reply.headers["x-ms-file-size"].to_str().unwrap()),
                (206, file.bytes.len().to_string().as_str())
            );
            assert!(reply.headers.contains_key("x-ms-chunk-size"));
            bytes.extend(reply.body);
        }
        assert!(bytes == file.bytes, "{}", file.column);
        if index % 3 == 0 {
            assert!(client.try_get(&url, &[]).await.unwrap().body == file.bytes);
        }
        let target = json!({"@odata.type": format!("Microsoft.Dynamics.CRM.{}", file.table), table.primary_id.as_str(): file.row});
        let body = json!({"Target": target, "FileAttributeName": file.column});
        let started: Value = client
            .http
            .post(client.api("InitializeFileBlocksDownload"))
            .bearer_auth(&client.token)
            .json(&body)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert_eq!(started["FileSizeInBytes"], json!(file.bytes.len()));
        let length = if started["IsChunkingSupported"] == json!(true) {
            file.bytes.len().min(4_194_304)
        } else {
            file.bytes.len()
        };
        unchunked += usize::from(started["IsChunkingSupported"] == json!(false));
        let block =
            json!({"Offset": 0, "BlockLength": length, "FileContinuationToken": started["FileContinuationToken"]});
        let data: Value = client
            .http
            .post(client.api("DownloadBlock"))
            .bearer_auth(&client.token)
            .json(&block)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert!(data["Data"].as_str().unwrap().len() >= length);
    }
    assert!(unchunked > 0);
    // An image without a full version answers 204.
    let images = client.get("accounts?$select=entityimageid&$filter=entityimageid ne null", "").await.json();
    let full: BTreeSet<&str> = files
        .iter()
        .filter(|file| file.table == "account" && file.column == "entityimage")
        .map(|file| file.row.as_str())
        .collect();
    for row in images["value"].as_array().unwrap() {
        let id = row["accountid"].as_str().unwrap();
        let status = client.get(&format!("accounts({id})/entityimage/$value?size=full"), "").await.status;
        assert_eq!(status, if full.contains(id) { 200 } else { 204 });
    }
}

#[tokio::test]
async fn metadata_is_told_in_both_ways() {
    let simulator = start(Config::default()).await;
    let client = Client::new(&simulator).await;
    let all = client.get("EntityDefinitions?$select=LogicalName,EntitySetName,TableType,DataProviderId,IsIntersect,ChangeTrackingEnabled", "").await.json();
    let tables = all["value"].as_array().unwrap();
    assert_eq!(tables.len(), simulator.tables().len());
    assert!(tables.iter().any(|table| table["EntitySetName"].is_null()));
    assert!(tables.iter().any(|table| table["DataProviderId"] == json!("1d9bde74-9ebd-4da9-8ff5-aa74945b9f74")));
    let tracked =
        client.get("EntityDefinitions?$select=LogicalName&$filter=ChangeTrackingEnabled eq true", "").await.json();
    assert_eq!(
        tracked["value"].as_array().unwrap().len(),
        simulator.tables().iter().filter(|table| table.change_tracking).count()
    );
    let lookups = client.get("EntityDefinitions(LogicalName='opportunity')/Attributes/Microsoft.Dynamics.CRM.LookupAttributeMetadata?$select=LogicalName,Targets", "").await.json();
    let customer = lookups["value"]
        .as_array()
        .unwrap()
        .iter()
        .find(|column| column["LogicalName"] == json!("customerid"))
        .unwrap();
    assert_eq!(customer["Targets"], json!(["account", "contact"]));
    let links = client.get("EntityDefinitions(LogicalName='account')/ManyToManyRelationships", "").await.json();
    assert!(
        links["value"]
            .as_array()
            .unwrap()
            .iter()
            .any(|link| link["Entity2IntersectAttribute"] == json!("accountidtwo"))
    );
    let query = r#"{"Properties":{"AllProperties":false,"PropertyNames":["LogicalName","EntitySetName","Attributes","ManyToOneRelationships","Keys"]},"AttributeQuery":{"Properties":{"AllProperties":true}}}"#;
    let changes = |stamp: Option<String>| {
        let mut url =
            reqwest::Url::parse(&client.api("RetrieveMetadataChanges(Query=@p1,ClientVersionStamp=@p3)")).unwrap();
        url.query_pairs_mut().append_pair("@p1", query);
        if let Some(stamp) = stamp {
            url.query_pairs_mut().append_pair("@p3", &format!("'{stamp}'"));
        }
        let client = &client;
        async move { client.try_get(url.as_str(), &[]).await.unwrap() }
    };
    let first = changes(None).await.json();
    assert_eq!(first["EntityMetadata"].as_array().unwrap().len(), tables.len());
    let account = first["EntityMetadata"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["LogicalName"] == json!("account"))
        .unwrap();
    let revenue = account["Attributes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|column| column["LogicalName"] == json!("revenue"))
        .unwrap();
    assert_eq!(
        (revenue["@odata.type"].as_str().unwrap(), &revenue["Precision"]),
        ("#Microsoft.Dynamics.CRM.MoneyAttributeMetadata", &json!(4))
    );
    assert_eq!(account["Keys"][0]["KeyAttributes"], json!(["accountnumber"]));
    let stamp = first["ServerVersionStamp"].as_str().unwrap().to_owned();
    assert_eq!(changes(Some(stamp.clone())).await.json()["EntityMetadata"], json!([]));
    let version = |reply: &Reply| reply.json()["@Microsoft.Dynamics.CRM.globalmetadataversion"].clone();
    let prefer = "odata.include-annotations=\"*\"";
    let before = version(&client.get("queues?$select=name", prefer).await);
    let change = simulator.change_schema(3);
    assert_ne!(before, version(&client.get("queues?$select=name", prefer).await));
    let altered = changes(Some(stamp.clone())).await.json();
    let names: Vec<&str> = altered["EntityMetadata"]
        .as_array()
        .unwrap()
        .iter()
        .map(|table| table["LogicalName"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&change.added_table.as_str()) && names.contains(&change.added_column.0.as_str()),
        "{names:?} {change:?}"
    );
    let (table, column) = change.removed_column.unwrap();
    let set = simulator.tables().into_iter().find(|info| info.logical_name == table).unwrap().entity_set.unwrap();
    assert_eq!(client.get(&format!("{set}?$select={column}"), "").await.code(), "0x0");
    simulator.expire_metadata_stamps();
    assert_eq!(changes(Some(stamp)).await.code(), "0x80044352");
}

#[tokio::test]
async fn elastic_rows_need_their_partition_and_links_their_gzip() {
    let simulator = start(Config::default()).await;
    let client = Client::new(&simulator).await;
    let rows = simulator.rows("new_telemetry");
    for row in &rows {
        let (id, partition) = (&row.keys[0], &row.keys[1]);
        let mut url = reqwest::Url::parse(&client.api(&format!("new_telemetries({id})"))).unwrap();
        url.query_pairs_mut().append_pair("partitionId", partition);
        assert_eq!(client.try_get(url.as_str(), &[]).await.unwrap().json()["partitionid"], json!(partition));
        let bare = client.get(&format!("new_telemetries({id})"), "").await.status;
        // Without a partition the default one is meant, which another row with this id may have.
        let has_default = rows.iter().any(|row| &row.keys[0] == id && &row.keys[1] == id);
        assert_eq!(bare, if has_default { 200 } else { 404 });
    }
    simulator.reset_stats();
    let plain = client.get("contacts", "").await;
    let packed = client.try_get(&client.api("contacts"), &[("accept-encoding", "gzip")]).await.unwrap();
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.body.len() * 2 < plain.body.len());
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.body[..]), &mut text).unwrap();
    assert_eq!(text, plain.body);
    assert_eq!(simulator.stats().repeated, 1);
}

#[tokio::test]
async fn a_seed_makes_the_same_environment() {
    let config = Config { seed: 77, rows: 500, ..Config::default() };
    let (one, two) = (start(config.clone()).await, start(config).await);
    let dump = |simulator: &Simulator| {
        simulator
            .tables()
            .iter()
            .map(|table| (table.logical_name.clone(), simulator.rows(&table.logical_name)))
            .collect::<BTreeMap<_, _>>()
    };
    // Links of images do not carry the port, so nothing differs.
    assert_eq!(dump(&one), dump(&two));
    assert_eq!(one.edit(9, 200), two.edit(9, 200));
    assert_eq!(one.change_schema(4), two.change_schema(4));
    assert_eq!(dump(&one), dump(&two));
    let other = start(Config { seed: 78, rows: 500, ..Config::default() }).await;
    assert_ne!(one.rows("account"), other.rows("account"));
}

#[tokio::test]
async fn the_controls_work_over_http() {
    let simulator = start(Config::default()).await;
    let get = |path: &str| reqwest::get(format!("{}/_simulator/{path}", simulator.url()));
    let info: Value = get("info").await.unwrap().json().await.unwrap();
    assert_eq!(info["client_id"], json!(simulator.client_id()));
    let lines = get("rows/account").await.unwrap().text().await.unwrap();
    assert_eq!(lines.lines().count(), simulator.rows("account").len());
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    let http = reqwest::Client::new();
    let post = |path: &str, body: &str| {
        http.post(format!("{}/_simulator/{path}", simulator.url())).body(body.to_owned()).send()
    };
    let edited: Value = post("edit?seed=4&changes=50", "").await.unwrap().json().await.unwrap();
    assert!(edited["tables"].as_object().unwrap().len() > 3);
    assert_eq!(post("faults", r#"{"at":[[1,"unavailable"]]}"#).await.unwrap().status(), 200);
    assert_eq!(post("limits", r#"{"requests":100,"window_ms":2000}"#).await.unwrap().status(), 200);
    let client = Client::new(&simulator).await;
    assert_eq!(client.get("WhoAmI", "").await.status, 503);
    let stats: Value = get("stats").await.unwrap().json().await.unwrap();
    assert_eq!(stats["faults"], json!([[1, "unavailable"]]));
}
