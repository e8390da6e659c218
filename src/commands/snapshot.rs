//! `snapshot list`, `snapshot show`.

use super::{Outcome, engine, environment, wanted};
use crate::args::{Global, When};
use crate::{exit, print};

pub(super) async fn list(named: Option<String>, global: &Global) -> Outcome {
    let engine = engine(global)?;
    let lines = engine.snapshots(named.as_deref()).await?;
    if global.json {
        print::json(&lines);
        return Ok(exit::DONE);
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            vec![
                line.environment.clone(),
                line.snapshot.to_string(),
                line.created.to_string(),
                line.tables.map(print::count).unwrap_or_default(),
                line.rows.map(print::count).unwrap_or_default(),
                match line.whole {
                    Some(true) => "complete",
                    Some(false) => "with holes",
                    None => "cannot be read here",
                }
                .to_string(),
            ]
        })
        .collect();
    print::table(&["environment", "snapshot", "committed", ">tables", ">rows", "state"], &rows);
    Ok(exit::DONE)
}

pub(super) async fn show(named: Option<String>, when: &When, global: &Global) -> Outcome {
    let engine = engine(global)?;
    let environment = environment(&engine, named)?;
    let manifest = engine.manifest(&environment, &wanted(when)?).await?;
    if global.json {
        print::json(&manifest);
        return Ok(exit::DONE);
    }
    print::data(&format!(
        "snapshot {} of {}, committed {}, rows read from {} to {}",
        manifest.snapshot,
        manifest.environment,
        manifest.created,
        manifest.window.first_read,
        manifest.window.last_read
    ));
    let word = |value: serde_json::Result<serde_json::Value>| {
        value.ok().and_then(|value| value.as_str().map(str::to_string)).unwrap_or_default()
    };
    let rows: Vec<Vec<String>> = manifest
        .tables
        .iter()
        .map(|table| {
            let stored: u64 = table.segments.iter().map(|segment| segment.bytes_stored).sum();
            vec![
                table.table.clone(),
                word(serde_json::to_value(table.status)),
                word(serde_json::to_value(table.mode)),
                print::count(table.live_rows),
                table.segments.len().to_string(),
                print::bytes(stored),
                table.coverage.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    print::table(&["table", "status", "mode", ">rows", ">segments", ">stored", "note"], &rows);
    for refused in &manifest.refused {
        print::data(&format!("refused: {}: {}", refused.table, refused.refusal.reason));
    }
    if !manifest.excluded.is_empty() {
        print::data(&format!("excluded: {}", manifest.excluded.join(", ")));
    }
    if !manifest.gone.is_empty() {
        print::data(&format!("gone since the snapshot before: {}", manifest.gone.join(", ")));
    }
    Ok(exit::DONE)
}
