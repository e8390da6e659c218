//! From finished tables to a snapshot: the manifest, last, and then the catalog.
//!
//! The manifest's bytes are fixed in the catalog before they go to the vault. A crash in between is healed by putting the same
//! bytes again: the store creates or says that they are there, and either way the snapshot exists.

use std::collections::HashMap;
use std::path::PathBuf;

use dynavault_catalog::{Catalog, Committed, Prepared, StateFile, TableSummary};
use dynavault_model::{Clock, SegmentId};
use dynavault_vault::{Manifest, PreparedManifest, VaultWriter};

use crate::error::PipelineError;
use crate::state;
use crate::table_run::{Captured, blocking};

/// The kebab-case word of a unit enum.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_string)).unwrap_or_default()
}

/// What the catalog records of a committed manifest.
pub fn committed(manifest: &Manifest, encrypted: bool, sha256: &str) -> Committed {
    Committed {
        snapshot: manifest.snapshot,
        run: manifest.run,
        created: manifest.created,
        whole: manifest.is_whole(),
        encrypted,
        sha256: sha256.to_string(),
        manifest: serde_json::to_string(manifest).unwrap_or_default(),
        tables: manifest
            .tables
            .iter()
            .map(|table| TableSummary {
                table: table.table.clone(),
                status: word(&table.status),
                mode: word(&table.mode),
                captured_by: table.captured_by,
                live_rows: table.live_rows,
                last_read: table.window.last_read,
                token: table.delta.as_ref().map(|token| (token.link.clone(), token.time)),
                segments: table
                    .segments
                    .iter()
                    .map(|info| {
                        (info.id, word(&info.kind), info.rows, info.bytes_raw, info.bytes_stored, info.sha256.clone())
                    })
                    .collect(),
            })
            .collect(),
    }
}

/// Commits a manifest and ends the draft.
pub(crate) async fn commit(
    catalog: &Catalog,
    vault: &VaultWriter,
    manifest: &Manifest,
    state: Vec<StateFile>,
) -> Result<(), PipelineError> {
    let object = vault.prepare(manifest)?;
    let prepared = Prepared {
        manifest: serde_json::to_string(&(manifest, state_names(&state))).unwrap_or_default(),
        object: object.bytes.clone(),
        encrypted: object.encrypted,
        sha256: object.sha256.clone(),
    };
    catalog.prepare_commit(&manifest.environment, prepared).await?;
    vault.commit(&object).await?;
    let committed = committed(manifest, object.encrypted, &object.sha256);
    catalog.commit_snapshot(&manifest.environment, committed, state).await?;
    Ok(())
}

type StateNames = Vec<(String, String, String, u64)>;

fn state_names(state: &[StateFile]) -> StateNames {
    state.iter().map(|file| (file.table.clone(), file.kind.clone(), file.file.clone(), file.entries)).collect()
}

/// Completes a commit that a crash broke off; gives the manifest.
pub(crate) async fn complete(
    catalog: &Catalog,
    vault: &VaultWriter,
    prepared: &Prepared,
) -> Result<Manifest, PipelineError> {
    let (manifest, state): (Manifest, StateNames) = serde_json::from_str(&prepared.manifest)
        .map_err(|error| PipelineError::Broken { what: format!("the prepared manifest ({error})") })?;
    let object = PreparedManifest {
        snapshot: manifest.snapshot,
        encrypted: prepared.encrypted,
        bytes: prepared.object.clone(),
        sha256: prepared.sha256.clone(),
    };
    vault.commit(&object).await?;
    let state =
        state.into_iter().map(|(table, kind, file, entries)| StateFile { table, kind, file, entries }).collect();
    let committed = committed(&manifest, prepared.encrypted, &prepared.sha256);
    catalog.commit_snapshot(&manifest.environment, committed, state).await?;
    Ok(manifest)
}

/// State files of the new snapshot: those of the tables that were captured, and the old ones of the rest.
pub(crate) async fn next_state(
    clock: &dyn Clock,
    folder: &std::path::Path,
    manifest: &Manifest,
    captured: &HashMap<String, Captured>,
    before: &[StateFile],
) -> Result<Vec<StateFile>, PipelineError> {
    let mut next = Vec::new();
    for table in &manifest.tables {
        let Some(done) = captured.get(&table.table) else {
            next.extend(before.iter().filter(|file| file.table == table.table).cloned());
            continue;
        };
        let kinds = [
            ("rows", &done.progress.base, &done.progress.run_files),
            ("content", &done.progress.base_content, &done.progress.content_files),
        ];
        for (kind, base, runs) in kinds {
            let names = base.iter().flatten().chain(runs);
            let mut files: Vec<StateFile> = names
                .map(|name| StateFile { table: table.table.clone(), kind: kind.into(), file: name.clone(), entries: 0 })
                .collect();
            if files.len() > state::FILES_MAX {
                let name = format!("{}.state", SegmentId::new(clock));
                let from: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.file)).collect();
                let into = folder.join(&name);
                let entries = blocking(move || Ok(state::fold(&from, &into)?)).await?;
                files = vec![StateFile { table: table.table.clone(), kind: kind.into(), file: name, entries }];
            }
            if files.is_empty() && kind == "rows" {
                // An empty table has a state too: one without rows.
                let name = format!("{}.state", SegmentId::new(clock));
                let into = folder.join(&name);
                blocking(move || Ok(state::write_file(&into, &[])?)).await?;
                files.push(StateFile { table: table.table.clone(), kind: kind.into(), file: name, entries: 0 });
            }
            next.extend(files);
        }
    }
    Ok(next)
}
