//! The sign-in side: an authority with one tenant (entra 1 to 10).
//!
//! ```text
//! authorize, devicecode ─▶ code, device code ─┐
//! secret, certificate, federated token ───────┼─▶ token ─▶ access token ─▶ environment, Graph
//! refresh token ──────────────────────────────┘      └──▶ refresh token, id token
//!        directory (who may what)  ◀── adminconsent, Graph
//! ```
//!
//! - Refusals carry the codes and bodies of the real service; the table is in [`failure`].
//! - Tokens say what the directory granted when they were made, and keep saying it until they expire.
//! - Everything ages by the clock of this side: the real one, and what [`crate::Handle::pass_time`] added.
//! - What it is told to do wrong stands in [`script`]; [`steer::Entra`] tells it.

pub(crate) mod browser;
pub(crate) mod certificate;
pub(crate) mod client;
pub(crate) mod control;
mod der;
pub(crate) mod directory;
pub(crate) mod failure;
mod keys;
pub(crate) mod ledger;
pub(crate) mod permission;
pub(crate) mod request;
pub(crate) mod scope;
pub(crate) mod script;
pub(crate) mod steer;
mod token;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Method};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::answer::{Answer, Refusal};
use crate::config::{Config, FaultKind};
use crate::entra::certificate::shifted;
use crate::entra::directory::{DOMAINS, Directory, SECRET_LIFE_SECONDS};
use crate::entra::failure::Failure;
use crate::entra::keys::signing_key;
use crate::entra::ledger::{Access, Ledger};
use crate::entra::permission::Api;
use crate::entra::request::{Form, SignInRequest};
use crate::entra::scope::Resources;
use crate::entra::script::Script;
use crate::erp::ErpState;
use crate::graph::GraphState;
use crate::guid::Guid;
use crate::shared::Shared;

pub(crate) use crate::entra::directory::tenant;

/// Requests kept in the log; the oldest go first.
const LOG_MAX: usize = 10_000;
/// Tenant segments that name no tenant (entra 1.2).
const NO_TENANT: [&str; 3] = ["common", "organizations", "consumers"];

/// Somebody the environment lets in.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Index of the user in the environment.
    pub(crate) user: usize,
    /// The application that carries the request.
    pub(crate) client: String,
}

/// The tenant, what it gave out, and what it was told to do wrong.
#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) directory: Directory,
    pub(crate) ledger: Ledger,
    pub(crate) script: Script,
    pub(crate) resources: Resources,
    pub(crate) graph: GraphState,
    pub(crate) erp: ErpState,
    /// Claims an API wants to see in tokens (entra 8).
    pub(crate) challenges: BTreeMap<Api, Value>,
    /// 503 this many times more.
    pub(crate) unavailable: u32,
    pub(crate) log: VecDeque<SignInRequest>,
    url: String,
    token_lifetime: Duration,
    /// How far this side's clock is ahead of the real one, in truth.
    ahead: Duration,
    /// By how much it is wrong on top.
    pub(crate) skew: SignedDuration,
}

impl Authority {
    pub(crate) fn new(url: &str, config: &Config) -> Self {
        Self {
            directory: Directory::new(&config.secret, Timestamp::now()),
            ledger: Ledger::default(),
            script: Script::default(),
            resources: Resources {
                environment: url.to_owned(),
                graph: format!("{url}/graph"),
                erp: vec![format!("{url}/erp")],
            },
            graph: GraphState::default(),
            erp: ErpState::default(),
            challenges: BTreeMap::new(),
            unavailable: config.faults.token_unavailable,
            log: VecDeque::new(),
            url: url.to_owned(),
            token_lifetime: config.token_lifetime,
            ahead: Duration::ZERO,
            skew: SignedDuration::ZERO,
        }
    }

    /// The time by which things expire.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now().checked_add(self.ahead).unwrap_or(Timestamp::MAX)
    }

    /// The time it shows: in claims, in `Date`, against assertions.
    pub(crate) fn shown(&self) -> Timestamp {
        self.now().checked_add(self.skew).unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.ahead += time;
    }

    pub(crate) fn set_token_lifetime(&mut self, lifetime: Duration) {
        self.token_lifetime = lifetime;
    }

    /// A `Date` header, where it differs from the one the server writes by itself.
    pub(crate) fn date(&self) -> Option<String> {
        let differs = self.ahead > Duration::ZERO || self.skew != SignedDuration::ZERO;
        differs.then(|| self.shown().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
    }

    /// All secrets of all applications have expired, or live for as long as new ones.
    pub(crate) fn expire_secrets(&mut self, expired: bool) {
        let now = self.now();
        for secret in self.directory.apps.iter_mut().flat_map(|app| &mut app.secrets) {
            secret.until = if expired { now } else { shifted(now, SECRET_LIFE_SECONDS) };
        }
    }

    /// Every access token given out so far is refused.
    pub(crate) fn revoke_all(&mut self) {
        self.ledger.access.clear();
    }

    /// Whom a bearer token lets into the environment, or the answer that turns it away (dataverse 9.1, 9.3).
    pub(crate) fn admit(&self, token: Option<&str>) -> Result<Caller, Answer> {
        let found = token.and_then(|token| self.live(token)).filter(|access| access.api == Api::DynamicsCrm);
        let Some(access) = found else {
            // Where to sign in, and nothing else.
            return Err(Answer::empty(401).with(
                "WWW-Authenticate",
                format!("Bearer authorization_uri={}, resource_id={}/", self.sign_in_uri(), self.url),
            ));
        };
        if let Some(answer) = self.challenge(access) {
            return Err(answer);
        }
        let client = self.directory.apps[access.subject.app].client_id.clone();
        let user = match access.subject.person {
            None => Some(self.directory.apps[access.subject.app].caller),
            Some(person) => self.directory.people[person].caller,
        };
        match user {
            Some(user) => Ok(Caller { user, client }),
            None => Err(Refusal::new(403, "0x80072560", "The user is not a member of the organization.").into_answer()),
        }
    }

    /// An access token that has not expired.
    pub(crate) fn live(&self, token: &str) -> Option<&Access> {
        self.ledger.access.get(token).filter(|access| self.now() < access.expires)
    }

    /// 401 with the claims a token lacks (entra 8). Another challenge stands before it, and its parameters are in an
    /// order of their own: both are allowed.
    pub(crate) fn challenge(&self, access: &Access) -> Option<Answer> {
        let wanted = self.challenges.get(&access.api)?;
        if access.claims.as_ref().is_some_and(|claims| has_claims(claims, wanted)) {
            return None;
        }
        let claims = STANDARD.encode(wanted.to_string());
        let challenge = format!(
            "Bearer error=\"insufficient_claims\", claims=\"{claims}\", realm=\"\", authorization_uri=\"{}\"",
            self.sign_in_uri()
        );
        Some(
            Answer::empty(401)
                .with("WWW-Authenticate", "PoP realm=\"\", error=\"invalid_token\"")
                .with("WWW-Authenticate", challenge),
        )
    }

    pub(crate) fn sign_in_uri(&self) -> String {
        format!("{}/entra/{}/oauth2/authorize", self.url, tenant())
    }

    /// Refuses a tenant segment that is not ours (entra 1.2).
    fn check_tenant(segment: &str) -> Result<(), Failure> {
        if is_ours(segment) {
            Ok(())
        } else if NO_TENANT.contains(&segment) {
            Err(Failure::of(50_194))
        } else if Guid::parse(segment).is_some() || segment.contains('.') {
            Err(Failure::of(90_002).saying(format!(
                "Tenant '{segment}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud."
            )))
        } else {
            Err(Failure::of(900_023).saying(format!(
                "Specified tenant identifier '{segment}' is neither a valid DNS name, nor a valid external domain."
            )))
        }
    }

    /// The application of a request, if it exists and is switched on.
    fn check_app(&self, form: &Form) -> Result<usize, Failure> {
        let client = form.client();
        if client.is_empty() {
            return Err(missing("client_id"));
        }
        let Some(app) = self.directory.app(client) else {
            return Err(Failure::of(700_016)
                .saying(format!("Application with identifier '{client}' was not found in the directory.")));
        };
        if self.directory.apps[app].enabled {
            Ok(app)
        } else {
            Err(Failure::of(7_000_112).saying(format!("Application '{client}' is disabled.")))
        }
    }

    /// `GET {authority}/{tenant}/v2.0/.well-known/openid-configuration` (entra 1.2).
    fn metadata(&self, segment: &str) -> Result<Value, Failure> {
        let issuer_tenant = if NO_TENANT.contains(&segment) {
            "{tenantid}".to_owned()
        } else {
            Self::check_tenant(segment).map_err(|failure| failure.named("invalid_tenant"))?;
            tenant()
        };
        let root = format!("{}/entra", self.url);
        let base = format!("{root}/{}", if is_ours(segment) { tenant() } else { segment.to_owned() });
        Ok(json!({
            "issuer": format!("{root}/{issuer_tenant}/v2.0"),
            "token_endpoint": format!("{base}/oauth2/v2.0/token"),
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
            "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
            "device_authorization_endpoint": format!("{base}/oauth2/v2.0/devicecode"),
            "jwks_uri": format!("{base}/discovery/v2.0/keys"),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "tenant_region_scope": "EU",
            "cloud_instance_name": "simulator",
            "msgraph_host": self.resources.graph.trim_start_matches("http://"),
        }))
    }

    /// One request; the answer and how its connection ends.
    fn answer(&mut self, endpoint: Endpoint, segment: &str, form: &Form) -> Result<Answer, Failure> {
        let json = |value: Value| Answer::json(value.to_string()).with("Cache-Control", "no-store");
        match endpoint {
            Endpoint::Token => self.token(segment, form).map(json),
            Endpoint::DeviceCode => self.device_code(segment, form).map(json),
            Endpoint::Metadata => self.metadata(segment).map(json),
            Endpoint::Keys => Ok(json(signing_key().key_set(&format!("{}/entra/{}/v2.0", self.url, tenant())))),
            Endpoint::Authorize => Ok(self.authorize(segment, form)),
            Endpoint::AdminConsent => Ok(self.admin_consent(segment, form)),
        }
    }
}

/// Makes the key that signs tokens, if this process has none yet.
pub(crate) fn prepare_key() {
    signing_key();
}

fn is_ours(segment: &str) -> bool {
    segment.eq_ignore_ascii_case(&tenant()) || DOMAINS.iter().any(|domain| domain.eq_ignore_ascii_case(segment))
}

/// AADSTS900144.
fn missing(parameter: &str) -> Failure {
    Failure::of(900_144).saying(format!("The request body must contain the following parameter: '{parameter}'."))
}

/// Whether a request's `claims` hold every member the challenge wants.
pub(crate) fn has_claims(claims: &Value, wanted: &Value) -> bool {
    wanted["access_token"]
        .as_object()
        .is_none_or(|members| members.iter().all(|(name, value)| claims["access_token"].get(name) == Some(value)))
}

/// The `claims` parameter, which must be JSON.
fn read_claims(form: &Form) -> Result<Option<Value>, Failure> {
    form.get("claims")
        .map(|text| {
            serde_json::from_str(text)
                .map_err(|_| Failure::protocol("invalid_request", "The 'claims' parameter is not a JSON object."))
        })
        .transpose()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Token,
    DeviceCode,
    Metadata,
    Keys,
    Authorize,
    AdminConsent,
}

impl Endpoint {
    fn find(rest: &str, post: bool) -> Option<Self> {
        let endpoint = match rest {
            "oauth2/v2.0/token" => Self::Token,
            "oauth2/v2.0/devicecode" => Self::DeviceCode,
            "oauth2/v2.0/authorize" => Self::Authorize,
            "v2.0/adminconsent" | "adminconsent" => Self::AdminConsent,
            "v2.0/.well-known/openid-configuration" | ".well-known/openid-configuration" => Self::Metadata,
            "discovery/v2.0/keys" => Self::Keys,
            _ => return None,
        };
        (post == matches!(endpoint, Self::Token | Self::DeviceCode)).then_some(endpoint)
    }

    /// Name in the log, and mostly in the counts.
    fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::DeviceCode => "devicecode",
            Self::Metadata => "metadata",
            Self::Keys => "keys",
            Self::Authorize => "authorize",
            Self::AdminConsent => "adminconsent",
        }
    }
}

/// Answers one request below `/entra/`.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> (Answer, Option<FaultKind>) {
    if path == "device" {
        return (browser::device_page(&mut shared.state().authority, query), None);
    }
    let post = method == Method::POST;
    let (segment, rest) = path.split_once('/').unwrap_or((path, ""));
    let Some(endpoint) = Endpoint::find(rest, post) else { return (Answer::empty(404), None) };
    let form = Form::parse(if post { std::str::from_utf8(body).unwrap_or_default() } else { query }, headers);
    let (instead, fault) = {
        let authority = &mut shared.state().authority;
        if endpoint != Endpoint::Token {
            (None, None)
        } else if authority.unavailable > 0 {
            authority.unavailable -= 1;
            let page = Answer::text("<html><body>Service Unavailable</body></html>".to_owned());
            (Some(Answer { status: 503, media_type: "text/html", ..page }), None)
        } else {
            let fault = authority.script.faults.pop_front();
            (fault.and_then(script::AnswerFault::instead), fault)
        }
    };
    if let Some(fault) = fault {
        tokio::time::sleep(fault.delay()).await;
    }
    let mut state = shared.state();
    let authority = &mut state.authority;
    let mut entry = SignInRequest::new(endpoint.name(), segment, &form, headers);
    let mut answer = instead.unwrap_or_else(|| {
        authority.answer(endpoint, segment, &form).unwrap_or_else(|failure| {
            entry.code = (failure.code != 0).then_some(failure.code);
            let number = authority.ledger.number();
            failure.answer(&authority.url, number, entry.client_request_id.as_deref(), authority.shown())
        })
    });
    answer.headers.extend(authority.date().map(|date| ("Date", date)));
    entry.status = answer.status;
    entry.at_ms = authority.now().as_millisecond();
    if authority.log.len() >= LOG_MAX {
        authority.log.pop_front();
    }
    authority.log.push_back(entry);
    let counts = &mut state.counter.stats;
    // The environment has metadata of its own.
    let kind = if endpoint == Endpoint::Metadata { "metadata_of_tenant" } else { endpoint.name() };
    *counts.by_kind.entry(kind.to_owned()).or_default() += 1;
    if endpoint == Endpoint::Token {
        counts.requests += 1;
        *counts.by_status.entry(answer.status).or_default() += 1;
    }
    (answer, fault.and_then(script::AnswerFault::wire))
}
