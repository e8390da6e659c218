//! The token endpoint (entra 1.2, 1.3, 9.1) and the tokens it gave out.
//!
//! Tokens look like JWTs and carry the claims a client may read, but are only ever looked up: a token that is
//! not in the list, too old, or for another audience, is no token.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::dataset::{APPLICATIONS, client_id, user_id};
use crate::dice::{mix, mix_text, named_guid};
use crate::query::pairs;

/// The tenant everything belongs to.
pub(crate) fn tenant() -> String {
    named_guid("tenant").to_string()
}

/// Tokens and the state of the secret.
#[derive(Debug, Default)]
pub(crate) struct Authority {
    issued: HashMap<String, (usize, Instant)>,
    counter: u64,
    pub(crate) secret_expired: bool,
    /// 503 this many times more.
    pub(crate) unavailable: u32,
}

impl Authority {
    /// The application user a token stands for.
    pub(crate) fn check(&self, token: &str, now: Instant) -> Option<usize> {
        self.issued.get(token).filter(|(_, expires)| now < *expires).map(|(user, _)| *user)
    }

    pub(crate) fn revoke_all(&mut self) {
        self.issued.clear();
    }

    fn issue(&mut self, user: usize, url: &str, lifetime: Duration, wall: i64) -> String {
        self.counter += 1;
        let expires = wall + lifetime.as_secs() as i64;
        let claims = json!({
            "aud": url, "iss": format!("{url}/entra/{}/", tenant()), "iat": wall, "nbf": wall, "exp": expires,
            "appid": client_id(user), "appidacr": "1", "oid": user_id(user).to_string(), "tid": tenant(), "uti": self.counter.to_string(), "ver": "1.0",
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "RS256", "kid": "simulator"})), part(&claims));
        let signature: Vec<u8> = (0..32).flat_map(|index| mix(mix_text(&head) ^ index).to_be_bytes()).collect();
        format!("{head}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// `POST {authority}/{tenant}/oauth2/v2.0/token` with a form.
    pub(crate) fn token(
        &mut self,
        url: &str,
        path_tenant: &str,
        form: &str,
        secret: &str,
        lifetime: Duration,
        wall: i64,
    ) -> Answer {
        if self.unavailable > 0 {
            self.unavailable -= 1;
            return Answer {
                media_type: "text/html",
                ..Answer::text("<html><body>Service Unavailable</body></html>".to_owned())
            }
            .status(503);
        }
        let form: HashMap<String, String> = pairs(form).map(|(name, value, _)| (name, value)).collect();
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let error = |status, error, code: u32, text: String| {
            Answer::json(
                json!({
                    "error": error,
                    "error_description": format!("AADSTS{code}: {text}"),
                    "error_codes": [code],
                    "timestamp": jiff::Timestamp::from_second(wall).unwrap_or(jiff::Timestamp::UNIX_EPOCH).strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                    "trace_id": named_guid(&format!("trace {}", self.counter)).to_string(),
                    "correlation_id": named_guid(&format!("correlation {}", self.counter)).to_string(),
                    "error_uri": format!("{url}/entra/error?code={code}"),
                })
                .to_string(),
            )
            .status(status)
        };
        if path_tenant != tenant() {
            return error(400, "invalid_request", 90_002, format!("Tenant '{path_tenant}' not found."));
        }
        if field("grant_type") != "client_credentials" {
            return error(
                400,
                "unsupported_grant_type",
                70_003,
                "The app requested an unsupported grant type.".to_owned(),
            );
        }
        let client = field("client_id");
        let Some(user) = (0..APPLICATIONS).find(|index| client_id(*index) == client) else {
            return error(
                400,
                "unauthorized_client",
                700_016,
                format!("Application with identifier '{client}' was not found in the directory."),
            );
        };
        if field("client_secret") != secret {
            return error(
                401,
                "invalid_client",
                7_000_215,
                format!(
                    "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{client}'."
                ),
            );
        }
        if self.secret_expired {
            return error(
                401,
                "invalid_client",
                7_000_222,
                format!("The provided client secret keys for app '{client}' are expired."),
            );
        }
        let scope = field("scope");
        // The resource may be written with a slash at its end, which gives two before `.default`.
        if scope.strip_suffix("/.default").map(|resource| resource.trim_end_matches('/')) != Some(url) {
            return error(
                400,
                "invalid_resource",
                500_011,
                format!("The resource principal named {scope} was not found in the tenant."),
            );
        }
        let token = self.issue(user, url, lifetime, wall);
        self.issued.insert(token.clone(), (user, Instant::now() + lifetime));
        let seconds = lifetime.as_secs();
        Answer::json(
            json!({"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token})
                .to_string(),
        )
    }
}

/// `GET {authority}/{tenant}/v2.0/.well-known/openid-configuration` (entra 1.2).
pub(crate) fn openid_configuration(url: &str) -> Answer {
    let base = format!("{url}/entra/{}", tenant());
    Answer::json(
        json!({
            "issuer": format!("{base}/v2.0"),
            "token_endpoint": format!("{base}/oauth2/v2.0/token"),
            "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
            "jwks_uri": format!("{base}/discovery/v2.0/keys"),
            "tenant_region_scope": "EU",
            "cloud_instance_name": "simulator",
        })
        .to_string(),
    )
}

impl Answer {
    fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }
}
