//! Which credential an app signs in with, and one token request with it.
//!
//! Everything the tenant's token endpoint answers is asked by ourselves (`endpoint`); the identity of the machine and
//! the Azure CLI go through the SDK (`sdk`). Whatever comes is looked at before it is handed on: a token for another
//! tenant or app is thrown away.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynavault_model::{Clock, Retry};
use jiff::SignedDuration;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncReadExt;
use tracing::warn;
use url::Url;
use zeroize::Zeroizing;

use crate::challenge::{self, ClaimsChallenge};
use crate::consent::is_guid;
use crate::delegated::Delegated;
use crate::endpoint::{Endpoint, Form, Issued};
use crate::refusal::{self, Asked, Refusal};
use crate::sdk::{Giver, SdkAsker};
use crate::source::random;
use crate::{BearerToken, ClientCertificate, Cloud, TokenClaims, TokenError, TokenStore, redact};

/// The sign-in service of the public cloud.
pub const PUBLIC_AUTHORITY: &str = "https://login.microsoftonline.com";

/// How long a new federated credential may need to spread (section 7).
const SPREADING_MAX: Duration = Duration::from_secs(10 * 60);
/// Bound of the first pause between tries; it doubles with each (section 7).
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The same for the metadata service of the machine (section 9.4).
const MACHINE_PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longest federated token that is read, in bytes.
const FEDERATED_TOKEN_BYTES_MAX: u64 = 64 * 1024;
/// A certificate that expires within this time is worth a warning.
const EXPIRY_WARNED: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Where the usual Kubernetes webhook says its token is (section 9.3).
const FEDERATED_TOKEN_VARIABLE: &str = "AZURE_FEDERATED_TOKEN_FILE";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How an app proves who it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Credential {
    /// A client secret of the app registration.
    ClientSecret {
        /// The secret's value.
        secret: SecretString,
    },
    /// A certificate of the app registration, with its key.
    ClientCertificate {
        /// The pair, taken apart and checked.
        certificate: Arc<ClientCertificate>,
    },
    /// A token of another issuer, from a file that is replaced now and then (Kubernetes).
    WorkloadIdentity {
        /// The file; `None` for the one in `AZURE_FEDERATED_TOKEN_FILE`.
        token_file: Option<PathBuf>,
    },
    /// The identity of this Azure machine, App Service or container.
    ManagedIdentity {
        /// Client id of a user-assigned identity; `None` for the machine's own.
        client_id: Option<String>,
    },
    /// Whoever is signed in with the Azure CLI on this machine. For developers.
    AzureCli,
    /// A person who signed in with [`SignIn`](crate::SignIn), through the app as a public client.
    Delegated {
        /// Where the sign-in is kept.
        store: Arc<dyn TokenStore>,
    },
}

/// An app registration in a tenant and how it signs in.
#[derive(Debug, Clone)]
pub struct AppIdentity {
    /// Name of the profile, for messages.
    pub name: String,
    /// GUID or verified domain of the tenant.
    pub tenant: String,
    /// Application (client) id.
    pub client_id: String,
    /// How it signs in.
    pub credential: Credential,
    /// The sign-in service, normally [`PUBLIC_AUTHORITY`]. Plain `http` is accepted for loopback hosts only; the
    /// requests of a managed identity then go there as well, instead of to the machine's metadata service.
    pub authority: Url,
}

impl AppIdentity {
    pub(crate) fn asked(&self, scope: String) -> Asked {
        Asked {
            profile: self.name.clone(),
            tenant: self.tenant.clone(),
            client_id: self.client_id.clone(),
            scope,
            host: self.authority.host_str().unwrap_or_default().to_owned(),
            authority: self.authority.clone(),
            managed: false,
        }
    }
}

/// What a token request has to bring beside the ordinary.
#[derive(Debug, Clone, Default)]
pub(crate) struct Want {
    /// Claims that the resource asked for.
    pub(crate) claims: Option<ClaimsChallenge>,
    /// A token the resource refused; the same one is no answer.
    pub(crate) refused: Option<BearerToken>,
    /// Only a token that is issued now is an answer.
    pub(crate) fresh: bool,
}

/// Sends token requests of one identity for one scope. No cache in this process and no retries.
pub(crate) struct Asker {
    name: String,
    clock: Arc<dyn Clock>,
    way: Way,
    /// What a token has to say, where it says anything; `None` where we do not know.
    tenant: Option<String>,
    client_id: Option<String>,
}

enum Way {
    Own(Endpoint, Proof),
    Sdk(SdkAsker),
    Delegated(Delegated),
}

enum Proof {
    Secret(SecretString),
    Certificate(Arc<ClientCertificate>),
    Federated(Federated),
}

/// The token of another issuer (section 9.3).
struct Federated {
    /// Read anew for every request, because it is replaced.
    file: Option<PathBuf>,
    /// When the service first said that nothing matches what is presented, by [`Clock::elapsed`].
    unmatched_since: Mutex<Option<Duration>>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Asker {
    pub(crate) fn new(identity: AppIdentity, scope: String, clock: Arc<dyn Clock>) -> Result<Self, TokenError> {
        let asked = identity.asked(scope);
        let own = |proof| Endpoint::new(asked.clone(), Arc::clone(&clock)).map(|endpoint| Way::Own(endpoint, proof));
        let sdk = |giver| SdkAsker::new(giver, asked.clone()).map(Way::Sdk);
        let way = match &identity.credential {
            Credential::ClientSecret { secret } => own(Proof::Secret(secret.clone()))?,
            Credential::ClientCertificate { certificate } => {
                check_expiry(&asked, certificate, &*clock)?;
                own(Proof::Certificate(Arc::clone(certificate)))?
            }
            Credential::WorkloadIdentity { token_file } => {
                own(Proof::Federated(Federated { file: token_file.clone(), unmatched_since: Mutex::default() }))?
            }
            Credential::ManagedIdentity { client_id } => sdk(Giver::Machine { client_id: client_id.clone() })?,
            Credential::AzureCli => sdk(Giver::AzureCli)?,
            Credential::Delegated { store } => {
                let endpoint = Endpoint::new(asked.clone(), Arc::clone(&clock))?;
                Way::Delegated(Delegated::new(endpoint, Arc::clone(store), &identity))
            }
        };
        let client_id = match way {
            Way::Sdk(_) => None,
            Way::Own(..) | Way::Delegated(_) => Some(identity.client_id),
        };
        Ok(Self {
            name: identity.name,
            clock,
            way,
            // A domain cannot be compared with the GUID in a token.
            tenant: Some(identity.tenant).filter(|tenant| is_guid(tenant)),
            client_id,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// One token request.
    pub(crate) async fn ask(&self, want: &Want) -> Result<Issued, TokenError> {
        let (issued, tenant) = match &self.way {
            Way::Own(endpoint, proof) => {
                let tenant = endpoint.tenant().await.map_err(|refusal| refusal.cause)?;
                (ask_own(endpoint, tenant, proof, want).await?, Some(tenant).filter(|tenant| is_guid(tenant)))
            }
            Way::Sdk(sdk) => (sdk.ask(self.clock()).await?, self.tenant.as_deref()),
            Way::Delegated(delegated) => (delegated.ask(want).await?, self.tenant.as_deref()),
        };
        let expected = Expected { tenant, app: self.client_id.as_deref(), user: None };
        expected.check(&self.name, &issued.token)?;
        Ok(issued)
    }

    /// The pause before another try, after so many: of chance, so that hosts do not come together; for the metadata
    /// service, which is this host's alone, as its documentation says (section 9.4).
    pub(crate) fn pause(&self, tries: u32) -> Duration {
        let doubled = |first: Duration| (first * 2_u32.saturating_pow(tries.saturating_sub(1))).min(PAUSE_MAX);
        match &self.way {
            Way::Sdk(sdk) if sdk.is_machine() => doubled(MACHINE_PAUSE_MIN),
            _ => doubled(PAUSE_MIN).mul_f64(random()),
        }
    }
}

/// An expired certificate is refused before anything is sent, one about to expire is worth a warning (section 9.2).
fn check_expiry(asked: &Asked, certificate: &ClientCertificate, clock: &dyn Clock) -> Result<(), TokenError> {
    let (now, expires) = (clock.now(), certificate.expires());
    if expires <= now {
        let remedy = format!("create a new certificate and upload it to the app registration {}", asked.client_id);
        return Err(config(asked, format!("its certificate expired at {expires}"), &remedy));
    }
    if expires.duration_since(now) < EXPIRY_WARNED {
        warn!(profile = asked.profile, %expires, "the certificate expires soon");
    }
    Ok(())
}

/// Value of the parameter `claims`, if one is to be sent. Continuous evaluation is declared for Graph only: it makes
/// long tokens that can be withdrawn at any moment (section 8).
pub(crate) fn claims_parameter(scope: &str, claims: Option<&ClaimsChallenge>) -> Option<String> {
    match claims {
        Some(claims) => Some(claims.parameter()),
        None => Cloud::is_graph(scope.strip_suffix("/.default").unwrap_or(scope)).then(challenge::declaration),
    }
}

async fn ask_own(endpoint: &Endpoint, tenant: &str, proof: &Proof, want: &Want) -> Result<Issued, TokenError> {
    let skew = endpoint.skew();
    let first = request_own(endpoint, tenant, proof, want).await;
    // An assertion carries our time. If the refusal told that our clock is wrong, the service's time is used from now
    // on, and one more request is worth it.
    let again = matches!(proof, Proof::Certificate(_)) && first.is_err() && endpoint.skew() != skew;
    let last = if again { request_own(endpoint, tenant, proof, want).await } else { first };
    last.map_err(|refusal| refusal.cause)
}

async fn request_own(endpoint: &Endpoint, tenant: &str, proof: &Proof, want: &Want) -> Result<Issued, Refusal> {
    let asked = &endpoint.asked;
    let local = |cause| Refusal { error: String::new(), code: None, cause };
    let mut form = Form::default()
        .with("client_id", &asked.client_id)
        .with("grant_type", "client_credentials")
        .with("scope", &asked.scope);
    let mut presented = None;
    form = match proof {
        Proof::Secret(secret) => form.with("client_secret", secret.expose_secret()),
        Proof::Certificate(certificate) => {
            let audience = endpoint.token_url(tenant);
            let assertion = certificate
                .assertion(&asked.client_id, audience.as_str(), endpoint.service_now())
                .map_err(|error| local(config(asked, error.to_string(), "check the certificate of the profile")))?;
            form.with("client_assertion_type", JWT_BEARER).with("client_assertion", &assertion)
        }
        Proof::Federated(federated) => {
            let assertion = federated_token(asked, federated.file.as_deref()).await.map_err(local)?;
            presented = Some((federated, TokenClaims::read(assertion.trim()).ok()));
            form.with("client_assertion_type", JWT_BEARER).with("client_assertion", assertion.trim())
        }
    };
    if let Some(claims) = claims_parameter(&asked.scope, want.claims.as_ref()) {
        form = form.with("claims", &claims);
    }
    match (endpoint.token(tenant, form).await, presented) {
        (Ok(granted), None) => Ok(granted.issued),
        (Ok(granted), Some((federated, _))) => {
            federated.matched();
            Ok(granted.issued)
        }
        (Err(refusal), None) => Err(refusal),
        (Err(refusal), Some((federated, claims))) => {
            Err(federated.explained(refusal, claims.as_ref(), endpoint.clock().elapsed()))
        }
    }
}

impl Federated {
    fn unmatched_since(&self) -> MutexGuard<'_, Option<Duration>> {
        self.unmatched_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn matched(&self) {
        *self.unmatched_since() = None;
    }

    /// A refusal because nothing matches says what was presented. In the first minutes it may pass by itself, because a
    /// new federated credential needs that long to spread (section 7).
    fn explained(&self, mut refusal: Refusal, presented: Option<&TokenClaims>, now: Duration) -> Refusal {
        let unmatched = refusal.code.is_some_and(|code| refusal::UNMATCHED_CODES.contains(&code));
        if let (true, TokenError::Refused { sentence, retry, .. }) = (unmatched, &mut refusal.cause) {
            let since = *self.unmatched_since().get_or_insert(now);
            if now.saturating_sub(since) < SPREADING_MAX && *retry == Retry::Permanent {
                *retry = Retry::Backoff;
            }
            let said = |value: Option<&String>| value.map_or_else(|| "none".to_owned(), |text| redact::scrub(text));
            let shown = match presented {
                Some(claims) => format!(
                    "issuer {}, subject {}, audience {}",
                    said(claims.issuer.as_ref()),
                    said(claims.subject.as_ref()),
                    said(claims.audience.as_ref())
                ),
                None => "a token that cannot be read".to_owned(),
            };
            *sentence = format!("{sentence}; presented: {shown}");
        }
        refusal
    }
}

async fn federated_token(asked: &Asked, file: Option<&Path>) -> Result<Zeroizing<String>, TokenError> {
    const REMEDY: &str = "check that the token file exists and can be read (AZURE_FEDERATED_TOKEN_FILE)";
    let named = std::env::var_os(FEDERATED_TOKEN_VARIABLE).map(PathBuf::from);
    let Some(path) = file.map(Path::to_owned).or(named) else {
        return Err(config(asked, "no file with a federated token is named".to_owned(), REMEDY));
    };
    let read = async {
        let mut text = Zeroizing::new(String::new());
        let file = tokio::fs::File::open(&path).await?;
        file.take(FEDERATED_TOKEN_BYTES_MAX).read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    read.await.map_err(|error| config(asked, format!("{} cannot be read: {error}", path.display()), REMEDY))
}

fn config(asked: &Asked, reason: String, remedy: &str) -> TokenError {
    TokenError::Config { profile: asked.profile.clone(), reason, remedy: remedy.to_owned() }
}

/// Whose token it has to be, as far as we know and the token tells (section 10.1).
pub(crate) struct Expected<'a> {
    pub(crate) tenant: Option<&'a str>,
    pub(crate) app: Option<&'a str>,
    pub(crate) user: Option<&'a str>,
}

impl Expected<'_> {
    pub(crate) fn check(&self, profile: &str, token: &BearerToken) -> Result<(), TokenError> {
        let Ok(claims) = TokenClaims::read(token.secret()) else { return Ok(()) };
        for (what, expected, got) in [
            ("tenant", self.tenant, claims.tenant),
            ("app", self.app, claims.app_id),
            ("user", self.user, claims.object_id),
        ] {
            if let (Some(expected), Some(got)) = (expected, got)
                && !expected.eq_ignore_ascii_case(&got)
            {
                return Err(TokenError::Foreign {
                    profile: profile.to_owned(),
                    what,
                    got: crate::redact::scrub(&got),
                    expected: expected.to_owned(),
                });
            }
        }
        Ok(())
    }
}
