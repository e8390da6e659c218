//! The bytes of file columns, images, notes and mail attachments (`dataverse`, section 7).

use std::sync::PoisonError;

use dynavault_model::{
    Call, ContentEnd, ContentItem, ContentSink, SharedContentSink, SourceError, TableRef, TableSchema,
};
use dynavault_odata::{Client, ReplyHeaders, RequestError, UserSlot};
use tokio::sync::Semaphore;

use crate::base64_body::Base64Sink;
use crate::refusals;

/// Bytes asked for at a time: the service's own block size (section 7.1).
const RANGE_BYTES: u64 = 4 << 20;
/// Slack for a service that rounds a range up.
const RANGE_SLACK_BYTES: usize = 64 << 10;
/// Ranges held in memory at the same time, over all tables.
const RANGES_IN_MEMORY: usize = 4;

/// Times a body is read that does not come as long as its row says.
const BODY_TRIES_MAX: u32 = 3;
/// Largest answer to the question how long a body is.
const SIZE_BYTES_MAX: usize = 64 << 10;

const ACCEPT_ANYTHING: (&str, &str) = ("Accept", "*/*");

/// Reads content through one client.
pub(crate) struct Files<'a> {
    pub(crate) client: &'a Client,
    pub(crate) slot: &'a UserSlot,
    pub(crate) table: &'a TableSchema,
    pub(crate) ranges: &'a Semaphore,
    pub(crate) call: &'a Call,
}

/// Ranges that may be held in memory, shared by all tables of a source.
pub(crate) fn range_permits() -> Semaphore {
    Semaphore::new(RANGES_IN_MEMORY)
}

impl Files<'_> {
    fn address(&self, item: &ContentItem) -> String {
        format!("{}({})/{}/$value", self.table.entity_set, item.key, item.column)
    }

    fn what(&self, item: &ContentItem) -> String {
        format!("{} of row {} of table {}", item.column, item.key, self.table.table)
    }

    fn failed(&self, item: &ContentItem, error: RequestError) -> SourceError {
        match error {
            RequestError::Service { status: 404, .. } => SourceError::NotFound { what: self.what(item) },
            other => refusals::of_table(&TableRef::ce(&self.table.table.name), other, false),
        }
    }

    /// A file, range by range, so that a cut connection costs one range.
    pub(crate) async fn file(&self, item: &ContentItem, sink: SharedContentSink) -> Result<ContentEnd, SourceError> {
        let mut end = ContentEnd::default();
        let mut offset = 0_u64;
        loop {
            let range = format!("bytes={offset}-{}", offset + RANGE_BYTES - 1);
            let headers = [ACCEPT_ANYTHING, ("Range", range.as_str())];
            let Ok(_permit) = self.ranges.acquire().await else { return Err(SourceError::Cancelled) };
            let limit = RANGE_BYTES as usize + RANGE_SLACK_BYTES;
            let reply = self.client.get(self.slot, &self.address(item), None, &headers, limit, self.call).await;
            let reply = match reply {
                Ok(reply) => reply,
                // Some files come whole or not at all (customer-managed keys, section 7.1), whatever the service says to a range.
                Err(RequestError::Protocol { .. } | RequestError::Service { status: 400 | 405 | 416 | 501, .. })
                    if offset == 0 =>
                {
                    return self.whole(item, "", sink).await;
                }
                // The end of a file whose length is a multiple of the range.
                Err(RequestError::Service { status: 416, .. }) => return Ok(end),
                Err(error) => return Err(self.failed(item, error)),
            };
            if reply.status == 204 {
                return Err(SourceError::NotFound { what: self.what(item) });
            }
            let size = size(&reply.headers);
            end = content_end(&reply.headers);
            let (partial, bytes) = (reply.status == 206, reply.body);
            let length = bytes.len() as u64;
            write(&sink, bytes).await?;
            offset += length;
            match size {
                Some(size) if offset == size => return Ok(end),
                Some(size) if offset > size || length == 0 || !partial => {
                    let detail = format!("{offset} bytes came of a file of {size}");
                    return Err(SourceError::Protocol { what: self.what(item), detail });
                }
                None if !partial || length < RANGE_BYTES => return Ok(end),
                _ => {}
            }
        }
    }

    /// The whole content in one streamed answer.
    async fn whole(&self, item: &ContentItem, query: &str, sink: SharedContentSink) -> Result<ContentEnd, SourceError> {
        let address = format!("{}{query}", self.address(item));
        let what = self.what(item);
        let done = self
            .client
            .download(self.slot, &address, &[ACCEPT_ANYTHING], sink, &what, self.call)
            .await
            .map_err(|error| self.failed(item, error))?;
        if done.status == 204 {
            return Err(SourceError::NotFound { what });
        }
        Ok(content_end(&done.headers))
    }

    /// An image: full where the service keeps it, else the thumbnail, which is then said (section 7.2).
    pub(crate) async fn image(&self, item: &ContentItem, sink: SharedContentSink) -> Result<ContentEnd, SourceError> {
        match self.whole(item, "?size=full", SharedContentSink::clone(&sink)).await {
            // Where the full image is not kept, asking for it may be refused as well (section 7.2: 204).
            Err(SourceError::NotFound { .. } | SourceError::Refused { .. }) => {
                sink.lock().unwrap_or_else(PoisonError::into_inner).restarted();
                let end = self.whole(item, "", sink).await?;
                Ok(ContentEnd { note: Some("thumbnail".into()), ..end })
            }
            other => other,
        }
    }

    /// The body of a note or a mail attachment: base64 text, whose answer does not say how long it should be; the row does
    /// (section 7.3).
    pub(crate) async fn body(&self, item: &ContentItem, sink: SharedContentSink) -> Result<ContentEnd, SourceError> {
        let decoder = Base64Sink::new(sink);
        let locked = || decoder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tries = 1;
        loop {
            let end = self.whole(item, "", decoder.clone() as SharedContentSink).await?;
            let came = locked().bytes();
            let fault = match (came, item.bytes) {
                (None, _) => Some("the body is not base64 text".to_string()),
                (Some(_), None) => None,
                (Some(came), Some(expected)) if came == expected => None,
                // The note may have changed since its row was read; that will be seen as a change of the row.
                (Some(came), Some(expected)) => (self.bytes_now(item).await? != Some(came))
                    .then(|| format!("{came} bytes came of a document of {expected}")),
            };
            match fault {
                // The text's own headers say nothing of the document.
                None => return Ok(ContentEnd { name: None, mime: None, note: end.note }),
                Some(detail) if tries == BODY_TRIES_MAX => {
                    return Err(SourceError::Protocol { what: self.what(item), detail });
                }
                Some(detail) => {
                    tracing::debug!(what = self.what(item), detail, "reading a body again");
                    tries += 1;
                    locked().restarted();
                }
            }
        }
    }

    /// Size of a body as its row tells now.
    async fn bytes_now(&self, item: &ContentItem) -> Result<Option<u64>, SourceError> {
        let Some(column) = self.table.content.iter().find(|column| column.column == item.column) else {
            return Ok(None);
        };
        let address = format!("{}({})?$select={}", self.table.entity_set, item.key, column.presence_member);
        let reply = self.client.get(self.slot, &address, None, &[], SIZE_BYTES_MAX, self.call).await;
        let reply = reply.map_err(|error| self.failed(item, error))?;
        let row: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        Ok(row[&column.presence_member].as_u64())
    }
}

/// Sinks block (hash, encrypt, write to disk), so they are called on a blocking thread.
async fn write(sink: &SharedContentSink, bytes: bytes::Bytes) -> Result<(), SourceError> {
    let sink = SharedContentSink::clone(sink);
    let written =
        tokio::task::spawn_blocking(move || sink.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes)).await;
    match written {
        Ok(Ok(())) => Ok(()),
        _ => Err(SourceError::SinkStopped),
    }
}

/// Bytes of the whole file, as an answer with a part of it says.
fn size(headers: &ReplyHeaders) -> Option<u64> {
    let of_range = || headers.get("content-range").and_then(|range| range.rsplit_once('/')).map(|(_, size)| size);
    headers.get("x-ms-file-size").or_else(of_range)?.trim().parse().ok()
}

fn content_end(headers: &ReplyHeaders) -> ContentEnd {
    let name = headers.get("x-ms-file-name").map(|name| percent_decoded(name.trim().trim_matches('"')));
    let mime = headers.get("mimetype").or_else(|| headers.get("content-type")).map(str::to_string);
    ContentEnd { name, mime, note: None }
}

/// Names that are not ASCII come percent-encoded (section 7.1). Text that is not valid encoding is taken as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'%').then(|| tail.get(..2)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        if let Some(byte) = code {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_decoded_where_they_are_encoded() {
        assert_eq!(percent_decoded("Vertr%C3%A4ge%202.pdf"), "Verträge 2.pdf");
        assert_eq!(percent_decoded("100%.pdf"), "100%.pdf");
        assert_eq!(percent_decoded("%ff"), "%ff");
    }
}
