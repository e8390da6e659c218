//! Device code: a person enters a short code on another device (`entra` protocol, section 5; RFC 8628).
//!
//! The service is asked at its own pace until the person is done or the code expires. The deadline runs on the clock that
//! never goes backwards.

use std::fmt;
use std::time::Duration;

use dynavault_model::{Diagnose, Retry};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{SignIn, SignInError, SignedIn};
use crate::credential::claims_parameter;
use crate::delegated::IDENTITY_SCOPES;
use crate::endpoint::{Endpoint, Form, Hidden, Seconds, below};
use crate::{ClaimsChallenge, redact};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// Pause between two questions if the service names none (RFC 8628, section 3.2).
const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
/// What `slow_down` adds, for good (RFC 8628, section 3.5).
const INTERVAL_STEP: Duration = Duration::from_secs(5);
/// Longest pause that trouble of the network leads to.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Longest life of a code that is believed; the service says 15 minutes.
const CODE_LIFE_MAX: Duration = Duration::from_secs(60 * 60);

/// A sign-in that waits for a person to enter a code elsewhere.
pub struct DeviceSignIn {
    sign_in: SignIn,
    endpoint: Endpoint,
    device_code: Hidden,
    claims: Option<ClaimsChallenge>,
    user_code: String,
    verification_uri: String,
    life: Duration,
    /// Moment of [`Clock::elapsed`](dynavault_model::Clock::elapsed).
    deadline: Duration,
    interval: Duration,
}

impl fmt::Debug for DeviceSignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSignIn").field("verification_uri", &self.verification_uri).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Reply {
    device_code: Hidden,
    user_code: String,
    verification_uri: String,
    expires_in: Seconds,
    interval: Option<Seconds>,
}

impl SignIn {
    /// Asks for a code to show. The app registration needs "Allow public client flows" set to Yes.
    pub async fn begin_device(&self, scope: &str) -> Result<DeviceSignIn, SignInError> {
        let endpoint = self.endpoint(scope)?;
        let claims = self.claims_noted().await?;
        let tenant = endpoint.tenant().await.map_err(|refusal| refusal.cause)?;
        let url = below(&self.identity.authority, &[tenant, "oauth2", "v2.0", "devicecode"]);
        let form = Form::default()
            .with("client_id", &endpoint.asked.client_id)
            .with("scope", &format!("{scope} {IDENTITY_SCOPES}"));
        let start = self.clock.elapsed();
        let reply: Reply = endpoint.post(&url, form).await.map_err(|refusal| refusal.cause)?;
        let life = Duration::from(reply.expires_in).min(CODE_LIFE_MAX);
        let interval = reply.interval.map_or(INTERVAL_DEFAULT, Duration::from);
        Ok(DeviceSignIn {
            sign_in: self.clone(),
            endpoint,
            device_code: reply.device_code,
            claims,
            user_code: redact::scrub(&reply.user_code),
            verification_uri: redact::scrub(&reply.verification_uri),
            life,
            deadline: start + life,
            interval: interval.clamp(Duration::from_secs(1), INTERVAL_MAX),
        })
    }
}

impl DeviceSignIn {
    /// The code to enter.
    pub fn user_code(&self) -> &str {
        &self.user_code
    }

    /// The page to enter it on, opened on any device.
    pub fn verification_uri(&self) -> &str {
        &self.verification_uri
    }

    /// How long the code works.
    pub fn life(&self) -> Duration {
        self.life
    }

    /// Waits until the person is done, or the code has expired, and keeps the sign-in.
    pub async fn finish(self, cancel: &CancellationToken) -> Result<SignedIn, SignInError> {
        let Self { sign_in, endpoint, device_code, claims, life, deadline, mut interval, .. } = self;
        let profile = sign_in.profile();
        let clock = endpoint.clock();
        let tenant = endpoint.tenant().await.map_err(|refusal| refusal.cause)?;
        let mut pause = interval;
        // Ends at the latest when the code does: each turn waits at least a second.
        loop {
            let left = deadline.saturating_sub(clock.elapsed());
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(SignInError::Cancelled { profile }),
                () = clock.sleep(pause.min(left)) => {}
            }
            if clock.elapsed() >= deadline {
                return Err(SignInError::TimedOut { profile, after: life });
            }
            let mut form = Form::default()
                .with("client_id", &endpoint.asked.client_id)
                .with("grant_type", GRANT)
                .with("device_code", &device_code.0);
            if let Some(claims) = claims_parameter(&endpoint.asked.scope, claims.as_ref()) {
                form = form.with("claims", &claims);
            }
            let asked = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(SignInError::Cancelled { profile }),
                asked = endpoint.token(tenant, form) => asked,
            };
            let refusal = match asked {
                Ok(granted) => return sign_in.keep(&endpoint, granted, None).await,
                Err(refusal) => refusal,
            };
            pause = interval;
            match refusal.error.as_str() {
                "authorization_pending" => {}
                "slow_down" => {
                    interval += INTERVAL_STEP;
                    pause = interval;
                }
                "authorization_declined" => return Err(declined(profile)),
                "access_denied" if !refusal.is_policy() => return Err(declined(profile)),
                "expired_token" => return Err(SignInError::TimedOut { profile, after: life }),
                _ => match refusal.cause.retry() {
                    Retry::Permanent | Retry::Cancelled => return Err(refusal.cause.into()),
                    Retry::After(wanted) => pause = interval.max(wanted),
                    Retry::Backoff => {
                        interval = (interval * 2).min(INTERVAL_MAX.max(interval));
                        pause = interval;
                        debug!(profile, ?pause, "the sign-in service did not answer, asking more slowly");
                    }
                },
            }
        }
    }
}

fn declined(profile: String) -> SignInError {
    SignInError::Declined { profile, description: "the person refused on the other device".to_owned() }
}
