//! Authorization code with PKCE and a redirect to this machine (`entra` protocol, section 4; RFC 7636, RFC 8252).
//!
//! ```text
//! listen on 127.0.0.1 and [::1] ─▶ address to open (state, nonce, challenge) ─ … person … ─▶ redirect with code
//!   ─▶ code + verifier to the token endpoint ─▶ checked, kept
//! ```

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use url::Url;
use zeroize::Zeroizing;

use super::loopback::{Loopback, Redirect, WaitEnd};
use super::{Prompt, SignIn, SignInError, SignInOptions, SignedIn};
use crate::credential::claims_parameter;
use crate::delegated::IDENTITY_SCOPES;
use crate::endpoint::{Endpoint, Form, below, random_bytes};
use crate::{ClaimsChallenge, redact, refusal};

/// How long a person may take for the page.
pub const SIGN_IN_TIME_MAX: Duration = Duration::from_secs(5 * 60);

/// A sign-in that waits for a browser to come back. Dropping it frees the port.
pub struct CodeSignIn {
    sign_in: SignIn,
    endpoint: Endpoint,
    loopback: Loopback,
    url: Url,
    redirect: String,
    verifier: Zeroizing<String>,
    state: String,
    nonce: String,
    claims: Option<ClaimsChallenge>,
}

impl fmt::Debug for CodeSignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeSignIn").field("redirect", &self.redirect).finish_non_exhaustive()
    }
}

impl SignIn {
    /// Listens on this machine and gives the address to open. The app registration needs the redirect address
    /// `http://localhost` under "Mobile and desktop applications"; the port does not matter.
    pub async fn begin_code(&self, options: SignInOptions) -> Result<CodeSignIn, SignInError> {
        let endpoint = self.endpoint(&options.scope)?;
        let claims = options.claims.or(self.claims_noted().await?);
        let loopback = Loopback::bind().await.map_err(SignInError::Listen)?;
        let redirect = format!("http://localhost:{}", loopback.port());
        let verifier = verifier();
        let (state, nonce) = (random_text(), random_text());
        let tenant = endpoint.tenant().await.map_err(|refusal| refusal.cause)?;
        let mut url = below(&self.identity.authority, &[tenant, "oauth2", "v2.0", "authorize"]);
        {
            let mut query = url.query_pairs_mut();
            query
                .append_pair("client_id", &self.identity.client_id)
                .append_pair("response_type", "code")
                .append_pair("redirect_uri", &redirect)
                .append_pair("response_mode", "query")
                .append_pair("scope", &format!("{} {IDENTITY_SCOPES}", options.scope))
                .append_pair("state", &state)
                .append_pair("nonce", &nonce)
                .append_pair("code_challenge", &challenge(&verifier))
                .append_pair("code_challenge_method", "S256")
                .append_pair("prompt", options.prompt.word());
            if let Some(hint) = &options.login_hint {
                query.append_pair("login_hint", hint);
            }
            if let Some(claims) = claims_parameter(&options.scope, claims.as_ref()) {
                query.append_pair("claims", &claims);
            }
        }
        Ok(CodeSignIn { sign_in: self.clone(), endpoint, loopback, url, redirect, verifier, state, nonce, claims })
    }
}

impl Prompt {
    fn word(self) -> &'static str {
        match self {
            Self::SelectAccount => "select_account",
            Self::Consent => "consent",
            Self::Login => "login",
        }
    }
}

impl CodeSignIn {
    /// The address to open in a browser on this machine.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Waits until a person has finished the page, at most [`SIGN_IN_TIME_MAX`], and keeps the sign-in. The port is
    /// free again when this ends or is dropped.
    pub async fn finish(self, cancel: &CancellationToken) -> Result<SignedIn, SignInError> {
        let Self { sign_in, endpoint, loopback, redirect, verifier, state, nonce, claims, .. } = self;
        let profile = sign_in.profile();
        let clock = endpoint.clock();
        let returned = loopback.wait(&state, &**clock, SIGN_IN_TIME_MAX, cancel).await;
        let code = match returned {
            Ok(Redirect::Code(code)) => code,
            Ok(Redirect::Error { error, description }) => {
                let refusal = refusal::classify_redirect(&endpoint.asked, &error, &description);
                return Err(if error == "access_denied" && !refusal.is_policy() {
                    SignInError::Declined { profile, description: redact::scrub(&description) }
                } else {
                    refusal.cause.into()
                });
            }
            Err(WaitEnd::TimedOut) => return Err(SignInError::TimedOut { profile, after: SIGN_IN_TIME_MAX }),
            Err(WaitEnd::Cancelled) => return Err(SignInError::Cancelled { profile }),
            Err(WaitEnd::Broken(error)) => return Err(SignInError::Listen(error)),
        };
        let mut form = Form::default()
            .with("client_id", &endpoint.asked.client_id)
            .with("grant_type", "authorization_code")
            .with("code", &code)
            .with("redirect_uri", &redirect)
            .with("code_verifier", &verifier)
            .with("scope", &format!("{} {IDENTITY_SCOPES}", endpoint.asked.scope));
        if let Some(claims) = claims_parameter(&endpoint.asked.scope, claims.as_ref()) {
            form = form.with("claims", &claims);
        }
        // One try: a code works once, and a broken connection does not tell whether it did (section 4.4).
        let tenant = endpoint.tenant().await.map_err(|refusal| refusal.cause)?;
        let asking = endpoint.token(tenant, form);
        let granted = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(SignInError::Cancelled { profile }),
            granted = asking => granted.map_err(|refusal| refusal.cause)?,
        };
        sign_in.keep(&endpoint, granted, Some(&nonce)).await
    }
}

/// 32 random bytes as 43 characters.
fn verifier() -> Zeroizing<String> {
    let bytes = Zeroizing::new(random_bytes::<32>());
    Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes))
}

fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier))
}

/// 24 random bytes as 32 characters.
fn random_text() -> String {
    URL_SAFE_NO_PAD.encode(random_bytes::<24>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_that_of_rfc_7636() {
        let challenge = challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn verifiers_are_valid_and_never_the_same() {
        let (one, two) = (verifier(), verifier());
        assert_eq!(one.len(), 43);
        assert!(one.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
        assert_ne!(one, two);
        assert_ne!(random_text(), random_text());
    }
}
