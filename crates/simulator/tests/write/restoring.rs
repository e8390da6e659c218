//! The data set keeps its own rules: what was there can be written back through the Web API and reads back the same.
//!
//! A restore of fifty lines: rows with required lookups and owners, then the other lookups, then states. What it
//! leaves out, a restore has to leave out or do by messages, links and uploads.

use std::collections::{BTreeMap, BTreeSet};

use dynavault_simulator::{OracleRow, Simulator};
use serde_json::json;
use serde_json::value::RawValue;

use crate::client::{Client, quiet, start};

/// Tables in an order in which required lookups lead backwards.
const TABLES: [&str; 22] = [
    "account",
    "contact",
    "lead",
    "pricelevel",
    "subject",
    "product",
    "opportunity",
    "incident",
    "quote",
    "salesorder",
    "customeraddress",
    "task",
    "phonecall",
    "email",
    "appointment",
    "annotation",
    "queue",
    "queueitem",
    "connection",
    "new_widget",
    "new_note",
    "new_telemetry",
];

type Members = BTreeMap<String, Box<RawValue>>;

/// What the metadata says about one column.
struct Column {
    name: String,
    kind: String,
    create: bool,
    required: bool,
    options: Vec<i64>,
}

async fn columns(client: &Client, table: &str) -> Vec<Column> {
    let query = json!({
        "Properties": {"AllProperties": false, "PropertyNames": ["LogicalName", "Attributes"]},
        "Criteria": {"Conditions": [{"PropertyName": "LogicalName", "ConditionOperator": "Equals",
            "Value": {"Type": "System.String", "Value": table}}]},
        "AttributeQuery": {"Properties": {"AllProperties": true}},
    });
    let reply = client.get(&format!("RetrieveMetadataChanges(Query=@p1)?@p1={query}")).await;
    let list = reply["EntityMetadata"][0]["Attributes"].as_array().unwrap().clone();
    list.iter()
        .filter(|column| column["AttributeOf"].is_null() && column["IsValidODataAttribute"] == json!(true))
        .map(|column| Column {
            name: column["LogicalName"].as_str().unwrap().to_owned(),
            kind: column["AttributeTypeName"]["Value"].as_str().unwrap().to_owned(),
            create: column["IsValidForCreate"] == json!(true) && column["SourceType"].as_i64().unwrap_or(0) == 0,
            required: column["RequiredLevel"]["Value"] == json!("SystemRequired"),
            options: column["OptionSet"]["Options"]
                .as_array()
                .map(|options| options.iter().filter_map(|option| option["Value"].as_i64()).collect())
                .unwrap_or_default(),
        })
        .collect()
}

fn text(members: &Members, name: &str) -> Option<String> {
    members.get(name).and_then(|raw| serde_json::from_str(raw.get()).ok())
}

/// The member that binds a lookup, from the annotations of the captured row.
fn bind(members: &Members, sets: &BTreeMap<String, String>, name: &str) -> Option<String> {
    let property = format!("_{name}_value");
    let target = text(members, &property)?;
    let table = text(members, &format!("{property}@Microsoft.Dynamics.CRM.lookuplogicalname"))?;
    let navigation = text(members, &format!("{property}@Microsoft.Dynamics.CRM.associatednavigationproperty"))?;
    Some(format!("\"{navigation}@odata.bind\":\"/{}({target})\"", sets[&table]))
}

struct Restore<'a> {
    client: &'a Client,
    sets: BTreeMap<String, String>,
    idle: BTreeSet<String>,
    failures: Vec<String>,
}

impl Restore<'_> {
    fn owner_can_own(&self, members: &Members) -> bool {
        text(members, "_ownerid_value").is_none_or(|owner| !self.idle.contains(&owner))
    }

    async fn create(&mut self, table: &str, columns: &[Column], row: &OracleRow) {
        let members: Members = serde_json::from_str(&row.json).unwrap();
        let mut body = Vec::new();
        for column in columns.iter().filter(|column| column.create) {
            let name = &column.name;
            match column.kind.as_str() {
                "LookupType" | "CustomerType" | "OwnerType" => {
                    if column.required && (name != "ownerid" || self.owner_can_own(&members)) {
                        body.extend(bind(&members, &self.sets, name));
                    }
                }
                "StateType" | "StatusType" | "FileType" | "ImageType" | "EntityNameType" => {}
                _ if name == "overriddencreatedon" => {
                    let created = members.get("createdon").map(|raw| format!("\"overriddencreatedon\":{}", raw.get()));
                    body.extend(created);
                }
                _ => {
                    // The documents of notes are not in the row as captured.
                    let raw = members.get(name).map_or("null", |raw| raw.get());
                    let retired = !column.options.is_empty()
                        && raw.parse().is_ok_and(|value: i64| !column.options.contains(&value));
                    if raw != "null" && !retired {
                        body.push(format!("\"{name}\":{raw}"));
                    }
                }
            }
        }
        let body = format!("{{{}}}", body.join(","));
        let reply = self.client.try_send("POST", &self.sets[table], &[], &body).await.unwrap();
        if reply.status != 204 {
            self.failures.push(format!("{table} {}: {} for {}", row.keys[0], reply.body, &body[..body.len().min(600)]));
        }
    }

    async fn link(&mut self, table: &str, columns: &[Column], row: &OracleRow) {
        let members: Members = serde_json::from_str(&row.json).unwrap();
        let lookups = columns.iter().filter(|column| {
            column.create && !column.required && matches!(column.kind.as_str(), "LookupType" | "CustomerType")
        });
        let body: Vec<String> = lookups.filter_map(|column| bind(&members, &self.sets, &column.name)).collect();
        if !body.is_empty() {
            self.patch(table, row, &format!("{{{}}}", body.join(","))).await;
        }
    }

    async fn close(&mut self, table: &str, row: &OracleRow) {
        let members: Members = serde_json::from_str(&row.json).unwrap();
        let (Some(state), Some(status)) = (members.get("statecode"), members.get("statuscode")) else { return };
        let by_message = match table {
            "opportunity" => state.get() != "0",
            "incident" => state.get() == "1",
            "quote" | "salesorder" => matches!(state.get(), "2" | "3"),
            "product" => true,
            _ => false,
        };
        if !by_message {
            self.patch(table, row, &format!("{{\"statecode\":{},\"statuscode\":{}}}", state.get(), status.get())).await;
        }
    }

    async fn patch(&mut self, table: &str, row: &OracleRow, body: &str) {
        let path = format!("{}({})", self.sets[table], row.keys[0]);
        let reply = self.client.try_send("PATCH", &path, &[("if-match", "*")], body).await.unwrap();
        if reply.status != 204 {
            self.failures.push(format!("{table} {}: {} for {body}", row.keys[0], reply.body));
        }
    }
}

fn idle_users(simulator: &Simulator) -> BTreeSet<String> {
    let rows = simulator.rows("systemuser");
    let disabled = rows.iter().filter(|row| row.json.contains("\"isdisabled\":true"));
    disabled.map(|row| row.keys[0].clone()).collect()
}

#[tokio::test]
async fn a_wiped_environment_is_written_back_and_reads_as_before() {
    let (simulator, client) = start(quiet()).await;
    let sets =
        simulator.tables().into_iter().filter_map(|table| Some((table.logical_name, table.entity_set?))).collect();
    let mut before: BTreeMap<&str, Vec<OracleRow>> =
        TABLES.iter().map(|table| (*table, simulator.rows(table))).collect();
    // These come with their parents.
    before.get_mut("customeraddress").unwrap().clear();
    before.get_mut("connection").unwrap().retain(|row| row.json.contains("\"ismaster\":true"));
    simulator.wipe();
    let mut restore = Restore { client: &client, sets, idle: idle_users(&simulator), failures: Vec::new() };
    let mut definitions = BTreeMap::new();
    for table in TABLES {
        definitions.insert(table, columns(&client, table).await);
        for row in &before[table] {
            restore.create(table, &definitions[table], row).await;
        }
    }
    for table in TABLES.into_iter().filter(|table| *table != "new_telemetry") {
        for row in &before[table] {
            restore.link(table, &definitions[table], row).await;
        }
    }
    for table in TABLES {
        for row in &before[table] {
            restore.close(table, row).await;
        }
    }
    assert!(
        restore.failures.is_empty(),
        "{} failures\n{}",
        restore.failures.len(),
        restore.failures[..restore.failures.len().min(20)].join("\n")
    );
    let mut differences = Vec::new();
    for table in TABLES {
        let after: BTreeMap<Vec<String>, String> =
            simulator.rows(table).into_iter().map(|row| (row.keys, row.json)).collect();
        for row in &before[table] {
            let old: Members = serde_json::from_str(&row.json).unwrap();
            let new: Members = serde_json::from_str(&after[&row.keys]).unwrap();
            for column in definitions[table].iter().filter(|column| column.create) {
                let lookup = matches!(column.kind.as_str(), "LookupType" | "CustomerType" | "OwnerType");
                let name = if lookup { format!("_{}_value", column.name) } else { column.name.clone() };
                let (Some(was), Some(is)) = (old.get(&name), new.get(&name)) else { continue };
                if was.get() == is.get() || explained(table, column, was.get(), &restore.idle) {
                    continue;
                }
                differences.push(format!("{table}.{name}: {} became {}", was.get(), is.get()));
            }
            assert_eq!(old.get("createdon").map(|raw| raw.get()), new.get("createdon").map(|raw| raw.get()), "{table}");
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences\n{}",
        differences.len(),
        differences[..differences.len().min(30)].join("\n")
    );
    assert!(simulator.stats().rows_written.len() > 15);
}

/// Differences that this restore is too short for, or that the service makes.
fn explained(table: &str, column: &Column, was: &str, idle: &BTreeSet<String>) -> bool {
    match (table, column.kind.as_str()) {
        (_, "FileType" | "ImageType") => true,
        (_, "StateType" | "StatusType") => {
            matches!(table, "opportunity" | "incident" | "quote" | "salesorder" | "product")
        }
        (_, "OwnerType") => idle.contains(was.trim_matches('"')),
        _ if column.name == "overriddencreatedon" || column.name.ends_with("_addressid") => true,
        // Documents come by upload, and their names follow.
        ("annotation", _) => matches!(column.name.as_str(), "documentbody" | "isdocument" | "filesize"),
        // A rate of today, a currency where there was money, a retired choice.
        _ => column.name == "transactioncurrencyid" || !column.options.is_empty() && was.len() > 6,
    }
}
