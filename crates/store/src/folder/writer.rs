//! Writing one file so that it is there whole or not at all.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tracing::{debug, info};

use crate::folder::{FOLDER_MODE, Shared, blocking, io_error, object_error, sync_folder};
use crate::{BlobName, BlobWriter, StoreError};

pub(crate) const FILE_MODE: u32 = 0o600;
const PARTIAL_FOLDER: &str = "tmp";
const PARTIAL_START: &str = ".partial-";
/// Partial files of this age are removed at the start, if nobody holds them.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Partial files looked at in one start; more are left to the next one.
const PARTIALS_SWEPT_MAX: usize = 10_000;
/// Folders remembered as durable. A vault has hundreds; beyond this, some are flushed again.
const DURABLE_FOLDERS_MAX: usize = 10_000;

/// Folders whose entry in their parent is known to be on the disk.
///
/// A new file is durable only if all folders above it are. Another process may have made one and not flushed it yet, so
/// each process flushes each parent once.
#[derive(Debug, Default)]
pub(crate) struct DurableFolders(Mutex<HashSet<PathBuf>>);

impl DurableFolders {
    /// Makes `folder` and those above it, down from `root`, and puts them on the disk.
    fn ensure(&self, root: &Path, folder: &Path) -> io::Result<()> {
        if folder == root || self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(folder) {
            return Ok(());
        }
        let Some(parent) = folder.parent() else { return Ok(()) };
        self.ensure(root, parent)?;
        match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_folder(parent)?,
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= DURABLE_FOLDERS_MAX {
            known.clear();
        }
        known.insert(folder.to_owned());
        Ok(())
    }

    fn forget(&self, folder: &Path) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| !known.starts_with(folder));
    }
}

/// Writes one object.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    name: BlobName,
    partial: Partial,
    /// Away while a write is under way; gone for good if that write was abandoned.
    file: Option<File>,
    length: u64,
}

/// A partial file; removed when dropped, unless it was published.
struct Partial {
    path: PathBuf,
    published: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
        {
            debug!(error = %error, "could not remove a partial file, a later start will");
        }
    }
}

impl Writer {
    pub(crate) fn start(shared: Arc<Shared>, name: BlobName) -> Result<Self, StoreError> {
        let failed = |error| io_error("creating", &name, error);
        let folder = shared.root.join(PARTIAL_FOLDER);
        let nonce = getrandom::u64().map_err(|error| failed(io::Error::other(error)))?;
        let path = folder.join(format!("{PARTIAL_START}{}-{nonce:016x}", std::process::id()));
        let open = || OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                shared.durable.forget(&folder);
                shared.durable.ensure(&shared.root, &folder).map_err(failed)?;
                open()
            }
            other => other,
        };
        let file = file.map_err(failed)?;
        // Says to others that the file is alive. File systems without locks have the age limit alone.
        if let Err(error) = file.try_lock() {
            debug!(error = %error, "the file system has no locks");
        }
        let partial = Partial { path, published: false };
        Ok(Self { shared, name, partial, file: Some(file), length: 0 })
    }

    fn take_file(&mut self) -> Result<File, StoreError> {
        self.file.take().ok_or_else(|| {
            io_error("writing", &self.name, io::Error::other("an earlier write was abandoned or failed"))
        })
    }
}

#[async_trait]
impl BlobWriter for Writer {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let mut file = self.take_file()?;
        let name = self.name.clone();
        let length = chunk.len() as u64;
        let written = blocking(move || match file.write_all(&chunk) {
            Ok(()) => Ok(file),
            Err(error) => Err(io_error("writing", &name, error)),
        });
        self.file = Some(written.await?);
        self.length += length;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<u64, StoreError> {
        let file = self.take_file()?;
        blocking(move || {
            let failed = |error| io_error("writing", &self.name, error);
            file.sync_all().map_err(failed)?;
            let target = self.shared.path(&self.name);
            let folder = target.parent().unwrap_or(&self.shared.root);
            self.shared.durable.ensure(&self.shared.root, folder).map_err(failed)?;
            let moved = match publish(&self.partial.path, &target) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Somebody removed the folder since it was made.
                    self.shared.durable.forget(folder);
                    self.shared.durable.ensure(&self.shared.root, folder).map_err(failed)?;
                    publish(&self.partial.path, &target)
                }
                other => other,
            };
            match moved {
                Ok(()) => self.partial.published = true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::AlreadyExists { name: self.name.clone() });
                }
                Err(error) => return Err(failed(error)),
            }
            sync_folder(folder).map_err(|error| object_error("writing", &self.name, error))?;
            Ok(self.length)
        })
        .await
    }
}

/// Moves the file without replacing anything. After it, `from` is gone or will be by the next start.
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Old kernels and some network file systems cannot; a hard link does not replace either.
        Err(Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => publish_by_link(from, to),
        Err(error) => Err(error.into()),
    }
}

fn publish_by_link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    if let Err(error) = fs::remove_file(from) {
        debug!(error = %error, "could not remove a published partial file, a later start will");
    }
    Ok(())
}

/// Removes partial files that nobody holds and that are older than a day. Failing to is no reason not to start.
pub(crate) fn sweep_partials(root: &Path, now: Timestamp) {
    let Ok(entries) = fs::read_dir(root.join(PARTIAL_FOLDER)) else { return };
    for entry in entries.take(PARTIALS_SWEPT_MAX).flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PARTIAL_START) {
            continue;
        }
        let modified =
            entry.metadata().and_then(|found| found.modified()).ok().and_then(|t| Timestamp::try_from(t).ok());
        let age = modified.and_then(|modified| Duration::try_from(now.duration_since(modified)).ok());
        if age.is_none_or(|age| age < PARTIAL_AGE_MAX) {
            continue;
        }
        let abandoned = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if abandoned && fs::remove_file(entry.path()).is_ok() {
            info!("removed a partial file of a crashed run");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_publishing_never_replace() {
        for way in [publish, publish_by_link] {
            let folder = tempfile::tempdir().unwrap();
            let (from, to) = (folder.path().join("from"), folder.path().join("to"));
            fs::write(&from, "new").unwrap();
            way(&from, &to).unwrap();
            assert!(!from.exists());
            fs::write(&from, "newer").unwrap();
            assert_eq!(way(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(&to).unwrap(), "new");
        }
    }
}
