//! Names of the objects of a vault. The only place that spells a path.

use dynavault_model::{RunId, SegmentId, SnapshotId};
use dynavault_store::BlobName;

use crate::crypt::ENCRYPTED_SUFFIX;
use crate::manifest::{SegmentInfo, SegmentKind};
use crate::restore_record::RestoreRecord;

/// `dynavault.json`.
pub(crate) fn description() -> BlobName {
    name("dynavault.json".into())
}

fn name(text: String) -> BlobName {
    // Environment names are checked by the configuration, table names by discovery, the rest is ours.
    BlobName::new(text).expect("vault names are made of checked parts")
}

fn suffix(encrypted: bool) -> &'static str {
    if encrypted { ENCRYPTED_SUFFIX } else { "" }
}

/// Prefix of an environment's manifests.
pub(crate) fn manifests(environment: &str) -> String {
    format!("environments/{environment}/manifests/")
}

pub(crate) fn manifest(environment: &str, snapshot: SnapshotId, encrypted: bool) -> BlobName {
    name(format!("{}{snapshot}.json{}", manifests(environment), suffix(encrypted)))
}

pub(crate) fn schema(environment: &str, hash: &str, encrypted: bool) -> BlobName {
    name(format!("environments/{environment}/schemas/{hash}.json.zst{}", suffix(encrypted)))
}

/// Prefix of a table's segments.
pub(crate) fn segments(environment: &str, table: &str) -> String {
    format!("environments/{environment}/tables/{table}/")
}

fn segment_of(environment: &str, table: &str, id: SegmentId, kind: SegmentKind, encrypted: bool) -> BlobName {
    let kind = match kind {
        SegmentKind::Rows => "",
        SegmentKind::Deleted => ".deleted",
        SegmentKind::Content => ".content",
    };
    name(format!("{}{id}{kind}.jsonl.zst{}", segments(environment, table), suffix(encrypted)))
}

pub(crate) fn new_segment(
    environment: &str,
    table: &str,
    id: SegmentId,
    kind: SegmentKind,
    encrypted: bool,
) -> BlobName {
    segment_of(environment, table, id, kind, encrypted)
}

/// Name of a segment that a manifest lists.
pub fn segment(environment: &str, table: &str, info: &SegmentInfo) -> BlobName {
    segment_of(environment, table, info.id, info.kind, info.encrypted)
}

/// Name of a content object by the SHA-256 of its bytes before encryption.
pub fn content(environment: &str, sha256: &str, encrypted: bool) -> BlobName {
    let folder = sha256.get(..2).unwrap_or("00");
    name(format!("environments/{environment}/content/{folder}/{sha256}{}", suffix(encrypted)))
}

/// Name of what a restore run leaves behind.
pub(crate) fn restore_record(environment: &str, run: RunId, record: RestoreRecord, encrypted: bool) -> BlobName {
    let file = record.file();
    name(format!("environments/{environment}/restores/{run}/{file}.jsonl.zst{}", suffix(encrypted)))
}

/// Name of an environment's lock.
pub(crate) fn lock(environment: &str) -> BlobName {
    name(format!("environments/{environment}/lock"))
}

/// Whether a text can be an environment's name and folder: lower-case letters, digits, `-`, `_`, `.`, at most 63, beginning
/// with a letter or digit.
pub fn is_environment_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte))
        && !text.contains("..")
}
