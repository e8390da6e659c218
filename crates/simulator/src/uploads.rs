//! Putting content into file and image columns, notes and mail attachments (dataverse 7).
//!
//! Four ways lead here: one PATCH with all bytes, a PATCH that opens a session followed by one for each chunk,
//! the block messages, and base64 in the body of a row. They end alike: the bytes are kept under a new id, and
//! the cell of the column takes that id.
//!
//! - A refused upload leaves the old content where it was; bytes kept for nothing are never found again.
//! - A session belongs to no transaction: chunks and blocks that arrived stay, whatever happens to the request.
//! - How the service treats chunks out of order is not documented; here only the next one, or the last one
//!   once more, is taken.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use bytes::Bytes;
use serde_json::json;

use crate::answer::{Answer, Refusal};
use crate::content::{BLOCK_BYTES_MAX, ContentKind, FILE_BYTES_MAX, IMAGE_BYTES_MAX, Stored, from_base64, media_type};
use crate::database::RowKey;
use crate::dice::named_guid;
use crate::guid::Guid;
use crate::query::Options;
use crate::read::parse_key;
use crate::route::Request;
use crate::rows::follow_content;
use crate::schema::{Column, Kind, TableDef};
use crate::write::{Body, WriteContext, bad_payload, create, row_key, stamp_update, update};

/// Uploads under way; one more, and the oldest is forgotten.
const SESSIONS_MAX: usize = 1_000;
/// Longest block id, before it becomes base64 (dataverse 7.1).
const BLOCK_ID_BYTES_MAX: usize = 64;
/// `maxuploadfilesize` where the organization does not say (dataverse 7.3).
const DOCUMENT_TEXT_MAX: u64 = 5_242_880;

/// What an upload is for.
#[derive(Debug, Clone)]
enum Target {
    /// A file or image column of a row.
    Column { table: usize, key: RowKey, column: String },
    /// The body of a note or attachment, which may not exist before the commit.
    Document { table: usize },
}

/// An upload under way.
struct Session {
    target: Target,
    name: String,
    /// Chunks in order, and where the last one began.
    received: Vec<u8>,
    last_start: u64,
    blocks: HashMap<String, Bytes>,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("target", &self.target).finish_non_exhaustive()
    }
}

/// The uploads under way, oldest first, by token.
#[derive(Debug, Default)]
pub(crate) struct Sessions(VecDeque<(String, Session)>, u64);

impl Sessions {
    /// Opens a session and gives its token, which no other session ever had.
    fn open(&mut self, target: Target, name: String) -> String {
        self.1 += 1;
        let token = named_guid(&format!("upload {}", self.1)).to_string();
        if self.0.len() == SESSIONS_MAX {
            self.0.pop_front();
        }
        let session = Session { target, name, received: Vec::new(), last_start: 0, blocks: HashMap::new() };
        self.0.push_back((token.clone(), session));
        token
    }

    fn get(&mut self, token: &str) -> Result<&mut Session, Refusal> {
        let found = self.0.iter_mut().find(|(have, _)| have == token).map(|(_, session)| session);
        found.ok_or_else(|| Refusal::bad_query("The file continuation token is not valid."))
    }

    fn close(&mut self, token: &str) {
        self.0.retain(|(have, _)| have != token);
    }
}

/// Whether a property is a file or an image, which DELETE empties in its own way.
pub(crate) fn holds_content(def: &TableDef, property: &str) -> bool {
    def.property(property).is_some_and(|column| matches!(column.kind, Kind::File | Kind::Image))
}

/// `PATCH {set}({key})/{column}`: all of a file, the opening of a session, or a chunk.
pub(crate) fn patch(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &str,
    column: &str,
    request: &Request,
    options: &Options,
) -> Result<Answer, Refusal> {
    let key = existing(context, table, key, options)?;
    let target = column_target(context, table, key, column)?;
    if let Some(token) = options.plain.get("sessiontoken") {
        return chunk(context, &target, token, request);
    }
    let image = is_image(context, &target);
    // The header wins over the query, but can only say ASCII (dataverse 7.1).
    let name = request.headers.get("x-ms-file-name").or(options.plain.get("x-ms-file-name").map(String::as_str));
    let name = match name {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ if image => format!("{column}.png"),
        _ => return Err(Refusal::bad_query("The file name is missing: x-ms-file-name.")),
    };
    check_extension(context, &name)?;
    if request.headers.get("x-ms-transfer-mode").is_some_and(|mode| mode.eq_ignore_ascii_case("chunked")) {
        let token = context.database.uploads.open(target, name);
        let place = request.link.split('?').next().unwrap_or_default();
        let answer = Answer::empty(200)
            .with("Location", format!("{place}?sessiontoken={token}"))
            .with("x-ms-chunk-size", BLOCK_BYTES_MAX.to_string())
            .with("Access-Control-Expose-Headers", "Location, x-ms-chunk-size");
        return Ok(answer);
    }
    check_binary(request)?;
    let media_type = media_type(&name).to_owned();
    fill(context, &target, Stored { name, media_type, bytes: request.body.clone() })?;
    Ok(Answer::empty(204))
}

fn check_binary(request: &Request) -> Result<(), Refusal> {
    let binary = |media: &str| media.starts_with("application/octet-stream");
    if request.headers.get("content-type").is_some_and(binary) {
        return Ok(());
    }
    Err(Refusal::new(415, "0x80060888", "The content of a file is sent as application/octet-stream."))
}

/// First and last byte of a chunk and the size of the whole.
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) = (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last && last < total).then_some((first, last, total))
}

fn chunk(context: &mut WriteContext<'_>, target: &Target, token: &str, request: &Request) -> Result<Answer, Refusal> {
    check_binary(request)?;
    let wrong = |reason: &str| Refusal::bad_query(format!("The chunk cannot be taken: {reason}."));
    let (first, last, total) = request
        .headers
        .get("content-range")
        .and_then(parse_content_range)
        .ok_or_else(|| wrong("Content-Range is missing or not valid"))?;
    let length = last - first + 1;
    if length != request.body.len() as u64 || length > BLOCK_BYTES_MAX {
        return Err(wrong("its length is not that of its Content-Range, or more than the chunk size"));
    }
    let limit = size_limit(context, target);
    if total > limit {
        return Err(too_large(limit));
    }
    let session = context.database.uploads.get(token)?;
    if !same_place(&session.target, target) {
        return Err(wrong("the session is for another column"));
    }
    if first == session.last_start && first < session.received.len() as u64 {
        // The same chunk again, after an answer that got lost.
        session.received.truncate(first as usize);
    }
    if first != session.received.len() as u64 {
        return Err(wrong("it is not the next one"));
    }
    session.last_start = first;
    session.received.extend_from_slice(&request.body);
    if last + 1 < total {
        return Ok(Answer::empty(206));
    }
    let (name, bytes) = (session.name.clone(), Bytes::copy_from_slice(&session.received));
    let media_type = media_type(&name).to_owned();
    fill(context, target, Stored { name, media_type, bytes })?;
    context.database.uploads.close(token);
    Ok(Answer::empty(204))
}

fn same_place(one: &Target, other: &Target) -> bool {
    match (one, other) {
        (Target::Column { table, key, column }, Target::Column { table: table2, key: key2, column: column2 }) => {
            (table, key, column) == (table2, key2, column2)
        }
        (Target::Document { table }, Target::Document { table: other }) => table == other,
        _ => false,
    }
}

/// `DELETE {set}({key})/{column}` of a file or image.
pub(crate) fn remove(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &str,
    column: &str,
    options: &Options,
) -> Result<Answer, Refusal> {
    let key = existing(context, table, key, options)?;
    let Target::Column { key, column, .. } = column_target(context, table, key, column)? else {
        return Err(Refusal::no_segment(column));
    };
    set_cell(context, table, &key, &column, String::new());
    Ok(Answer::empty(204))
}

fn existing(context: &WriteContext<'_>, table: usize, key: &str, options: &Options) -> Result<RowKey, Refusal> {
    let key = row_key(context, table, key, options)?;
    let entry = &context.database.tables[table];
    match entry.rows.get(&key) {
        Some(_) => Ok(key),
        None => Err(Refusal::no_row(&entry.def.name, &key.id.to_string())),
    }
}

fn column_target(context: &WriteContext<'_>, table: usize, key: RowKey, column: &str) -> Result<Target, Refusal> {
    let def = &context.database.tables[table].def;
    if def.property(column).is_none() {
        return Err(Refusal::no_segment(column));
    }
    if !holds_content(def, column) {
        return Err(Refusal::new(405, "0x80060888", format!("'{column}' is no file or image column.")));
    }
    context.require("Write", table)?;
    Ok(Target::Column { table, key, column: column.to_owned() })
}

fn column<'a>(context: &'a WriteContext<'_>, target: &Target) -> Option<&'a Column> {
    let (table, name) = match target {
        Target::Column { table, column, .. } => (*table, column.as_str()),
        Target::Document { table } => {
            let columns = &context.database.tables[*table].def.columns;
            return columns.iter().find(|column| column.kind == Kind::Body);
        }
    };
    context.database.tables[table].def.column(name)
}

fn is_image(context: &WriteContext<'_>, target: &Target) -> bool {
    column(context, target).is_some_and(|column| column.kind == Kind::Image)
}

/// Largest content in bytes; that of a document is measured on its base64 text (dataverse 7.3).
fn size_limit(context: &WriteContext<'_>, target: &Target) -> u64 {
    match column(context, target).map(|column| &column.kind) {
        Some(Kind::Image) => IMAGE_BYTES_MAX,
        Some(Kind::Body) => document_text_max(context) / 4 * 3,
        _ => FILE_BYTES_MAX,
    }
}

fn organization(context: &WriteContext<'_>, column: &str) -> Option<String> {
    let entry = &context.database.tables[context.database.table("organization")?];
    let cell = entry.def.cell(column)?;
    let raw = entry.rows.values().next()?.cell(cell);
    (!raw.is_empty()).then(|| raw.trim_matches('"').to_owned())
}

fn document_text_max(context: &WriteContext<'_>) -> u64 {
    organization(context, "maxuploadfilesize").and_then(|text| text.parse().ok()).unwrap_or(DOCUMENT_TEXT_MAX)
}

fn too_large(limit: u64) -> Refusal {
    Refusal::new(400, "0x80044a02", format!("The file is too big; at most {limit} bytes can be stored."))
}

/// Refuses names with an extension on the organization's list (dataverse 7.1).
fn check_extension(context: &WriteContext<'_>, name: &str) -> Result<(), Refusal> {
    let Some((_, extension)) = name.rsplit_once('.') else { return Ok(()) };
    let blocked = organization(context, "blockedattachments").unwrap_or_default();
    if blocked.split(';').any(|one| one.eq_ignore_ascii_case(extension)) {
        return Err(Refusal::new(
            400,
            "0x80043e09",
            format!("The attachment is blocked: files with the extension '{extension}' are not allowed."),
        ));
    }
    Ok(())
}

/// What the service takes for an image, by its first bytes (dataverse 7.2).
fn is_picture(bytes: &[u8]) -> bool {
    let starts: [&[u8]; 7] = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"BM"];
    starts.iter().any(|start| bytes.starts_with(start))
}

fn check_picture(bytes: &[u8]) -> Result<(), Refusal> {
    if is_picture(bytes) {
        return Ok(());
    }
    Err(Refusal::new(400, "0x80072553", "The image is not valid, or not of a supported type."))
}

/// Keeps a content and lets the target point to it; the id it got.
fn fill(context: &mut WriteContext<'_>, target: &Target, stored: Stored) -> Result<Guid, Refusal> {
    let limit = size_limit(context, target);
    if stored.bytes.len() as u64 > limit {
        return Err(too_large(limit));
    }
    if is_image(context, target) {
        check_picture(&stored.bytes)?;
    }
    let Target::Column { table, key, column } = target else {
        return Err(bad_payload("A document is committed by its own message."));
    };
    let id = keep(context, stored);
    set_cell(context, *table, key, column, format!("\"{id}\""));
    Ok(id)
}

/// A new id for every content, also for the same bytes (dataverse 7.1).
fn keep(context: &mut WriteContext<'_>, stored: Stored) -> Guid {
    let id = context.dice.guid();
    context.database.contents.keep(id, stored);
    id
}

fn set_cell(context: &mut WriteContext<'_>, table: usize, key: &RowKey, column: &str, value: String) {
    let entry = &context.database.tables[table];
    let (Some(row), Some(cell)) = (entry.rows.get(key), entry.def.cell(column)) else { return };
    let mut cells = row.cells(entry.def.cells);
    cells[cell] = value;
    follow_content(&entry.def, &mut cells);
    stamp_update(context, table, &mut cells);
    context.database.put(table, key.clone(), &cells);
}

/// The cell of an image or document whose base64 came in the row itself; `raw` is its JSON.
pub(crate) fn content_cell(context: &mut WriteContext<'_>, column: &Column, raw: &str) -> Result<String, Refusal> {
    let text: String = serde_json::from_str(raw)
        .map_err(|_| bad_payload(&format!("Cannot convert the value of '{}' to a text.", column.name)))?;
    if text.is_empty() {
        return Ok(String::new());
    }
    let bytes: Bytes = from_base64(&text)
        .ok_or_else(|| bad_payload(&format!("The value of '{}' is not valid base64.", column.name)))?
        .into();
    if column.kind == Kind::Image {
        check_picture(&bytes)?;
        if bytes.len() as u64 > IMAGE_BYTES_MAX {
            return Err(too_large(IMAGE_BYTES_MAX));
        }
        let name = format!("{}.png", column.name);
        let id = keep(context, Stored { name, media_type: "image/png".to_owned(), bytes });
        return Ok(format!("\"{id}\""));
    }
    let limit = document_text_max(context);
    if text.len() as u64 > limit {
        return Err(too_large(limit));
    }
    Ok(keep_document(context, bytes).to_string())
}

/// The name of a document is a column of its row, not part of the content (dataverse 7.3).
fn keep_document(context: &mut WriteContext<'_>, bytes: Bytes) -> Guid {
    keep(context, Stored { name: String::new(), media_type: "application/octet-stream".to_owned(), bytes })
}

/// Refuses a note or attachment whose document has a blocked name, or is shared with nobody.
pub(crate) fn check_document(context: &WriteContext<'_>, table: usize, cells: &[String]) -> Result<(), Refusal> {
    let def = &context.database.tables[table].def;
    let body = def.columns.iter().find(|column| column.kind == Kind::Body).and_then(|column| def.cell(&column.name));
    let (Some(body), Some(name)) = (body, def.cell("filename")) else { return Ok(()) };
    if cells[body].is_empty() {
        return Ok(());
    }
    if let (Some(shared), Some(id)) = (def.cell("attachmentid"), Guid::parse(cells[body].trim_matches('"')))
        && !def.contents.find(id, ContentKind::Body).is_upload()
        && !context.database.tables[table].rows.values().any(|row| row.cell(shared) == cells[shared])
    {
        // An attachment shares the body of another one, or brings its own (dataverse 7.3).
        return Err(Refusal::no_row("attachment", &id.to_string()));
    }
    check_extension(context, &serde_json::from_str::<String>(&cells[name]).unwrap_or_default())
}

/// The messages that upload; `None` for any other name.
pub(crate) fn message(
    context: &mut WriteContext<'_>,
    name: &str,
    request: &Request,
) -> Option<Result<Answer, Refusal>> {
    let handle: fn(&mut WriteContext<'_>, &Body) -> Result<serde_json::Value, Refusal> = match name {
        "InitializeFileBlocksUpload" => start_file,
        "InitializeAnnotationBlocksUpload" => |context, body| start_document(context, body, "annotation"),
        "InitializeAttachmentBlocksUpload" => |context, body| start_document(context, body, "activitymimeattachment"),
        "UploadBlock" => block,
        "CommitFileBlocksUpload" => commit_file,
        "CommitAnnotationBlocksUpload" => |context, body| commit_document(context, body, "AnnotationId"),
        "CommitAttachmentBlocksUpload" => |context, body| commit_document(context, body, "ActivityMimeAttachmentId"),
        "DeleteFile" => delete_file,
        _ => return None,
    };
    Some(Body::parse(&request.body).and_then(|body| handle(context, &body)).map(|mut answer| {
        if answer.is_null() {
            return Answer::empty(204);
        }
        let kind = format!("{}$metadata#Microsoft.Dynamics.CRM.{name}Response", context.base());
        answer["@odata.context"] = kind.into();
        Answer::json(answer.to_string())
    }))
}

fn member(body: &Body, name: &str) -> Result<String, Refusal> {
    body.text(name).ok_or_else(|| bad_payload(&format!("The parameter '{name}' is missing or no text.")))
}

/// `Target`: its table, its key if it has one, and itself.
fn target_of(context: &WriteContext<'_>, body: &Body) -> Result<(usize, Option<RowKey>, Body), Refusal> {
    let target = body.object("Target")?.ok_or_else(|| bad_payload("The parameter 'Target' is missing."))?;
    let name = target.type_name().ok_or_else(|| bad_payload("The member '@odata.type' is missing."))?;
    let table = context
        .database
        .table(&name)
        .ok_or_else(|| Refusal::bad_query(format!("The entity with a name = '{name}' was not found.")))?;
    let def = &context.database.tables[table].def;
    let key = target.text(&def.primary_id).map(|id| parse_key(def, &id, None)).transpose()?;
    Ok((table, key, target))
}

fn open(context: &mut WriteContext<'_>, target: Target, name: String) -> serde_json::Value {
    let token = context.database.uploads.open(target, name);
    json!({"FileContinuationToken": token})
}

fn start_file(context: &mut WriteContext<'_>, body: &Body) -> Result<serde_json::Value, Refusal> {
    let (table, key, _) = target_of(context, body)?;
    let def = &context.database.tables[table].def;
    let key = key.ok_or_else(|| bad_payload(&format!("The member '{}' is missing.", def.primary_id)))?;
    let key = existing(context, table, &key.id.to_string(), &Options::default())?;
    let target = column_target(context, table, key, &member(body, "FileAttributeName")?)?;
    let name = member(body, "FileName")?;
    check_extension(context, &name)?;
    Ok(open(context, target, name))
}

fn start_document(context: &mut WriteContext<'_>, body: &Body, table: &str) -> Result<serde_json::Value, Refusal> {
    let (found, key, target) = target_of(context, body)?;
    if context.database.table(table) != Some(found) {
        return Err(bad_payload(&format!("The target is no {table}.")));
    }
    // Notes say which one; attachments are always new (dataverse 7.3).
    if table == "annotation" && key.is_none() {
        return Err(bad_payload("The member 'annotationid' is missing."));
    }
    check_extension(context, &target.text("filename").unwrap_or_default())?;
    Ok(open(context, Target::Document { table: found }, String::new()))
}

fn block(context: &mut WriteContext<'_>, body: &Body) -> Result<serde_json::Value, Refusal> {
    let id = member(body, "BlockId")?;
    let data = from_base64(&member(body, "BlockData")?).ok_or_else(|| bad_payload("The block is not valid base64."))?;
    let session = context.database.uploads.get(&member(body, "FileContinuationToken")?)?;
    let readable = from_base64(&id).is_some_and(|bytes| bytes.len() <= BLOCK_ID_BYTES_MAX);
    // Block ids of one file are equally long (dataverse 7.1).
    if !readable || session.blocks.keys().any(|other| other.len() != id.len()) {
        return Err(Refusal::new(400, "0x80040203", "The block id is not valid."));
    }
    if data.len() as u64 > BLOCK_BYTES_MAX {
        return Err(too_large(BLOCK_BYTES_MAX));
    }
    let held: usize = session.blocks.iter().filter(|(have, _)| **have != id).map(|(_, block)| block.len()).sum();
    let size = (held + data.len()) as u64;
    let target = session.target.clone();
    let limit = size_limit(context, &target);
    if size > limit {
        return Err(too_large(limit));
    }
    let session = context.database.uploads.get(&member(body, "FileContinuationToken")?)?;
    session.blocks.insert(id, data.into());
    Ok(serde_json::Value::Null)
}

/// The blocks of a commit, joined in the order of its list.
fn joined(context: &mut WriteContext<'_>, body: &Body) -> Result<(Target, String, Bytes), Refusal> {
    let list: Vec<String> = body
        .raw("BlockList")
        .and_then(|raw| serde_json::from_str(raw).ok())
        .ok_or_else(|| bad_payload("The parameter 'BlockList' is missing or not a list of texts."))?;
    let session = context.database.uploads.get(&member(body, "FileContinuationToken")?)?;
    let mut bytes = Vec::new();
    for id in &list {
        let block = session.blocks.get(id);
        let block = block.ok_or_else(|| Refusal::new(400, "0x80040203", "The specified block list is invalid."))?;
        bytes.extend_from_slice(block);
    }
    Ok((session.target.clone(), session.name.clone(), bytes.into()))
}

fn commit_file(context: &mut WriteContext<'_>, body: &Body) -> Result<serde_json::Value, Refusal> {
    let (target, started_as, bytes) = joined(context, body)?;
    let size = bytes.len();
    let name = body.text("FileName").unwrap_or(started_as);
    check_extension(context, &name)?;
    // The only upload that can say the media type (dataverse 7.1).
    let media_type = body.text("MimeType").unwrap_or_else(|| media_type(&name).to_owned());
    if let Target::Column { table, key, .. } = &target {
        existing(context, *table, &key.id.to_string(), &Options::default())?;
    }
    let id = fill(context, &target, Stored { name, media_type, bytes })?;
    context.database.uploads.close(&member(body, "FileContinuationToken")?);
    Ok(json!({"FileId": id.to_string(), "FileSizeInBytes": size}))
}

fn commit_document(context: &mut WriteContext<'_>, body: &Body, id_name: &str) -> Result<serde_json::Value, Refusal> {
    let (target, _, bytes) = joined(context, body)?;
    let (found, key, row) = target_of(context, body)?;
    let Target::Document { table } = target else { return Err(bad_payload("The token is that of a file column.")) };
    if table != found {
        return Err(bad_payload("The target is not that of the token."));
    }
    let size = bytes.len();
    let limit = document_text_max(context);
    // Measured as the base64 text it becomes (dataverse 7.3).
    if size.div_ceil(3) as u64 * 4 > limit {
        return Err(too_large(limit));
    }
    let Some(column) = context.database.tables[table].def.columns.iter().find(|column| column.kind == Kind::Body)
    else {
        return Err(bad_payload("The target holds no document."));
    };
    let column = column.name.clone();
    let row = Body(row.0.into_iter().filter(|(name, _)| *name != column).collect());
    let rows = &context.database.tables[table].rows;
    let key = match key.filter(|key| id_name == "AnnotationId" && rows.contains_key(key)) {
        Some(key) => {
            update(context, table, &key, &row)?;
            key
        }
        None => create(context, table, &row)?,
    };
    let id = keep_document(context, bytes);
    set_cell(context, table, &key, &column, id.to_string());
    let entry = &context.database.tables[table];
    if let Some(stored) = entry.rows.get(&key) {
        check_document(context, table, &stored.cells(entry.def.cells))?;
    }
    context.database.uploads.close(&member(body, "FileContinuationToken")?);
    Ok(json!({id_name: key.id.to_string(), "FileSizeInBytes": size}))
}

fn delete_file(context: &mut WriteContext<'_>, body: &Body) -> Result<serde_json::Value, Refusal> {
    let text = member(body, "FileId")?;
    let wanted = Guid::parse(&text).ok_or_else(|| bad_payload("The parameter 'FileId' is no id."))?;
    let holders = context.database.tables.iter().enumerate().find_map(|(table, entry)| {
        let mut files = entry.def.columns.iter().filter(|column| column.kind == Kind::File);
        files.find_map(|column| {
            let cell = entry.def.cell(&column.name)?;
            let found = |raw: &str| Guid::parse(raw.trim_matches('"')) == Some(wanted);
            let (key, _) = entry.rows.iter().find(|(_, row)| found(row.cell(cell)))?;
            Some((table, key.clone(), column.name.clone()))
        })
    });
    let (table, key, column) = holders.ok_or_else(|| Refusal::no_row("fileattachment", &text))?;
    context.require("Write", table)?;
    set_cell(context, table, &key, &column, String::new());
    Ok(serde_json::Value::Null)
}

#[cfg(test)]
mod tests {
    use super::{Sessions, Target, is_picture, parse_content_range};
    use crate::guid::Guid;

    #[test]
    fn ranges_of_chunks_are_read_strictly() {
        assert_eq!(parse_content_range("bytes 0-3/8"), Some((0, 3, 8)));
        for wrong in ["bytes 0-8/8", "bytes 4-3/8", "bytes=0-3/8", "bytes 0-3/*", "0-3/8"] {
            assert_eq!(parse_content_range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pictures_are_known_by_their_first_bytes() {
        assert!(is_picture(b"GIF89a...") && is_picture(b"\xff\xd8\xff\xe0"));
        assert!(!is_picture(b"%PDF-1.7") && !is_picture(b""));
    }

    #[test]
    fn the_oldest_session_makes_room() {
        let mut sessions = Sessions::default();
        let target = Target::Column { table: 0, key: Guid::from_order(1).into(), column: "a".to_owned() };
        let tokens: Vec<String> =
            (0..=super::SESSIONS_MAX).map(|_| sessions.open(target.clone(), String::new())).collect();
        assert!(sessions.get(&tokens[0]).is_err());
        assert!(sessions.get(&tokens[1]).is_ok());
    }
}
