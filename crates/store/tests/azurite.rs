//! The Azure store against the emulator.
//!
//! Runs when `DYNAVAULT_AZURITE` holds the emulator's blob endpoint, e.g. `http://127.0.0.1:10000/devstoreaccount1`; says
//! that it was skipped otherwise. Start one with `azurite-blob --inMemoryPersistence --disableTelemetry`.

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use azure_core::credentials::Secret;
use azure_core::hmac::hmac_sha256;
use azure_storage_blob::models::BlockBlobClientStageBlockOptions;
use azure_storage_blob::{BlockBlobClient, BlockBlobClientOptions};
use bytes::Bytes;
use dynavault_identity::SecretString;
use dynavault_model::{Clock, Diagnose, FaultKind, chain};
use dynavault_store::{
    AzureAuth, AzureLocation, AzureStore, BlobName, BlobStore, LockOwner, RetryLimits, StoreError, VaultLocation,
    conformance, parse_vault_url,
};
use jiff::Timestamp;
use url::Url;

/// The emulator's well-known account and key (Azurite documentation).
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

struct SystemClock(Instant);

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

fn endpoint() -> Option<String> {
    let endpoint = std::env::var("DYNAVAULT_AZURITE").ok();
    if endpoint.is_none() {
        eprintln!("skipped: DYNAVAULT_AZURITE is not set");
    }
    endpoint
}

fn location(endpoint: &str, container: &str, prefix: &str) -> AzureLocation {
    let url = format!("azblob://{ACCOUNT}/{container}/{prefix}");
    match parse_vault_url(&url, Some(endpoint)).unwrap() {
        VaultLocation::Azure(location) => location,
        VaultLocation::Folder(_) => unreachable!("the URL names a container"),
    }
}

fn store(location: AzureLocation, auth: AzureAuth) -> AzureStore {
    AzureStore::new(location, auth, RetryLimits::default(), Arc::new(SystemClock(Instant::now()))).unwrap()
}

fn key() -> AzureAuth {
    AzureAuth::AccountKey(SecretString::from(KEY))
}

/// A container of this run's own.
async fn container(endpoint: &str, purpose: &str) -> String {
    let name = format!("{purpose}-{:x}", Timestamp::now().as_nanosecond());
    store(location(endpoint, &name, ""), key()).create_container().await.unwrap();
    name
}

/// An account SAS with the given rights ("Create an account SAS", Azure Storage REST documentation).
fn sas(rights: &str, hours: i64) -> AzureAuth {
    let expiry = (Timestamp::now() + jiff::SignedDuration::from_hours(hours)).strftime("%Y-%m-%dT%H:%M:%SZ");
    let version = "2021-12-02";
    let text = format!("{ACCOUNT}\n{rights}\nb\nsco\n\n{expiry}\n\n\n{version}\n\n");
    let signature = hmac_sha256(&text, &Secret::new(KEY)).unwrap();
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("sv", version).append_pair("ss", "b").append_pair("srt", "sco").append_pair("sp", rights);
    query.append_pair("se", &expiry.to_string()).append_pair("sig", &signature);
    AzureAuth::Sas(SecretString::from(format!("?{}", query.finish())))
}

fn name(text: &str) -> BlobName {
    BlobName::new(text).unwrap()
}

#[tokio::test]
async fn azure_behaves_like_every_store() {
    let Some(endpoint) = endpoint() else { return };
    let count = AtomicU32::new(0);
    let container = container(&endpoint, "conformance").await;
    conformance::run(async || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        Arc::new(store(location(&endpoint, &container, &format!("vaults/{number}")), key())) as Arc<dyn BlobStore>
    })
    .await;
    conformance::run(async || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let auth = sas("rwdlac", 1);
        Arc::new(store(location(&endpoint, &container, &format!("vaults/{number}")), auth)) as Arc<dyn BlobStore>
    })
    .await;
}

#[tokio::test]
async fn a_whole_container_can_be_the_vault() {
    let Some(endpoint) = endpoint() else { return };
    let container = container(&endpoint, "whole").await;
    let store = store(location(&endpoint, &container, ""), key());
    store.put(&name("a/b"), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(store.list("a/", None, 10).await.unwrap()[0].name, name("a/b"));
    assert_eq!(store.describe(), format!("{endpoint}/{container}"));
}

#[tokio::test]
async fn rights_to_create_and_write_suffice_for_capture() {
    let Some(endpoint) = endpoint() else { return };
    let container = container(&endpoint, "writeonly").await;
    let store = store(location(&endpoint, &container, "v"), sas("cw", 1));
    store.put(&name("small"), Bytes::from_static(b"x")).await.unwrap();
    let mut writer = store.create(&name("large")).await.unwrap();
    writer.write(Bytes::from(vec![7; 9 << 20])).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), 9 << 20);
    let twice = store.put(&name("small"), Bytes::from_static(b"y")).await;
    assert!(matches!(twice, Err(StoreError::AlreadyExists { .. })), "{twice:?}");
    let held = store.lock(&name("lock"), &LockOwner::new("me", "me")).await.unwrap();
    held.release().await;
    for error in [
        store.read(&name("small"), 0..1).await.unwrap_err(),
        store.list("", None, 1).await.unwrap_err(),
        store.delete(&name("small")).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
        assert_eq!(error.kind(), FaultKind::SignIn);
        assert!(error.remedy().unwrap().contains("create, write, list and read"), "{}", error.remedy().unwrap());
    }
}

#[tokio::test]
async fn a_wrong_or_expired_sas_is_said_at_once_and_never_shown() {
    let Some(endpoint) = endpoint() else { return };
    let container = container(&endpoint, "wrong").await;
    let wrong = AzureAuth::Sas(SecretString::from("sv=2021-12-02&ss=b&srt=sco&sp=rwl&se=2999-01-01&sig=U0VDUkVU"));
    for auth in [wrong, sas("rwl", -1)] {
        let store = store(location(&endpoint, &container, "v"), auth);
        let error = store.put(&name("x"), Bytes::new()).await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
        let shown = format!("{} {error:?} {store:?} {}", chain(&error), store.describe());
        assert!(!shown.contains("U0VDUkVU") && !shown.contains("sig="), "{shown}");
        assert!(error.remedy().unwrap().contains("SAS"), "{}", error.remedy().unwrap());
    }
}

#[tokio::test]
async fn a_missing_container_is_named() {
    let Some(endpoint) = endpoint() else { return };
    let store = store(location(&endpoint, "nothere", "v"), key());
    for error in [
        store.put(&name("x"), Bytes::new()).await.unwrap_err(),
        store.list("", None, 1).await.unwrap_err(),
        store.size(&name("x")).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Location { .. }), "{error:?}");
        assert!(error.remedy().unwrap().contains("nothere"));
    }
}

#[tokio::test]
async fn an_owner_takes_its_own_lock_again_and_others_wait() {
    let Some(endpoint) = endpoint() else { return };
    let container = container(&endpoint, "locks").await;
    let store = store(location(&endpoint, &container, "v"), key());
    let owner = LockOwner::new("catalog-1", "host a");
    let crashed = store.lock(&name("lock"), &owner).await.unwrap();
    drop(crashed);
    let other = store.lock(&name("lock"), &LockOwner::new("catalog-2", "host b")).await;
    assert!(matches!(other, Err(StoreError::Busy { .. })), "a dropped lock lasts until its lease ends");
    let again = store.lock(&name("lock"), &owner).await.unwrap();
    assert!(!again.lost());
    assert!(matches!(store.delete(&name("lock")).await, Err(StoreError::Busy { .. })));
    again.release().await;
    store.delete(&name("lock")).await.unwrap();
}

#[tokio::test]
async fn listing_goes_on_over_pages_of_the_service() {
    let Some(endpoint) = endpoint() else { return };
    let container = container(&endpoint, "pages").await;
    let store = store(location(&endpoint, &container, "v"), key());
    let expected: Vec<_> = (0..30).map(|number| name(&format!("p/{number:03}"))).collect();
    for object in &expected {
        store.put(object, Bytes::new()).await.unwrap();
    }
    let mut seen: Vec<BlobName> = Vec::new();
    loop {
        let page = store.list("p/", seen.last(), 7).await.unwrap();
        seen.extend(page.iter().map(|entry| entry.name.clone()));
        if page.len() < 7 {
            break;
        }
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn the_service_refuses_a_block_that_does_not_fit_its_checksum() {
    let Some(endpoint) = endpoint() else { return };
    let container = container(&endpoint, "crc").await;
    let AzureAuth::Sas(query) = sas("rwdlac", 1) else { unreachable!("it is a SAS") };
    let query = dynavault_identity::ExposeSecret::expose_secret(&query).to_owned();
    let url = Url::parse(&format!("{endpoint}/{container}/b{query}")).unwrap();
    let blob = BlockBlobClient::new(url, None, Some(BlockBlobClientOptions::default())).unwrap();
    let stage = async |checksum: u64| {
        let options = BlockBlobClientStageBlockOptions {
            transactional_content_crc64: Some(checksum.to_le_bytes().to_vec()),
            ..BlockBlobClientStageBlockOptions::default()
        };
        blob.stage_block(b"00000001", 9, Bytes::from_static(b"123456789").into(), Some(options)).await.map(|_| ())
    };
    stage(0xae8b_1486_0a79_9888).await.unwrap();
    assert!(stage(1).await.is_err());
}
