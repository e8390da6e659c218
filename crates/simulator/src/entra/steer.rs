//! The controls of the sign-in side and of Graph.
//!
//! Applications are named by client id, people by sign-in name. A method that names somebody who does not exist
//! does nothing and says `false`.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::dataset::user_id;
use crate::entra::Authority;
use crate::entra::certificate::{Certificate, IssuedCertificate, shifted};
use crate::entra::directory::{App, Demand, Federated, Person, Redirect, Secret};
use crate::entra::keys::signing_key;
use crate::entra::ledger::Decision;
use crate::entra::permission::{Api, Permission};
use crate::entra::request::SignInRequest;
use crate::entra::script::{AnswerFault, BrowserOutcome, TokenQuirk};
use crate::graph::{GraphQuirk, GraphRequest};
use crate::shared::{Shared, State};

/// A day, in seconds: certificates begin that long ago.
const DAY_SECONDS: i64 = 86_400;
/// AADSTS50173: the grant was revoked.
const REVOKED: u32 = 50_173;
/// What a second factor is asked for with.
const MFA_CLAIMS: &str = "{\"access_token\":{\"acrs\":{\"essential\":true,\"value\":\"c1\"}}}";

/// A person of the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonInfo {
    /// `userPrincipalName`.
    pub sign_in_name: String,
    /// Object id in the directory (`oid`).
    pub object_id: String,
    /// Display name.
    pub name: String,
    /// `systemuserid` in the environment; `None` for somebody it does not know.
    pub user: Option<String>,
}

/// The controls of sign-in, directory and Graph of a running simulator.
#[derive(Debug, Clone)]
pub struct Entra {
    shared: Arc<Shared>,
}

/// The authority, for the length of one expression.
pub(crate) struct Held<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for Held<'_> {
    type Target = Authority;

    fn deref(&self) -> &Authority {
        &self.0.authority
    }
}

impl std::ops::DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Authority {
        &mut self.0.authority
    }
}

impl Entra {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn hold(&self) -> Held<'_> {
        Held(self.shared.state())
    }

    fn with_app(&self, client: &str, change: impl FnOnce(&mut App)) -> bool {
        let mut held = self.hold();
        let Some(app) = held.directory.app(client) else { return false };
        change(&mut held.directory.apps[app]);
        true
    }

    fn with_person(&self, sign_in_name: &str, change: impl FnOnce(&mut Person)) -> bool {
        let mut held = self.hold();
        let Some(person) = held.directory.person(sign_in_name) else { return false };
        change(&mut held.directory.people[person]);
        true
    }

    // Where things are.

    /// Root of Microsoft Graph: the API is below `/v1.0`, the resource of its scopes is this address.
    pub fn graph_url(&self) -> String {
        self.hold().resources.graph.clone()
    }

    /// Address of the finance and operations environment that tokens are made for from the start.
    pub fn erp_url(&self) -> String {
        self.hold().resources.erp.first().cloned().unwrap_or_default()
    }

    /// Makes tokens of Dynamics ERP for another address as well.
    pub fn add_erp(&self, url: &str) {
        self.hold().resources.erp.push(url.trim_end_matches('/').to_owned());
    }

    // Credentials of applications.

    /// Adds a client secret that lives so long.
    pub fn add_secret(&self, client: &str, value: &str, lives: Duration) -> bool {
        let now = self.hold().now();
        self.with_app(client, |app| {
            let name = format!("secret {}", app.secrets.len() + 1);
            let until = shifted(now, lives.as_secs() as i64);
            app.secrets.push(Secret { value: value.to_owned(), name, from: now, until });
        })
    }

    /// Lets every secret of an application expire so much from now; negative: ago.
    pub fn expire_secrets_in(&self, client: &str, time: SignedDuration) -> bool {
        let until = shifted(self.hold().now(), time.as_secs());
        self.with_app(client, |app| {
            for secret in &mut app.secrets {
                secret.until = until;
            }
        })
    }

    /// A new self-signed certificate with its key, valid from yesterday for so long from now; not registered yet.
    pub fn make_certificate(&self, lives: Duration) -> IssuedCertificate {
        let now = self.hold().now();
        IssuedCertificate::new("dynavault", shifted(now, -DAY_SECONDS), shifted(now, lives.as_secs() as i64))
    }

    /// Registers the first certificate of a PEM text; false also if there is none in it.
    pub fn register_certificate(&self, client: &str, pem: &str) -> bool {
        let Some(certificate) = Certificate::parse_pem(pem) else { return false };
        self.with_app(client, |app| app.certificates.push(certificate))
    }

    /// Removes all certificates of an application.
    pub fn forget_certificates(&self, client: &str) -> bool {
        self.with_app(client, |app| app.certificates.clear())
    }

    /// Adds a federated credential: tokens of this issuer and subject for this audience stand for the application.
    pub fn trust_federated(&self, client: &str, issuer: &str, subject: &str, audience: &str) -> bool {
        let federated =
            Federated { issuer: issuer.to_owned(), subject: subject.to_owned(), audience: audience.to_owned() };
        self.with_app(client, |app| app.federated.push(federated))
    }

    /// A token of another issuer, as a workload would find it in its file; each has its own `jti`.
    pub fn federated_token(&self, issuer: &str, subject: &str, audience: &str, lives: Duration) -> String {
        let mut held = self.hold();
        let (shown, number) = (held.shown().as_second(), held.ledger.number());
        signing_key().jwt(&json!({
            "iss": issuer, "sub": subject, "aud": audience, "iat": shown, "nbf": shown,
            "exp": shown + lives.as_secs() as i64, "jti": format!("workload {number}"),
        }))
    }

    /// Accepts exactly this text as a client assertion of the application, whatever it says.
    pub fn accept_assertion(&self, client: &str, assertion: &str) -> bool {
        self.with_app(client, |app| {
            app.assertions.insert(assertion.to_owned());
        })
    }

    // Applications.

    /// Switches an application off (AADSTS7000112) or on.
    pub fn enable_app(&self, client: &str, enabled: bool) -> bool {
        self.with_app(client, |app| app.enabled = enabled)
    }

    /// "Allow public client flows": without it a device code ends in AADSTS7000218. On from the start.
    pub fn allow_public_flows(&self, client: &str, allowed: bool) -> bool {
        self.with_app(client, |app| app.public_flows = allowed)
    }

    /// Registers a redirect address of the kind "Mobile and desktop applications": redeemed without a credential.
    pub fn register_redirect(&self, client: &str, address: &str) -> bool {
        let redirect = Redirect { address: address.to_owned(), web: false };
        self.with_app(client, |app| app.redirects.push(redirect))
    }

    /// Registers a redirect address of the kind "Web": redeemed with a credential.
    pub fn register_web_redirect(&self, client: &str, address: &str) -> bool {
        let redirect = Redirect { address: address.to_owned(), web: true };
        self.with_app(client, |app| app.redirects.insert(0, redirect))
    }

    /// Removes every redirect address.
    pub fn forget_redirects(&self, client: &str) -> bool {
        self.with_app(client, |app| app.redirects.clear())
    }

    /// Replaces the permissions an application requires: those that consent grants.
    pub fn require(&self, client: &str, permissions: &[Permission]) -> bool {
        self.with_app(client, |app| app.required = permissions.to_vec())
    }

    // Permissions.

    /// Grants one permission; a delegated one for everybody.
    pub fn grant(&self, client: &str, permission: Permission) -> bool {
        let mut held = self.hold();
        let now = held.now();
        let Some(app) = held.directory.app(client) else { return false };
        held.directory.grant(app, permission, None, now);
        true
    }

    /// Grants one delegated permission for one person alone.
    pub fn grant_to(&self, client: &str, permission: Permission, sign_in_name: &str) -> bool {
        let mut held = self.hold();
        let now = held.now();
        let (Some(app), Some(person)) = (held.directory.app(client), held.directory.person(sign_in_name)) else {
            return false;
        };
        held.directory.grant(app, permission, Some(person), now);
        true
    }

    /// Takes one permission away, from everybody. Tokens given out keep it.
    pub fn withdraw(&self, client: &str, permission: Permission) -> bool {
        let mut held = self.hold();
        let Some(app) = held.directory.app(client) else { return false };
        held.directory.withdraw(app, permission);
        true
    }

    /// Takes the service principal of an API out of the tenant, or puts it back: without it nothing can be granted,
    /// and tokens end in AADSTS500011.
    pub fn install_api(&self, api: Api, installed: bool) {
        let mut held = self.hold();
        if installed {
            held.directory.absent.remove(&api);
        } else {
            held.directory.absent.insert(api);
        }
    }

    /// How long a grant takes until new tokens carry it; Graph shows it at once.
    pub fn spread_grants_after(&self, time: Duration) {
        self.hold().directory.spread = time;
    }

    /// Whether people may consent for themselves at the browser; otherwise `consent_required`. Off from the start.
    pub fn allow_user_consent(&self, allowed: bool) {
        self.hold().directory.user_consent = allowed;
    }

    // People.

    /// Everybody: first those the environment knows.
    pub fn people(&self) -> Vec<PersonInfo> {
        let people = &self.hold().directory.people;
        people
            .iter()
            .map(|person| PersonInfo {
                sign_in_name: person.sign_in_name.clone(),
                object_id: person.object_id.clone(),
                name: person.name.clone(),
                user: person.caller.map(|caller| user_id(self.shared.config.environment, caller).to_string()),
            })
            .collect()
    }

    /// Puts a person in front of the browser; the first of [`Entra::people`] sits there from the start.
    pub fn sit_at_browser(&self, sign_in_name: &str) -> bool {
        let mut held = self.hold();
        let Some(person) = held.directory.person(sign_in_name) else { return false };
        held.directory.at_browser = person;
        true
    }

    /// Disables a person (AADSTS50057) or enables them again.
    pub fn enable_person(&self, sign_in_name: &str, enabled: bool) -> bool {
        self.with_person(sign_in_name, |person| person.enabled = enabled)
    }

    /// Wants a second factor from now on: refresh tokens from before end in AADSTS50076 with claims; any interactive
    /// sign-in helps.
    pub fn require_mfa(&self, sign_in_name: &str) -> bool {
        self.demand(sign_in_name, Some(Demand { claims: MFA_CLAIMS.to_owned(), exactly: false }))
    }

    /// As [`Entra::require_mfa`], but only a sign-in that repeats these claims (JSON) helps.
    pub fn require_claims(&self, sign_in_name: &str, claims: &str) -> bool {
        self.demand(sign_in_name, Some(Demand { claims: claims.to_owned(), exactly: true }))
    }

    /// Wants nothing special of a person any more.
    pub fn relax(&self, sign_in_name: &str) -> bool {
        self.demand(sign_in_name, None)
    }

    fn demand(&self, sign_in_name: &str, demand: Option<Demand>) -> bool {
        let mut held = self.hold();
        let Some(person) = held.directory.person(sign_in_name) else { return false };
        held.directory.people[person].demand = demand;
        for refresh in held.ledger.refresh.values_mut().filter(|refresh| refresh.person == person) {
            refresh.strong = false;
        }
        true
    }

    /// Revokes a person's sessions: every refresh token given out so far ends in AADSTS50173. Access tokens live on.
    pub fn revoke_refresh_tokens(&self, sign_in_name: &str) -> bool {
        let mut held = self.hold();
        let Some(person) = held.directory.person(sign_in_name) else { return false };
        for refresh in held.ledger.refresh.values_mut().filter(|refresh| refresh.person == person) {
            refresh.revoked = Some(REVOKED);
        }
        true
    }

    // Tokens.

    /// Life of access tokens made from now on.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.hold().set_token_lifetime(lifetime);
    }

    /// How long a refresh token lives without being used; 90 days from the start (entra 6).
    pub fn set_refresh_lifetime(&self, lifetime: Duration) {
        self.hold().script.refresh_life = lifetime;
    }

    /// Refuses a refresh token that was used before. The real service does not (entra 6); a client that saves its new
    /// token too late is found by it.
    pub fn rotate_strictly(&self, strict: bool) {
        self.hold().script.strict_rotation = strict;
    }

    /// An API answers 401 until a token comes that was asked for with these claims (entra 8). False if `claims` is not
    /// JSON.
    pub fn challenge(&self, api: Api, claims: &str) -> bool {
        let Ok(claims) = serde_json::from_str::<Value>(claims) else { return false };
        self.hold().challenges.insert(api, claims);
        true
    }

    /// Takes the challenge back.
    pub fn end_challenge(&self, api: Api) {
        self.hold().challenges.remove(&api);
    }

    /// Makes answers with tokens odd in these ways, and in no others.
    pub fn distort(&self, quirks: &[TokenQuirk]) {
        self.hold().script.quirks = quirks.iter().copied().collect();
    }

    // Failures.

    /// The next requests to the token endpoint fail to be answered properly.
    pub fn fail_next(&self, fault: AnswerFault, times: u32) {
        self.hold().script.faults.extend((0..times).map(|_| fault));
    }

    /// Refuses tokens with the digits of an AADSTS code until [`Entra::accept`]. The checks before come first: a wrong
    /// secret stays a wrong secret.
    pub fn refuse(&self, code: u32) {
        self.hold().script.refuse(code, None, None, None);
    }

    /// Refuses tokens so many times.
    pub fn refuse_next(&self, code: u32, times: u32) {
        self.hold().script.refuse(code, None, None, Some(times));
    }

    /// Refuses tokens of one `grant_type` until [`Entra::accept`], with claims to repeat if there are any.
    pub fn refuse_grant(&self, grant_type: &str, code: u32, claims: Option<&str>) {
        self.hold().script.refuse(code, Some(grant_type), claims, None);
    }

    /// Ends all refusals.
    pub fn accept(&self) {
        self.hold().script.accept();
    }

    /// Sets the clock that both services show (`Date`, claims, times of assertions) wrong by so much against the
    /// caller's.
    pub fn skew_clock(&self, by: SignedDuration) {
        self.hold().skew = by;
    }

    // The browser and device codes.

    /// How every visit to `authorize` and to the consent page ends from now on.
    pub fn answer_browser(&self, outcome: BrowserOutcome) {
        self.hold().script.browser = outcome;
    }

    /// User codes that wait for a person.
    pub fn user_codes(&self) -> Vec<String> {
        let held = self.hold();
        let waiting = held.ledger.devices.values().filter(|device| device.decision == Decision::Pending);
        waiting.map(|device| device.user_code.clone()).collect()
    }

    /// The person at the browser enters a user code and agrees.
    pub fn approve_device(&self, user_code: &str) -> bool {
        let mut held = self.hold();
        let person = held.directory.at_browser;
        held.decide(user_code, Decision::Approved(person))
    }

    /// The person at the browser enters a user code and refuses.
    pub fn decline_device(&self, user_code: &str) -> bool {
        self.hold().decide(user_code, Decision::Declined)
    }

    /// Device codes approve themselves after so many polls that were answered `authorization_pending`.
    pub fn approve_devices_after(&self, polls: Option<u32>) {
        self.hold().script.approve_after = polls;
    }

    /// The next polls are answered `slow_down`, whatever the time between them.
    pub fn slow_down_polls(&self, times: u32) {
        self.hold().script.slow_downs = times;
    }

    /// Whether polls faster than the interval are answered `slow_down`; on from the start. A client whose waiting takes
    /// no real time needs this off, or [`crate::Handle::pass_time`] beside each of its waits.
    pub fn measure_polls(&self, measured: bool) {
        self.hold().script.measured = measured;
    }

    /// Interval (whole seconds) and life of device codes made from now on; 5 and 900 seconds from the start.
    pub fn set_device_codes(&self, interval: Duration, lifetime: Duration) {
        let mut held = self.hold();
        held.script.device_interval = interval;
        held.script.device_life = lifetime;
    }

    // What was asked.

    /// Requests to the sign-in endpoints, oldest first, without their secrets.
    pub fn requests(&self) -> Vec<SignInRequest> {
        self.hold().log.iter().cloned().collect()
    }

    /// Empties both lists of requests.
    pub fn forget_requests(&self) {
        let mut held = self.hold();
        held.log.clear();
        held.graph.log.clear();
    }

    // Graph.

    /// Number of groups in the tenant; 250 from the start.
    pub fn set_groups(&self, count: usize) {
        self.hold().directory.groups = count;
    }

    /// Largest page of Graph, whatever `$top` says; `None` keeps to the documented sizes.
    pub fn set_graph_page(&self, size: Option<usize>) {
        self.hold().graph.page_size = size;
    }

    /// The next requests to Graph fail to be answered properly.
    pub fn fail_graph_next(&self, fault: AnswerFault, times: u32) {
        self.hold().graph.faults.extend((0..times).map(|_| fault));
    }

    /// Makes answers of Graph odd in this way, or in none.
    pub fn distort_graph(&self, quirk: Option<GraphQuirk>) {
        self.hold().graph.quirk = quirk;
    }

    /// Requests to Graph, oldest first.
    pub fn graph_requests(&self) -> Vec<GraphRequest> {
        self.hold().graph.log.iter().cloned().collect()
    }
}
