//! Starting, steering and asking the simulator.
//!
//! [`Handle`] holds the controls and may be cloned into other threads; [`Simulator`] is the handle that owns
//! the server and ends it when dropped. The server has a thread and a runtime of its own, so that it answers
//! whatever the caller's runtime is doing.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::ops::{Bound, Deref};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::catalogue::BIG;
use crate::config::{Config, Faults, Limits};
use crate::content::ContentKind;
use crate::database::RowView;
use crate::dataset::{APPLICATIONS, build, client_id, user_id};
use crate::edits::{EditSummary, SchemaChange, change_schema, edit};
use crate::entra::steer::Entra;
use crate::entra::{prepare_key, tenant};
use crate::faults::FaultState;
use crate::guid::Guid;
use crate::print::{Columns, Plan};
use crate::query::Prefer;
use crate::rows::{is_held, remove, wipe};
use crate::schema::{Kind, Slot, Storage, Unreadable};
use crate::server::router;
use crate::shared::Shared;
use crate::stats::Stats;

/// Threads of the server.
const WORKERS: usize = 2;
/// How long the server may take to let go of connections.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// What kind of table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// Rows in the relational store.
    Standard,
    /// Rows of a many-to-many relationship.
    Intersect,
    /// Shares its key with other activities.
    Activity,
    /// Partitioned store (dataverse 8.12).
    Elastic,
    /// Rows live elsewhere (dataverse 8.13).
    Virtual,
    /// `new_big`.
    Generated,
}

/// What the oracle says about a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, named as in the metadata")]
pub struct TableInfo {
    /// Logical name.
    pub logical_name: String,
    /// Entity set name; some tables have none (dataverse 2.7).
    pub entity_set: Option<String>,
    /// Key column.
    pub primary_id: String,
    /// Rows can be read now.
    pub readable: bool,
    /// `ChangeTrackingEnabled`.
    pub change_tracking: bool,
    /// A tracked read works: enabled here and, for links, on both sides, and readable for the whole organization.
    pub trackable: bool,
    /// Log of the platform, left out of backups by default (dataverse 8.16).
    pub operational: bool,
    /// Kind.
    pub kind: TableKind,
    /// Live rows.
    pub rows: u64,
}

/// A row as the service would print it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OracleRow {
    /// Row id, and the partition for elastic rows.
    pub keys: Vec<String>,
    /// JSON object without `@odata.etag`: every readable column with image thumbnails, lookups with their two
    /// annotations, but without `annotation.documentbody` and `activitymimeattachment.body`.
    pub json: String,
}

/// The content of a file column, full image, note or mail attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OracleFile {
    /// Logical name.
    pub table: String,
    /// Row id.
    pub row: String,
    /// Column.
    pub column: String,
    /// File name.
    pub name: String,
    /// Content; for notes and attachments decoded from base64.
    pub bytes: Vec<u8>,
}

/// The controls of a running simulator.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The environment's URL; the Web API is below `/api/data/v9.2/`.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// Base of the token endpoint `{authority}/{tenant}/oauth2/v2.0/token`.
    pub fn authority(&self) -> String {
        format!("{}/entra", self.shared.url)
    }

    /// The tenant's id.
    pub fn tenant(&self) -> String {
        tenant()
    }

    /// The first application user's client id.
    pub fn client_id(&self) -> String {
        client_id(0)
    }

    /// Client ids of all application users; they share the secret and each has its own limits.
    pub fn clients(&self) -> Vec<String> {
        (0..APPLICATIONS).map(client_id).collect()
    }

    /// The client secret.
    pub fn secret(&self) -> String {
        self.shared.config.secret.clone()
    }

    /// All tables.
    pub fn tables(&self) -> Vec<TableInfo> {
        let controls = Arc::clone(&self.shared.state().controls);
        let database = self.shared.read();
        let is_tracked = |name: &String| database.table(name).is_some_and(|index| database.tables[index].def.tracking);
        database
            .tables
            .iter()
            .map(|table| {
                let def = &table.def;
                let readable = controls.is_readable(def);
                TableInfo {
                    logical_name: def.name.clone(),
                    entity_set: def.set.clone(),
                    primary_id: def.primary_id.clone(),
                    readable,
                    change_tracking: def.tracking,
                    trackable: readable
                        && def.tracking
                        && def.ends.as_ref().is_none_or(|ends| is_tracked(&ends.first.0) && is_tracked(&ends.second.0))
                        && controls.check_organization_read(def, 0).is_ok(),
                    operational: def.operational,
                    kind: match def.storage {
                        _ if table.big.is_some() => TableKind::Generated,
                        Storage::Elastic => TableKind::Elastic,
                        Storage::Virtual => TableKind::Virtual,
                        Storage::Standard if def.is_intersect() => TableKind::Intersect,
                        Storage::Standard if def.activity => TableKind::Activity,
                        Storage::Standard => TableKind::Standard,
                    },
                    rows: table.len(),
                }
            })
            .collect()
    }

    /// Every live row of a table, in the order of its key; empty for a table that does not exist.
    pub fn rows(&self, table: &str) -> Vec<OracleRow> {
        let database = self.shared.read();
        let Some(table) = database.table(table).map(|index| &database.tables[index]) else { return Vec::new() };
        let Ok(plan) = Plan::new(&table.def, &Columns::Oracle, &Prefer::default()) else { return Vec::new() };
        let mut rows = Vec::new();
        table.scan(Bound::Unbounded, |key, row| {
            let mut json = String::new();
            plan.write(key, row, &mut json);
            let keys = std::iter::once(key.id.to_string()).chain(key.partition.as_deref().map(str::to_owned)).collect();
            rows.push(OracleRow { keys, json });
            true
        });
        rows
    }

    /// Every content of file columns, full images, notes and attachments of readable tables.
    pub fn files(&self) -> Vec<OracleFile> {
        let controls = Arc::clone(&self.shared.state().controls);
        let database = self.shared.read();
        let mut files = Vec::new();
        for table in database.tables.iter().filter(|table| controls.is_readable(&table.def)) {
            for column in &table.def.columns {
                let (kind, cell) = match (&column.kind, column.slot) {
                    (Kind::File, Slot::Cell(cell)) => (ContentKind::File, cell),
                    (Kind::Body, Slot::Cell(cell)) => (ContentKind::Body, cell),
                    (Kind::Image, Slot::Thumbnail(cell)) => (ContentKind::Image, cell),
                    _ => continue,
                };
                table.scan(Bound::Unbounded, |key, row| {
                    if let RowView::Stored(row) = row
                        && let Some(id) = Guid::parse(row.cell(cell).trim_matches('"'))
                    {
                        let content = table.def.contents.find(id, kind);
                        if kind == ContentKind::Image && !content.has_full_image() {
                            return true;
                        }
                        // The document of a note is named by a column of the note (dataverse 7.3).
                        let name = match table.def.cell("filename").filter(|_| kind == ContentKind::Body) {
                            Some(cell) => serde_json::from_str(row.cell(cell)).unwrap_or_default(),
                            None => content.name().to_owned(),
                        };
                        files.push(OracleFile {
                            table: table.def.name.clone(),
                            row: key.id.to_string(),
                            column: column.name.clone(),
                            name,
                            bytes: content.bytes().to_vec(),
                        });
                    }
                    true
                });
            }
        }
        files
    }

    /// Random creations, updates and deletions over all writable tables; the same seed on the same rows does the same.
    pub fn edit(&self, seed: u64, changes: usize) -> EditSummary {
        edit(&mut self.shared.write(), seed, changes)
    }

    /// Random changes to the generated table alone; returns how many rows changed.
    pub fn edit_big(&self, seed: u64, changes: usize) -> usize {
        let mut dice = crate::dice::Dice::new(seed, 0xb19);
        let mut database = self.shared.write();
        let Some(table) = database.table(BIG) else { return 0 };
        let mut touched = 0;
        for _ in 0..changes {
            let version = database.next_version();
            touched +=
                usize::from(database.tables[table].big.as_mut().is_some_and(|big| big.touch(&mut dice, version)));
        }
        touched
    }

    /// Deletes one row of a table without partitions, with its children; how many rows went in all.
    pub fn delete(&self, table: &str, id: &str) -> usize {
        let mut database = self.shared.write();
        match (database.table(table), Guid::parse(id)) {
            (Some(table), Some(id)) if !is_held(&database, table, &id.into()) => {
                remove(&mut database, vec![(table, id.into())]).deleted.len()
            }
            _ => 0,
        }
    }

    /// Counts so far.
    pub fn stats(&self) -> Stats {
        self.shared.state().counter.stats.clone()
    }

    /// Starts counting again.
    pub fn reset_stats(&self) {
        self.shared.state().counter.reset();
    }

    /// Every delta token given out so far has expired.
    pub fn expire_delta_tokens(&self) {
        // The counter moves on, so that a token issued now differs from the expired ones.
        let floor = self.shared.write().next_version();
        self.shared.change_controls(|controls| controls.delta_floor = floor);
    }

    /// Every metadata stamp given out so far has expired (dataverse 2.5).
    pub fn expire_metadata_stamps(&self) {
        let floor = {
            let mut database = self.shared.write();
            database.schema_version += 1;
            database.schema_version
        };
        self.shared.change_controls(|controls| controls.stamp_floor = floor);
    }

    /// Every access token given out so far is refused.
    pub fn revoke_tokens(&self) {
        self.shared.state().authority.revoke_all();
    }

    /// Next links given out so far are refused with 0x8004112a.
    pub fn reject_links(&self) {
        self.shared.change_controls(|controls| controls.link_generation += 1);
    }

    /// Adds a column to one table, removes one from another, adds a table.
    pub fn change_schema(&self, seed: u64) -> SchemaChange {
        change_schema(&mut self.shared.write(), seed)
    }

    /// Replaces the plan of faults; request numbers begin again at 1.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.shared.state();
        state.authority.unavailable = faults.token_unavailable;
        state.faults = FaultState::new(faults);
    }

    /// Replaces the limits; windows begin empty.
    pub fn set_limits(&self, limits: Option<Limits>) {
        let mut state = self.shared.state();
        state.limits = limits;
        for window in &mut state.windows {
            window.clear();
        }
    }

    /// Takes the read privilege of a table away.
    pub fn deny(&self, table: &str) {
        self.shared.change_controls(|controls| {
            controls.denied.insert(table.to_owned());
        });
    }

    /// Gives the full read privilege of a table, also where it was missing from the start.
    pub fn allow(&self, table: &str) {
        self.shared.change_controls(|controls| {
            controls.denied.remove(table);
            controls.overridden.insert(table.to_owned(), None);
        });
    }

    /// Leaves the privilege to read a table, but not for the whole organization: tracked reads fail (dataverse 4.3).
    pub fn restrict(&self, table: &str) {
        self.shared.change_controls(|controls| {
            controls.overridden.insert(table.to_owned(), Some(Unreadable::NotOrganizationWide));
        });
    }

    /// Takes a privilege from all callers, by its name: `prvCreateAccount`, `prvOverrideCreatedOnCreatedBy`,
    /// `prvBypassCustomPlugins` … (dataverse 9.4). Reading has [`Handle::deny`].
    pub fn take_privilege(&self, name: &str) {
        self.shared.change_controls(|controls| {
            controls.missing.insert(name.to_owned());
        });
    }

    /// Gives a privilege back.
    pub fn give_privilege(&self, name: &str) {
        self.shared.change_controls(|controls| {
            controls.missing.remove(name);
        });
    }

    /// Takes a privilege from one user; it counts when a caller acts for that user (dataverse 6.6).
    pub fn take_privilege_from(&self, user: &str, name: &str) {
        let Some(user) = Guid::parse(user) else { return };
        self.shared.change_controls(|controls| {
            controls.missing_of.entry(user).or_default().insert(name.to_owned());
        });
    }

    /// Leaves a user without any role: nothing can be assigned to them (dataverse 6.7).
    pub fn take_roles(&self, user: &str) {
        let Some(user) = Guid::parse(user) else { return };
        self.shared.change_controls(|controls| {
            controls.without_roles.insert(user);
        });
    }

    /// Switches the optimistic concurrency of a table on or off (dataverse 6.13).
    pub fn set_concurrency(&self, table: &str, enabled: bool) {
        let mut database = self.shared.write();
        database.schema_version += 1;
        let version = database.schema_version;
        if let Some(index) = database.table(table) {
            database.tables[index].def.concurrency = enabled;
            database.tables[index].def.changed_at = version;
        }
    }

    /// Removes every row of the tables a customer fills; users, units, teams and currencies stay. Deltas show it, the
    /// recycle bin does not. How many rows went.
    pub fn wipe(&self) -> usize {
        wipe(&mut self.shared.write())
    }

    /// `systemuserid` of a caller, by the order of [`Handle::clients`].
    pub fn user(&self, client: usize) -> String {
        user_id(self.shared.config.environment, client).to_string()
    }

    /// The client secret has expired (AADSTS7000222).
    pub fn expire_secret(&self) {
        self.shared.state().authority.expire_secrets(true);
    }

    /// The secret works again.
    pub fn renew_secret(&self) {
        self.shared.state().authority.expire_secrets(false);
    }

    /// Moves the simulated clock, which dates delta tokens; access tokens and limits keep to the real one.
    pub fn advance(&self, time: Duration) {
        self.shared.state().ahead += time;
    }

    /// Moves the simulated clock as [`Handle::advance`] does, and that of the sign-in side with it: access tokens, codes,
    /// refresh tokens and secrets grow older, and `Date` headers say so. Limits keep to the real clock.
    pub fn pass_time(&self, time: Duration) {
        let mut state = self.shared.state();
        state.ahead += time;
        state.authority.pass(time);
    }

    /// The controls of sign-in, directory and Graph.
    pub fn entra(&self) -> Entra {
        Entra::new(Arc::clone(&self.shared))
    }

    /// Row count by table, of readable tables.
    pub fn row_counts(&self) -> BTreeMap<String, u64> {
        self.tables().into_iter().filter(|table| table.readable).map(|table| (table.logical_name, table.rows)).collect()
    }
}

/// A running simulator; it ends when dropped.
#[derive(Debug)]
pub struct Simulator {
    handle: Handle,
    cancel: CancellationToken,
    ended: Option<oneshot::Receiver<()>>,
}

impl Deref for Simulator {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Simulator {
    /// Makes the data set and begins to serve on 127.0.0.1; ready when it returns.
    pub async fn start(config: Config) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, config.port))?;
        listener.set_nonblocking(true)?;
        let url = format!("http://127.0.0.1:{}", listener.local_addr()?.port());
        let made = tokio::task::spawn_blocking(move || {
            let database = build(&config);
            // Made once per process, and not while somebody waits for a token.
            prepare_key();
            (config, database)
        });
        let (config, database) = made.await.map_err(io::Error::other)?;
        let shared = Arc::new(Shared::new(config, url, database));
        let cancel = CancellationToken::new();
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("simulator")
            .enable_all()
            .build()?;
        let (served, stop) = (Arc::clone(&shared), cancel.clone());
        std::thread::Builder::new().name("simulator".to_owned()).spawn(move || {
            let result = runtime.block_on(async {
                // Without this, small answers wait for the client's acknowledgement.
                let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "could not switch off Nagle's algorithm");
                    }
                });
                tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    result = std::future::IntoFuture::into_future(axum::serve(listener, router(served))) => result,
                }
            });
            if let Err(error) = result {
                tracing::error!(%error, "the simulator stopped serving");
            }
            // Open connections break off, as they would when a service goes away.
            runtime.shutdown_timeout(STOP_WAIT);
            // Nobody may be waiting for the end.
            if end.send(()).is_err() {
                tracing::trace!("the simulator was dropped, not stopped");
            }
        })?;
        tracing::debug!(url = %shared.url, "simulator is serving");
        Ok(Self { handle: Handle::new(shared), cancel, ended: Some(ended) })
    }

    /// A handle for other threads; it outlives the server but steers nothing then.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops serving and waits until the port is free.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        if let Some(ended) = self.ended.take()
            && ended.await.is_err()
        {
            tracing::warn!("the simulator's thread ended by itself");
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
