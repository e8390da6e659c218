//! Claims challenges: a resource, or the sign-in service, asks for a token with more in it (`entra` protocol, section 8).
//!
//! A resource answers 401 with `WWW-Authenticate: Bearer …, error="insufficient_claims", claims="<base64>"`. The claims
//! go back, decoded and merged with our declaration, in the parameter `claims` of the next token request. The sign-in
//! service itself sends them as a JSON text beside `interaction_required`; then they belong into the next interactive
//! sign-in.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value, json};

/// Longest challenge that is understood, in bytes. Real ones are below 1 KiB.
pub const CHALLENGE_BYTES_MAX: usize = 16 * 1024;

/// Both alphabets are brought to the standard one before; padding may be there or not.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Claims that somebody asked for. They may name a person's session, so they never print.
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimsChallenge {
    claims: Map<String, Value>,
}

impl fmt::Debug for ClaimsChallenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimsChallenge([hidden])")
    }
}

impl ClaimsChallenge {
    /// The challenge among the values of all `WWW-Authenticate` headers of one 401, if there is one: several headers,
    /// several challenges in one header, parameters in any order.
    pub fn from_headers<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        values.into_iter().filter(|value| value.len() <= CHALLENGE_BYTES_MAX).flat_map(challenges).find_map(
            |challenge| {
                let parameter = |name: &str| challenge.parameters.iter().find(|(known, _)| known == name);
                let insufficient = parameter("error").is_some_and(|(_, error)| error == "insufficient_claims");
                if !challenge.scheme.eq_ignore_ascii_case("bearer") || !insufficient {
                    return None;
                }
                let (_, encoded) = parameter("claims")?;
                let standard = encoded.replace('-', "+").replace('_', "/");
                Self::from_json(std::str::from_utf8(&LENIENT.decode(standard.trim()).ok()?).ok()?)
            },
        )
    }

    /// Claims as JSON text, as the sign-in service sends them. `None` if it is no JSON object, or too long.
    pub fn from_json(text: &str) -> Option<Self> {
        if text.len() > CHALLENGE_BYTES_MAX {
            return None;
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(claims)) => Some(Self { claims }),
            _ => None,
        }
    }

    /// The value of the parameter `claims`: these claims with our declaration (`xms_cc`) added if it is absent.
    pub(crate) fn parameter(&self) -> String {
        let mut claims = self.claims.clone();
        if let Value::Object(access) = claims.entry("access_token").or_insert_with(|| json!({})) {
            access.entry("xms_cc").or_insert_with(|| json!({"values": ["cp1"]}));
        }
        Value::Object(claims).to_string()
    }

    /// The claims alone, as JSON text, to be kept until somebody signs in.
    pub(crate) fn json(&self) -> String {
        Value::Object(self.claims.clone()).to_string()
    }
}

/// Declares that we understand challenges, without one at hand.
pub(crate) fn declaration() -> String {
    ClaimsChallenge { claims: Map::new() }.parameter()
}

struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

/// The challenges in one header value (RFC 9110, section 11.6.1). A comma separates both challenges and parameters; what
/// follows a word tells which it was: `=` makes it a parameter.
fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ',');
        if rest.is_empty() {
            return found;
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace() || c == ',' || c == '=').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        match (after.strip_prefix('='), found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = parameter_value(value.trim_start());
                challenge.parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            // A parameter before any scheme: skip it.
            (Some(value), None) => rest = parameter_value(value.trim_start()).1,
            (None, _) => {
                found.push(Challenge { scheme: word.to_owned(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

/// A quoted string or a bare word, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_ascii_whitespace() || c == ',').unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIMS: &str = r#"{"access_token":{"nbf":{"essential":true,"value":"1604106651"},"?>~":null}}"#;

    #[test]
    fn a_challenge_is_found_among_others_in_any_order_and_both_alphabets() {
        let standard = base64::engine::general_purpose::STANDARD.encode(CLAIMS);
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(CLAIMS);
        assert_ne!(standard.trim_end_matches('='), url, "the sample shows no difference between the alphabets");
        let expected = ClaimsChallenge::from_json(CLAIMS).unwrap();
        for claims in [&standard, &url] {
            let second = format!(
                r#"Negotiate abc==, BEARER claims="{claims}", realm="a, \"b\" error=no",authorization_uri="https://x/?a=b,c" , Error = "insufficient_claims""#
            );
            let headers = [r#"Bearer realm="", error="invalid_token", claims="e30=""#, second.as_str()];
            assert_eq!(ClaimsChallenge::from_headers(headers), Some(expected.clone()), "{second}");
        }
        for none in [
            "",
            "Bearer",
            "=,=\"",
            "Bearer error=\"insufficient_claims\"",
            "Basic error=insufficient_claims, claims=e30=",
            "Bearer error=insufficient_claims, claims=\"!!\"",
            "Bearer error=insufficient_claims claims=\"W10=\"",
            "Bearer error=\"insufficient",
        ] {
            assert_eq!(ClaimsChallenge::from_headers([none]), None, "{none}");
        }
        // The shape in which the vendor's pages show it: no padding lost, bare words.
        assert!(ClaimsChallenge::from_headers(["Bearer error=insufficient_claims, claims=e30="]).is_some());
    }

    #[test]
    fn our_declaration_is_added_and_never_replaces_what_was_asked() {
        let merged = ClaimsChallenge::from_json(CLAIMS).unwrap().parameter();
        let merged: Value = serde_json::from_str(&merged).unwrap();
        assert_eq!(merged["access_token"]["nbf"]["value"], "1604106651");
        assert_eq!(merged["access_token"]["xms_cc"]["values"][0], "cp1");
        let own = r#"{"access_token":{"xms_cc":{"values":["cp2"]}},"id_token":{"a":null}}"#;
        assert_eq!(ClaimsChallenge::from_json(own).unwrap().parameter(), own);
        assert_eq!(declaration(), r#"{"access_token":{"xms_cc":{"values":["cp1"]}}}"#);
    }

    #[test]
    fn claims_do_not_print_and_have_a_limit() {
        let challenge = ClaimsChallenge::from_json(CLAIMS).unwrap();
        assert!(!format!("{challenge:?}").contains("1604106651"));
        assert_eq!(ClaimsChallenge::from_json(&format!("{{\"a\":\"{}\"}}", "x".repeat(CHALLENGE_BYTES_MAX))), None);
        assert_eq!(ClaimsChallenge::from_json("[]"), None);
    }
}
