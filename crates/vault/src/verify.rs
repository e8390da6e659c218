//! Checking a vault: manifests, their chain, every object they name, and with `deep` every row.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use dynavault_model::{SegmentId, SnapshotId};
use dynavault_store::{BlobName, StoreError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::blob_file::{BlobFile, SCAN_BYTES};
use crate::content::ContentReference;
use crate::manifest::{Manifest, SegmentInfo, SegmentKind, TableManifest};
use crate::table::TableReader;
use crate::upload::hex;
use crate::vault::Vault;
use crate::{VaultError, names};

/// How much to check.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// Decode every row and compare it with its hash, and read content objects.
    pub deep: bool,
    /// Share of segments and content objects to read, in percent; manifests are always checked.
    pub sample_percent: u8,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub detail: String,
    /// The table whose rows it holds, if it holds rows.
    pub table: Option<String>,
    /// Rows it holds.
    pub rows: u64,
    /// Snapshots that need it.
    pub snapshots: Vec<SnapshotId>,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Manifests read.
    pub manifests: u64,
    /// Segments checked.
    pub segments: u64,
    /// Rows decoded.
    pub rows: u64,
    /// Content objects checked.
    pub content_objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Segments and content objects left out by sampling.
    pub skipped: u64,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
}

/// What a host remembers of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// SHA-256 of its object, in hexadecimal.
    pub sha256: String,
    /// Whether it is inside an age layer.
    pub encrypted: bool,
}

struct Use<'m> {
    table: &'m TableManifest,
    info: &'m SegmentInfo,
    snapshots: Vec<SnapshotId>,
}

/// Checks the snapshots of one environment. `known` is what this host remembers of its manifests; it tells when the
/// newest manifest, to which nothing is chained yet, is gone or changed. Must run on a blocking thread.
pub fn verify_environment(
    vault: &Vault,
    handle: &Handle,
    environment: &str,
    options: VerifyOptions,
    known: &BTreeMap<SnapshotId, Remembered>,
    cancel: &CancellationToken,
    report: &mut VerifyReport,
) -> Result<(), VaultError> {
    let manifests = read_manifests(vault, handle, environment, known, report)?;
    check_schemas(vault, handle, environment, &manifests, report)?;
    let mut segments: BTreeMap<(&str, SegmentId), Use<'_>> = BTreeMap::new();
    for manifest in &manifests {
        for table in &manifest.tables {
            for info in &table.segments {
                segments
                    .entry((&table.table, info.id))
                    .or_insert_with(|| Use { table, info, snapshots: Vec::new() })
                    .snapshots
                    .push(manifest.snapshot);
            }
        }
    }
    let mut contents = BTreeSet::new();
    for ((table, id), used) in &segments {
        if cancel.is_cancelled() {
            return Err(VaultError::Cancelled);
        }
        if !sampled(id.to_string().as_bytes(), options.sample_percent) {
            report.skipped += 1;
            continue;
        }
        report.segments += 1;
        let result = check_segment(vault, handle, environment, used, options, cancel, report, &mut contents);
        if let Err(error) = result {
            let name = names::segment(environment, table, used.info);
            report.damage.push(finding(&name, error, Some(table), used.info.rows, &used.snapshots)?);
        }
    }
    for (sha256, encrypted) in contents {
        if cancel.is_cancelled() {
            return Err(VaultError::Cancelled);
        }
        if !sampled(sha256.as_bytes(), options.sample_percent) {
            report.skipped += 1;
            continue;
        }
        report.content_objects += 1;
        let name = names::content(environment, &sha256, encrypted);
        if let Err(error) = check_content(vault, handle, &name, &sha256, encrypted, report) {
            report.damage.push(finding(&name, error, None, 0, &[])?);
        }
    }
    Ok(())
}

/// The same objects are chosen every time for the same percentage, so that repeated samples can be compared.
fn sampled(name: &[u8], percent: u8) -> bool {
    xxhash_rust::xxh3::xxh3_64(name) % 100 < u64::from(percent)
}

/// Turns damage into a finding; anything else (no network, no key) ends the check.
fn finding(
    name: &BlobName,
    error: VaultError,
    table: Option<&str>,
    rows: u64,
    snapshots: &[SnapshotId],
) -> Result<Damage, VaultError> {
    let detail = match error {
        VaultError::Damaged { detail, .. } => detail,
        VaultError::Store { source: StoreError::NotFound { .. }, .. } => "it is missing".to_string(),
        other => return Err(other),
    };
    Ok(Damage {
        object: name.to_string(),
        detail,
        table: table.map(str::to_string),
        rows,
        snapshots: snapshots.to_vec(),
    })
}

fn read_manifests(
    vault: &Vault,
    handle: &Handle,
    environment: &str,
    known: &BTreeMap<SnapshotId, Remembered>,
    report: &mut VerifyReport,
) -> Result<Vec<Manifest>, VaultError> {
    let mut manifests: Vec<Manifest> = Vec::new();
    let mut hashes: BTreeMap<SnapshotId, String> = BTreeMap::new();
    let objects = handle.block_on(vault.snapshots(environment))?;
    for (snapshot, remembered) in known.iter().filter(|(id, _)| !objects.iter().any(|object| object.id == **id)) {
        let name = names::manifest(environment, *snapshot, remembered.encrypted);
        let detail = "it is missing; the catalog of this host knows it (`dynavault catalog rebuild` forgets what another host removed)";
        report.damage.push(finding(&name, VaultError::damaged(&name, detail), None, 0, &[*snapshot])?);
    }
    for object in objects {
        let name = names::manifest(environment, object.id, object.encrypted);
        report.manifests += 1;
        report.bytes += object.bytes;
        match handle.block_on(vault.manifest(environment, &object)) {
            Ok((manifest, sha256)) => {
                if known.get(&object.id).is_some_and(|known| known.sha256 != sha256) {
                    let error = VaultError::damaged(&name, "it is not the manifest that this host remembers");
                    report.damage.push(finding(&name, error, None, 0, &[object.id])?);
                }
                hashes.insert(object.id, sha256);
                // A manifest names the hash of the one before it; the first one kept may name one that was pruned.
                if let Some(previous) = &manifest.previous
                    && let Some(found) = hashes.get(&previous.snapshot)
                    && *found != previous.sha256
                    // Said already.
                    && known.get(&previous.snapshot).is_none_or(|known| known.sha256 == *found)
                {
                    let before = names::manifest(environment, previous.snapshot, object.encrypted);
                    let detail = format!("it is not the manifest that snapshot {} was chained to", object.id);
                    report.damage.push(finding(
                        &before,
                        VaultError::damaged(&before, detail),
                        None,
                        0,
                        &[previous.snapshot],
                    )?);
                }
                manifests.push(manifest);
            }
            Err(error) => report.damage.push(finding(&name, error, None, 0, &[object.id])?),
        }
    }
    Ok(manifests)
}

/// Schema objects are small and always checked.
fn check_schemas(
    vault: &Vault,
    handle: &Handle,
    environment: &str,
    manifests: &[Manifest],
    report: &mut VerifyReport,
) -> Result<(), VaultError> {
    let mut schemas: BTreeMap<&str, Vec<SnapshotId>> = BTreeMap::new();
    for manifest in manifests {
        for table in &manifest.tables {
            let snapshots = schemas.entry(&table.schema).or_default();
            if snapshots.last() != Some(&manifest.snapshot) {
                snapshots.push(manifest.snapshot);
            }
        }
    }
    for (hash, snapshots) in schemas {
        match handle.block_on(vault.schema(environment, hash)) {
            Ok(_) => {}
            // Without a key its presence is all that can be checked.
            Err(VaultError::NoKey { .. }) if vault.identities().is_empty() => {}
            Err(VaultError::Damaged { object, detail }) => {
                report.damage.push(Damage { object, detail, table: None, rows: 0, snapshots });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the parts of one loop body, named")]
fn check_segment(
    vault: &Vault,
    handle: &Handle,
    environment: &str,
    used: &Use<'_>,
    options: VerifyOptions,
    cancel: &CancellationToken,
    report: &mut VerifyReport,
    contents: &mut BTreeSet<(String, bool)>,
) -> Result<(), VaultError> {
    let name = names::segment(environment, &used.table.table, used.info);
    let mut file = BlobFile::open(handle, vault.store(), &name, SCAN_BYTES)?;
    if file.size() != used.info.bytes_stored {
        let detail = format!("it has {} bytes, its manifest says {}", file.size(), used.info.bytes_stored);
        return Err(VaultError::damaged(&name, detail));
    }
    let sha256 = hash_all(&mut file, &name, report)?;
    if sha256 != used.info.sha256 {
        return Err(VaultError::damaged(&name, "its bytes do not match the hash in its manifest"));
    }
    if used.info.encrypted && !options.deep && vault.identities().is_empty() {
        // Without a key the hash is all that can be checked.
        return Ok(());
    }
    let reader = TableReader::new(vault, handle.clone(), environment, used.table, cancel.clone());
    if options.deep || used.info.kind == SegmentKind::Content {
        let mut rows = 0;
        reader.scan_segment(used.info, |_| true, &mut |_, row| {
            rows += 1;
            if used.info.kind == SegmentKind::Content {
                let reference: ContentReference =
                    serde_json::from_slice(row.bytes()).map_err(|error| VaultError::damaged(&name, error))?;
                contents.insert((reference.sha256, reference.encrypted));
            }
            Ok(())
        })?;
        report.rows += rows;
        if rows != used.info.rows {
            return Err(VaultError::damaged(
                &name,
                format!("{rows} rows were read, its manifest says {}", used.info.rows),
            ));
        }
    } else {
        reader.open(used.info)?;
    }
    Ok(())
}

fn hash_all(input: &mut impl Read, name: &BlobName, report: &mut VerifyReport) -> Result<String, VaultError> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let read = input.read(&mut chunk).map_err(VaultError::io(name))?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        report.bytes += read as u64;
        hasher.update(&chunk[..read]);
    }
}

fn check_content(
    vault: &Vault,
    handle: &Handle,
    name: &BlobName,
    sha256: &str,
    encrypted: bool,
    report: &mut VerifyReport,
) -> Result<(), VaultError> {
    let file = BlobFile::open(handle, vault.store(), name, SCAN_BYTES)?;
    let found = if encrypted {
        let mut plain = vault.identities().open(file).ok_or_else(|| VaultError::NoKey { object: name.to_string() })?;
        hash_all(&mut plain, name, report)?
    } else {
        let mut file = file;
        hash_all(&mut file, name, report)?
    };
    if found == sha256 { Ok(()) } else { Err(VaultError::damaged(name, "its bytes do not match its name")) }
}
