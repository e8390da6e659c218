//! The tenant: applications, people, groups, and what was granted to whom.
//!
//! ```text
//! application ── requires ──▶ permission ◀── publishes ── service principal of an API
//!      │                          ▲
//!      ├── app role assignment ───┤   application permissions
//!      └── delegated grant ───────┘   for everybody, or for one person
//! ```
//!
//! Tokens and Graph both read from here, so that what `check` finds in a token and in the directory agree,
//! but for the time a new grant takes to spread.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::dataset::{APPLICATIONS, CALLERS, PEOPLE, client_id};
use crate::dice::named_guid;
use crate::entra::certificate::{Certificate, shifted};
use crate::entra::permission::{Api, Permission, PermissionType};

/// First and last names of the people of the environment.
pub(crate) const PEOPLE_NAMES: [(&str, &str); PEOPLE] = [("Alex", "Berg"), ("Bo", "Lind")];
/// Somebody of the tenant who is nobody in the environment.
const OUTSIDER: (&str, &str) = ("Cleo", "Marsh");
/// Groups of the tenant at the start: three pages of the default size.
const GROUPS: usize = 250;
/// Life of the secret the applications start with: the longest the portal offers (entra 9.1).
pub(crate) const SECRET_LIFE_SECONDS: i64 = 730 * 86_400;
/// Redirect addresses every application starts with; the port does not count for loopback (entra 4.1).
const REDIRECTS: [&str; 4] =
    ["http://localhost", "http://localhost/cb", "http://localhost/consent", "http://127.0.0.1"];

/// Domains of the tenant; the first is the default, the last the initial one.
pub(crate) const DOMAINS: [&str; 2] = ["simulated.example", "simulated.onmicrosoft.example"];
/// Display name of the tenant.
pub(crate) const TENANT_NAME: &str = "Simulated Ltd";

/// The tenant everything belongs to.
pub(crate) fn tenant() -> String {
    named_guid("tenant").to_string()
}

/// Object id in the directory of somebody who can call the environment.
pub(crate) fn object_id(caller: usize) -> String {
    named_guid(&format!("directory object of caller {caller}")).to_string()
}

/// Sign-in name of a person of the environment.
pub(crate) fn user_principal_name(person: usize) -> String {
    sign_in_name(PEOPLE_NAMES[person])
}

fn sign_in_name((first, last): (&str, &str)) -> String {
    format!("{}.{}@{}", first.to_lowercase(), last.to_lowercase(), DOMAINS[0])
}

/// A client secret.
#[derive(Debug, Clone)]
pub(crate) struct Secret {
    pub(crate) value: String,
    pub(crate) name: String,
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

/// A federated credential (entra 9.3).
#[derive(Debug, Clone)]
pub(crate) struct Federated {
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) audience: String,
}

/// A registered redirect address.
#[derive(Debug, Clone)]
pub(crate) struct Redirect {
    pub(crate) address: String,
    /// A web application redeems with its credential, a desktop one without.
    pub(crate) web: bool,
}

/// An app registration together with its service principal.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) client_id: String,
    pub(crate) object_id: String,
    /// Index among those who call the environment.
    pub(crate) caller: usize,
    pub(crate) enabled: bool,
    /// "Allow public client flows" (entra 5).
    pub(crate) public_flows: bool,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) federated: Vec<Federated>,
    /// Assertions accepted as they are, whatever they say.
    pub(crate) assertions: BTreeSet<String>,
    pub(crate) redirects: Vec<Redirect>,
    /// `requiredResourceAccess`: what consent to `.default` grants.
    pub(crate) required: Vec<Permission>,
}

/// A second factor that refresh tokens from before do not have.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    /// JSON to be repeated in the next interactive request.
    pub(crate) claims: String,
    /// Only a sign-in that repeats the claims will do; otherwise any interactive one does.
    pub(crate) exactly: bool,
}

/// A user of the tenant.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    pub(crate) object_id: String,
    pub(crate) name: String,
    pub(crate) sign_in_name: String,
    /// Index among those who call the environment; `None` for somebody it does not know.
    pub(crate) caller: Option<usize>,
    pub(crate) enabled: bool,
    /// What the directory wants beyond a password (entra 7, 50076).
    pub(crate) demand: Option<Demand>,
}

/// An application permission that was granted.
#[derive(Debug, Clone)]
pub(crate) struct RoleGrant {
    pub(crate) app: usize,
    pub(crate) permission: Permission,
    since: Timestamp,
}

/// Delegated permissions that were granted: for everybody, or for one person.
#[derive(Debug, Clone)]
pub(crate) struct ScopeGrant {
    pub(crate) app: usize,
    pub(crate) api: Api,
    pub(crate) person: Option<usize>,
    /// Values in the order in which they were granted, with the time.
    pub(crate) values: Vec<(&'static str, Timestamp)>,
}

/// The tenant's directory.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) apps: Vec<App>,
    pub(crate) people: Vec<Person>,
    /// APIs whose service principal is not in the tenant (entra 2.2).
    pub(crate) absent: BTreeSet<Api>,
    pub(crate) roles: Vec<RoleGrant>,
    pub(crate) scopes: Vec<ScopeGrant>,
    /// How long a grant takes until tokens carry it (entra 3.1).
    pub(crate) spread: Duration,
    pub(crate) groups: usize,
    /// Who sits in front of the browser.
    pub(crate) at_browser: usize,
    /// People may consent for themselves.
    pub(crate) user_consent: bool,
}

impl Directory {
    /// A tenant in which everything both profiles need is granted to every application.
    pub(crate) fn new(secret: &str, now: Timestamp) -> Self {
        let mut required: Vec<Permission> = Permission::CE.to_vec();
        required.extend(Permission::UO.iter().filter(|permission| !Permission::CE.contains(permission)));
        let apps = (0..APPLICATIONS)
            .map(|index| App {
                client_id: client_id(index),
                object_id: object_id(index),
                caller: index,
                enabled: true,
                public_flows: true,
                secrets: vec![Secret {
                    value: secret.to_owned(),
                    name: "first".to_owned(),
                    from: now,
                    until: shifted(now, SECRET_LIFE_SECONDS),
                }],
                certificates: Vec::new(),
                federated: Vec::new(),
                assertions: BTreeSet::new(),
                redirects: REDIRECTS
                    .iter()
                    .map(|address| Redirect { address: (*address).to_owned(), web: false })
                    .collect(),
                required: required.clone(),
            })
            .collect();
        let mut people: Vec<Person> = (0..PEOPLE)
            .map(|index| person(PEOPLE_NAMES[index], object_id(APPLICATIONS + index), Some(APPLICATIONS + index)))
            .collect();
        people.push(person(OUTSIDER, object_id(CALLERS), None));
        let mut directory = Self {
            apps,
            people,
            absent: BTreeSet::new(),
            roles: Vec::new(),
            scopes: Vec::new(),
            spread: Duration::ZERO,
            groups: GROUPS,
            at_browser: 0,
            user_consent: false,
        };
        for app in 0..APPLICATIONS {
            for permission in &required {
                // Long ago: it has spread.
                directory.grant(app, *permission, None, Timestamp::UNIX_EPOCH);
            }
        }
        directory
    }

    pub(crate) fn app(&self, client_id: &str) -> Option<usize> {
        self.apps.iter().position(|app| app.client_id == client_id)
    }

    pub(crate) fn person(&self, sign_in_name: &str) -> Option<usize> {
        self.people.iter().position(|person| person.sign_in_name.eq_ignore_ascii_case(sign_in_name))
    }

    /// Grants a permission; a delegated one to everybody or to one person. Twice is once.
    pub(crate) fn grant(&mut self, app: usize, permission: Permission, person: Option<usize>, now: Timestamp) {
        match permission.kind {
            PermissionType::Application => {
                if !self.roles.iter().any(|grant| grant.app == app && grant.permission == permission) {
                    self.roles.push(RoleGrant { app, permission, since: now });
                }
            }
            PermissionType::Delegated => {
                let found = self
                    .scopes
                    .iter_mut()
                    .find(|grant| grant.app == app && grant.api == permission.api && grant.person == person);
                match found {
                    Some(grant) if grant.values.iter().any(|(value, _)| *value == permission.value) => {}
                    Some(grant) => grant.values.push((permission.value, now)),
                    None => self.scopes.push(ScopeGrant {
                        app,
                        api: permission.api,
                        person,
                        values: vec![(permission.value, now)],
                    }),
                }
            }
        }
    }

    /// Takes a permission away, from everybody.
    pub(crate) fn withdraw(&mut self, app: usize, permission: Permission) {
        match permission.kind {
            PermissionType::Application => {
                self.roles.retain(|grant| grant.app != app || grant.permission != permission);
            }
            PermissionType::Delegated => {
                for grant in self.scopes.iter_mut().filter(|grant| grant.app == app && grant.api == permission.api) {
                    grant.values.retain(|(value, _)| *value != permission.value);
                }
                self.scopes.retain(|grant| !grant.values.is_empty());
            }
        }
    }

    /// Grants everything the application requires of APIs that are present, as an administrator does.
    pub(crate) fn consent(&mut self, app: usize, now: Timestamp) {
        let absent = self.absent.clone();
        for permission in self.apps[app].required.clone() {
            if !absent.contains(&permission.api) {
                self.grant(app, permission, None, now);
            }
        }
    }

    /// Values of application permissions that a token made now carries.
    pub(crate) fn roles(&self, app: usize, api: Api, now: Timestamp) -> Vec<&'static str> {
        self.roles
            .iter()
            .filter(|grant| grant.app == app && grant.permission.api == api && self.has_spread(grant.since, now))
            .map(|grant| grant.permission.value)
            .collect()
    }

    /// Values of delegated permissions that a token of this person made now carries.
    pub(crate) fn scopes(&self, app: usize, api: Api, person: usize, now: Timestamp) -> Vec<&'static str> {
        let mut values = Vec::new();
        for grant in self.scopes.iter().filter(|grant| {
            grant.app == app && grant.api == api && grant.person.is_none_or(|principal| principal == person)
        }) {
            for (value, since) in &grant.values {
                if self.has_spread(*since, now) && !values.contains(value) {
                    values.push(*value);
                }
            }
        }
        values
    }

    fn has_spread(&self, since: Timestamp, now: Timestamp) -> bool {
        now.duration_since(since) >= jiff::SignedDuration::try_from(self.spread).unwrap_or(jiff::SignedDuration::MAX)
    }

    /// The registered redirect address that `address` counts as (entra 4.1).
    pub(crate) fn redirect(&self, app: usize, address: &str) -> Option<&Redirect> {
        let asked = loopback(address);
        self.apps[app].redirects.iter().find(|redirect| match (loopback(&redirect.address), asked) {
            // Scheme, host and path count, the port does not.
            (Some(registered), Some(asked)) => registered == asked,
            (None, None) => redirect.address == address,
            _ => false,
        })
    }
}

fn person(names: (&str, &str), object_id: String, caller: Option<usize>) -> Person {
    Person {
        object_id,
        name: format!("{} {}", names.0, names.1),
        sign_in_name: sign_in_name(names),
        caller,
        enabled: true,
        demand: None,
    }
}

/// Host and path of a loopback address that may be registered; `[::1]` may not be (entra 4.1).
fn loopback(address: &str) -> Option<(&str, &str)> {
    let rest = address.strip_prefix("http://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = match authority.split_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some(_) => return None,
        None => authority,
    };
    // An address without a path is one with a slash.
    matches!(host, "localhost" | "127.0.0.1").then_some((host, if path.is_empty() { "/" } else { path }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::Directory;
    use crate::entra::certificate::shifted;
    use crate::entra::permission::{Api, Permission};

    fn directory() -> Directory {
        Directory::new("secret", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_permission_is_taken_and_given_alone() {
        let mut directory = directory();
        let now = Timestamp::UNIX_EPOCH;
        let odata = Permission::delegated(Api::DynamicsErp, "Odata.FullAccess");
        assert_eq!(directory.scopes(0, Api::DynamicsErp, 0, now).len(), 3);
        directory.withdraw(0, odata);
        assert_eq!(directory.scopes(0, Api::DynamicsErp, 0, now), ["AX.FullAccess", "CustomService.FullAccess"]);
        assert_eq!(directory.scopes(1, Api::DynamicsErp, 0, now).len(), 3);
        directory.grant(0, odata, Some(1), now);
        assert_eq!(directory.scopes(0, Api::DynamicsErp, 0, now).len(), 2);
        assert_eq!(directory.scopes(0, Api::DynamicsErp, 1, now).len(), 3);
        directory.withdraw(0, Permission::application(Api::Graph, "Directory.Read.All"));
        assert_eq!(directory.roles(0, Api::Graph, now), ["Group.Read.All"]);
        assert_eq!(directory.scopes(0, Api::Graph, 0, now), ["User.Read"]);
        directory.consent(0, now);
        assert_eq!(directory.roles(0, Api::Graph, now), ["Group.Read.All", "Directory.Read.All"]);
    }

    #[test]
    fn a_grant_takes_its_time_to_spread() {
        let mut directory = directory();
        let permission = Permission::application(Api::Graph, "Domain.Read.All");
        directory.spread = Duration::from_secs(60);
        directory.grant(0, permission, None, Timestamp::UNIX_EPOCH);
        let roles = |seconds| directory.roles(0, Api::Graph, shifted(Timestamp::UNIX_EPOCH, seconds));
        assert!(!roles(59).contains(&"Domain.Read.All"));
        assert!(roles(60).contains(&"Domain.Read.All"));
    }

    #[test]
    fn loopback_addresses_match_without_the_port_but_with_the_path() {
        let directory = directory();
        let is_known = |address| directory.redirect(0, address).is_some();
        assert!(is_known("http://localhost:49731"));
        assert!(is_known("http://localhost:49731/cb"));
        assert!(is_known("http://127.0.0.1:1/"));
        assert!(!is_known("http://localhost:49731/CB"));
        assert!(!is_known("http://localhost:49731/other"));
        assert!(!is_known("http://[::1]:49731/cb"));
        assert!(!is_known("https://localhost:49731/cb"));
        assert!(!is_known("http://localhost.example:1/cb"));
    }
}
