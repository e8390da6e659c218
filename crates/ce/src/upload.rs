//! Putting bytes into files, images, notes and mail attachments, and taking them out (`dataverse`, section 7).
//!
//! | content | way | requests |
//! |---|---|---|
//! | file with a media type | block messages, the only way that keeps the type | blocks + 2 |
//! | file without, image | chunked PATCH, in chunks of the size the service names | chunks + 1 |
//! | empty file | one PATCH | 1 |
//! | note, attachment up to [`INLINE_BYTES_MAX`] | PATCH of the body as base64 | 1 |
//! | larger note | block messages | blocks + 2 |
//! | larger attachment | block messages make a new one, which takes the place of the row | blocks + 2 |
//!
//! At most one block is in memory. Nothing is visible before the last request; an answer that is lost before it leaves the row
//! as it was, and is reported as unknown all the same, since the caller begins again with the first byte in either case.

use std::io::Read;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dynavault_model::{
    Call, ContentColumn, ContentKind, Rejection, RejectionClass, RowKey, SourceError, TableSchema, Upload, WriteKind,
    WriteOutcome,
};
use dynavault_odata::governor::RequestKind;
use dynavault_odata::write::{BINARY, JSON};
use dynavault_odata::{
    BatchRequest, Client, Item, Method, OnError, Part, PartReply, Reply, UserSlot, WriteFault, WriteReply, WriteRequest,
};

use crate::refusals;
use crate::rules::rules;
use crate::verdicts::{Refused, Tried, Verdict, rejection, stopped, verdict};
use crate::wire::{Object, Purpose, Unwritable, Wire, address, array, encoded, only};

/// A block or chunk (section 7.1: the service's own size).
pub(crate) const BLOCK_BYTES: usize = 4 << 20;
/// A body up to this size goes into the row itself: base64 of it stays far below every limit of a request.
pub(crate) const INLINE_BYTES_MAX: u64 = 1 << 20;
/// The name of a file whose name was not captured; the service takes no file without one.
const NAMELESS: &str = "file";
/// The same for an image, where the service does not keep the name.
const NAMELESS_IMAGE: &str = "image.png";
/// What the service says of a file whose type nobody gave.
const NO_TYPE: &str = "application/octet-stream";

/// Requests of one upload.
pub(crate) fn requests(column: &ContentColumn, size: u64, mime: Option<&str>) -> u64 {
    let blocks = size.div_ceil(BLOCK_BYTES as u64);
    match way(column, size, mime) {
        Way::Whole | Way::Inline => 1,
        Way::Chunks => blocks + 1,
        Way::Blocks => blocks + 2,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Whole,
    Inline,
    Chunks,
    Blocks,
}

fn way(column: &ContentColumn, size: u64, mime: Option<&str>) -> Way {
    let typed = mime.is_some_and(|mime| !mime.eq_ignore_ascii_case(NO_TYPE));
    match column.kind {
        ContentKind::Base64Body if size <= INLINE_BYTES_MAX => Way::Inline,
        ContentKind::Base64Body => Way::Blocks,
        ContentKind::File | ContentKind::Image if size == 0 => Way::Whole,
        ContentKind::File if typed => Way::Blocks,
        ContentKind::File | ContentKind::Image => Way::Chunks,
    }
}

/// Why an upload ended early.
enum Ended {
    Outcome(WriteOutcome),
    Failed(SourceError),
}

impl From<Unwritable> for Ended {
    fn from(unwritable: Unwritable) -> Self {
        Self::Outcome(crate::writer::unwritable(&unwritable))
    }
}

/// Uploads into one row.
pub(crate) struct Uploader<'a> {
    pub(crate) client: &'a Client,
    pub(crate) slot: &'a UserSlot,
    pub(crate) table: &'a TableSchema,
    pub(crate) column: &'a ContentColumn,
    pub(crate) key: &'a RowKey,
    pub(crate) wire: &'a Wire<'a>,
    /// How rows are asked for.
    pub(crate) prefer: &'a str,
    /// Headers of every write.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) call: &'a Call,
}

/// The block messages of one kind of content (sections 7.1 and 7.3).
struct Messages {
    begin: &'static str,
    commit: &'static str,
    /// The content is a column of its own, and not the body of a row.
    of_column: bool,
    /// The messages make a new row only.
    makes_row: bool,
}

impl Messages {
    fn of(table: &TableSchema, column: &ContentColumn) -> Self {
        let of = |begin, commit, of_column, makes_row| Self { begin, commit, of_column, makes_row };
        match (column.kind, table.table.name.as_str()) {
            (ContentKind::Base64Body, "annotation") => {
                of("InitializeAnnotationBlocksUpload", "CommitAnnotationBlocksUpload", false, false)
            }
            (ContentKind::Base64Body, _) => {
                of("InitializeAttachmentBlocksUpload", "CommitAttachmentBlocksUpload", false, true)
            }
            _ => of("InitializeFileBlocksUpload", "CommitFileBlocksUpload", true, false),
        }
    }
}

type Reader = Box<dyn Read + Send>;

impl Uploader<'_> {
    /// Puts the content into the row.
    pub(crate) async fn put(&self, upload: &Upload) -> Result<WriteOutcome, SourceError> {
        let way = way(self.column, upload.size, upload.mime.as_deref());
        let ended = match way {
            Way::Whole => self.whole(upload).await,
            Way::Inline => self.inline(upload).await,
            Way::Chunks => self.chunks(upload).await,
            Way::Blocks => self.blocks(upload).await,
        };
        settle(ended)
    }

    /// Takes the content out of the row.
    pub(crate) async fn clear(&self) -> Result<WriteOutcome, SourceError> {
        let address = match address(self.table, self.key) {
            Ok(address) => address,
            Err(unwritable) => return Ok(crate::writer::unwritable(&unwritable)),
        };
        let column = &self.column.column;
        let sent = match self.column.kind {
            ContentKind::File | ContentKind::Image => {
                self.send(Method::Delete, &format!("{address}/{column}"), &[], JSON, Bytes::new()).await
            }
            ContentKind::Base64Body => {
                let mut body = Object::new();
                body.raw(column, b"null");
                self.send(Method::Patch, &address, &[("If-Match", "*")], JSON, body.finish().into()).await
            }
        };
        settle(sent.map(|_| ()))
    }

    fn what(&self) -> String {
        format!("writing {} of row {} of table {}", self.column.column, self.key.id, self.table.table)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        content_type: &str,
        body: Bytes,
    ) -> Result<Reply, Ended> {
        let what = self.what();
        let headers: Vec<(&str, &str)> = self.headers.iter().chain(headers).copied().collect();
        let request = WriteRequest {
            headers: &headers,
            content_type,
            kind: RequestKind::Content,
            ..WriteRequest::new(method, path, body, &what)
        };
        match self.client.write(self.slot, &request, self.call).await {
            Ok(WriteReply::Done(reply)) => Ok(reply),
            Ok(WriteReply::Refused(refusal)) => {
                let kind = if method == Method::Delete { WriteKind::Delete } else { WriteKind::Update };
                Err(self.refused(&Refused::from(&refusal), kind))
            }
            Err(WriteFault::Unknown { message, .. }) => Err(Ended::Outcome(WriteOutcome::Unknown { message })),
            Err(WriteFault::NotDone(error)) => Err(Ended::Failed(refusals::of_run(error))),
            Err(fault) => Err(Ended::Outcome(WriteOutcome::Unknown { message: fault.to_string() })),
        }
    }

    /// The address of the column, with the file's name where it can hold every letter (section 7.1).
    fn column_address(&self, upload: &Upload) -> Result<String, Unwritable> {
        let nameless = if self.column.kind == ContentKind::Image { NAMELESS_IMAGE } else { NAMELESS };
        let name = encoded(upload.name.as_deref().unwrap_or(nameless));
        Ok(format!("{}/{}?x-ms-file-name={name}", address(self.table, self.key)?, self.column.column))
    }

    async fn whole(&self, upload: &Upload) -> Result<(), Ended> {
        let (_, bytes) = self.next(self.open(upload).await?, upload.size as usize).await?;
        self.send(Method::Patch, &self.column_address(upload)?, &[], BINARY, bytes).await.map(|_| ())
    }

    async fn chunks(&self, upload: &Upload) -> Result<(), Ended> {
        let mode = [("x-ms-transfer-mode", "chunked")];
        let begun = self.send(Method::Patch, &self.column_address(upload)?, &mode, BINARY, Bytes::new()).await?;
        let Some(session) = begun.headers.get("location").map(str::to_string) else {
            return Err(Self::strange("it gave no address for the chunks"));
        };
        let named = begun.headers.get("x-ms-chunk-size").and_then(|size| size.trim().parse().ok());
        let chunk = named.filter(|size| *size > 0).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        // Each chunk repeats the name where a header can hold it (section 7.1: ASCII).
        let name = upload.name.as_deref().filter(|name| name.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        let mut reader = self.open(upload).await?;
        let mut offset = 0_u64;
        while offset < upload.size {
            let wanted = (chunk as u64).min(upload.size - offset) as usize;
            let (rest, bytes) = self.next(reader, wanted).await?;
            reader = rest;
            let last = offset + bytes.len() as u64 - 1;
            let range = format!("bytes {offset}-{last}/{}", upload.size);
            let headers = [Some(("Content-Range", range.as_str())), name.map(|name| ("x-ms-file-name", name))];
            let headers: Vec<(&str, &str)> = headers.into_iter().flatten().collect();
            self.send(Method::Patch, &session, &headers, BINARY, bytes).await?;
            offset = last + 1;
        }
        Ok(())
    }

    async fn inline(&self, upload: &Upload) -> Result<(), Ended> {
        let (_, bytes) = self.next(self.open(upload).await?, upload.size as usize).await?;
        let mut body = Object::new();
        body.base64(&self.column.column, &bytes);
        let address = address(self.table, self.key)?;
        self.send(Method::Patch, &address, &[("If-Match", "*")], JSON, body.finish().into()).await.map(|_| ())
    }

    async fn blocks(&self, upload: &Upload) -> Result<(), Ended> {
        let messages = Messages::of(self.table, self.column);
        let target = self.target(&messages, upload).await?;
        let mut opening = Object::new();
        opening.raw("Target", &target);
        let name = upload.name.as_deref().unwrap_or(NAMELESS);
        if messages.of_column {
            opening.text("FileAttributeName", &self.column.column);
            opening.text("FileName", name);
        }
        let begun = self.send(Method::Post, messages.begin, &[], JSON, opening.finish().into()).await?;
        let answer: serde_json::Value = serde_json::from_slice(&begun.body).unwrap_or_default();
        let Some(token) = answer["FileContinuationToken"].as_str() else {
            return Err(Self::strange("it gave no token for the blocks"));
        };
        let mut reader = self.open(upload).await?;
        let mut ids = Vec::new();
        for number in 0..upload.size.div_ceil(BLOCK_BYTES as u64) {
            let wanted = (BLOCK_BYTES as u64).min(upload.size - number * BLOCK_BYTES as u64) as usize;
            let (rest, bytes) = self.next(reader, wanted).await?;
            reader = rest;
            // Ids of one length, as text of base64 (section 7.1).
            let id = STANDARD.encode(format!("{number:08}"));
            let mut block = Object::new();
            block.text("BlockId", &id);
            block.base64("BlockData", &bytes);
            block.text("FileContinuationToken", token);
            drop(bytes);
            self.send(Method::Post, "UploadBlock", &[], JSON, block.finish().into()).await?;
            ids.push(serde_json::Value::from(id).to_string());
        }
        let mut end = Object::new();
        if messages.of_column {
            end.text("FileName", name);
            end.text("MimeType", upload.mime.as_deref().unwrap_or(NO_TYPE));
        } else {
            end.raw("Target", &target);
        }
        end.raw("BlockList", &array(ids.iter().map(String::as_bytes)));
        end.text("FileContinuationToken", token);
        let done = self.commit(&messages, end.finish().into()).await?;
        let answer: serde_json::Value = serde_json::from_slice(&done).unwrap_or_default();
        match answer["FileSizeInBytes"].as_u64() {
            Some(size) if size != upload.size => {
                Err(Self::strange(&format!("it stored {size} bytes of {}", upload.size)))
            }
            _ => Ok(()),
        }
    }

    /// The row as the messages name it. Where they make a new row, it has every value of the one it takes the place of.
    async fn target(&self, messages: &Messages, upload: &Upload) -> Result<Vec<u8>, Ended> {
        if !messages.makes_row {
            let mut target = self.wire.item(self.key, b"{}", Purpose::Update)?;
            if !messages.of_column {
                for (member, value) in [("filename", &upload.name), ("mimetype", &upload.mime)] {
                    if let Some(value) = value {
                        target.text(member, value);
                    }
                }
            }
            return Ok(target.finish());
        }
        let path = address(self.table, self.key)?;
        let row = match self.client.get(self.slot, &path, Some(self.prefer), &[], BLOCK_BYTES, self.call).await {
            Ok(reply) => reply.body,
            Err(error) if error.status() == Some(404) => {
                return Err(Ended::Outcome(WriteOutcome::Conflict { message: error.to_string() }));
            }
            Err(error) => return Err(Ended::Failed(refusals::of_table(&self.table.table, error, false))),
        };
        let rules = rules(self.table);
        let row = only(&row, |member| rules.column(member).is_some_and(|rule| rule.create))?;
        Ok(self.wire.item(self.key, &row, Purpose::Create)?.finish())
    }

    /// Ends the upload; the service's answer. A row that the messages can only make takes the place of the present one in one
    /// transaction, so that either of them is there whatever happens.
    async fn commit(&self, messages: &Messages, body: Bytes) -> Result<Bytes, Ended> {
        if !messages.makes_row {
            return self.send(Method::Post, messages.commit, &[], JSON, body).await.map(|reply| reply.body);
        }
        let headers: Vec<(String, String)> =
            self.headers.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
        let part = |method, path: &str, body| Part { method, path: path.to_string(), headers: headers.clone(), body };
        let items = [Item::ChangeSet(vec![
            part(Method::Delete, &address(self.table, self.key)?, Bytes::new()),
            part(Method::Post, messages.commit, body),
        ])];
        let what = self.what();
        let request = BatchRequest { items: &items, on_error: OnError::Stop, what: &what, bytes_max: BLOCK_BYTES };
        let reply = self.client.batch(self.slot, &request, self.call).await;
        match (reply.parts.into_iter().last(), reply.stopped) {
            (Some(PartReply::Done(reply)), _) => Ok(reply.body),
            (Some(PartReply::Refused(refusal)), _) => Err(self.refused(&Refused::from(&refusal), WriteKind::Update)),
            (Some(PartReply::Unknown { message }), _) => Err(Ended::Outcome(WriteOutcome::Unknown { message })),
            (_, Some(error)) => Err(Ended::Failed(refusals::of_run(error))),
            (Some(PartReply::NotSent) | None, None) => Err(Ended::Outcome(WriteOutcome::NotSent)),
        }
    }

    fn refused(&self, refused: &Refused, kind: WriteKind) -> Ended {
        let tried = Tried { kind, link: false, key: self.key, on_behalf: false };
        match verdict(tried, refused) {
            Verdict::Row(outcome) => Ended::Outcome(outcome),
            Verdict::Stop => Ended::Failed(stopped(&self.table.table, refused.clone())),
            Verdict::LookAtState | Verdict::Make | Verdict::Untagged => {
                Ended::Outcome(WriteOutcome::Rejected(rejection(refused, RejectionClass::Row)))
            }
        }
    }

    fn strange(detail: &str) -> Ended {
        let message = format!("the service took the content in a way we do not understand: {detail}");
        Ended::Outcome(WriteOutcome::Rejected(Rejection { code: String::new(), message, class: RejectionClass::Row }))
    }

    async fn open(&self, upload: &Upload) -> Result<Reader, Ended> {
        let source = Arc::clone(&upload.source);
        let opened = tokio::task::spawn_blocking(move || source.open()).await;
        opened.ok().and_then(Result::ok).ok_or_else(|| self.unreadable())
    }

    /// The next `wanted` bytes, and the reader back.
    async fn next(&self, mut reader: Reader, wanted: usize) -> Result<(Reader, Bytes), Ended> {
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; wanted];
            reader.read_exact(&mut bytes).map(|()| (reader, Bytes::from(bytes)))
        });
        read.await.ok().and_then(Result::ok).ok_or_else(|| self.unreadable())
    }

    fn unreadable(&self) -> Ended {
        let message = format!("the stored content of {} could not be read", self.column.column);
        Ended::Outcome(WriteOutcome::Rejected(Rejection { code: String::new(), message, class: RejectionClass::Row }))
    }
}

fn settle(ended: Result<(), Ended>) -> Result<WriteOutcome, SourceError> {
    match ended {
        Ok(()) => Ok(WriteOutcome::Done),
        Err(Ended::Outcome(outcome)) => Ok(outcome),
        Err(Ended::Failed(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kind: ContentKind) -> ContentColumn {
        ContentColumn {
            column: "new_contract".into(),
            kind,
            version_member: "new_contract".into(),
            presence_member: "new_contract".into(),
            name_member: None,
        }
    }

    #[test]
    fn requests_are_counted_as_they_will_be_sent() {
        let block = BLOCK_BYTES as u64;
        for (kind, size, mime, expected) in [
            (ContentKind::File, 0, None, 1),
            (ContentKind::File, 1, None, 2),
            (ContentKind::File, block + 1, Some("application/octet-stream"), 3),
            (ContentKind::File, block + 1, Some("application/pdf"), 4),
            (ContentKind::File, 0, Some("text/plain"), 1),
            (ContentKind::Image, block, Some("image/png"), 2),
            (ContentKind::Base64Body, INLINE_BYTES_MAX, None, 1),
            (ContentKind::Base64Body, INLINE_BYTES_MAX + 1, None, 3),
        ] {
            assert_eq!(requests(&column(kind), size, mime), expected, "{kind:?} {size} {mime:?}");
        }
    }
}
