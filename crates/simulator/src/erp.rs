//! The little of finance and operations that an app profile is checked with: sign-in, companies, the list of entity sets
//! (finops 1.1, 1.8, 9). No data.
//!
//! ```text
//! token for it? ─▶ claims? ─▶ app registered there? ─▶ companies, entity sets
//!     401            401             401                 404 for anything else
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::http::{HeaderMap, Method};
use serde_json::{Value, json};

use crate::answer::{Answer, Refusal};
use crate::entra::Authority;
use crate::entra::permission::Api;
use crate::entra::steer::Entra;
use crate::shared::Shared;

/// Entity sets that are offered beside the lists of companies.
const ENTITY_SETS: [&str; 4] = ["CustomersV3", "CustomerGroups", "VendorsV2", "SysAADClients"];
/// Company of a user who asks for none in particular (finops 1.8).
const DEFAULT_COMPANY: &str = "dat";

/// What the environment knows and was told to do.
#[derive(Debug)]
pub(crate) struct ErpState {
    companies: Vec<String>,
    /// Apps that nobody entered in its own list of applications (finops 9.3).
    unregistered: BTreeSet<String>,
    /// Entity sets that this version does not have.
    hidden: BTreeSet<String>,
}

impl Default for ErpState {
    fn default() -> Self {
        let companies = [DEFAULT_COMPANY, "usmf", "demf"].map(str::to_owned).to_vec();
        Self { companies, unregistered: BTreeSet::new(), hidden: BTreeSet::new() }
    }
}

impl Entra {
    /// Whether an app is entered in the list of applications of the finance and operations environment; it is from the start.
    pub fn let_into_erp(&self, client: &str, allowed: bool) {
        let unregistered = &mut self.hold().erp.unregistered;
        if allowed {
            unregistered.remove(client);
        } else {
            unregistered.insert(client.to_owned());
        }
    }

    /// The companies that everybody may see there.
    pub fn set_erp_companies(&self, companies: &[&str]) {
        self.hold().erp.companies = companies.iter().map(ToString::to_string).collect();
    }

    /// Takes an entity set away, as a version without it.
    pub fn hide_in_erp(&self, entity_set: &str) {
        self.hold().erp.hidden.insert(entity_set.to_owned());
    }
}

impl Authority {
    fn erp(&self, path: &str, query: &str, headers: &HeaderMap) -> Answer {
        let authorization = headers.get("authorization").and_then(|value| value.to_str().ok());
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let access = token.and_then(|token| self.live(token)).filter(|access| access.api == Api::DynamicsErp);
        let Some(access) = access else { return Answer::empty(401) };
        if let Some(answer) = self.challenge(access) {
            return answer;
        }
        let client = &self.directory.apps[access.subject.app].client_id;
        if access.subject.person.is_none() && self.erp.unregistered.contains(client) {
            // The exact words are not known (finops 9.4).
            return Answer { status: 401, ..Answer::text("The application is not registered.".to_owned()) };
        }
        let offered = |set: &str| !self.erp.hidden.contains(set);
        let everywhere = query.split('&').any(|option| option == "cross-company=true");
        let companies = |column: &str| -> Value {
            let seen = self.erp.companies.iter().filter(|name| everywhere || *name == DEFAULT_COMPANY);
            seen.map(|name| json!({column: name})).collect()
        };
        let value = match path {
            "data" => {
                let sets = ["LegalEntities", "Companies"].into_iter().chain(ENTITY_SETS).filter(|set| offered(set));
                sets.map(|set| json!({"name": set, "kind": "EntitySet", "url": set})).collect()
            }
            "data/LegalEntities" if offered("LegalEntities") => companies("LegalEntityId"),
            "data/Companies" if offered("Companies") => companies("DataArea"),
            _ => {
                let text = format!("No HTTP resource was found that matches the request URI '/{path}'.");
                return Refusal::new(404, "", text).into_answer();
            }
        };
        Answer::json(json!({"@odata.context": "$metadata", "value": value}).to_string())
    }
}

/// Answers one request below `/erp/`.
pub(crate) fn answer(shared: &Arc<Shared>, method: &Method, path: &str, query: &str, headers: &HeaderMap) -> Answer {
    let mut state = shared.state();
    *state.counter.stats.by_kind.entry("erp".to_owned()).or_default() += 1;
    let authority = &state.authority;
    let mut answer = match *method {
        Method::GET => authority.erp(path.trim_end_matches('/'), query, headers),
        _ => Answer::empty(405),
    };
    answer.headers.extend(authority.date().map(|date| ("Date", date)));
    answer
}
