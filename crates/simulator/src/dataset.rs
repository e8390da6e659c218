//! The standard data set, made from a seed.
//!
//! Ids are drawn first for every table, so that lookups may point forwards and in circles: accounts name a
//! primary contact and contacts name their account. Then rows are filled in the order of the catalogue.

use std::collections::{HashMap, HashSet};

use crate::big::Big;
use crate::bin;
use crate::catalogue::{self, BIG, POINTER};
use crate::config::Config;
use crate::content::{Content, ContentKind};
use crate::database::{Database, RowKey, Table};
use crate::dice::{Dice, mix_text, named_guid};
use crate::entra::directory;
use crate::follow::is_surplus;
use crate::rows::{create, finish, finish_made, make, new_key, set};
use crate::schema::TableDef;
use crate::values::{Targets, long_memo};

/// Share of each table in the data set; addresses and the activity mirror come on top.
const WEIGHTS: [(&str, u64); 33] = [
    ("account", 90),
    ("contact", 170),
    ("lead", 60),
    ("opportunity", 60),
    ("incident", 50),
    ("quote", 20),
    ("salesorder", 20),
    ("task", 70),
    ("phonecall", 30),
    ("email", 60),
    ("appointment", 30),
    ("activityparty", 120),
    ("activitymimeattachment", 15),
    ("annotation", 40),
    ("connection", 20),
    ("queue", 4),
    ("queueitem", 20),
    ("product", 20),
    ("pricelevel", 3),
    ("new_widget", 40),
    ("subject", 8),
    ("new_note", 20),
    ("team", 5),
    ("accountleads", 30),
    ("teammembership", 20),
    ("new_account_account", 20),
    ("new_widget_note", 10),
    ("new_telemetry", 60),
    ("asyncoperation", 4),
    ("plugintracelog", 4),
    ("new_secret", 1),
    ("new_blocked", 1),
    ("new_hidden", 1),
];
/// Sum of the weights with two addresses an account, one a contact, connections and activities twice, and what
/// closing left behind.
const WEIGHT_SUM: u64 = 1_136 + 2 * 90 + 170 + 20 + 190 + 100;
/// Tables of the platform itself, which an empty environment has too.
const PLATFORM: [&str; 5] = ["organization", "businessunit", "systemuser", "team", "transactioncurrency"];
/// What is written down when something is closed: table, lookup, the closed table and its states.
const CLOSINGS: [(&str, &str, &str, &[&str]); 4] = [
    ("opportunityclose", "opportunityid", "opportunity", &["1", "2"]),
    ("incidentresolution", "incidentid", "incident", &["1"]),
    ("quoteclose", "quoteid", "quote", &["2", "3"]),
    ("orderclose", "salesorderid", "salesorder", &["2", "3"]),
];
/// Versions below this belong to a past the simulator does not show.
const FIRST_VERSION: u64 = 4_711_000;
/// Application users of the environment (dataverse 9.2).
pub(crate) const APPLICATIONS: usize = 3;
/// People who can sign in to the environment; their indexes follow those of the application users.
pub(crate) const PEOPLE: usize = 2;
/// Everybody who can call the environment.
pub(crate) const CALLERS: usize = APPLICATIONS + PEOPLE;

/// Users who never sign in here, at least.
const PEOPLE_MIN: u64 = 10;

/// Client id of an application user; index 0 is the one an engine is usually given.
pub(crate) fn client_id(index: usize) -> String {
    named_guid(&format!("application {index}")).to_string()
}

/// `systemuserid` of a caller: an application user or, after those, a person.
pub(crate) fn user_id(environment: u64, index: usize) -> crate::guid::Guid {
    let name = match index.checked_sub(APPLICATIONS) {
        None => format!("application user {index}"),
        Some(person) => format!("user of person {person}"),
    };
    named_guid(&catalogue::in_environment(&name, environment))
}

/// Ids of the root business unit and of the base currency.
pub(crate) fn root_unit(environment: u64) -> crate::guid::Guid {
    named_guid(&catalogue::in_environment("root business unit", environment))
}

fn base_currency(environment: u64) -> crate::guid::Guid {
    named_guid(&catalogue::in_environment("currency", environment))
}

struct Planned(HashMap<String, Vec<RowKey>>);

impl Targets for Planned {
    fn pick(&self, dice: &mut Dice, table: &str) -> Option<String> {
        let keys = self.0.get(table).filter(|keys| !keys.is_empty())?;
        Some(dice.pick(keys).id.to_string())
    }
}

/// Builds the whole environment.
pub(crate) fn build(config: &Config) -> Database {
    let definitions = catalogue::tables(config.big_table_rows > 0);
    let tables = definitions
        .into_iter()
        .map(|def| {
            let mut table = Table::new(def);
            if table.def.name == BIG {
                table.big = Some(Big::new(config.seed, config.big_table_rows, FIRST_VERSION));
            }
            table
        })
        .collect();
    let mut database = Database::new(tables, FIRST_VERSION + config.big_table_rows);
    let planned = plan(&database, config);
    for index in 0..database.tables.len() {
        let name = database.tables[index].def.name.clone();
        let mut dice = Dice::new(config.seed, mix_text(&name));
        if let Some((_, lookup, closed, states)) = CLOSINGS.iter().find(|(table, ..)| *table == name) {
            close(&mut database, &mut dice, &planned, index, (lookup, closed, states));
        }
        let Some(keys) = planned.0.get(&name) else { continue };
        if database.tables[index].def.is_intersect() {
            links(&mut database, &mut dice, index, keys, &planned);
            continue;
        }
        let mut shared_body: Option<String> = None;
        for (number, key) in keys.iter().enumerate() {
            let def = &database.tables[index].def;
            let mut cells = make(&mut dice, def, &planned);
            adjust(&mut dice, def, config, number, key, &mut cells);
            if let Some(cell) = def.cell("attachmentid") {
                // Several mails, one stored body (dataverse 7.3).
                if let Some(shared) = shared_body.take_if(|_| dice.chance(300)) {
                    cells[cell] = shared;
                }
                finish_made(&mut dice, def, &mut cells);
                shared_body = Some(cells[cell].clone());
            }
            if is_surplus(&database.tables[index], &cells) {
                continue;
            }
            create(&mut database, &mut dice, index, key.clone(), cells);
        }
    }
    if config.recycle_bin {
        bin::install(&mut database);
    }
    database
}

/// One closing activity for every row that is closed (dataverse 6.5).
fn close(
    database: &mut Database,
    dice: &mut Dice,
    planned: &Planned,
    table: usize,
    (lookup, closed, states): (&str, &str, &[&str]),
) {
    let Some(parents) = database.table(closed).map(|index| &database.tables[index]) else { return };
    let Some(state) = parents.def.cell("statecode") else { return };
    let rows = parents.rows.iter().filter(|(_, row)| states.contains(&row.cell(state)));
    let ids: Vec<String> = rows.map(|(key, _)| format!("{}{closed}", key.id)).collect();
    for parent in ids {
        let def = &database.tables[table].def;
        let mut cells = make(dice, def, planned);
        let key = new_key(dice, def);
        set(def, &mut cells, lookup, Some(parent.clone()));
        if matches!(closed, "opportunity" | "incident") {
            set(def, &mut cells, "regardingobjectid", Some(parent));
        }
        set(def, &mut cells, "statecode", Some("1".to_owned()));
        set(def, &mut cells, "statuscode", Some("2".to_owned()));
        create(database, dice, table, key, cells);
    }
}

fn plan(database: &Database, config: &Config) -> Planned {
    let mut planned = HashMap::new();
    for table in &database.tables {
        let def = &table.def;
        if config.empty && !PLATFORM.contains(&def.name.as_str()) {
            continue;
        }
        // Another environment has the same people and units under other ids.
        let mut dice = Dice::new(config.seed, mix_text(&catalogue::in_environment(&def.name, config.environment)) ^ 1);
        let count = match def.name.as_str() {
            "organization" => 1,
            "businessunit" | "transactioncurrency" => 3,
            // Some people besides those who can sign in, of whom some have left.
            "systemuser" => (config.rows * 10 / WEIGHT_SUM).max(PEOPLE_MIN) + CALLERS as u64,
            name => match WEIGHTS.iter().find(|(table, _)| *table == name) {
                Some((_, weight)) => (config.rows * weight / WEIGHT_SUM).max(3),
                None => continue,
            },
        };
        let mut keys: Vec<RowKey> = (0..count).map(|_| new_key(&mut dice, def)).collect();
        match def.name.as_str() {
            "organization" => keys[0] = catalogue::organization_id(config.environment).into(),
            "transactioncurrency" => keys[0] = base_currency(config.environment).into(),
            "businessunit" => keys[0] = root_unit(config.environment).into(),
            "systemuser" => {
                keys.truncate(count as usize - CALLERS);
                keys.extend((0..CALLERS).map(|index| RowKey::from(user_id(config.environment, index))));
            }
            // The same id in two partitions is two rows (dataverse 8.12, RULE 3.2).
            "new_telemetry" => keys[1] = RowKey { id: keys[0].id, partition: Some("device-0099".into()) },
            _ => {}
        }
        planned.insert(def.name.clone(), keys);
    }
    debug_assert!(!planned.contains_key(POINTER), "the mirror fills itself");
    Planned(planned)
}

fn links(database: &mut Database, dice: &mut Dice, table: usize, keys: &[RowKey], planned: &Planned) {
    let ends = database.tables[table].def.ends.clone().expect("only intersect tables get here");
    let mut seen = HashSet::new();
    for key in keys {
        let (Some(first), Some(second)) = (planned.pick(dice, &ends.first.0), planned.pick(dice, &ends.second.0))
        else {
            return;
        };
        // A pair is linked once.
        if seen.insert((first.clone(), second.clone())) {
            database.put(table, key.clone(), &[format!("\"{first}\""), format!("\"{second}\"")]);
        }
    }
}

fn quoted(value: &str) -> String {
    format!("\"{value}\"")
}

/// State and status of rows that are closed or inactive from the start (dataverse 6.5).
fn closed_state(table: &str, number: usize) -> Option<(i32, i32)> {
    Some(match (table, number % 6) {
        ("opportunity" | "quote" | "salesorder", 1) => (1, 3),
        ("opportunity" | "quote" | "salesorder", 2) => (2, 4),
        ("incident", 1) => (1, 5),
        ("incident", 2) => (2, 6),
        ("quote", 3) => (3, 6),
        ("salesorder", 3) => (3, 100_001),
        ("salesorder", 4) => (4, 100_003),
        _ => return None,
    })
}

/// Gives the rows that matter to other rows, or to a reader, their fixed values.
fn adjust(dice: &mut Dice, def: &TableDef, config: &Config, number: usize, key: &RowKey, cells: &mut [String]) {
    let currency = format!("{}transactioncurrency", base_currency(config.environment));
    if let Some((state, status)) = closed_state(&def.name, number) {
        set(def, cells, "statecode", Some(state.to_string()));
        set(def, cells, "statuscode", Some(status.to_string()));
    }
    if let Some(cell) = def.key.as_deref().and_then(|key| def.cell(key)).filter(|cell| !cells[*cell].is_empty()) {
        // Nobody shares an alternate key (dataverse 6.8).
        cells[cell] = quoted(&format!("AC-{number:06}"));
    }
    match (def.name.as_str(), number) {
        ("organization", _) => {
            set(def, cells, "name", Some(quoted("Simulated Ltd")));
            set(def, cells, "basecurrencyid", Some(currency));
            set(def, cells, "languagecode", Some("1033".to_owned()));
            set(def, cells, "maxuploadfilesize", Some("5242880".to_owned()));
            set(def, cells, "blockedattachments", Some(quoted("ade;exe;vbs")));
            set(def, cells, "expirechangetrackingindays", Some(config.change_tracking_expiry_days.to_string()));
            set(def, cells, "expiresubscriptionsindays", Some("90".to_owned()));
            set(def, cells, "isauditenabled", Some("false".to_owned()));
        }
        ("transactioncurrency", _) => {
            let (code, symbol, rate) =
                [("EUR", "€", "1.0000000000"), ("USD", "$", "1.0834000000"), ("JPY", "¥", "163.2500000000")]
                    [number % 3];
            set(def, cells, "currencyname", Some(quoted(code)));
            set(def, cells, "isocurrencycode", Some(quoted(code)));
            set(def, cells, "currencysymbol", Some(quoted(symbol)));
            set(def, cells, "exchangerate", Some(rate.to_owned()));
        }
        ("businessunit", _) => {
            // The root has no parent, all others are below it; names are what another environment knows them by.
            let root = format!("{}businessunit", root_unit(config.environment));
            set(def, cells, "parentbusinessunitid", (number > 0).then_some(root));
            set(def, cells, "name", Some(quoted(&format!("Unit {number}"))));
            set(def, cells, "isdisabled", Some("false".to_owned()));
        }
        ("team", _) => set(def, cells, "name", Some(quoted(&format!("Team {number}")))),
        ("systemuser", _) => {
            let address = quoted(&format!("user{number:04}@simulated.example"));
            set(def, cells, "domainname", Some(address.clone()));
            set(def, cells, "internalemailaddress", Some(address));
            // Some people have left (dataverse 6.7).
            set(def, cells, "isdisabled", Some((number % 5 == 4).to_string()));
            let caller = (0..CALLERS).find(|index| user_id(config.environment, *index) == key.id);
            let application = caller.filter(|index| *index < APPLICATIONS);
            set(def, cells, "applicationid", application.map(|index| format!("\"{}\"", client_id(index))));
            set(def, cells, "accessmode", Some(if application.is_some() { "4" } else { "0" }.to_owned()));
            if let Some(index) = application {
                set(def, cells, "fullname", Some(quoted(&format!("# dynavault {index}"))));
            }
            if let Some(caller) = caller {
                // How the environment knows who a token stands for (dataverse 9.2).
                set(def, cells, "azureactivedirectoryobjectid", Some(quoted(&directory::object_id(caller))));
                set(def, cells, "isdisabled", Some("false".to_owned()));
            }
            if let Some(person) = caller.and_then(|index| index.checked_sub(APPLICATIONS)) {
                let (first, last) = directory::PEOPLE_NAMES[person];
                let address = quoted(&directory::user_principal_name(person));
                set(def, cells, "fullname", Some(quoted(&format!("{first} {last}"))));
                set(def, cells, "firstname", Some(quoted(first)));
                set(def, cells, "lastname", Some(quoted(last)));
                set(def, cells, "domainname", Some(address.clone()));
                set(def, cells, "internalemailaddress", Some(address));
            }
        }
        ("account", 0) => {
            // One file of several blocks in every data set.
            let mut id = dice.guid();
            while !Content::new(id, ContentKind::File).is_large() {
                id = dice.guid();
            }
            set(def, cells, "new_contract", Some(format!("\"{id}\"")));
            set(def, cells, "revenue", Some("20000.0000".to_owned()));
            set(def, cells, "new_rating", Some("0.0000000001".to_owned()));
            set(def, cells, "new_counter", Some(i64::MAX.to_string()));
            finish(def, cells);
        }
        ("account" | "new_widget" | "email", 1) => {
            // A long memo: 1 MiB in a data set of 32,768 rows and more.
            let length = (config.rows * 32).clamp(4_096, 1_048_000) as usize;
            let name = if def.name == "new_widget" { "new_payload" } else { "description" };
            set(def, cells, name, Some(long_memo(dice, length)));
        }
        _ => {}
    }
}
