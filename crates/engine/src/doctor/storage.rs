//! What the credential of the storage allows, tried out with one small object below `doctor/`.
//!
//! A backup needs to create objects and nothing else. Where the vault is encrypted to recipients and this host holds no
//! key, whatever is allowed beyond that only helps whoever takes the host over, so it is named
//! (the threat model, "write-only capture"). Objects have to be create-only: a store that replaces one is refused.

use bytes::Bytes;
use dynavault_model::{Diagnose, FaultKind, RunId};
use dynavault_store::{BlobName, BlobStore, StoreError, VaultLocation};

use super::{CheckLine, failure_of};
use crate::assemble::{Engine, VaultUse};
use crate::failure::Failure;

/// What the probe object holds.
const PROBE: &[u8] = b"dynavault doctor: a probe of the rights on this storage; it may be deleted\n";

/// What this host is for, as far as the storage is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Host {
    /// A folder belongs to its user, who may do everything with it.
    folder: bool,
    /// Objects are encrypted, and this host has no key.
    capture_only: bool,
}

/// What was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rights {
    list: bool,
    read: bool,
    delete: bool,
}

impl Engine {
    pub(super) async fn check_storage(&self) -> Vec<CheckLine> {
        let vault = &self.config().vault;
        let folder = matches!(self.vault_location(), Ok(VaultLocation::Folder(_)));
        let host = Host { folder, capture_only: !vault.recipients.is_empty() && vault.identity_file.is_none() };
        let store = match self.store(VaultUse::Look).await {
            Ok(store) => store,
            // The first backup makes a folder; whether it may is told by the check of the disk.
            Err(failure) if folder && failure.kind() == FaultKind::Usage => {
                return vec![CheckLine::warning("storage", "vault", failure.message(), "the first backup makes it")];
            }
            Err(failure) => return vec![CheckLine::failed("storage", "vault", &failure)],
        };
        let name = format!("doctor/{}", RunId::new(&**self.clock()));
        match BlobName::new(name) {
            Ok(name) => probe(&*store, &name, host).await,
            Err(error) => vec![CheckLine::failed("storage", "vault", &failure_of(error))],
        }
    }
}

async fn probe(store: &dyn BlobStore, name: &BlobName, host: Host) -> Vec<CheckLine> {
    let place = store.describe();
    let probe = || Bytes::from_static(PROBE);
    if let Err(error) = store.put(name, probe()).await {
        return vec![CheckLine::failed("storage write", place, &failure_of(error))];
    }
    let mut lines = vec![CheckLine::ok("storage write", place.as_str(), "granted")];
    lines.push(match store.put(name, probe()).await {
        Err(StoreError::AlreadyExists { .. }) => {
            CheckLine::ok("storage create-only", place.as_str(), "an object that exists is not replaced")
        }
        Ok(()) => CheckLine::failed(
            "storage create-only",
            place.as_str(),
            &Failure::new(
                FaultKind::Failed,
                "the storage replaces objects that exist",
                Some("use a storage that honours conditional writes (Azure Blob, or a local file system)".into()),
            ),
        ),
        // Whether the object could be replaced is not said; a credential that only writes may be told nothing.
        Err(error) => CheckLine::warning(
            "storage create-only",
            place.as_str(),
            format!("not known: {}", dynavault_model::chain(&error)),
            error.remedy().unwrap_or_else(|| "try again".to_string()),
        ),
    });
    let rights = Rights {
        list: store.list("doctor/", None, 1).await.is_ok(),
        read: store.read(name, 0..PROBE.len() as u64).await.is_ok_and(|bytes| bytes == PROBE),
        delete: store.delete(name).await.is_ok(),
    };
    lines.extend(judge(rights, host, name.as_str(), &place));
    lines
}

fn judge(rights: Rights, host: Host, probe: &str, place: &str) -> Vec<CheckLine> {
    const FOR_READING: &str = "needed by export, restore and verify, and by backup after the catalog was lost";
    let reading = |check: &'static str, granted: bool| match (granted, host.capture_only && !host.folder) {
        (true, true) => CheckLine::warning(
            check,
            place,
            "granted, and more than capture needs: this host holds no key",
            "give the credential create and write only, which is enough and recommended where recipients are set",
        ),
        (true, false) => CheckLine::ok(check, place, "granted"),
        (false, true) => {
            CheckLine::ok(check, place, "not granted, as recommended: capture needs create and write only")
        }
        (false, false) => CheckLine::warning(
            check,
            place,
            format!("not granted; {FOR_READING}"),
            "leave it so on a host that only backs up; else add the rights list and read",
        ),
    };
    let deleting = match (rights.delete, host.folder) {
        (true, true) => {
            CheckLine::ok("storage delete", place, "granted, as in every folder; the probe object was removed")
        }
        (true, false) => CheckLine::warning(
            "storage delete",
            place,
            "granted, and more than backup and restore need; the probe object was removed",
            "take the right to delete from the credential; only pruning needs it",
        ),
        (false, _) => CheckLine::ok(
            "storage delete",
            place,
            format!("not granted, as recommended; the probe object {probe} stays"),
        ),
    };
    vec![reading("storage list", rights.list), reading("storage read", rights.read), deleting]
}

#[cfg(test)]
mod tests {
    use dynavault_store::MemoryStore;

    use super::*;
    use crate::doctor::CheckStatus::{Ok as Fine, Warning};

    const ALL: Rights = Rights { list: true, read: true, delete: true };
    const NONE: Rights = Rights { list: false, read: false, delete: false };

    fn statuses(rights: Rights, folder: bool, capture_only: bool) -> Vec<crate::doctor::CheckStatus> {
        let lines = judge(rights, Host { folder, capture_only }, "doctor/x", "here");
        lines.into_iter().map(|line| line.status).collect()
    }

    #[test]
    fn a_host_without_a_key_needs_to_write_and_nothing_more() {
        assert_eq!(statuses(NONE, false, true), [Fine, Fine, Fine]);
        assert_eq!(statuses(ALL, false, true), [Warning, Warning, Warning]);
        assert_eq!(statuses(ALL, true, true), [Fine, Fine, Fine], "a folder belongs to its user");
    }

    #[test]
    fn a_host_that_reads_needs_to_list_and_read_and_not_to_delete() {
        assert_eq!(statuses(ALL, false, false), [Fine, Fine, Warning]);
        assert_eq!(statuses(NONE, false, false), [Warning, Warning, Fine]);
    }

    #[tokio::test]
    async fn the_probe_leaves_nothing_where_it_may_delete() {
        let store = MemoryStore::new();
        let name = BlobName::new("doctor/probe").unwrap();
        let lines = probe(&store, &name, Host { folder: true, capture_only: false }).await;
        assert!(lines.iter().all(|line| line.status == Fine), "{lines:?}");
        assert!(store.list("", None, 10).await.unwrap().is_empty());
    }
}
