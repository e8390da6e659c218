//! What a next link and a delta link remember.
//!
//! A skip token is an XML cookie, double percent-encoded inside, as the service sends it (dataverse 3.1). It
//! holds the last key, never a row number, so rows that come or go between pages behave as in reality; and it
//! is bound to the query it was made for. A delta token is `{version}!{date}` (dataverse 4.2).

use jiff::Timestamp;

use crate::answer::Refusal;
use crate::database::RowKey;
use crate::guid::Guid;
use crate::query::{decode, encode};

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Position {
    /// After this row, in key order; at the start without one.
    Rows(Option<RowKey>),
    /// After the change with this version.
    Changes(u64),
    /// After the deletion with this version.
    Deletions(u64),
}

/// Contents of a skip token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cookie {
    pub(crate) page: u64,
    pub(crate) position: Position,
    /// For tracked reads: where the changes begin, and the version that the final delta link will carry.
    pub(crate) tracked: Option<(u64, u64)>,
    /// Links of an older generation are refused.
    pub(crate) generation: u64,
    /// The query the link belongs to.
    pub(crate) fingerprint: u64,
}

fn attribute<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!(" {name}=\""))? + name.len() + 3;
    let length = text[start..].find('"')?;
    Some(&text[start..start + length])
}

impl Cookie {
    /// The text after `$skiptoken=`.
    pub(crate) fn to_token(&self, primary_id: &str) -> String {
        let (phase, after, last, partition) = match &self.position {
            Position::Rows(None) => ("rows", 0, String::new(), String::new()),
            Position::Rows(Some(key)) => {
                let partition = key.partition.as_deref().map(encode).unwrap_or_default();
                ("rows", 0, format!("{{{}}}", key.id), partition)
            }
            Position::Changes(after) => ("changes", *after, String::new(), String::new()),
            Position::Deletions(after) => ("deletions", *after, String::new(), String::new()),
        };
        let tracked =
            self.tracked.map(|(since, until)| format!(" since=\"{since}\" until=\"{until}\"")).unwrap_or_default();
        let inner = format!(
            "<cookie page=\"{}\"><{primary_id} last=\"{last}\" partition=\"{partition}\" phase=\"{phase}\" after=\"{after}\"{tracked} generation=\"{}\" query=\"{:x}\" /></cookie>",
            self.page - 1,
            self.generation,
            self.fingerprint,
        );
        let tracking = if self.tracked.is_some() { "True" } else { "False" };
        encode(&format!(
            "<cookie pagenumber=\"{}\" pagingcookie=\"{}\" istracking=\"{tracking}\" />",
            self.page,
            encode(&encode(&inner))
        ))
    }

    /// Reads a skip token that was decoded once, as part of the query.
    pub(crate) fn parse(token: &str) -> Result<Self, Refusal> {
        let read = || {
            let page = attribute(token, "pagenumber")?.parse().ok()?;
            let inner = decode(&decode(attribute(token, "pagingcookie")?));
            let number = |name| attribute(&inner, name)?.parse::<u64>().ok();
            let position = match attribute(&inner, "phase")? {
                "changes" => Position::Changes(number("after")?),
                "deletions" => Position::Deletions(number("after")?),
                _ => Position::Rows(match attribute(&inner, "last")? {
                    "" => None,
                    last => {
                        let partition = attribute(&inner, "partition").filter(|text| !text.is_empty());
                        Some(RowKey { id: Guid::parse(last)?, partition: partition.map(|text| decode(text).into()) })
                    }
                }),
            };
            Some(Self {
                page,
                position,
                tracked: number("since").zip(number("until")),
                generation: number("generation")?,
                fingerprint: u64::from_str_radix(attribute(&inner, "query")?, 16).ok()?,
            })
        };
        read().ok_or_else(Refusal::bad_cookie)
    }
}

/// The text after `$deltatoken=`.
pub(crate) fn delta_token(version: u64, now: Timestamp) -> String {
    encode(&format!("{version}!{}", now.strftime("%m/%d/%Y %H:%M:%S")))
}

/// Version and age of a decoded delta token.
pub(crate) fn parse_delta_token(token: &str) -> Result<(u64, Timestamp), Refusal> {
    let read = || {
        let (version, date) = token.split_once('!')?;
        let date = jiff::civil::DateTime::strptime("%m/%d/%Y %H:%M:%S", date).ok()?;
        Some((version.parse().ok()?, date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()))
    };
    read().ok_or_else(|| Refusal::bad_query("The delta token is not valid."))
}

#[cfg(test)]
mod tests {
    use super::{Cookie, Position, delta_token, parse_delta_token};
    use crate::database::RowKey;
    use crate::guid::Guid;
    use crate::query::decode;

    #[test]
    fn a_token_comes_back_as_it_was() {
        for position in [
            Position::Rows(None),
            Position::Rows(Some(RowKey { id: Guid::from_order(77), partition: Some("tenant 'ä' \"#7".into()) })),
            Position::Changes(9),
        ] {
            let cookie = Cookie { page: 2, position, tracked: Some((4, 5)), generation: 3, fingerprint: 0xabc };
            assert_eq!(Cookie::parse(&decode(&cookie.to_token("accountid"))).unwrap(), cookie);
        }
        assert!(Cookie::parse("<cookie />").is_err());
    }

    #[test]
    fn delta_tokens_have_the_documented_form() {
        let when = "2025-03-14T09:26:53Z".parse().unwrap();
        let token = delta_token(4_712_345, when);
        assert_eq!(token, "4712345%2103%2f14%2f2025%2009%3a26%3a53");
        assert_eq!(parse_delta_token(&decode(&token)).unwrap(), (4_712_345, when));
    }
}
