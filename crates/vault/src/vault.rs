//! Opening a vault, and writing the documents that commit a snapshot.
//!
//! Order of durability: content objects, segments, schema object, manifest. A crash between two steps leaves garbage,
//! never a lie: what no manifest names does not exist.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use dynavault_model::{Clock, Diagnose, FaultKind, SnapshotId};
use dynavault_store::{BlobName, BlobStore, LockOwner, StoreError, StoreLock};

use crate::crypt::{self, ENCRYPTED_SUFFIX, Identities, Recipients};
use crate::manifest::{FORMAT, Manifest, SegmentInfo, TableManifest, VaultDescription};
use crate::upload::sha256_hex;
use crate::{VaultError, names};

/// Largest manifest that is read: about a million segments.
const MANIFEST_BYTES_MAX: u64 = 512 << 20;
/// Largest schema object that is read, decompressed.
const SCHEMA_BYTES_MAX: usize = 64 << 20;
/// Names fetched per listing request.
const LIST_PAGE: usize = 1000;

/// A snapshot as the listing of the vault shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotObject {
    /// The snapshot.
    pub id: SnapshotId,
    /// Whether its manifest is inside an age layer.
    pub encrypted: bool,
    /// Size of the manifest object.
    pub bytes: u64,
}

/// An open vault.
#[derive(Clone)]
pub struct Vault {
    store: Arc<dyn BlobStore>,
    recipients: Recipients,
    identities: Identities,
    clock: Arc<dyn Clock>,
}

impl Vault {
    /// Opens a vault that exists.
    pub async fn open(
        store: Arc<dyn BlobStore>,
        recipients: Recipients,
        identities: Identities,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, VaultError> {
        let vault = Self { store, recipients, identities, clock };
        match vault.description().await? {
            Some(_) => Ok(vault),
            None => Err(VaultError::NotAVault { place: vault.store.describe() }),
        }
    }

    /// A vault that may not exist, for looking: without one, everything is empty. Works without the right to read.
    pub async fn look(
        store: Arc<dyn BlobStore>,
        recipients: Recipients,
        identities: Identities,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, VaultError> {
        let vault = Self { store, recipients, identities, clock };
        match vault.description().await {
            Err(error) if error.kind() != FaultKind::SignIn => Err(error),
            _ => Ok(vault),
        }
    }

    /// Opens a vault for writing, and makes it if it is not there. Works without the right to read.
    pub async fn open_or_create(
        store: Arc<dyn BlobStore>,
        recipients: Recipients,
        identities: Identities,
        clock: Arc<dyn Clock>,
        tool: &str,
    ) -> Result<Self, VaultError> {
        let vault = Self { store, recipients, identities, clock };
        let known = match vault.description().await {
            // A host that may only write cannot look; what it writes says for itself whether the vault is there.
            Err(error) if error.kind() == FaultKind::SignIn => false,
            other => other?.is_some(),
        };
        if !known {
            let description = VaultDescription {
                format: FORMAT,
                vault: SnapshotId::new(vault.clock.as_ref()).to_string(),
                created: vault.clock.now(),
                recipients: vault.recipients.texts(),
                tool: tool.to_string(),
            };
            let bytes = to_json(&description);
            match vault.store.put(&names::description(), bytes.into()).await {
                Ok(()) | Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(VaultError::store("make the vault")(error)),
            }
        }
        Ok(vault)
    }

    /// The description of the vault; `None` when there is no vault.
    pub async fn description(&self) -> Result<Option<VaultDescription>, VaultError> {
        let name = names::description();
        let bytes = match self.store.read(&name, 0..1 << 20).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(VaultError::store("read dynavault.json")(error)),
        };
        let damaged = |error: serde_json::Error| VaultError::damaged(&name, error);
        let Version { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(VaultError::UnknownFormat { found: format, known: FORMAT });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn BlobStore> {
        &self.store
    }

    pub(crate) fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Whether objects that are encrypted to our recipients can be read here.
    pub fn can_read(&self) -> bool {
        self.recipients.is_empty() || !self.identities.is_empty()
    }

    /// The writing side for one environment.
    pub fn writer(&self, environment: &str) -> VaultWriter {
        VaultWriter { vault: self.clone(), environment: environment.to_string() }
    }

    /// Takes the environment's lock: one writer at a time.
    pub async fn lock(&self, environment: &str, owner: &LockOwner) -> Result<Box<dyn StoreLock>, VaultError> {
        self.store
            .lock(&names::lock(environment), owner)
            .await
            .map_err(VaultError::store(format!("lock environment {environment}")))
    }

    /// Environments that have manifests.
    pub async fn environments(&self) -> Result<Vec<String>, VaultError> {
        let mut found: Vec<String> = Vec::new();
        let mut after = None;
        loop {
            let page = self.list("environments/", after.as_ref()).await?;
            for entry in &page {
                let mut parts = entry.name.as_str().split('/');
                if let (Some(_), Some(name), Some("manifests")) = (parts.next(), parts.next(), parts.next())
                    && found.last().is_none_or(|last| last != name)
                {
                    found.push(name.to_string());
                }
            }
            match page.last() {
                // Skip the rest of an environment that is known: its folders may hold very many objects.
                Some(last) if page.len() == LIST_PAGE => {
                    let name = last.name.as_str().split('/').nth(1).unwrap_or_default();
                    let rest = if found.iter().any(|known| known == name) {
                        format!("environments/{name}/~")
                    } else {
                        last.name.as_str().to_string()
                    };
                    after = Some(BlobName::new(rest).map_err(VaultError::store("list environments"))?);
                }
                _ => return Ok(found),
            }
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&BlobName>,
    ) -> Result<Vec<dynavault_store::BlobEntry>, VaultError> {
        self.store.list(prefix, after, LIST_PAGE).await.map_err(VaultError::store(format!("list {prefix}")))
    }

    /// Snapshots of an environment, oldest first.
    pub async fn snapshots(&self, environment: &str) -> Result<Vec<SnapshotObject>, VaultError> {
        let prefix = names::manifests(environment);
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = self.list(&prefix, after.as_ref()).await?;
            for entry in &page {
                let file = entry.name.as_str().trim_start_matches(&prefix);
                let (plain, encrypted) = match file.strip_suffix(ENCRYPTED_SUFFIX) {
                    Some(plain) => (plain, true),
                    None => (file, false),
                };
                if let Some(id) = plain.strip_suffix(".json").and_then(|text| text.parse().ok()) {
                    found.push(SnapshotObject { id, encrypted, bytes: entry.size });
                }
            }
            match page.last() {
                Some(last) if page.len() == LIST_PAGE => after = Some(last.name.clone()),
                _ => break,
            }
        }
        found.sort_by_key(|snapshot| snapshot.id);
        Ok(found)
    }

    /// Whether the vault has a segment.
    pub async fn has_segment(&self, environment: &str, table: &str, info: &SegmentInfo) -> Result<bool, VaultError> {
        let name = names::segment(environment, table, info);
        match self.store.size(&name).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(VaultError::store(format!("look at {name}"))(error)),
        }
    }

    /// What is wrong with the segments of a table as far as a listing tells: the first one that is missing or has another size
    /// than its manifest says. Costs one request per thousand objects of the table, and reads none of them.
    pub async fn find_damage(&self, environment: &str, table: &TableManifest) -> Result<Option<String>, VaultError> {
        let prefix = names::segments(environment, &table.table);
        let mut sizes: HashMap<BlobName, u64> = HashMap::new();
        let mut after = None;
        loop {
            let page = self.list(&prefix, after.as_ref()).await?;
            after = page.last().filter(|_| page.len() == LIST_PAGE).map(|last| last.name.clone());
            sizes.extend(page.into_iter().map(|entry| (entry.name, entry.size)));
            if after.is_none() {
                break;
            }
        }
        Ok(table.segments.iter().find_map(|info| {
            let name = names::segment(environment, &table.table, info);
            match sizes.get(&name) {
                None => Some(format!("{name} is missing")),
                Some(size) if *size == info.bytes_stored => None,
                Some(size) => Some(format!("{name} has {size} bytes, its manifest says {}", info.bytes_stored)),
            }
        }))
    }

    /// Reads a manifest; also gives the SHA-256 of its object, which the next manifest names.
    pub async fn manifest(
        &self,
        environment: &str,
        snapshot: &SnapshotObject,
    ) -> Result<(Manifest, String), VaultError> {
        let name = names::manifest(environment, snapshot.id, snapshot.encrypted);
        let stored = self.read_whole(&name, MANIFEST_BYTES_MAX).await?;
        let plain = crypt::read_small(&stored, snapshot.encrypted, &self.identities, MANIFEST_BYTES_MAX)
            .ok_or_else(|| VaultError::NoKey { object: name.to_string() })?;
        let manifest: Manifest = serde_json::from_slice(&plain).map_err(|error| VaultError::damaged(&name, error))?;
        if manifest.format != FORMAT {
            return Err(VaultError::UnknownFormat { found: manifest.format, known: FORMAT });
        }
        if manifest.snapshot != snapshot.id || manifest.environment != environment {
            return Err(VaultError::damaged(&name, "it describes another snapshot"));
        }
        Ok((manifest, sha256_hex(&stored)))
    }

    /// Reads a schema object.
    pub async fn schema(&self, environment: &str, hash: &str) -> Result<dynavault_model::TableSchema, VaultError> {
        for encrypted in [false, true] {
            let name = names::schema(environment, hash, encrypted);
            let stored = match self.read_whole(&name, SCHEMA_BYTES_MAX as u64).await {
                Err(VaultError::Store { source: StoreError::NotFound { .. }, .. }) if !encrypted => continue,
                Err(VaultError::Store { source: StoreError::NotFound { .. }, .. }) => {
                    let plain = names::schema(environment, hash, false);
                    return Err(VaultError::damaged(plain, "it is missing"));
                }
                other => other?,
            };
            let packed = crypt::read_small(&stored, encrypted, &self.identities, SCHEMA_BYTES_MAX as u64)
                .ok_or_else(|| VaultError::NoKey { object: name.to_string() })?;
            let damaged = |error: String| VaultError::damaged(&name, error);
            let json = zstd::bulk::decompress(&packed, SCHEMA_BYTES_MAX).map_err(|error| damaged(error.to_string()))?;
            if sha256_hex(&json) != hash {
                return Err(damaged("its content does not match its name".into()));
            }
            return serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()));
        }
        unreachable!("the second round of the loop returns")
    }

    /// Reads an object of known modest size.
    pub(crate) async fn read_whole(&self, name: &BlobName, limit: u64) -> Result<Vec<u8>, VaultError> {
        let size = self.store.size(name).await.map_err(VaultError::store(format!("read {name}")))?;
        if size > limit {
            return Err(VaultError::damaged(name, format!("it is larger than {limit} bytes")));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        while (bytes.len() as u64) < size {
            let from = bytes.len() as u64;
            let to = (from + (4 << 20)).min(size);
            let chunk = self.store.read(name, from..to).await.map_err(VaultError::store(format!("read {name}")))?;
            if chunk.is_empty() {
                return Err(VaultError::damaged(name, "it ends early"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// What every version of `dynavault.json` has.
#[derive(serde::Deserialize)]
struct Version {
    format: u32,
}

/// Pretty JSON: manifests are read by people too, and compress well where it matters.
fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(value).expect("our documents serialise: no maps with odd keys, no floats");
    bytes.push(b'\n');
    bytes
}

/// A manifest ready to be put: its bytes are fixed, so that putting it again after a crash is the same act.
#[derive(Debug, Clone)]
pub struct PreparedManifest {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Whether the bytes are inside an age layer.
    pub encrypted: bool,
    /// The object's bytes.
    pub bytes: Vec<u8>,
    /// SHA-256 of the bytes, in hexadecimal.
    pub sha256: String,
}

/// The writing side of a vault for one environment. Needs public keys only, and no right to delete.
#[derive(Clone)]
pub struct VaultWriter {
    vault: Vault,
    environment: String,
}

impl VaultWriter {
    /// The environment.
    pub fn environment(&self) -> &str {
        &self.environment
    }

    pub(crate) fn recipients(&self) -> &Recipients {
        &self.vault.recipients
    }

    /// Whether what is written goes inside an age layer.
    pub fn is_encrypted(&self) -> bool {
        !self.vault.recipients.is_empty()
    }

    pub(crate) fn store(&self) -> &dyn BlobStore {
        self.vault.store.as_ref()
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.vault.clock.as_ref()
    }

    /// Stores a table's schema under the hash of its JSON, which is returned with the bytes written (0 if it was there).
    pub async fn put_schema(&self, schema: &dynavault_model::TableSchema) -> Result<(String, u64), VaultError> {
        let json = to_json(schema);
        let hash = sha256_hex(&json);
        let name = names::schema(&self.environment, &hash, !self.recipients().is_empty());
        let packed = zstd::bulk::compress(&json, 3).map_err(VaultError::io(&name))?;
        let stored = crypt::write_small(&packed, self.recipients()).map_err(VaultError::io(&name))?;
        let bytes = stored.len() as u64;
        match self.store().put(&name, stored.into()).await {
            Ok(()) => Ok((hash, bytes)),
            Err(StoreError::AlreadyExists { .. }) => Ok((hash, 0)),
            Err(error) => Err(VaultError::store(format!("write {name}"))(error)),
        }
    }

    /// Fixes the bytes of a manifest.
    pub fn prepare(&self, manifest: &Manifest) -> Result<PreparedManifest, VaultError> {
        let encrypted = !self.recipients().is_empty();
        let bytes =
            crypt::write_small(&to_json(manifest), self.recipients()).map_err(VaultError::io("the manifest"))?;
        Ok(PreparedManifest { snapshot: manifest.snapshot, encrypted, sha256: sha256_hex(&bytes), bytes })
    }

    /// Puts a manifest: from here on the snapshot exists. Putting the same one again is not an error.
    pub async fn commit(&self, manifest: &PreparedManifest) -> Result<(), VaultError> {
        let name = names::manifest(&self.environment, manifest.snapshot, manifest.encrypted);
        match self.store().put(&name, Bytes::from(manifest.bytes.clone())).await {
            // Only the run that drew this snapshot id writes this name.
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(VaultError::store(format!("write {name}"))(error)),
        }
    }
}
