//! The folder store on a real file system.

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dynavault_model::{Clock, Diagnose, FaultKind};
use dynavault_store::{BlobName, BlobStore, FolderStore, LockOwner, MissingRoot, StoreError, conformance};
use jiff::Timestamp;
use tokio::task::JoinSet;

/// A clock of today that is some time ahead.
struct Ahead(Duration);

#[async_trait]
impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::now() + self.0
    }

    fn elapsed(&self) -> Duration {
        self.0
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

async fn open_ahead(root: &Path, ahead: Duration) -> FolderStore {
    FolderStore::open(root, MissingRoot::Create, Arc::new(Ahead(ahead))).await.unwrap()
}

async fn open(root: &Path) -> FolderStore {
    open_ahead(root, Duration::ZERO).await
}

fn name(text: &str) -> BlobName {
    BlobName::new(text).unwrap()
}

fn partials(root: &Path) -> usize {
    fs::read_dir(root.join("tmp")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_folder_behaves_like_every_store() {
    let scratch = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    conformance::run(async || {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Arc::new(open(&scratch.path().join(format!("deep/er/{number}"))).await) as Arc<dyn BlobStore>
    })
    .await;
}

#[tokio::test]
async fn a_missing_folder_is_not_made_unless_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("not-mounted");
    let refused = FolderStore::open(&root, MissingRoot::Refuse, Arc::new(Ahead(Duration::ZERO))).await.unwrap_err();
    assert!(refused.remedy().unwrap().contains("mounted"));
    assert_eq!(refused.kind(), FaultKind::Usage);
    assert!(!root.exists());
    let store = open(&root).await;
    fs::remove_dir_all(&root).unwrap();
    assert!(store.put(&name("x"), Bytes::new()).await.is_err(), "a store that vanished is not made anew");
    assert!(!root.exists());
    fs::write(&root, "a file").unwrap();
    assert!(FolderStore::open(&root, MissingRoot::Create, Arc::new(Ahead(Duration::ZERO))).await.is_err());
}

#[tokio::test]
async fn many_writers_of_one_name_make_one_object() {
    let scratch = tempfile::tempdir().unwrap();
    let store = open(scratch.path()).await;
    let mut writers = JoinSet::new();
    for number in 0..32_u8 {
        let store = store.clone();
        writers.spawn(async move {
            let bytes = Bytes::from(vec![number; 1000]);
            (number, store.put(&name("a/b/c"), bytes).await)
        });
    }
    let mut winners = Vec::new();
    for (number, result) in writers.join_all().await {
        match result {
            Ok(()) => winners.push(number),
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    let [winner] = winners[..] else { panic!("{winners:?}") };
    assert_eq!(store.read(&name("a/b/c"), 0..2000).await.unwrap(), vec![winner; 1000]);
    assert_eq!(partials(scratch.path()), 0, "the losers leave nothing behind");
}

#[tokio::test]
async fn files_are_for_the_owner_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let store = open(&scratch.path().join("vault")).await;
    store.put(&name("a/b"), Bytes::from_static(b"x")).await.unwrap();
    let mode = |path: &str| fs::metadata(scratch.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("vault"), mode("vault/a"), mode("vault/a/b")), (0o700, 0o700, 0o600));
}

#[tokio::test]
async fn what_a_crash_left_is_removed_after_a_day_unless_somebody_writes_it() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = open(root).await;
    let mut writer = store.create(&name("alive")).await.unwrap();
    writer.write(Bytes::from_static(b"half")).await.unwrap();
    File::create(root.join("tmp/.partial-1-crashed")).unwrap();
    File::create(root.join("tmp/of-somebody-else")).unwrap();
    open_ahead(root, Duration::from_secs(23 * 3600)).await;
    assert_eq!(partials(root), 3, "young ones stay");
    open_ahead(root, Duration::from_secs(25 * 3600)).await;
    assert!(!root.join("tmp/.partial-1-crashed").exists());
    assert_eq!(partials(root), 2, "the one being written and the foreign file stay");
    writer.finish().await.unwrap();
    assert_eq!(store.size(&name("alive")).await.unwrap(), 4);
}

#[tokio::test]
async fn two_processes_cannot_hold_one_lock_and_a_closed_one_is_free() {
    let scratch = tempfile::tempdir().unwrap();
    let (one, two) = (open(scratch.path()).await, open(scratch.path()).await);
    let owner = LockOwner::new("id", "host a, process 1");
    let held = one.lock(&name("lock"), &owner).await.unwrap();
    let busy = two.lock(&name("lock"), &owner).await.unwrap_err();
    assert!(busy.to_string().starts_with("lock is locked by host a, process 1 since 2"), "{busy}");
    assert_eq!(busy.kind(), FaultKind::Busy);
    drop(held);
    two.lock(&name("lock"), &owner).await.unwrap().release().await;
}

#[tokio::test]
async fn foreign_files_and_links_are_not_listed() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = open(root).await;
    store.put(&name("a/x"), Bytes::new()).await.unwrap();
    fs::create_dir(root.join(".snapshots")).unwrap();
    fs::write(root.join(".snapshots/x"), "").unwrap();
    fs::write(root.join("a/back\\slash"), "").unwrap();
    fs::write(root.join("a/ümlaut"), "").unwrap();
    std::os::unix::fs::symlink(root, root.join("a/loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("a/dangling")).unwrap();
    let names: Vec<_> = store.list("", None, 100).await.unwrap().into_iter().map(|e| e.name.to_string()).collect();
    assert_eq!(names, ["a/x"]);
}

#[tokio::test]
async fn a_folder_that_may_not_be_written_says_what_to_do() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("v");
    let store = open(&root).await;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o500)).unwrap();
    let result = store.put(&name("x"), Bytes::new()).await;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    // The administrator may write everywhere.
    if let Err(error) = result {
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
        assert!(error.remedy().unwrap().contains("read and write access"));
    }
}
