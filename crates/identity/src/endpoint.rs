//! One form posted to the sign-in service, and the answer understood: a token, or why there is none.
//!
//! Every grant goes through here, so every grant sends a fresh `client-request-id`, learns how far the clocks are apart,
//! bounds the reply, and shows of a refusal only what [`refusal`] makes of it. No cache and no retries.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use azure_core::http::{HttpClient, Method, Request};
use dynavault_model::{Clock, Diagnose, Retry};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tracing::{debug, warn};
use url::Url;
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::consent::is_guid;
use crate::refusal::{self, Asked, Refusal};
use crate::transport::{HttpTransport, TransportOptions, WireError, is_loopback, wire_error};
use crate::{BearerToken, TokenError, redact};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Tokens are below 20 KiB, even with many groups.
const REPLY_BYTES_MAX: u64 = 256 * 1024;
/// Clocks further apart than this are worth a warning, and assertions then use the service's time (section 12.2).
const SKEW_MAX: SignedDuration = SignedDuration::from_mins(5);
/// Tenant segments that name no tenant (section 1.2).
const ANY_TENANT: [&str; 3] = ["common", "organizations", "consumers"];
/// Life of a token whose answer does not say: the shortest that policy allows (section 6.2).
const LIFE_UNKNOWN: Duration = Duration::from_secs(600);

/// A token as issued, with its life by our own clock.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) token: BearerToken,
    /// From issue to expiry.
    pub(crate) life: Duration,
    /// What is left of it; less than `life` for a token that another process fetched.
    pub(crate) left: Duration,
}

/// Fields of a form. Values may be secrets: wiped when dropped, never shown.
#[derive(Default)]
pub(crate) struct Form(Zeroizing<String>);

impl Form {
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        let pair: String = form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish();
        let pair = Zeroizing::new(pair);
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(&pair);
        self
    }
}

/// The sign-in service as one app sees it, for one scope.
pub(crate) struct Endpoint {
    pub(crate) asked: Asked,
    transport: Arc<HttpTransport>,
    clock: Arc<dyn Clock>,
    /// How far the service's clock is ahead of ours, once it is known to be far.
    skew: Mutex<Option<SignedDuration>>,
    /// The tenant's GUID, once it is known.
    tenant: OnceCell<String>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Fails if the configuration cannot work: plain `http` to another machine, malformed ids.
    pub(crate) fn new(asked: Asked, clock: Arc<dyn Clock>) -> Result<Self, TokenError> {
        check_authority(&asked.profile, &asked.authority)?;
        let well_formed = |id: &str| {
            !id.is_empty() && id.len() <= 253 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
        };
        for (what, id) in [("tenant", &asked.tenant), ("client_id", &asked.client_id)] {
            if !well_formed(id) {
                return Err(TokenError::Config {
                    profile: asked.profile.clone(),
                    reason: format!("{what} is malformed"),
                    remedy: "check tenant and client_id of the profile".to_owned(),
                });
            }
        }
        let transport = HttpTransport::new(TransportOptions {
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: READ_TIMEOUT,
            reply_bytes_max: REPLY_BYTES_MAX,
            proxy: !is_loopback(&asked.authority),
            redirect_to_loopback: None,
        })
        .map_err(|error| no_transport(&asked.profile, &error))?;
        Ok(Self { asked, transport, clock, skew: Mutex::default(), tenant: OnceCell::new() })
    }

    /// The tenant by its GUID. That of a domain is learned once, from the tenant's metadata (section 1.2), so that tokens
    /// of another tenant can be told. Names that stand for any tenant stay as they are, and so does a domain whose
    /// metadata says nothing.
    pub(crate) async fn tenant(&self) -> Result<&str, Refusal> {
        let learn = || async {
            let configured = &self.asked.tenant;
            if is_guid(configured) || ANY_TENANT.iter().any(|any| configured.eq_ignore_ascii_case(any)) {
                return Ok(configured.clone());
            }
            let url = below(&self.asked.authority, &[configured, "v2.0", ".well-known", "openid-configuration"]);
            let mut request = Request::new(url, Method::Get);
            request.insert_header("accept", "application/json");
            let metadata: Metadata = match self.exchange(&request).await {
                Ok(metadata) => metadata,
                Err(refusal) if refusal.error.is_empty() && refusal.cause.retry() == Retry::Permanent => {
                    debug!(profile = self.asked.profile, "the tenant has no metadata; its name is used as it is");
                    return Ok(configured.clone());
                }
                Err(refusal) => return Err(refusal),
            };
            let issuer = Url::parse(&metadata.issuer).ok();
            let mut segments = issuer.as_ref().and_then(Url::path_segments).into_iter().flatten();
            Ok(segments.find(|segment| is_guid(segment)).unwrap_or(configured).to_owned())
        };
        self.tenant.get_or_try_init(learn).await.map(String::as_str)
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Our time as the service would put it.
    pub(crate) fn service_now(&self) -> Timestamp {
        let now = self.clock.now();
        self.skew().map_or(now, |skew| now.saturating_add(skew).unwrap_or(now))
    }

    pub(crate) fn skew(&self) -> Option<SignedDuration> {
        *self.skew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Address of the token endpoint of `tenant`; also the audience of assertions.
    pub(crate) fn token_url(&self, tenant: &str) -> Url {
        below(&self.asked.authority, &[tenant, "oauth2", "v2.0", "token"])
    }

    /// Asks for a token. `tenant` is normally the configured one, or the GUID that a sign-in told.
    pub(crate) async fn token(&self, tenant: &str, form: Form) -> Result<Granted, Refusal> {
        // Taken before the request: the service counts the life from some moment after this one (section 6.2).
        let asked_at = self.clock.now();
        let reply: TokenReply = self.post(&self.token_url(tenant), form).await?;
        if reply.access_token.0.is_empty() {
            return Err(self.unreachable(NotAToken));
        }
        let life = reply.expires_in.map_or(LIFE_UNKNOWN, Duration::from);
        let expires_on = asked_at.saturating_add(life).unwrap_or(Timestamp::MAX);
        let token = BearerToken::new(reply.access_token.0.as_str(), expires_on);
        Ok(Granted {
            issued: Issued { token, life, left: life },
            refresh_token: reply.refresh_token.map(|hidden| hidden.0).filter(|token| !token.is_empty()),
            id_token: reply.id_token.map(|hidden| hidden.0),
            scope: reply.scope.unwrap_or_default(),
        })
    }

    /// Posts a form and reads the answer as `T`.
    pub(crate) async fn post<T: for<'de> Deserialize<'de>>(&self, url: &Url, form: Form) -> Result<T, Refusal> {
        let mut request = Request::new(url.clone(), Method::Post);
        request.insert_header("content-type", "application/x-www-form-urlencoded");
        request.insert_header("accept", "application/json");
        request.insert_header("client-request-id", random_guid());
        request.set_body(azure_core::Bytes::from(form.0.as_bytes().to_vec()));
        self.exchange(&request).await
    }

    async fn exchange<T: for<'de> Deserialize<'de>>(&self, request: &Request) -> Result<T, Refusal> {
        let (_, headers, body) = match self.transport.execute_request(request).await {
            Ok(reply) => reply.deconstruct(),
            Err(error) => return Err(self.failed(&error)),
        };
        self.learn_skew(headers.get_optional_string(&"date".into()).as_deref().and_then(crate::transport::http_date));
        // Bounded by the transport.
        let body = body.collect().await.map_err(|error| self.failed(&error))?;
        serde_json::from_slice(&body).map_err(|_| self.unreachable(NotAToken))
    }

    fn learn_skew(&self, date: Option<Timestamp>) {
        let Some(date) = date else { return };
        let ahead = date.duration_since(self.clock.now());
        let far = (ahead.abs() > SKEW_MAX).then_some(ahead);
        let mut known = self.skew.lock().unwrap_or_else(PoisonError::into_inner);
        if far.is_some() && known.is_none() {
            warn!(
                profile = self.asked.profile,
                service_ahead_s = ahead.as_secs(),
                "the clock of this host differs from that of the sign-in service"
            );
        }
        *known = far;
    }

    fn failed(&self, error: &azure_core::Error) -> Refusal {
        match wire_error(error) {
            Some(WireError::Status { status, .. }) => {
                self.learn_skew(status.date);
                refusal::classify(&self.asked, status, self.clock.now())
            }
            Some(WireError::Connect { .. }) => self.unreachable(Broken("no connection", innermost(error))),
            Some(WireError::TooLong { .. }) | None => self.unreachable(NotAToken),
            Some(WireError::Interrupted { .. }) => self.unreachable(Broken("the connection broke", innermost(error))),
        }
    }

    fn unreachable(&self, source: impl std::error::Error + Send + Sync + 'static) -> Refusal {
        Refusal { error: String::new(), code: None, cause: unreachable(&self.asked, source) }
    }
}

/// A granted token with what came beside it.
pub(crate) struct Granted {
    pub(crate) issued: Issued,
    pub(crate) refresh_token: Option<Zeroizing<String>>,
    pub(crate) id_token: Option<Zeroizing<String>>,
    /// Granted scopes; may be fewer or more than asked for.
    pub(crate) scope: String,
}

#[derive(Deserialize)]
struct TokenReply {
    access_token: Hidden,
    expires_in: Option<Seconds>,
    refresh_token: Option<Hidden>,
    id_token: Option<Hidden>,
    scope: Option<String>,
}

/// What is used of a tenant's metadata.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
}

/// A secret of an answer, wiped when dropped.
pub(crate) struct Hidden(pub(crate) Zeroizing<String>);

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(Zeroizing::new(text)))
    }
}

/// A number, or a number in a string as some endpoints send it.
#[derive(Clone, Copy)]
pub(crate) struct Seconds(pub(crate) u64);

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        Self::from_secs(seconds.0)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(from)? {
            Either::Number(seconds) => Ok(Self(seconds)),
            Either::Text(text) => text.trim().parse().map(Self).map_err(serde::de::Error::custom),
        }
    }
}

/// A success whose body is no token.
#[derive(Debug, thiserror::Error)]
#[error("the answer is not a token")]
pub(crate) struct NotAToken;

#[derive(Debug, thiserror::Error)]
#[error("{0}: {1}")]
pub(crate) struct Broken(pub(crate) &'static str, pub(crate) String);

pub(crate) fn unreachable(asked: &Asked, source: impl std::error::Error + Send + Sync + 'static) -> TokenError {
    TokenError::Unreachable { profile: asked.profile.clone(), host: asked.host.clone(), source: Arc::new(source) }
}

/// The last cause, e.g. `Connection refused (os error 111)`, which is what an operator can act on.
pub(crate) fn innermost(error: &azure_core::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    redact::scrub(&cause.to_string())
}

/// Whether secrets may be sent to `authority`: https, or http on this machine. `Ok(true)` means plain http.
pub(crate) fn check_authority(profile: &str, authority: &Url) -> Result<bool, TokenError> {
    match authority.scheme() {
        "https" => Ok(false),
        "http" if is_loopback(authority) => Ok(true),
        _ => Err(TokenError::Config {
            profile: profile.to_owned(),
            reason: format!("authority {} is not https", redact::url_for_message(authority)),
            remedy: format!("use https, e.g. {}; http is for loopback hosts only", crate::PUBLIC_AUTHORITY),
        }),
    }
}

pub(crate) fn no_transport(profile: &str, error: &reqwest::Error) -> TokenError {
    TokenError::Config {
        profile: profile.to_owned(),
        reason: redact::scrub(&error.to_string()),
        remedy: "install root certificates on this host".into(),
    }
}

/// An address below an authority, which may itself have a path.
pub(crate) fn below(authority: &Url, segments: &[&str]) -> Url {
    let mut url = authority.clone();
    url.set_query(None);
    url.set_fragment(None);
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// A random GUID (version 4).
pub(crate) fn random_guid() -> String {
    let mut bytes = random_bytes::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// Random bytes of the operating system.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Compares without telling by the time it takes how much was right.
pub(crate) fn same_secret(left: &str, right: &str) -> bool {
    verify_slices_are_equal(left.as_bytes(), right.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded_once() {
        let form = Form::default().with("client_secret", "a&b=c+d%/").with("x", "ü ");
        assert_eq!(form.0.as_str(), "client_secret=a%26b%3Dc%2Bd%25%2F&x=%C3%BC+");
    }

    #[test]
    fn addresses_go_below_the_path_of_an_authority() {
        for (authority, expected) in [
            ("https://login.microsoftonline.com", "https://login.microsoftonline.com/t/oauth2"),
            ("https://login.microsoftonline.com/", "https://login.microsoftonline.com/t/oauth2"),
            ("http://127.0.0.1:8/entra?x#y", "http://127.0.0.1:8/entra/t/oauth2"),
        ] {
            assert_eq!(below(&Url::parse(authority).unwrap(), &["t", "oauth2"]).as_str(), expected);
        }
    }

    #[test]
    fn ids_are_random_guids() {
        let (one, two) = (random_guid(), random_guid());
        assert!(crate::consent::is_guid(&one) && one != two && one.as_bytes()[14] == b'4', "{one}");
    }
}
