//! One writer: a lease of a minute on the lock's blob, renewed until it is given up.
//!
//! The lease id is made of the owner's id, so that a process that crashed takes its own lease again at once instead of
//! waiting for its end. The blob says who holds it. When renewals fail the lock counts as lost some seconds before the
//! service would give it to somebody else.

use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use azure_storage_blob::BlobClient;
use azure_storage_blob::models::{BlobClientAcquireLeaseOptions, BlobClientUploadOptions};
use bytes::Bytes;
use dynavault_model::Clock;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

use crate::azure::fault::{Class, classify};
use crate::azure::retry::Failure;
use crate::azure::{BLOCK_BYTES, Shared};
use crate::{BlobName, LockOwner, StoreError, StoreLock};

/// The longest lease that ends by itself.
const LEASE: Duration = Duration::from_secs(60);
const RENEW_EVERY: Duration = Duration::from_secs(20);
/// Pause after a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_secs(3);
/// A lease counts as lost this long before its end, for what is on its way to the service by then.
const LOST_BEFORE: Duration = Duration::from_secs(10);
/// Longest description of a holder, in bytes.
const HOLDER_BYTES_MAX: u64 = 1024;

pub(crate) async fn take(shared: Arc<Shared>, name: BlobName, owner: &LockOwner) -> Result<Held, StoreError> {
    match shared.put_small(&name, Bytes::new()).await {
        // An existing lock blob is the normal case.
        Ok(()) | Err(StoreError::AlreadyExists { .. } | StoreError::Unsettled { .. } | StoreError::Busy { .. }) => {}
        Err(error) => return Err(error),
    }
    let blob = shared.blob(&name)?;
    let id = owner.lease_id();
    let asked_at = shared.retrier.clock.elapsed();
    let acquired = shared.retrier.run("locking", name.as_str(), || {
        let (blob, proposed_lease_id) = (&blob, Some(id.clone()));
        async move {
            let options =
                BlobClientAcquireLeaseOptions { proposed_lease_id, ..BlobClientAcquireLeaseOptions::default() };
            blob.acquire_lease(LEASE.as_secs() as i32, Some(options)).await.map(|_| ())
        }
    });
    match acquired.await {
        Ok(()) => {}
        Err(Failure::Answer { class: Class::Leased | Class::LeaseLost, .. }) => {
            let holder = holder(&shared, &name).await;
            return Err(StoreError::Busy { name, holder });
        }
        Err(failure) => return Err(shared.error(failure, "locking", &name)),
    }
    let renewal = Renewal {
        blob,
        id,
        name,
        clock: Arc::clone(&shared.retrier.clock),
        lost: AtomicBool::new(false),
        renewed_ms: AtomicU64::new(millis(asked_at)),
    };
    let renewal = Arc::new(renewal);
    if let Err(error) = describe_holder(&shared, &renewal, owner).await {
        // Only a courtesy to those who find the lock taken.
        debug!(error = %dynavault_model::chain(&error), "could not write who holds the lock");
    }
    let mut task = JoinSet::new();
    let worker = Arc::clone(&renewal);
    task.spawn(async move { worker.keep().await });
    Ok(Held { renewal, shared, task })
}

async fn describe_holder(shared: &Shared, renewal: &Renewal, owner: &LockOwner) -> Result<(), StoreError> {
    let since = shared.retrier.clock.now();
    // Readers cut it as well, and do not mind half a character.
    let text = format!("{} since {since}\n", owner.description());
    let body = Bytes::from(text);
    let body = body.slice(..body.len().min(HOLDER_BYTES_MAX as usize));
    let written = shared.retrier.run("locking", renewal.name.as_str(), || {
        let options = BlobClientUploadOptions {
            lease_id: Some(renewal.id.clone()),
            parallel: NonZero::new(1),
            partition_size: NonZero::new(BLOCK_BYTES as u64),
            ..BlobClientUploadOptions::default()
        };
        let (blob, body) = (&renewal.blob, body.clone());
        async move { blob.upload(body.into(), Some(options)).await.map(|_| ()) }
    });
    written.await.map_err(|failure| shared.error(failure, "locking", &renewal.name))
}

async fn holder(shared: &Shared, name: &BlobName) -> String {
    match shared.read_range(name, 0..HOLDER_BYTES_MAX).await {
        Ok(text) if !text.is_empty() => String::from_utf8_lossy(&text).replace(char::is_control, " ").trim().to_owned(),
        _ => "another process".to_owned(),
    }
}

/// A held lease.
pub(crate) struct Held {
    renewal: Arc<Renewal>,
    shared: Arc<Shared>,
    task: JoinSet<()>,
}

struct Renewal {
    blob: BlobClient,
    id: String,
    name: BlobName,
    clock: Arc<dyn Clock>,
    lost: AtomicBool,
    /// When the last successful renewal was asked for, in milliseconds of [`Clock::elapsed`].
    renewed_ms: AtomicU64,
}

impl Renewal {
    async fn keep(&self) {
        let mut pause = RENEW_EVERY;
        while !self.is_lost() {
            self.clock.sleep(pause).await;
            let asked_at = self.clock.elapsed();
            // One try at a time: the loop is the retry, and it ends with the lease.
            pause = match self.blob.renew_lease(self.id.clone(), None).await {
                Ok(_) => {
                    self.renewed_ms.store(millis(asked_at), Ordering::Release);
                    RENEW_EVERY
                }
                Err(failed) => {
                    let fault = classify(&failed);
                    if matches!(fault.class, Class::Leased | Class::LeaseLost | Class::Missing | Class::NoContainer) {
                        error!(lock = %self.name, error = %fault.cause, "the lock was lost");
                        self.lost.store(true, Ordering::Release);
                        return;
                    }
                    warn!(lock = %self.name, error = %fault.cause, "could not renew the lock, trying again");
                    RENEW_AGAIN
                }
            };
        }
    }

    /// By the clock as well as by the flag: a process that slept has not noticed anything.
    fn is_lost(&self) -> bool {
        let renewed = Duration::from_millis(self.renewed_ms.load(Ordering::Acquire));
        self.lost.load(Ordering::Acquire)
            || self.clock.elapsed().saturating_sub(renewed) > LEASE.saturating_sub(LOST_BEFORE)
    }
}

fn millis(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("name", &self.renewal.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl StoreLock for Held {
    fn lost(&self) -> bool {
        self.renewal.is_lost()
    }

    async fn release(mut self: Box<Self>) {
        self.task.shutdown().await;
        let (shared, renewal) = (&self.shared, &self.renewal);
        let released = shared.retrier.run("unlocking", renewal.name.as_str(), || {
            let renewal = &renewal;
            async move { renewal.blob.release_lease(renewal.id.clone(), None).await.map(|_| ()) }
        });
        if let Err(failure) = released.await {
            let error = shared.error(failure, "unlocking", &renewal.name);
            warn!(lock = %renewal.name, error = %dynavault_model::chain(&error), "could not give the lock up, it ends within a minute");
        }
    }
}
