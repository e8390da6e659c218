//! An environment of Unified Operations, as far as a profile is checked with it (`finops` protocol, sections 1.1, 1.8
//! and 9): whether it lets us in, which companies the user may see, how many data entities it offers.
//!
//! ```text
//! /data/LegalEntities, all companies ─ not offered ─▶ /data/Companies
//! /data ─▶ entity sets
//! ```
//!
//! Only reads, and few. Permissions in Entra do not decide here: an app has to be registered in the environment and
//! mapped to a user, and a valid token without that is refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dynavault_identity::TokenSource;
use dynavault_model::{Call, Clock, Diagnose, FaultKind, Retry, Tally};
use dynavault_odata::{Client, ClientConfig, RequestError, RetryPolicy, UserSlot};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// Longest answer; a service document lists several thousand entity sets.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Pages of the list of companies; a page has up to 10,000 rows.
const PAGES_MAX: usize = 10;
/// A check is made by a person who waits.
const TIME_MAX: Duration = Duration::from_secs(20);
/// The first call after a restart of the service is slow, because it then builds its metadata (section 1.1).
const HEADERS_TIME_MAX: Duration = Duration::from_secs(60);
/// Tries of one request.
const TRIES_MAX: u32 = 3;
/// Names that a warning lists.
const NAMES_MAX: usize = 8;

/// The environment gave no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FinanceError {
    /// It does not let us in (section 9.4).
    #[error("the environment does not let us in: {0}")]
    Refused(String),
    /// Anything else, after all tries.
    #[error("the environment gave no answer")]
    Failed(#[source] RequestError),
    /// The answer is not what the service says of itself.
    #[error("the answer of the environment cannot be used: {0}")]
    Unusable(String),
}

impl Diagnose for FinanceError {
    fn retry(&self) -> Retry {
        match self {
            Self::Failed(error) => error.retry(),
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Refused(_) => Some(
                "register the app in the environment (System administration, Setup, Microsoft Entra applications) and map it to an enabled user with roles for data services; a person needs these roles".to_owned(),
            ),
            Self::Failed(error) => error.remedy(),
            Self::Unusable(_) => Some("check the address of the environment".to_owned()),
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Refused(_) => FaultKind::SignIn,
            Self::Failed(error) => error.kind(),
            Self::Unusable(_) => FaultKind::Failed,
        }
    }
}

/// What the environment shows to the user.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Ids of companies, in lower case: they compare without case (section 1.7).
    pub(crate) companies: BTreeSet<String>,
    /// Entity sets.
    pub(crate) data_entities: u64,
}

impl Offer {
    /// A warning where the user does not see what is to be protected: rows of other companies are simply not there,
    /// with status 200 (section 1.8).
    pub(crate) fn lacking(&self, environment: &str, configured: &[String]) -> Option<String> {
        if self.companies.is_empty() {
            return Some(format!("environment {environment}: the user sees no company, so reads give no rows"));
        }
        let seen = |name: &&String| self.companies.contains(&name.to_lowercase());
        let unseen: Vec<&str> = configured.iter().filter(|name| !seen(name)).map(String::as_str).collect();
        (!unseen.is_empty()).then(|| {
            let shown = unseen[..unseen.len().min(NAMES_MAX)].join(", ");
            format!(
                "environment {environment}: the user does not see {} of {} configured companies: {shown}",
                unseen.len(),
                configured.len()
            )
        })
    }
}

#[derive(Deserialize)]
struct Page<T> {
    value: Vec<T>,
    #[serde(rename = "@odata.nextLink")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Company {
    /// In `LegalEntities`.
    #[serde(rename = "LegalEntityId")]
    legal_entity_id: Option<String>,
    /// In `Companies`.
    #[serde(rename = "DataArea")]
    data_area: Option<String>,
}

#[derive(Deserialize)]
struct EntitySet {
    kind: Option<String>,
}

/// An environment as one identity sees it.
pub(crate) struct Finance {
    client: Client,
    slot: UserSlot,
    call: Call,
}

impl Finance {
    /// `resource` is the address of the environment. Sends nothing yet.
    pub(crate) fn new(
        resource: &str,
        tokens: Arc<dyn TokenSource>,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> Result<Self, RequestError> {
        let mut config = ClientConfig::new(format!("{resource}/"));
        config.in_flight_max = 1;
        config.headers_timeout = HEADERS_TIME_MAX;
        config.retry = RetryPolicy {
            time_max: TIME_MAX,
            first_contact_time_max: TIME_MAX,
            throttled_time_max: TIME_MAX,
            tries_max: TRIES_MAX,
            ..RetryPolicy::default()
        };
        let client = Client::new(config, vec![tokens], clock)?;
        let slot = client.slot();
        Ok(Self { client, slot, call: Call { tally: Arc::new(Tally::default()), cancel } })
    }

    /// Time by the environment's clock at the last answer.
    pub(crate) fn service_time(&self) -> Option<Timestamp> {
        self.client.service_time()
    }

    /// Asks for the companies and for the data entities.
    pub(crate) async fn look(&self) -> Result<Offer, FinanceError> {
        let companies = match self.companies("data/LegalEntities?cross-company=true&$select=LegalEntityId").await {
            Err(FinanceError::Failed(RequestError::Service { status: 404, .. })) => {
                self.companies("data/Companies?cross-company=true&$select=DataArea").await?
            }
            other => other?,
        };
        let sets: Page<EntitySet> = self.get("data").await?;
        let is_set = |set: &&EntitySet| set.kind.as_deref().is_none_or(|kind| kind == "EntitySet");
        Ok(Offer { companies, data_entities: sets.value.iter().filter(is_set).count() as u64 })
    }

    async fn companies(&self, path: &str) -> Result<BTreeSet<String>, FinanceError> {
        let mut found = BTreeSet::new();
        let mut link = path.to_owned();
        for _ in 0..PAGES_MAX {
            let page: Page<Company> = self.get(&link).await?;
            let ids = page.value.into_iter().filter_map(|company| company.legal_entity_id.or(company.data_area));
            found.extend(ids.map(|id| id.to_lowercase()));
            let Some(next) = page.next else { return Ok(found) };
            link = next;
        }
        Err(FinanceError::Unusable(format!("the list of companies has more than {PAGES_MAX} pages")))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, FinanceError> {
        let reply = self.client.get(&self.slot, path, None, &[], ANSWER_BYTES_MAX, &self.call).await;
        let reply = reply.map_err(|error| match error {
            RequestError::Service { status: 403, message, .. } | RequestError::Unauthorized { message, .. } => {
                FinanceError::Refused(message)
            }
            error => FinanceError::Failed(error),
        })?;
        serde_json::from_slice(&reply.body).map_err(|error| FinanceError::Unusable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companies_that_the_user_does_not_see_are_named() {
        let offer = Offer { companies: ["usmf".to_owned(), "dat".to_owned()].into(), data_entities: 1 };
        assert_eq!(offer.lacking("prod", &["USMF".to_owned(), "DAT".to_owned()]), None);
        assert_eq!(offer.lacking("prod", &[]), None);
        let warning = offer.lacking("prod", &["usmf".to_owned(), "DEMF".to_owned()]).unwrap();
        assert!(warning.contains("1 of 2") && warning.ends_with(": DEMF"), "{warning}");
        assert!(Offer::default().lacking("prod", &[]).unwrap().contains("no company"));
    }
}
