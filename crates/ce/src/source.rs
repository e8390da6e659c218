//! [`RowSource`] over a Dataverse environment.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dynavault_model::{
    Call, ContentColumn, ContentEnd, ContentItem, ContentKind, EnvironmentIdentity, PageEnd, PageRequest, RowSource,
    SharedContentSink, SharedSink, SourceError, TableListing, TableSchema,
};
use dynavault_odata::{Client, ReplyHeaders, RequestError, UserSlot};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::ask::Taken;
use crate::files::{Files, range_permits};
use crate::metadata::Metadata;
use crate::refusals;

/// Longest URL of a GET, with room for the skip token that the service adds (`dataverse`, section 1.1).
pub(crate) const URL_CHARS_MAX: usize = 24_000;
/// Largest small answer (who am I, organization, counts).
const SMALL_BYTES_MAX: usize = 4 << 20;
/// Names in one question for row counts; keeps the URL short.
const COUNT_NAMES: usize = 100;
/// Smallest page asked for when the service's statements take too long.
const PAGE_ROWS_MIN: u32 = 50;
/// Columns that a service lists and then does not know, per table, before the table is refused.
const UNKNOWN_COLUMNS_MAX: usize = 64;

/// Annotations that make lookups restorable (section 2.4), and the version of the metadata (section 2.5).
const ANNOTATIONS: &str = "Microsoft.Dynamics.CRM.lookuplogicalname,Microsoft.Dynamics.CRM.associatednavigationproperty,Microsoft.Dynamics.CRM.globalmetadataversion";
/// The session of an elastic table, as a write gives it and a read takes it (section 8.12).
const SESSION_GIVEN: &str = "x-ms-session-token";
pub(crate) const SESSION_ASKED: &str = "MSCRM.SessionToken";
/// Part of every link that asks for changes (section 4.2).
const DELTA_TOKEN: &str = "deltatoken";
const FORMATTED: &str = "OData.Community.Display.V1.FormattedValue";

/// What is asked for beside the rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceOptions {
    /// Texts of choices and dates as a person sees them. Never asked for in tracked reads, where it loses the token
    /// (section 4.6).
    pub formatted_values: bool,
}

/// A Dataverse environment, for reading.
pub struct DataverseSource {
    pub(crate) client: Client,
    options: SourceOptions,
    /// Each table is read by one application user throughout: what a user sees belongs to its roles.
    slots: Mutex<HashMap<String, Arc<UserSlot>>>,
    /// Columns that the service lists and does not know.
    unknown: Mutex<HashMap<String, HashSet<String>>>,
    /// Page sizes that had to be lowered.
    page_rows: Mutex<HashMap<String, u32>>,
    /// Whether the pages that follow in a table are asked for with change tracking, as the first one was.
    tracked: Mutex<HashMap<String, bool>>,
    /// What the last write into an elastic table gave, for reading it.
    sessions: Mutex<HashMap<String, String>>,
    /// How rows are asked for by their keys.
    pub(crate) asked: Taken,
    ranges: Semaphore,
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DataverseSource {
    /// A source over a client whose base is `…/api/data/v9.2/`.
    pub fn new(client: Client, options: SourceOptions) -> Self {
        Self {
            client,
            options,
            slots: Mutex::default(),
            unknown: Mutex::default(),
            page_rows: Mutex::default(),
            tracked: Mutex::default(),
            sessions: Mutex::default(),
            asked: Taken::default(),
            ranges: range_permits(),
        }
    }

    pub(crate) fn slot(&self, table: &str) -> Arc<UserSlot> {
        Arc::clone(lock(&self.slots).entry(table.to_string()).or_insert_with(|| Arc::new(self.client.slot())))
    }

    /// Remembers what a write into an elastic table says of its session (section 8.12).
    pub(crate) fn note_session(&self, table: &TableSchema, headers: &ReplyHeaders) {
        if let Some(token) = headers.get(SESSION_GIVEN) {
            lock(&self.sessions).insert(table.table.name.clone(), token.to_string());
        }
    }

    /// The session in which reads see what was written into an elastic table.
    pub(crate) fn session(&self, table: &TableSchema) -> Option<String> {
        lock(&self.sessions).get(&table.table.name).cloned()
    }

    /// Whether a page is asked for with change tracking: all pages of one reading are asked for alike (section 3.1), and a delta
    /// link carries its own token. Of a reading that an earlier process began only the link is known.
    fn is_tracked(&self, table: &TableSchema, page: &PageRequest) -> bool {
        let mut known = lock(&self.tracked);
        let name = &table.table.name;
        let first = match page {
            PageRequest::First { tracked } => *tracked,
            PageRequest::Link(link) if link.contains(DELTA_TOKEN) => false,
            PageRequest::Link(_) => return known.get(name).copied().unwrap_or(table.tracked),
        };
        known.insert(name.clone(), first);
        first
    }

    pub(crate) fn prefer(&self, table: &TableSchema, tracked: bool) -> String {
        let rows = lock(&self.page_rows).get(&table.table.name).copied().unwrap_or(table.page_rows_max);
        let formatted = self.options.formatted_values && !table.tracked;
        let annotations = if formatted { format!("{ANNOTATIONS},{FORMATTED}") } else { ANNOTATIONS.to_string() };
        let mut prefer = format!("odata.maxpagesize={rows},odata.include-annotations=\"{annotations}\"");
        if tracked {
            prefer.push_str(",odata.track-changes");
        }
        prefer
    }

    pub(crate) async fn small(&self, path: &str, call: &Call) -> Result<Value, RequestError> {
        let slot = self.slot("");
        let reply = self.client.get(&slot, path, None, &[], SMALL_BYTES_MAX, call).await?;
        serde_json::from_slice(&reply.body).map_err(|error| RequestError::Protocol {
            what: format!("reading {}", path.split(['(', '?']).next().unwrap_or(path)),
            detail: error.to_string(),
        })
    }

    /// An answer that is good to have; a service that does not give it is not a reason to stop.
    pub(crate) async fn optional(&self, path: &str, call: &Call) -> Result<Value, SourceError> {
        match self.small(path, call).await {
            Ok(value) => Ok(value),
            Err(RequestError::Service { .. } | RequestError::Protocol { .. }) => Ok(Value::Null),
            Err(error) => Err(refusals::of_run(error)),
        }
    }

    fn without_unknown(&self, listing: &mut TableListing) {
        let unknown = lock(&self.unknown);
        let Some(names) = unknown.get(&listing.table.name) else { return };
        if let Ok(schema) = &mut listing.schema {
            schema.columns.retain(|column| !names.contains(&column.member));
            schema.content.retain(|content| !names.contains(&content.column));
            let reason = "the service lists the column and does not know it";
            schema.not_captured.extend(names.iter().map(|name| (name.clone(), reason.to_string())));
            schema.not_captured.sort();
        }
    }

    /// Finds every column that the service does not know, one refusal at a time, with a page of one row.
    async fn find_unknown(&self, table: &TableSchema, first: &str, call: &Call) -> Result<(), SourceError> {
        let mut unknown: HashSet<String> = HashSet::from([first.to_string()]);
        let slot = self.slot(&table.table.name);
        while unknown.len() <= UNKNOWN_COLUMNS_MAX {
            let members = table.columns.iter().map(|column| column.member.as_str());
            let asked: Vec<&str> = members.filter(|member| !unknown.contains(*member)).collect();
            let path = format!("{}?$select={}&$top=1", table.entity_set, asked.join(","));
            match self.client.get(&slot, &path, None, &[], 64 << 20, call).await {
                Ok(_) => break,
                Err(error) => match refusals::unknown_property(&error) {
                    Some(name) if unknown.insert(name.to_string()) => {}
                    _ => return Err(refusals::of_table(&table.table, error, false)),
                },
            }
        }
        lock(&self.unknown).entry(table.table.name.clone()).or_default().extend(unknown);
        Ok(())
    }
}

/// Address of the first page. Columns are named one by one, except where the URL would become too long: then all are asked
/// for, which leaves out images only (section 3.4).
pub(crate) fn first_page(table: &TableSchema) -> String {
    let members: Vec<&str> = table.columns.iter().map(|column| column.member.as_str()).collect();
    let address = format!("{}?$select={}", table.entity_set, members.join(","));
    if address.len() > URL_CHARS_MAX { table.entity_set.clone() } else { address }
}

#[async_trait]
impl RowSource for DataverseSource {
    async fn identity(&self, call: &Call) -> Result<EnvironmentIdentity, SourceError> {
        let me = self.small("WhoAmI", call).await.map_err(refusals::of_run)?;
        let text = |value: &Value, name: &str| value[name].as_str().map(str::to_string);
        let (Some(organization_id), Some(user_id)) = (text(&me, "OrganizationId"), text(&me, "UserId")) else {
            return Err(SourceError::Protocol {
                what: "WhoAmI".into(),
                detail: "it names no organization or user".into(),
            });
        };
        let current =
            "RetrieveCurrentOrganization(AccessType=@p1)?@p1=Microsoft.Dynamics.CRM.EndpointAccessType'Default'";
        let detail = self.optional(current, call).await?;
        let detail = detail.get("Detail").unwrap_or(&Value::Null);
        let settings = "organizations?$select=organizationid,name,_basecurrencyid_value";
        let mut told = self.optional(&format!("{settings},expirechangetrackingindays"), call).await?;
        if told.is_null() {
            // One property that an older service does not know makes the whole request fail (section 2.1).
            told = self.optional(settings, call).await?;
        }
        let settings = told;
        let settings = settings.pointer("/value/0").unwrap_or(&Value::Null);
        Ok(EnvironmentIdentity {
            organization_id,
            environment_id: text(detail, "EnvironmentId"),
            tenant_id: text(detail, "TenantId"),
            friendly_name: text(detail, "FriendlyName").or_else(|| text(settings, "name")),
            version: text(detail, "OrganizationVersion"),
            base_currency_id: text(settings, "_basecurrencyid_value"),
            change_tracking_days: settings["expirechangetrackingindays"].as_u64().and_then(|days| days.try_into().ok()),
            user_id,
        })
    }

    async fn discover(&self, call: &Call) -> Result<Vec<TableListing>, SourceError> {
        let slot = self.slot("");
        let mut listings = Metadata { client: &self.client, slot: &slot, call }.tables().await?;
        for listing in &mut listings {
            self.without_unknown(listing);
        }
        Ok(listings)
    }

    async fn rediscover(&self, table: &TableSchema, call: &Call) -> Result<TableListing, SourceError> {
        let slot = self.slot("");
        let mut listing = Metadata { client: &self.client, slot: &slot, call }.table(&table.table).await?;
        self.without_unknown(&mut listing);
        Ok(listing)
    }

    async fn read_page(
        &self,
        table: &TableSchema,
        page: &PageRequest,
        sink: SharedSink,
        call: &Call,
    ) -> Result<PageEnd, SourceError> {
        let slot = self.slot(&table.table.name);
        let (address, link) = match page {
            PageRequest::First { .. } => (first_page(table), false),
            PageRequest::Link(link) => (link.clone(), true),
        };
        if link
            && address.contains(DELTA_TOKEN)
            && let Err(error) = self.client.check_link(&address)
        {
            // The environment has moved to another address since; its tokens did not move with it.
            tracing::warn!(table = %table.table, %error, "the change token is of another address");
            return Err(SourceError::TokenExpired { table: table.table.clone() });
        }
        let what = format!("reading table {}", table.table);
        let tracked = self.is_tracked(table, page);
        let session = self.session(table);
        let headers: Vec<(&str, &str)> = session.iter().map(|token| (SESSION_ASKED, token.as_str())).collect();
        loop {
            let prefer = self.prefer(table, tracked);
            let sink = SharedSink::clone(&sink);
            let read = self.client.read_page(&slot, &address, Some(&prefer), &headers, sink, &what, call).await;
            let error = match read {
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            if refusals::is_sql_timeout(&error) {
                // A smaller page needs a shorter statement (section 5.7).
                let mut sizes = lock(&self.page_rows);
                let rows = sizes.entry(table.table.name.clone()).or_insert(table.page_rows_max);
                if *rows > PAGE_ROWS_MIN {
                    *rows = (*rows / 2).max(PAGE_ROWS_MIN);
                    tracing::warn!(table = %table.table, rows = *rows, "the service timed out; asking for smaller pages");
                    continue;
                }
            }
            if !link && let Some(name) = refusals::unknown_property(&error) {
                let name = name.to_string();
                self.find_unknown(table, &name, call).await?;
            }
            return Err(refusals::of_table(&table.table, error, link));
        }
    }

    async fn is_live(&self, table: &TableSchema, key: &str, call: &Call) -> Result<bool, SourceError> {
        let slot = self.slot(&table.table.name);
        let primary = table.key.first().map(String::as_str).unwrap_or_default();
        let path = format!("{}({key})?$select={primary}", table.entity_set);
        match self.client.get(&slot, &path, None, &[], SMALL_BYTES_MAX, call).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(404) => Ok(false),
            Err(error) => Err(refusals::of_table(&table.table, error, false)),
        }
    }

    async fn read_content(
        &self,
        table: &TableSchema,
        column: &ContentColumn,
        item: &ContentItem,
        sink: SharedContentSink,
        call: &Call,
    ) -> Result<ContentEnd, SourceError> {
        let slot = self.slot(&table.table.name);
        let files = Files { client: &self.client, slot: &slot, table, ranges: &self.ranges, call };
        match column.kind {
            ContentKind::File => files.file(item, sink).await,
            ContentKind::Image => files.image(item, sink).await,
            ContentKind::Base64Body => files.body(item, sink).await,
        }
    }

    async fn approximate_rows(&self, tables: &[TableSchema], call: &Call) -> Result<Vec<(String, u64)>, SourceError> {
        let mut counts = Vec::new();
        for block in tables.chunks(COUNT_NAMES) {
            let names: Vec<&str> = block.iter().map(|table| table.table.name.as_str()).collect();
            let names: String =
                url::form_urlencoded::byte_serialize(Value::from(names).to_string().as_bytes()).collect();
            let path = format!("RetrieveTotalRecordCount(EntityNames=@p1)?@p1={names}");
            let answer = self.optional(&path, call).await?;
            let collection = &answer["EntityRecordCountCollection"];
            if let (Some(keys), Some(values)) = (collection["Keys"].as_array(), collection["Values"].as_array()) {
                let pairs = keys.iter().zip(values);
                counts.extend(pairs.filter_map(|(key, value)| Some((key.as_str()?.to_string(), value.as_u64()?))));
            }
        }
        Ok(counts)
    }

    fn service_time(&self) -> Option<Timestamp> {
        self.client.service_time()
    }
}
