//! Splits an OData collection page into rows while its bytes arrive, without holding the page or building a tree.
//!
//! ```text
//!  {"@odata.context":"…","value":[{row},{row},…],"@odata.nextLink":"…"}
//!   └─ captured, ≤ 64 KiB ─┘       └ scanned in place ┘  └─ captured ─┘
//! ```
//!
//! - A row that lies whole inside a chunk is scanned where it lies; only the row cut by the end of a chunk is copied.
//! - A row over the sink's limit is passed over without being held, and reported.
//! - Members may come in any order. What is not a row is kept only as far as [`PageEnd`] needs it.
//! - Nothing short of the closing brace of the page counts as a page: a cut anywhere is [`PageFault::Truncated`].
//!
//! Rows are handed on as they come, so a fault may follow rows that the sink has already taken; the caller then says so
//! with [`RowSink::restarted`] and reads the page again.

mod boundary;
#[cfg(test)]
mod tests;

use dynavault_model::{
    Deletion, Diagnose, Malformed, Member, PageEnd, Retry, Row, RowSink, Scan, Scanner, Stopped, minify, scan,
};

use crate::fault::ErrorBody;
use boundary::Boundary;

/// Largest top-level member other than the rows. Links carry a paging cookie of a few KiB at most (`dataverse` protocol,
/// section 3.1), and a URL ends at 32 KiB (section 1.1).
pub const MEMBER_BYTES_MAX: usize = 64 * 1024;

/// How much of a row that was passed over is kept for naming it.
pub const OVERSIZED_START_BYTES_MAX: usize = 4 * 1024;

/// Why a page could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageFault {
    /// The bytes are not a page.
    #[error("the page is malformed at byte {at}: {what}")]
    Malformed {
        /// Offset into the page, after decompression.
        at: u64,
        /// What was wrong; never contains a value.
        what: &'static str,
    },
    /// The bytes ended before the page did.
    #[error("the page ended after {bytes} bytes, before its closing brace")]
    Truncated {
        /// Bytes of the page that arrived, after decompression.
        bytes: u64,
    },
    /// A member other than the rows is larger than [`MEMBER_BYTES_MAX`].
    #[error("a member of the page besides its rows is larger than {MEMBER_BYTES_MAX} bytes")]
    MemberTooLarge,
    /// The service reported an error inside a page it had begun with status 200.
    #[error("the service reported an error inside the page: {}", .0.message)]
    Service(ErrorBody),
    /// The sink does not take more.
    #[error("the sink stopped the reading")]
    Stopped,
}

impl Diagnose for PageFault {
    fn retry(&self) -> Retry {
        match self {
            Self::Stopped => Retry::Cancelled,
            _ => Retry::Backoff,
        }
    }
}

impl From<Stopped> for PageFault {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// What is expected next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The brace that opens the page.
    Start,
    /// A member, or the end of the page.
    FirstKey,
    /// A member.
    NextKey,
    /// More of a member name.
    InKey,
    Colon,
    /// The first byte of a member's value.
    Value,
    /// More of a member's value.
    InValue,
    /// A comma, or the end of the page.
    AfterValue,
    /// A row, or the end of the rows.
    FirstRow,
    /// A row.
    NextRow,
    /// More of a row that began in an earlier chunk.
    InRow,
    /// More of a row that is too large to hold, of which this many bytes have gone by.
    InOversizedRow(u64),
    /// A comma, or the end of the rows.
    AfterRow,
    /// White space only.
    Done,
}

/// Streaming splitter of one page; see the module.
#[derive(Debug)]
pub struct PageSplitter {
    state: State,
    /// The part seen so far of a name, value or row that is cut by the end of a chunk; of an oversized row its start.
    held: Vec<u8>,
    boundary: Boundary,
    scanner: Scanner,
    members: Vec<Member>,
    compact: Vec<u8>,
    row_bytes_max: usize,
    key: String,
    rows_seen: bool,
    end: PageEnd,
    error: Option<ErrorBody>,
    /// Bytes of the page before the present chunk.
    passed: u64,
}

impl PageSplitter {
    /// A splitter for one page; rows larger than `row_bytes_max` are passed over.
    pub fn new(row_bytes_max: usize) -> Self {
        Self {
            state: State::Start,
            held: Vec::new(),
            boundary: Boundary::of(b'{'),
            scanner: Scanner::default(),
            members: Vec::new(),
            compact: Vec::new(),
            row_bytes_max,
            key: String::new(),
            rows_seen: false,
            end: PageEnd::default(),
            error: None,
            passed: 0,
        }
    }

    /// Takes the next bytes and hands the rows that end in them to `sink`.
    pub fn feed(&mut self, chunk: &[u8], sink: &mut dyn RowSink) -> Result<(), PageFault> {
        let mut at = 0;
        while at < chunk.len() {
            at = match self.state {
                State::InRow => self.continue_row(chunk, at, sink)?,
                State::InOversizedRow(bytes) => self.continue_oversized_row(chunk, at, bytes, sink)?,
                State::InKey | State::InValue => self.continue_member(chunk, at)?,
                _ if matches!(chunk[at], b' ' | b'\n' | b'\r' | b'\t') => at + 1,
                State::FirstRow | State::NextRow if chunk[at] == b'{' => self.begin_row(chunk, at, sink)?,
                State::FirstKey | State::NextKey if chunk[at] == b'"' => self.begin_member(State::InKey, chunk, at)?,
                State::Value if self.key != "value" => self.begin_member(State::InValue, chunk, at)?,
                _ => {
                    self.state = self.after_mark(chunk[at]).map_err(|what| self.malformed(at, what))?;
                    at + 1
                }
            };
        }
        self.passed += chunk.len() as u64;
        Ok(())
    }

    /// Ends the page.
    pub fn finish(self) -> Result<PageEnd, PageFault> {
        if let Some(error) = self.error {
            return Err(PageFault::Service(error));
        }
        if self.state != State::Done {
            return Err(PageFault::Truncated { bytes: self.passed });
        }
        if !self.rows_seen {
            return Err(PageFault::Malformed { at: self.passed, what: "the page has no array of rows" });
        }
        Ok(self.end)
    }

    /// The state after a punctuation mark.
    fn after_mark(&mut self, mark: u8) -> Result<State, &'static str> {
        match (self.state, mark) {
            (State::Start, b'{') => Ok(State::FirstKey),
            (State::FirstKey | State::AfterValue, b'}') => Ok(State::Done),
            (State::Colon, b':') => Ok(State::Value),
            (State::Value, b'[') if self.rows_seen => Err("the page has two arrays of rows"),
            (State::Value, b'[') => {
                self.rows_seen = true;
                Ok(State::FirstRow)
            }
            (State::AfterValue, b',') => Ok(State::NextKey),
            (State::FirstRow | State::AfterRow, b']') => Ok(State::AfterValue),
            (State::AfterRow, b',') => Ok(State::NextRow),
            (State::Start, _) => Err("a page is not an object"),
            (State::FirstKey | State::NextKey, _) => Err("a member name was expected"),
            (State::Colon, _) => Err("a colon was expected"),
            (State::Value, _) => Err("the rows are not an array"),
            (State::AfterValue, _) => Err("a comma or the end of the page was expected"),
            (State::FirstRow | State::NextRow, _) => Err("a row is not an object"),
            (State::Done, _) => Err("something follows the end of the page"),
            _ => Err("a comma or the end of the rows was expected"),
        }
    }

    fn malformed(&self, at: usize, what: &'static str) -> PageFault {
        PageFault::Malformed { at: self.passed + at as u64, what }
    }

    fn begin_row(&mut self, chunk: &[u8], at: usize, sink: &mut dyn RowSink) -> Result<usize, PageFault> {
        let rest = &chunk[at..];
        match self.scanner.scan(rest, &mut self.members).map_err(|fault| self.malformed(at + fault.at, fault.what))? {
            Scan::Complete { length, spaced } => {
                self.state = State::AfterRow;
                if length > self.row_bytes_max {
                    sink.oversized(&rest[..length.min(OVERSIZED_START_BYTES_MAX)], length as u64)?;
                } else {
                    let row = &rest[..length];
                    deliver(row, spaced, self.scanner.serial(), &mut self.members, &mut self.compact, sink)
                        .map_err(|fault| fault.at(self.passed + at as u64))?;
                }
                Ok(at + length)
            }
            Scan::Incomplete => {
                self.held.clear();
                self.boundary = Boundary::of(b'{');
                self.state = State::InRow;
                self.continue_row(chunk, at, sink)
            }
        }
    }

    fn continue_row(&mut self, chunk: &[u8], at: usize, sink: &mut dyn RowSink) -> Result<usize, PageFault> {
        let rest = &chunk[at..];
        let end = self.boundary.advance(rest);
        let piece = &rest[..end.unwrap_or(rest.len())];
        let length = self.held.len() + piece.len();
        if length > self.row_bytes_max {
            let bytes = self.held.len() as u64;
            let room = OVERSIZED_START_BYTES_MAX.saturating_sub(self.held.len());
            self.held.extend_from_slice(&piece[..piece.len().min(room)]);
            self.held.truncate(OVERSIZED_START_BYTES_MAX);
            return self.pass_over(bytes + piece.len() as u64, end.is_some(), at + piece.len(), sink);
        }
        self.held.extend_from_slice(piece);
        if end.is_none() {
            return Ok(chunk.len());
        }
        let found = self
            .scanner
            .scan(&self.held, &mut self.members)
            .map_err(|fault| self.malformed(at + piece.len(), fault.what))?;
        let Scan::Complete { length: scanned, spaced } = found else {
            return Err(self.malformed(at, "a row does not end where its brackets do"));
        };
        if scanned != length {
            return Err(self.malformed(at, "a row does not end where its brackets do"));
        }
        deliver(&self.held, spaced, self.scanner.serial(), &mut self.members, &mut self.compact, sink)
            .map_err(|fault| fault.at(self.passed + at as u64))?;
        self.state = State::AfterRow;
        Ok(at + piece.len())
    }

    fn continue_oversized_row(
        &mut self,
        chunk: &[u8],
        at: usize,
        bytes: u64,
        sink: &mut dyn RowSink,
    ) -> Result<usize, PageFault> {
        let rest = &chunk[at..];
        let end = self.boundary.advance(rest);
        let passing = end.unwrap_or(rest.len());
        self.pass_over(bytes + passing as u64, end.is_some(), at + passing, sink)
    }

    fn pass_over(&mut self, bytes: u64, ended: bool, next: usize, sink: &mut dyn RowSink) -> Result<usize, PageFault> {
        if ended {
            sink.oversized(&self.held, bytes)?;
            self.state = State::AfterRow;
        } else {
            self.state = State::InOversizedRow(bytes);
        }
        Ok(next)
    }

    fn begin_member(&mut self, state: State, chunk: &[u8], at: usize) -> Result<usize, PageFault> {
        self.held.clear();
        self.boundary = Boundary::of(chunk[at]);
        self.state = state;
        self.continue_member(chunk, at)
    }

    fn continue_member(&mut self, chunk: &[u8], at: usize) -> Result<usize, PageFault> {
        let rest = &chunk[at..];
        let end = self.boundary.advance(rest);
        let piece = &rest[..end.unwrap_or(rest.len())];
        if self.held.len() + piece.len() > MEMBER_BYTES_MAX {
            return Err(PageFault::MemberTooLarge);
        }
        self.held.extend_from_slice(piece);
        if end.is_none() {
            return Ok(chunk.len());
        }
        if self.state == State::InKey {
            self.key = text(&self.held).ok_or_else(|| self.malformed(at, "a member name is not a string"))?;
            self.state = State::Colon;
        } else {
            self.take_member().map_err(|what| self.malformed(at, what))?;
            self.state = State::AfterValue;
        }
        Ok(at + piece.len())
    }

    /// Keeps what a member says, if it says anything we need; every member is checked to be JSON.
    fn take_member(&mut self) -> Result<(), &'static str> {
        let wanted = match self.key.as_str() {
            "@odata.nextLink" | "@nextLink" => Some(&mut self.end.next),
            "@odata.deltaLink" | "@deltaLink" => Some(&mut self.end.delta),
            "@Microsoft.Dynamics.CRM.globalmetadataversion" => Some(&mut self.end.metadata_version),
            "error" => {
                self.error = Some(ErrorBody::of_member(&self.held));
                None
            }
            _ => None,
        };
        match wanted {
            // An empty link leads nowhere.
            Some(_) if matches!(&self.held[..], b"null" | b"\"\"") => Ok(()),
            Some(slot) => {
                // A version may be printed as a number.
                let number =
                    || serde_json::from_slice::<serde_json::Number>(&self.held).ok().map(|number| number.to_string());
                let is_version = self.key.ends_with("version");
                let found = text(&self.held).or_else(|| number().filter(|_| is_version));
                *slot = Some(found.ok_or("a link or version is not a string")?);
                Ok(())
            }
            None => serde_json::from_slice::<serde::de::IgnoredAny>(&self.held)
                .map(|_| ())
                .map_err(|_| "a member is not valid JSON"),
        }
    }
}

/// A fault inside one row, before its place in the page is known.
enum RowFault {
    Malformed(Malformed),
    Stopped,
}

impl RowFault {
    fn at(self, start: u64) -> PageFault {
        match self {
            Self::Malformed(fault) => PageFault::Malformed { at: start + fault.at as u64, what: fault.what },
            Self::Stopped => PageFault::Stopped,
        }
    }
}

impl From<Stopped> for RowFault {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Hands one scanned row to the sink, without white space, as a row or as a deletion.
fn deliver(
    bytes: &[u8],
    spaced: bool,
    serial: u64,
    members: &mut Vec<Member>,
    compact: &mut Vec<u8>,
    sink: &mut dyn RowSink,
) -> Result<(), RowFault> {
    let bytes = if spaced {
        minify(bytes, compact);
        scan(compact, members).map_err(RowFault::Malformed)?;
        compact.as_slice()
    } else {
        bytes
    };
    let row = Row::numbered(bytes, members, serial);
    match deletion(&row)? {
        Some(deletion) => sink.deleted(deletion)?,
        None => sink.row(&row)?,
    }
    Ok(())
}

const CONTEXT: &[u8] = b"@odata.context";
const REMOVED: &[u8] = b"@removed";
/// Most members of a deletion.
const DELETION_MEMBERS_MAX: usize = 8;

/// The deletion a row of a delta page stands for, if it does. Dataverse sends `@odata.context` ending in
/// `$deletedEntity` with `id` and `reason` (`dataverse` protocol, section 4.2, confirmed); `@removed` is the form of
/// OData 4.01 (assumed).
fn deletion(row: &Row<'_>) -> Result<Option<Deletion>, RowFault> {
    let mut removed = None;
    // A deletion names a row and a reason; a wide row need not be looked through.
    if row.members().len() > DELETION_MEMBERS_MAX {
        return Ok(None);
    }
    for member in row.members() {
        // Comparing lengths first keeps this loop, which runs over every member of every row, out of the bytes.
        let length = (member.key_end - member.key_start) as usize;
        if length == CONTEXT.len() && row.key(member) == CONTEXT {
            let context = text(row.value(member)).unwrap_or_default();
            if context.ends_with("$deletedEntity") {
                removed = Some(row.value(member));
            }
        } else if length == REMOVED.len() && row.key(member) == REMOVED && row.value(member) != b"null" {
            removed = Some(row.value(member));
        }
    }
    let Some(marker) = removed else { return Ok(None) };
    let key = ["id", "@id", "@odata.id"].iter().find_map(|name| row.get(name)).and_then(text);
    let Some(key) = key else {
        return Err(RowFault::Malformed(Malformed { at: 0, what: "a deletion does not say of which row" }));
    };
    let nested: Option<Removed> = serde_json::from_slice(marker).ok();
    let reason = row.get("reason").and_then(text).or_else(|| nested.and_then(|removed| removed.reason));
    Ok(Some(Deletion { key, reason: reason.unwrap_or_else(|| "deleted".to_owned()) }))
}

#[derive(serde::Deserialize)]
struct Removed {
    reason: Option<String>,
}

/// The content of a JSON string token.
fn text(token: &[u8]) -> Option<String> {
    serde_json::from_slice(token).ok()
}
