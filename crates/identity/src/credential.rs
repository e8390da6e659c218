//! Which credential an app signs in with, and one token request with it through the Azure SDK.
//!
//! The SDK's credentials keep tokens in a cache of their own, which cannot be emptied after a 401 and knows only the
//! real clock. So a credential object is built for each request and thrown away; what is kept is the HTTP client with
//! its connections. That also reads a federated token file anew each time, as section 9.3 of the `entra` protocol asks.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::Error;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential};
use azure_core::http::{AsyncRawResponse, ClientOptions, HttpClient, Request, RetryOptions, Transport};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use dynavault_model::Clock;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use crate::refusal::{self, Asked};
use crate::transport::{HttpTransport, TransportOptions, WireError, is_loopback, wire_error};
use crate::{BearerToken, TokenError, redact};

/// The sign-in service of the public cloud.
pub const PUBLIC_AUTHORITY: &str = "https://login.microsoftonline.com";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The metadata service is on the machine; where there is none, that should be known soon (section 9.4).
const METADATA_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Tokens are below 20 KiB, even with many groups.
const REPLY_BYTES_MAX: u64 = 256 * 1024;

/// How an app proves who it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Credential {
    /// A client secret of the app registration.
    ClientSecret {
        /// The secret's value.
        secret: SecretString,
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

/// A token as issued, with its life by our own clock.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) token: BearerToken,
    pub(crate) life: Duration,
}

/// Sends token requests of one identity for one scope. No cache and no retries.
pub(crate) struct Asker {
    identity: AppIdentity,
    asked: Asked,
    transport: Arc<HttpTransport>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Asker {
    pub(crate) fn new(identity: AppIdentity, scope: String, clock: Arc<dyn Clock>) -> Result<Self, TokenError> {
        let managed = matches!(identity.credential, Credential::ManagedIdentity { .. });
        let local = is_loopback(&identity.authority);
        let plain = match identity.authority.scheme() {
            "https" => false,
            "http" if local => true,
            _ => {
                return Err(config(
                    &identity.name,
                    format!("authority {} is not https", redact::url_for_message(&identity.authority)),
                    format!("use https, e.g. {PUBLIC_AUTHORITY}; http is for loopback hosts only"),
                ));
            }
        };
        let transport = HttpTransport::new(TransportOptions {
            connect_timeout: if managed { METADATA_CONNECT_TIMEOUT } else { CONNECT_TIMEOUT },
            read_timeout: READ_TIMEOUT,
            reply_bytes_max: REPLY_BYTES_MAX,
            // A proxy must never see requests for the machine's own identity (section 9.4).
            proxy: !managed && !local,
            redirect_to_loopback: plain.then(|| identity.authority.clone()),
        })
        .map_err(|error| {
            config(&identity.name, redact::scrub(&error.to_string()), "install root certificates on this host".into())
        })?;
        let host = match (managed && !plain, &identity.credential) {
            (true, _) => "the metadata service of this machine",
            (false, Credential::AzureCli) => "the Azure CLI",
            (false, _) => identity.authority.host_str().unwrap_or_default(),
        };
        let asked = Asked {
            profile: identity.name.clone(),
            tenant: identity.tenant.clone(),
            client_id: identity.client_id.clone(),
            scope,
            host: host.to_owned(),
            managed,
        };
        let new = Self { identity, asked, transport, clock };
        if !matches!(new.identity.credential, Credential::WorkloadIdentity { .. }) {
            // Malformed ids are refused now rather than at the first request. (The file of a workload identity may
            // appear later, so that one is not tried.)
            new.sdk_credential(new.transport.clone()).map_err(|error| new.unusable(&error))?;
        }
        Ok(new)
    }

    pub(crate) fn name(&self) -> &str {
        &self.identity.name
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// One token request.
    pub(crate) async fn ask(&self) -> Result<Issued, TokenError> {
        // Taken before the request: the service counts the life from some moment after this one (section 6.2).
        let asked_at = self.clock.now();
        let exchange = Arc::new(Exchange { transport: self.transport.clone(), life: Mutex::new(None) });
        let credential = self.sdk_credential(exchange.clone()).map_err(|error| self.unusable(&error))?;
        let given = credential.get_token(&[&self.asked.scope], None).await.map_err(|error| self.failed(&error))?;
        if given.token.secret().is_empty() {
            return Err(self.unreachable(NotAToken));
        }
        let life = exchange.life.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(issued(&given, life, asked_at))
    }

    fn sdk_credential(&self, client: Arc<dyn HttpClient>) -> Result<Arc<dyn TokenCredential>, Error> {
        let identity = &self.identity;
        let mut cloud = CustomConfiguration::default();
        // The SDK insists on https; for a loopback authority the transport puts the real scheme back.
        cloud.authority_host = identity.authority.as_str().replacen("http://", "https://", 1);
        let client_options = ClientOptions {
            transport: Some(Transport::new(client)),
            retry: RetryOptions::none(),
            cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
            ..ClientOptions::default()
        };
        Ok(match &identity.credential {
            Credential::ClientSecret { secret } => ClientSecretCredential::new(
                &identity.tenant,
                identity.client_id.clone(),
                Secret::new(secret.expose_secret().to_owned()),
                Some(ClientSecretCredentialOptions { client_options }),
            )?,
            Credential::WorkloadIdentity { token_file } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: Some(identity.client_id.clone()),
                    tenant_id: Some(identity.tenant.clone()),
                    token_file_path: token_file.clone(),
                }))?
            }
            Credential::ManagedIdentity { client_id } => {
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id: client_id.clone().map(UserAssignedId::ClientId),
                    client_options,
                }))?
            }
            Credential::AzureCli => AzureCliCredential::new(Some(AzureCliCredentialOptions {
                tenant_id: Some(identity.tenant.clone()),
                ..AzureCliCredentialOptions::default()
            }))?,
        })
    }

    /// Why the credential cannot even be built; the SDK's words name ids and files, not secrets.
    fn unusable(&self, error: &Error) -> TokenError {
        let remedy = match &self.identity.credential {
            Credential::WorkloadIdentity { .. } => {
                "check that the token file exists and can be read (AZURE_FEDERATED_TOKEN_FILE)"
            }
            Credential::ManagedIdentity { .. } => {
                "run on an Azure machine with a managed identity, or choose another credential"
            }
            _ => "check tenant and client_id of the profile",
        };
        config(&self.identity.name, redact::scrub(&dynavault_model::chain(error)), remedy.to_owned())
    }

    fn failed(&self, error: &Error) -> TokenError {
        match wire_error(error) {
            Some(WireError::Status { status, .. }) => refusal::classify(&self.asked, status, self.clock.now()),
            Some(WireError::Connect { .. }) => self.unreachable(Broken("no connection", innermost(error))),
            Some(WireError::TooLong { .. }) => self.unreachable(NotAToken),
            Some(WireError::Interrupted { .. }) => self.unreachable(Broken("the connection broke", innermost(error))),
            None => match self.identity.credential {
                Credential::AzureCli => TokenError::Local {
                    profile: self.identity.name.clone(),
                    reason: redact::scrub(&error.to_string()),
                    remedy: format!("run `az login --tenant {}` on this machine", self.identity.tenant),
                },
                // The SDK's words about a reply it could not parse may quote the reply.
                _ => self.unreachable(NotAToken),
            },
        }
    }

    fn unreachable(&self, source: impl std::error::Error + Send + Sync + 'static) -> TokenError {
        TokenError::Unreachable {
            profile: self.identity.name.clone(),
            host: self.asked.host.clone(),
            source: Arc::new(source),
        }
    }
}

/// A success whose body is no token.
#[derive(Debug, thiserror::Error)]
#[error("the answer is not a token")]
struct NotAToken;

#[derive(Debug, thiserror::Error)]
#[error("{0}: {1}")]
struct Broken(&'static str, String);

/// The last cause, e.g. `Connection refused (os error 111)`, which is what an operator can act on.
fn innermost(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    redact::scrub(&cause.to_string())
}

fn config(profile: &str, reason: String, remedy: String) -> TokenError {
    TokenError::Config { profile: profile.to_owned(), reason, remedy }
}

fn issued(given: &AccessToken, life: Option<Duration>, asked_at: Timestamp) -> Issued {
    let (life, expires_on) = if let Some(life) = life {
        (life, asked_at.saturating_add(life).unwrap_or(Timestamp::MAX))
    } else {
        // The CLI names a time instead.
        let expires_on = Timestamp::from_second(given.expires_on.unix_timestamp()).unwrap_or(Timestamp::MAX);
        (Duration::try_from(expires_on.duration_since(asked_at)).unwrap_or(Duration::ZERO), expires_on)
    };
    Issued { token: BearerToken::new(given.token.secret(), expires_on), life }
}

/// One exchange with the service. It notes `expires_in`, which the SDK turns into a time of the real clock.
#[derive(Debug)]
struct Exchange {
    transport: Arc<HttpTransport>,
    life: Mutex<Option<Duration>>,
}

#[derive(Deserialize)]
struct Life {
    expires_in: Seconds,
}

/// A number, or a number in a string as the metadata service sends it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(String),
}

#[async_trait]
impl HttpClient for Exchange {
    async fn execute_request(&self, request: &Request) -> Result<AsyncRawResponse, Error> {
        let (status, headers, body) = self.transport.execute_request(request).await?.deconstruct();
        // Bounded by the transport.
        let body = body.collect().await?;
        if let Ok(Life { expires_in }) = serde_json::from_slice(&body) {
            let seconds = match expires_in {
                Seconds::Number(seconds) => Some(seconds),
                Seconds::Text(text) => text.parse().ok(),
            };
            *self.life.lock().unwrap_or_else(PoisonError::into_inner) = seconds.map(Duration::from_secs);
        }
        Ok(AsyncRawResponse::from_bytes(status, headers, body))
    }
}
