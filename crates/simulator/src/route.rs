//! From path to table: which part of the Web API a request is for (dataverse 1.1).

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::answer::{Answer, Refusal};
use crate::cookie::Cookie;
use crate::database::Database;
use crate::dataset::root_unit;
use crate::dice::named_guid;
use crate::entra::tenant;
use crate::guid::Guid;
use crate::metadata;
use crate::query::{Options, Prefer, decode};
use crate::read::Reader;
use crate::schema::Storage;
use crate::write::{bulk, find_key};
use crate::{access, bin, catalogue, files};

/// HTTP method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Verb {
    #[default]
    Get,
    Post,
    Patch,
    Put,
    Delete,
}

impl Verb {
    /// Reads the name of a method; `None` for one the service does not know.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "GET" => Self::Get,
            "POST" => Self::Post,
            "PATCH" => Self::Patch,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            _ => return None,
        })
    }
}

/// Headers of a request or of a part of a batch; names ignore case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    pub(crate) fn new<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        Self(headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect())
    }

    /// The first value of a header; `name` is in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// All values of a header; `name` is in lower case.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

/// A request as far as the Web API is concerned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) headers: Headers,
    /// Decoded path after `/api/data/v9.2/`.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) prefer: Prefer,
    pub(crate) range: Option<String>,
    pub(crate) body: Bytes,
    /// The URL as it was asked for.
    pub(crate) link: String,
}

/// Where it goes.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    Function(&'static str),
    Definitions,
    Message(String),
    Collection(usize),
    Count(usize),
    /// `{set}({key})`
    Row(usize, String),
    /// `{set}({key})/{column}/$value`
    Content(usize, String, String),
    /// `{set}({key})/{property}`: a column, a file, or the parties of an activity.
    Property(usize, String, String),
    /// `{set}({key})/{navigation}/$ref` or `…/{navigation}({other})/$ref`
    Reference {
        table: usize,
        key: String,
        navigation: String,
        other: Option<String>,
    },
    /// `{set}/Microsoft.Dynamics.CRM.{name}` or `{set}({key})/Microsoft.Dynamics.CRM.{name}…`
    Bound {
        table: usize,
        key: Option<String>,
        name: String,
    },
    /// `$batch`
    Batch,
    Unknown(String),
}

const FUNCTIONS: [&str; 7] = [
    "RetrieveCurrentOrganization",
    "RetrieveTotalRecordCount",
    "RetrieveMetadataChanges",
    "WhoAmI",
    "RetrieveVersion",
    "$metadata",
    // A set of the platform that is no table here (dataverse 6.12).
    "sdkmessagefilters",
];
/// What stands before the name of a bound function or action.
const BOUND: &str = "/Microsoft.Dynamics.CRM.";
/// Messages that only read.
const READING_MESSAGES: [&str; 4] = [
    "InitializeFileBlocksDownload",
    "InitializeAnnotationBlocksDownload",
    "InitializeAttachmentBlocksDownload",
    "DownloadBlock",
];

impl Request {
    /// Splits off the version; `None` for a path outside of the Web API.
    pub(crate) fn strip_path(path: &str) -> Option<String> {
        let rest = path.strip_prefix("/api/data/v9.")?;
        let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
        // A plus sign is itself in a path.
        matches!(version, "0" | "1" | "2").then(|| decode(&rest.replace('+', "%2B")))
    }

    pub(crate) fn route(&self, database: &Database) -> Route {
        let path = self.path.as_str();
        if path.starts_with("EntityDefinitions") {
            return Route::Definitions;
        }
        if path == "$batch" {
            return Route::Batch;
        }
        let name = path.split(['(', '/']).next().unwrap_or_default();
        if path.is_empty() {
            return Route::Function("");
        }
        let Some(table) = database.set(name) else {
            if self.verb == Verb::Get
                && let Some(function) = FUNCTIONS.iter().find(|function| **function == name)
            {
                return Route::Function(function);
            }
            // A name that is no set is an unbound action.
            return if self.verb == Verb::Post && name == path {
                Route::Message(path.to_owned())
            } else {
                Route::Unknown(name.to_owned())
            };
        };
        let rest = &path[name.len()..];
        if rest.is_empty() {
            return Route::Collection(table);
        }
        if rest == "/$count" {
            return Route::Count(table);
        }
        if let Some(name) = rest.strip_prefix(BOUND) {
            return Route::Bound { table, key: None, name: name.trim_end_matches("()").to_owned() };
        }
        let Some((key, rest)) = split_key(rest) else { return Route::Unknown(path.to_owned()) };
        Self::route_row(table, key, rest)
    }

    fn route_row(table: usize, key: &str, rest: &str) -> Route {
        let key = key.to_owned();
        if rest.is_empty() {
            return Route::Row(table, key);
        }
        if let Some(name) = rest.strip_prefix(BOUND) {
            let name = name.split('(').next().unwrap_or_default().to_owned();
            return Route::Bound { table, key: Some(key), name };
        }
        let Some(rest) = rest.strip_prefix('/') else { return Route::Unknown(rest.to_owned()) };
        if let Some(column) = rest.strip_suffix("/$value") {
            return Route::Content(table, key, column.to_owned());
        }
        if let Some(navigation) = rest.strip_suffix("/$ref") {
            let (navigation, other) = match navigation.split_once('(') {
                Some((navigation, other)) => (navigation, Some(other.trim_end_matches(')').to_owned())),
                None => (navigation, None),
            };
            return Route::Reference { table, key, navigation: navigation.to_owned(), other };
        }
        if rest.contains(['/', '(']) {
            return Route::Unknown(rest.to_owned());
        }
        Route::Property(table, key, rest.to_owned())
    }
}

/// Takes `({key})` off the front; quotes may enclose parentheses.
pub(crate) fn split_key(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('(')?;
    let mut quoted = false;
    for (index, byte) in inside.bytes().enumerate() {
        match byte {
            b'\'' => quoted = !quoted,
            b')' if !quoted => return Some((&inside[..index], &inside[index + 1..])),
            _ => {}
        }
    }
    None
}

impl Route {
    /// Table and kind, for counting.
    pub(crate) fn describe(&self, request: &Request) -> (Option<usize>, &'static str) {
        let reads = request.verb == Verb::Get;
        match self {
            Self::Collection(table) if reads => (Some(*table), if is_delta(&request.query) { "delta" } else { "page" }),
            Self::Collection(table) => (Some(*table), "create"),
            Self::Count(table) => (Some(*table), "count"),
            Self::Row(table, _) => {
                let kind = match request.verb {
                    Verb::Get => "row",
                    Verb::Delete => "delete",
                    _ if request.headers.get("if-match").is_some() => "update",
                    _ if request.headers.all("if-none-match").any(|value| value != "null") => "create",
                    _ => "upsert",
                };
                (Some(*table), kind)
            }
            Self::Content(table, ..) => (Some(*table), "file"),
            Self::Property(table, ..) => {
                // A file is uploaded by PATCH, a value set by PUT (dataverse 6.1, 7.1).
                (Some(*table), if request.verb == Verb::Patch { "upload" } else { "update" })
            }
            Self::Reference { table, .. } => (Some(*table), "link"),
            Self::Bound { table, name, .. } => {
                let kind = match name.as_str() {
                    "CreateMultiple" => "create_multiple",
                    "UpdateMultiple" => "update_multiple",
                    "UpsertMultiple" => "upsert_multiple",
                    "DeleteMultiple" => "delete_multiple",
                    _ => "message",
                };
                (Some(*table), kind)
            }
            Self::Message(name) if READING_MESSAGES.contains(&name.as_str()) => (None, "file"),
            Self::Message(_) => (None, "message"),
            Self::Batch => (None, "batch"),
            Self::Definitions | Self::Function("RetrieveMetadataChanges") => (None, "metadata"),
            Self::Function(_) | Self::Unknown(_) => (None, "other"),
        }
    }

    /// Whether answering may change rows, so that it needs them alone.
    pub(crate) fn is_write(&self, verb: Verb) -> bool {
        match self {
            Self::Message(name) => !READING_MESSAGES.contains(&name.as_str()),
            Self::Batch => true,
            _ => verb != Verb::Get,
        }
    }
}

fn is_delta(query: &str) -> bool {
    Options::parse(query).is_ok_and(|options| {
        options.delta_token.is_some()
            || options.skip_token.is_some_and(|token| {
                Cookie::parse(&token).is_ok_and(|cookie| cookie.tracked.is_some_and(|(since, _)| since > 0))
            })
    })
}

/// Answers a request that nothing went wrong with.
pub(crate) fn respond(reader: &Reader<'_>, route: &Route, request: &Request) -> Result<Answer, Refusal> {
    let database = reader.database;
    let options = Options::parse(&request.query)?;
    let controls = &*reader.controls;
    match route {
        Route::Collection(table) => match &options.fetch_xml {
            Some(xml) => bin::fetch(reader, *table, xml, &request.prefer),
            None => reader.collection(*table, &options, &request.prefer),
        },
        Route::Count(table) => reader.count_only(*table, &options),
        Route::Row(table, key) => {
            let key = find_key(database, *table, key, &options)?;
            reader.single(*table, &key, &options, &request.prefer)
        }
        Route::Content(table, key, column) => {
            let key = find_key(database, *table, key, &options)?;
            let full = options.plain.get("size").is_some_and(|size| size == "full");
            files::value(database, controls, reader.user, *table, &key, column, full, request.range.as_deref())
        }
        Route::Message(name) => files::message(database, controls, reader.user, name, &request.body, reader.url),
        Route::Definitions => {
            metadata::entity_definitions(database, reader.url, &request.path["EntityDefinitions".len()..], &options)
        }
        Route::Function("sdkmessagefilters") => Ok(bulk::filters(reader, &options)),
        Route::Function("RetrieveMetadataChanges") => metadata::changes(database, reader.url, controls, &options),
        Route::Function(name) => function(reader, name, &options),
        Route::Bound { table, key, name } if name == "RetrieveUserPrivileges" => {
            user_privileges(reader, *table, key.as_deref())
        }
        Route::Property(..) => Err(Refusal::not_simulated("Reading a single property")),
        Route::Reference { .. } => Err(Refusal::not_simulated("Reading references")),
        Route::Bound { name: segment, .. } | Route::Unknown(segment) => Err(Refusal::no_segment(segment)),
        Route::Batch => Err(Refusal::no_segment("$batch")),
    }
}

/// `systemusers({id})/Microsoft.Dynamics.CRM.RetrieveUserPrivileges()`: what the roles of a user give.
fn user_privileges(reader: &Reader<'_>, table: usize, key: Option<&str>) -> Result<Answer, Refusal> {
    let (database, controls) = (reader.database, &*reader.controls);
    let entry = &database.tables[table];
    let id = key.and_then(Guid::parse).filter(|_| entry.def.name == "systemuser");
    let id = id.ok_or_else(|| Refusal::no_segment("Microsoft.Dynamics.CRM.RetrieveUserPrivileges"))?;
    if !entry.rows.contains_key(&id.into()) {
        return Err(Refusal::no_row("systemuser", &id.to_string()));
    }
    let mut names: BTreeSet<String> = access::GLOBAL_PRIVILEGES.iter().map(ToString::to_string).collect();
    for def in database.tables.iter().map(|table| &table.def).filter(|def| def.storage != Storage::Virtual) {
        for action in access::ACTIONS {
            if action != "Read" || controls.check_read(def, reader.user).is_ok() {
                names.insert(access::privilege(action, def));
            }
        }
    }
    let has_roles = !controls.without_roles.contains(&id);
    let list: Vec<_> = names
        .iter()
        .filter(|name| has_roles && controls.has(name, id))
        .map(|name| {
            serde_json::json!({
                "Depth": "Global", "PrivilegeId": named_guid(name).to_string(), "PrivilegeName": name,
                "BusinessUnitId": root_unit(controls.environment).to_string(), "RecordFilterId": Guid::default().to_string(),
            })
        })
        .collect();
    let context =
        format!("{}/api/data/v9.2/$metadata#Microsoft.Dynamics.CRM.RetrieveUserPrivilegesResponse", reader.url);
    Ok(Answer::json(serde_json::json!({"@odata.context": context, "RolePrivileges": list}).to_string()))
}

/// Identity of the environment (dataverse 1.7).
fn function(reader: &Reader<'_>, name: &str, options: &Options) -> Result<Answer, Refusal> {
    let (database, controls) = (reader.database, &*reader.controls);
    let context = format!("{}/api/data/v9.2/$metadata#Microsoft.Dynamics.CRM.{name}Response", reader.url);
    let organization = catalogue::organization_id(controls.environment).to_string();
    let body = match name {
        "" => {
            let sets: Vec<_> = database
                .tables
                .iter()
                .filter_map(|table| table.def.set.as_ref())
                .map(|set| serde_json::json!({"name": set, "kind": "EntitySet", "url": set}))
                .collect();
            serde_json::json!({"@odata.context": format!("{}/api/data/v9.2/$metadata", reader.url), "value": sets})
        }
        "WhoAmI" => serde_json::json!({
            "@odata.context": context,
            "BusinessUnitId": root_unit(controls.environment).to_string(),
            "UserId": controls.user_id(reader.user).to_string(),
            "OrganizationId": organization,
        }),
        "RetrieveVersion" => serde_json::json!({"@odata.context": context, "Version": "9.2.24091.00190"}),
        "RetrieveCurrentOrganization" => serde_json::json!({"@odata.context": context, "Detail": {
            "OrganizationId": organization, "FriendlyName": "Simulated Ltd", "OrganizationVersion": "9.2.24091.00190",
            "EnvironmentId": named_guid(&catalogue::in_environment("environment", controls.environment)).to_string(), "DatacenterId": named_guid("datacenter").to_string(), "Geo": "EU",
            "TenantId": tenant(), "UrlName": "simulated", "UniqueName": "unqsimulated", "State": "Enabled",
            "Endpoints": {"Count": 2, "IsReadOnly": false, "Keys": ["WebApplication", "OrganizationService"], "Values": [reader.url, reader.url]},
        }}),
        "RetrieveTotalRecordCount" => {
            let names: Vec<String> =
                options.aliases.values().next().and_then(|text| serde_json::from_str(text).ok()).ok_or_else(|| {
                    Refusal::bad_query("The parameter EntityNames is missing or not a list of names.")
                })?;
            let mut values = Vec::new();
            for name in &names {
                let table = database.table(name).ok_or_else(|| {
                    Refusal::new(400, "0x80041102", format!("The entity with a name = '{name}' was not found."))
                })?;
                values.push(database.tables[table].len());
            }
            serde_json::json!({"@odata.context": context, "EntityRecordCountCollection": {"Count": names.len(), "IsReadOnly": false, "Keys": names, "Values": values}})
        }
        other => return Err(Refusal::not_simulated(other)),
    };
    Ok(Answer::json(body.to_string()))
}
