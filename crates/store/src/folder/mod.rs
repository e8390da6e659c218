//! Objects as files below a folder.
//!
//! An object is written to `tmp/.partial-…`, flushed to the disk, and then renamed to its name without replacing what
//! may be there; then the folder that got the new entry is flushed, too. So a crash leaves a partial file, which the
//! next start removes, or the whole object.
//!
//! ```text
//! root/tmp/.partial-4711-81f3…      being written; a name of an object cannot start with a dot
//! root/environments/…/01J….zst      objects, named as they are
//! ```
//!
//! Files and folders are made for the owner alone: they hold personal data. Symbolic links below the root are not
//! followed when listing. What other programs put into the folder is ignored unless its name could be ours.

mod list;
mod lock;
mod writer;

use std::fs::{self, DirBuilder};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use dynavault_model::Clock;

use crate::error::Cause;
use crate::folder::writer::{Writer, sweep_partials};
use crate::port::check_range;
use crate::{BlobEntry, BlobName, BlobStore, BlobWriter, LIST_ENTRIES_MAX, LockOwner, StoreError, StoreLock};

const FOLDER_MODE: u32 = 0o700;

/// What to do when the folder of the store is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingRoot {
    /// Make it.
    Create,
    /// Fail: a disk may not be mounted, and backups would quietly go elsewhere.
    Refuse,
}

/// A store in a local folder.
#[derive(Debug, Clone)]
pub struct FolderStore {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    root: PathBuf,
    durable: writer::DurableFolders,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("root", &self.root).finish_non_exhaustive()
    }
}

impl FolderStore {
    /// Opens the folder and removes what crashed processes left half-written more than a day ago.
    pub async fn open(
        root: impl Into<PathBuf>,
        missing: MissingRoot,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let root = root.into();
        let now = clock.now();
        let shared = Arc::new(Shared { root, durable: writer::DurableFolders::default(), clock });
        let opened = Arc::clone(&shared);
        blocking(move || {
            let root = &opened.root;
            match fs::metadata(root) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(unusable(root, "it is not a folder")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => match missing {
                    MissingRoot::Refuse => return Err(unusable(root, "there is no such folder")),
                    MissingRoot::Create => DirBuilder::new()
                        .recursive(true)
                        .mode(FOLDER_MODE)
                        .create(root)
                        .map_err(|error| no_folder("making", root, error))?,
                },
                Err(error) => return Err(no_folder("opening", root, error)),
            }
            sweep_partials(root, now);
            Ok(())
        })
        .await?;
        Ok(Self { shared })
    }

    fn path(&self, name: &BlobName) -> PathBuf {
        self.shared.path(name)
    }
}

impl Shared {
    pub(crate) fn path(&self, name: &BlobName) -> PathBuf {
        self.root.join(name.as_str())
    }
}

#[async_trait]
impl BlobStore for FolderStore {
    async fn create(&self, name: &BlobName) -> Result<Box<dyn BlobWriter>, StoreError> {
        let (shared, name) = (Arc::clone(&self.shared), name.clone());
        let writer = blocking(move || {
            // Known this early it saves the writing; only the rename at the end decides.
            if fs::symlink_metadata(shared.path(&name)).is_ok() {
                return Err(StoreError::AlreadyExists { name });
            }
            Writer::start(shared, name)
        });
        Ok(Box::new(writer.await?))
    }

    async fn put(&self, name: &BlobName, bytes: Bytes) -> Result<(), StoreError> {
        let mut writer = self.create(name).await?;
        writer.write(bytes).await?;
        writer.finish().await.map(|_length| ())
    }

    async fn read(&self, name: &BlobName, range: Range<u64>) -> Result<Bytes, StoreError> {
        check_range(name, &range)?;
        let (path, name) = (self.path(name), name.clone());
        blocking(move || {
            let failed = |error| object_error("reading", &name, error);
            let file = fs::File::open(&path).map_err(failed)?;
            let found = file.metadata().map_err(failed)?;
            if !found.is_file() {
                return Err(StoreError::NotFound { name });
            }
            let end = range.end.min(found.len());
            let length = end.saturating_sub(range.start) as usize;
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    async fn size(&self, name: &BlobName) -> Result<u64, StoreError> {
        let (path, name) = (self.path(name), name.clone());
        blocking(move || match fs::metadata(&path) {
            Ok(found) if found.is_file() => Ok(found.len()),
            Ok(_) => Err(StoreError::NotFound { name }),
            Err(error) => Err(object_error("looking at", &name, error)),
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobEntry>, StoreError> {
        let (shared, prefix, after) = (Arc::clone(&self.shared), prefix.to_owned(), after.cloned());
        blocking(move || list::list(&shared.root, &prefix, after.as_ref(), limit.min(LIST_ENTRIES_MAX))).await
    }

    async fn delete(&self, name: &BlobName) -> Result<(), StoreError> {
        let (path, name) = (self.path(name), name.clone());
        blocking(move || {
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                return Err(StoreError::NotFound { name });
            }
            fs::remove_file(&path).map_err(|error| object_error("deleting", &name, error))?;
            // A deletion that a crash undoes is done again by the next prune; but it should not come back at will.
            match path.parent() {
                Some(folder) => sync_folder(folder).map_err(|error| object_error("deleting", &name, error)),
                None => Ok(()),
            }
        })
        .await
    }

    async fn lock(&self, name: &BlobName, owner: &LockOwner) -> Result<Box<dyn StoreLock>, StoreError> {
        let (shared, name, owner) = (Arc::clone(&self.shared), name.clone(), owner.clone());
        let held = blocking(move || lock::take(&shared, &name, &owner)).await?;
        Ok(Box::new(held))
    }

    fn describe(&self) -> String {
        format!("folder {}", self.shared.root.display())
    }
}

/// Runs file system calls off the reactor.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down.
            Err(cancelled) => {
                Err(StoreError::Failed { action: "using", what: "the folder".to_owned(), source: Box::new(cancelled) })
            }
        },
    }
}

pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

pub(crate) fn object_error(action: &'static str, name: &BlobName, error: io::Error) -> StoreError {
    match error.kind() {
        // A file where a folder should be: nothing can be below it.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StoreError::NotFound { name: name.clone() },
        _ => io_error(action, name, error),
    }
}

pub(crate) fn io_error(action: &'static str, what: impl std::fmt::Display, source: io::Error) -> StoreError {
    let what = what.to_string();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace { action, what, source },
        io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { action, what, source },
        io::ErrorKind::PermissionDenied => StoreError::Denied {
            action,
            what,
            remedy: "give the user that runs dynavault read and write access to the vault's folder and all below it"
                .to_owned(),
            source: Box::new(source),
        },
        _ => StoreError::Failed { action, what, source: Cause::from(source) },
    }
}

/// A place where no folder can be is a matter of configuration; everything else is the disk's.
fn no_folder(action: &'static str, root: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::NotFound => unusable(root, &error.to_string()),
        _ => io_error(action, root.display(), error),
    }
}

fn unusable(root: &Path, reason: &str) -> StoreError {
    StoreError::Location {
        text: root.display().to_string(),
        reason: reason.to_owned(),
        remedy: "check that the disk of the vault is mounted, and vault.url".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynavault_model::Diagnose;

    #[test]
    fn a_full_or_read_only_disk_is_said_plainly_with_a_remedy() {
        let of = |kind: io::ErrorKind| io_error("writing", "a/b", io::Error::from(kind));
        let full = of(io::ErrorKind::StorageFull);
        assert_eq!(full.to_string(), "no space left while writing a/b");
        assert!(full.remedy().is_some_and(|remedy| remedy.contains("free space")));
        assert!(matches!(of(io::ErrorKind::QuotaExceeded), StoreError::NoSpace { .. }));
        assert!(matches!(of(io::ErrorKind::ReadOnlyFilesystem), StoreError::ReadOnly { .. }));
        assert!(matches!(of(io::ErrorKind::PermissionDenied), StoreError::Denied { .. }));
        assert!(matches!(of(io::ErrorKind::Other), StoreError::Failed { .. }));
    }
}
