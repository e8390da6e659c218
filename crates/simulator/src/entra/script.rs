//! What the authority is told to do wrong.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::config::FaultKind;
use crate::entra::failure::Failure;

/// A way in which the token endpoint, or Graph, fails to answer properly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFault {
    /// 500 with a JSON body.
    ServerError,
    /// 502 with an HTML body, as a proxy writes it.
    HtmlBadGateway,
    /// 200 with an HTML body.
    HtmlSuccess,
    /// 503 without a body.
    Unavailable,
    /// 429, with `Retry-After` in seconds if there is one.
    Throttled {
        /// Seconds.
        retry_after: Option<u64>,
    },
    /// The right answer, but late by milliseconds of real time.
    Slow {
        /// Milliseconds.
        milliseconds: u64,
    },
    /// The connection closes in the middle of the right answer.
    Cut,
}

impl AnswerFault {
    /// The answer given instead of the right one.
    pub(crate) fn instead(self) -> Option<Answer> {
        let html = |status: u16| Answer {
            status,
            media_type: "text/html",
            ..Answer::text("<html><body><h1>The proxy is sorry</h1></body></html>".to_owned())
        };
        match self {
            Self::ServerError => {
                Some(Answer { status: 500, ..Answer::json("{\"error\":\"server_error\"}".to_owned()) })
            }
            Self::HtmlBadGateway => Some(html(502)),
            Self::HtmlSuccess => Some(html(200)),
            Self::Unavailable => Some(Answer::empty(503)),
            Self::Throttled { retry_after } => {
                let answer =
                    Answer { status: 429, ..Answer::json("{\"error\":\"temporarily_unavailable\"}".to_owned()) };
                Some(match retry_after {
                    Some(seconds) => answer.with("Retry-After", seconds.to_string()),
                    None => answer,
                })
            }
            Self::Slow { .. } | Self::Cut => None,
        }
    }

    /// How long the answer is held back.
    pub(crate) fn delay(self) -> Duration {
        match self {
            Self::Slow { milliseconds } => Duration::from_millis(milliseconds),
            _ => Duration::ZERO,
        }
    }

    /// The part that the connection itself must play.
    pub(crate) fn wire(self) -> Option<FaultKind> {
        (self == Self::Cut).then_some(FaultKind::CutBody)
    }
}

/// A way in which an otherwise good token answer is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenQuirk {
    /// The access token and the id token name another tenant.
    OtherTenant,
    /// The access token names another application.
    OtherClient,
    /// The access token is for another audience.
    OtherAudience,
    /// The id token carries another nonce.
    OtherNonce,
    /// The id token is meant for another application.
    OtherIdAudience,
    /// The access token is no JWT, but works.
    Opaque,
    /// The access token is 1 MiB long.
    Huge,
    /// No `refresh_token`, although one was asked for.
    NoRefreshToken,
    /// `expires_in` is text.
    TextExpiry,
}

/// How the browser's visit to `authorize` or to the consent page ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrowserOutcome {
    /// Back with a code, or with consent.
    Accept,
    /// `access_denied` (AADSTS65004): the person refused. On the consent page with `admin_consent=True` beside it (entra 3.1).
    Decline,
    /// `consent_required` (AADSTS90094): an administrator is needed.
    ConsentRequired,
    /// `interaction_required`.
    InteractionRequired,
    /// `server_error`.
    ServerError,
    /// `temporarily_unavailable`.
    TemporarilyUnavailable,
    /// All is well but for the `state`, which is another one.
    WrongState,
    /// Neither a code nor an error comes back.
    Nothing,
    /// Consent comes back for another tenant.
    OtherTenant,
}

/// Refusals to give from now on.
#[derive(Debug, Clone)]
pub(crate) struct Refusals {
    code: u32,
    /// Only for this `grant_type`.
    grant: Option<String>,
    claims: Option<String>,
    /// `None`: until told otherwise.
    left: Option<u32>,
}

/// The script.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) faults: VecDeque<AnswerFault>,
    refusals: Vec<Refusals>,
    pub(crate) quirks: BTreeSet<TokenQuirk>,
    pub(crate) browser: BrowserOutcome,
    /// Device polls answered `slow_down`, whatever the time between them.
    pub(crate) slow_downs: u32,
    /// Polls after which a device code approves itself.
    pub(crate) approve_after: Option<u32>,
    /// Device polls faster than the interval are refused.
    pub(crate) measured: bool,
    pub(crate) device_interval: Duration,
    pub(crate) device_life: Duration,
    pub(crate) refresh_life: Duration,
    pub(crate) code_life: Duration,
    /// A refresh token works once.
    pub(crate) strict_rotation: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            faults: VecDeque::new(),
            refusals: Vec::new(),
            quirks: BTreeSet::new(),
            browser: BrowserOutcome::Accept,
            slow_downs: 0,
            approve_after: None,
            measured: true,
            // The numbers of entra 5, 6 and 4.4.
            device_interval: Duration::from_secs(5),
            device_life: Duration::from_secs(900),
            refresh_life: Duration::from_secs(90 * 86_400),
            code_life: Duration::from_secs(600),
            strict_rotation: false,
        }
    }
}

impl Script {
    /// Adds a refusal; `times` of `None` lasts until [`Script::accept`].
    pub(crate) fn refuse(&mut self, code: u32, grant: Option<&str>, claims: Option<&str>, times: Option<u32>) {
        self.refusals.push(Refusals {
            code,
            grant: grant.map(str::to_owned),
            claims: claims.map(str::to_owned),
            left: times,
        });
    }

    /// Forgets all refusals.
    pub(crate) fn accept(&mut self) {
        self.refusals.clear();
    }

    /// The refusal of this request, if one is due.
    pub(crate) fn refusal(&mut self, grant: &str) -> Option<Failure> {
        let due =
            |refusal: &Refusals| refusal.left != Some(0) && refusal.grant.as_ref().is_none_or(|wanted| wanted == grant);
        let refusal = self.refusals.iter_mut().find(|refusal| due(refusal))?;
        if let Some(left) = &mut refusal.left {
            *left -= 1;
        }
        let failure = Failure::of(refusal.code);
        Some(match &refusal.claims {
            Some(claims) => failure.claiming(claims),
            None => failure,
        })
    }

    pub(crate) fn is(&self, quirk: TokenQuirk) -> bool {
        self.quirks.contains(&quirk)
    }
}

#[cfg(test)]
mod tests {
    use super::Script;

    #[test]
    fn refusals_are_due_by_grant_and_number() {
        let mut script = Script::default();
        script.refuse(50_173, Some("refresh_token"), None, Some(1));
        script.refuse(53_003, None, None, None);
        let code = |script: &mut Script, grant: &str| script.refusal(grant).map(|failure| failure.code);
        assert_eq!(code(&mut script, "authorization_code"), Some(53_003));
        assert_eq!(code(&mut script, "refresh_token"), Some(50_173));
        assert_eq!(code(&mut script, "refresh_token"), Some(53_003));
        script.accept();
        assert_eq!(code(&mut script, "refresh_token"), None);
    }
}
