//! From a value in a body to the cell that holds it, or the refusal of the service (dataverse 6.1, 6.16).

use crate::answer::Refusal;
use crate::guid::Guid;
use crate::schema::{Column, DateBehavior, Kind};
use crate::uploads::content_cell;

use super::{WriteContext, bad_payload};

/// Largest amount of money the service stores.
const MONEY_MAX: i128 = 922_337_203_685_477;
/// Largest whole part of a decimal column.
const DECIMAL_MAX: i128 = 100_000_000_000;

fn wrong_type(column: &Column, expected: &str) -> Refusal {
    bad_payload(&format!("Cannot convert a value of the property '{}' to the expected type '{expected}'.", column.name))
}

fn text_of(column: &Column, raw: &str) -> Result<String, Refusal> {
    serde_json::from_str(raw).map_err(|_| wrong_type(column, "Edm.String"))
}

/// The cell for a raw value of a column that is no lookup and holds no content; empty for null.
pub(super) fn cell(context: &mut WriteContext<'_>, column: &Column, raw: &str) -> Result<String, Refusal> {
    if raw == "null" {
        return Ok(String::new());
    }
    match &column.kind {
        Kind::Text { max, .. } | Kind::Memo { max } => {
            let text = text_of(column, raw)?;
            if text.encode_utf16().count() > *max as usize {
                return Err(Refusal::new(
                    400,
                    "0x80044331",
                    format!(
                        "A validation error occurred. The length of the '{}' attribute exceeded the maximum allowed length of '{max}'.",
                        column.name
                    ),
                ));
            }
            // The database keeps no empty texts.
            Ok(if text.is_empty() { String::new() } else { raw.to_owned() })
        }
        Kind::Integer => raw.parse::<i64>().map_err(|_| wrong_type(column, "Edm.Int32")).and_then(|number| {
            i32::try_from(number)
                .map(|number| number.to_string())
                .map_err(|_| outside("0x8004432f", column, &i32::MIN.to_string(), &i32::MAX.to_string()))
        }),
        Kind::BigInt => raw
            .trim_matches('"')
            .parse::<i64>()
            .map(|number| number.to_string())
            .map_err(|_| wrong_type(column, "Edm.Int64")),
        Kind::Decimal { precision } => fixed(column, raw, *precision as usize, DECIMAL_MAX, "0x80044330"),
        Kind::Money { precision } => fixed(column, raw, *precision as usize, MONEY_MAX, "0x80040317"),
        Kind::Double => {
            let number: f64 = raw.parse().map_err(|_| wrong_type(column, "Edm.Double"))?;
            if number.is_finite() { Ok(raw.to_owned()) } else { Err(wrong_type(column, "Edm.Double")) }
        }
        Kind::Boolean => match raw {
            "true" | "false" => Ok(raw.to_owned()),
            _ => Err(Refusal::new(
                400,
                "0x8004431c",
                format!("A validation error occurred. The value of '{}' is not a valid boolean.", column.name),
            )),
        },
        Kind::Date(behavior) => date(column, raw, *behavior),
        Kind::Choice { values } | Kind::State { values } | Kind::Status { values, .. } => {
            let number: i32 = raw.parse().map_err(|_| wrong_type(column, "Edm.Int32"))?;
            option(column, values, number).map(|()| number.to_string())
        }
        Kind::MultiChoice { values } => {
            let text = text_of(column, raw)?;
            if text.is_empty() {
                return Ok(String::new());
            }
            for part in text.split(',') {
                let number = part.trim().parse().map_err(|_| wrong_type(column, "Edm.String"))?;
                option(column, values, number)?;
            }
            Ok(raw.to_owned())
        }
        Kind::Guid => {
            let id = Guid::parse(&text_of(column, raw)?).ok_or_else(|| wrong_type(column, "Edm.Guid"))?;
            Ok(format!("\"{id}\""))
        }
        Kind::EntityName => text_of(column, raw).map(|_| raw.to_owned()),
        Kind::Image | Kind::Body => content_cell(context, column, raw),
        // Only an upload sets a file (dataverse 7.1).
        Kind::File => Err(Refusal::new(
            400,
            "0x80040203",
            format!("The file column '{}' cannot be set with the row.", column.name),
        )),
        Kind::Lookup { .. } | Kind::Customer { .. } | Kind::Owner | Kind::PartyList | Kind::Virtual => {
            Err(bad_payload(&format!(
                "CRM do not support direct update of Entity Reference properties, Use Navigation properties instead. ({})",
                column.name
            )))
        }
    }
}

/// A value that is no option of the column (dataverse 2.2); stored ones may be older than the list.
fn option(column: &Column, values: &[i32], number: i32) -> Result<(), Refusal> {
    if values.contains(&number) {
        return Ok(());
    }
    Err(Refusal::new(
        400,
        "0x8004431a",
        format!(
            "A validation error occurred. The value {number} of '{}' is outside the valid range. Accepted Values: {values:?}",
            column.name
        ),
    ))
}

fn outside(code: &'static str, column: &Column, low: &str, high: &str) -> Refusal {
    Refusal::new(
        400,
        code,
        format!(
            "A validation error occurred. The value of '{}' is outside the valid range of {low} to {high}.",
            column.name
        ),
    )
}

/// A number with a fixed scale; missing zeros are added, digits beyond the scale are cut (dataverse 3.5).
fn fixed(column: &Column, raw: &str, scale: usize, largest: i128, code: &'static str) -> Result<String, Refusal> {
    // Decimals may be sent as texts (dataverse T21).
    let number = raw.trim_matches('"');
    let digits = number.strip_prefix('-').unwrap_or(number);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = !whole.is_empty() && whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
    if !plain {
        // An exponent is rare, and right as long as it is a number.
        return number.parse::<f64>().map(|_| number.to_owned()).map_err(|_| wrong_type(column, "Edm.Decimal"));
    }
    let size: i128 = whole.parse().unwrap_or(i128::MAX);
    if size > largest || size == largest && fraction.bytes().any(|byte| byte != b'0') {
        return Err(outside(code, column, &format!("-{largest}"), &largest.to_string()));
    }
    let mut text = number.to_owned();
    if fraction.is_empty() && scale > 0 {
        text.truncate(number.len() - usize::from(number.ends_with('.')));
        text.push('.');
    }
    if fraction.len() < scale {
        text.push_str(&"0".repeat(scale - fraction.len()));
    } else {
        text.truncate(text.len() - (fraction.len() - scale));
    }
    Ok(text)
}

fn date(column: &Column, raw: &str, behavior: DateBehavior) -> Result<String, Refusal> {
    let text = text_of(column, raw)?;
    let wrong =
        || wrong_type(column, if behavior == DateBehavior::DateOnly { "Edm.Date" } else { "Edm.DateTimeOffset" });
    let day = text.get(..10).filter(|day| is_day(day)).ok_or_else(wrong)?;
    if day < "1753-01-01" {
        return Err(Refusal::new(400, "0x80044336", format!("The date of '{}' is earlier than 1753.", column.name)));
    }
    if behavior == DateBehavior::DateOnly {
        return if text.len() == 10 { Ok(raw.to_owned()) } else { Err(wrong()) };
    }
    let time = text.get(10..19).filter(|time| is_time(time)).ok_or_else(wrong)?;
    match &text[19..] {
        "Z" => Ok(raw.to_owned()),
        // Parts of a second are not kept (dataverse 3.5).
        rest if rest.starts_with('.') && rest.ends_with('Z') => Ok(format!("\"{day}{time}Z\"")),
        _ => {
            let instant: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
            Ok(format!("\"{}\"", instant.strftime("%Y-%m-%dT%H:%M:%SZ")))
        }
    }
}

fn is_day(text: &str) -> bool {
    text.parse::<jiff::civil::Date>().is_ok()
}

fn is_time(text: &str) -> bool {
    text.strip_prefix('T').is_some_and(|time| time.parse::<jiff::civil::Time>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::{date, fixed};
    use crate::schema::{DateBehavior, Kind, TableDef};

    #[test]
    fn numbers_get_the_scale_of_their_column() {
        let mut def = TableDef::new("thing", None, "thingid");
        let column = def.push("amount", Kind::Money { precision: 4 }, crate::schema::Slot::None).clone();
        let of = |raw: &str| fixed(&column, raw, 4, 1_000, "0x80040317");
        assert_eq!(of("20.0000").unwrap(), "20.0000");
        assert_eq!(of("20").unwrap(), "20.0000");
        assert_eq!(of("-0.5").unwrap(), "-0.5000");
        assert_eq!(of("\"1.23456\"").unwrap(), "1.2345");
        assert_eq!(of("1000.0001").unwrap_err().code, "0x80040317");
        assert!(of("\"x\"").is_err());
    }

    #[test]
    fn dates_keep_whole_seconds() {
        let mut def = TableDef::new("thing", None, "thingid");
        let column = def.push("day", Kind::Integer, crate::schema::Slot::None).clone();
        let zoned = DateBehavior::UserLocal { date_format: false };
        assert_eq!(date(&column, "\"9999-12-31T23:59:59Z\"", zoned).unwrap(), "\"9999-12-31T23:59:59Z\"");
        assert_eq!(date(&column, "\"2024-02-29T01:02:03.456Z\"", zoned).unwrap(), "\"2024-02-29T01:02:03Z\"");
        assert_eq!(date(&column, "\"2024-02-29T01:02:03+01:00\"", zoned).unwrap(), "\"2024-02-29T00:02:03Z\"");
        assert!(date(&column, "\"2023-02-29T00:00:00Z\"", zoned).is_err());
        assert!(date(&column, "\"2024-02-29\"", zoned).is_err());
        assert_eq!(date(&column, "\"2024-02-29\"", DateBehavior::DateOnly).unwrap(), "\"2024-02-29\"");
        assert!(date(&column, "\"1752-12-31T00:00:00Z\"", zoned).is_err());
    }
}
