//! Changing rows through the Web API.
//!
//! ```text
//! request ─▶ caller, bypass headers ─▶ row | bulk | batch | links | actions | uploads
//!                                        │
//!                    body ─▶ values, bind ─▶ state, owner, keys ─▶ effects ─▶ custom logic
//! ```
//!
//! - Every operation is one transaction: what it had done is undone when it is refused (dataverse 6.11).
//! - What a client may send and what the service answers follow dataverse 6.1, 6.2 and 6.16.
//! - Values are stored as the bytes that were sent, so that a restored row reads back as it was.

mod batch;
mod bind;
mod body;
pub(crate) mod bulk;
mod caller;
mod changes;
mod effects;
mod logic;
mod multipart;
mod parties;
mod row;
mod special;
mod state;
mod values;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::access::Controls;
use crate::answer::{Answer, Refusal};
use crate::config::FaultKind;
use crate::database::{Database, RowKey};
use crate::dice::Dice;
use crate::links::{self, Reference};
use crate::query::Options;
use crate::read::Reader;
use crate::route::{self, Request, Route, Verb};
use crate::shared::Shared;
use crate::{actions, uploads};

pub(crate) use bind::{find_key, resolve, row_key};
pub(crate) use body::{Body, bad_payload};
pub(crate) use caller::Caller;
pub(crate) use effects::stamp_update;
pub(crate) use row::{create, update};
pub(crate) use state::{force_state, state_of};

/// Keeps the sequence of new ids apart from other uses of the seed.
const NEW_IDS: u64 = 0x5e_77_1e;

/// Rows of one table that clients wrote; cascades and custom logic do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowWrites {
    /// Rows created.
    pub created: u64,
    /// Rows updated, also without a difference.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
}

/// What one request did.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Operations inside of a batch or bulk message; each costs execution time.
    pub(crate) parts: u32,
    /// Operations by kind, those of a batch one by one.
    pub(crate) operations: BTreeMap<&'static str, u64>,
    /// Rows by table.
    pub(crate) rows: BTreeMap<String, RowWrites>,
    /// Times the custom plug-ins ran.
    pub(crate) plugins: u64,
    /// Cloud flows started.
    pub(crate) flows: u64,
}

/// Everything a write works with.
pub(crate) struct WriteContext<'a> {
    pub(crate) database: &'a mut Database,
    pub(crate) shared: &'a Shared,
    pub(crate) controls: Arc<Controls>,
    pub(crate) now: Timestamp,
    /// Index of the caller who signed in.
    pub(crate) user: usize,
    /// Who acts in the operation under way, and what may be left out of it.
    pub(crate) caller: Caller,
    pub(crate) fault: Option<FaultKind>,
    /// New ids.
    pub(crate) dice: Dice,
    pub(crate) tally: Tally,
    /// Rows by Content-ID of the change set under way (dataverse 6.11).
    references: HashMap<String, String>,
}

impl<'a> WriteContext<'a> {
    pub(crate) fn new(
        database: &'a mut Database,
        shared: &'a Shared,
        controls: Arc<Controls>,
        now: Timestamp,
        user: usize,
        fault: Option<FaultKind>,
    ) -> Self {
        let dice = Dice::new(shared.config.seed ^ database.version, NEW_IDS);
        let caller = Caller::signed_in(controls.user_id(user));
        Self {
            database,
            shared,
            controls,
            now,
            user,
            caller,
            fault,
            dice,
            tally: Tally::default(),
            references: HashMap::new(),
        }
    }

    /// Base of the Web API, with a slash at its end.
    pub(crate) fn base(&self) -> String {
        format!("{}/api/data/v9.2/", self.shared.url)
    }

    /// Runs `work`; when it is refused, nothing of it remains.
    pub(crate) fn transaction<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let savepoint = self.database.savepoint();
        let rows = self.tally.rows.clone();
        let result = work(self);
        if result.is_err() {
            self.database.roll_back(savepoint);
            self.tally.rows = rows;
        }
        result
    }

    /// Ends the request: what was done stays.
    pub(crate) fn finish(self) -> Tally {
        self.database.commit();
        self.tally
    }

    /// Reads with the same eyes.
    fn reader<'b>(&'b self, link: &'b str) -> Reader<'b> {
        Reader {
            database: self.database,
            url: &self.shared.url,
            controls: Arc::clone(&self.controls),
            now: self.now,
            page_size_max: self.shared.config.page_size_max,
            expired_status: self.shared.config.expired_token_status,
            user: self.user,
            fault: None,
            own_link: link,
        }
    }

    /// The URL of a row, as `OData-EntityId` gives it.
    pub(crate) fn row_url(&self, table: usize, key: &RowKey) -> String {
        let set = self.database.tables[table].def.set.as_deref().unwrap_or_default();
        format!("{}{set}({})", self.base(), key.id)
    }

    fn count_rows(&mut self, table: usize, count: impl FnOnce(&mut RowWrites)) {
        count(self.tally.rows.entry(self.database.tables[table].def.name.clone()).or_default());
    }
}

/// Answers a request that may change rows.
pub(crate) fn respond(context: &mut WriteContext<'_>, route: &Route, request: &Request) -> Answer {
    match route {
        Route::Batch => batch::respond(context, request),
        _ => operation(context, route, request)
            .unwrap_or_else(|refusal| refusal.for_client(&request.prefer).into_answer()),
    }
}

/// One operation, alone or as a part of a batch.
fn operation(context: &mut WriteContext<'_>, route: &Route, request: &Request) -> Result<Answer, Refusal> {
    let kind = route.describe(request).1;
    *context.tally.operations.entry(kind).or_default() += 1;
    if !route.is_write(request.verb) {
        return route::respond(&context.reader(&request.link), route, request);
    }
    context.caller = Caller::read(context, &request.headers)?;
    context.transaction(|context| dispatch(context, route, request))
}

fn dispatch(context: &mut WriteContext<'_>, route: &Route, request: &Request) -> Result<Answer, Refusal> {
    let options = Options::parse(&request.query)?;
    match (request.verb, route) {
        (Verb::Post, Route::Collection(table)) => row::post(context, *table, request),
        (Verb::Patch, Route::Row(table, key)) => row::patch(context, *table, key, request, &options),
        (Verb::Delete, Route::Row(table, key)) => row::remove(context, *table, key, request, &options),
        (Verb::Patch, Route::Property(table, key, column)) => {
            uploads::patch(context, *table, key, column, request, &options)
        }
        (Verb::Delete, Route::Property(table, key, column))
            if uploads::holds_content(&context.database.tables[*table].def, column) =>
        {
            uploads::remove(context, *table, key, column, &options)
        }
        (_, Route::Reference { table, key, navigation, other }) => {
            let other = other.as_deref();
            links::reference(context, &Reference { table: *table, key, navigation, other }, request, &options)
        }
        (Verb::Put | Verb::Delete, Route::Property(table, key, property)) => {
            row::property(context, *table, key, property, request, &options)
        }
        (Verb::Post, Route::Bound { table, key: None, name }) => bulk::message(context, *table, name, request),
        (Verb::Post, Route::Bound { table, key: Some(key), name }) => {
            actions::bound(context, *table, key, name, request)
        }
        (Verb::Post, Route::Message(name)) => actions::message(context, name, request),
        _ => Err(Refusal::new(
            404,
            "",
            format!("No HTTP resource was found that matches the request URI '{}'.", request.link),
        )),
    }
}
