//! Microsoft Graph, as far as a profile is checked with it (`entra` protocol, sections 10.3 and 11).
//!
//! Only reads. Requests go through the client that environments are read with: it tries again, honours `Retry-After`,
//! renews a token once, and sends it to no other host. What a caller may not read is [`GraphError::Denied`], which is an
//! answer and not a failure: a profile without directory permissions is checked by other means.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dynavault_identity::TokenSource;
use dynavault_model::{Call, Clock, Diagnose, Tally};
use dynavault_odata::{Client, ClientConfig, RequestError, RetryPolicy, UserSlot};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::profile::Api;

/// Longest answer; service principals list hundreds of permissions.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Pages of one list: 200,000 groups in pages of 999.
const PAGES_MAX: usize = 200;
/// Largest page of directory objects (section 11).
const PAGE_ROWS: usize = 999;
/// A check is made by a person who waits.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Longest waiting that Graph may ask for in one request.
const THROTTLED_TIME_MAX: Duration = Duration::from_secs(180);
/// Requests at the same time; they are made one after the other.
const IN_FLIGHT_MAX: u32 = 2;

/// Graph gave no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GraphError {
    /// The token does not carry what the call needs.
    #[error("Microsoft Graph does not allow it: {0}")]
    Denied(String),
    /// Anything else, after all tries.
    #[error("Microsoft Graph gave no answer")]
    Failed(#[source] RequestError),
    /// The answer is not what Graph says of itself.
    #[error("the answer of Microsoft Graph cannot be used: {0}")]
    Unusable(String),
}

impl GraphError {
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Denied(_))
    }
}

impl Diagnose for GraphError {
    fn retry(&self) -> dynavault_model::Retry {
        match self {
            Self::Failed(error) => error.retry(),
            _ => dynavault_model::Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Failed(error) => error.remedy(),
            _ => None,
        }
    }

    fn kind(&self) -> dynavault_model::FaultKind {
        match self {
            Self::Denied(_) => dynavault_model::FaultKind::SignIn,
            Self::Failed(error) => error.kind(),
            Self::Unusable(_) => dynavault_model::FaultKind::Failed,
        }
    }
}

/// The tenant as it names itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Organization {
    pub(crate) id: String,
    pub(crate) display_name: Option<String>,
    #[serde(default)]
    verified_domains: Vec<Domain>,
}

#[derive(Debug, Deserialize)]
struct Domain {
    name: String,
}

impl Organization {
    pub(crate) fn domains(&self) -> Vec<String> {
        self.verified_domains.iter().map(|domain| domain.name.clone()).collect()
    }
}

/// The signed-in person.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Me {
    pub(crate) id: String,
    pub(crate) user_principal_name: Option<String>,
    pub(crate) display_name: Option<String>,
}

/// An app in the tenant.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServicePrincipal {
    pub(crate) id: String,
    pub(crate) app_id: String,
    pub(crate) display_name: Option<String>,
    #[serde(default)]
    app_roles: Vec<Published>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Published {
    id: String,
    value: Option<String>,
    #[serde(default)]
    is_enabled: bool,
    #[serde(default)]
    allowed_member_types: Vec<String>,
}

impl ServicePrincipal {
    /// Id of an application permission by its value. Entries that are switched off, or that are for people, do not count
    /// (section 2.3).
    pub(crate) fn role_id(&self, value: &str) -> Option<&str> {
        let counts = |role: &&Published| {
            role.is_enabled
                && role.value.as_deref() == Some(value)
                && role.allowed_member_types.iter().any(|kind| kind == "Application")
        };
        self.app_roles.iter().find(counts).map(|role| role.id.as_str())
    }
}

/// An application permission that was granted.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoleAssignment {
    pub(crate) app_role_id: String,
    pub(crate) resource_id: String,
}

/// Delegated permissions that were granted.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ScopeGrant {
    pub(crate) resource_id: String,
    pub(crate) consent_type: String,
    pub(crate) principal_id: Option<String>,
    #[serde(default)]
    pub(crate) scope: String,
}

/// An app registration's secrets; their values are never shown. A certificate tells its own end.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppCredentials {
    #[serde(default)]
    pub(crate) password_credentials: Vec<AppCredential>,
}

/// One credential.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppCredential {
    pub(crate) display_name: Option<String>,
    /// First characters of a secret.
    pub(crate) hint: Option<String>,
    pub(crate) end_date_time: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Page<T> {
    value: Vec<T>,
    #[serde(rename = "@odata.nextLink")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Anything {}

/// Graph as one identity sees it.
pub(crate) struct Graph {
    client: Client,
    slot: UserSlot,
    call: Call,
}

impl Graph {
    /// `root` is the address without version, e.g. `https://graph.microsoft.com`. Sends nothing yet.
    pub(crate) fn new(
        root: &str,
        tokens: Arc<dyn TokenSource>,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> Result<Self, RequestError> {
        let mut config = ClientConfig::new(format!("{root}/v1.0/"));
        config.in_flight_max = IN_FLIGHT_MAX;
        config.retry = RetryPolicy {
            time_max: TIME_MAX,
            first_contact_time_max: TIME_MAX,
            throttled_time_max: THROTTLED_TIME_MAX,
            tries_max: 6,
            ..RetryPolicy::default()
        };
        let client = Client::new(config, vec![tokens], clock)?;
        let slot = client.slot();
        Ok(Self { client, slot, call: Call { tally: Arc::new(Tally::default()), cancel } })
    }

    /// Time by Graph's clock at the last answer.
    pub(crate) fn service_time(&self) -> Option<Timestamp> {
        self.client.service_time()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, GraphError> {
        let reply = self.client.get(&self.slot, path, None, &[], ANSWER_BYTES_MAX, &self.call).await;
        let reply = reply.map_err(|error| match error {
            RequestError::Service { status: 403, message, .. } => GraphError::Denied(message),
            error => GraphError::Failed(error),
        })?;
        serde_json::from_slice(&reply.body).map_err(|error| GraphError::Unusable(error.to_string()))
    }

    /// All pages of a list. Links are followed as they come; a page may be empty and still have one (section 11).
    async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, GraphError> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut link = path.to_string();
        for _ in 0..PAGES_MAX {
            let page: Page<T> = self.get(&link).await?;
            found.extend(page.value);
            let Some(next) = page.next else { return Ok(found) };
            if !seen.insert(next.clone()) {
                return Err(GraphError::Unusable("a list leads back to a page that was read".into()));
            }
            link = next;
        }
        Err(GraphError::Unusable(format!("a list has more than {PAGES_MAX} pages")))
    }

    /// The tenant. Everybody may read the part that is asked for here.
    pub(crate) async fn organization(&self) -> Result<Organization, GraphError> {
        let found: Vec<Organization> = self.all("organization?$select=id,displayName,verifiedDomains").await?;
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(organization), None) => Ok(organization),
            _ => Err(GraphError::Unusable("it does not name exactly one tenant".into())),
        }
    }

    /// The signed-in person; needs the delegated permission `User.Read`.
    pub(crate) async fn me(&self) -> Result<Me, GraphError> {
        self.get("me?$select=id,userPrincipalName,displayName").await
    }

    /// The service principals of these applications that are in the tenant.
    pub(crate) async fn resources(&self, apis: &[Api]) -> Result<Vec<ServicePrincipal>, GraphError> {
        let ids: Vec<String> = apis.iter().map(|api| format!("'{}'", api.app_id())).collect();
        let select = "id,appId,displayName,appRoles";
        self.all(&format!("servicePrincipals?$filter=appId in ({})&$select={select}", ids.join(","))).await
    }

    /// Our own service principal.
    pub(crate) async fn principal(&self, client_id: &str) -> Result<ServicePrincipal, GraphError> {
        self.get(&format!("servicePrincipals(appId='{client_id}')?$select=id,appId,displayName")).await
    }

    /// Application permissions granted to a service principal.
    pub(crate) async fn role_assignments(&self, principal: &str) -> Result<Vec<RoleAssignment>, GraphError> {
        self.all(&format!("servicePrincipals/{principal}/appRoleAssignments?$top={PAGE_ROWS}")).await
    }

    /// Delegated permissions granted to a service principal, which is named by its object id.
    pub(crate) async fn scope_grants(&self, principal: &str) -> Result<Vec<ScopeGrant>, GraphError> {
        self.all(&format!("oauth2PermissionGrants?$filter=clientId eq '{principal}'")).await
    }

    /// Expiry of the secrets of an app registration.
    pub(crate) async fn credentials(&self, client_id: &str) -> Result<AppCredentials, GraphError> {
        self.get(&format!("applications(appId='{client_id}')?$select=passwordCredentials")).await
    }

    /// Whether groups may be read.
    pub(crate) async fn may_read_groups(&self) -> Result<(), GraphError> {
        self.get::<Anything>("groups?$select=id&$top=1").await.map(drop)
    }

    /// Number of groups of the tenant.
    pub(crate) async fn groups(&self) -> Result<u64, GraphError> {
        let groups: Vec<Anything> = self.all(&format!("groups?$select=id&$top={PAGE_ROWS}")).await?;
        Ok(groups.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enabled_roles_for_applications_count() {
        let principal: ServicePrincipal = serde_json::from_value(serde_json::json!({
            "id": "1", "appId": "2", "displayName": "Microsoft Graph",
            "appRoles": [
                {"id": "people", "value": "Directory.Read.All", "isEnabled": true, "allowedMemberTypes": ["User"]},
                {"id": "off", "value": "Directory.Read.All", "isEnabled": false, "allowedMemberTypes": ["Application"]},
                {"id": "on", "value": "Directory.Read.All", "isEnabled": true, "allowedMemberTypes": ["Application"]}],
        }))
        .unwrap();
        assert_eq!(principal.role_id("Directory.Read.All"), Some("on"));
        assert_eq!(principal.role_id("directory.read.all"), None, "values compare with case");
    }
}
