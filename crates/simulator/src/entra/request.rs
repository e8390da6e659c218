//! What came in, and the log of it.

use std::collections::HashMap;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::entra::keys::Jwt;
use crate::query::{decode, pairs};

/// Parameters of a form or a query, with a client that signed in by HTTP Basic (entra 1.2).
#[derive(Debug, Default)]
pub(crate) struct Form {
    fields: HashMap<String, String>,
    basic: Option<(String, String)>,
}

impl Form {
    /// Reads `text` and the `Authorization` header.
    pub(crate) fn parse(text: &str, headers: &HeaderMap) -> Self {
        let fields = pairs(text).map(|(name, value, _)| (name, value)).collect();
        let basic = headers.get("authorization").and_then(|value| {
            let digits = value.to_str().ok()?.strip_prefix("Basic ")?;
            let pair = String::from_utf8(STANDARD.decode(digits).ok()?).ok()?;
            let (client, secret) = pair.split_once(':')?;
            Some((decode(client), decode(secret)))
        });
        Self { fields, basic }
    }

    /// A parameter that is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A parameter, empty if it is missing.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// `client_id`, from the body or from HTTP Basic.
    pub(crate) fn client(&self) -> &str {
        self.get("client_id").or(self.basic.as_ref().map(|basic| basic.0.as_str())).unwrap_or_default()
    }

    /// `client_secret`, from the body or from HTTP Basic.
    pub(crate) fn secret(&self) -> Option<&str> {
        self.get("client_secret").or(self.basic.as_ref().map(|basic| basic.1.as_str()))
    }
}

/// One request to a sign-in endpoint, without its secrets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SignInRequest {
    /// `token`, `authorize`, `devicecode`, `adminconsent`, `metadata`, `keys`.
    pub endpoint: String,
    /// Tenant segment of the URL.
    pub tenant: String,
    /// `grant_type`.
    pub grant_type: Option<String>,
    /// `client_id`.
    pub client_id: Option<String>,
    /// `scope`.
    pub scope: Option<String>,
    /// `claims`, decoded from the form but otherwise as sent.
    pub claims: Option<String>,
    /// `redirect_uri`.
    pub redirect_uri: Option<String>,
    /// `prompt`.
    pub prompt: Option<String>,
    /// `jti` of the client assertion.
    pub assertion_id: Option<String>,
    /// Header `client-request-id`.
    pub client_request_id: Option<String>,
    /// HTTP status of the answer.
    pub status: u16,
    /// Digits after `AADSTS`, for a refusal that has them.
    pub code: Option<u32>,
    /// Time of the sign-in side, in milliseconds since 1970.
    pub at_ms: i64,
}

impl SignInRequest {
    pub(crate) fn new(endpoint: &str, tenant: &str, form: &Form, headers: &HeaderMap) -> Self {
        let own = |name: &str| form.get(name).map(str::to_owned);
        Self {
            endpoint: endpoint.to_owned(),
            tenant: tenant.to_owned(),
            grant_type: own("grant_type"),
            client_id: Some(form.client().to_owned()).filter(|client| !client.is_empty()),
            scope: own("scope"),
            claims: own("claims"),
            redirect_uri: own("redirect_uri"),
            prompt: own("prompt"),
            assertion_id: form
                .get("client_assertion")
                .and_then(Jwt::parse)
                .map(|jwt| jwt.text("jti").to_owned())
                .filter(|id| !id.is_empty()),
            client_request_id: headers
                .get("client-request-id")
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
            ..Self::default()
        }
    }
}
