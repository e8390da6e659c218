//! What the service says when it refuses a write, as data, and what that means for whoever restores.
//!
//! A refused write is a fact about a row, not a failure of ours: the restorer counts it, reports it in the service's own
//! words, or does something else first. Which of these is decided here, in one table (`dataverse` protocol, section
//! 6.16), by code first, status second, text last (section 1.4).
//!
//! The other question answered here is whether a refusal proves that nothing was done. A status below 500 comes from
//! whoever looked at the request and turned it away. A status of 500 and more proves something only with a code of the
//! service itself, which rolls its transaction back when it reports one; without a code it is a gateway that lost sight
//! of what it forwarded.

use std::fmt;

use bytes::Bytes;

use crate::client::ReplyHeaders;
use crate::fault::{ErrorBody, PASSING, Verdict, code, is_deadlock, meant_status, privilege, verdict};
use crate::retry::Failure;

/// Longest printed code kept, in characters: codes of the service have ten or eleven.
const PRINTED_CHARS_MAX: usize = 32;

/// Repeats of a write that lost against another one and was rolled back: with pauses that double, enough for some minutes.
const TRANSIENT_REPEATS_MAX: u32 = 8;

/// Smallest code that is the service's own; smaller ones are HTTP statuses in other clothes (section 1.5), or nothing.
const OWN_CODE_MIN: u32 = 0x8000_0000;

/// Annotation of a bulk message on an elastic table that was carried out for some of its rows (section 6.12).
const PARTLY_DONE: &str = "Plugin.BulkApiErrorDetails";

/// A definite refusal: the service did not do what was asked, and says why. `Debug` does not show the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The service's code, normalised to unsigned 32 bits.
    pub code: Option<u32>,
    /// The code as the service prints it; empty where it gave none.
    pub printed_code: String,
    /// The service's words, shortened.
    pub message: String,
    /// The service's id of the request, for support cases.
    pub request_id: Option<String>,
    /// The body as it came, for [`Self::detail`].
    body: Bytes,
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal")
            .field("status", &self.status)
            .field("code", &self.printed_code)
            .field("message", &self.message)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

/// What a restorer should do about a refusal (`dataverse` protocol, section 6.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalClass {
    /// Report this row and go on; also for every code that is not known.
    Row,
    /// A row with this primary key, or this link, exists: update instead, or accept.
    Duplicate,
    /// Another row holds the alternate key.
    DuplicateKey,
    /// It is so already; accept.
    AlreadySo,
    /// The row itself or one it refers to is missing: try again after that one.
    Missing,
    /// The row changed since it was read: read it again and decide anew.
    Conflict,
    /// The table does not compare entity tags: send without `If-Match`.
    NoEntityTags,
    /// The row is closed: reopen, write, close.
    Closed,
    /// The state or status does not fit, or cannot be reached from here.
    State,
    /// Rows that depend on it keep it from being deleted: delete them first.
    Associated,
    /// It would close a loop in a hierarchy: clear the parent first.
    Loop,
    /// No owner, or one that cannot own.
    Owner,
    /// The currency is missing or exists under another id.
    Currency,
    /// A value does not fit the column in this environment.
    Value,
    /// The file is too large or of a blocked kind.
    File,
    /// Writing in another user's name is not allowed.
    OnBehalf,
    /// Nothing of this table can be written: a missing privilege, a message the table does not take.
    Table,
    /// Nothing can be written at all: stop the run.
    Environment,
    /// Too much at once: send less of it.
    Split,
    /// We sent what must not be sent.
    OurMistake,
    /// The service asked to slow down; nothing was done.
    Throttled,
    /// Passes by itself.
    Transient,
    /// May pass; a request of many rows is worth trying row by row.
    Unexpected,
    /// The customer's own code crashed; may pass.
    Crashed,
}

impl RefusalClass {
    /// How often the same request is sent again on the strength of such a refusal (sections 5.7 and 6.16). Being
    /// throttled has budgets of its own.
    pub(crate) fn repeats_max(self) -> u32 {
        match self {
            Self::Transient => TRANSIENT_REPEATS_MAX,
            Self::Unexpected => 2,
            Self::Crashed => 1,
            _ => 0,
        }
    }

    /// How the pause before that is reckoned.
    pub(crate) fn failure(self) -> Failure {
        if self == Self::Transient { Failure::Transient } else { Failure::Doubtful }
    }
}

/// The codes that mean something (`dataverse` protocol, sections 6.7, 6.8, 6.13, 6.15 and 6.16). Codes that pass by themselves are in
/// [`crate::fault`], for reads and writes alike.
const CLASSES: [(RefusalClass, &[u32]); 21] = [
    (RefusalClass::Missing, &[0x8004_0217, 0x8006_0891, 0x8004_9959]),
    (RefusalClass::Duplicate, &[0x8004_0237, 0x8004_9939]),
    (RefusalClass::DuplicateKey, &[0x8006_0892, 0x8004_9929]),
    (RefusalClass::AlreadySo, &[0x8004_8208, 0x8004_0526]),
    (RefusalClass::Conflict, &[0x8006_0882]),
    (RefusalClass::NoEntityTags, &[0x8006_088d]),
    (RefusalClass::Closed, &[0x8004_0230, 0x8004_022e]),
    // The last five are the family of rules for changes of state (section 6.5).
    (RefusalClass::State, &[0x8004_8408, 0x8004_f00e, 0x8004_f854, 0x8004_f855, 0x8004_f856, 0x8004_f857, 0x8004_f858]),
    (RefusalClass::Associated, &[0x8004_0227]),
    (RefusalClass::Loop, &[0x8004_0507, 0x8004_0387]),
    (RefusalClass::Owner, &[0x8004_0215, 0x8004_2f09, 0x8004_a112, 0x8004_032d]),
    (RefusalClass::Currency, &[0x8004_8cfb, 0x8004_8cf3]),
    (
        RefusalClass::Value,
        &[
            0x8004_4331,
            0x8004_431a,
            0x8004_431c,
            0x8004_432f,
            0x8004_4330,
            0x8004_0317,
            0x8004_0200,
            0x8004_0203,
            0x8004_9949,
        ],
    ),
    (RefusalClass::File, &[0x8004_4a02, 0x8004_3e09]),
    (RefusalClass::OnBehalf, &[0x8004_a110]),
    (RefusalClass::Table, &[0x8004_0220, 0x8004_0299, 0x8004_0800, 0x8006_088a]),
    (RefusalClass::Environment, &[0x8007_2560, code::STORAGE_FULL, code::DISABLED, code::ADMIN_ONLY]),
    (RefusalClass::Split, &[code::SQL_TIMEOUT]),
    (RefusalClass::OurMistake, &[0x8004_0333, 0x8004_4911, 0x8004_8d19]),
    (RefusalClass::Unexpected, &[code::UNEXPECTED]),
    (RefusalClass::Crashed, &[0x8004_0224, 0x8004_8d02]),
];

/// Codes that concern one row whatever the status says: record-level access, a plug-in's refusal, an opportunity without
/// a customer.
const ROW: [u32; 3] = [0x8004_8306, 0x8004_0265, 0x8004_0505];

/// The words of a refused creation of an id that exists (section 6.1); it has no code of its own.
const EXISTS_WORDS: &str = "matching key values already exist";

/// The class of a refusal by what it says.
pub fn classify(status: u16, body: &ErrorBody) -> RefusalClass {
    if verdict(status, body) == Verdict::Throttled {
        return RefusalClass::Throttled;
    }
    if let Some(code) = body.code {
        if let Some((class, _)) = CLASSES.iter().find(|(_, codes)| codes.contains(&code)) {
            return *class;
        }
        if ROW.contains(&code) {
            return RefusalClass::Row;
        }
        let deadlock = code == code::SQL_ERROR && is_deadlock(&body.message);
        if PASSING.contains(&code) || deadlock {
            return RefusalClass::Transient;
        }
        // Other clients try again after any SQL error that is not a time-out; a write does so twice at most.
        if code == code::SQL_ERROR {
            return RefusalClass::Unexpected;
        }
    }
    match meant_status(status, body.code) {
        403 if privilege(&body.message).is_some() => RefusalClass::Table,
        404 => RefusalClass::Missing,
        409 => RefusalClass::Duplicate,
        412 if body.message.to_ascii_lowercase().contains(EXISTS_WORDS) => RefusalClass::Duplicate,
        412 => RefusalClass::Conflict,
        413 => RefusalClass::Split,
        501 => RefusalClass::Table,
        _ => RefusalClass::Row,
    }
}

/// Whether a refusal proves that one transaction was not carried out.
pub(crate) fn proves_nothing_done(status: u16, code: Option<u32>) -> bool {
    // 408 may come from a gateway that had forwarded the request; 501 says that there is nothing that could have done it.
    let by_status = (300..500).contains(&status) && status != 408 || status == 501;
    by_status || code.is_some_and(|code| code >= OWN_CODE_MIN || (400..500).contains(&code) && code != 408)
}

impl Refusal {
    /// Reads a refusal.
    pub(crate) fn read(status: u16, headers: &ReplyHeaders, body: Bytes) -> Self {
        let ErrorBody { code, message } = ErrorBody::parse(status, &body);
        let printed_code = printed_code(&body).unwrap_or_default();
        Self { status, code, printed_code, message, request_id: headers.request_id(), body }
    }

    /// What a restorer should do about it.
    pub fn class(&self) -> RefusalClass {
        classify(self.status, &self.error_body())
    }

    /// The privilege the service says is missing.
    pub fn privilege(&self) -> Option<&str> {
        privilege(&self.message)
    }

    /// The text of an annotation of the error, by the end of its name: `Plugin.BulkApiErrorDetails` finds
    /// `@Microsoft.PowerApps.CDS.ErrorDetails.Plugin.BulkApiErrorDetails` (section 1.5). The service adds them when the
    /// request prefers `odata.include-annotations`.
    pub fn detail(&self, name_end: &str) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let members = body.get("error")?.as_object()?;
        let (_, value) = members.iter().find(|(name, _)| name.ends_with(name_end))?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// Some of a bulk message's rows were written.
    pub fn is_partial(&self) -> bool {
        memchr::memmem::find(&self.body, PARTLY_DONE.as_bytes()).is_some()
    }

    pub(crate) fn error_body(&self) -> ErrorBody {
        ErrorBody { code: self.code, message: self.message.clone() }
    }
}

/// The code of an error as it stands in the body.
fn printed_code(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let code = match body.get("error").or_else(|| body.get("odata.error")) {
        Some(error) => error.get("code")?,
        None => body.get("ErrorCode")?,
    };
    let text = match code {
        serde_json::Value::String(text) => text.trim().to_owned(),
        serde_json::Value::Number(number) => number.to_string(),
        _ => return None,
    };
    Some(text.chars().take(PRINTED_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, body: &str) -> Refusal {
        Refusal::read(status, &ReplyHeaders::default(), Bytes::copy_from_slice(body.as_bytes()))
    }

    fn coded(status: u16, code: &str, message: &str) -> Refusal {
        refusal(status, &format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#))
    }

    #[test]
    fn every_code_of_the_error_table_has_its_class() {
        for (status, code, class) in [
            (404, "0x80040217", RefusalClass::Missing),
            (400, "0x80040237", RefusalClass::Duplicate),
            (412, "-2147220937", RefusalClass::Duplicate),
            (412, "0x80060892", RefusalClass::DuplicateKey),
            (412, "0x80060882", RefusalClass::Conflict),
            (400, "0x8006088d", RefusalClass::NoEntityTags),
            (403, "0x80040220", RefusalClass::Table),
            (403, "0x80048306", RefusalClass::Row),
            (403, "0x8004a110", RefusalClass::OnBehalf),
            (400, "0x80048408", RefusalClass::State),
            (400, "0x80040230", RefusalClass::Closed),
            (405, "0x80040227", RefusalClass::Associated),
            (400, "0x80044331", RefusalClass::Value),
            (400, "0x80040215", RefusalClass::Owner),
            (400, "0x80048cfb", RefusalClass::Currency),
            (400, "0x80044911", RefusalClass::OurMistake),
            (400, "0x80040265", RefusalClass::Row),
            (500, "0x80040224", RefusalClass::Crashed),
            (500, "0x80040216", RefusalClass::Unexpected),
            (500, "0x80044150", RefusalClass::Unexpected),
            (500, "0x8004ed47", RefusalClass::Transient),
            (500, "0x80044151", RefusalClass::Split),
            (400, "0x80048208", RefusalClass::AlreadySo),
            (403, "0x80072560", RefusalClass::Environment),
            (429, "0x80072325", RefusalClass::Environment),
            (429, "0x80072322", RefusalClass::Throttled),
            (400, "429", RefusalClass::Throttled),
            (409, "409", RefusalClass::Duplicate),
            (400, "409", RefusalClass::Duplicate),
            (400, "404", RefusalClass::Missing),
            (400, "412", RefusalClass::Conflict),
            (400, "0x8004f856", RefusalClass::State),
            (401, "0x80072560", RefusalClass::Environment),
            (400, "0x80049999", RefusalClass::Row),
        ] {
            assert_eq!(coded(status, code, "m").class(), class, "{status} {code}");
        }
        let mut codes: Vec<u32> = CLASSES.iter().flat_map(|(_, codes)| *codes).chain(&ROW).copied().collect();
        let count = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), count, "a code has two classes");
        assert_eq!(coded(500, "0x80044150", "Transaction was deadlocked").class(), RefusalClass::Transient);
    }

    #[test]
    fn without_a_code_the_status_and_the_words_decide() {
        let exists = coded(412, "", "A record with matching key values already exists.");
        assert_eq!((exists.class(), exists.printed_code.as_str()), (RefusalClass::Duplicate, ""));
        for (status, body, class) in [
            (412, "", RefusalClass::Conflict),
            (404, "", RefusalClass::Missing),
            (403, "Principal is missing prvWriteAccount privilege", RefusalClass::Table),
            (403, "no", RefusalClass::Row),
            (413, "<html><title>Too large</title></html>", RefusalClass::Split),
            (501, "", RefusalClass::Table),
        ] {
            assert_eq!(refusal(status, body).class(), class, "{status} {body}");
        }
    }

    #[test]
    fn only_a_code_of_the_service_makes_a_server_error_definite() {
        for (status, code, proof) in [
            (400, None, true),
            (412, Some(0), true),
            (302, None, true),
            (408, None, false),
            (408, Some(0x8004_0217), true),
            (500, None, false),
            (500, Some(0), false),
            (500, Some(503), false),
            (500, Some(409), true),
            (500, Some(0x8004_0216), true),
            (501, None, true),
            (503, None, false),
            (503, Some(0x8004_a113), true),
        ] {
            assert_eq!(proves_nothing_done(status, code), proof, "{status} {code:?}");
        }
    }

    #[test]
    fn the_code_is_kept_as_it_was_printed_and_details_are_found() {
        let body = r#"{"error":{"code":"0x80044150","message":"Bulk failed","@Microsoft.PowerApps.CDS.ErrorDetails.Plugin.BulkApiErrorDetails":"[{\"RequestIndex\":1}]"}}"#;
        let bulk = refusal(400, body);
        assert_eq!((bulk.printed_code.as_str(), bulk.code), ("0x80044150", Some(0x8004_4150)));
        assert_eq!(bulk.detail("Plugin.BulkApiErrorDetails").as_deref(), Some(r#"[{"RequestIndex":1}]"#));
        assert!(bulk.is_partial());
        assert!(!format!("{bulk:?}").contains("RequestIndex"));
        let signed = refusal(400, r#"{"error":{"code":-2147220937,"message":"Cannot insert duplicate key."}}"#);
        assert_eq!((signed.printed_code.as_str(), signed.class()), ("-2147220937", RefusalClass::Duplicate));
        assert_eq!(refusal(502, "<html>").printed_code, "");
    }
}
