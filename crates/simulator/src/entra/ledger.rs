//! What was given out: access tokens, refresh tokens, codes, device codes.
//!
//! Access tokens are signed JWTs, but an API here only looks them up: a token that is not in the list, too old
//! or for another audience is no token. Refresh tokens are opaque. Everything ages by the clock of the sign-in
//! side, which [`crate::Handle::pass_time`] moves.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::entra::keys::sha256;
use crate::entra::permission::Api;
use crate::entra::scope::Scope;

/// Entries of one kind kept before those past their life are forgotten.
const KEPT_MAX: usize = 10_000;
/// Blocks of 43 characters in a refresh token: about as long as the real ones, too long for some keyrings (entra 12.1).
const REFRESH_BLOCKS: usize = 40;
/// Blocks in a code.
const CODE_BLOCKS: usize = 6;

/// Whom a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) app: usize,
    /// `None`: the application itself.
    pub(crate) person: Option<usize>,
}

/// An access token.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) subject: Subject,
    pub(crate) api: Api,
    pub(crate) expires: Timestamp,
    /// `scp`.
    pub(crate) scopes: Vec<String>,
    /// `roles`.
    pub(crate) roles: Vec<&'static str>,
    /// The `claims` of the request it was made for.
    pub(crate) claims: Option<Value>,
}

/// A refresh token.
#[derive(Debug, Clone)]
pub(crate) struct Refresh {
    pub(crate) app: usize,
    pub(crate) person: usize,
    /// Issued, or used last.
    pub(crate) touched: Timestamp,
    pub(crate) used: bool,
    /// Code of the failure it now meets.
    pub(crate) revoked: Option<u32>,
    /// Redeemed without a client credential.
    pub(crate) public: bool,
    /// Sign-in carried the claims the person needs.
    pub(crate) strong: bool,
}

/// An authorization code.
#[derive(Debug, Clone)]
pub(crate) struct Code {
    pub(crate) app: usize,
    pub(crate) person: usize,
    pub(crate) redirect_uri: String,
    /// Redirect address of a web application.
    pub(crate) web: bool,
    pub(crate) challenge: String,
    pub(crate) nonce: Option<String>,
    pub(crate) scope: Scope,
    pub(crate) claims: Option<Value>,
    pub(crate) strong: bool,
    pub(crate) issued: Timestamp,
    pub(crate) redeemed: bool,
}

/// How a device code stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Pending,
    Approved(usize),
    Declined,
}

/// A device code.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) app: usize,
    pub(crate) user_code: String,
    pub(crate) scope: Scope,
    pub(crate) claims: Option<Value>,
    pub(crate) issued: Timestamp,
    pub(crate) interval: Duration,
    pub(crate) polled: Timestamp,
    pub(crate) polls: u32,
    pub(crate) decision: Decision,
    pub(crate) redeemed: bool,
}

/// Everything given out.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) access: HashMap<String, Access>,
    pub(crate) refresh: HashMap<String, Refresh>,
    pub(crate) codes: HashMap<String, Code>,
    pub(crate) devices: HashMap<String, Device>,
    /// `jti` of client assertions that were accepted.
    pub(crate) assertions: HashSet<String>,
    counter: u64,
}

/// Whether `life` has passed between the two times.
pub(crate) fn is_over(since: Timestamp, life: Duration, now: Timestamp) -> bool {
    now.duration_since(since) >= SignedDuration::try_from(life).unwrap_or(SignedDuration::MAX)
}

impl Ledger {
    /// A number no other thing of this authority has.
    pub(crate) fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// An opaque string; different for each authority (`salt`) and each call.
    fn opaque(&mut self, salt: &str, kind: &str, blocks: usize) -> String {
        let number = self.number();
        let blocks = (0..blocks)
            .map(|block| URL_SAFE_NO_PAD.encode(sha256(format!("{salt} {kind} {number} {block}").as_bytes())));
        format!("1.{}", blocks.collect::<String>())
    }

    /// Keeps an access token.
    pub(crate) fn keep_access(&mut self, token: String, access: Access, now: Timestamp) {
        if self.access.len() >= KEPT_MAX {
            self.access.retain(|_, access| now < access.expires);
        }
        self.access.insert(token, access);
    }

    /// Makes a refresh token.
    pub(crate) fn keep_refresh(&mut self, salt: &str, refresh: Refresh, life: Duration) -> String {
        if self.refresh.len() >= KEPT_MAX {
            let now = refresh.touched;
            self.refresh.retain(|_, old| !is_over(old.touched, life, now));
        }
        let token = self.opaque(salt, "refresh token", REFRESH_BLOCKS);
        self.refresh.insert(token.clone(), refresh);
        token
    }

    /// Makes an authorization code.
    pub(crate) fn keep_code(&mut self, salt: &str, code: Code) -> String {
        if self.codes.len() >= KEPT_MAX {
            self.codes.retain(|_, old| !old.redeemed);
        }
        let text = self.opaque(salt, "code", CODE_BLOCKS);
        self.codes.insert(text.clone(), code);
        text
    }

    /// Makes a device code; the user code is filled in.
    pub(crate) fn keep_device(&mut self, salt: &str, device: Device) -> (String, String) {
        if self.devices.len() >= KEPT_MAX {
            self.devices.retain(|_, old| old.decision == Decision::Pending && !old.redeemed);
        }
        let text = self.opaque(salt, "device code", CODE_BLOCKS);
        // Nine letters and digits, as the real ones.
        let user_code: String = text
            .chars()
            .skip(2)
            .filter(char::is_ascii_alphanumeric)
            .map(|letter| letter.to_ascii_uppercase())
            .take(9)
            .collect();
        self.devices.insert(text.clone(), Device { user_code: user_code.clone(), ..device });
        (text, user_code)
    }

    /// The device code of a user code, in either case.
    pub(crate) fn device_of(&mut self, user_code: &str) -> Option<&mut Device> {
        self.devices.values_mut().find(|device| device.user_code.eq_ignore_ascii_case(user_code))
    }
}
