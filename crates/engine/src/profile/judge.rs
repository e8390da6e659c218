//! From evidence to the state of a row (`entra` protocol, section 10.2). Plain functions on values.
//!
//! ```text
//! no effect in this mode ─▶ not needed          in the token ────────────▶ granted (token)
//! service not in tenant  ─▶ not needed          in the tenant's grants ──▶ granted (graph)
//!                                               not in them ─────────────▶ missing (graph)
//!                         nobody may read them: a request that needs it ─▶ granted, missing (probe)
//!                                               nothing of all this ─────▶ unknown
//! ```
//!
//! A value that a token lacks is not yet missing: the token may be older than the grant. Missing needs the grants
//! themselves, or a refusal: by the service that the permission is for, or by the sign-in service that issues it.

use std::collections::HashMap;

use crate::graph::{RoleAssignment, ScopeGrant, ServicePrincipal};
use crate::profile::report::{FoundBy, PermissionState};
use crate::profile::table::is_in_table;
use crate::profile::{Api, PermissionRow, PermissionType, SignInMode};

/// Scopes of OpenID Connect, which belong to every sign-in.
const SIGN_IN_SCOPES: [&str; 4] = ["openid", "profile", "email", "offline_access"];

/// Permissions that include another one of the table, and more.
const WIDER: [(Api, &str, &str); 4] = [
    (Api::Graph, "Directory.ReadWrite.All", "Directory.Read.All"),
    (Api::Graph, "Group.ReadWrite.All", "Group.Read.All"),
    (Api::Graph, "User.ReadWrite", "User.Read"),
    (Api::Graph, "User.Read.All", "User.Read"),
];

/// What asking for a token of a service brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Carried {
    /// A token with these permissions.
    Values(Vec<String>),
    /// A token that cannot be read.
    Opaque,
    /// The sign-in service says that nobody has consented to any permission of it.
    NoConsent,
    /// The sign-in service does not know it in this tenant.
    NoResource,
    /// There was no address to ask for.
    NotAsked,
}

/// What the tenant's directory says; parts that may not be read are `None`.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// Service principals of the services that are in the tenant.
    pub(crate) resources: Vec<ServicePrincipal>,
    pub(crate) roles: Option<Vec<RoleAssignment>>,
    pub(crate) scopes: Option<Vec<ScopeGrant>>,
}

/// Everything that was found out.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) mode: SignInMode,
    pub(crate) carried: HashMap<Api, Carried>,
    pub(crate) directory: Option<Directory>,
    /// Object id of the signed-in person.
    pub(crate) user: Option<String>,
    /// Requests that need a permission, and whether they were allowed.
    pub(crate) probes: HashMap<(Api, &'static str), bool>,
}

/// The state of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) state: PermissionState,
    pub(crate) found_by: Option<FoundBy>,
    pub(crate) note: Option<String>,
}

fn judged(state: PermissionState, found_by: Option<FoundBy>) -> Judged {
    Judged { state, found_by, note: None }
}

fn noted(state: PermissionState, found_by: Option<FoundBy>, note: impl Into<String>) -> Judged {
    Judged { state, found_by, note: Some(note.into()) }
}

/// Judges one row.
pub(crate) fn judge(row: &PermissionRow, evidence: &Evidence) -> Judged {
    use PermissionState::{Granted, Missing, NotNeeded, Unknown};

    if !row.of_type.counts_in(evidence.mode) {
        let why = match evidence.mode {
            SignInMode::AppOnly => "the profile signs in as an app, without a person",
            SignInMode::Delegated => "a person signs in with the profile; permissions of the app itself have no effect",
        };
        return noted(NotNeeded, None, why);
    }
    let absent = || format!("{} is not present in this tenant", row.api.name());
    let carried = evidence.carried.get(&row.api).unwrap_or(&Carried::NotAsked);
    match carried {
        Carried::NoResource => return noted(NotNeeded, Some(FoundBy::Token), absent()),
        Carried::Values(values) if values.iter().any(|value| value == row.permission) => {
            return judged(Granted, Some(FoundBy::Token));
        }
        Carried::Values(values) => {
            if let Some(wider) = wider_of(row, values) {
                return noted(Granted, Some(FoundBy::Token), format!("through {wider}, which allows more"));
            }
        }
        Carried::Opaque | Carried::NoConsent | Carried::NotAsked => {}
    }
    match evidence.directory.as_ref().and_then(|directory| in_directory(row, directory, evidence.user.as_deref())) {
        Some(InDirectory::Granted) => {
            return noted(
                Granted,
                Some(FoundBy::Graph),
                "tokens do not carry it yet; that takes minutes after consent",
            );
        }
        Some(InDirectory::Missing) => return judged(Missing, Some(FoundBy::Graph)),
        Some(InDirectory::NoResource) => return noted(NotNeeded, Some(FoundBy::Graph), absent()),
        None => {}
    }
    match (carried, evidence.probes.get(&(row.api, row.permission))) {
        (_, Some(true)) => judged(Granted, Some(FoundBy::Probe)),
        (_, Some(false)) => judged(Missing, Some(FoundBy::Probe)),
        (Carried::NoConsent, None) => judged(Missing, Some(FoundBy::Token)),
        (Carried::NotAsked, None) => noted(Unknown, None, "no environment of the configuration uses the profile"),
        (Carried::Opaque, None) => {
            noted(Unknown, None, "the token cannot be read, and neither can the tenant's grants")
        }
        _ => noted(Unknown, None, "the token lacks it, and the tenant's grants may not be read"),
    }
}

fn wider_of<'a>(row: &PermissionRow, values: &'a [String]) -> Option<&'a str> {
    let wider = |value: &&String| {
        WIDER.iter().any(|(api, wide, narrow)| *api == row.api && wide == value && *narrow == row.permission)
    };
    values.iter().find(wider).map(String::as_str)
}

#[derive(Debug, PartialEq, Eq)]
enum InDirectory {
    Granted,
    Missing,
    NoResource,
}

fn in_directory(row: &PermissionRow, directory: &Directory, user: Option<&str>) -> Option<InDirectory> {
    let Some(resource) = directory.resources.iter().find(|found| found.app_id.eq_ignore_ascii_case(row.api.app_id()))
    else {
        return Some(InDirectory::NoResource);
    };
    let granted = match row.of_type {
        PermissionType::Application => {
            let role = resource.role_id(row.permission);
            let assignments = directory.roles.as_ref()?;
            assignments.iter().any(|found| found.resource_id == resource.id && Some(found.app_role_id.as_str()) == role)
        }
        PermissionType::Delegated => {
            let counts = |grant: &&ScopeGrant| {
                grant.resource_id == resource.id
                    && match grant.consent_type.as_str() {
                        "AllPrincipals" => true,
                        // A grant of another person is none of ours (test 45).
                        "Principal" => user.is_some() && grant.principal_id.as_deref() == user,
                        _ => false,
                    }
            };
            let mut grants = directory.scopes.as_ref()?.iter().filter(counts);
            grants.any(|grant| grant.scope.split_ascii_whitespace().any(|value| value == row.permission))
        }
    };
    Some(if granted { InDirectory::Granted } else { InDirectory::Missing })
}

/// What tokens carry beyond the table: allowed, and more than this program needs.
pub(crate) fn excess(evidence: &Evidence) -> Vec<String> {
    let of_type = match evidence.mode {
        SignInMode::AppOnly => PermissionType::Application,
        SignInMode::Delegated => PermissionType::Delegated,
    };
    let mut found = Vec::new();
    for (api, carried) in &evidence.carried {
        let Carried::Values(values) = carried else { continue };
        let more = |value: &&String| !SIGN_IN_SCOPES.contains(&value.as_str()) && !is_in_table(*api, value, of_type);
        found.extend(values.iter().filter(more).map(|value| {
            format!("excess: {} of {} is granted and not needed; take it away for least privilege", value, api.name())
        }));
    }
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::EnvironmentKind;
    use crate::profile::permissions_of;

    fn row(kind: EnvironmentKind, permission: &str) -> &'static PermissionRow {
        permissions_of(kind).find(|row| row.permission == permission).unwrap()
    }

    fn evidence(mode: SignInMode, api: Api, values: &[&str]) -> Evidence {
        let values = values.iter().map(ToString::to_string).collect();
        Evidence {
            mode,
            carried: HashMap::from([(api, Carried::Values(values))]),
            directory: None,
            user: Some("me".into()),
            probes: HashMap::new(),
        }
    }

    fn erp_grants(consent: &str, principal: Option<&str>, scope: &str) -> Directory {
        Directory {
            resources: vec![
                serde_json::from_value(json!({"id": "erp", "appId": Api::DynamicsErp.app_id(), "appRoles": []}))
                    .unwrap(),
            ],
            roles: None,
            scopes: Some(vec![
                serde_json::from_value(
                    json!({"resourceId": "erp", "consentType": consent, "principalId": principal, "scope": scope}),
                )
                .unwrap(),
            ]),
        }
    }

    fn state(row: &PermissionRow, evidence: &Evidence) -> (&'static str, Option<&'static str>) {
        let judged = judge(row, evidence);
        (judged.state.name(), judged.found_by.map(FoundBy::name))
    }

    #[test]
    fn an_app_only_token_without_roles_is_no_gap_in_dataverse() {
        let evidence = evidence(SignInMode::AppOnly, Api::DynamicsCrm, &[]);
        assert_eq!(state(row(EnvironmentKind::Ce, "user_impersonation"), &evidence), ("not-needed", None));
    }

    #[test]
    fn what_a_token_lacks_is_missing_only_when_the_grants_or_a_refusal_say_so() {
        let odata = row(EnvironmentKind::Uo, "Odata.FullAccess");
        let mut evidence = evidence(SignInMode::Delegated, Api::DynamicsErp, &["AX.FullAccess"]);
        assert_eq!(state(odata, &evidence), ("unknown", None));
        evidence.probes.insert((Api::DynamicsErp, "Odata.FullAccess"), false);
        assert_eq!(state(odata, &evidence), ("missing", Some("probe")));
        evidence.directory = Some(erp_grants("AllPrincipals", None, " AX.FullAccess Odata.FullAccess"));
        assert_eq!(state(odata, &evidence), ("granted", Some("graph")), "the grants outrank a probe");
        evidence.directory = Some(erp_grants("AllPrincipals", None, " AX.FullAccess"));
        assert_eq!(state(odata, &evidence), ("missing", Some("graph")));
        assert_eq!(state(row(EnvironmentKind::Uo, "AX.FullAccess"), &evidence), ("granted", Some("token")));
    }

    #[test]
    fn a_grant_for_another_person_does_not_count() {
        let odata = row(EnvironmentKind::Uo, "Odata.FullAccess");
        let mut evidence = evidence(SignInMode::Delegated, Api::DynamicsErp, &["AX.FullAccess"]);
        evidence.directory = Some(erp_grants("Principal", Some("somebody else"), "Odata.FullAccess"));
        assert_eq!(state(odata, &evidence), ("missing", Some("graph")));
        evidence.directory = Some(erp_grants("Principal", Some("me"), "Odata.FullAccess"));
        assert_eq!(state(odata, &evidence), ("granted", Some("graph")));
        evidence.user = None;
        assert_eq!(state(odata, &evidence), ("missing", Some("graph")));
    }

    #[test]
    fn a_product_that_is_not_in_the_tenant_is_not_a_missing_permission() {
        let connector = row(EnvironmentKind::Uo, "Connector.FullAccess");
        let mut evidence = evidence(SignInMode::AppOnly, Api::Graph, &[]);
        evidence.carried.insert(Api::DynamicsErp, Carried::NoResource);
        assert_eq!(state(connector, &evidence), ("not-needed", Some("token")));
        evidence.carried.insert(Api::DynamicsErp, Carried::Values(Vec::new()));
        evidence.directory = Some(Directory { roles: Some(Vec::new()), ..Directory::default() });
        assert_eq!(state(connector, &evidence), ("not-needed", Some("graph")));
    }

    #[test]
    fn a_wider_permission_satisfies_the_row_and_is_excess() {
        let evidence = evidence(SignInMode::AppOnly, Api::Graph, &["Directory.ReadWrite.All", "Group.Read.All"]);
        assert_eq!(state(row(EnvironmentKind::Ce, "Directory.Read.All"), &evidence), ("granted", Some("token")));
        let excess = excess(&evidence);
        assert!(excess.len() == 1 && excess[0].contains("Directory.ReadWrite.All"), "{excess:?}");
    }

    #[test]
    fn the_same_value_of_the_other_type_does_not_count() {
        // As a delegated permission it may stand in a person's token; the row wants the app's.
        let evidence = evidence(SignInMode::Delegated, Api::Graph, &["User.Read", "Directory.Read.All"]);
        assert_eq!(state(row(EnvironmentKind::Ce, "Directory.Read.All"), &evidence).0, "not-needed");
        assert_eq!(excess_of(&evidence), 1);
    }

    fn excess_of(evidence: &Evidence) -> usize {
        excess(evidence).len()
    }

    #[test]
    fn without_any_consent_the_refusal_itself_is_the_finding() {
        let mut evidence = evidence(SignInMode::Delegated, Api::Graph, &["User.Read", "openid"]);
        evidence.carried.insert(Api::DynamicsCrm, Carried::NoConsent);
        assert_eq!(state(row(EnvironmentKind::Ce, "user_impersonation"), &evidence), ("missing", Some("token")));
        evidence.carried.insert(Api::DynamicsCrm, Carried::Opaque);
        assert_eq!(state(row(EnvironmentKind::Ce, "user_impersonation"), &evidence), ("unknown", None));
        assert!(excess(&evidence).is_empty());
    }
}
