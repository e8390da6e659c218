//! From the ends of all tables to the manifest and the report.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dynavault_model::{
    EnvironmentIdentity, Refusal, RunKind, RunReport, RunStatus, SnapshotId, TableEvent, TableMode, TableReport,
    TableSchema, TableStatus,
};
use dynavault_vault::{Coverage, CutWindow, FORMAT, Manifest, RefusedTable, SegmentInfo, TableManifest};
use jiff::Timestamp;

use crate::commit;
use crate::environment_run::{Ended, EnvironmentRun, Prior};
use crate::error::PipelineError;
use crate::mode;
use crate::progress::sum;
use crate::table_run::Captured;

impl EnvironmentRun {
    #[expect(clippy::too_many_arguments, reason = "everything a manifest is made of")]
    pub(crate) async fn commit(
        &self,
        snapshot: SnapshotId,
        identity: EnvironmentIdentity,
        prior: Prior,
        mut ended: Ended,
        excluded: Vec<String>,
        expected: &HashMap<String, u64>,
        schemas: &HashMap<String, Arc<TableSchema>>,
    ) -> Result<RunReport, PipelineError> {
        let parts = &self.parts;
        parts.observer.event(TableEvent::Committing);
        let before = mode::prior_tables(prior.manifest.as_ref());
        if ended.captured.is_empty() && before.is_empty() {
            let first = ended.failed.values().next().cloned();
            let first = first.or_else(|| ended.refused.first().map(|table| table.refusal.reason.clone()));
            return Err(PipelineError::NothingCaptured {
                environment: self.options.environment.clone(),
                reason: first.unwrap_or_else(|| "there is no table to capture".into()),
            });
        }
        let mut tables = Vec::new();
        for (name, captured) in &ended.captured {
            let prior_table = before.get(name.as_str()).copied();
            let is_new = prior.manifest.as_ref().is_some_and(|prior| !knows(prior, name));
            tables
                .push(self.table_manifest(snapshot, captured, prior_table, is_new, expected.get(name).copied()).await?);
        }
        let now = parts.clock.now();
        for (name, reason) in &ended.failed {
            // The last good state of a failed table stays part of the snapshot, marked as such.
            if let Some(prior_table) = before.get(name.as_str()) {
                let coverage = Coverage { reason: Some(reason.clone()), ..prior_table.coverage.clone() };
                tables.push(TableManifest { status: TableStatus::Failed, coverage, ..(*prior_table).clone() });
            } else {
                let refusal = Refusal { reason: format!("could not be read this time: {reason}"), remedy: None };
                ended.refused.push(RefusedTable { table: name.clone(), refusal });
            }
        }
        for refused in &ended.refused {
            // The same for a table that could be read before: what was captured then is still worth having.
            if let Some(prior_table) = before.get(refused.table.as_str()) {
                let coverage =
                    Coverage { reason: Some(refused.refusal.reason.clone()), ..prior_table.coverage.clone() };
                tables.push(TableManifest { status: TableStatus::Refused, coverage, ..(*prior_table).clone() });
            }
        }
        // Tables that were not asked for this time keep their state; tables that are gone do not.
        let carried: Vec<&TableManifest> =
            excluded.iter().filter_map(|name| before.get(name.as_str()).copied()).collect();
        if self.options.selected.is_some() {
            tables.extend(carried.into_iter().cloned());
        }
        tables.sort_by(|a, b| a.table.cmp(&b.table));
        ended.refused.sort_by(|a, b| a.table.cmp(&b.table));
        let known: HashSet<&str> = tables
            .iter()
            .map(|table| table.table.as_str())
            .chain(ended.refused.iter().map(|table| table.table.as_str()))
            .chain(excluded.iter().map(String::as_str))
            .collect();
        let gone: Vec<String> = before.keys().filter(|name| !known.contains(*name)).map(ToString::to_string).collect();
        let mut report = self.report(snapshot, now, &ended, &before, excluded.clone(), gone.clone(), schemas);
        for entry in report.tables.iter_mut().filter(|entry| entry.status == TableStatus::Succeeded) {
            let table = tables.iter().find(|table| table.table == entry.table);
            entry.schema_drift = table.and_then(|table| table.schema_drift.clone());
        }
        let mut manifest = Manifest {
            format: FORMAT,
            snapshot,
            environment: self.options.environment.clone(),
            identity,
            run: self.options.run,
            created: now,
            previous: prior.previous,
            window: window(&tables, self.options.started, now),
            tables,
            refused: ended.refused,
            excluded,
            gone,
            report,
            tool: self.options.tool.clone(),
        };
        let state =
            commit::next_state(parts.clock.as_ref(), &parts.state_folder, &manifest, &ended.captured, &prior.state)
                .await?;
        if parts.cancel.is_cancelled() {
            return Err(PipelineError::Cancelled);
        }
        if !(parts.lock_held)() {
            return Err(PipelineError::LockLost { environment: self.options.environment.clone() });
        }
        manifest.report.finished = Some(parts.clock.now());
        commit::commit(&parts.catalog, &self.writer, &manifest, state).await?;
        Ok(manifest.report)
    }

    pub(crate) async fn table_manifest(
        &self,
        snapshot: SnapshotId,
        captured: &Captured,
        prior: Option<&TableManifest>,
        is_new: bool,
        expected: Option<u64>,
    ) -> Result<TableManifest, PipelineError> {
        let Captured { schema, progress, segments } = captured;
        let (hash, bytes) = self.writer.put_schema(schema).await?;
        self.parts.tally.bytes_stored(bytes);
        self.cache_schema(&hash, schema).await?;
        let prior_schema = self.prior_schema(prior).await;
        let full = progress.mode == TableMode::Full;
        let mut all: Vec<SegmentInfo> = prior.filter(|_| !full).map(|prior| prior.segments.clone()).unwrap_or_default();
        all.extend(segments.iter().cloned());
        let counts = progress.counts.unwrap_or_default();
        Ok(TableManifest {
            table: schema.table.name.clone(),
            entity_set: schema.entity_set.clone(),
            key: schema.key.clone(),
            mode: progress.mode,
            status: TableStatus::Succeeded,
            captured_by: snapshot,
            schema: hash,
            segments: all,
            live_rows: counts.live_rows,
            coverage: Coverage {
                expected,
                captured: counts.live_rows,
                refused: progress.refused,
                reason: reason(&progress.reasons),
            },
            delta: progress.delta.clone(),
            window: CutWindow {
                first_read: progress.first_read,
                last_read: progress.last_read,
                skew_seconds: progress.skew_seconds,
            },
            unobserved: progress.unobserved.clone(),
            schema_drift: mode::drift(prior_schema.as_ref(), is_new, schema),
        })
    }

    #[expect(clippy::too_many_arguments, reason = "everything a report is made of")]
    pub(crate) fn report(
        &self,
        snapshot: SnapshotId,
        now: Timestamp,
        ended: &Ended,
        before: &HashMap<&str, &TableManifest>,
        excluded: Vec<String>,
        gone: Vec<String>,
        schemas: &HashMap<String, Arc<TableSchema>>,
    ) -> RunReport {
        let mut tables: Vec<TableReport> = ended
            .captured
            .iter()
            .map(|(name, captured)| {
                let progress = &captured.progress;
                let counts = progress.counts.unwrap_or_default();
                let totals = match ended.tallies.get(name) {
                    Some(tally) => sum(progress.totals, tally.totals()),
                    None => progress.totals,
                };
                TableReport {
                    table: name.clone(),
                    mode: progress.mode,
                    status: TableStatus::Succeeded,
                    rows_read: totals.rows_read,
                    rows_stored: totals.rows_stored,
                    created: counts.created,
                    changed: counts.changed,
                    deleted: counts.deleted,
                    live_rows: counts.live_rows,
                    bytes_raw: totals.bytes_raw,
                    bytes_stored: totals.bytes_stored,
                    content_objects: progress.content_objects,
                    requests: totals.requests,
                    refused_rows: progress.refused,
                    reason: reason(&progress.reasons),
                    unobserved: progress.unobserved.clone(),
                    schema_drift: None,
                }
            })
            .collect();
        let hole = |name: &str, status: TableStatus, text: String| TableReport {
            table: name.to_string(),
            mode: if before.contains_key(name) && schemas.get(name).is_some_and(|schema| schema.tracked) {
                TableMode::Delta
            } else {
                TableMode::Full
            },
            status,
            rows_read: ended.tallies.get(name).map_or(0, |tally| tally.totals().rows_read),
            rows_stored: 0,
            created: 0,
            changed: 0,
            deleted: 0,
            live_rows: before.get(name).map_or(0, |prior| prior.live_rows),
            bytes_raw: 0,
            bytes_stored: 0,
            content_objects: 0,
            requests: ended.tallies.get(name).map_or(0, |tally| tally.totals().requests),
            refused_rows: 0,
            reason: Some(text),
            unobserved: None,
            schema_drift: None,
        };
        for refused in &ended.refused {
            let status =
                if ended.failed.contains_key(&refused.table) { TableStatus::Failed } else { TableStatus::Refused };
            tables.push(hole(&refused.table, status, refused.refusal.reason.clone()));
        }
        for (name, text) in &ended.failed {
            if before.contains_key(name.as_str()) {
                tables.push(hole(name, TableStatus::Failed, text.clone()));
            }
        }
        tables.sort_by(|a, b| a.table.cmp(&b.table));
        let whole = tables.iter().all(|table| table.status == TableStatus::Succeeded && table.refused_rows == 0);
        let totals = self.parts.tally.totals();
        RunReport {
            run: self.options.run,
            kind: RunKind::Backup,
            environment: self.options.environment.clone(),
            status: if whole { RunStatus::Succeeded } else { RunStatus::Partial },
            snapshot: Some(snapshot),
            started: self.options.started,
            finished: Some(now),
            tables,
            excluded,
            gone,
            requests: totals.requests,
            retries: totals.retries,
            throttled: totals.throttled,
            bytes_received: totals.bytes_received,
            bytes_raw: totals.bytes_raw,
            bytes_stored: totals.bytes_stored,
            peak_memory_bytes: 0,
            resumed_from: self.options.resumed_from,
            error: None,
        }
    }
}

/// Whether a snapshot says anything of a table. In the first one every table would be "new"; that says nothing.
fn knows(manifest: &Manifest, table: &str) -> bool {
    manifest.table(table).is_some()
        || manifest.refused.iter().any(|refused| refused.table == table)
        || manifest.excluded.iter().any(|excluded| excluded == table)
}

fn reason(reasons: &[String]) -> Option<String> {
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn window(tables: &[TableManifest], started: Timestamp, now: Timestamp) -> CutWindow {
    CutWindow {
        first_read: tables.iter().map(|table| table.window.first_read).min().unwrap_or(started),
        last_read: tables.iter().map(|table| table.window.last_read).max().unwrap_or(now),
        skew_seconds: tables.iter().filter_map(|table| table.window.skew_seconds).max_by_key(|skew| skew.abs()),
    }
}
