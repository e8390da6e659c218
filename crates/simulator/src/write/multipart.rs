//! The text of a `$batch`: parts in, parts out (dataverse 6.11).
//!
//! ```text
//! --batch_1            part headers, empty line,
//! Content-Type: …      then a request: line, headers, empty line, body
//!
//! POST … HTTP/1.1      or a change set, which is a multipart of its own
//! ```
//!
//! Every line ends with CRLF, the last boundary too; the real service stops reading at anything else.

use bytes::Bytes;

use crate::answer::{Answer, Refusal};
use crate::print::append;
use crate::route::{Headers, Verb};

/// Reasons of the statuses a part may have; anything else goes without.
const REASONS: [(u16, &str); 14] = [
    (200, "OK"),
    (201, "Created"),
    (204, "No Content"),
    (304, "Not Modified"),
    (400, "Bad Request"),
    (401, "Unauthorized"),
    (403, "Forbidden"),
    (404, "Not Found"),
    (405, "Method Not Allowed"),
    (409, "Conflict"),
    (412, "Precondition Failed"),
    (429, "Too Many Requests"),
    (500, "Internal Server Error"),
    (501, "Not Implemented"),
];

/// One request inside of a batch.
#[derive(Debug, Default)]
pub(super) struct Operation {
    pub(super) verb: Verb,
    pub(super) url: String,
    pub(super) headers: Headers,
    pub(super) body: Bytes,
    pub(super) content_id: Option<String>,
}

/// One part of a batch.
#[derive(Debug)]
pub(super) enum Part {
    Single(Operation),
    /// One transaction.
    ChangeSet(Vec<Operation>),
}

/// The payload ends where a line does not end as it should.
fn unreadable(what: &str) -> Refusal {
    Refusal::new(
        400,
        "0x80048d19",
        format!("Error identified in Payload provided by the user for Entity :'', {what}: Stream was not readable."),
    )
}

/// The boundary named in a content type.
pub(super) fn boundary(content_type: &str) -> Option<String> {
    let rest = content_type.strip_prefix("multipart/mixed")?;
    let value = rest.split(';').find_map(|part| part.trim().strip_prefix("boundary="))?;
    let value = value.trim().trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

/// Takes a batch apart.
pub(super) fn parse(body: &[u8], boundary: &str) -> Result<Vec<Part>, Refusal> {
    let bare = body.iter().enumerate().any(|(at, byte)| *byte == b'\n' && (at == 0 || body[at - 1] != b'\r'));
    if bare {
        return Err(unreadable("a line ends without a carriage return"));
    }
    let mut parts = Vec::new();
    if !body.ends_with(b"\r\n") {
        return Err(unreadable("the last line does not end"));
    }
    for section in split(body, boundary)? {
        let (headers, content) = head(section)?;
        let content_type = headers.get("content-type").unwrap_or_default();
        if let Some(inner) = self::boundary(content_type) {
            let mut operations = Vec::new();
            for section in split(content, &inner)? {
                let (headers, content) = head(section)?;
                if headers.get("content-type").is_some_and(|kind| kind.starts_with("multipart/")) {
                    return Err(unreadable("a change set holds another multipart"));
                }
                operations.push(operation(&headers, content)?);
            }
            parts.push(Part::ChangeSet(operations));
        } else if content_type.starts_with("application/http") {
            parts.push(Part::Single(operation(&headers, content)?));
        } else {
            return Err(unreadable("a part is neither a request nor a change set"));
        }
    }
    Ok(parts)
}

/// The sections between the delimiters. The line break after a closing one may belong to what follows.
fn split<'a>(body: &'a [u8], boundary: &str) -> Result<Vec<&'a [u8]>, Refusal> {
    let delimiter = format!("--{boundary}");
    let delimiter = delimiter.as_bytes();
    let mut sections = Vec::new();
    let mut start: Option<usize> = None;
    let mut line = 0;
    while line < body.len() {
        let end = find(&body[line..], b"\r\n").map(|at| line + at);
        let text = &body[line..end.unwrap_or(body.len())];
        if let Some(rest) = text.strip_prefix(delimiter)
            && (rest.is_empty() || rest == b"--")
        {
            if let Some(start) = start {
                // The line break before a delimiter belongs to it.
                sections.push(body.get(start..line.saturating_sub(2)).unwrap_or_default());
            }
            if rest == b"--" {
                return Ok(sections);
            }
            start = end.map(|end| end + 2);
        }
        line = end.map_or(body.len(), |end| end + 2);
    }
    Err(unreadable("the closing boundary is missing"))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Headers and what follows the empty line.
fn head(section: &[u8]) -> Result<(Headers, &[u8]), Refusal> {
    let (head, rest) = match find(section, b"\r\n\r\n") {
        Some(at) => (&section[..at], &section[at + 4..]),
        // A part without a body may end with its headers.
        None => (section, &section[section.len()..]),
    };
    let text = std::str::from_utf8(head).map_err(|_| unreadable("headers are not text"))?;
    let headers = text
        .split("\r\n")
        .filter(|line| !line.is_empty())
        .map(|line| line.split_once(':').ok_or_else(|| unreadable("a header has no colon")));
    let headers: Vec<(&str, &str)> = headers.collect::<Result<_, _>>()?;
    Ok((Headers::new(headers.into_iter()), rest))
}

fn operation(part: &Headers, content: &[u8]) -> Result<Operation, Refusal> {
    let end = find(content, b"\r\n").unwrap_or(content.len());
    let line = std::str::from_utf8(&content[..end]).map_err(|_| unreadable("the request line is not text"))?;
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let (Some(verb), Some(url), Some("HTTP/1.1"), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(unreadable("the request line is incomplete"));
    };
    let verb = Verb::parse(verb).ok_or_else(|| unreadable("the method is unknown"))?;
    let rest = content.get(end + 2..).unwrap_or_default();
    let (headers, body) = match rest.strip_prefix(b"\r\n") {
        Some(body) => (Headers::default(), body),
        None => head(rest)?,
    };
    Ok(Operation {
        verb,
        url: url.to_owned(),
        headers,
        body: Bytes::copy_from_slice(body),
        content_id: part.get("content-id").map(str::to_owned),
    })
}

/// Collects the answers of a batch.
#[derive(Debug)]
pub(super) struct Writer {
    boundary: String,
    body: Vec<u8>,
}

impl Writer {
    pub(super) fn new(boundary: String) -> Self {
        Self { boundary, body: Vec::new() }
    }

    /// Appends an answer as one part.
    pub(super) fn add(&mut self, answer: &Answer, content_id: Option<&str>) {
        let reason = REASONS.iter().find(|(status, _)| *status == answer.status).map_or("", |(_, reason)| reason);
        let mut head =
            format!("--{}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n", self.boundary);
        if let Some(id) = content_id {
            append(&mut head, format_args!("Content-ID: {id}\r\n"));
        }
        append(&mut head, format_args!("\r\nHTTP/1.1 {} {reason}\r\n", answer.status));
        if !answer.body.is_empty() {
            append(&mut head, format_args!("Content-Type: {}\r\n", answer.media_type));
        }
        head.push_str("OData-Version: 4.0\r\n");
        for (name, value) in &answer.headers {
            append(&mut head, format_args!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.body.extend_from_slice(head.as_bytes());
        self.body.extend_from_slice(&answer.body);
        self.body.extend_from_slice(b"\r\n");
    }

    /// Appends a finished multipart as one part.
    pub(super) fn nest(&mut self, inner: Self) {
        let head = format!("--{}\r\nContent-Type: multipart/mixed; boundary={}\r\n\r\n", self.boundary, inner.boundary);
        self.body.extend_from_slice(head.as_bytes());
        self.body.extend_from_slice(&inner.close());
        self.body.extend_from_slice(b"\r\n");
    }

    fn close(mut self) -> Vec<u8> {
        self.body.extend_from_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        self.body
    }

    /// The answer to the whole batch.
    pub(super) fn finish(self, status: u16) -> Answer {
        let content_type = format!("multipart/mixed; boundary={}", self.boundary);
        Answer { status, body: self.close(), ..Answer::empty(status) }.with("Content-Type", content_type)
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, boundary, parse};
    use crate::route::Verb;

    const TEXT: &str = "--b\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\nGET /api/data/v9.2/accounts HTTP/1.1\r\n\r\n\r\n\
        --b\r\nContent-Type: multipart/mixed; boundary=\"c\"\r\n\r\n--c\r\nContent-Type: application/http\r\nContent-ID: 1\r\n\r\n\
        POST /api/data/v9.2/contacts HTTP/1.1\r\nContent-Type: application/json\r\n\r\n{\"lastname\":\"--b\"}\r\n--c--\r\n\r\n--b--\r\n";

    #[test]
    fn parts_and_change_sets_come_apart() {
        let parts = parse(TEXT.as_bytes(), "b").unwrap();
        let [Part::Single(read), Part::ChangeSet(set)] = &parts[..] else { panic!("{parts:?}") };
        assert_eq!((read.verb, read.url.as_str()), (Verb::Get, "/api/data/v9.2/accounts"));
        assert_eq!(set[0].content_id.as_deref(), Some("1"));
        assert_eq!(&set[0].body[..], b"{\"lastname\":\"--b\"}");
        assert_eq!(set[0].headers.get("content-type"), Some("application/json"));
    }

    #[test]
    fn a_change_set_may_share_its_last_line_break_with_the_batch() {
        let parts = parse(TEXT.replace("--c--\r\n\r\n--b--", "--c--\r\n--b--").as_bytes(), "b").unwrap();
        assert!(matches!(&parts[1], Part::ChangeSet(set) if set.len() == 1));
    }

    #[test]
    fn line_ends_are_strict() {
        assert_eq!(parse(TEXT.replace("\r\n", "\n").as_bytes(), "b").unwrap_err().code, "0x80048d19");
        assert!(parse(TEXT.trim_end().as_bytes(), "b").is_err());
        assert!(parse(TEXT.replace("--b--\r\n", "").as_bytes(), "b").is_err());
    }

    #[test]
    fn boundaries_may_be_quoted() {
        assert_eq!(boundary("multipart/mixed; boundary=\"x y\"").unwrap(), "x y");
        assert_eq!(boundary("multipart/mixed;boundary=x").unwrap(), "x");
        assert!(boundary("application/json").is_none());
    }
}
