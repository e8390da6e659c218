//! One writer: an advisory lock of the operating system on the lock's file.
//!
//! The system gives it back when the process ends, however it ends. The file stays and says who held it last; removing
//! it would let two processes hold locks on two files of one name.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use async_trait::async_trait;

use crate::folder::writer::FILE_MODE;
use crate::folder::{FOLDER_MODE, Shared, io_error};
use crate::{BlobName, LockOwner, StoreError, StoreLock};

/// Longest description of a holder, in bytes.
const HOLDER_BYTES_MAX: u64 = 1024;

#[derive(Debug)]
pub(crate) struct Held {
    /// The lock lasts as long as the file is open.
    _file: File,
}

pub(crate) fn take(shared: &Shared, name: &BlobName, owner: &LockOwner) -> Result<Held, StoreError> {
    let failed = |error| io_error("locking", name, error);
    let path = shared.path(name);
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(failed)?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = Vec::new();
            let described = (&mut file).take(HOLDER_BYTES_MAX).read_to_end(&mut holder).is_ok() && !holder.is_empty();
            let holder = if described {
                String::from_utf8_lossy(&holder).replace(char::is_control, " ").trim().to_owned()
            } else {
                "another process".to_owned()
            };
            return Err(StoreError::Busy { name: name.clone(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let since = shared.clock.now();
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{} since {since}", owner.description()).map_err(failed)?;
    Ok(Held { _file: file })
}

#[async_trait]
impl StoreLock for Held {
    fn lost(&self) -> bool {
        false
    }

    async fn release(self: Box<Self>) {}
}
