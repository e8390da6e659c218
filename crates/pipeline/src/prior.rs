//! What a run goes on from: the snapshot before, an interrupted draft, and the local state that belongs to them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use dynavault_catalog::{Committed, Draft, KnownVault, StateFile};
use dynavault_model::{EnvironmentIdentity, SegmentId, SnapshotId, TableSchema};
use dynavault_vault::{Manifest, Previous, SegmentInfo, TableManifest, TableReader};
use jiff::SignedDuration;
use tokio::runtime::Handle;

use crate::commit;
use crate::environment_run::{EnvironmentRun, Prior};
use crate::error::PipelineError;
use crate::state::{StateWriter, failed};
use crate::table_run::blocking;

/// Age after which an unfinished snapshot is not gone on with: its first tables would be too far from its last.
const DRAFT_AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

/// The newest snapshot that the catalog knows: id, hash of its manifest object, the manifest as JSON.
type KnownSnapshot = (SnapshotId, String, Option<String>);

/// What this host remembers and the vault does not have, with the sentence that tells the operator.
enum Forget {
    /// Snapshots, tokens, state files, the draft.
    Everything(String),
    Draft(String),
}

impl EnvironmentRun {
    /// What the catalog remembers is built upon only if the vault has it. The configuration may name another vault by now, or
    /// the vault may have lost something; a delta or half a table on top of what is not there could not be restored. A host
    /// that may only write cannot look, but it notices that the vault has another address.
    pub(crate) async fn forget_what_is_not_there(&self) -> Result<(), PipelineError> {
        let (environment, catalog) = (&self.options.environment, &self.parts.catalog);
        let here = self.vault_here().await;
        match self.what_to_forget(&here).await? {
            Some(Forget::Everything(notice)) => {
                self.notice(notice);
                catalog.forget_environment(environment).await?;
            }
            Some(Forget::Draft(notice)) => {
                self.notice(notice);
                catalog.drop_draft(environment).await?;
            }
            None => {}
        }
        catalog.remember_vault(environment, here).await?;
        Ok(())
    }

    async fn vault_here(&self) -> KnownVault {
        let vault = &self.parts.vault;
        let description = vault.description().await.ok().flatten();
        KnownVault { address: vault.store().describe(), id: description.map(|description| description.vault) }
    }

    async fn what_to_forget(&self, here: &KnownVault) -> Result<Option<Forget>, PipelineError> {
        let (environment, catalog, vault) = (&self.options.environment, &self.parts.catalog, &self.parts.vault);
        let (known, draft) = (catalog.newest_snapshot(environment).await?, catalog.draft(environment).await?);
        if known.is_none() && draft.is_none() {
            return Ok(None);
        }
        if let Some(before) = catalog.known_vault(environment).await?
            && before.differs_from(here)
        {
            return Ok(Some(Forget::Everything(format!(
                "the vault ({}) is not the one that this host wrote to ({}); what it remembers of that one is not built upon",
                here.address, before.address
            ))));
        }
        let Ok(listed) = vault.snapshots(environment).await else { return Ok(None) };
        if let Some((known, ..)) = known
            && !listed.iter().any(|object| object.id == known)
        {
            return Ok(Some(Forget::Everything(format!(
                "the vault does not have snapshot {known}, which this host remembers; going on from what the vault has"
            ))));
        }
        let Some(draft) = draft else { return Ok(None) };
        let mut newest: HashMap<&str, SegmentInfo> = HashMap::new();
        for segment in &draft.segments {
            if let Ok(info) = serde_json::from_str(&segment.info) {
                newest.insert(&segment.table, info);
            }
        }
        for (table, info) in newest {
            if matches!(vault.has_segment(environment, table, &info).await, Ok(false)) {
                return Ok(Some(Forget::Draft(format!(
                    "the vault does not have the segments of snapshot {}, which run {} began; beginning again",
                    draft.snapshot, draft.run
                ))));
            }
        }
        Ok(None)
    }

    /// Segments that a check on this host found damaged.
    pub(crate) async fn damaged_segments(&self) -> Result<HashSet<SegmentId>, PipelineError> {
        Ok(self.parts.catalog.damaged_segments(&self.options.environment).await?.into_iter().collect())
    }

    /// Why a table must not be built upon what the snapshot before has of it, if there is a reason. What a listing shows is
    /// looked for by full runs only: it costs a request per thousand objects of each table.
    pub(crate) async fn unusable(&self, prior: Option<&TableManifest>, damaged: &HashSet<SegmentId>) -> Option<String> {
        let prior = prior?;
        if self.options.rebase {
            return Some("a rebase was asked for".into());
        }
        if let Some(info) = prior.segments.iter().find(|info| damaged.contains(&info.id)) {
            return Some(format!("segment {} of the snapshot before was found damaged by `verify`", info.id));
        }
        if !self.options.full {
            return None;
        }
        // A host that may only write cannot look.
        self.parts.vault.find_damage(&self.options.environment, prior).await.ok().flatten()
    }

    /// A commit that a crash broke off is completed first: its manifest may be in the vault already.
    pub(crate) async fn complete_commit(&self) -> Result<(), PipelineError> {
        let draft = self.parts.catalog.draft(&self.options.environment).await?;
        if let Some(prepared) = draft.and_then(|draft| draft.prepared) {
            let manifest = commit::complete(&self.parts.catalog, &self.writer, &prepared).await?;
            self.notice(format!("completed the commit of snapshot {} that an earlier run began", manifest.snapshot));
        }
        Ok(())
    }

    /// The snapshot to go on from; what the vault has and the catalog does not is recorded.
    pub(crate) async fn prior(&self) -> Result<Prior, PipelineError> {
        let (environment, catalog) = (&self.options.environment, &self.parts.catalog);
        let known = catalog.newest_snapshot(environment).await?;
        let (prior, found) = self.find_prior(known).await?;
        if let Some(committed) = found {
            self.notice(format!("took over snapshot {} from the vault", committed.snapshot));
            // State files belong to the snapshot the catalog knew; they are made again from the vault.
            for table in &committed.tables {
                for kind in ["rows", "content"] {
                    catalog.replace_state_files(environment, &table.table, kind, Vec::new()).await?;
                }
            }
            catalog.adopt_snapshot(environment, committed).await?;
        }
        Ok(prior)
    }

    /// What [`Self::prior`] would give after [`Self::forget_what_is_not_there`], with nothing forgotten and nothing recorded.
    pub(crate) async fn prior_to_plan_with(&self) -> Result<Prior, PipelineError> {
        let known = match self.what_to_forget(&self.vault_here().await).await? {
            Some(Forget::Everything(notice)) => {
                self.notice(notice);
                None
            }
            _ => self.parts.catalog.newest_snapshot(&self.options.environment).await?,
        };
        Ok(self.find_prior(known).await?.0)
    }

    /// The newest snapshot of the vault where that can be read, else the one that is `known`; and what the catalog should record.
    async fn find_prior(&self, known: Option<KnownSnapshot>) -> Result<(Prior, Option<Committed>), PipelineError> {
        let (environment, catalog, vault) = (&self.options.environment, &self.parts.catalog, &self.parts.vault);
        // A host that may only write can neither list nor read; then the catalog is what there is.
        let listed = vault.snapshots(environment).await.unwrap_or_default();
        if let Some(newest) = listed.last()
            && known.as_ref().is_none_or(|(id, _, manifest)| *id < newest.id || manifest.is_none())
        {
            match vault.manifest(environment, newest).await {
                Ok((manifest, sha256)) => {
                    let committed = commit::committed(&manifest, newest.encrypted, &sha256);
                    let previous = Some(Previous { snapshot: manifest.snapshot, sha256 });
                    return Ok((Prior { manifest: Some(manifest), previous, state: Vec::new() }, Some(committed)));
                }
                Err(dynavault_vault::VaultError::NoKey { .. }) => self.notice(format!(
                    "snapshot {} was made elsewhere and cannot be read here; going on from what this host knows",
                    newest.id
                )),
                Err(error) => return Err(error.into()),
            }
        }
        let Some((snapshot, sha256, manifest)) = known else {
            return Ok((Prior { manifest: None, previous: None, state: Vec::new() }, None));
        };
        let manifest = manifest.and_then(|json| serde_json::from_str(&json).ok());
        let state = catalog.state_files(environment).await?;
        Ok((Prior { manifest, previous: Some(Previous { snapshot, sha256 }), state }, None))
    }

    pub(crate) fn same_organization(
        &self,
        identity: &EnvironmentIdentity,
        prior: Option<&Manifest>,
    ) -> Result<(), PipelineError> {
        match prior {
            Some(prior) if prior.identity.organization_id != identity.organization_id => {
                Err(PipelineError::OtherEnvironment {
                    environment: self.options.environment.clone(),
                    found: identity.organization_id.clone(),
                    known: prior.identity.organization_id.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn take_up_draft(
        &self,
        prior: Option<&Manifest>,
    ) -> Result<(Option<Draft>, SnapshotId), PipelineError> {
        let (environment, catalog) = (&self.options.environment, &self.parts.catalog);
        let now = self.parts.clock.now();
        if let Some(draft) = catalog.draft(environment).await? {
            let young = now.duration_since(draft.progressed) <= DRAFT_AGE_MAX;
            let after_prior = prior.is_none_or(|prior| prior.snapshot < draft.snapshot);
            if young && after_prior && !draft.checkpoints.is_empty() {
                let snapshot = draft.snapshot;
                self.notice(format!("going on with snapshot {snapshot}, which run {} began", draft.run));
                return Ok((Some(draft), snapshot));
            }
        }
        let snapshot = SnapshotId::new(self.parts.clock.as_ref());
        catalog.begin_draft(environment, snapshot, self.options.run, now).await?;
        Ok((None, snapshot))
    }

    /// Removes scratch and state files that nothing refers to.
    pub(crate) async fn sweep_folder(&self, prior: &Prior, draft: Option<&Draft>) -> Result<(), PipelineError> {
        let mut keep: HashSet<String> = prior.state.iter().map(|file| file.file.clone()).collect();
        for checkpoint in draft.map(|draft| draft.checkpoints.as_slice()).unwrap_or_default() {
            if let Ok(progress) = serde_json::from_str::<crate::progress::Progress>(&checkpoint.progress) {
                keep.extend(progress.run_files);
                keep.extend(progress.content_files);
                keep.extend(progress.base.unwrap_or_default());
                keep.extend(progress.base_content.unwrap_or_default());
            }
            keep.insert(format!("{}.seen", checkpoint.table));
            keep.insert(format!("{}.items", checkpoint.table));
        }
        let folder = self.parts.state_folder.clone();
        blocking(move || {
            let fail = failed(&folder);
            for entry in std::fs::read_dir(&folder).map_err(&fail)? {
                let entry = entry.map_err(&fail)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().map_err(&fail)?.is_file() && !keep.contains(&name) {
                    std::fs::remove_file(entry.path()).map_err(&fail)?;
                }
            }
            Ok(())
        })
        .await
    }

    pub(crate) fn state_paths(&self, table: &str, state: &[StateFile]) -> Option<(Vec<PathBuf>, Vec<PathBuf>)> {
        let of = |kind: &str| -> Vec<PathBuf> {
            state
                .iter()
                .filter(|file| file.table == table && file.kind == kind)
                .map(|file| self.parts.state_folder.join(&file.file))
                .collect()
        };
        let (rows, content) = (of("rows"), of("content"));
        (!rows.is_empty() && rows.iter().chain(&content).all(|path| path.exists())).then_some((rows, content))
    }

    /// State of a table for comparing: the local files, or files made from the vault's indexes.
    pub(crate) async fn base(
        &self,
        prior: Option<&TableManifest>,
        state: &[StateFile],
    ) -> Result<Option<(Vec<PathBuf>, Vec<PathBuf>)>, PipelineError> {
        let Some(prior) = prior else { return Ok(None) };
        if let Some(paths) = self.state_paths(&prior.table, state) {
            return Ok(Some(paths));
        }
        if !self.parts.vault.can_read() {
            return Ok(None);
        }
        let mut made = Vec::new();
        for kind in ["rows", "content"] {
            let name = format!("{}.state", dynavault_model::SegmentId::new(self.parts.clock.as_ref()));
            let path = self.parts.state_folder.join(&name);
            let (vault, environment) = (self.parts.vault.clone(), self.options.environment.clone());
            let (table, into, cancel) = (prior.clone(), path.clone(), self.parts.cancel.clone());
            let entries = blocking(move || {
                let mut writer = StateWriter::create(&into)?;
                let reader = TableReader::new(&vault, Handle::current(), &environment, &table, cancel);
                let mut failure = None;
                let mut push = |id, hash| {
                    if let Err(error) = writer.push(id, hash) {
                        failure.get_or_insert(error);
                    }
                    Ok(())
                };
                if kind == "rows" { reader.live_ids(&mut push) } else { reader.live_content_ids(&mut push) }?;
                match failure {
                    Some(error) => Err(error.into()),
                    None => Ok(writer.finish()?),
                }
            })
            .await;
            match entries {
                Ok(entries) => {
                    let file = StateFile { table: prior.table.clone(), kind: kind.into(), file: name, entries };
                    self.parts
                        .catalog
                        .replace_state_files(&self.options.environment, &prior.table, kind, vec![file])
                        .await?;
                    made.push(vec![path]);
                }
                // Damage or a missing right to read costs a full read of this table, not the run.
                Err(PipelineError::Vault(error)) => {
                    self.notice(format!(
                        "the indexes of table {} cannot be read ({}); it will be stored in full",
                        prior.table,
                        dynavault_model::chain(&error)
                    ));
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let content = made.pop().unwrap_or_default();
        Ok(Some((made.pop().unwrap_or_default(), content)))
    }

    pub(crate) fn schema_cache(&self, hash: &str) -> PathBuf {
        self.parts.state_folder.join("schemas").join(format!("{hash}.json"))
    }

    pub(crate) async fn prior_schema(&self, prior: Option<&TableManifest>) -> Option<TableSchema> {
        let prior = prior?;
        let path = self.schema_cache(&prior.schema);
        let cached = tokio::task::spawn_blocking(move || std::fs::read(path)).await.ok()?.ok();
        if let Some(schema) = cached.and_then(|json| serde_json::from_slice(&json).ok()) {
            return Some(schema);
        }
        if self.parts.vault.can_read() {
            self.parts.vault.schema(&self.options.environment, &prior.schema).await.ok()
        } else {
            None
        }
    }

    pub(crate) async fn cache_schema(&self, hash: &str, schema: &TableSchema) -> Result<(), PipelineError> {
        let path = self.schema_cache(hash);
        let json = serde_json::to_vec(schema).unwrap_or_default();
        blocking(move || {
            if path.exists() {
                return Ok(());
            }
            let write = |path: &Path| -> std::io::Result<()> {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                let partial = path.with_extension("partial");
                std::fs::write(&partial, &json)?;
                std::fs::rename(&partial, path)
            };
            Ok(write(&path).map_err(failed(&path))?)
        })
        .await
    }
}
