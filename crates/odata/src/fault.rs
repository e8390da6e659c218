//! What the service says when it refuses, in the one form the rest of the program decides on.
//!
//! Error bodies come as OData errors, as `{"Message":…}`, as HTML from a gateway, or not at all (`dataverse` protocol,
//! section 1.5, confirmed by public clients). Codes come as hexadecimal, decimal or signed text, as a number, or empty.
//! Everything is brought to an unsigned 32-bit code and one short message.

use std::time::Duration;

use dynavault_identity::TokenError;
use dynavault_model::{Diagnose, FaultKind, Retry};

/// Longest message kept, in characters.
pub const MESSAGE_CHARS_MAX: usize = 500;

/// Codes of the service that the client itself acts on (`dataverse` protocol, sections 5.1 and 5.7).
pub mod code {
    /// Too many requests in the window.
    pub const REQUESTS_EXCEEDED: u32 = 0x8007_2322;
    /// Too much execution time in the window.
    pub const EXECUTION_EXCEEDED: u32 = 0x8007_2321;
    /// Too many requests at once.
    pub const CONCURRENCY_EXCEEDED: u32 = 0x8007_2326;
    /// An unexpected error; sometimes passes.
    pub const UNEXPECTED: u32 = 0x8004_0216;
    /// The environment is in admin-only mode.
    pub const ADMIN_ONLY: u32 = 0x8004_a113;
    /// The environment is disabled.
    pub const DISABLED: u32 = 0x8004_a104;
    /// The environment's storage is full.
    pub const STORAGE_FULL: u32 = 0x8007_2325;
    /// A SQL error; passes only when it was a deadlock.
    pub const SQL_ERROR: u32 = 0x8004_4150;
    /// A SQL timeout; a smaller page may help, the same request again does not.
    pub const SQL_TIMEOUT: u32 = 0x8004_4151;
    /// Plain "too many requests" of elastic and virtual tables, sent as the decimal HTTP status.
    pub const PLAIN_THROTTLED: u32 = 429;
}

/// Refusals of somebody whose token is good, whatever status they come with (`dataverse` protocol, section 9.3: some may arrive
/// as 401): not a member, no role, no licence, disabled, no privilege, no access to the row, not on behalf of others.
pub(crate) const NOT_THE_TOKEN: [u32; 8] =
    [0x8007_2560, 0x8004_2f09, 0x8004_d24b, 0x8004_a112, 0x8004_0220, 0x8004_0299, 0x8004_8306, 0x8004_a110];

/// Codes that pass by themselves (`dataverse` protocol, sections 5.1 and 5.7).
pub(crate) const PASSING: [u32; 7] = [
    0x8004_ed47, // transaction aborted
    0x8007_1154, // concurrent metadata change
    0x8004_8105, // concurrent duplicate results
    0x8004_0255, // -2147220907 in the texts of other clients
    0x8007_2324, // SQL concurrent workers
    0x8005_f103, // throttling
    0x8008_1116, // sandbox worker limit
];

/// The body of a refusal, understood as far as possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorBody {
    /// The service's code, normalised; `None` when there was none.
    pub code: Option<u32>,
    /// The service's words, at most [`MESSAGE_CHARS_MAX`] characters (and a privilege name beyond them).
    pub message: String,
}

#[derive(serde::Deserialize)]
struct ErrorMember {
    #[serde(default)]
    code: serde_json::Value,
    #[serde(default)]
    message: serde_json::Value,
}

impl ErrorBody {
    /// Reads the body of a refusal: OData error, then `Message`, then text, then the name of the status.
    pub fn parse(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let text = text.trim();
        if let Ok(serde_json::Value::Object(mut members)) = serde_json::from_str::<serde_json::Value>(text) {
            if let Some(error) = members.remove("error").or_else(|| members.remove("odata.error")) {
                return Self::of_value(error);
            }
            if let Some(message) = members.get("Message").and_then(serde_json::Value::as_str) {
                let code = members.get("ErrorCode").and_then(code_of_value);
                return Self { code, message: shorten(message) };
            }
        }
        let message = if text.starts_with('<') { words_of_html(text) } else { text.to_owned() };
        let message = if message.is_empty() { reason(status) } else { shorten(&message) };
        Self { code: None, message }
    }

    /// Reads the value of an `error` member.
    pub(crate) fn of_member(value: &[u8]) -> Self {
        serde_json::from_slice(value)
            .map_or_else(|_| Self { code: None, message: "an error without readable text".into() }, Self::of_value)
    }

    fn of_value(value: serde_json::Value) -> Self {
        let Ok(error) = serde_json::from_value::<ErrorMember>(value) else {
            return Self { code: None, message: "an error without readable text".into() };
        };
        // Older OData services wrap the text: {"lang":"en-US","value":"…"}.
        let message = error.message.as_str().or_else(|| error.message.get("value")?.as_str()).unwrap_or_default();
        let message = if message.is_empty() { "an error without text".to_owned() } else { shorten(message) };
        Self { code: code_of_value(&error.code), message }
    }
}

fn code_of_value(value: &serde_json::Value) -> Option<u32> {
    match value {
        serde_json::Value::String(text) => normalise_code(text),
        serde_json::Value::Number(number) => normalise_code(&number.to_string()),
        _ => None,
    }
}

/// Brings a code in any of its spellings to unsigned 32 bits; `None` when the text is empty or not a code.
pub fn normalise_code(text: &str) -> Option<u32> {
    let text = text.trim();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u32::from_str_radix(digits, 16).ok();
    }
    let number: i64 = text.parse().ok()?;
    u32::try_from(number).ok().or_else(|| i32::try_from(number).ok().map(i32::cast_unsigned))
}

/// The privilege a message names (`prvReadAccount`), if it names one (`dataverse` protocol, section 9.3: it is nowhere else).
pub fn privilege(message: &str) -> Option<&str> {
    let mut from = 0;
    while let Some(found) = message[from..].find("prv") {
        let start = from + found;
        let name = &message[start..];
        let length = name.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        let whole_word = !message[..start].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        if length > "prv".len() && whole_word {
            return Some(&name[..length]);
        }
        from = start + "prv".len();
    }
    None
}

/// The first characters of a message; a privilege named beyond them is appended, because the remedy depends on it.
fn shorten(message: &str) -> String {
    let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) else { return message.to_owned() };
    let mut short = message[..end].to_owned();
    if privilege(&short) != privilege(message)
        && let Some(name) = privilege(message)
    {
        short.push_str(" … ");
        short.push_str(name);
    }
    short
}

/// The title of an HTML page, or its text without tags.
fn words_of_html(html: &str) -> String {
    let lower = html.to_ascii_lowercase();
    if let Some(start) = lower.find("<title>").map(|at| at + "<title>".len())
        && let Some(length) = lower[start..].find("</title>")
        && !html[start..start + length].trim().is_empty()
    {
        return html[start..start + length].trim().to_owned();
    }
    let mut text = String::new();
    let mut in_tag = false;
    for character in html.chars() {
        match character {
            '<' => in_tag = true,
            '>' => {
                in_tag = false;
                text.push(' ');
            }
            _ if !in_tag => text.push(character),
            _ => {}
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn reason(status: u16) -> String {
    let name = reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    format!("status {status} {} without a body", name.unwrap_or("of unknown meaning"))
}

/// Why a request did not give what was asked for. Retries have been made already.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The service refused, in its own words.
    #[error("the service refused with status {status}{}: {message}{}", in_brackets(*code), of_request(request_id.as_deref()))]
    Service {
        /// HTTP status.
        status: u16,
        /// The service's code, normalised to unsigned 32 bits.
        code: Option<u32>,
        /// The service's words, shortened.
        message: String,
        /// The service's id of the request, for support cases.
        request_id: Option<String>,
    },
    /// Every try within the budget failed.
    #[error("gave up {what} after {tries} tries in {seconds} s (limit: {limit}): {last}", seconds = elapsed.as_secs())]
    Exhausted {
        /// What was being done.
        what: String,
        /// Tries made.
        tries: u32,
        /// Time spent, pauses included.
        elapsed: Duration,
        /// The limit that ended it, by name and value.
        limit: String,
        /// The last failure.
        last: String,
    },
    /// The service broke its own protocol, or asked for something we must not do.
    #[error("unusable answer while {what}: {detail}")]
    Protocol {
        /// What was being done.
        what: String,
        /// What was wrong.
        detail: String,
    },
    /// The sink does not take more; it holds its own error.
    #[error("writing stopped the reading")]
    SinkStopped,
    /// The operator stopped the run.
    #[error("cancelled")]
    Cancelled,
    /// No token could be had.
    #[error("could not sign in")]
    SignIn(#[source] TokenError),
    /// The service does not accept the token, not even a fresh one.
    #[error("the service does not accept the sign-in (status 401): {message}{}", of_request(request_id.as_deref()))]
    Unauthorized {
        /// The service's words, shortened.
        message: String,
        /// The service's id of the request, for support cases.
        request_id: Option<String>,
    },
    /// The client was made for reading only.
    #[error("could not go on with {what}: this client only reads")]
    ReadOnly {
        /// What was asked for.
        what: String,
    },
    /// The HTTP client could not be set up.
    #[error("could not set up the HTTP client: {0}")]
    Setup(String),
}

fn in_brackets(code: Option<u32>) -> String {
    code.map_or_else(String::new, |code| format!(" (0x{code:08x})"))
}

/// The id that support asks for.
fn of_request(id: Option<&str>) -> String {
    id.map_or_else(String::new, |id| format!(" (request {id})"))
}

impl RequestError {
    /// The service's code, if the service refused.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Service { code, .. } => *code,
            _ => None,
        }
    }

    /// The HTTP status that was meant, if the service refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Service { status, code, .. } => Some(meant_status(*status, *code)),
            Self::Unauthorized { .. } => Some(401),
            _ => None,
        }
    }

    /// The privilege the service says is missing.
    pub fn privilege(&self) -> Option<&str> {
        match self {
            Self::Service { message, .. } => privilege(message),
            _ => None,
        }
    }
}

impl Diagnose for RequestError {
    fn retry(&self) -> Retry {
        match self {
            Self::Exhausted { .. } => Retry::Backoff,
            Self::Cancelled => Retry::Cancelled,
            Self::SignIn(error) => error.retry(),
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::SignIn(error) => error.remedy(),
            Self::Unauthorized { .. } => {
                Some("check that the profile's application user exists and is enabled in this environment".into())
            }
            Self::Exhausted { .. } => Some("check the connection and the service's health page, then try again".into()),
            Self::Service { code: Some(code::ADMIN_ONLY), .. } => {
                Some("end the environment's administration mode in the Power Platform admin centre".into())
            }
            Self::Service { code: Some(code::DISABLED), .. } => {
                Some("enable the environment in the Power Platform admin centre".into())
            }
            Self::Service { code: Some(code::STORAGE_FULL), .. } => {
                Some("free storage of the environment or add capacity".into())
            }
            Self::Service { status: 403, message, .. } => {
                privilege(message).map(|name| format!("grant the application user the privilege {name}"))
            }
            _ => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::SignIn(_) | Self::Unauthorized { .. } => FaultKind::SignIn,
            Self::Cancelled => FaultKind::Cancelled,
            Self::Setup(_) => FaultKind::Usage,
            _ => FaultKind::Failed,
        }
    }
}

/// What a refusal of a read means for the next try (`dataverse` protocol, section 5.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Slow down, all of this user's requests.
    Throttled,
    /// Renew the token.
    Renew,
    /// Passes by itself; try again with growing pauses.
    Transient,
    /// May pass; try again a few times only.
    Doubtful,
    /// Trying again changes nothing.
    Final,
}

/// Whether the words of a SQL error name a deadlock, which passes (`dataverse` protocol, section 5.7).
pub(crate) fn is_deadlock(message: &str) -> bool {
    let text = message.to_ascii_lowercase();
    text.contains("1205") || text.contains("deadlock")
}

/// The status that is meant: elastic tables print it as the code, beside another one perhaps (`dataverse` protocol, section 1.5).
pub(crate) fn meant_status(status: u16, code: Option<u32>) -> u16 {
    let printed = code.and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code));
    printed.unwrap_or(status)
}

/// Decides by code first, status second, text last.
pub(crate) fn verdict(status: u16, body: &ErrorBody) -> Verdict {
    match body.code {
        Some(code::ADMIN_ONLY | code::DISABLED | code::STORAGE_FULL | code::SQL_TIMEOUT) => return Verdict::Final,
        Some(
            code::REQUESTS_EXCEEDED | code::EXECUTION_EXCEEDED | code::CONCURRENCY_EXCEEDED | code::PLAIN_THROTTLED,
        ) => return Verdict::Throttled,
        Some(code::SQL_ERROR) => {
            return if is_deadlock(&body.message) { Verdict::Transient } else { Verdict::Doubtful };
        }
        Some(code::UNEXPECTED) => return Verdict::Doubtful,
        Some(code) if NOT_THE_TOKEN.contains(&code) => return Verdict::Final,
        Some(passing) if status != 429 && PASSING.contains(&passing) => return Verdict::Transient,
        _ => {}
    }
    match meant_status(status, body.code) {
        429 => Verdict::Throttled,
        401 => Verdict::Renew,
        408 | 502 | 503 | 504 => Verdict::Transient,
        500 => Verdict::Doubtful,
        _ => Verdict::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_in_every_spelling_become_one_number() {
        for (text, code) in [
            ("0x80072322", Some(0x8007_2322)),
            ("0X80072322", Some(0x8007_2322)),
            ("-2147015902", Some(0x8007_2322)),
            ("2147951394", Some(0x8007_2322)),
            ("404", Some(404)),
            ("0x0", Some(0)),
            ("", None),
            ("BadRequest", None),
            ("99999999999", None),
        ] {
            assert_eq!(normalise_code(text), code, "{text:?}");
        }
        let number = ErrorBody::parse(400, br#"{"error":{"code":-2147015902,"message":"m"}}"#);
        assert_eq!(number.code, Some(0x8007_2322));
        assert_eq!(i64::from(0x8004_0255_u32) - (1_i64 << 32), -2_147_220_907);
    }

    #[test]
    fn every_shape_of_error_body_becomes_readable() {
        for (status, body, code, message) in [
            (404, r#"{"error":{"code":"0x80040217","message":"gone"}}"#, Some(0x8004_0217), "gone"),
            (400, r#"{"error":{"code":"","message":{"lang":"en-US","value":"old"}}}"#, None, "old"),
            (400, r#"{"Message":"plain"}"#, None, "plain"),
            (502, "<html><head><title>502 Bad Gateway</title></head><body>x</body></html>", None, "502 Bad Gateway"),
            (502, "<p>Our <b>services</b>\n are away</p>", None, "Our services are away"),
            (503, "", None, "status 503 Service Unavailable without a body"),
            (500, "half a sent", None, "half a sent"),
            (500, r#"{"error":"text"}"#, None, "an error without readable text"),
        ] {
            let parsed = ErrorBody::parse(status, body.as_bytes());
            assert_eq!((parsed.code, parsed.message.as_str()), (code, message), "{body}");
        }
    }

    #[test]
    fn long_messages_are_cut_but_keep_the_privilege() {
        let text = format!("{} is missing prvReadAccount privilege", "é".repeat(600));
        let body = serde_json::json!({"error": {"code": "0x80040220", "message": text}}).to_string();
        let parsed = ErrorBody::parse(403, body.as_bytes());
        assert!(parsed.message.chars().count() < MESSAGE_CHARS_MAX + 30);
        assert_eq!(privilege(&parsed.message), Some("prvReadAccount"));
        assert_eq!(privilege("supprvising prv and prvWrite_x."), Some("prvWrite_x"));
        assert_eq!(privilege("nothing"), None);
    }

    #[test]
    fn reads_are_retried_as_the_matrix_says() {
        let of = |code: Option<u32>, message: &str| ErrorBody { code, message: message.into() };
        for (status, code, message, expected) in [
            (429, Some(0x8007_2322), "", Verdict::Throttled),
            (429, Some(0x8005_f103), "", Verdict::Throttled),
            (400, Some(429), "", Verdict::Throttled),
            (503, None, "", Verdict::Transient),
            (500, Some(0x8004_4150), "SQL error 1205", Verdict::Transient),
            (500, Some(0x8004_4150), "SQL error", Verdict::Doubtful),
            (400, Some(0x8004_8105), "", Verdict::Transient),
            (500, Some(0x8004_0216), "", Verdict::Doubtful),
            (500, None, "", Verdict::Doubtful),
            (500, Some(0x8004_4151), "", Verdict::Final),
            (503, Some(0x8004_a113), "", Verdict::Final),
            (429, Some(0x8007_2325), "", Verdict::Final),
            (401, Some(0x8004_a104), "", Verdict::Final),
            (401, None, "", Verdict::Renew),
            (401, Some(0x8007_2560), "", Verdict::Final),
            (401, Some(0x8004_0220), "", Verdict::Final),
            (401, Some(0x8004_4300), "", Verdict::Renew),
            (400, Some(503), "", Verdict::Transient),
            (400, Some(404), "", Verdict::Final),
            (403, Some(0x8004_0220), "", Verdict::Final),
            (404, None, "", Verdict::Final),
        ] {
            assert_eq!(verdict(status, &of(code, message)), expected, "{status} {code:?} {message}");
        }
    }
}
