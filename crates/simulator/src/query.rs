//! Reading URLs and the `Prefer` header.
//!
//! Option and property names are case-sensitive, and options the service does not know are refused
//! (dataverse 1.1). `$skip`, `$search` and `$format` are refused as the real service refuses them.

use std::collections::BTreeMap;

use crate::answer::Refusal;

/// Undoes percent-encoding; `+` is a space, as in a query.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut ahead = rest.clone();
                let digits = (ahead.next().copied().and_then(digit), ahead.next().copied().and_then(digit));
                if let (Some(high), Some(low)) = digits {
                    bytes.push((high << 4) | low);
                    rest = ahead;
                } else {
                    bytes.push(b'%');
                }
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// Percent-encodes everything but unreserved characters, with the lower-case digits the service uses.
pub(crate) fn encode(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    out
}

/// Decoded name and value of each part of a query, in order, with the raw value.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (String, String, &str)> {
    query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(name), decode(value), value)
    })
}

/// The options of a read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) select: Option<Vec<String>>,
    /// `$select` as the client wrote it, to be repeated in links.
    select_raw: Option<String>,
    pub(crate) filter: Option<String>,
    pub(crate) order: Option<String>,
    pub(crate) top: Option<usize>,
    pub(crate) count: bool,
    pub(crate) expand: Option<String>,
    pub(crate) skip_token: Option<String>,
    pub(crate) delta_token: Option<String>,
    pub(crate) partition: Option<String>,
    /// `$id` of a link to be removed (dataverse 6.3).
    pub(crate) id: Option<String>,
    /// A query in FetchXML (dataverse 3.3).
    pub(crate) fetch_xml: Option<String>,
    /// Parameter aliases (`@p1`).
    pub(crate) aliases: BTreeMap<String, String>,
    /// Other options without a dollar sign, such as `size`.
    pub(crate) plain: BTreeMap<String, String>,
}

impl Options {
    /// No options but the partition of an elastic row.
    pub(crate) fn in_partition(partition: Option<String>) -> Self {
        Self { partition, ..Self::default() }
    }

    pub(crate) fn parse(query: &str) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for (name, value, raw) in pairs(query) {
            match name.as_str() {
                "$select" => {
                    options.select_raw = Some(raw.to_owned());
                    options.select = Some(
                        value.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect(),
                    );
                }
                "$filter" => options.filter = Some(value),
                "$orderby" => options.order = Some(value),
                "$top" => {
                    let top = value.parse().map_err(|_| {
                        Refusal::bad_query(format!("Invalid value '{value}' for $top query option found."))
                    })?;
                    options.top = Some(top);
                }
                "$count" => options.count = value == "true",
                "$expand" => options.expand = Some(value),
                "$skiptoken" => options.skip_token = Some(value),
                "$deltatoken" => options.delta_token = Some(value),
                "$skip" => return Err(Refusal::new(400, "0x80060888", "Skip Clause is not supported in CRM")),
                "$id" => options.id = Some(value),
                "partitionId" => options.partition = Some(value),
                "fetchXml" => options.fetch_xml = Some(value),
                name if name.starts_with('$') => {
                    return Err(Refusal::bad_query(format!("The query parameter {name} is not supported.")));
                }
                name if name.starts_with('@') => {
                    options.aliases.insert(name.to_owned(), value);
                }
                name => {
                    options.plain.insert(name.to_owned(), value);
                }
            }
        }
        Ok(options)
    }

    /// The part of the query that links repeat, ready to be followed by another option.
    pub(crate) fn link_prefix(&self) -> String {
        let mut prefix = String::from("?");
        for (name, value) in [
            ("$select", &self.select_raw),
            ("$filter", &self.filter.as_deref().map(encode)),
            ("$orderby", &self.order.as_deref().map(encode)),
        ] {
            if let Some(value) = value {
                prefix.push_str(name);
                prefix.push('=');
                prefix.push_str(value);
                prefix.push('&');
            }
        }
        if self.count {
            prefix.push_str("$count=true&");
        }
        prefix
    }

    /// Stands for everything a paging cookie is bound to.
    pub(crate) fn fingerprint(&self) -> u64 {
        crate::dice::mix_text(&format!("{:?}|{:?}|{:?}|{}", self.select, self.filter, self.order, self.count))
    }
}

/// What the client prefers (dataverse 1.2).
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefer {
    pub(crate) page_size: Option<usize>,
    pub(crate) track_changes: bool,
    /// Answer a write with the row.
    pub(crate) representation: bool,
    /// Go on after a failed part of a batch.
    pub(crate) continue_on_error: bool,
    /// Patterns of `odata.include-annotations`.
    annotations: Vec<String>,
}

impl Prefer {
    /// Reads the values of all `Prefer` headers.
    pub(crate) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Self {
        let mut prefer = Self::default();
        for header in headers {
            for part in split_outside_quotes(header) {
                let (name, value) = part.split_once('=').unwrap_or((part, ""));
                let value = value.trim().trim_matches('"');
                match name.trim() {
                    "odata.maxpagesize" => prefer.page_size = value.parse().ok().filter(|size| *size > 0),
                    "odata.track-changes" => prefer.track_changes = true,
                    "return" => prefer.representation = value == "representation",
                    "odata.continue-on-error" => prefer.continue_on_error = value != "false",
                    "odata.include-annotations" => {
                        prefer.annotations = value.split(',').map(|name| name.trim().to_owned()).collect();
                    }
                    _ => {}
                }
            }
        }
        prefer
    }

    /// Whether an annotation was asked for, by name, by `*` or by a prefix ending in `.*`.
    pub(crate) fn wants(&self, annotation: &str) -> bool {
        let matches = |pattern: &str| {
            pattern == "*"
                || pattern == annotation
                || pattern.strip_suffix('*').is_some_and(|prefix| annotation.starts_with(prefix))
        };
        let excluded = self.annotations.iter().filter_map(|pattern| pattern.strip_prefix('-')).any(matches);
        !excluded && self.annotations.iter().any(|pattern| matches(pattern))
    }

    /// The value of `Preference-Applied` (dataverse 1.2).
    pub(crate) fn applied(&self, page_size: Option<usize>, tracked: bool) -> Option<String> {
        let mut parts = Vec::new();
        if let Some(size) = page_size.filter(|_| self.page_size.is_some()) {
            parts.push(format!("odata.maxpagesize={size}"));
        }
        if tracked && self.track_changes {
            parts.push("odata.track-changes".to_owned());
        }
        if !self.annotations.is_empty() {
            parts.push(format!("odata.include-annotations=\"{}\"", self.annotations.join(",")));
        }
        (!parts.is_empty()).then(|| parts.join(","))
    }
}

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(text[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// The annotations of lookups and values.
pub(crate) const LOOKUP_NAME: &str = "Microsoft.Dynamics.CRM.lookuplogicalname";
pub(crate) const NAVIGATION: &str = "Microsoft.Dynamics.CRM.associatednavigationproperty";
pub(crate) const FORMATTED: &str = "OData.Community.Display.V1.FormattedValue";
pub(crate) const METADATA_VERSION: &str = "Microsoft.Dynamics.CRM.globalmetadataversion";

#[cfg(test)]
mod tests {
    use super::{LOOKUP_NAME, Options, Prefer, decode, encode};

    #[test]
    fn encoding_round_trips() {
        let text = "a b'c/é%20<cookie x=\"1\" />";
        assert_eq!(decode(&encode(text)), text);
        assert_eq!(decode("100%"), "100%");
    }

    #[test]
    fn preferences_share_a_header() {
        let prefer = Prefer::parse(
            ["odata.maxpagesize=50,odata.include-annotations=\"a.b,Microsoft.Dynamics.CRM.*\"", "odata.track-changes"]
                .into_iter(),
        );
        assert_eq!(prefer.page_size, Some(50));
        assert!(prefer.track_changes && prefer.wants("a.b") && prefer.wants(LOOKUP_NAME) && !prefer.wants("other"));
        assert_eq!(
            prefer.applied(Some(50), true).unwrap(),
            "odata.maxpagesize=50,odata.track-changes,odata.include-annotations=\"a.b,Microsoft.Dynamics.CRM.*\""
        );
    }

    #[test]
    fn skip_and_wrong_case_are_refused() {
        assert!(Options::parse("$skip=5").is_err());
        assert!(Options::parse("$Select=a").is_err());
    }
}
