//! What a browser does: sign in, consent, enter a device code (entra 3.1, 4, 5).
//!
//! There are no pages to click through. A visit ends at once, as the person at the browser would end it;
//! [`crate::Entra::answer_browser`] says otherwise.

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::dice::named_guid;
use crate::entra::directory::tenant;
use crate::entra::failure::Failure;
use crate::entra::ledger::{Code, Decision, Device};
use crate::entra::permission::{Permission, PermissionType};
use crate::entra::request::Form;
use crate::entra::scope::Scope;
use crate::entra::script::BrowserOutcome;
use crate::entra::{Authority, is_ours, missing, read_claims};
use crate::query::{encode, pairs};

/// Length of a challenge: 32 bytes in base64url (RFC 7636 4.2).
const CHALLENGE_LENGTH: usize = 43;

/// Sends the browser back with parameters; a registered address without a path returns with a slash (entra 4.1).
fn redirect(address: &str, parameters: &[(&str, &str)]) -> Answer {
    let bare = address.split_once("://").is_some_and(|(_, rest)| !rest.contains(['/', '?']));
    let mut location = format!("{address}{}", if bare { "/" } else { "" });
    let mut mark = if location.contains('?') { '&' } else { '?' };
    for (name, value) in parameters {
        location.push(mark);
        location.push_str(name);
        location.push('=');
        location.push_str(&encode(value));
        mark = '&';
    }
    Answer::empty(302).with("Location", location).with("Cache-Control", "no-store")
}

impl Authority {
    /// `GET {authority}/{tenant}/oauth2/v2.0/authorize`.
    pub(super) fn authorize(&mut self, segment: &str, form: &Form) -> Answer {
        let (app, address, web) = match self.check_visit(segment, form) {
            Ok(visit) => visit,
            Err(failure) => return failure.page(),
        };
        let state = form.text("state");
        match self.code(app, &address, web, form) {
            Ok(_) if self.script.browser == BrowserOutcome::Nothing => redirect(&address, &[("state", state)]),
            Ok(code) => {
                let wrong = self.script.browser == BrowserOutcome::WrongState;
                let state = if wrong { "another state" } else { state };
                let session = named_guid(&format!("session {}", self.ledger.number())).to_string();
                redirect(&address, &[("code", &code), ("state", state), ("session_state", &session)])
            }
            Err(failure) => redirect(
                &address,
                &[("error", failure.error), ("error_description", &failure.description()), ("state", state)],
            ),
        }
    }

    /// What must be right before anybody is sent back: otherwise a page says what is wrong.
    fn check_visit(&self, segment: &str, form: &Form) -> Result<(usize, String, bool), Failure> {
        Self::check_tenant(segment)?;
        let app = self.check_app(form)?;
        let address = form.get("redirect_uri").ok_or_else(|| missing("redirect_uri"))?;
        let Some(redirect) = self.directory.redirect(app, address) else {
            return Err(Failure::of(50_011).saying(format!(
                "The redirect URI specified in the request does not match the redirect URIs configured for the application '{}'.",
                form.client()
            )));
        };
        Ok((app, address.to_owned(), redirect.web))
    }

    fn code(&mut self, app: usize, address: &str, web: bool, form: &Form) -> Result<String, Failure> {
        if form.text("response_type") != "code" {
            return Err(Failure::protocol("unsupported_response_type", "Only the response type 'code' is supported."));
        }
        if !matches!(form.text("response_mode"), "" | "query") {
            return Err(Failure::protocol("invalid_request", "Only the response mode 'query' is supported."));
        }
        let challenge = form.get("code_challenge").ok_or_else(|| missing("code_challenge"))?;
        if form.text("code_challenge_method") != "S256" || challenge.len() != CHALLENGE_LENGTH {
            // The real service would take `plain`; this product must not send it (entra 4.2).
            return Err(Failure::protocol("invalid_request", "The code_challenge_method must be 'S256'."));
        }
        let scope = Scope::parse(form.get("scope").ok_or_else(|| missing("scope"))?, &self.resources)?;
        let claims = read_claims(form)?;
        self.outcome()?;
        let silent = form.text("prompt") == "none";
        let person = match form.get("login_hint") {
            Some(hint) => self.directory.person(hint).ok_or_else(|| Failure::of(50_034))?,
            None => self.directory.at_browser,
        };
        if !self.directory.people[person].enabled {
            return Err(Failure::of(50_057));
        }
        if silent && self.directory.people[person].demand.is_some() {
            return Err(Failure::of(50_076).named("interaction_required"));
        }
        self.consent_of(app, person, &scope, form.text("prompt"))?;
        let strong = self.is_strong(person, claims.as_ref());
        let url = self.url.clone();
        let code = Code {
            app,
            person,
            redirect_uri: address.to_owned(),
            web,
            challenge: challenge.to_owned(),
            nonce: form.get("nonce").map(str::to_owned),
            scope,
            claims,
            strong,
            issued: self.now(),
            redeemed: false,
        };
        Ok(self.ledger.keep_code(&url, code))
    }

    /// The end that was ordered, if it is a failure.
    fn outcome(&self) -> Result<(), Failure> {
        Err(match self.script.browser {
            BrowserOutcome::Accept
            | BrowserOutcome::WrongState
            | BrowserOutcome::Nothing
            | BrowserOutcome::OtherTenant => return Ok(()),
            BrowserOutcome::Decline => Failure::of(65_004),
            BrowserOutcome::ConsentRequired => Failure::of(90_094),
            BrowserOutcome::InteractionRequired => Failure::of(50_076).named("interaction_required"),
            BrowserOutcome::ServerError => Failure::of(90_006),
            BrowserOutcome::TemporarilyUnavailable => Failure::of(90_033),
        })
    }

    /// Consent of a person on the way to a code (entra 3): named values must be granted; `.default` asks only where
    /// nothing was granted yet, or where `prompt=consent` says so.
    fn consent_of(&mut self, app: usize, person: usize, scope: &Scope, prompt: &str) -> Result<(), Failure> {
        let now = self.now();
        for asked in &scope.resources {
            if self.directory.absent.contains(&asked.api) {
                return Err(Failure::of(650_052));
            }
            let granted = self.directory.scopes(app, asked.api, person, now);
            let wanted: Vec<Permission> = if !asked.default {
                asked
                    .values
                    .iter()
                    .map(|value| {
                        Permission::find(asked.api, PermissionType::Delegated, value).ok_or_else(|| {
                            Failure::of(650_057).named("invalid_scope").saying(format!(
                                "The application asked for scope '{value}' that doesn't exist on the resource."
                            ))
                        })
                    })
                    .collect::<Result<_, _>>()?
            } else if granted.is_empty() || prompt == "consent" {
                let required = self.directory.apps[app].required.iter();
                required
                    .filter(|permission| permission.api == asked.api && permission.kind == PermissionType::Delegated)
                    .copied()
                    .collect()
            } else {
                Vec::new()
            };
            let missing: Vec<Permission> =
                wanted.into_iter().filter(|permission| !granted.contains(&permission.value)).collect();
            if missing.is_empty() {
                if granted.is_empty() {
                    return Err(Failure::of(650_057));
                }
                continue;
            }
            if prompt == "none" {
                return Err(Failure::of(65_001).named("consent_required"));
            }
            if !self.directory.user_consent {
                return Err(Failure::of(90_094));
            }
            for permission in missing {
                self.directory.grant(app, permission, Some(person), now);
            }
        }
        Ok(())
    }

    /// `GET {authority}/{tenant}/v2.0/adminconsent` (entra 3.1).
    pub(super) fn admin_consent(&mut self, segment: &str, form: &Form) -> Answer {
        let segment = if segment == "organizations" { tenant() } else { segment.to_owned() };
        let (app, address, _) = match self.check_visit(&segment, form) {
            Ok(visit) => visit,
            Err(failure) => return failure.page(),
        };
        debug_assert!(is_ours(&segment), "a visit elsewhere was refused");
        let state = form.text("state");
        let asked = match Scope::parse(form.text("scope"), &self.resources) {
            Ok(scope) => scope,
            Err(failure) => return failed_consent(&address, &failure, state),
        };
        if let Err(failure) = self.outcome() {
            return failed_consent(&address, &failure, state);
        }
        let other = self.script.browser == BrowserOutcome::OtherTenant;
        if !other && self.script.browser != BrowserOutcome::Nothing {
            let now = self.now();
            // The page covers everything the application requires, of all resources (entra 3.1).
            self.directory.consent(app, now);
            for asked in asked.resources {
                let named = asked
                    .values
                    .iter()
                    .filter_map(|value| Permission::find(asked.api, PermissionType::Delegated, value));
                for permission in named {
                    self.directory.grant(app, permission, None, now);
                }
            }
        }
        let tenant = if other { named_guid("another tenant").to_string() } else { tenant() };
        let state = if self.script.browser == BrowserOutcome::WrongState { "another state" } else { state };
        redirect(
            &address,
            &[("admin_consent", "True"), ("tenant", &tenant), ("scope", form.text("scope")), ("state", state)],
        )
    }

    /// `POST {authority}/{tenant}/oauth2/v2.0/devicecode` (entra 5).
    pub(super) fn device_code(&mut self, segment: &str, form: &Form) -> Result<Value, Failure> {
        Self::check_tenant(segment)?;
        let app = self.check_app(form)?;
        let scope = Scope::parse(form.get("scope").ok_or_else(|| missing("scope"))?, &self.resources)?;
        scope.only()?;
        let (now, url) = (self.now(), self.url.clone());
        let (interval, life) = (self.script.device_interval, self.script.device_life);
        let device = Device {
            app,
            user_code: String::new(),
            scope,
            claims: read_claims(form)?,
            issued: now,
            interval,
            polled: now,
            polls: 0,
            decision: Decision::Pending,
            redeemed: false,
        };
        let (code, user_code) = self.ledger.keep_device(&url, device);
        let page = format!("{url}/entra/device");
        Ok(json!({
            "device_code": code, "user_code": user_code, "verification_uri": page,
            "expires_in": life.as_secs(), "interval": interval.as_secs(),
            "message": format!("To sign in, use a web browser to open the page {page} and enter the code {user_code} to authenticate."),
        }))
    }

    /// The person decides about a user code; false if there is no such code.
    pub(crate) fn decide(&mut self, user_code: &str, decision: Decision) -> bool {
        let device = self.ledger.device_of(user_code);
        device.is_some_and(|device| {
            device.decision = decision;
            true
        })
    }
}

/// `admin_consent=True` stands beside the error, as in the real answer (entra 3.1).
fn failed_consent(address: &str, failure: &Failure, state: &str) -> Answer {
    redirect(
        address,
        &[
            ("error", failure.error),
            ("error_description", &failure.description()),
            ("admin_consent", "True"),
            ("state", state),
        ],
    )
}

/// The page where a person enters a device code; the person at the browser approves it.
pub(crate) fn device_page(authority: &mut Authority, query: &str) -> Answer {
    let user_code = pairs(query).find(|(name, _, _)| name == "user_code").map(|(_, value, _)| value);
    let person = authority.directory.at_browser;
    let text = match user_code {
        None => "<form><label>Enter the code <input name=\"user_code\"></label><button>Next</button></form>",
        Some(code) if authority.decide(&code, Decision::Approved(person)) => "<p>You have signed in.</p>",
        Some(_) => "<p>That code did not work.</p>",
    };
    Answer {
        media_type: "text/html; charset=utf-8",
        ..Answer::text(format!("<html><head><title>Sign in</title></head><body>{text}</body></html>"))
    }
}
