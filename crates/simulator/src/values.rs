//! Values, ordinary and odd, as raw JSON text.
//!
//! Most values look like a sales environment. About one in thirty is there to break a reader that takes
//! a shortcut: escapes that a re-encoder would change, text from right to left, numbers a double cannot
//! hold, decimals with trailing zeros, the first and the last date (dataverse 3.5, T19–T22).

use std::fmt::Write as _;

use crate::dice::Dice;
use crate::schema::{Column, DateBehavior, Kind};

const WORDS: [&str; 40] = [
    "contoso",
    "northern",
    "supply",
    "harbour",
    "quarter",
    "forecast",
    "renewal",
    "invoice",
    "delivery",
    "customer",
    "account",
    "meeting",
    "follow-up",
    "proposal",
    "discount",
    "pipeline",
    "service",
    "premium",
    "regional",
    "warehouse",
    "export",
    "import",
    "license",
    "contract",
    "summer",
    "winter",
    "engineer",
    "partner",
    "agreement",
    "shipment",
    "pallet",
    "budget",
    "campaign",
    "network",
    "factory",
    "assembly",
    "turbine",
    "bearing",
    "valve",
    "coffee",
];
const FIRST_NAMES: [&str; 12] =
    ["Ada", "Grace", "Yvonne", "José", "Zoë", "Björn", "Łukasz", "Aiko", "Miriam", "Tom", "Nancy", "Chidi"];
const LAST_NAMES: [&str; 12] = [
    "Lovelace", "Hopper", "McKay", "Núñez", "Åkesson", "Nowak", "佐藤", "O'Brien", "Müller", "Smith", "Anderson",
    "Okafor",
];
const CITIES: [&str; 10] =
    ["Oslo", "Zürich", "São Paulo", "Kraków", "Lyon", "Reykjavík", "Bengaluru", "Québec", "Leeds", "東京"];

/// Raw JSON strings that a careless copy would change or lose.
const ODD_TEXTS: [&str; 16] = [
    r#""emoji 😀👩‍👩‍👧‍👦 end""#,
    r#""escaped emoji \ud83d\ude00""#,
    r#""control \u0001\u001f tab\t newline\r\n""#,
    r#""quote \" backslash \\ slash / and \/""#,
    r#""مرحبا بالعالم""#,
    r#""\u200fשלום\u200e mixed""#,
    r#"" ""#,
    r#""\u00a0""#,
    r#""null""#,
    r#""é composed, e\u0301 combined""#,
    r#""a,b;c|d<e>f&g=h%20i+j""#,
    r#""{\"json\":[1,2,{\"deep\":null}]}""#,
    r#""\u007f\u0080""#,
    r#""--'; DROP TABLE account""#,
    r#""@odata.etag""#,
    r#""\\\\""#,
];

/// Targets for lookups.
pub(crate) trait Targets {
    /// A random row of a table, as the 36-character id.
    fn pick(&self, dice: &mut Dice, table: &str) -> Option<String>;
}

/// A sentence of about `length` characters without anything that needs escaping.
pub(crate) fn sentence(dice: &mut Dice, length: usize) -> String {
    let mut text = String::with_capacity(length + 12);
    while text.len() < length {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[dice.index(WORDS.len())]);
    }
    text
}

/// Raw text of a new value for a column; empty for null.
pub(crate) fn value(dice: &mut Dice, table: &str, column: &Column, targets: &dyn Targets) -> String {
    if dice.chance(null_chance(column)) {
        return String::new();
    }
    let odd = dice.chance(33);
    match &column.kind {
        Kind::Text { max, format } => text(dice, &column.name, *max as usize, format, odd),
        Kind::Memo { max } => memo(dice, *max as usize, odd),
        Kind::Integer => {
            let number = if odd {
                *dice.pick(&[i64::from(i32::MAX), i64::from(i32::MIN), 0, -1])
            } else {
                dice.below(10_000) as i64
            };
            number.to_string()
        }
        Kind::BigInt => {
            let number = if odd {
                *dice.pick(&[i64::MAX, i64::MIN, 9_007_199_254_740_993, -9_007_199_254_740_993])
            } else {
                dice.below(1 << 60) as i64
            };
            number.to_string()
        }
        Kind::Decimal { precision } | Kind::Money { precision } => decimal(dice, *precision as usize, odd),
        Kind::Double => double(dice, odd),
        Kind::Boolean => dice.chance(500).to_string(),
        Kind::Date(behavior) => date(dice, *behavior, odd),
        Kind::Lookup { targets: names, .. } | Kind::Customer { targets: names, .. } => {
            let target = dice.pick(names);
            targets.pick(dice, target).map(|id| id + target).unwrap_or_default()
        }
        Kind::Owner => {
            let target = if dice.chance(100) { "team" } else { "systemuser" };
            targets.pick(dice, target).map(|id| id + target).unwrap_or_default()
        }
        // Now and then a number that is no longer an option still reads back (dataverse 2.2).
        Kind::Choice { .. } if odd && column.name != "participationtypemask" => "727000009".to_owned(),
        Kind::Choice { values } | Kind::State { values } | Kind::Status { values, .. } => dice.pick(values).to_string(),
        Kind::MultiChoice { values } => {
            let mut chosen: Vec<String> = values.iter().filter(|_| dice.chance(400)).map(ToString::to_string).collect();
            if chosen.is_empty() {
                // Never an empty text (dataverse 3.5).
                chosen.push(dice.pick(values).to_string());
            }
            format!("\"{}\"", chosen.join(","))
        }
        Kind::Guid | Kind::File | Kind::Image => format!("\"{}\"", dice.guid()),
        Kind::Body => dice.guid().to_string(),
        Kind::EntityName => format!("\"{table}\""),
        Kind::PartyList | Kind::Virtual => String::new(),
    }
}

fn null_chance(column: &Column) -> u64 {
    match &column.kind {
        _ if column.required => 0,
        Kind::Owner | Kind::State { .. } | Kind::Status { .. } | Kind::EntityName => 0,
        _ if matches!(
            column.name.as_str(),
            "createdon" | "modifiedon" | "createdby" | "modifiedby" | "owningbusinessunit" | "organizationid"
        ) =>
        {
            0
        }
        _ if column.name.ends_with("onbehalfby")
            || column.name.starts_with("owning")
            || column.name == "overriddencreatedon" =>
        {
            950
        }
        Kind::File => 700,
        Kind::Image => 850,
        Kind::Body => 100,
        Kind::Memo { .. } => 400,
        Kind::Lookup { cascade: true, .. } | Kind::Customer { cascade: true, .. } => 50,
        Kind::Lookup { .. } | Kind::Customer { .. } => 300,
        _ if column.calculated => 100,
        _ => 250,
    }
}

fn text(dice: &mut Dice, name: &str, max: usize, format: &str, odd: bool) -> String {
    if odd && format == "Text" {
        let raw = *dice.pick(&ODD_TEXTS);
        // The raw form is never shorter than the text it stands for.
        if raw.len() - 2 <= max {
            return raw.to_owned();
        }
    }
    let mut value = match (format, name) {
        ("Email", _) => format!("{}.{}@example.org", dice.pick(&WORDS), dice.below(10_000)),
        ("Url", _) => format!("https://{}.example.com/{}", dice.pick(&WORDS), dice.pick(&WORDS)),
        ("Phone", _) => format!("+{} {:03} {:04}", 1 + dice.below(99), dice.below(1_000), dice.below(10_000)),
        ("Json", _) => {
            return format!(
                r#""{{\"reading\":{},\"unit\":\"\u00b0C\",\"tags\":[\"{}\"]}}""#,
                dice.below(1_000),
                dice.pick(&WORDS)
            );
        }
        (_, "firstname") => (*dice.pick(&FIRST_NAMES)).to_owned(),
        (_, "lastname") => (*dice.pick(&LAST_NAMES)).to_owned(),
        (_, "fullname") => format!("{} {}", dice.pick(&FIRST_NAMES), dice.pick(&LAST_NAMES)),
        (_, name) if name.ends_with("city") => (*dice.pick(&CITIES)).to_owned(),
        (_, name) if name.ends_with("number") || name.ends_with("postalcode") => format!("{:05}", dice.below(100_000)),
        _ => {
            let length = 8 + dice.index(24);
            sentence(dice, length)
        }
    };
    if value.chars().count() > max {
        value = value.chars().take(max).collect();
    }
    format!("\"{value}\"")
}

fn memo(dice: &mut Dice, max: usize, odd: bool) -> String {
    if odd {
        return (*dice.pick(&ODD_TEXTS)).to_owned();
    }
    let length = (20 + dice.index(200)).min(max.saturating_sub(12));
    let mut text = String::from("\"");
    text.push_str(&sentence(dice, length));
    if dice.chance(200) {
        text.push_str("\\r\\n");
        text.push_str(&sentence(dice, 20));
    }
    text.push('"');
    text
}

/// A long text of about `length` bytes.
pub(crate) fn long_memo(dice: &mut Dice, length: usize) -> String {
    let mut text = String::with_capacity(length + 40);
    text.push('"');
    while text.len() < length {
        text.push_str(&sentence(dice, 110));
        text.push_str(if dice.chance(50) { " \\u2028 \\\"Ω\\\"" } else { "\\n" });
    }
    text.push('"');
    text
}

/// A number whose scale is kept (dataverse 3.5).
fn decimal(dice: &mut Dice, scale: usize, odd: bool) -> String {
    if odd {
        let whole = *dice.pick(&["0", "-0", "99999999999", "-1", "20000"]);
        let digits = if dice.chance(500) { "0".repeat(scale) } else { format!("{:0>scale$}", 1) };
        return format!("{whole}.{digits}");
    }
    let mut text = dice.below(1_000_000).to_string();
    text.push('.');
    for place in 0..scale {
        // Trailing zeros are common, and must survive.
        let digit = if place < 2 { dice.below(10) } else { 0 };
        text.push(char::from(b'0' + digit as u8));
    }
    text
}

fn double(dice: &mut Dice, odd: bool) -> String {
    if odd {
        return (*dice.pick(&["1E-05", "1.7976931348623157E+308", "0.1", "-0.0", "1e2", "100000000000"])).to_owned();
    }
    format!("{}.{}", dice.below(180), 1 + dice.below(999_999))
}

fn date(dice: &mut Dice, behavior: DateBehavior, odd: bool) -> String {
    let day = if odd {
        (*dice.pick(&["1753-01-01", "9999-12-31", "2024-02-29"])).to_owned()
    } else {
        format!("20{:02}-{:02}-{:02}", 10 + dice.below(16), 1 + dice.below(12), 1 + dice.below(28))
    };
    match behavior {
        DateBehavior::DateOnly => format!("\"{day}\""),
        DateBehavior::UserLocal { date_format: true } => format!("\"{day}T00:00:00Z\""),
        _ if odd => format!("\"{day}T{}Z\"", if day.starts_with("1753") { "00:00:00" } else { "23:59:59" }),
        _ => format!("\"{day}T{:02}:{:02}:{:02}Z\"", dice.below(24), dice.below(60), dice.below(60)),
    }
}

/// Time of the change with this version: the simulated clock ticks once per change.
pub(crate) fn change_time(version: u64) -> String {
    // 2026-01-01T00:00:00Z, late enough to follow every made-up date of creation.
    const START: i64 = 1_767_225_600;
    let second = i64::try_from(version).unwrap_or(0) % 10_000_000;
    let stamp = jiff::Timestamp::from_second(START + second).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let mut text = String::with_capacity(24);
    let written = write!(text, "\"{stamp}\"");
    debug_assert!(written.is_ok(), "writing to a string");
    text
}

#[cfg(test)]
mod tests {
    use super::{ODD_TEXTS, Targets, value};
    use crate::catalogue;
    use crate::dice::Dice;

    struct Nowhere;
    impl Targets for Nowhere {
        fn pick(&self, dice: &mut Dice, _: &str) -> Option<String> {
            Some(dice.guid().to_string())
        }
    }

    #[test]
    fn every_value_is_json() {
        for text in ODD_TEXTS {
            serde_json::from_str::<String>(text).unwrap();
        }
        let mut dice = Dice::new(5, 0);
        for table in catalogue::tables(false) {
            for column in table
                .columns
                .iter()
                .filter(|column| !column.kind.is_lookup() && column.kind != crate::schema::Kind::Body)
            {
                for _ in 0..50 {
                    let text = value(&mut dice, &table.name, column, &Nowhere);
                    if !text.is_empty() {
                        serde_json::from_str::<&serde_json::value::RawValue>(&text).unwrap();
                    }
                }
            }
        }
    }
}
