//! A host that may only write to its vault: it can neither list nor read, so what it knows it has from its catalog. It
//! must notice when the configuration names another vault.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use dynavault_catalog::Catalog;
use dynavault_engine::SystemClock;
use dynavault_model::{
    Call, Clock, ContentColumn, ContentEnd, ContentItem, EnvironmentIdentity, Observer, PageEnd, PageRequest, Row,
    RowSource, RunId, RunReport, Scan, SharedContentSink, SharedSink, SourceError, TableEvent, TableListing, TableMode,
    TableSchema, Tally,
};
use dynavault_pipeline::{BackupOptions, BackupParts, EnvironmentRun, MemoryBudget, SegmentLimits};
use dynavault_store::{BlobEntry, BlobName, BlobStore, BlobWriter, LockOwner, MemoryStore, StoreError, StoreLock};
use dynavault_vault::{Identities, Recipients, Vault, generate_key};
use tokio_util::sync::CancellationToken;

/// A store without the rights to read and list.
#[derive(Debug)]
struct WriteOnly {
    address: &'static str,
    inner: MemoryStore,
}

impl WriteOnly {
    fn new(address: &'static str) -> Arc<Self> {
        Arc::new(Self { address, inner: MemoryStore::new() })
    }
}

fn denied(action: &'static str, what: &str) -> StoreError {
    StoreError::Denied { action, what: what.to_string(), remedy: String::new(), source: "status 403".into() }
}

#[async_trait]
impl BlobStore for WriteOnly {
    async fn create(&self, name: &BlobName) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.inner.create(name).await
    }

    async fn put(&self, name: &BlobName, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put(name, bytes).await
    }

    async fn read(&self, name: &BlobName, _range: Range<u64>) -> Result<Bytes, StoreError> {
        Err(denied("reading", name.as_str()))
    }

    async fn size(&self, name: &BlobName) -> Result<u64, StoreError> {
        Err(denied("reading", name.as_str()))
    }

    async fn list(&self, prefix: &str, _after: Option<&BlobName>, _limit: usize) -> Result<Vec<BlobEntry>, StoreError> {
        Err(denied("listing", prefix))
    }

    async fn delete(&self, name: &BlobName) -> Result<(), StoreError> {
        Err(denied("deleting", name.as_str()))
    }

    async fn lock(&self, name: &BlobName, owner: &LockOwner) -> Result<Box<dyn StoreLock>, StoreError> {
        self.inner.lock(name, owner).await
    }

    fn describe(&self) -> String {
        self.address.to_string()
    }
}

/// One tracked table of three rows, of which nothing ever changes.
struct Accounts;

fn schema() -> TableSchema {
    serde_json::from_value(serde_json::json!({
        "table": {"platform": "ce", "name": "account"}, "entity_set": "accounts", "key": ["accountid"],
        "columns": [], "content": [], "tracked": true, "page_rows_max": 5000, "definition": null
    }))
    .unwrap()
}

#[async_trait]
impl RowSource for Accounts {
    async fn identity(&self, _call: &Call) -> Result<EnvironmentIdentity, SourceError> {
        Ok(serde_json::from_value(serde_json::json!({"organization_id": "o", "user_id": "u"})).unwrap())
    }

    async fn discover(&self, call: &Call) -> Result<Vec<TableListing>, SourceError> {
        Ok(vec![self.rediscover(&schema(), call).await?])
    }

    async fn rediscover(&self, table: &TableSchema, _call: &Call) -> Result<TableListing, SourceError> {
        Ok(TableListing { table: table.table.clone(), schema: Ok(table.clone()) })
    }

    async fn read_page(
        &self,
        _table: &TableSchema,
        page: &PageRequest,
        sink: SharedSink,
        _call: &Call,
    ) -> Result<PageEnd, SourceError> {
        let whole = matches!(page, PageRequest::First { .. });
        tokio::task::spawn_blocking(move || {
            let mut members = Vec::new();
            for number in 0..if whole { 3 } else { 0 } {
                let json = format!("{{\"accountid\":\"00000000-0000-0000-0000-00000000000{number}\"}}");
                assert!(matches!(dynavault_model::scan(json.as_bytes(), &mut members), Ok(Scan::Complete { .. })));
                sink.lock().unwrap().row(&Row::new(json.as_bytes(), &members)).unwrap();
            }
        })
        .await
        .unwrap();
        Ok(PageEnd { delta: Some("https://o/changes".into()), ..PageEnd::default() })
    }

    async fn is_live(&self, _table: &TableSchema, _key: &str, _call: &Call) -> Result<bool, SourceError> {
        Ok(true)
    }

    async fn read_content(
        &self,
        _table: &TableSchema,
        _column: &ContentColumn,
        _item: &ContentItem,
        _sink: SharedContentSink,
        _call: &Call,
    ) -> Result<ContentEnd, SourceError> {
        Ok(ContentEnd::default())
    }

    async fn approximate_rows(&self, _tables: &[TableSchema], _call: &Call) -> Result<Vec<(String, u64)>, SourceError> {
        Ok(Vec::new())
    }

    fn service_time(&self) -> Option<jiff::Timestamp> {
        None
    }
}

#[derive(Default)]
struct Notices(Mutex<Vec<String>>);

impl Observer for Notices {
    fn event(&self, event: TableEvent) {
        if let TableEvent::Notice { message, .. } = event {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        }
    }
}

/// The host: a folder with a catalog and state files, and the public key it encrypts to.
struct Host<'a> {
    folder: &'a Path,
    recipient: String,
}

impl Host<'_> {
    async fn prepare(&self, store: &Arc<WriteOnly>) -> (EnvironmentRun, Arc<Notices>) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let recipients = Recipients::parse(std::slice::from_ref(&self.recipient)).unwrap();
        let store = Arc::clone(store) as Arc<dyn BlobStore>;
        let keys = Identities::default();
        let vault = Vault::open_or_create(store, recipients, keys, Arc::clone(&clock), "test").await.unwrap();
        let notices = Arc::new(Notices::default());
        let limits = SegmentLimits::default();
        let options = BackupOptions {
            environment: "prod".into(),
            run: RunId::new(clock.as_ref()),
            started: clock.now(),
            resumed_from: None,
            included: Arc::new(|_| true),
            selected: None,
            full: false,
            rebase: false,
            files: true,
            budget: MemoryBudget::divide(256, 1, &limits),
            limits,
            tool: "test".into(),
        };
        let parts = BackupParts {
            source: Arc::new(Accounts),
            vault,
            catalog: Catalog::open(&self.folder.join("catalog.db")).unwrap(),
            clock,
            observer: Arc::clone(&notices) as Arc<dyn Observer>,
            state_folder: self.folder.join("state"),
            tally: Arc::new(Tally::default()),
            cancel: CancellationToken::new(),
            lock_held: Arc::new(|| true),
        };
        (EnvironmentRun::new(parts, options), notices)
    }

    async fn backup(&self, store: &Arc<WriteOnly>) -> (RunReport, Vec<String>) {
        let (run, notices) = self.prepare(store).await;
        let report = Box::pin(run.run()).await.unwrap();
        assert_eq!(report.tables[0].live_rows, 3);
        (report, std::mem::take(&mut *notices.0.lock().unwrap()))
    }

    async fn planned(&self, store: &Arc<WriteOnly>) -> TableMode {
        let (run, _) = self.prepare(store).await;
        Box::pin(run.plan()).await.unwrap()[0].mode.clone().unwrap().mode
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_cannot_look_notices_another_vault_by_its_address_and_stores_everything_there() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host { folder: folder.path(), recipient: generate_key().1 };
    let (one, other) = (WriteOnly::new("vault one"), WriteOnly::new("vault other"));
    assert_eq!(host.backup(&one).await.0.tables[0].mode, TableMode::Full);
    let (report, notices) = host.backup(&one).await;
    assert_eq!((report.tables[0].mode, notices), (TableMode::Delta, Vec::new()));

    // A dry run predicts it, and changes nothing that the host knows of the first vault.
    assert_eq!(host.planned(&other).await, TableMode::Full);
    assert_eq!(host.planned(&one).await, TableMode::Delta);

    let (report, notices) = host.backup(&other).await;
    assert_eq!((report.tables[0].mode, report.tables[0].rows_stored), (TableMode::Full, 3));
    assert!(notices[0].contains("vault other") && notices[0].contains("vault one"), "{notices:?}");
    assert!(one.inner.list("environments/prod/manifests/", None, 10).await.unwrap().len() == 2);
    assert!(other.inner.list("environments/prod/manifests/", None, 10).await.unwrap().len() == 1);
    let (report, notices) = host.backup(&other).await;
    assert_eq!((report.tables[0].mode, notices), (TableMode::Delta, Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tracked_table_whose_state_is_lost_is_stored_in_full_and_counted_right() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host { folder: folder.path(), recipient: generate_key().1 };
    let store = WriteOnly::new("vault one");
    host.backup(&store).await;
    std::fs::remove_dir_all(folder.path().join("state")).unwrap();
    assert_eq!(host.planned(&store).await, TableMode::Full);
    let (report, _) = host.backup(&store).await;
    let account = &report.tables[0];
    assert_eq!((account.mode, account.rows_stored, account.live_rows), (TableMode::Full, 3, 3));
    assert!(account.reason.as_ref().unwrap().contains("all are stored again"), "{account:?}");
    assert_eq!(host.backup(&store).await.0.tables[0].mode, TableMode::Delta);
}
