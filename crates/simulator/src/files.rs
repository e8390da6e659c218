//! Downloading files, images and the bodies of notes and attachments (dataverse 7).

use serde_json::{Value, json};

use crate::access::Controls;
use crate::answer::{Answer, Refusal};
use crate::content::{BLOCK_BYTES_MAX, Content, ContentKind, base64, from_base64};
use crate::database::{Database, RowKey, RowView};
use crate::guid::Guid;
use crate::query::encode;
use crate::read::parse_key;
use crate::schema::{Kind, Slot};

/// Where a request for content leads.
enum Found {
    File(Content),
    Image(Content),
    Body(Content),
    Nothing(Kind),
}

fn find(
    database: &Database,
    controls: &Controls,
    user: usize,
    table: usize,
    key: &RowKey,
    column: &str,
) -> Result<Found, Refusal> {
    let table = &database.tables[table];
    let def = &table.def;
    controls.check_read(def, user)?;
    let Some(RowView::Stored(row)) = table.get(key) else {
        return Err(Refusal::no_row(&def.name, &key.id.to_string()));
    };
    let column = def.property(column).ok_or_else(|| Refusal::no_segment(column))?;
    let cell = match (&column.kind, column.slot) {
        (Kind::File | Kind::Body, Slot::Cell(cell)) | (Kind::Image, Slot::Thumbnail(cell)) => row.cell(cell),
        _ => return Err(Refusal::not_simulated("The raw value of a plain column")),
    };
    let Some(id) = Guid::parse(cell.trim_matches('"')) else { return Ok(Found::Nothing(column.kind.clone())) };
    Ok(match column.kind {
        Kind::Image => Found::Image(def.contents.find(id, ContentKind::Image)),
        Kind::Body => Found::Body(def.contents.find(id, ContentKind::Body)),
        _ => Found::File(def.contents.find(id, ContentKind::File)),
    })
}

/// First and last byte of a `Range` header.
fn parse_range(header: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.trim().parse().ok()?;
    let last = last.trim().parse().unwrap_or(u64::MAX).min(size.saturating_sub(1));
    (first <= last).then_some((first, last))
}

fn bytes(content: &[u8], media_type: &'static str) -> Answer {
    Answer { media_type, body: content.to_vec(), ..Answer::empty(200) }
}

/// `GET {set}({key})/{column}/$value`.
#[expect(clippy::too_many_arguments, reason = "the parts of one URL, already taken apart")]
pub(crate) fn value(
    database: &Database,
    controls: &Controls,
    user: usize,
    table: usize,
    key: &RowKey,
    column: &str,
    full: bool,
    range: Option<&str>,
) -> Result<Answer, Refusal> {
    match find(database, controls, user, table, key, column)? {
        Found::Nothing(Kind::File) => {
            Err(Refusal::new(404, "0x80060888", format!("No file attachment found for attribute: {column}")))
        }
        Found::Nothing(_) => Ok(Answer::empty(204)),
        // A note's body comes as base64 text and without its name (dataverse 7.3).
        Found::Body(content) => Ok(Answer::text(base64(&content.bytes()))),
        // Thumbnails come without a size header (dataverse 7.2).
        Found::Image(content) if !full => Ok(bytes(&content.thumbnail(), "image/png")),
        Found::Image(content) if !content.has_full_image() => Ok(Answer::empty(204)),
        Found::Image(content) => download(&content, "image/png", range),
        Found::File(content) => download(&content, "application/octet-stream", range),
    }
}

fn download(content: &Content, media_type: &'static str, range: Option<&str>) -> Result<Answer, Refusal> {
    let size = content.size();
    // Names outside ASCII are percent-encoded (dataverse 7.1).
    let name = if content.name().is_ascii() { content.name().to_owned() } else { encode(content.name()) };
    let answer = match range {
        None => bytes(&content.bytes(), media_type),
        Some(header) => {
            let (first, last) = parse_range(header, size)
                .ok_or_else(|| Refusal::new(416, "0x80060888", "The requested range is not satisfiable."))?;
            // Never more than one block at a time.
            let length = (last - first + 1).min(BLOCK_BYTES_MAX);
            let part = content.range(first, length);
            let end = first + part.len() as u64 - 1;
            Answer { status: 206, ..bytes(&part, media_type) }
                .with("x-ms-chunk-size", BLOCK_BYTES_MAX.to_string())
                .with("Content-Range", format!("bytes {first}-{end}/{size}"))
        }
    };
    Ok(answer
        .with("x-ms-file-name", name)
        .with("x-ms-file-size", size.to_string())
        .with("mimetype", content.media_type()))
}

/// The block messages of files, notes and attachments; tokens name what they stand for.
pub(crate) fn message(
    database: &Database,
    controls: &Controls,
    user: usize,
    name: &str,
    body: &[u8],
    url: &str,
) -> Result<Answer, Refusal> {
    let body: Value =
        serde_json::from_slice(body).map_err(|_| Refusal::bad_query("The request body is not valid JSON."))?;
    match name {
        "InitializeFileBlocksDownload" => {
            let column = body["FileAttributeName"].as_str().unwrap_or_default();
            start(database, controls, user, &body["Target"], None, column, url, name)
        }
        "InitializeAnnotationBlocksDownload" => {
            start(database, controls, user, &body["Target"], Some("annotation"), "documentbody", url, name)
        }
        "InitializeAttachmentBlocksDownload" => {
            start(database, controls, user, &body["Target"], Some("activitymimeattachment"), "body", url, name)
        }
        _ => block(database, &body, url),
    }
}

#[expect(clippy::too_many_arguments, reason = "three messages that differ in table and column")]
fn start(
    database: &Database,
    controls: &Controls,
    user: usize,
    target: &Value,
    table: Option<&str>,
    column: &str,
    url: &str,
    message: &str,
) -> Result<Answer, Refusal> {
    let name = table
        .or_else(|| {
            target["@odata.type"]
                .as_str()
                .map(|name| name.trim_start_matches(['#']).trim_start_matches("Microsoft.Dynamics.CRM."))
        })
        .unwrap_or_default();
    let table = database
        .table(name)
        .ok_or_else(|| Refusal::bad_query(format!("The entity with a name = '{name}' was not found.")))?;
    let def = &database.tables[table].def;
    let id = target[def.primary_id.as_str()].as_str().unwrap_or_default();
    let key = parse_key(def, id, None)?;
    let (content, kind) = match find(database, controls, user, table, &key, column)? {
        Found::File(content) => (content, "file"),
        Found::Body(content) => (content, "body"),
        // Only full images travel this way (dataverse 7.2).
        Found::Image(content) if content.has_full_image() => (content, "image"),
        _ => {
            return Err(Refusal::new(
                404,
                "0x80040217",
                format!("No file attachment found for attribute: {column} EntityId: {id}."),
            ));
        }
    };
    let token = base64(format!("{kind}!{}", content.id()).as_bytes());
    // The name of a note's document is a column like any other (dataverse 7.3).
    let written = match database.tables[table].get(&key) {
        Some(RowView::Stored(row)) if kind == "body" => def.cell("filename").map(|cell| row.cell(cell)),
        _ => None,
    };
    let name = match written {
        Some(raw) => serde_json::from_str(raw).unwrap_or_default(),
        None => content.name().to_owned(),
    };
    Ok(Answer::json(
        json!({
            "@odata.context": format!("{url}/api/data/v9.2/$metadata#Microsoft.Dynamics.CRM.{message}Response"),
            "FileContinuationToken": token,
            "FileSizeInBytes": content.size(),
            "FileName": name,
            "IsChunkingSupported": content.is_chunking_supported(),
        })
        .to_string(),
    ))
}

fn block(database: &Database, body: &Value, url: &str) -> Result<Answer, Refusal> {
    let token = body["FileContinuationToken"].as_str().unwrap_or_default();
    let text = from_base64(token).and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let (kind, id) = text.split_once('!').unwrap_or_default();
    let kind = match kind {
        "file" => ContentKind::File,
        "image" => ContentKind::Image,
        _ => ContentKind::Body,
    };
    let id = Guid::parse(id).ok_or_else(|| Refusal::bad_query("The file continuation token is not valid."))?;
    let content = database.contents.find(id, kind);
    let offset = body["Offset"].as_u64().unwrap_or(0);
    let length = body["BlockLength"].as_u64().unwrap_or(0);
    if !content.is_chunking_supported() && (offset > 0 || length < content.size()) {
        return Err(Refusal::new(
            400,
            "0x80090017",
            "Chunking is not supported for this file; the block must hold the whole of it.",
        ));
    }
    if length > BLOCK_BYTES_MAX && length > content.size() || length == 0 || offset >= content.size() {
        return Err(Refusal::bad_query("The block is outside of the file."));
    }
    let data = base64(&content.range(offset, length));
    Ok(Answer::json(json!({"@odata.context": format!("{url}/api/data/v9.2/$metadata#Microsoft.Dynamics.CRM.DownloadBlockResponse"), "Data": data}).to_string()))
}
