//! Signing in a person: with a browser on this machine, or with a code on any other device (`entra` protocol, 4 and 5).
//!
//! Both ways begin with something to show, an address or a code, and end in the same place: the identity token is
//! checked, the sign-in is kept durably, and from then on a [`TokenSource`](crate::TokenSource) with
//! [`Credential::Delegated`] gives tokens. Opening a browser is the caller's business, and so is the warning that belongs
//! beside a device code: enter only a code that you asked for yourself.
//!
//! The browser is the way to prefer. Tenants are advised to block device codes, and a sign-in born from one can be refused
//! later for another resource.

mod code;
mod device;
mod loopback;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dynavault_model::{Clock, Diagnose, FaultKind, Retry};
use jiff::{SignedDuration, Timestamp};

use crate::consent::is_guid;
use crate::credential::Expected;
use crate::delegated::Entries;
use crate::endpoint::{Endpoint, Granted, same_secret};
use crate::token_store::{Secret, StoreError, StoredSignIn};
use crate::{AccountKey, AppIdentity, ClaimsChallenge, Credential, TokenClaims, TokenError};

pub use code::{CodeSignIn, SIGN_IN_TIME_MAX};
pub use device::DeviceSignIn;

/// An identity token is read seconds after it was made; the rest is for clocks.
const ID_TOKEN_SKEW_MAX: SignedDuration = SignedDuration::from_mins(5);

/// What the page of the sign-in service insists on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Prompt {
    /// The person chooses an account.
    #[default]
    SelectAccount,
    /// The person sees and grants the permissions, also those added since the last time (section 3).
    Consent,
    /// The person proves who it is, whatever session there is.
    Login,
}

/// How a person signs in with a browser.
#[derive(Debug, Clone, Default)]
pub struct SignInOptions {
    /// The scope of the first access token, e.g. `https://contoso.crm.dynamics.com/.default`. One sign-in serves all
    /// resources of the tenant.
    pub scope: String,
    /// What the page insists on.
    pub prompt: Prompt,
    /// Account name to fill in.
    pub login_hint: Option<String>,
    /// Claims of a refusal ([`TokenError::claims`]) or of a challenge. Those noted in the store are sent anyway.
    pub claims: Option<ClaimsChallenge>,
}

/// Who signed in. Names are for display only; tenant and object id are the stable key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIn {
    /// GUID of the tenant.
    pub tenant: String,
    /// Object id of the person.
    pub object_id: String,
    /// Name of the person.
    pub user_name: Option<String>,
    /// Scopes that were granted with the first token; may be fewer or more than asked for.
    pub scopes: Vec<String>,
}

/// Nobody signed in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignInError {
    /// The sign-in service refused, could not be reached, or the sign-in could not be kept.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The person said no.
    #[error("the sign-in of profile {profile} was declined: {description}")]
    Declined {
        /// Name of the profile.
        profile: String,
        /// What the service said, scrubbed.
        description: String,
    },
    /// Nobody finished the page in time.
    #[error("nobody finished the sign-in of profile {profile} within {seconds} s", seconds = after.as_secs())]
    TimedOut {
        /// Name of the profile.
        profile: String,
        /// How long was waited.
        after: Duration,
    },
    /// The operator stopped waiting.
    #[error("the sign-in of profile {profile} was cancelled")]
    Cancelled {
        /// Name of the profile.
        profile: String,
    },
    /// There is no place on this machine to which the browser could return.
    #[error("could not listen on this machine for the end of the sign-in")]
    Listen(#[source] io::Error),
    /// The answer does not say what it has to, or is for somebody else. It was thrown away.
    #[error("the answer to the sign-in of profile {profile} cannot be used: {reason}")]
    Answer {
        /// Name of the profile.
        profile: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Diagnose for SignInError {
    fn retry(&self) -> Retry {
        match self {
            Self::Token(error) => error.retry(),
            Self::Cancelled { .. } => Retry::Cancelled,
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Token(error) => error.remedy(),
            Self::Declined { profile, .. } | Self::TimedOut { profile, .. } | Self::Answer { profile, .. } => {
                Some(format!("start again with `dynavault profile login {profile}`"))
            }
            Self::Cancelled { .. } => None,
            Self::Listen(_) => Some("sign in with a device code instead".to_owned()),
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Token(error) => error.kind(),
            Self::Declined { .. } | Self::TimedOut { .. } | Self::Answer { .. } => FaultKind::SignIn,
            Self::Cancelled { .. } => FaultKind::Cancelled,
            Self::Listen(_) => FaultKind::Failed,
        }
    }
}

/// The sign-in of one profile: begin, look, forget.
#[derive(Clone)]
pub struct SignIn {
    identity: AppIdentity,
    entries: Entries,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignIn").field("account", &self.entries.account).finish_non_exhaustive()
    }
}

impl SignIn {
    /// The sign-in of `identity`, whose credential is [`Credential::Delegated`]. Sends nothing.
    pub fn new(identity: AppIdentity, clock: Arc<dyn Clock>) -> Result<Self, TokenError> {
        let Credential::Delegated { store } = &identity.credential else {
            return Err(TokenError::Config {
                profile: identity.name,
                reason: "its credential is an app's, so nobody signs in with it".to_owned(),
                remedy: "set credential = { kind = \"delegated\" } in the profile".to_owned(),
            });
        };
        let entries = Entries { store: Arc::clone(store), account: AccountKey::of(&identity) };
        Ok(Self { identity, entries, clock })
    }

    /// Who is signed in, if anybody is. Nothing is sent, so the sign-in may have been revoked since.
    pub async fn current(&self) -> Result<Option<StoredSignIn>, TokenError> {
        self.entries.look().await
    }

    /// Forgets the sign-in on this machine; tells whether there was one. The service has no way of revoking a single
    /// sign-in (section 1.2).
    pub async fn sign_out(&self) -> Result<bool, TokenError> {
        let lock = self.entries.lock(&*self.clock).await?;
        self.entries.delete(lock).await
    }

    fn profile(&self) -> String {
        self.identity.name.clone()
    }

    fn endpoint(&self, scope: &str) -> Result<Endpoint, TokenError> {
        Endpoint::new(self.identity.asked(scope.to_owned()), Arc::clone(&self.clock))
    }

    fn answer(&self, reason: &'static str) -> SignInError {
        SignInError::Answer { profile: self.profile(), reason }
    }

    /// Claims noted when a renewal was refused. A store that cannot be used is told now, before a person is bothered;
    /// an entry that cannot be read will be replaced.
    async fn claims_noted(&self) -> Result<Option<ClaimsChallenge>, TokenError> {
        match self.entries.look().await {
            Ok(entry) => {
                Ok(entry.and_then(|entry| entry.claims_wanted).and_then(|claims| ClaimsChallenge::from_json(&claims.0)))
            }
            Err(TokenError::Store { source, .. })
                if matches!(
                    *source,
                    StoreError::Corrupt { .. } | StoreError::Version { .. } | StoreError::KeyGone { .. }
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Checks what came and keeps it.
    async fn keep(&self, endpoint: &Endpoint, granted: Granted, nonce: Option<&str>) -> Result<SignedIn, SignInError> {
        let now = endpoint.service_now();
        let Granted { issued, refresh_token, id_token, scope } = granted;
        let id_token = id_token.ok_or_else(|| self.answer("it has no identity token"))?;
        let tenant = endpoint.tenant().await.map_err(|refusal| refusal.cause)?;
        let person = self.person(&id_token, nonce, now, tenant)?;
        let expected = Expected {
            tenant: Some(&person.tenant),
            app: Some(&self.identity.client_id),
            user: Some(&person.object_id),
        };
        expected.check(&self.identity.name, &issued.token)?;
        let refresh_token = refresh_token.ok_or_else(|| self.answer("it has no refresh token"))?;
        let mut entry = StoredSignIn {
            tenant: person.tenant.clone(),
            object_id: person.object_id.clone(),
            user_name: person.user_name.clone(),
            signed_in: self.clock.now(),
            renewed: self.clock.now(),
            refresh_token: Secret(refresh_token),
            access_tokens: Vec::new(),
            claims_wanted: None,
        };
        entry.keep_access(&endpoint.asked.scope, &issued.token, issued.life);
        let lock = self.entries.lock(&*self.clock).await?;
        self.entries.save(entry, lock).await?;
        Ok(SignedIn { scopes: scope.split_ascii_whitespace().map(str::to_owned).collect(), ..person })
    }

    /// Who the identity token names (section 4.4). It came straight from the token endpoint over TLS, so its signature
    /// need not be checked (OpenID Connect Core, 3.1.3.7).
    fn person(
        &self,
        id_token: &str,
        nonce: Option<&str>,
        now: Timestamp,
        configured: &str,
    ) -> Result<SignedIn, SignInError> {
        let claims = TokenClaims::read(id_token).map_err(|_| self.answer("its identity token cannot be read"))?;
        if !claims.audience.as_deref().is_some_and(|aud| aud.eq_ignore_ascii_case(&self.identity.client_id)) {
            return Err(self.answer("its identity token is for another app"));
        }
        if let Some(nonce) = nonce
            && !claims.nonce.as_deref().is_some_and(|given| same_secret(given, nonce))
        {
            return Err(self.answer("its identity token belongs to another request"));
        }
        let tenant = claims.tenant.filter(|tenant| is_guid(tenant));
        let tenant = tenant.ok_or_else(|| self.answer("its identity token names no tenant"))?;
        if is_guid(configured) && !configured.eq_ignore_ascii_case(&tenant) {
            return Err(self.answer("its identity token is of another tenant"));
        }
        // Issuers have aliases; what none of them lacks is the tenant.
        if !claims.issuer.is_some_and(|issuer| issuer.to_ascii_lowercase().contains(&tenant.to_ascii_lowercase())) {
            return Err(self.answer("its identity token is of another issuer"));
        }
        if claims.expires.is_none_or(|expires| expires.saturating_add(ID_TOKEN_SKEW_MAX).unwrap_or(expires) < now) {
            return Err(self.answer("its identity token has expired"));
        }
        let object_id = claims.object_id.ok_or_else(|| self.answer("its identity token names no person"))?;
        Ok(SignedIn { tenant, object_id, user_name: claims.user_name, scopes: Vec::new() })
    }
}
