//! From path to table: which part of the Web API a request is for (dataverse 1.1).

use crate::answer::{Answer, Refusal};
use crate::cookie::Cookie;
use crate::database::Database;
use crate::dataset::user_id;
use crate::dice::named_guid;
use crate::entra::tenant;
use crate::metadata;
use crate::query::{Options, Prefer, decode};
use crate::read::{Reader, parse_key};
use crate::{catalogue, files};

/// A request as far as the Web API is concerned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) post: bool,
    /// Decoded path after `/api/data/v9.2/`.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) prefer: Prefer,
    pub(crate) range: Option<String>,
    pub(crate) body: Vec<u8>,
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
    Row(usize, String),
    Content(usize, String, String),
    Unknown(String),
}

const FUNCTIONS: [&str; 7] = [
    "RetrieveCurrentOrganization",
    "RetrieveTotalRecordCount",
    "RetrieveMetadataChanges",
    "WhoAmI",
    "RetrieveVersion",
    "$metadata",
    "$batch",
];
const MESSAGES: [&str; 4] = [
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
        if self.post {
            return if MESSAGES.contains(&path) {
                Route::Message(path.to_owned())
            } else {
                Route::Unknown(path.to_owned())
            };
        }
        let name = path.split(['(', '/']).next().unwrap_or_default();
        if path.is_empty() {
            return Route::Function("");
        }
        if let Some(function) = FUNCTIONS.iter().find(|function| **function == name) {
            return Route::Function(function);
        }
        let Some(table) = database.set(name) else { return Route::Unknown(name.to_owned()) };
        let rest = &path[name.len()..];
        if rest.is_empty() {
            return Route::Collection(table);
        }
        if rest == "/$count" {
            return Route::Count(table);
        }
        let Some((key, rest)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) else {
            return Route::Unknown(path.to_owned());
        };
        match rest.strip_prefix('/').and_then(|rest| rest.strip_suffix("/$value")) {
            _ if rest.is_empty() => Route::Row(table, key.to_owned()),
            Some(column) => Route::Content(table, key.to_owned(), column.to_owned()),
            None => Route::Unknown(rest.trim_start_matches('/').to_owned()),
        }
    }
}

impl Route {
    /// Table and kind, for counting.
    pub(crate) fn describe(&self, query: &str) -> (Option<usize>, &'static str) {
        match self {
            Self::Collection(table) => (Some(*table), if is_delta(query) { "delta" } else { "page" }),
            Self::Count(table) => (Some(*table), "count"),
            Self::Row(table, _) => (Some(*table), "row"),
            Self::Content(table, ..) => (Some(*table), "file"),
            Self::Message(_) => (None, "file"),
            Self::Definitions | Self::Function("RetrieveMetadataChanges") => (None, "metadata"),
            Self::Function(_) | Self::Unknown(_) => (None, "other"),
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
        Route::Collection(table) => reader.collection(*table, &options, &request.prefer),
        Route::Count(table) => reader.count_only(*table, &options),
        Route::Row(table, key) => {
            let key = parse_key(&database.tables[*table].def, key, options.partition.as_deref())?;
            reader.single(*table, &key, &options, &request.prefer)
        }
        Route::Content(table, key, column) => {
            let key = parse_key(&database.tables[*table].def, key, options.partition.as_deref())?;
            let full = options.plain.get("size").is_some_and(|size| size == "full");
            files::value(database, controls, reader.user, *table, &key, column, full, request.range.as_deref())
        }
        Route::Message(name) => files::message(database, controls, reader.user, name, &request.body, reader.url),
        Route::Definitions => {
            metadata::entity_definitions(database, reader.url, &request.path["EntityDefinitions".len()..], &options)
        }
        Route::Function("RetrieveMetadataChanges") => metadata::changes(database, reader.url, controls, &options),
        Route::Function(name) => function(reader, name, &options),
        Route::Unknown(segment) if request.post => Err(Refusal::not_simulated(&format!("Writing through '{segment}'"))),
        Route::Unknown(segment) => Err(Refusal::no_segment(segment)),
    }
}

/// Identity of the environment (dataverse 1.7).
fn function(reader: &Reader<'_>, name: &str, options: &Options) -> Result<Answer, Refusal> {
    let database = reader.database;
    let context = format!("{}/api/data/v9.2/$metadata#Microsoft.Dynamics.CRM.{name}Response", reader.url);
    let organization = catalogue::organization_id().to_string();
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
            "BusinessUnitId": named_guid("root business unit").to_string(),
            "UserId": user_id(reader.user).to_string(),
            "OrganizationId": organization,
        }),
        "RetrieveVersion" => serde_json::json!({"@odata.context": context, "Version": "9.2.24091.00190"}),
        "RetrieveCurrentOrganization" => serde_json::json!({"@odata.context": context, "Detail": {
            "OrganizationId": organization, "FriendlyName": "Simulated Ltd", "OrganizationVersion": "9.2.24091.00190",
            "EnvironmentId": named_guid("environment").to_string(), "DatacenterId": named_guid("datacenter").to_string(), "Geo": "EU",
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
