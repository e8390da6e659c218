//! Seeded pages of wide accounts, as Dataverse prints them: up to 158 members, about 4.6 KB a row.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rows in a page.
const PAGE_ROWS: u64 = 5_000;

const WORDS: &[&str] = &[
    "Alpine",
    "Contoso",
    "Fabrikam",
    "Northwind",
    "Harbour",
    "Vertrieb",
    "Logistik",
    "Solar",
    "Granite",
    "Museum",
    "Orchard",
    "Velvet",
    "Copper",
    "Lantern",
    "Meridian",
    "Sable",
    "Tundra",
    "Willow",
    "Zenith",
    "Quarry",
    "Bridge",
    "Falcon",
    "Amber",
    "Cobalt",
    "Delta",
    "Ember",
    "Fjord",
    "Garnet",
    "Hazel",
    "Indigo",
    "Juniper",
    "Kestrel",
];
const CITIES: &[&str] = &["Zürich", "Lyon", "Oslo", "Leeds", "Porto", "Gdańsk", "Austin", "Osaka", "Perth", "Quito"];

/// How many pages there are for so many rows.
pub(crate) fn count(rows: u64) -> u64 {
    rows.div_ceil(PAGE_ROWS)
}

fn guid(rng: &mut ChaCha8Rng) -> String {
    let (a, b) = (rng.random::<u64>(), rng.random::<u64>());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        0x8000 | (b >> 50),
        b & 0xffff_ffff_ffff
    )
}

fn words(rng: &mut ChaCha8Rng, count: usize) -> String {
    let picked: Vec<&str> = (0..count).map(|_| WORDS[rng.random_range(0..WORDS.len())]).collect();
    picked.join(" ")
}

/// The kinds of columns, with how often each occurs; names follow from kind and number.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Code,
    Choice,
    Flag,
    Date,
    Money,
    Number,
    Lookup,
    Null,
}

const SHAPE: &[(Kind, usize)] = &[
    (Kind::Text, 18),
    (Kind::Code, 8),
    (Kind::Choice, 16),
    (Kind::Flag, 16),
    (Kind::Date, 10),
    (Kind::Money, 12),
    (Kind::Number, 8),
    (Kind::Lookup, 9),
    (Kind::Null, 26),
];

/// Column names with the type Dataverse gives them, key first.
pub(crate) fn columns() -> Vec<(String, &'static str)> {
    let mut columns =
        vec![("accountid".to_string(), "UniqueidentifierType"), ("versionnumber".to_string(), "BigIntType")];
    for (kind, count) in SHAPE {
        for number in 0..*count {
            let (name, type_name) = match kind {
                Kind::Text => ("address1_line", "StringType"),
                Kind::Code => ("new_reference", "StringType"),
                Kind::Choice => ("new_category", "PicklistType"),
                Kind::Flag => ("donotcall", "BooleanType"),
                Kind::Date => ("new_visiton", "DateTimeType"),
                Kind::Money => ("new_revenue", "MoneyType"),
                Kind::Number => ("new_count", "IntegerType"),
                Kind::Lookup => ("new_owner", "LookupType"),
                Kind::Null => ("new_extra", "StringType"),
            };
            columns.push((format!("{name}{number}"), type_name));
        }
    }
    columns
}

fn row(rng: &mut ChaCha8Rng, number: u64, units: &[String], out: &mut String) -> std::fmt::Result {
    let version = 4_000_000 + number * 3 + rng.random_range(0..3);
    let (id, name) = (guid(rng), words(rng, 2));
    write!(out, "{{\"@odata.etag\":\"W/\\\"{version}\\\"\",\"accountid\":\"{id}\",\"versionnumber\":{version}")?;
    for (kind, count) in SHAPE {
        for n in 0..*count {
            let filled = rng.random_range(0..100) < 60;
            match kind {
                Kind::Text if n == 0 => write!(out, ",\"address1_line0\":\"{name} {}\"", rng.random_range(1..9999)),
                Kind::Text if n % 6 == 1 => {
                    write!(out, ",\"address1_line{n}\":\"{}\"", CITIES[rng.random_range(0..CITIES.len())])
                }
                Kind::Text if n % 6 == 2 && filled => write!(
                    out,
                    ",\"address1_line{n}\":\"{}@{}.example\"",
                    words(rng, 1).to_lowercase(),
                    words(rng, 1).to_lowercase()
                ),
                Kind::Text if n % 6 == 3 && filled => write!(
                    out,
                    ",\"address1_line{n}\":\"+41 {} {:03}\"",
                    rng.random_range(20..99),
                    rng.random_range(0..1000)
                ),
                Kind::Text if n == 4 && filled => {
                    write!(out, ",\"address1_line{n}\":\"{}.\\r\\n{}\"", words(rng, 14), words(rng, 10))
                }
                Kind::Text if filled => write!(out, ",\"address1_line{n}\":\"{}\"", words(rng, 2)),
                Kind::Text => write!(out, ",\"address1_line{n}\":null"),
                Kind::Code => write!(out, ",\"new_reference{n}\":\"C-{:06}\"", rng.random_range(0..200_000 / (n + 1))),
                Kind::Choice if filled => write!(out, ",\"new_category{n}\":{}", 100_000_000 + rng.random_range(0..6)),
                Kind::Choice => write!(out, ",\"new_category{n}\":null"),
                Kind::Flag => write!(out, ",\"donotcall{n}\":{}", rng.random_range(0..10) == 0),
                Kind::Date if filled => write!(
                    out,
                    ",\"new_visiton{n}\":\"20{}-{:02}-{:02}T{:02}:{:02}:00Z\"",
                    rng.random_range(15..26),
                    rng.random_range(1..13),
                    rng.random_range(1..29),
                    rng.random_range(6..20),
                    rng.random_range(0..60)
                ),
                Kind::Date => write!(out, ",\"new_visiton{n}\":null"),
                Kind::Money if filled => write!(
                    out,
                    ",\"new_revenue{n}\":{}.{:02}00",
                    rng.random_range(0..5_000) * 10,
                    rng.random_range(0..4) * 25
                ),
                Kind::Money => write!(out, ",\"new_revenue{n}\":null"),
                Kind::Number => write!(out, ",\"new_count{n}\":{}", rng.random_range(0..50)),
                Kind::Lookup if filled => write!(
                    out,
                    ",\"_new_owner{n}_value@Microsoft.Dynamics.CRM.associatednavigationproperty\":\"new_owner{n}\",\"_new_owner{n}_value@Microsoft.Dynamics.CRM.lookuplogicalname\":\"systemuser\",\"_new_owner{n}_value\":\"{}\"",
                    units[rng.random_range(0..units.len())]
                ),
                Kind::Lookup => write!(out, ",\"_new_owner{n}_value\":null"),
                Kind::Null => write!(out, ",\"new_extra{n}\":null"),
            }?;
        }
    }
    out.push('}');
    Ok(())
}

/// Makes the pages if they are not there; gives their size in bytes.
pub(crate) fn generate(folder: &Path, rows: u64) -> u64 {
    std::fs::create_dir_all(folder).expect("the folder of the pages can be made");
    let mut total = 0;
    for page in 0..count(rows) {
        let path = folder.join(format!("page-{page}.json"));
        if let Ok(metadata) = std::fs::metadata(&path) {
            total += metadata.len();
            continue;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(page);
        let mut users = ChaCha8Rng::seed_from_u64(0xacc0);
        let units: Vec<String> = (0..200).map(|_| guid(&mut users)).collect();
        let mut text = String::from("{\"@odata.context\":\"$metadata#accounts\",\"value\":[");
        for number in page * PAGE_ROWS..((page + 1) * PAGE_ROWS).min(rows) {
            if !text.ends_with('[') {
                text.push(',');
            }
            row(&mut rng, number, &units, &mut text).expect("text in memory can be written");
        }
        // The link comes last; the server knows its own address and puts it in.
        text.push(']');
        let partial = path.with_extension("partial");
        let mut file = std::fs::File::create(&partial).expect("a page can be written");
        file.write_all(text.as_bytes()).expect("a page can be written");
        std::fs::rename(&partial, &path).expect("a page can be named");
        total += text.len() as u64;
    }
    total
}
