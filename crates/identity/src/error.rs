//! Why there is no token: one sentence, one remedy, and the ids the sign-in log is searched by.
//!
//! Nothing here ever holds a request body, a token, or a secret: an answer of the sign-in service is reduced to our own
//! sentence, its numeric code and its ids before it becomes an error.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dynavault_model::{Diagnose, FaultKind, Retry};

use crate::challenge::ClaimsChallenge;
use crate::token_store::StoreError;

/// Class of a refusal by the sign-in service (`entra` protocol, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// Trouble of the service; the same request may succeed later.
    Transient,
    /// Too many requests.
    Throttled,
    /// A person has to sign in again.
    ReauthUser,
    /// Nobody consented to the permissions the app asks for.
    ConsentNeeded,
    /// A policy of the tenant refuses; only an administrator can help.
    PolicyBlocked,
    /// The app's secret, certificate or assertion is not accepted.
    BadCredential,
    /// A wrong id, tenant, scope or setting.
    BadConfig,
    /// Something that should not happen with a correct client.
    Bug,
}

/// Ids that find the attempt in the tenant's sign-in log. Safe to print.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceIds {
    /// `trace_id` of the answer.
    pub trace: Option<String>,
    /// `correlation_id` of the answer.
    pub correlation: Option<String>,
    /// `timestamp` of the answer, as sent.
    pub timestamp: Option<String>,
}

impl fmt::Display for TraceIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [("trace id", &self.trace), ("correlation id", &self.correlation), ("timestamp", &self.timestamp)];
        let mut separator = " (";
        for (name, value) in named {
            if let Some(value) = value {
                write!(f, "{separator}{name} {value}")?;
                separator = ", ";
            }
        }
        if separator == ", " { f.write_str(")") } else { Ok(()) }
    }
}

/// There is no token. Cloning is cheap: everyone who waited for the same request gets the same error.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The sign-in service answered, and the answer is no.
    #[error("profile {profile} could not sign in: {sentence}{ids}")]
    Refused {
        /// Name of the profile.
        profile: String,
        /// Class of the refusal.
        fault: TokenFault,
        /// Whether another try may help; never for `invalid_grant` and `invalid_client`, which lock accounts.
        retry: Retry,
        /// What is wrong, in one sentence without full stop, with the service's code where it sent one.
        sentence: String,
        /// What the operator can do.
        remedy: String,
        /// Where to find the attempt in the sign-in log.
        ids: Box<TraceIds>,
        /// Claims that the next interactive sign-in has to carry (section 8).
        claims: Option<Box<ClaimsChallenge>>,
    },
    /// Nobody has signed in yet, or somebody signed out.
    #[error("nobody is signed in with profile {profile}")]
    NotSignedIn {
        /// Name of the profile.
        profile: String,
    },
    /// The stored sign-in could not be read, or the renewed one not be kept.
    #[error("the stored sign-in of profile {profile} cannot be used")]
    Store {
        /// Name of the profile.
        profile: String,
        /// What went wrong.
        #[source]
        source: Arc<StoreError>,
    },
    /// A token came, and it is for somebody else (section 10.1). It was thrown away.
    #[error("the token that profile {profile} got is for another {what}: {got} instead of {expected}")]
    Foreign {
        /// Name of the profile.
        profile: String,
        /// `tenant`, `app` or `user`.
        what: &'static str,
        /// What the token says.
        got: String,
        /// What is configured.
        expected: String,
    },
    /// No usable answer: connection, TLS, a proxy's page instead of JSON.
    #[error("profile {profile} got no usable answer from the sign-in service at {host}")]
    Unreachable {
        /// Name of the profile.
        profile: String,
        /// Host that was asked.
        host: String,
        /// The last failure.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Tries were made until a limit ended them.
    #[error("gave up signing in profile {profile} after {tries} tries in {seconds} s (limit: {limit})", seconds = elapsed.as_secs())]
    Exhausted {
        /// Name of the profile.
        profile: String,
        /// Tries made.
        tries: u32,
        /// Time spent.
        elapsed: Duration,
        /// The limit that ended it, by name and value.
        limit: String,
        /// The last failure.
        #[source]
        source: Arc<TokenError>,
    },
    /// The credential cannot work as configured; nothing was sent.
    #[error("the credential of profile {profile} cannot be used: {reason}")]
    Config {
        /// Name of the profile.
        profile: String,
        /// What is wrong.
        reason: String,
        /// What the operator can do.
        remedy: String,
    },
    /// A helper on this machine (the Azure CLI, the metadata service) gave no token.
    #[error("profile {profile} got no token on this machine: {reason}")]
    Local {
        /// Name of the profile.
        profile: String,
        /// The first line of what it said.
        reason: String,
        /// What the operator can do.
        remedy: String,
    },
}

impl TokenError {
    /// Class of the refusal, if it is one: what the sign-in service said last.
    pub fn fault(&self) -> Option<TokenFault> {
        match self {
            Self::Refused { fault, .. } => Some(*fault),
            Self::NotSignedIn { .. } => Some(TokenFault::ReauthUser),
            Self::Exhausted { source, .. } => source.fault(),
            _ => None,
        }
    }

    /// Claims that the next interactive sign-in has to carry.
    pub fn claims(&self) -> Option<&ClaimsChallenge> {
        match self {
            Self::Refused { claims, .. } => claims.as_deref(),
            _ => None,
        }
    }
}

impl Diagnose for TokenError {
    fn retry(&self) -> Retry {
        match self {
            Self::Refused { retry, .. } => *retry,
            Self::Unreachable { .. } | Self::Exhausted { .. } => Retry::Backoff,
            Self::Store { source, .. } => source.retry(),
            Self::Config { .. } | Self::Local { .. } | Self::NotSignedIn { .. } | Self::Foreign { .. } => {
                Retry::Permanent
            }
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Refused { remedy, .. } | Self::Config { remedy, .. } | Self::Local { remedy, .. } => {
                Some(remedy.clone())
            }
            Self::Unreachable { host, .. } => Some(format!(
                "check that {host} can be reached from this host over https (DNS, proxy, firewall, certificate store)"
            )),
            Self::Exhausted { source, .. } => source.remedy(),
            Self::NotSignedIn { profile } => Some(format!("sign in with `dynavault profile login {profile}`")),
            Self::Store { source, .. } => source.remedy(),
            Self::Foreign { profile, what, .. } => Some(match *what {
                "user" => format!("sign in again with `dynavault profile login {profile}`, as the same person"),
                _ => format!("check tenant, client_id and authority of profile {profile}"),
            }),
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            // Also where the service is slow or ill: whatever the reason, what is missing is the sign-in.
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::Local { .. }
            | Self::NotSignedIn { .. }
            | Self::Foreign { .. } => FaultKind::SignIn,
            Self::Exhausted { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Config { .. } => FaultKind::Usage,
        }
    }
}
