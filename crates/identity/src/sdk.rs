//! One token request through the Azure SDK: for the identity of the machine and for the Azure CLI.
//!
//! The SDK's credentials keep tokens in a cache of their own, which cannot be emptied after a 401 and knows only the
//! real clock. So a credential object is built for each request and thrown away; what is kept is the HTTP client with
//! its connections.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, TokenCredential};
use azure_core::http::{AsyncRawResponse, ClientOptions, HttpClient, Request, RetryOptions, Transport};
use azure_core::{Bytes, Error};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId,
};
use dynavault_model::Clock;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::endpoint::{Broken, Issued, NotAToken, Seconds, check_authority, innermost, no_transport, unreachable};
use crate::refusal::{self, Asked};
use crate::transport::{HttpTransport, TransportOptions, WireError, is_loopback, wire_error};
use crate::{BearerToken, TokenError, redact};

/// The metadata service is on the machine; where there is none, that should be known soon (section 9.4).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Tokens are below 20 KiB, even with many groups.
const REPLY_BYTES_MAX: u64 = 256 * 1024;

/// Who gives the token.
#[derive(Debug, Clone)]
pub(crate) enum Giver {
    /// The metadata service of the machine; a client id names one of several identities.
    Machine { client_id: Option<String> },
    /// Whoever is signed in with the Azure CLI.
    AzureCli,
}

/// Sends token requests of one identity for one scope. No cache and no retries.
#[derive(Debug)]
pub(crate) struct SdkAsker {
    giver: Giver,
    asked: Asked,
    transport: Arc<HttpTransport>,
}

impl SdkAsker {
    pub(crate) fn new(giver: Giver, mut asked: Asked) -> Result<Self, TokenError> {
        let plain = check_authority(&asked.profile, &asked.authority)?;
        let machine = matches!(giver, Giver::Machine { .. });
        asked.managed = machine;
        match (&giver, plain) {
            (Giver::AzureCli, _) => "the Azure CLI".clone_into(&mut asked.host),
            (Giver::Machine { .. }, false) => "the metadata service of this machine".clone_into(&mut asked.host),
            // A loopback authority stands in for the metadata service.
            (Giver::Machine { .. }, true) => {}
        }
        let transport = HttpTransport::new(TransportOptions {
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: READ_TIMEOUT,
            reply_bytes_max: REPLY_BYTES_MAX,
            // A proxy must never see requests for the machine's own identity (section 9.4).
            proxy: !machine && !is_loopback(&asked.authority),
            redirect_to_loopback: plain.then(|| asked.authority.clone()),
        })
        .map_err(|error| no_transport(&asked.profile, &error))?;
        let new = Self { giver, asked, transport };
        // Malformed ids are refused now rather than at the first request.
        new.credential(new.transport.clone()).map_err(|error| new.unusable(&error))?;
        Ok(new)
    }

    /// Whether the metadata service of the machine is asked.
    pub(crate) fn is_machine(&self) -> bool {
        matches!(self.giver, Giver::Machine { .. })
    }

    /// One token request.
    pub(crate) async fn ask(&self, clock: &dyn Clock) -> Result<Issued, TokenError> {
        // Taken before the request: the service counts the life from some moment after this one (section 6.2).
        let asked_at = clock.now();
        let exchange = Arc::new(Exchange { transport: self.transport.clone(), life: Mutex::new(None) });
        let credential = self.credential(exchange.clone()).map_err(|error| self.unusable(&error))?;
        let given = credential.get_token(&[&self.asked.scope], None).await;
        let given = given.map_err(|error| self.failed(&error, clock))?;
        if given.token.secret().is_empty() {
            return Err(unreachable(&self.asked, NotAToken));
        }
        let life = exchange.life.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(issued(&given, life, asked_at))
    }

    fn credential(&self, client: Arc<dyn HttpClient>) -> Result<Arc<dyn TokenCredential>, Error> {
        let mut cloud = CustomConfiguration::default();
        // The SDK insists on https; for a loopback authority the transport puts the real scheme back.
        cloud.authority_host = self.asked.authority.as_str().replacen("http://", "https://", 1);
        let client_options = ClientOptions {
            transport: Some(Transport::new(client)),
            retry: RetryOptions::none(),
            cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))),
            ..ClientOptions::default()
        };
        Ok(match &self.giver {
            Giver::Machine { client_id } => ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                user_assigned_id: client_id.clone().map(UserAssignedId::ClientId),
                client_options,
            }))?,
            Giver::AzureCli => AzureCliCredential::new(Some(AzureCliCredentialOptions {
                tenant_id: Some(self.asked.tenant.clone()).filter(|tenant| !tenant.is_empty()),
                ..AzureCliCredentialOptions::default()
            }))?,
        })
    }

    /// Why the credential cannot even be built; the SDK's words name ids, not secrets.
    fn unusable(&self, error: &Error) -> TokenError {
        let remedy = match self.giver {
            Giver::Machine { .. } => "run on an Azure machine with a managed identity, or choose another credential",
            Giver::AzureCli => "check tenant of the profile",
        };
        TokenError::Config {
            profile: self.asked.profile.clone(),
            reason: redact::scrub(&dynavault_model::chain(error)),
            remedy: remedy.to_owned(),
        }
    }

    fn failed(&self, error: &Error, clock: &dyn Clock) -> TokenError {
        let asked = &self.asked;
        match wire_error(error) {
            Some(WireError::Status { status, .. }) => refusal::classify(asked, status, clock.now()).cause,
            // It is on the machine or nowhere; more tries would not find it.
            Some(WireError::Connect { .. }) if self.is_machine() => TokenError::Local {
                profile: asked.profile.clone(),
                reason: format!("there is no metadata service here ({})", innermost(error)),
                remedy: "run on an Azure machine with a managed identity, or choose another credential".to_owned(),
            },
            Some(WireError::Connect { .. }) => unreachable(asked, Broken("no connection", innermost(error))),
            Some(WireError::TooLong { .. }) => unreachable(asked, NotAToken),
            Some(WireError::Interrupted { .. }) => unreachable(asked, Broken("the connection broke", innermost(error))),
            None => match self.giver {
                Giver::AzureCli => TokenError::Local {
                    profile: asked.profile.clone(),
                    reason: redact::scrub(&error.to_string()),
                    remedy: match asked.tenant.as_str() {
                        "" => "run `az login` on this machine".to_owned(),
                        tenant => format!("run `az login --tenant {tenant}` on this machine"),
                    },
                },
                // The SDK's words about a reply it could not parse may quote the reply.
                Giver::Machine { .. } => unreachable(asked, NotAToken),
            },
        }
    }
}

fn issued(given: &AccessToken, life: Option<Duration>, asked_at: Timestamp) -> Issued {
    let (life, expires_on) = if let Some(life) = life {
        (life, asked_at.saturating_add(life).unwrap_or(Timestamp::MAX))
    } else {
        // The CLI names a time instead.
        let expires_on = Timestamp::from_second(given.expires_on.unix_timestamp()).unwrap_or(Timestamp::MAX);
        (Duration::try_from(expires_on.duration_since(asked_at)).unwrap_or(Duration::ZERO), expires_on)
    };
    Issued { token: BearerToken::new(given.token.secret(), expires_on), life, left: life }
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

#[async_trait]
impl HttpClient for Exchange {
    async fn execute_request(&self, request: &Request) -> Result<AsyncRawResponse, Error> {
        let (status, headers, body) = self.transport.execute_request(request).await?.deconstruct();
        // Bounded by the transport.
        let mut body = body.collect().await?;
        if let Ok(Life { expires_in }) = serde_json::from_slice(&body) {
            *self.life.lock().unwrap_or_else(PoisonError::into_inner) = Some(expires_in.into());
            body = completed(body);
        }
        Ok(AsyncRawResponse::from_bytes(status, headers, body))
    }
}

/// An answer with what the SDK insists on. Promised are the token and how long it lives, and numbers come in both
/// spellings (section 9.4); the SDK wants more, and `expires_on` as text. We go by `expires_in`.
fn completed(body: Bytes) -> Bytes {
    let Ok(Value::Object(mut answer)) = serde_json::from_slice(&body) else { return body };
    let expires_on = match answer.get("expires_on") {
        Some(Value::String(text)) if text.parse::<i64>().is_ok() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => "0".to_owned(),
    };
    answer.insert("expires_on".to_owned(), expires_on.into());
    answer.entry("token_type").or_insert_with(|| "Bearer".into());
    answer.entry("resource").or_insert_with(|| "".into());
    Value::Object(answer).to_string().into()
}
