//! The one thread that owns the connection. Callers send it closures and wait for the answer.

use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::CatalogError;
use crate::migrate::{VERSION, migrate};

/// Calls waiting for the thread; callers beyond that wait in turn.
const QUEUE_MAX: usize = 64;
/// How long a statement waits for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

/// The catalog. Cheap to clone; the thread ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Catalog {
    work: SyncSender<Work>,
}

impl Catalog {
    /// Opens the file, makes it if it is not there, and brings it to the newest version.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let shown = path.display().to_string();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| CatalogError::Folder { path: shown.clone(), source })?;
        }
        let open = |source| CatalogError::Open { path: shown.clone(), source };
        let mut connection = Connection::open(path).map_err(open)?;
        // Links and row ids are nobody else's business; SQLite gives its side files the mode of the file.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .map_err(|source| CatalogError::Folder { path: shown.clone(), source })?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(open)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
        // A checkpoint must survive power loss: the next run trusts it.
        connection.pragma_update(None, "synchronous", "FULL").map_err(open)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(open)?;
        if let Some(found) = migrate(&mut connection).map_err(open)? {
            return Err(CatalogError::TooNew { path: shown, found, known: VERSION });
        }
        let (work, queue) = sync_channel::<Work>(QUEUE_MAX);
        std::thread::Builder::new()
            .name("catalog".into())
            .spawn(move || {
                for work in queue {
                    work(&mut connection);
                }
            })
            .map_err(|source| CatalogError::Folder { path: shown, source })?;
        Ok(Self { work })
    }

    /// Runs `work` in one transaction on the catalog's thread. Not cancelled when the caller is: the transaction ends either way.
    pub(crate) async fn transact<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let (answer, result) = oneshot::channel();
        let mut item: Option<Work> = Some(Box::new(move |connection: &mut Connection| {
            let outcome = (|| {
                // Immediate: two processes that both mean to write queue up instead of failing half-way.
                let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })();
            // The caller may have gone; the work is done all the same.
            drop(answer.send(outcome));
        }));
        // The queue is short and its thread never waits for us, so the send seldom blocks; it must not block the reactor.
        while let Some(work) = item.take() {
            match self.work.try_send(work) {
                Ok(()) => {}
                Err(std::sync::mpsc::TrySendError::Full(work)) => {
                    item = Some(work);
                    tokio::task::yield_now().await;
                }
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => return Err(CatalogError::Closed),
            }
        }
        match result.await {
            Ok(outcome) => outcome.map_err(|source| CatalogError::Statement { what, source }),
            Err(_) => Err(CatalogError::Closed),
        }
    }
}
