//! Microsoft Graph, as far as an app profile is checked with it (entra 10.3, 11).
//!
//! ```text
//! token for Graph? ─▶ claims? ─▶ fault instead? ─▶ permission ─▶ objects ─▶ filter, select, page
//!      401             401          429, 5xx           403
//! ```
//!
//! Objects are printed from the directory that also decides what tokens carry.

mod objects;
mod query;

use std::collections::VecDeque;
use std::sync::Arc;

use axum::http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::answer::Answer;
use crate::config::FaultKind;
use crate::dice::named_guid;
use crate::entra::Authority;
use crate::entra::directory::tenant;
use crate::entra::ledger::Access;
use crate::entra::permission::Api;
use crate::entra::script::AnswerFault;
use crate::graph::query::Options;
use crate::shared::Shared;

/// Requests kept in the log; the oldest go first.
const LOG_MAX: usize = 10_000;

/// A way in which answers of Graph are odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphQuirk {
    /// A page after the first names itself as the next one.
    RepeatedLink,
    /// The next link leads to another host.
    ForeignLink,
    /// `/organization` is another tenant.
    OtherOrganization,
}

/// One request to Graph.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GraphRequest {
    /// Path below the root, such as `v1.0/groups`.
    pub path: String,
    /// Query as sent.
    pub query: String,
    /// Header `ConsistencyLevel`.
    pub consistency_level: Option<String>,
    /// HTTP status of the answer.
    pub status: u16,
}

/// What Graph was told to do wrong, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct GraphState {
    pub(crate) faults: VecDeque<AnswerFault>,
    pub(crate) page_size: Option<usize>,
    pub(crate) quirk: Option<GraphQuirk>,
    pub(crate) log: VecDeque<GraphRequest>,
    requests: u64,
}

/// A refusal of Graph.
#[derive(Debug)]
pub(crate) struct GraphError {
    status: u16,
    code: &'static str,
    message: String,
}

impl GraphError {
    pub(crate) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, "Request_BadRequest", message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(400, "Request_UnsupportedQuery", message)
    }

    pub(crate) fn not_found(id: &str) -> Self {
        Self::new(
            404,
            "Request_ResourceNotFound",
            format!("Resource '{id}' does not exist or one of its queried reference-property objects are not present."),
        )
    }

    pub(crate) fn denied() -> Self {
        Self::new(403, "Authorization_RequestDenied", "Insufficient privileges to complete the operation.")
    }

    fn into_answer(self, request_id: &str, date: &str) -> Answer {
        let body = json!({"error": {"code": self.code, "message": self.message,
            "innerError": {"date": date, "request-id": request_id, "client-request-id": request_id}}});
        Answer { status: self.status, ..Answer::json(body.to_string()) }
    }
}

/// One of these permissions must be in the token (entra 11).
pub(crate) fn need(access: &Access, any_of: &[&str]) -> Result<(), GraphError> {
    let has = |wanted: &&str| access.scopes.iter().any(|scope| scope == wanted) || access.roles.contains(wanted);
    // What may write may read.
    let reads = any_of.contains(&"Directory.Read.All") && has(&"Directory.ReadWrite.All");
    if reads || any_of.iter().any(has) { Ok(()) } else { Err(GraphError::denied()) }
}

impl Authority {
    /// The token of a request to Graph, or what turns it away.
    fn graph_access(&self, token: Option<&str>) -> Result<Access, Option<GraphError>> {
        let refuse = |message: &str| Some(GraphError::new(401, "InvalidAuthenticationToken", message));
        let Some(token) = token else { return Err(refuse("Access token is empty.")) };
        let Some(access) = self.ledger.access.get(token) else {
            return Err(refuse("CompactToken validation failed with reason code: 80049217."));
        };
        if access.api != Api::Graph {
            return Err(refuse("Access token validation failure. Invalid audience."));
        }
        if self.live(token).is_none() {
            return Err(refuse("Lifetime validation failed, the token is expired."));
        }
        // The challenge speaks in a header, not in the body.
        if self.challenge(access).is_some() { Err(None) } else { Ok(access.clone()) }
    }

    fn graph(&mut self, path: &str, query: &str, headers: &HeaderMap) -> Answer {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        self.graph.requests += 1;
        let request_id =
            named_guid(&format!("graph request {} {}", self.resources.graph, self.graph.requests)).to_string();
        let date = self.shown().strftime("%Y-%m-%dT%H:%M:%S").to_string();
        let token = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let answer = match self.graph_access(token) {
            Err(Some(error)) => error.into_answer(&request_id, &date).with(
                "WWW-Authenticate",
                format!(
                    "Bearer realm=\"\", authorization_uri=\"{}\", client_id=\"{}\"",
                    self.sign_in_uri(),
                    Api::Graph.app_id()
                ),
            ),
            Err(None) => {
                let headers = token
                    .and_then(|token| self.ledger.access.get(token))
                    .and_then(|access| self.challenge(access))
                    .map(|answer| answer.headers)
                    .unwrap_or_default();
                let error = GraphError::new(
                    401,
                    "InvalidAuthenticationToken",
                    "Continuous access evaluation resulted in challenge.",
                );
                Answer { headers, ..error.into_answer(&request_id, &date) }
            }
            Ok(access) => {
                let result = Options::parse(query, text("consistencylevel"))
                    .and_then(|options| objects::find(self, &access, path, &options));
                match result {
                    Ok(value) => Answer::json(value.to_string()),
                    Err(error) => error.into_answer(&request_id, &date),
                }
            }
        };
        answer.with("request-id", request_id).with("x-ms-resource-unit", "1")
    }

    /// The tenant as `/organization` names it.
    pub(crate) fn organization_id(&self) -> String {
        if self.graph.quirk == Some(GraphQuirk::OtherOrganization) {
            named_guid("another tenant").to_string()
        } else {
            tenant()
        }
    }
}

/// Answers one request below `/graph/`.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
) -> (Answer, Option<FaultKind>) {
    let fault = shared.state().authority.graph.faults.pop_front();
    if let Some(fault) = fault {
        tokio::time::sleep(fault.delay()).await;
    }
    let mut state = shared.state();
    let authority = &mut state.authority;
    let mut answer = match fault.and_then(AnswerFault::instead) {
        Some(instead) => instead,
        None if *method == Method::GET => authority.graph(path, query, headers),
        None => Answer::empty(405),
    };
    answer.headers.extend(authority.date().map(|date| ("Date", date)));
    if authority.graph.log.len() >= LOG_MAX {
        authority.graph.log.pop_front();
    }
    authority.graph.log.push_back(GraphRequest {
        path: path.to_owned(),
        query: query.to_owned(),
        consistency_level: headers.get("consistencylevel").and_then(|value| value.to_str().ok()).map(str::to_owned),
        status: answer.status,
    });
    *state.counter.stats.by_kind.entry("graph".to_owned()).or_default() += 1;
    (answer, fault.and_then(AnswerFault::wire))
}
