//! What every store has to do, as one suite that all of them pass. It panics on the first difference.

use std::sync::Arc;

use bytes::Bytes;

use crate::{BlobName, BlobStore, LockOwner, READ_BYTES_MAX, StoreError};

/// Length of the object that is written in many chunks; more than two staged blocks of Azure.
const LARGE_BYTES: usize = 9 * 1024 * 1024 + 17;

/// Runs the suite; each part gets a store of its own from `make`, which must be empty.
pub async fn run(make: impl AsyncFn() -> Arc<dyn BlobStore>) {
    objects_are_created_once(&*make().await).await;
    nothing_is_visible_before_finish(&*make().await).await;
    ranges_end_where_the_object_ends(&*make().await).await;
    large_objects_keep_their_bytes(&*make().await).await;
    two_writers_make_one_object(&*make().await).await;
    listing_is_sorted_and_complete(&*make().await).await;
    unusual_names_are_kept(&*make().await).await;
    missing_objects_are_said_to_be_missing(&*make().await).await;
    a_lock_has_one_holder(&*make().await).await;
}

fn name(text: &str) -> BlobName {
    BlobName::new(text).expect("the suite uses valid names")
}

/// Bytes without a period that a swapped or repeated block could hide in.
fn pattern(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

async fn names(store: &dyn BlobStore, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let after = after.map(name);
    let entries = store.list(prefix, after.as_ref(), limit).await.expect("listing works");
    entries.into_iter().map(|entry| entry.name.to_string()).collect()
}

async fn objects_are_created_once(store: &dyn BlobStore) {
    let one = name("a/b/one.json");
    store.put(&one, Bytes::from_static(b"first")).await.expect("a new object can be put");
    assert_eq!(store.size(&one).await.expect("it has a size"), 5);
    let again = store.put(&one, Bytes::from_static(b"second")).await;
    assert!(matches!(again, Err(StoreError::AlreadyExists { name }) if name == one), "a second put is refused");
    let late = async {
        let mut writer = store.create(&one).await?;
        writer.write(Bytes::from_static(b"third")).await?;
        writer.finish().await
    };
    assert!(matches!(late.await, Err(StoreError::AlreadyExists { .. })), "a second writer is refused");
    assert_eq!(store.read(&one, 0..100).await.expect("it can be read"), "first");
    store.put(&name("a/empty"), Bytes::new()).await.expect("an object may be empty");
    assert_eq!(store.read(&name("a/empty"), 0..10).await.expect("empty objects can be read"), "");
    assert_eq!(store.size(&name("a/empty")).await.expect("it has a size"), 0);
}

async fn nothing_is_visible_before_finish(store: &dyn BlobStore) {
    let target = name("seg/x.zst");
    let mut writer = store.create(&target).await.expect("a writer starts");
    writer.write(pattern(6 * 1024 * 1024)).await.expect("chunks are taken");
    assert!(matches!(store.size(&target).await, Err(StoreError::NotFound { .. })));
    assert!(names(store, "", None, 10).await.is_empty(), "an unfinished object is not listed");
    drop(writer);
    assert!(matches!(store.size(&target).await, Err(StoreError::NotFound { .. })), "dropping abandons");
    assert!(names(store, "", None, 10).await.is_empty(), "an abandoned object is not listed");
    let writer = store.create(&target).await.expect("the name is free again");
    assert_eq!(writer.finish().await.expect("an empty object can be finished"), 0);
    assert_eq!(store.size(&target).await.expect("it is there"), 0);
}

async fn ranges_end_where_the_object_ends(store: &dyn BlobStore) {
    let target = name("r");
    store.put(&target, Bytes::from_static(b"0123456789")).await.expect("put works");
    for (range, expected) in
        [(0..10, "0123456789"), (0..4, "0123"), (3..5, "34"), (8..100, "89"), (10..12, ""), (50..60, ""), (4..4, "")]
    {
        assert_eq!(store.read(&target, range.clone()).await.expect("a range can be read"), expected, "{range:?}");
    }
    let long = store.read(&target, 0..READ_BYTES_MAX + 1).await;
    assert!(matches!(long, Err(StoreError::ReadTooLong { .. })), "a read has a limit");
}

async fn large_objects_keep_their_bytes(store: &dyn BlobStore) {
    let bytes = pattern(LARGE_BYTES);
    let target = name("large/object");
    let mut writer = store.create(&target).await.expect("a writer starts");
    let mut rest = bytes.clone();
    for length in [1, 70_000, 5 * 1024 * 1024, 0, 4 * 1024 * 1024 - 70_001, usize::MAX] {
        writer.write(rest.split_to(length.min(rest.len()))).await.expect("chunks are taken");
    }
    assert_eq!(writer.finish().await.expect("it can be finished"), LARGE_BYTES as u64);
    assert_eq!(store.size(&target).await.expect("it has a size"), LARGE_BYTES as u64);
    let start = store.read(&target, 0..READ_BYTES_MAX).await.expect("its start can be read");
    let end = store.read(&target, READ_BYTES_MAX..READ_BYTES_MAX * 2).await.expect("its end can be read");
    assert!(start == bytes[..start.len()] && end == bytes[start.len()..], "the bytes are those written");
}

async fn two_writers_make_one_object(store: &dyn BlobStore) {
    let target = name("race");
    let mut first = store.create(&target).await.expect("a writer starts");
    let mut second = store.create(&target).await.expect("another writer starts");
    let (one, two) = (pattern(5 * 1024 * 1024), pattern(6 * 1024 * 1024));
    first.write(one.clone()).await.expect("chunks are taken");
    second.write(two).await.expect("chunks are taken");
    first.finish().await.expect("the first to finish wins");
    assert!(matches!(second.finish().await, Err(StoreError::AlreadyExists { .. })), "the other is refused");
    assert_eq!(store.size(&target).await.expect("it has a size"), one.len() as u64);
    assert_eq!(store.read(&target, 0..READ_BYTES_MAX).await.expect("it can be read"), one);
}

async fn listing_is_sorted_and_complete(store: &dyn BlobStore) {
    // `-` and `.` sort before `/`, `0` after it: folders must not disturb the order of full names.
    let mut expected = vec!["a-b", "a.b", "a/1", "a/2/x", "a/2/y", "a/2-z", "a/3", "a0", "b/1", "top"];
    for text in expected.iter().rev() {
        store.put(&name(text), Bytes::from_static(b"xy")).await.expect("put works");
    }
    expected.sort_unstable();
    assert_eq!(names(store, "", None, 100).await, expected);
    let mut paged: Vec<String> = Vec::new();
    loop {
        let page = names(store, "", paged.last().map(String::as_str), 3).await;
        let last = page.len() < 3;
        paged.extend(page);
        if last {
            break;
        }
    }
    assert_eq!(paged, expected, "pages join without gap or repetition");
    assert_eq!(names(store, "a/", None, 100).await, ["a/1", "a/2-z", "a/2/x", "a/2/y", "a/3"]);
    assert_eq!(names(store, "a/2", None, 100).await, ["a/2-z", "a/2/x", "a/2/y"]);
    assert_eq!(names(store, "a/", Some("a/2/x"), 2).await, ["a/2/y", "a/3"]);
    assert_eq!(names(store, "a/", Some("a/2-zz"), 1).await, ["a/2/x"]);
    assert_eq!(names(store, "b", Some("a/3"), 10).await, ["b/1"]);
    assert!(names(store, "a", Some("b"), 10).await.is_empty());
    assert!(names(store, "nothing/here", None, 10).await.is_empty());
    assert!(names(store, "", None, 0).await.is_empty());
    let sizes = store.list("top", None, 1).await.expect("listing works");
    assert_eq!(sizes[0].size, 2);
    store.delete(&name("a/2/x")).await.expect("an object can be deleted");
    assert_eq!(names(store, "a/2", None, 100).await, ["a/2-z", "a/2/y"]);
    store.put(&name("a/2/x"), Bytes::new()).await.expect("the name is free again");
}

async fn unusual_names_are_kept(store: &dyn BlobStore) {
    let mut odd = vec!["sp ace/%20", "q?u=1&a#b", "plus+co,mma;", "quo\"te'<>|*:", "(par){en}[s]~^`$@!="];
    for text in &odd {
        store.put(&name(text), Bytes::copy_from_slice(text.as_bytes())).await.expect("put works");
    }
    odd.sort_unstable();
    assert_eq!(names(store, "", None, 100).await, odd);
    for text in odd {
        assert_eq!(store.read(&name(text), 0..100).await.expect("it can be read"), text);
    }
}

async fn missing_objects_are_said_to_be_missing(store: &dyn BlobStore) {
    store.put(&name("folder/object"), Bytes::new()).await.expect("put works");
    for text in ["missing", "folder", "folder/missing", "folder/object/below"] {
        let missing = name(text);
        let is_missing =
            |error: Option<StoreError>| matches!(error, Some(StoreError::NotFound { name }) if name == missing);
        assert!(is_missing(store.size(&missing).await.err()), "size of {text}");
        assert!(is_missing(store.read(&missing, 0..1).await.err()), "read of {text}");
        assert!(is_missing(store.read(&missing, 0..0).await.err()), "empty read of {text}");
        assert!(is_missing(store.delete(&missing).await.err()), "delete of {text}");
    }
}

async fn a_lock_has_one_holder(store: &dyn BlobStore) {
    let lock_name = name("environments/e/lock");
    let (one, two) = (LockOwner::new("one", "host one"), LockOwner::new("two", "host two"));
    let held = store.lock(&lock_name, &one).await.expect("a free lock can be taken");
    assert!(!held.lost());
    match store.lock(&lock_name, &two).await {
        Err(StoreError::Busy { name, holder }) => {
            assert!(name == lock_name && holder.contains("host one"), "the holder is named: {holder}");
        }
        other => panic!("a held lock is busy, not {other:?}"),
    }
    let other = store.lock(&name("environments/f/lock"), &two).await.expect("another lock is free");
    other.release().await;
    held.release().await;
    let held = store.lock(&lock_name, &two).await.expect("a released lock can be taken");
    held.release().await;
}
