//! Answers and refusals before they become HTTP.

use std::fmt::Write as _;

use crate::query::Prefer;

/// A refusal in the shape of dataverse 1.5.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// Annotations of the error, for clients that ask for them (dataverse 1.5).
    pub(crate) details: Vec<(&'static str, String)>,
    /// The message alone, without JSON around it.
    pub(crate) plain: bool,
}

/// What stands before the name of an annotation of an error (dataverse 1.5).
const ERROR_ANNOTATION: &str = "Microsoft.PowerApps.CDS.";

impl Refusal {
    pub(crate) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new(), details: Vec::new(), plain: false }
    }

    /// A plain text instead of an error body (dataverse 6.11).
    pub(crate) fn plain(status: u16, message: impl Into<String>) -> Self {
        Self { plain: true, ..Self::new(status, "", message) }
    }

    /// Adds the annotations a client asked for, and leaves out the others.
    pub(crate) fn for_client(mut self, prefer: &Prefer) -> Self {
        self.details.push(("ErrorDetails.OperationStatus", "0".to_owned()));
        self.details.push(("InnerError.Message", self.message.clone()));
        self.details.retain(|(name, _)| prefer.wants(&format!("{ERROR_ANNOTATION}{name}")));
        self
    }

    /// A wrong entity set name, or its wrong case (dataverse 1.5).
    pub(crate) fn no_segment(segment: &str) -> Self {
        Self::new(404, "0x8006088a", format!("Resource not found for the segment '{segment}'."))
    }

    /// A property typo in the query (dataverse 1.5).
    pub(crate) fn no_property(property: &str, type_name: &str) -> Self {
        Self::new(
            400,
            "0x0",
            format!("Could not find a property named '{property}' on type 'Microsoft.Dynamics.CRM.{type_name}'."),
        )
    }

    pub(crate) fn no_row(table: &str, id: &str) -> Self {
        Self::new(404, "0x80040217", format!("{table} With Id = {id} Does Not Exist"))
    }

    pub(crate) fn bad_query(message: impl Into<String>) -> Self {
        Self::new(400, "0x80060888", message)
    }

    /// The paging cookie does not belong to this query (dataverse 3.1).
    pub(crate) fn bad_cookie() -> Self {
        Self::new(400, "0x8004112a", "Paging cookie is malformed or does not match the query.")
    }

    /// A delta token past its life (dataverse 4.5).
    pub(crate) fn expired_token(status: u16) -> Self {
        Self::new(
            status,
            "0x80044352",
            "Version stamp associated with the client has expired. Please perform a full sync.",
        )
    }

    /// What the simulator itself leaves out; told apart from refusals of the real service by its text.
    pub(crate) fn not_simulated(what: &str) -> Self {
        Self::new(501, "0x80040800", format!("{what} is not part of this simulator."))
    }

    pub(crate) fn into_answer(self) -> Answer {
        if self.plain {
            return Answer { status: self.status, headers: self.headers, ..Answer::text(self.message) };
        }
        let mut body = format!("{{\"error\":{{\"code\":\"{}\",\"message\":", self.code);
        write_json_text(&self.message, &mut body);
        for (name, value) in &self.details {
            body.push_str(",\"@");
            body.push_str(ERROR_ANNOTATION);
            body.push_str(name);
            body.push_str("\":");
            write_json_text(value, &mut body);
        }
        body.push_str("}}");
        Answer { status: self.status, headers: self.headers, ..Answer::json(body) }
    }
}

/// Appends `text` as a JSON string.
pub(crate) fn write_json_text(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            letter if u32::from(letter) < 0x20 => {
                let written = write!(out, "\\u{:04x}", u32::from(letter));
                debug_assert!(written.is_ok(), "writing to a string");
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
}

/// A finished answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) media_type: &'static str,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(body: String) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            media_type: "application/json; odata.metadata=minimal",
            body: body.into_bytes(),
        }
    }

    pub(crate) fn text(body: String) -> Self {
        Self { media_type: "text/plain", ..Self::json(body) }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status, ..Self::json(String::new()) }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}
