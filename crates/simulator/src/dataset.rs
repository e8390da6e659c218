//! The standard data set, made from a seed.
//!
//! Ids are drawn first for every table, so that lookups may point forwards and in circles: accounts name a
//! primary contact and contacts name their account. Then rows are filled in the order of the catalogue.

use std::collections::{HashMap, HashSet};

use crate::big::Big;
use crate::catalogue::{self, BIG, POINTER};
use crate::config::Config;
use crate::content::{Content, ContentKind};
use crate::database::{Database, RowKey, Table};
use crate::dice::{Dice, mix_text, named_guid};
use crate::entra::directory;
use crate::rows::{create, finish, finish_made, make, new_key, set};
use crate::schema::TableDef;
use crate::values::{Targets, long_memo};

/// Share of each table in the data set; addresses and the activity mirror come on top.
const WEIGHTS: [(&str, u64); 32] = [
    ("account", 90),
    ("contact", 170),
    ("lead", 60),
    ("opportunity", 60),
    ("incident", 50),
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
    ("systemuser", 10),
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
/// Sum of the weights with two addresses an account, one a contact, and every activity twice.
const WEIGHT_SUM: u64 = 1_096 + 2 * 90 + 170 + 190;
/// Versions below this belong to a past the simulator does not show.
const FIRST_VERSION: u64 = 4_711_000;
/// Application users of the environment (dataverse 9.2).
pub(crate) const APPLICATIONS: usize = 3;
/// People who can sign in to the environment; their indexes follow those of the application users.
pub(crate) const PEOPLE: usize = 2;
/// Everybody who can call the environment.
pub(crate) const CALLERS: usize = APPLICATIONS + PEOPLE;

/// Client id of an application user; index 0 is the one an engine is usually given.
pub(crate) fn client_id(index: usize) -> String {
    named_guid(&format!("application {index}")).to_string()
}

/// `systemuserid` of a caller: an application user or, after those, a person.
pub(crate) fn user_id(index: usize) -> crate::guid::Guid {
    match index.checked_sub(APPLICATIONS) {
        None => named_guid(&format!("application user {index}")),
        Some(person) => named_guid(&format!("user of person {person}")),
    }
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
            create(&mut database, &mut dice, index, key.clone(), cells);
        }
    }
    database
}

fn plan(database: &Database, config: &Config) -> Planned {
    let mut planned = HashMap::new();
    for table in &database.tables {
        let def = &table.def;
        let mut dice = Dice::new(config.seed, mix_text(&def.name) ^ 1);
        let count = match def.name.as_str() {
            "organization" => 1,
            "businessunit" | "transactioncurrency" => 3,
            name => match WEIGHTS.iter().find(|(table, _)| *table == name) {
                Some((_, weight)) => (config.rows * weight / WEIGHT_SUM).max(3),
                None => continue,
            },
        };
        let mut keys: Vec<RowKey> = (0..count).map(|_| new_key(&mut dice, def)).collect();
        match def.name.as_str() {
            "organization" => keys[0] = catalogue::organization_id().into(),
            "transactioncurrency" => keys[0] = named_guid("currency").into(),
            "systemuser" => {
                keys.truncate((count as usize).saturating_sub(CALLERS));
                keys.extend((0..CALLERS).map(|index| RowKey::from(user_id(index))));
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

/// Gives the rows that matter to other rows, or to a reader, their fixed values.
fn adjust(dice: &mut Dice, def: &TableDef, config: &Config, number: usize, key: &RowKey, cells: &mut [String]) {
    let currency = format!("{}transactioncurrency", named_guid("currency"));
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
            set(def, cells, "isocurrencycode", Some(quoted(code)));
            set(def, cells, "currencysymbol", Some(quoted(symbol)));
            set(def, cells, "exchangerate", Some(rate.to_owned()));
        }
        // The root has no parent.
        ("businessunit", 0) => set(def, cells, "parentbusinessunitid", None),
        ("systemuser", _) => {
            let caller = (0..CALLERS).find(|index| user_id(*index) == key.id);
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
        ("connection", _) => set(def, cells, "ismaster", Some((number.is_multiple_of(2)).to_string())),
        _ => {}
    }
}
