//! A snapshot of a world in a vault in memory, and plans made from it.

use super::*;

pub(crate) fn identity(organization: &str) -> EnvironmentIdentity {
    EnvironmentIdentity {
        organization_id: organization.into(),
        environment_id: None,
        tenant_id: None,
        friendly_name: None,
        version: None,
        base_currency_id: None,
        change_tracking_days: None,
        user_id: id(0),
    }
}

/// Puts a world into a vault, with a file of `content` for each (table, row, column).
pub(crate) async fn snapshot(world: &World, content: &[(&str, u32, &str)]) -> (Vault, Arc<Manifest>) {
    let store = Arc::new(MemoryStore::new());
    let clock: Arc<dyn Clock> = Arc::new(Still);
    let vault =
        Vault::open_or_create(store, Recipients::default(), Identities::default(), clock, "test").await.unwrap();
    let writer = vault.writer("prod");
    let snapshot = SnapshotId::new(&Still);
    let window = CutWindow { first_read: Timestamp::UNIX_EPOCH, last_read: Timestamp::UNIX_EPOCH, skew_seconds: None };
    let mut tables = Vec::new();
    for (name, (table, rows)) in &world.tables {
        let (schema, _) = writer.put_schema(&table.schema).await.unwrap();
        let references: Vec<_> = content.iter().filter(|(owner, _, _)| owner == name).copied().collect();
        let references: Vec<ContentReference> = references.into_iter().map(|at| reference(world, at)).collect();
        let (vault, handle, name, own) = (writer.clone(), Handle::current(), name.clone(), table.schema.clone());
        let (rows, table_name) = (rows.clone(), name.clone());
        let segments = tokio::task::spawn_blocking(move || {
            let mut members = Vec::new();
            let mut segments = Vec::new();
            if !rows.is_empty() {
                let mut segment = SegmentWriter::create(&vault, &handle, &table_name, SegmentKind::Rows).unwrap();
                for row in rows.values() {
                    scan(row.as_bytes(), &mut members).unwrap();
                    let row = Row::new(row.as_bytes(), &members);
                    segment.push(own.row_id(&row).unwrap(), row.hash(), &row).unwrap();
                }
                segments.push(segment.finish().unwrap().info);
            }
            if !references.is_empty() {
                let mut segment = SegmentWriter::create(&vault, &handle, &table_name, SegmentKind::Content).unwrap();
                for reference in &references {
                    let json = serde_json::to_vec(reference).unwrap();
                    scan(&json, &mut members).unwrap();
                    let key = RowId::of_key(&[reference.row.as_bytes(), reference.column.as_bytes()]);
                    segment.push(key, version_hash(&reference.version), &Row::new(&json, &members)).unwrap();
                }
                segments.push(segment.finish().unwrap().info);
            }
            segments
        })
        .await
        .unwrap();
        let live_rows = world.tables[&name].1.len() as u64;
        tables.push(TableManifest {
            table: name,
            entity_set: table.schema.entity_set.clone(),
            key: table.schema.key.clone(),
            mode: TableMode::Full,
            status: TableStatus::Succeeded,
            captured_by: snapshot,
            schema,
            segments,
            live_rows,
            coverage: Coverage { expected: None, captured: live_rows, refused: 0, reason: None },
            delta: None,
            window: window.clone(),
            unobserved: None,
            schema_drift: None,
        });
    }
    let manifest = Manifest {
        format: FORMAT,
        snapshot,
        environment: "prod".into(),
        identity: identity(&world.organization),
        run: RunId::new(&Still),
        created: Timestamp::UNIX_EPOCH,
        previous: None,
        tables,
        refused: Vec::new(),
        excluded: Vec::new(),
        gone: Vec::new(),
        window,
        report: report(snapshot),
        tool: "test".into(),
    };
    (vault, Arc::new(manifest))
}

fn reference(world: &World, (table, row, column): (&str, u32, &str)) -> ContentReference {
    let bytes = world.files.get(&(table.to_string(), id(row), column.to_string()));
    ContentReference {
        row: id(row),
        column: column.into(),
        version: "\"v\"".into(),
        name: Some("a.txt".into()),
        mime: None,
        bytes: bytes.map_or(5_000_000, |bytes| bytes.len() as u64),
        sha256: bytes.map_or_else(|| format!("{row:064}"), |bytes| dynavault_vault::sha256_hex(bytes)),
        encrypted: false,
        note: None,
    }
}

fn report(snapshot: SnapshotId) -> RunReport {
    RunReport {
        run: RunId::new(&Still),
        kind: RunKind::Backup,
        environment: "prod".into(),
        status: RunStatus::Succeeded,
        snapshot: Some(snapshot),
        started: Timestamp::UNIX_EPOCH,
        finished: None,
        tables: Vec::new(),
        excluded: Vec::new(),
        gone: Vec::new(),
        requests: 0,
        retries: 0,
        throttled: 0,
        bytes_received: 0,
        bytes_raw: 0,
        bytes_stored: 0,
        peak_memory_bytes: 0,
        resumed_from: None,
        error: None,
    }
}

/// A plan and its operations.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) summary: PlanSummary,
    pub(crate) ops: Vec<Op>,
    pub(crate) text: String,
}

/// Plans a restore of what `before` was into what `now` is.
pub(crate) async fn planned(
    before: &World,
    content: &[(&str, u32, &str)],
    now: World,
    request: PlanRequest,
) -> Result<Planned, RestoreError> {
    let folder = tempfile::tempdir().unwrap();
    let (vault, manifest) = snapshot(before, content).await;
    let now = Arc::new(now);
    planned_in(folder.path(), &vault, manifest, now, request).await
}

/// The same, with everything made already.
pub(crate) async fn planned_in(
    folder: &Path,
    vault: &Vault,
    manifest: Arc<Manifest>,
    now: Arc<World>,
    request: PlanRequest,
) -> Result<Planned, RestoreError> {
    let call = Call { tally: Arc::new(Tally::default()), cancel: CancellationToken::new() };
    let listings = now.discover(&call).await.unwrap();
    let target = PlanTarget {
        rows: Arc::clone(&now) as Arc<dyn RowSource>,
        writes: Arc::clone(&now) as Arc<dyn RowTarget>,
        listings,
        abilities: now.abilities.clone(),
        identity: identity(&now.organization),
        name: "prod".into(),
    };
    let scratch = folder.join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let out = folder.join("plan.jsonl");
    let (observer, clock) = (Arc::new(()), Arc::new(Still));
    let summary = plan(vault, manifest, target, request, &scratch, &out, observer, clock, &call).await?;
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "scratch files are left behind");
    let file = PlanFile::open(&out).unwrap();
    let ops = file.ops().unwrap().collect::<Result<Vec<Op>, _>>().unwrap();
    assert_eq!((summary.ops, ops.len() as u64), (file.end().ops, file.end().ops));
    Ok(Planned { summary, ops, text: std::fs::read_to_string(&out).unwrap() })
}

impl Planned {
    /// Operations in short: step, wave, table, kind, row, what is set.
    pub(crate) fn short(&self) -> Vec<String> {
        self.ops
            .iter()
            .map(|op| {
                let word = |value: &dyn erased::Word| value.word();
                let n: u32 = op.key.id[24..].parse().unwrap();
                let set = op.set.as_ref().map_or("", |set| set.get());
                let set = set.replace("@Microsoft.Dynamics.CRM.lookuplogicalname", "@");
                let set = set.replace("00000000-0000-0000-0000-", "").replace("000000000", "");
                format!("{} {} {} {} {n} {set}", word(&op.step), op.wave, op.table, word(&op.action))
            })
            .collect()
    }

    /// Codes of the findings with the rows they are about.
    pub(crate) fn codes(&self) -> BTreeMap<String, u64> {
        let mut codes = BTreeMap::new();
        for finding in &self.summary.findings {
            *codes.entry(finding.code.clone()).or_default() += finding.rows;
        }
        codes
    }

    pub(crate) fn finding(&self, code: &str) -> &str {
        &self.summary.findings.iter().find(|finding| finding.code == code).unwrap().message
    }
}

/// Words of enumerations as the plan spells them.
mod erased {
    pub(crate) trait Word {
        fn word(&self) -> String;
    }

    impl<T: serde::Serialize> Word for T {
        fn word(&self) -> String {
            serde_json::to_value(self).unwrap().as_str().unwrap().to_string()
        }
    }
}
