//! Plans of files that have other ids than in the snapshot: the bytes decide.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dynavault_restore::{Action, ConflictPolicy};
use serde_json::json;

use crate::fakes::{Planned, Table, World, id, planned_in, snapshot};
use crate::request;

/// More than is compared.
const LARGE: usize = (16 << 20) + 1;

/// One file for each pair of contents; all ids differ.
fn worlds(contents: &[(&[u8], Option<&[u8]>)]) -> (World, World) {
    let widget = Table::new("widget").text("name", 9).file("scan");
    let (mut before, mut now) = (World::new(&[&widget]), World::new(&[&widget]));
    for (n, (was, is)) in contents.iter().enumerate() {
        let n = n as u32 + 1;
        let place = || ("widget".to_string(), id(n), "scan".to_string());
        before.put("widget", n, json!({"name": "A", "scan": format!("was-{n}"), "versionnumber": 1}));
        now.put("widget", n, json!({"name": "A", "scan": format!("is-{n}"), "versionnumber": 2}));
        before.files.insert(place(), was.to_vec());
        if let Some(is) = is {
            now.files.insert(place(), is.to_vec());
        }
    }
    (before, now)
}

/// The plan, and the files that were read for it.
async fn plan(before: &World, now: World, conflict: ConflictPolicy) -> (Planned, u64) {
    let content: Vec<(&str, u32, &str)> = (1..=before.files.len() as u32).map(|n| ("widget", n, "scan")).collect();
    let (vault, manifest) = snapshot(before, &content).await;
    let (now, folder) = (Arc::new(now), tempfile::tempdir().unwrap());
    let plan = planned_in(folder.path(), &vault, manifest, Arc::clone(&now), request(conflict)).await.unwrap();
    // One request reads the table.
    (plan, now.requests.load(Ordering::Relaxed) - 1)
}

fn uploads(plan: &Planned) -> Vec<String> {
    assert!(plan.ops.iter().all(|op| op.action == Action::Upload), "{:?}", plan.short());
    plan.ops.iter().map(|op| op.key.id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_another_id_and_the_same_bytes_is_not_uploaded_again() {
    let same: (&[u8], Option<&[u8]>) = (b"contract", Some(b"contract"));
    let (before, now) = worlds(&[same, same]);
    let (plan, read) = plan(&before, now, ConflictPolicy::Overwrite).await;
    assert!(uploads(&plan).is_empty());
    assert_eq!((plan.summary.counts.unchanged, plan.summary.counts.content, read), (2, 0, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_uploaded_where_its_bytes_differ_or_cannot_be_read() {
    // Shorter, longer, as long, gone.
    let live: [Option<&[u8]>; 4] = [Some(b"con"), Some(b"contract of 2024"), Some(b"contrary"), None];
    let (before, now) = worlds(&live.map(|live| (&b"contract"[..], live)));
    let (plan, _) = plan(&before, now, ConflictPolicy::Overwrite).await;
    assert_eq!(uploads(&plan), [1, 2, 3, 4].map(id));
    assert_eq!((plan.summary.counts.unchanged, plan.summary.counts.content), (0, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_is_not_compared_and_the_plan_says_so() {
    let large = vec![0; LARGE];
    let (before, now) = worlds(&[(&large, Some(&large))]);
    let (plan, read) = plan(&before, now, ConflictPolicy::Overwrite).await;
    assert_eq!((uploads(&plan), read), (vec![id(1)], 0));
    assert!(plan.finding("content-not-compared").contains("16 MiB"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_are_no_conflict_and_others_are_shown() {
    let same: (&[u8], Option<&[u8]>) = (b"contract", Some(b"contract"));
    let other: (&[u8], Option<&[u8]>) = (b"contract", Some(b"contrary"));
    for policy in [ConflictPolicy::FillEmpty, ConflictPolicy::NewerWins] {
        let (before, now) = worlds(&[same, other]);
        let (plan, _) = plan(&before, now, policy).await;
        assert!(uploads(&plan).is_empty());
        assert_eq!((plan.summary.counts.unchanged, plan.summary.counts.conflicts), (1, 1), "{policy:?}");
        assert!(plan.text.contains(r#""column":"scan","snapshot":"was-2","live":"is-2""#), "{}", plan.text);
    }
    let (before, now) = worlds(&[same]);
    let (plan, read) = plan(&before, now, ConflictPolicy::Skip).await;
    assert_eq!((plan.summary.counts.conflicts, read), (1, 0), "nothing is read where nothing would be written");
}
