//! Rows of one table as of a snapshot, ordered by row id, as JSON lines or CSV.

use std::io::Write;
use std::path::{Path, PathBuf};

use dynavault_model::{FaultKind, Row, SnapshotId, TableSchema, TableStatus};
use dynavault_vault::{ContentReference, Manifest, TableManifest, TableReader, VaultError};
use jiff::Timestamp;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::assemble::{Engine, VaultUse};
use crate::config::nearest;
use crate::failure::Failure;
use crate::inspect::{SnapshotWanted, blocking, find_manifest};

/// Bytes of output gathered before they are written.
const OUTPUT_BYTES: usize = 256 * 1024;

/// Form of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// One row's JSON object a line, as captured, without `@odata.etag`.
    #[default]
    Jsonl,
    /// Comma-separated values with a header (RFC 4180); strings without quotes, everything else as its JSON text, null and
    /// absent empty.
    Csv,
}

/// What to export.
#[derive(Debug, Clone, Default)]
pub struct ExportRequest {
    /// Configured name of the environment.
    pub environment: String,
    /// Which snapshot.
    pub snapshot: SnapshotWanted,
    /// Logical name of the table.
    pub table: String,
    /// Form.
    pub format: ExportFormat,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportStats {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Logical name of the table.
    pub table: String,
    /// Rows written.
    pub rows: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Set when the snapshot's own run did not read the table, so that the rows are older than the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
}

/// Where rows come from that a snapshot has from an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// Snapshot whose run read the rows.
    pub captured_by: SnapshotId,
    /// End of that read.
    pub read: Timestamp,
    /// How the table fared in the run of the exported snapshot: `succeeded` where that run was not asked for it.
    pub status: TableStatus,
    /// Why it was not read, where it was asked for.
    pub reason: Option<String>,
}

fn carried(snapshot: SnapshotId, table: &TableManifest) -> Option<Carried> {
    (table.captured_by != snapshot).then(|| Carried {
        captured_by: table.captured_by,
        read: table.window.last_read,
        status: table.status,
        reason: table.coverage.reason.clone().filter(|_| table.status != TableStatus::Succeeded),
    })
}

/// Where rows go. A file has another name until it is whole, and what is left of a failed export is removed. What is not a
/// file (a pipe, a device) is written to, never replaced.
enum Output {
    Stream(Box<dyn Write + Send>),
    File { partial: Partial, target: PathBuf, file: std::fs::File },
}

/// The unfinished file of an export; removed unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Renamed, or never made: then there is nothing to remove.
        drop(std::fs::remove_file(&self.0));
    }
}

impl Output {
    fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(named) = path else { return Ok(Self::Stream(Box::new(std::io::stdout()))) };
        let failed = |error| write_failed(named, &error);
        // What a link leads to is what is meant.
        let target = &std::fs::canonicalize(named).unwrap_or_else(|_| named.to_path_buf());
        match std::fs::metadata(target) {
            Ok(found) if found.is_dir() => return Err(failed(std::io::ErrorKind::IsADirectory.into())),
            Ok(found) if !found.is_file() => {
                let stream = std::fs::OpenOptions::new().write(true).open(target).map_err(failed)?;
                return Ok(Self::Stream(Box::new(stream)));
            }
            _ => {}
        }
        let mut partial = target.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = std::fs::File::create(&partial).map_err(failed)?;
        Ok(Self::File { partial: Partial(partial), target: target.clone(), file })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Stream(out) => out.write_all(bytes),
            Self::File { file, .. } => file.write_all(bytes),
        }
    }

    /// A file appears under its name only when it is whole.
    fn finish(self) -> std::io::Result<()> {
        match self {
            Self::Stream(mut out) => out.flush(),
            Self::File { partial, target, file } => file.sync_all().and_then(|()| std::fs::rename(&partial.0, &target)),
        }
    }
}

/// Why a snapshot has no rows of a table.
fn no_table(manifest: &Manifest, table: &str) -> Failure {
    let list = "`dynavault snapshot show` lists the tables of a snapshot";
    if let Some(refused) = manifest.refused.iter().find(|refused| refused.table == table) {
        let why = &refused.refusal.reason;
        return Failure::usage(format!("table {table} was refused in snapshot {}: {why}", manifest.snapshot), list);
    }
    let missing = VaultError::NoTable { snapshot: manifest.snapshot, table: table.to_string() };
    match nearest(&table.to_lowercase(), manifest.tables.iter().map(|table| table.table.as_str())) {
        Some(near) => Failure::usage(missing.to_string(), format!("did you mean {near:?}? {list}")),
        None => missing.into(),
    }
}

fn write_failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        FaultKind::Failed,
        format!("could not write {}: {error}", path.display()),
        Some("check that the disk is not full and the place may be written".into()),
    )
}

impl Engine {
    /// Writes the rows of a table to a file, or to standard output.
    pub async fn export(
        &self,
        request: ExportRequest,
        path: Option<PathBuf>,
        cancel: CancellationToken,
    ) -> Result<ExportStats, Failure> {
        let vault = self.vault(VaultUse::Read).await?;
        let environment = request.environment.clone();
        let manifest = find_manifest(&vault, &environment, &request.snapshot).await?;
        let Some(table) = manifest.table(&request.table).cloned() else {
            return Err(no_table(&manifest, &request.table));
        };
        let schema = match request.format {
            ExportFormat::Csv => Some(vault.schema(&environment, &table.schema).await?),
            ExportFormat::Jsonl => None,
        };
        // Rows are sorted in a part of the budget; decoding and the output need the rest.
        let memory = (self.config().limits.memory_mib as usize) << 18;
        let snapshot = manifest.snapshot;
        blocking(move || {
            let scratch = tempfile::tempdir().map_err(|error| write_failed(&std::env::temp_dir(), &error))?;
            let mut output = Output::open(path.as_deref())?;
            let target = path.clone().unwrap_or_else(|| PathBuf::from("standard output"));
            let mut rows = 0;
            let mut bytes = 0;
            let mut buffer = Vec::with_capacity(OUTPUT_BYTES * 2);
            if let Some(schema) = &schema {
                csv_header(schema, &mut buffer);
            }
            let reader = TableReader::new(&vault, Handle::current(), &environment, &table, cancel);
            let mut failure = None;
            let read = reader.sorted(scratch.path(), memory, |_, row| {
                match &schema {
                    Some(schema) => csv_row(schema, row, &mut buffer),
                    None => jsonl_row(row, &mut buffer),
                }
                rows += 1;
                if buffer.len() >= OUTPUT_BYTES {
                    bytes += buffer.len() as u64;
                    if let Err(error) = output.write(&buffer) {
                        failure = Some(error);
                        return Err(VaultError::Cancelled);
                    }
                    buffer.clear();
                }
                Ok(())
            });
            let written = match (read, failure) {
                (Err(_), Some(io)) => Err(io),
                (Err(error), None) => return Err(error.into()),
                (Ok(()), _) => {
                    bytes += buffer.len() as u64;
                    output.write(&buffer).and_then(|()| output.finish())
                }
            };
            match written {
                // Whoever reads has seen enough, as in `| head`.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                other => other.map_err(|error| write_failed(&target, &error))?,
            }
            Ok(ExportStats { snapshot, table: table.table.clone(), rows, bytes, carried: carried(snapshot, &table) })
        })
        .await
    }
}

impl Engine {
    /// What a snapshot says of the files, images and attachments of a table, as `(row id of the pair, reference)`.
    /// References of rows that are gone since are included; the rows decide.
    pub async fn content_references(
        &self,
        environment: &str,
        wanted: &SnapshotWanted,
        table: &str,
    ) -> Result<Vec<ContentReference>, Failure> {
        let vault = self.vault(VaultUse::Read).await?;
        let manifest = find_manifest(&vault, environment, wanted).await?;
        let Some(table) = manifest.table(table).cloned() else { return Ok(Vec::new()) };
        let environment = environment.to_string();
        blocking(move || {
            let reader = TableReader::new(&vault, Handle::current(), &environment, &table, CancellationToken::new());
            let mut references = Vec::new();
            reader.scan_content(|_, row| {
                let reference = serde_json::from_slice(row.bytes()).map_err(|error| VaultError::Damaged {
                    object: format!("content references of table {}", table.table),
                    detail: error.to_string(),
                })?;
                references.push(reference);
                Ok(())
            })?;
            Ok(references)
        })
        .await
    }
}

fn jsonl_row(row: &Row<'_>, out: &mut Vec<u8>) {
    out.push(b'{');
    row.write_content(out);
    out.extend_from_slice(b"}\n");
}

fn csv_header(schema: &TableSchema, out: &mut Vec<u8>) {
    for (index, column) in schema.columns.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        csv_field(column.member.as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
}

fn csv_row(schema: &TableSchema, row: &Row<'_>, out: &mut Vec<u8>) {
    for (index, column) in schema.columns.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        match row.get(&column.member) {
            None | Some(b"null") => {}
            Some(value) if value.first() == Some(&b'"') => match serde_json::from_slice::<String>(value) {
                Ok(text) => csv_field(text.as_bytes(), out),
                // An escaped lone surrogate is JSON but no text; its JSON form is kept rather than a changed one.
                Err(_) => csv_field(value, out),
            },
            Some(value) => csv_field(value, out),
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn csv_field(text: &[u8], out: &mut Vec<u8>) {
    // An empty string is quoted so that it differs from null.
    let quoted = text.is_empty() || text.iter().any(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n'));
    if !quoted {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for byte in text {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields_are_quoted_when_they_must_be() {
        for (text, expected) in
            [("plain", "plain"), ("a,b", "\"a,b\""), ("a\"b", "\"a\"\"b\""), ("", "\"\""), ("l\nm", "\"l\nm\"")]
        {
            let mut out = Vec::new();
            csv_field(text.as_bytes(), &mut out);
            assert_eq!(out, expected.as_bytes());
        }
    }
}
