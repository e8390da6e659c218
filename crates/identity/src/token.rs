//! The port of this crate: a bearer token for one audience, and the source that keeps one fresh.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::{ClaimsChallenge, TokenError};

/// An access token for one audience. It never prints, and its bytes are wiped when the last copy is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken {
    secret: Zeroizing<String>,
    expires_on: Timestamp,
}

impl BearerToken {
    /// Wraps a token that is good until `expires_on`.
    pub fn new(secret: impl Into<String>, expires_on: Timestamp) -> Self {
        Self { secret: Zeroizing::new(secret.into()), expires_on }
    }

    /// The token itself, for the `Authorization` header and nothing else.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// When the service stops accepting the token, as far as the issuer said.
    pub fn expires_on(&self) -> Timestamp {
        self.expires_on
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BearerToken").field("secret", &"[hidden]").field("expires_on", &self.expires_on).finish()
    }
}

/// Gives tokens of one identity for one audience.
///
/// Implementations cache, renew before expiry, and send at most one token request at a time however many callers wait.
#[async_trait]
pub trait TokenSource: Send + Sync + fmt::Debug {
    /// A token that is good for at least a few minutes.
    async fn token(&self) -> Result<BearerToken, TokenError>;

    /// Forgets `token` after the service refused it with 401. A newer token that came in between is kept.
    fn invalidate(&self, token: &BearerToken);

    /// Forgets `token` after the service refused it with 401 and asked for `claims`: the next token request carries
    /// them. Ask once; a second challenge is final (`entra` protocol, section 8). A source that cannot ask for claims
    /// asks for an ordinary token.
    fn challenge(&self, token: &BearerToken, _claims: &ClaimsChallenge) {
        self.invalidate(token);
    }

    /// A token that was issued just now, whatever is held: after consent, an older one lacks the new permissions.
    async fn fresh_token(&self) -> Result<BearerToken, TokenError> {
        let held = self.token().await?;
        self.invalidate(&held);
        self.token().await
    }

    /// Name of the profile, for messages.
    fn name(&self) -> &str;
}
