//! The objects of Graph and who may read them (entra 10.3, 11).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::dice::named_guid;
use crate::entra::Authority;
use crate::entra::directory::{App, DOMAINS, RoleGrant, ScopeGrant, TENANT_NAME};
use crate::entra::ledger::Access;
use crate::entra::permission::{Api, PUBLISHED, PermissionType};
use crate::graph::query::Options;
use crate::graph::{GraphError, need};
use crate::query::decode;

/// What lets read applications, service principals and what was granted to them.
const READ_APPLICATIONS: [&str; 2] = ["Application.Read.All", "Directory.Read.All"];
/// What lets read grants: here the first of the above is not enough.
const READ_GRANTS: [&str; 2] = ["DelegatedPermissionGrant.Read.All", "Directory.Read.All"];
/// What lets read groups.
const READ_GROUPS: [&str; 3] = ["GroupMember.Read.All", "Group.Read.All", "Directory.Read.All"];
/// What lets read domains.
const READ_DOMAINS: [&str; 2] = ["Domain.Read.All", "Directory.Read.All"];
/// What lets read all of the organization.
const READ_ORGANIZATION: [&str; 2] = ["Organization.Read.All", "Directory.Read.All"];

/// A segment of a path with an alternate key: `name(appId='…')`.
fn alternate<'a>(segment: &'a str, name: &str) -> Option<&'a str> {
    segment.strip_prefix(name)?.strip_prefix("(appId='")?.strip_suffix("')")
}

/// Answers `path` below the root.
pub(crate) fn find(authority: &Authority, access: &Access, path: &str, options: &Options) -> Result<Value, GraphError> {
    let path = decode(path);
    let root = authority.resources.graph.as_str();
    let Some(rest) = path.strip_prefix("v1.0/") else {
        return Err(GraphError::bad(format!("Invalid version: {}", path.split('/').next().unwrap_or_default())));
    };
    let page = |kind: &str, objects: Vec<Value>| options.page(&authority.graph, root, rest, kind, objects);
    let segments: Vec<&str> = rest.split('/').collect();
    match segments.as_slice() {
        ["me"] => {
            let Some(person) = access.subject.person else {
                return Err(GraphError::new(
                    400,
                    "BadRequest",
                    "/me request is only valid with delegated authentication flow.",
                ));
            };
            need(access, &["User.Read", "User.Read.All", "Directory.Read.All"])?;
            let person = &authority.directory.people[person];
            let me = json!({"id": person.object_id, "userPrincipalName": person.sign_in_name, "displayName": person.name, "mail": person.sign_in_name});
            options.one(root, "users", me)
        }
        ["organization"] => {
            let full = need(access, &READ_ORGANIZATION).is_ok();
            if !full {
                // The signed-in user sees a part of their organization (entra 11).
                need(access, &["User.Read"])?;
            }
            page("organization", vec![organization(authority, full)])
        }
        ["domains"] => {
            need(access, &READ_DOMAINS)?;
            page("domains", domains())
        }
        ["groups"] => {
            need(access, &READ_GROUPS)?;
            page("groups", (0..authority.directory.groups).map(group).collect())
        }
        ["applications"] => {
            need(access, &READ_APPLICATIONS)?;
            page("applications", authority.directory.apps.iter().map(application).collect())
        }
        ["oauth2PermissionGrants"] => {
            need(access, &READ_GRANTS)?;
            page("oauth2PermissionGrants", grants(authority, None))
        }
        ["servicePrincipals"] => {
            need(access, &READ_APPLICATIONS)?;
            page("servicePrincipals", principals(authority))
        }
        ["servicePrincipals", id, "appRoleAssignments"] => {
            need(access, &READ_APPLICATIONS)?;
            let id = principal_id(authority, id)?;
            page("appRoleAssignments", assignments(authority, &id))
        }
        ["servicePrincipals", id, "oauth2PermissionGrants"] => {
            need(access, &READ_GRANTS)?;
            let id = principal_id(authority, id)?;
            page("oauth2PermissionGrants", grants(authority, Some(&id)))
        }
        ["servicePrincipals", id] => {
            need(access, &READ_APPLICATIONS)?;
            options.one(root, "servicePrincipals", principal(authority, "id", id)?)
        }
        [segment] if alternate(segment, "applications").is_some() => {
            need(access, &READ_APPLICATIONS)?;
            let id = alternate(segment, "applications").unwrap_or_default();
            let app = authority.directory.app(id).ok_or_else(|| GraphError::not_found(id))?;
            options.one(root, "applications", application(&authority.directory.apps[app]))
        }
        [segment, rest @ ..] if alternate(segment, "servicePrincipals").is_some() => {
            need(access, &READ_APPLICATIONS)?;
            let found = principal(authority, "appId", alternate(segment, "servicePrincipals").unwrap_or_default())?;
            let id = found["id"].as_str().unwrap_or_default().to_owned();
            match rest {
                [] => options.one(root, "servicePrincipals", found),
                ["appRoleAssignments"] => page("appRoleAssignments", assignments(authority, &id)),
                ["oauth2PermissionGrants"] => {
                    need(access, &READ_GRANTS)?;
                    page("oauth2PermissionGrants", grants(authority, Some(&id)))
                }
                _ => Err(no_segment(&path)),
            }
        }
        _ => Err(no_segment(&path)),
    }
}

fn no_segment(path: &str) -> GraphError {
    GraphError::new(400, "BadRequest", format!("Resource not found for the segment '{path}'."))
}

fn organization(authority: &Authority, full: bool) -> Value {
    let domains: Vec<Value> = DOMAINS
        .iter()
        .enumerate()
        .map(|(index, name)| {
            json!({"name": name, "type": "Managed", "capabilities": "Email, OfficeCommunicationsOnline", "isDefault": index == 0, "isInitial": index + 1 == DOMAINS.len()})
        })
        .collect();
    let hidden = |value: &str| if full { json!(value) } else { Value::Null };
    json!({
        "id": authority.organization_id(), "displayName": TENANT_NAME, "verifiedDomains": domains,
        "tenantType": hidden("AAD"), "countryLetterCode": hidden("NL"), "createdDateTime": hidden("2019-04-01T08:00:00Z"),
    })
}

fn domains() -> Vec<Value> {
    let domain = |(index, name): (usize, &&str)| json!({"id": name, "isDefault": index == 0, "isInitial": index + 1 == DOMAINS.len(), "isVerified": true, "authenticationType": "Managed"});
    DOMAINS.iter().enumerate().map(domain).collect()
}

fn group(index: usize) -> Value {
    let security = index.is_multiple_of(2);
    json!({
        "id": named_guid(&format!("group {index}")).to_string(), "displayName": format!("Group {index:04}"),
        "mail": if security { Value::Null } else { json!(format!("group{index}@{}", DOMAINS[0])) },
        "securityEnabled": security, "groupTypes": if security { json!([]) } else { json!(["Unified"]) }, "membershipRule": null,
    })
}

/// An application with the dates of its credentials; their values are never shown (entra 9.1).
fn application(app: &App) -> Value {
    let secrets: Vec<Value> = app
        .secrets
        .iter()
        .map(|secret| {
            let hint: String = secret.value.chars().take(3).collect();
            json!({
                "keyId": named_guid(&format!("{} {}", app.client_id, secret.name)).to_string(), "displayName": secret.name,
                "hint": hint, "secretText": null, "customKeyIdentifier": null,
                "startDateTime": time(secret.from), "endDateTime": time(secret.until),
            })
        })
        .collect();
    let certificates: Vec<Value> = app
        .certificates
        .iter()
        .map(|certificate| {
            // The directory shows the older thumbprint, in standard base64.
            let thumbprint = URL_SAFE_NO_PAD.decode(&certificate.old_thumbprint).unwrap_or_default();
            json!({
                "keyId": named_guid(&certificate.thumbprint).to_string(), "displayName": "CN=dynavault",
                "type": "AsymmetricX509Cert", "usage": "Verify", "key": null, "customKeyIdentifier": STANDARD.encode(thumbprint),
                "startDateTime": time(certificate.from), "endDateTime": time(certificate.until),
            })
        })
        .collect();
    let required: Vec<Value> = Api::ALL
        .into_iter()
        .filter_map(|api| {
            let access: Vec<Value> = app
                .required
                .iter()
                .filter(|permission| permission.api == api)
                .map(|permission| {
                    let kind = if permission.kind == PermissionType::Delegated { "Scope" } else { "Role" };
                    json!({"id": permission.id(), "type": kind})
                })
                .collect();
            (!access.is_empty()).then(|| json!({"resourceAppId": api.app_id(), "resourceAccess": access}))
        })
        .collect();
    json!({
        "id": named_guid(&format!("application object {}", app.client_id)).to_string(), "appId": app.client_id,
        "displayName": "dynavault", "signInAudience": "AzureADMyOrg", "isFallbackPublicClient": app.public_flows,
        "passwordCredentials": secrets, "keyCredentials": certificates, "requiredResourceAccess": required,
    })
}

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Every service principal of the tenant.
fn principals(authority: &Authority) -> Vec<Value> {
    let directory = &authority.directory;
    let apis = Api::ALL.into_iter().filter(|api| !directory.absent.contains(api)).map(api_principal);
    let own = directory.apps.iter().map(|app| {
        json!({
            "id": app.object_id, "appId": app.client_id, "displayName": "dynavault", "accountEnabled": app.enabled,
            "servicePrincipalType": "Application", "oauth2PermissionScopes": [], "appRoles": [],
        })
    });
    apis.chain(own).collect()
}

fn api_principal(api: Api) -> Value {
    let (mut scopes, mut roles) = (Vec::new(), Vec::new());
    for published in PUBLISHED.iter().filter(|published| published.permission.api == api) {
        let permission = published.permission;
        let text = format!("{} of {}", permission.value, api.name());
        match permission.kind {
            PermissionType::Delegated => {
                // Those for the whole directory need an administrator (entra 2.1, rule 4).
                let kind = if permission.value.ends_with(".All") { "Admin" } else { "User" };
                scopes.push(json!({
                    "id": permission.id(), "value": permission.value, "type": kind, "isEnabled": published.enabled,
                    "adminConsentDisplayName": text,
                }));
            }
            PermissionType::Application => roles.push(json!({
                "id": permission.id(), "value": permission.value, "isEnabled": published.enabled, "displayName": text,
                "allowedMemberTypes": ["Application"], "origin": "Application",
            })),
        }
    }
    if api == Api::Graph {
        // A role for people is none for applications (entra 2.3).
        roles.push(json!({
            "id": named_guid("role for people").to_string(), "value": "Directory.Read.All", "isEnabled": true,
            "displayName": "A role for people", "allowedMemberTypes": ["User"], "origin": "Application",
        }));
    }
    json!({
        "id": api.object_id(), "appId": api.app_id(), "displayName": api.name(), "accountEnabled": true,
        "servicePrincipalType": "Application", "oauth2PermissionScopes": scopes, "appRoles": roles,
    })
}

fn principal(authority: &Authority, property: &str, id: &str) -> Result<Value, GraphError> {
    let mut all = principals(authority).into_iter();
    all.find(|principal| principal[property] == id).ok_or_else(|| GraphError::not_found(id))
}

fn principal_id(authority: &Authority, id: &str) -> Result<String, GraphError> {
    principal(authority, "id", id)?;
    Ok(id.to_owned())
}

/// Application permissions granted to a service principal.
fn assignments(authority: &Authority, principal_id: &str) -> Vec<Value> {
    let directory = &authority.directory;
    let of = |grant: &&RoleGrant| {
        directory.apps[grant.app].object_id == principal_id && !directory.absent.contains(&grant.permission.api)
    };
    let print = |grant: &RoleGrant| {
        let permission = grant.permission;
        json!({
            "id": named_guid(&format!("assignment {} {permission:?}", grant.app)).to_string(),
            "appRoleId": permission.id(), "principalId": principal_id, "principalType": "ServicePrincipal",
            "principalDisplayName": "dynavault", "resourceId": permission.api.object_id(),
            "resourceDisplayName": permission.api.name(),
        })
    };
    directory.roles.iter().filter(of).map(print).collect()
}

/// Delegated permissions granted to one service principal, or to all.
fn grants(authority: &Authority, principal_id: Option<&str>) -> Vec<Value> {
    let directory = &authority.directory;
    let of = |grant: &&ScopeGrant| {
        principal_id.is_none_or(|id| directory.apps[grant.app].object_id == id)
            && !directory.absent.contains(&grant.api)
    };
    let print = |grant: &ScopeGrant| {
        let values: Vec<&str> = grant.values.iter().map(|(value, _)| *value).collect();
        json!({
            "id": named_guid(&format!("grant {} {:?} {:?}", grant.app, grant.api, grant.person)).to_string(),
            "clientId": directory.apps[grant.app].object_id,
            "consentType": if grant.person.is_some() { "Principal" } else { "AllPrincipals" },
            "principalId": grant.person.map(|person| directory.people[person].object_id.clone()),
            "resourceId": grant.api.object_id(),
            // Leading blanks occur (entra 10.3).
            "scope": format!(" {}", values.join(" ")),
        })
    };
    directory.scopes.iter().filter(of).map(print).collect()
}
