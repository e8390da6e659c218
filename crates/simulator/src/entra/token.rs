//! The token endpoint: five ways to an access token (entra 4.4, 5, 6, 9).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::dice::named_guid;
use crate::entra::client::Proof;
use crate::entra::directory::tenant;
use crate::entra::failure::Failure;
use crate::entra::keys::{sha256, signing_key};
use crate::entra::ledger::{Access, Decision, Refresh, Subject, is_over};
use crate::entra::permission::Api;
use crate::entra::request::Form;
use crate::entra::scope::{Asked, Scope};
use crate::entra::script::TokenQuirk;
use crate::entra::{Authority, has_claims, missing, read_claims};

/// `grant_type` of the device code grant (RFC 8628).
pub(crate) const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// A device poll may come this much early: clocks and wires are not exact.
const POLL_TOLERANCE: Duration = Duration::from_millis(250);
/// What `slow_down` adds to the interval (RFC 8628 3.5).
const SLOW_DOWN_STEP: Duration = Duration::from_secs(5);
/// Length of a token that nobody should read.
const HUGE_BYTES: usize = 1 << 20;
/// Directory roles of the two kinds of people: global administrator and none in particular.
const WIDS: [&str; 2] = ["62e90394-69f5-4237-9190-012177145e10", "b79fbf4d-3ef9-4689-8143-76b194e85509"];

/// A person's sign-in on the way to tokens.
struct SignIn<'a> {
    subject: Subject,
    person: usize,
    asked: &'a Asked,
    /// Scopes of OpenID Connect that count.
    oidc: &'a [String],
    nonce: Option<&'a str>,
    proof: Proof,
    claims: Option<Value>,
    strong: bool,
    /// A refresh token belongs to the answer.
    lasting: bool,
}

impl Authority {
    /// `POST {authority}/{tenant}/oauth2/v2.0/token`.
    pub(super) fn token(&mut self, segment: &str, form: &Form) -> Result<Value, Failure> {
        Self::check_tenant(segment)?;
        let grant = form.get("grant_type").ok_or_else(|| missing("grant_type"))?;
        if !matches!(grant, "client_credentials" | "authorization_code" | "refresh_token" | DEVICE_CODE) {
            return Err(Failure::of(70_003).saying(format!("The app requested an unsupported grant type '{grant}'.")));
        }
        let app = self.check_app(form)?;
        // The tenant as it was called, or by its id (entra 9.2).
        let endpoint = |segment: &str| format!("{}/entra/{segment}/oauth2/v2.0/token", self.url);
        let audiences = [endpoint(segment), endpoint(&tenant())];
        let proof = self.prove(app, form, &audiences, self.shown())?;
        if let Some(failure) = self.script.refusal(grant) {
            return Err(failure);
        }
        let now = self.now();
        match grant {
            "client_credentials" => self.by_credential(app, proof, form, now),
            "authorization_code" => self.by_code(app, proof, form, now),
            "refresh_token" => self.by_refresh(app, proof, form, now),
            _ => self.by_device(app, proof, form, now),
        }
    }

    fn by_credential(&mut self, app: usize, proof: Proof, form: &Form, now: Timestamp) -> Result<Value, Failure> {
        if proof == Proof::Public {
            return Err(Failure::of(7_000_218));
        }
        let text = form.get("scope").ok_or_else(|| missing("scope"))?;
        let scope = Scope::parse(text, &self.resources)?;
        let asked = match scope.resources.as_slice() {
            [asked] if asked.default => asked,
            [_] => {
                return Err(Failure::of(1_002_012).saying(format!(
                    "The provided value for scope {text} is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI)."
                )));
            }
            [] => return Err(Failure::of(1_002_012)),
            _ => return Err(Failure::of(700_022)),
        };
        self.check_presence(asked)?;
        let roles = self.directory.roles(app, asked.api, now);
        let claims = read_claims(form)?;
        let subject = Subject { app, person: None };
        let token = self.issue(subject, asked, proof, Vec::new(), roles, claims, now);
        Ok(self.body(token))
    }

    fn by_code(&mut self, app: usize, proof: Proof, form: &Form, now: Timestamp) -> Result<Value, Failure> {
        let text = form.get("code").ok_or_else(|| missing("code"))?;
        let life = self.script.code_life;
        let Some(code) = self.ledger.codes.get_mut(text) else {
            return Err(Failure::of(70_000).saying("The provided value for the 'code' parameter is not valid."));
        };
        if code.app != app {
            return Err(Failure::of(70_000).saying("The provided authorization code was issued to another client."));
        }
        if code.redeemed {
            return Err(Failure::of(54_005));
        }
        if is_over(code.issued, life, now) {
            return Err(Failure::of(70_008));
        }
        let code = code.clone();
        let redirect_uri = form.get("redirect_uri").ok_or_else(|| missing("redirect_uri"))?;
        if redirect_uri != code.redirect_uri {
            return Err(Failure::of(500_112).saying(format!(
                "The reply address '{redirect_uri}' does not match the reply address '{}' provided when requesting Authorization code.",
                code.redirect_uri
            )));
        }
        check_kind(proof, !code.web)?;
        let verifier = form.get("code_verifier").ok_or_else(|| missing("code_verifier"))?;
        if !is_verifier(verifier) || URL_SAFE_NO_PAD.encode(sha256(verifier.as_bytes())) != code.challenge {
            return Err(Failure::of(501_481));
        }
        let scope = match form.get("scope") {
            Some(text) => Scope::parse(text, &self.resources)?,
            None => code.scope.clone(),
        };
        let claims = read_claims(form)?.or(code.claims);
        let body = self.sign_in(
            &SignIn {
                subject: Subject { app, person: Some(code.person) },
                person: code.person,
                asked: scope.only()?,
                oidc: &code.scope.sign_in,
                nonce: code.nonce.as_deref(),
                proof,
                claims,
                strong: code.strong,
                lasting: code.scope.has("offline_access"),
            },
            now,
        )?;
        if let Some(code) = self.ledger.codes.get_mut(text) {
            code.redeemed = true;
        }
        Ok(body)
    }

    fn by_device(&mut self, app: usize, proof: Proof, form: &Form, now: Timestamp) -> Result<Value, Failure> {
        let text = form.get("device_code").ok_or_else(|| missing("device_code"))?;
        if !self.directory.apps[app].public_flows && proof == Proof::Public {
            return Err(Failure::of(7_000_218));
        }
        let life = self.script.device_life;
        let (measured, approve_after, at_browser) =
            (self.script.measured, self.script.approve_after, self.directory.at_browser);
        let told = self.script.slow_downs > 0;
        let Some(device) = self.ledger.devices.get_mut(text).filter(|device| device.app == app) else {
            return Err(Failure::of(70_018));
        };
        if is_over(device.issued, life, now) {
            return Err(Failure::of(70_020));
        }
        if device.redeemed {
            return Err(Failure::of(54_005).saying("OAuth2 Authorization code was already redeemed."));
        }
        let early = measured && !is_over(device.polled, device.interval.saturating_sub(POLL_TOLERANCE), now);
        device.polled = now;
        if early || told {
            self.script.slow_downs -= u32::from(told);
            device.interval += SLOW_DOWN_STEP;
            return Err(Failure::protocol("slow_down", "The device polled faster than it was told to."));
        }
        device.polls += 1;
        if device.decision == Decision::Pending && approve_after.is_some_and(|polls| device.polls > polls) {
            device.decision = Decision::Approved(at_browser);
        }
        let person = match device.decision {
            Decision::Pending => return Err(Failure::of(70_016)),
            Decision::Declined => return Err(Failure::of(70_017)),
            Decision::Approved(person) => person,
        };
        let device = device.clone();
        let strong = self.is_strong(person, device.claims.as_ref());
        let body = self.sign_in(
            &SignIn {
                subject: Subject { app, person: Some(person) },
                person,
                asked: device.scope.only()?,
                oidc: &device.scope.sign_in,
                nonce: None,
                proof,
                claims: device.claims.clone(),
                strong,
                lasting: device.scope.has("offline_access"),
            },
            now,
        )?;
        if let Some(device) = self.ledger.devices.get_mut(text) {
            device.redeemed = true;
        }
        Ok(body)
    }

    fn by_refresh(&mut self, app: usize, proof: Proof, form: &Form, now: Timestamp) -> Result<Value, Failure> {
        let text = form.get("refresh_token").ok_or_else(|| missing("refresh_token"))?;
        let life = self.script.refresh_life;
        let Some(refresh) = self.ledger.refresh.get(text).cloned() else { return Err(Failure::of(70_000)) };
        if refresh.app != app {
            return Err(
                Failure::of(70_000).saying("Provided grant is invalid or malformed: it was issued to another client.")
            );
        }
        check_kind(proof, refresh.public)?;
        if let Some(code) = refresh.revoked {
            return Err(Failure::of(code));
        }
        if is_over(refresh.touched, life, now) {
            return Err(Failure::of(700_082).saying(format!(
                "The refresh token has expired due to inactivity. The token was issued on {} and was inactive for {} seconds.",
                refresh.touched,
                life.as_secs()
            )));
        }
        if self.script.strict_rotation && refresh.used {
            return Err(Failure::of(70_000).saying("The refresh token was already used."));
        }
        let scope = Scope::parse(form.get("scope").ok_or_else(|| missing("scope"))?, &self.resources)?;
        // On a refresh, the resource of the first scope wins (entra 3).
        let asked = scope.resources.first().ok_or_else(|| Failure::of(70_011))?;
        let body = self.sign_in(
            &SignIn {
                subject: Subject { app, person: Some(refresh.person) },
                person: refresh.person,
                asked,
                oidc: &scope.sign_in,
                nonce: None,
                proof,
                claims: read_claims(form)?,
                strong: refresh.strong,
                lasting: true,
            },
            now,
        )?;
        if let Some(refresh) = self.ledger.refresh.get_mut(text) {
            refresh.used = true;
            // Use renews it (entra 6).
            refresh.touched = now;
        }
        Ok(body)
    }

    /// Whether an interactive sign-in gave the directory what it demands of a person.
    pub(super) fn is_strong(&self, person: usize, claims: Option<&Value>) -> bool {
        self.directory.people[person].demand.as_ref().is_some_and(|demand| {
            let wanted: Value = serde_json::from_str(&demand.claims).unwrap_or_default();
            !demand.exactly || claims.is_some_and(|claims| has_claims(claims, &wanted))
        })
    }

    /// Tokens for a person, if the directory lets them be made.
    fn sign_in(&mut self, sign_in: &SignIn<'_>, now: Timestamp) -> Result<Value, Failure> {
        let SignIn { subject, person, asked, .. } = *sign_in;
        let who = &self.directory.people[person];
        if !who.enabled {
            return Err(Failure::of(50_057));
        }
        if let Some(demand) = who.demand.as_ref().filter(|_| !sign_in.strong) {
            return Err(Failure::of(50_076).claiming(&demand.claims));
        }
        self.check_presence(asked)?;
        let granted = self.directory.scopes(subject.app, asked.api, person, now);
        let all_there = asked.values.iter().all(|value| granted.iter().any(|known| known == value));
        if granted.is_empty() || !all_there {
            let client = &self.directory.apps[subject.app].client_id;
            return Err(Failure::of(65_001).saying(format!(
                "The user or administrator has not consented to use the application with ID '{client}' named 'dynavault'. Send an interactive authorization request for this user and resource."
            )));
        }
        let mut scopes: Vec<String> = granted.into_iter().map(str::to_owned).collect();
        let listed = if asked.api == Api::Graph {
            // Graph is where the scopes of OpenID Connect live.
            scopes.extend(sign_in.oidc.iter().filter(|scope| *scope != "offline_access").cloned());
            scopes.join(" ")
        } else {
            scopes.iter().map(|scope| format!("{}/{scope}", asked.resource)).collect::<Vec<_>>().join(" ")
        };
        let token = self.issue(subject, asked, sign_in.proof, scopes, Vec::new(), sign_in.claims.clone(), now);
        let mut body = self.body(token);
        body["scope"] = json!(listed);
        if sign_in.lasting && !self.script.is(TokenQuirk::NoRefreshToken) {
            let refresh = Refresh {
                app: subject.app,
                person,
                touched: now,
                used: false,
                revoked: None,
                public: sign_in.proof == Proof::Public,
                strong: sign_in.strong,
            };
            let url = self.url.clone();
            body["refresh_token"] = json!(self.ledger.keep_refresh(&url, refresh, self.script.refresh_life));
        }
        if sign_in.oidc.iter().any(|scope| scope == "openid") {
            body["id_token"] = json!(self.id_token(subject.app, person, sign_in.nonce));
        }
        Ok(body)
    }

    fn check_presence(&self, asked: &Asked) -> Result<(), Failure> {
        if self.directory.absent.contains(&asked.api) {
            return Err(Failure::of(500_011).saying(format!(
                "The resource principal named {} was not found in the tenant named {}. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant.",
                asked.resource,
                crate::entra::directory::TENANT_NAME
            )));
        }
        Ok(())
    }

    fn body(&self, token: String) -> Value {
        let seconds = self.token_lifetime.as_secs();
        let expires = if self.script.is(TokenQuirk::TextExpiry) { json!(seconds.to_string()) } else { json!(seconds) };
        json!({"token_type": "Bearer", "expires_in": expires, "ext_expires_in": seconds, "access_token": token})
    }

    /// Signs an access token and keeps it (entra 10.1). Resources of this kind still get version 1.0.
    #[expect(clippy::too_many_arguments, reason = "each is a claim of the token")]
    fn issue(
        &mut self,
        subject: Subject,
        asked: &Asked,
        proof: Proof,
        scopes: Vec<String>,
        roles: Vec<&'static str>,
        claims: Option<Value>,
        now: Timestamp,
    ) -> String {
        let lifetime = self.token_lifetime;
        let shown = self.shown().as_second();
        let number = self.ledger.number();
        let app = &self.directory.apps[subject.app];
        let stranger = |name: &str| named_guid(&format!("another {name}")).to_string();
        let tenant = if self.script.is(TokenQuirk::OtherTenant) { stranger("tenant") } else { tenant() };
        let client = if self.script.is(TokenQuirk::OtherClient) { stranger("client") } else { app.client_id.clone() };
        let audience = if self.script.is(TokenQuirk::OtherAudience) {
            "https://elsewhere.example".to_owned()
        } else {
            asked.resource.clone()
        };
        let mut body = json!({
            "aud": audience, "iss": format!("{}/entra/{tenant}/", self.url), "iat": shown, "nbf": shown,
            "exp": shown + lifetime.as_secs() as i64, "appid": client, "appidacr": (proof as u8).to_string(),
            "tid": tenant, "uti": URL_SAFE_NO_PAD.encode(&sha256(format!("{} {number}", self.url).as_bytes())[..16]), "ver": "1.0",
        });
        match subject.person {
            None => {
                body["idtyp"] = json!("app");
                body["oid"] = json!(app.object_id);
                body["sub"] = json!(app.object_id);
                // A claim is present only if it has a value.
                if !roles.is_empty() {
                    body["roles"] = json!(roles);
                }
            }
            Some(index) => {
                let person = &self.directory.people[index];
                body["idtyp"] = json!("user");
                body["oid"] = json!(person.object_id);
                body["sub"] = json!(pairwise(&person.object_id, asked.api.app_id()));
                body["name"] = json!(person.name);
                body["upn"] = json!(person.sign_in_name);
                body["scp"] = json!(scopes.join(" "));
                body["wids"] = json!([WIDS[usize::from(index != 0)]]);
            }
        }
        if claims.as_ref().is_some_and(|claims| !claims["access_token"]["xms_cc"].is_null()) {
            body["xms_cc"] = json!(["cp1"]);
        }
        let token = if self.script.is(TokenQuirk::Opaque) {
            format!("opaque{}", URL_SAFE_NO_PAD.encode(sha256(body.to_string().as_bytes())))
        } else if self.script.is(TokenQuirk::Huge) {
            body["padding"] = json!("x".repeat(HUGE_BYTES));
            signing_key().jwt(&body)
        } else {
            signing_key().jwt(&body)
        };
        let access = Access {
            subject,
            api: asked.api,
            expires: now.checked_add(lifetime).unwrap_or(Timestamp::MAX),
            scopes,
            roles,
            claims,
        };
        self.ledger.keep_access(token.clone(), access, now);
        token
    }

    fn id_token(&self, app: usize, person: usize, nonce: Option<&str>) -> String {
        let person = &self.directory.people[person];
        let shown = self.shown().as_second();
        let client = &self.directory.apps[app].client_id;
        let other = |name: &str| named_guid(&format!("another {name}")).to_string();
        let audience = if self.script.is(TokenQuirk::OtherIdAudience) { other("client") } else { client.clone() };
        let tenant = if self.script.is(TokenQuirk::OtherTenant) { other("tenant") } else { tenant() };
        let mut body = json!({
            "ver": "2.0", "iss": format!("{}/entra/{tenant}/v2.0", self.url), "aud": audience, "tid": tenant,
            "iat": shown, "nbf": shown, "exp": shown + self.token_lifetime.as_secs().max(1) as i64,
            "oid": person.object_id, "sub": pairwise(&person.object_id, client),
            "name": person.name, "preferred_username": person.sign_in_name,
        });
        if let Some(nonce) = nonce {
            body["nonce"] = if self.script.is(TokenQuirk::OtherNonce) { json!("another nonce") } else { json!(nonce) };
        }
        signing_key().jwt(&body)
    }
}

/// The subject one application sees of a person.
fn pairwise(object_id: &str, application: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha256(format!("{object_id} {application}").as_bytes()))
}

/// A public client proves nothing, a confidential one something (entra 4.1).
fn check_kind(proof: Proof, public: bool) -> Result<(), Failure> {
    match (proof, public) {
        (Proof::Public, false) => Err(Failure::of(7_000_218)),
        (Proof::Secret | Proof::Assertion, true) => Err(Failure::of(700_025)),
        _ => Ok(()),
    }
}

/// RFC 7636 4.1.
fn is_verifier(text: &str) -> bool {
    (43..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
}
