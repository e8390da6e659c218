//! The JSON body of a write, with every value as the bytes the client sent.
//!
//! Nothing here looks at a table: a body is a list of members in their order. A member that comes twice is
//! refused, as a payload that does not parse is (dataverse 1.5).

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::answer::Refusal;

/// One JSON object.
#[derive(Debug, Default)]
pub(crate) struct Body(pub(crate) Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Body;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
                let (mut members, mut seen) = (Vec::new(), HashSet::new());
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("the property '{name}' occurs twice")));
                    }
                    members.push((name, value));
                }
                Ok(Body(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The payload could not be understood (dataverse 1.5).
pub(crate) fn bad_payload(reason: &str) -> Refusal {
    Refusal::new(400, "0x80048d19", format!("Error identified in Payload provided by the user: {reason}"))
}

impl Body {
    /// Reads the body of a request; an empty one is an empty object.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        serde_json::from_slice(bytes).map_err(|error| bad_payload(&error.to_string()))
    }

    /// The raw text of a member.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(have, _)| have == name).map(|(_, value)| value.get())
    }

    /// A member that is a text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    /// A member that is an object.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Self>, Refusal> {
        self.raw(name).filter(|raw| *raw != "null").map(|raw| Self::parse(raw.as_bytes())).transpose()
    }

    /// A member that is a list of objects.
    pub(crate) fn list(&self, name: &str) -> Result<Option<Vec<Self>>, Refusal> {
        let parse = |raw: &str| serde_json::from_str(raw).map_err(|error| bad_payload(&error.to_string()));
        self.raw(name).map(parse).transpose()
    }

    /// The table a member `@odata.type` names.
    pub(crate) fn type_name(&self) -> Option<String> {
        let name = self.text("@odata.type")?;
        let name = name.trim_start_matches('#');
        Some(name.strip_prefix("Microsoft.Dynamics.CRM.").unwrap_or(name).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::Body;

    #[test]
    fn values_keep_their_bytes_and_doubles_are_refused() {
        let body = Body::parse(br#"{"revenue": 20000.0000, "name":"a\u00e9\/"}"#).unwrap();
        assert_eq!(body.raw("revenue"), Some("20000.0000"));
        assert_eq!(body.raw("name"), Some(r#""a\u00e9\/""#));
        assert!(Body::parse(br#"{"a":1,"a":2}"#).is_err());
        assert!(Body::parse(b"[1]").is_err());
        assert!(Body::parse(b" \r\n").unwrap().0.is_empty());
    }
}
