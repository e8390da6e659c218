//! Objects as block blobs in Azure, through the official SDK (decision 0001).
//!
//! - Small objects are one conditional request; larger ones are staged in blocks and become visible with one conditional
//!   commit ([`writer`]).
//! - Each upload carries a checksum that the service verifies ([`checksum`]).
//! - The SDK neither retries nor signs in: [`retry`] and [`policy`] do, under our clock.
//! - A create whose answer was lost and whose repetition finds an object is settled by comparing.

mod checksum;
mod fault;
mod lease;
mod policy;
mod retry;
mod writer;

use std::fmt;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::http::policies::Policy;
use azure_core::http::{ClientOptions, RetryOptions, Transport};
use azure_storage_blob::models::{
    BlobClientDownloadOptions, BlobClientGetPropertiesResultHeaders, BlobClientUploadOptions,
    BlobContainerClientListBlobsOptions,
};
use azure_storage_blob::{BlobClient, BlobContainerClient, BlobContainerClientOptions};
use bytes::Bytes;
use dynavault_identity::redact::url_for_message;
use dynavault_identity::transport::{HttpTransport, TransportOptions, is_loopback};
use dynavault_identity::{ExposeSecret, SecretString, TokenSource};
use dynavault_model::Clock;
use futures::StreamExt;

pub use crate::azure::retry::RetryLimits;

use crate::azure::fault::{Class, denial_remedy};
use crate::azure::policy::{Bearer, Checksum, SharedKey};
use crate::azure::retry::{Failure, Retrier};
use crate::azure::writer::Writer;
use crate::port::check_range;
use crate::{
    AzureLocation, BlobEntry, BlobName, BlobStore, BlobWriter, LIST_ENTRIES_MAX, LockOwner, NAME_BYTES_MAX,
    READ_BYTES_MAX, StoreError, StoreLock,
};

/// Scope of tokens for blob storage, the same in every cloud (`entra` protocol, section 1.1).
pub const STORAGE_SCOPE: &str = "https://storage.azure.com/.default";

/// Bytes of a staged block; objects up to this length are one request.
pub(crate) const BLOCK_BYTES: usize = 4 * 1024 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence while a reply is awaited, the upload of a block included: 4 MiB pass in this time at 0.5 Mbit/s.
const READ_TIMEOUT: Duration = Duration::from_secs(90);
/// The longest replies are reads and pages of 5,000 listed objects.
const REPLY_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Pages of one listing that bring nothing new before it is given up as broken.
const IDLE_PAGES_MAX: usize = 10_000;

/// How requests to the blob service are authorised.
#[derive(Debug, Clone)]
pub enum AzureAuth {
    /// A SAS, with or without its leading `?`.
    Sas(SecretString),
    /// Tokens for [`STORAGE_SCOPE`].
    Token(Arc<dyn TokenSource>),
    /// The account's key, in base64. For the emulator and tests.
    AccountKey(SecretString),
}

/// A store in Azure Blob.
#[derive(Clone)]
pub struct AzureStore {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    container: BlobContainerClient,
    location: AzureLocation,
    retrier: Retrier,
    sas: bool,
}

impl fmt::Debug for AzureStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureStore").field("location", &self.shared.location).finish_non_exhaustive()
    }
}

impl AzureStore {
    /// Prepares the store; sends nothing yet.
    pub fn new(
        location: AzureLocation,
        auth: AzureAuth,
        limits: RetryLimits,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let mut url = location.container_url();
        let shown = url_for_message(&url);
        let unusable = |reason: String, remedy: &str| StoreError::Location {
            text: shown.clone(),
            reason,
            remedy: remedy.to_owned(),
        };
        let mut policies: Vec<Arc<dyn Policy>> = vec![Arc::new(Checksum)];
        let (mut bearer, mut sas) = (None, false);
        match auth {
            AzureAuth::Sas(token) => {
                let query = token.expose_secret().trim().trim_start_matches('?');
                if !query.split('&').any(|pair| pair.starts_with("sig=")) {
                    return Err(unusable("its SAS has no signature".into(), "paste the whole SAS, including sig=…"));
                }
                url.set_query(Some(query));
                sas = true;
            }
            AzureAuth::Token(source) => {
                let policy = Arc::new(Bearer::new(source));
                policies.push(policy.clone());
                bearer = Some(policy);
            }
            AzureAuth::AccountKey(key) => {
                policies.push(Arc::new(SharedKey::new(location.account.clone(), key, Arc::clone(&clock))));
            }
        }
        let transport = HttpTransport::new(TransportOptions {
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: READ_TIMEOUT,
            reply_bytes_max: REPLY_BYTES_MAX,
            proxy: !is_loopback(&url),
            redirect_to_loopback: None,
        })
        .map_err(|error| unusable(error.to_string(), "install root certificates on this host"))?;
        let client_options = ClientOptions {
            per_try_policies: policies,
            retry: RetryOptions::none(),
            transport: Some(Transport::new(transport)),
            ..ClientOptions::default()
        };
        let options = BlobContainerClientOptions { client_options, ..BlobContainerClientOptions::default() };
        let container = BlobContainerClient::new(url, None, Some(options))
            .map_err(|_| unusable("it is no URL of a container".into(), "check vault.url and vault.endpoint"))?;
        let retrier = Retrier { clock, limits, bearer, location: shown };
        Ok(Self { shared: Arc::new(Shared { container, location, retrier, sas }) })
    }

    /// Creates the container; one that exists is left as it is. Needs rights on the account, which backups do not.
    pub async fn create_container(&self) -> Result<(), StoreError> {
        let shared = &self.shared;
        let created = shared.retrier.run("creating", &shared.location.container, || {
            let container = &shared.container;
            async move { container.create(None).await.map(|_| ()) }
        });
        match created.await {
            Ok(()) | Err(Failure::Answer { class: Class::Exists, .. }) => Ok(()),
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::Answer { class, cause, .. }) => {
                Err(shared.other_error(class, cause, "creating", format!("container {}", shared.location.container)))
            }
        }
    }
}

impl Shared {
    fn full_name(&self, name: &str) -> String {
        match self.location.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    pub(crate) fn blob(&self, name: &BlobName) -> Result<BlobClient, StoreError> {
        let full = self.full_name(name.as_str());
        if full.len() > NAME_BYTES_MAX {
            let name = name.as_str().chars().take(100).collect();
            return Err(StoreError::Name { name, reason: "with the vault's folder it is longer than 1024 bytes" });
        }
        Ok(self.container.blob_client(&full))
    }

    /// The error of a failure that is not special to the operation.
    pub(crate) fn error(&self, failure: Failure, action: &'static str, name: &BlobName) -> StoreError {
        let (class, cause) = match failure {
            Failure::Final(error) => return error,
            Failure::Answer { class, cause, .. } => (class, cause),
        };
        match class {
            Class::Missing => StoreError::NotFound { name: name.clone() },
            Class::Exists => StoreError::AlreadyExists { name: name.clone() },
            Class::Leased => StoreError::Busy { name: name.clone(), holder: "another process".to_owned() },
            class => self.other_error(class, cause, action, name.to_string()),
        }
    }

    /// As [`Self::error`], for creating: what is missing then is the container, not the object.
    pub(crate) fn write_error(&self, failure: Failure, name: &BlobName) -> StoreError {
        match failure {
            Failure::Answer { class: Class::Missing, cause, .. } => {
                self.other_error(Class::NoContainer, cause, "writing", name.to_string())
            }
            failure => self.error(failure, "writing", name),
        }
    }

    fn other_error(&self, class: Class, source: crate::Cause, action: &'static str, what: String) -> StoreError {
        match class {
            Class::NoContainer => StoreError::Location {
                text: self.retrier.location.clone(),
                reason: "there is no such container".to_owned(),
                remedy: format!(
                    "create the container {} in account {}",
                    self.location.container, self.location.account
                ),
            },
            Class::Denied(code) => StoreError::Denied { action, what, remedy: denial_remedy(&code, self.sas), source },
            Class::Unauthorized => {
                StoreError::Denied { action, what, remedy: denial_remedy("AuthenticationFailed", self.sas), source }
            }
            Class::SignIn(refused) => StoreError::SignIn { source: Box::new(refused) },
            _ => StoreError::Failed { action, what, source },
        }
    }

    /// Creates an object of at most [`BLOCK_BYTES`] in one request.
    pub(crate) async fn put_small(self: &Arc<Self>, name: &BlobName, bytes: Bytes) -> Result<(), StoreError> {
        let blob = self.blob(name)?;
        let created = self.retrier.run("writing", name.as_str(), || {
            let (blob, body) = (&blob, bytes.clone());
            async move {
                let options = BlobClientUploadOptions {
                    parallel: NonZero::new(1),
                    // More than the body, so that the SDK sends it in one piece.
                    partition_size: NonZero::new(2 * BLOCK_BYTES as u64),
                    ..BlobClientUploadOptions::default()
                };
                blob.upload(body.into(), Some(options.if_not_exists())).await.map(|_| ())
            }
        });
        match created.await {
            Ok(()) => Ok(()),
            Err(Failure::Answer { class: Class::Exists, cause, ambiguous: true }) => {
                match self.read_range(name, 0..READ_BYTES_MAX).await {
                    Ok(found) if found == bytes => Ok(()),
                    Ok(_) => Err(StoreError::AlreadyExists { name: name.clone() }),
                    Err(StoreError::Denied { .. }) => Err(StoreError::Unsettled { name: name.clone(), source: cause }),
                    Err(error) => Err(error),
                }
            }
            Err(Failure::Answer { class: Class::Exists, .. }) => match self.length(name).await {
                // Blocks that were staged and never committed; the emulator takes them for an object. A commit
                // is not confused by them.
                Err(StoreError::NotFound { .. }) => Writer::put_staged(Arc::clone(self), name.clone(), bytes).await,
                Ok(_) | Err(StoreError::Denied { .. }) => Err(StoreError::AlreadyExists { name: name.clone() }),
                Err(error) => Err(error),
            },
            Err(failure) => Err(self.write_error(failure, name)),
        }
    }

    async fn length(&self, name: &BlobName) -> Result<u64, StoreError> {
        let blob = self.blob(name)?;
        let properties = self.retrier.run("looking at", name.as_str(), || {
            let blob = &blob;
            async move { blob.get_properties(None).await?.content_length() }
        });
        let length = properties.await.map_err(|failure| self.error(failure, "looking at", name))?;
        length.ok_or_else(|| StoreError::Failed {
            action: "looking at",
            what: name.to_string(),
            source: "the answer has no length".into(),
        })
    }

    pub(crate) async fn read_range(&self, name: &BlobName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let blob = self.blob(name)?;
        let read = self.retrier.run("reading", name.as_str(), || {
            let (blob, range) = (&blob, range.clone());
            async move {
                let options = BlobClientDownloadOptions {
                    range: Some(range.into()),
                    // One request: a range is never longer than a part.
                    parallel: NonZero::new(1),
                    partition_size: NonZero::new(READ_BYTES_MAX as usize),
                    ..BlobClientDownloadOptions::default()
                };
                blob.download(Some(options)).await?.body.collect().await
            }
        });
        match read.await {
            Ok(bytes) => Ok(bytes),
            Err(Failure::Answer { class: Class::PastEnd, .. }) => Ok(Bytes::new()),
            Err(failure) => Err(self.error(failure, "reading", name)),
        }
    }

    async fn list_page(
        &self,
        prefix: &str,
        start_from: Option<&str>,
        marker: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<(String, u64)>, Option<String>), StoreError> {
        let listed = self.retrier.run("listing", prefix, || {
            let options = BlobContainerClientListBlobsOptions {
                prefix: Some(prefix.to_owned()),
                start_from: start_from.filter(|_| marker.is_none()).map(str::to_owned),
                marker: marker.map(str::to_owned),
                maxresults: i32::try_from(limit).ok(),
                ..BlobContainerClientListBlobsOptions::default()
            };
            let container = &self.container;
            async move {
                let mut pages = container.list_blobs(Some(options))?.into_pages();
                let Some(page) = pages.next().await else { return Ok((Vec::new(), None)) };
                let page = page?.into_model()?;
                let entries = page.blob_items.into_iter().filter_map(|item| {
                    let size = item.properties.and_then(|properties| properties.content_length).unwrap_or(0);
                    item.name.map(|name| (name, size))
                });
                Ok((entries.collect(), page.next_marker.filter(|marker| !marker.is_empty())))
            }
        });
        match listed.await {
            Ok(page) => Ok(page),
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::Answer { class, cause, .. }) => {
                // A missing container is reported as such; nothing else can be missing here.
                Err(self.other_error(class, cause, "listing", format!("{prefix}*")))
            }
        }
    }
}

#[async_trait]
impl BlobStore for AzureStore {
    async fn create(&self, name: &BlobName) -> Result<Box<dyn BlobWriter>, StoreError> {
        // No look whether the object exists: that would cost a request and the read right.
        Ok(Box::new(Writer::new(Arc::clone(&self.shared), name.clone())?))
    }

    async fn put(&self, name: &BlobName, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.len() <= BLOCK_BYTES {
            return self.shared.put_small(name, bytes).await;
        }
        let mut writer = self.create(name).await?;
        writer.write(bytes).await?;
        writer.finish().await.map(|_length| ())
    }

    async fn read(&self, name: &BlobName, range: Range<u64>) -> Result<Bytes, StoreError> {
        check_range(name, &range)?;
        if range.is_empty() {
            // The service has no empty ranges; but a missing object is still an error.
            return self.size(name).await.map(|_size| Bytes::new());
        }
        self.shared.read_range(name, range).await
    }

    async fn size(&self, name: &BlobName) -> Result<u64, StoreError> {
        self.shared.length(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobEntry>, StoreError> {
        let shared = &self.shared;
        let limit = limit.min(LIST_ENTRIES_MAX);
        let after_text = after.map_or("", BlobName::as_str);
        if limit == 0 || (after_text > prefix && !after_text.starts_with(prefix)) {
            return Ok(Vec::new());
        }
        let own = match shared.location.prefix.as_str() {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let full_prefix = format!("{own}{prefix}");
        // Starts with the object itself, which is dropped below. A service that ignores it sends the earlier ones,
        // too, and they are dropped as well.
        let start_from = after.filter(|name| name.as_str().starts_with(prefix)).map(|name| format!("{own}{name}"));
        let mut entries: Vec<BlobEntry> = Vec::new();
        let mut marker: Option<String> = None;
        for _page in 0..IDLE_PAGES_MAX {
            let wanted = (limit - entries.len() + 1).min(LIST_ENTRIES_MAX);
            let (page, next) = shared.list_page(&full_prefix, start_from.as_deref(), marker.as_deref(), wanted).await?;
            for (full, size) in page {
                // What cannot be a name is not ours.
                let Some(Ok(name)) = full.strip_prefix(&own).map(BlobName::new) else { continue };
                if name.as_str() > after_text {
                    entries.push(BlobEntry { name, size });
                }
            }
            if entries.len() >= limit {
                entries.truncate(limit);
                return Ok(entries);
            }
            match next {
                Some(next) if Some(&next) != marker.as_ref() => marker = Some(next),
                _ => return Ok(entries),
            }
        }
        Err(StoreError::Failed {
            action: "listing",
            what: format!("{prefix}*"),
            source: format!("the service sent more than {IDLE_PAGES_MAX} pages for one").into(),
        })
    }

    async fn delete(&self, name: &BlobName) -> Result<(), StoreError> {
        let shared = &self.shared;
        let blob = shared.blob(name)?;
        let deleted = shared.retrier.run("deleting", name.as_str(), || {
            let blob = &blob;
            async move { blob.delete(None).await.map(|_| ()) }
        });
        match deleted.await {
            Ok(()) | Err(Failure::Answer { class: Class::Missing, ambiguous: true, .. }) => Ok(()),
            Err(failure) => Err(shared.error(failure, "deleting", name)),
        }
    }

    async fn lock(&self, name: &BlobName, owner: &LockOwner) -> Result<Box<dyn StoreLock>, StoreError> {
        Ok(Box::new(lease::take(Arc::clone(&self.shared), name.clone(), owner).await?))
    }

    fn describe(&self) -> String {
        match self.shared.location.prefix.as_str() {
            "" => self.shared.retrier.location.clone(),
            prefix => format!("{}/{prefix}", self.shared.retrier.location),
        }
    }
}
