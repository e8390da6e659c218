//! Reading rows: collections, single rows, counts.
//!
//! Three ways lead through a table: in key order (dataverse 3.1), by change (dataverse 4.2), and by version
//! as a watermark (dataverse 4.7). All are paged by [`Cookie`]. A tracked read carries the version at which
//! its first page was read to the end and puts it into the delta link: changes made while it pages are then
//! seen again by the next delta, never lost.

use std::ops::Bound;
use std::sync::Arc;

use jiff::Timestamp;

use crate::access::Controls;
use crate::answer::{Answer, Refusal};
use crate::cookie::{Cookie, Position, delta_token, parse_delta_token};
use crate::database::{Database, RowKey, RowView, Table};
use crate::filter::Filter;
use crate::guid::Guid;
use crate::print::{Columns, Plan, append};
use crate::query::{FORMATTED, METADATA_VERSION, Options, Prefer};
use crate::schema::{Storage, TableDef};

/// Largest page of an elastic table (dataverse 3.1).
const ELASTIC_PAGE_MAX: usize = 500;
/// Counts stop here (dataverse 3.2).
const COUNT_MAX: u64 = 5_000;

/// What the page is to do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageFault {
    RepeatedLink,
    EmptyPage,
    LostDeltaLink,
    RepeatedRow,
}

/// Everything a read needs to know besides its query.
pub(crate) struct Reader<'a> {
    pub(crate) database: &'a Database,
    pub(crate) url: &'a str,
    pub(crate) controls: Arc<Controls>,
    pub(crate) now: Timestamp,
    pub(crate) page_size_max: usize,
    pub(crate) expired_status: u16,
    /// Index of the application user who asks.
    pub(crate) user: usize,
    pub(crate) fault: Option<PageFault>,
    /// The link that was followed, for a page that points to itself.
    pub(crate) own_link: &'a str,
}

/// A page while it is filled.
struct Page {
    rows: String,
    count: usize,
    next: Option<Position>,
}

impl Page {
    fn new(size: usize) -> Self {
        Self { rows: String::with_capacity(size.min(5_000) * 256), count: 0, next: None }
    }

    fn separate(&mut self) {
        if self.count > 0 {
            self.rows.push(',');
        }
        self.count += 1;
    }
}

impl Reader<'_> {
    fn table(&self, index: usize) -> &Table {
        &self.database.tables[index]
    }

    fn base(&self) -> String {
        format!("{}/api/data/v9.2/", self.url)
    }

    /// `GET {set}`.
    pub(crate) fn collection(&self, index: usize, options: &Options, prefer: &Prefer) -> Result<Answer, Refusal> {
        let table = self.table(index);
        let def = &table.def;
        self.controls.check_read(def, self.user)?;
        if options.expand.is_some() {
            if prefer.track_changes || options.delta_token.is_some() {
                return Err(unsupported_while_tracking("$expand"));
            }
            return Err(Refusal::not_simulated("$expand on rows"));
        }
        let cookie = options.skip_token.as_deref().map(Cookie::parse).transpose()?;
        if let Some(cookie) = &cookie
            && (cookie.generation != self.controls.link_generation || cookie.fingerprint != options.fingerprint())
        {
            return Err(Refusal::bad_cookie());
        }
        // The link of a tracked read says so itself; the header alone does not turn a plain link into one.
        let tracked = match (&cookie, &options.delta_token) {
            (Some(cookie), _) => cookie.tracked,
            (None, Some(token)) => Some((self.since(token)?, self.database.version)),
            (None, None) if prefer.track_changes => Some((0, self.database.version)),
            (None, None) => None,
        };
        if tracked.is_some() {
            self.check_tracking(def, options)?;
        }
        let is_delta = options.delta_token.is_some() || tracked.is_some_and(|(since, _)| since > 0);
        let columns = options.select.as_deref().map_or(Columns::Default, Columns::Named);
        let plan = Plan::new(def, &columns, prefer)?;
        let filter = options.filter.as_deref().map(|text| Filter::parse(def, text)).transpose()?;
        let size_max =
            if def.storage == Storage::Elastic { self.page_size_max.min(ELASTIC_PAGE_MAX) } else { self.page_size_max };
        // `$top` and the page size do not combine (dataverse 3.1).
        let size =
            options.top.map_or_else(|| prefer.page_size.unwrap_or(size_max).min(size_max), |top| top.min(size_max));
        let start = match &cookie {
            Some(cookie) => cookie.position.clone(),
            None if is_delta => Position::Changes(tracked.map_or(0, |(since, _)| since)),
            None => first_position(def, options)?,
        };
        let mut page = Page::new(size);
        if self.fault == Some(PageFault::EmptyPage) {
            page.next = Some(start);
        } else {
            self.fill(
                table,
                &mut page,
                start,
                size,
                is_delta.then_some(tracked.map_or(0, |(since, _)| since)),
                &plan,
                filter.as_ref(),
            );
        }
        if options.top.is_some() {
            page.next = None;
        }
        let repeat = self.fault == Some(PageFault::RepeatedLink) && cookie.is_some();
        let link = match page.next.take() {
            _ if repeat => Some(("nextLink", self.own_link.to_owned())),
            Some(position) => {
                let cookie = Cookie {
                    page: cookie.map_or(1, |cookie| cookie.page) + 1,
                    position,
                    tracked,
                    generation: self.controls.link_generation,
                    fingerprint: options.fingerprint(),
                };
                Some(("nextLink", self.link(def, options, "$skiptoken", &cookie.to_token(&def.primary_id))))
            }
            // Formatted values cost the delta link (dataverse 4.6).
            None => tracked
                .filter(|_| self.fault != Some(PageFault::LostDeltaLink) && !prefer.wants(FORMATTED))
                .map(|(_, until)| ("deltaLink", self.link(def, options, "$deltatoken", &delta_token(until, self.now)))),
        };
        let body = self.body(table, options, prefer, &page, link.as_ref(), is_delta, filter.as_ref());
        let mut answer = Answer::json(body);
        if let Some(applied) = prefer.applied(Some(size).filter(|_| options.top.is_none()), tracked.is_some()) {
            answer = answer.with("Preference-Applied", applied);
        }
        Ok(answer)
    }

    fn link(&self, def: &TableDef, options: &Options, name: &str, token: &str) -> String {
        let set = def.set.as_deref().unwrap_or_default();
        format!("{}{set}{}{name}={token}", self.base(), options.link_prefix())
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one page, taken apart")]
    fn fill(
        &self,
        table: &Table,
        page: &mut Page,
        start: Position,
        size: usize,
        since: Option<u64>,
        plan: &Plan,
        filter: Option<&Filter<'_>>,
    ) {
        match start {
            Position::Rows(last) => {
                let from = match &last {
                    None => Bound::Unbounded,
                    // The fault: the last row of the page before comes again.
                    Some(key) if self.fault == Some(PageFault::RepeatedRow) => Bound::Included(key),
                    Some(key) => Bound::Excluded(key),
                };
                let mut at: Option<RowKey> = last.clone();
                table.scan(from, |key, row| {
                    if filter.is_some_and(|filter| !filter.matches(key, row)) {
                        return true;
                    }
                    if page.count == size {
                        page.next = Some(Position::Rows(at.take()));
                        return false;
                    }
                    page.separate();
                    plan.write(key, row, &mut page.rows);
                    if page.count == size {
                        at = Some(key.clone());
                    }
                    true
                });
            }
            Position::Changes(after) => {
                let mut at = after;
                table.scan_changes(after, |key, row: RowView<'_>| {
                    if filter.is_some_and(|filter| !filter.matches(key, row)) {
                        return true;
                    }
                    if page.count == size {
                        page.next = Some(Position::Changes(at));
                        return false;
                    }
                    page.separate();
                    plan.write(key, row, &mut page.rows);
                    at = row.version();
                    true
                });
                if let Some(since) = since.filter(|_| page.next.is_none()) {
                    self.fill_deletions(table, page, since, size);
                }
            }
            Position::Deletions(after) => self.fill_deletions(table, page, after, size),
        }
    }

    /// Deletions come after all changes (dataverse 4.4).
    fn fill_deletions(&self, table: &Table, page: &mut Page, after: u64, size: usize) {
        let set = table.def.set.as_deref().unwrap_or_default();
        let before = format!("{{\"@odata.context\":\"{}$metadata#{set}/$deletedEntity\",\"id\":\"", self.base());
        let mut at = after;
        for (version, key) in table.deletions(after) {
            if page.count == size {
                page.next = Some(Position::Deletions(at));
                return;
            }
            page.separate();
            page.rows.push_str(&before);
            key.id.write(&mut page.rows);
            page.rows.push_str("\",\"reason\":\"deleted\"}");
            at = version;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one page, taken apart")]
    fn body(
        &self,
        table: &Table,
        options: &Options,
        prefer: &Prefer,
        page: &Page,
        link: Option<&(&str, String)>,
        is_delta: bool,
        filter: Option<&Filter<'_>>,
    ) -> String {
        let set = table.def.set.as_deref().unwrap_or_default();
        let mut body = String::with_capacity(page.rows.len() + 1_024);
        append(&mut body, format_args!("{{\"@odata.context\":\"{}$metadata#{set}", self.base()));
        if let Some(select) = &options.select {
            append(&mut body, format_args!("({})", select.join(",")));
        }
        body.push_str(if is_delta { "/$delta\"" } else { "\"" });
        if options.count {
            append(&mut body, format_args!(",\"@odata.count\":{}", Self::count(table, filter)));
        }
        if prefer.wants("Microsoft.Dynamics.CRM.totalrecordcount") {
            // Without `$count` the total is not known (dataverse 3.2).
            let total = if options.count { Self::count(table, filter).to_string() } else { "-1".to_owned() };
            append(
                &mut body,
                format_args!(
                    ",\"@Microsoft.Dynamics.CRM.totalrecordcount\":{total},\"@Microsoft.Dynamics.CRM.totalrecordcountlimitexceeded\":false"
                ),
            );
        }
        if prefer.wants(METADATA_VERSION) {
            append(&mut body, format_args!(",\"@{METADATA_VERSION}\":\"{}\"", self.database.schema_version));
        }
        // A delta answer carries its link before the rows, a full one after them (dataverse 3.1, 4.2).
        let link = link.map(|(name, link)| format!(",\"@odata.{name}\":{}", serde_json::Value::from(link.as_str())));
        if is_delta && let Some(link) = &link {
            body.push_str(link);
        }
        body.push_str(",\"value\":[");
        body.push_str(&page.rows);
        body.push(']');
        if !is_delta && let Some(link) = &link {
            body.push_str(link);
        }
        body.push('}');
        body
    }

    fn since(&self, token: &str) -> Result<u64, Refusal> {
        let (version, issued) = parse_delta_token(token)?;
        let age = self.now.duration_since(issued).as_secs();
        let expired = age > i64::from(self.controls.expiry_days) * 86_400;
        // A version this database never reached belongs to another timeline (dataverse 4.5).
        if expired || version < self.controls.delta_floor || version > self.database.version {
            return Err(Refusal::expired_token(self.expired_status));
        }
        Ok(version)
    }

    fn check_tracking(&self, def: &TableDef, options: &Options) -> Result<(), Refusal> {
        for (name, used) in [
            ("$filter", options.filter.is_some()),
            ("$orderby", options.order.is_some()),
            ("$top", options.top.is_some()),
        ] {
            if used {
                return Err(unsupported_while_tracking(name));
            }
        }
        if !def.tracking {
            return Err(Refusal::new(
                400,
                "0x80072491",
                format!("Change tracking is not enabled for entity '{}'.", def.name),
            ));
        }
        let untracked = def
            .ends
            .iter()
            .flat_map(|ends| [&ends.first.0, &ends.second.0])
            .find(|name| self.database.table(name).is_some_and(|index| !self.table(index).def.tracking));
        if let Some(name) = untracked {
            return Err(Refusal::new(
                400,
                "0x80072492",
                format!(
                    "Change tracking is not enabled for the related entity '{name}' of the intersect entity '{}'.",
                    def.name
                ),
            ));
        }
        self.controls.check_organization_read(def, self.user)
    }

    fn count(table: &Table, filter: Option<&Filter<'_>>) -> u64 {
        let limit = if table.def.storage == Storage::Elastic { ELASTIC_PAGE_MAX as u64 } else { COUNT_MAX };
        let Some(filter) = filter else { return table.len().min(limit) };
        let mut count = 0;
        table.scan(Bound::Unbounded, |key, row| {
            count += u64::from(filter.matches(key, row));
            count < limit
        });
        count
    }

    /// `GET {set}/$count`, with a delta token the number of changes (dataverse 3.2, 4.2).
    pub(crate) fn count_only(&self, index: usize, options: &Options) -> Result<Answer, Refusal> {
        let table = self.table(index);
        self.controls.check_read(&table.def, self.user)?;
        let count = if let Some(token) = &options.delta_token {
            self.check_tracking(&table.def, options)?;
            let since = self.since(token)?;
            let mut count = table.deletions(since).count() as u64;
            table.scan_changes(since, |_, _| {
                count += 1;
                true
            });
            count
        } else {
            let filter = options.filter.as_deref().map(|text| Filter::parse(&table.def, text)).transpose()?;
            Self::count(table, filter.as_ref())
        };
        Ok(Answer::text(format!("\u{feff}{count}")))
    }

    /// `GET {set}({key})`.
    pub(crate) fn single(
        &self,
        index: usize,
        key: &RowKey,
        options: &Options,
        prefer: &Prefer,
    ) -> Result<Answer, Refusal> {
        let table = self.table(index);
        let def = &table.def;
        self.controls.check_read(def, self.user)?;
        let row = table.get(key).ok_or_else(|| Refusal::no_row(&def.name, &key.id.to_string()))?;
        let columns = options.select.as_deref().map_or(Columns::Default, Columns::Named);
        let plan = Plan::new(def, &columns, prefer)?;
        let set = def.set.as_deref().unwrap_or_default();
        let select = options.select.as_ref().map(|select| format!("({})", select.join(","))).unwrap_or_default();
        let mut body = format!("{{\"@odata.context\":\"{}$metadata#{set}{select}/$entity\",", self.base());
        if prefer.wants(METADATA_VERSION) {
            append(&mut body, format_args!("\"@{METADATA_VERSION}\":\"{}\",", self.database.schema_version));
        }
        let mut object = String::new();
        plan.write(key, row, &mut object);
        body.push_str(&object[1..]);
        let mut answer = Answer::json(body);
        if let Some(applied) = prefer.applied(None, false) {
            answer = answer.with("Preference-Applied", applied);
        }
        Ok(answer)
    }
}

fn unsupported_while_tracking(name: &str) -> Refusal {
    // The text of dataverse 4.3.
    Refusal::new(
        400,
        "0x80060888",
        format!("The \"${{{name}}}\" query parameter isn't supported when Change Tracking is enabled."),
    )
}

fn first_position(def: &TableDef, options: &Options) -> Result<Position, Refusal> {
    let Some(order) = &options.order else { return Ok(Position::Rows(None)) };
    match order.trim().trim_end_matches(" asc") {
        "versionnumber" if def.storage == Storage::Standard => Ok(Position::Changes(0)),
        property if property == def.primary_id => Ok(Position::Rows(None)),
        property if def.property(property).is_none() => Err(Refusal::no_property(property, &def.name)),
        _ => Err(Refusal::not_simulated("An order other than by key or version")),
    }
}

/// Reads what stands between the parentheses of `{set}({key})`; elastic rows have a second part (dataverse 8.12).
pub(crate) fn parse_key(def: &TableDef, text: &str, partition: Option<&str>) -> Result<RowKey, Refusal> {
    let mut id = Guid::parse(text);
    let mut named_partition = None;
    for part in text.split(',') {
        match part.split_once('=') {
            Some((name, value)) if name == def.primary_id => id = Guid::parse(value),
            Some(("partitionid", value)) => named_partition = Some(value.trim_matches('\'').replace("''", "'")),
            _ => {}
        }
    }
    let id = id.ok_or_else(|| Refusal::new(400, "0x80060888", format!("Error in URL key '{text}'.")))?;
    let partition = (def.storage == Storage::Elastic).then(|| {
        // Without a partition the default one is meant: the id itself.
        named_partition.or_else(|| partition.map(str::to_owned)).unwrap_or_else(|| id.to_string()).into()
    });
    Ok(RowKey { id, partition })
}
