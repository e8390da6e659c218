//! One run at a time per environment on this machine.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dynavault_model::{FaultKind, RunId};

use crate::failure::Failure;

/// Ending of the name of the lock that restores take: a backup may go on beside a restore.
pub(crate) const RESTORE: &str = ".restore";

/// Times the lock is tried. Whoever asks whether it is held ([`LocalLock::is_held`]) holds it for a moment.
const TRIES: u32 = 5;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// One run per environment on this machine: a lock on a file beside the state files. The system gives it up with the process.
pub(crate) struct LocalLock {
    pub(crate) id: String,
    _file: File,
}

impl LocalLock {
    /// Takes the lock called `name` beside the state folder `folder`; `what` says what holds it.
    pub(crate) async fn take(folder: &Path, name: &str, what: &'static str) -> Result<Self, Failure> {
        let (folder, name) = (folder.to_path_buf(), name.to_string());
        let taken = tokio::task::spawn_blocking(move || Self::take_blocking(&folder, &name, what)).await;
        taken.unwrap_or_else(|error| Err(Failure::new(FaultKind::Failed, error.to_string(), None)))
    }

    fn path(folder: &Path, name: &str) -> PathBuf {
        folder.parent().unwrap_or(folder).join(format!("{name}.lock"))
    }

    /// Whether a process holds the lock. Where that cannot be told, one does.
    pub(crate) fn is_held(folder: &Path, name: &str) -> bool {
        match File::open(Self::path(folder, name)) {
            // Shared: two who ask do not take each other for a holder.
            Ok(file) => file.try_lock_shared().is_err(),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        }
    }

    fn take_blocking(folder: &Path, name: &str, what: &str) -> Result<Self, Failure> {
        let path = Self::path(folder, name);
        let parent = path.parent().unwrap_or(folder);
        let failed = |error: std::io::Error| {
            Failure::new(
                FaultKind::Failed,
                format!("could not use the state folder {}: {error}", parent.display()),
                Some("check that the disk is not full and the folder of the catalog may be written".into()),
            )
        };
        std::fs::create_dir_all(parent).map_err(failed)?;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let mut tried = file.try_lock();
        for _ in 1..TRIES {
            if !matches!(tried, Err(TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(PAUSE);
            tried = file.try_lock();
        }
        match tried {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(
                    FaultKind::Busy,
                    format!("another {what} environment {} is running on this machine", name.trim_end_matches(RESTORE)),
                    Some("wait for it, or see `dynavault run list`".into()),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut id = String::new();
        std::io::Read::read_to_string(&mut file, &mut id).map_err(failed)?;
        if id.trim().is_empty() {
            id = RunId::new(&crate::SystemClock::new()).to_string();
            std::io::Write::write_all(&mut file, id.as_bytes()).map_err(failed)?;
        }
        Ok(Self { id: id.trim().to_string(), _file: file })
    }
}
