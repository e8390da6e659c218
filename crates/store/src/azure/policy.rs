//! What is added to each request: a checksum of what is uploaded, and a token or signature.
//!
//! The SDK's own token policy keeps tokens where a 401 does not reach them, so the token comes from our source each time;
//! and the SDK has no Shared Key.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use azure_core::credentials::Secret;
use azure_core::error::ErrorKind;
use azure_core::hmac::hmac_sha256;
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Body, Context, Method, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dynavault_identity::{BearerToken, ExposeSecret, SecretString, TokenSource};
use dynavault_model::Clock;

use crate::azure::checksum::crc64;

const CRC64: HeaderName = HeaderName::from_static("x-ms-content-crc64");
const BLOB_TYPE: HeaderName = HeaderName::from_static("x-ms-blob-type");
const AUTHORIZATION: HeaderName = HeaderName::from_static("authorization");
const DATE: HeaderName = HeaderName::from_static("x-ms-date");

/// Adds the checksum to uploads of objects and blocks, so that the service refuses what was changed on the way.
#[derive(Debug)]
pub(crate) struct Checksum;

#[async_trait]
impl Policy for Checksum {
    async fn send(&self, context: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        let block = request.url().query_pairs().any(|(name, value)| name == "comp" && value == "block");
        let whole = request.headers().get_optional_str(&BLOB_TYPE).is_some();
        if request.method() == Method::Put
            && (block || whole)
            && let Body::Bytes(bytes) = request.body()
            && !bytes.is_empty()
        {
            let value = STANDARD.encode(crc64(bytes).to_le_bytes());
            request.insert_header(CRC64, value);
        }
        next[0].send(context, request, &next[1..]).await
    }
}

/// Adds the token of a source.
#[derive(Debug)]
pub(crate) struct Bearer {
    source: Arc<dyn TokenSource>,
    /// The token that was sent last; dropped at the source after a 401.
    last: Mutex<Option<BearerToken>>,
}

impl Bearer {
    pub(crate) fn new(source: Arc<dyn TokenSource>) -> Self {
        Self { source, last: Mutex::new(None) }
    }

    /// The service refused a token.
    pub(crate) fn refused(&self) {
        if let Some(token) = self.last.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.source.invalidate(&token);
        }
    }
}

#[async_trait]
impl Policy for Bearer {
    async fn send(&self, context: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        let token = self.source.token().await.map_err(|error| azure_core::Error::new(ErrorKind::Other, error))?;
        request.insert_header(AUTHORIZATION, format!("Bearer {}", token.secret()));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        next[0].send(context, request, &next[1..]).await
    }
}

/// Signs with the account's key ("Authorize with Shared Key", Azure Storage REST documentation). For the emulator and
/// for accounts without Entra; the key may do everything, so a SAS is better.
pub(crate) struct SharedKey {
    account: String,
    key: SecretString,
    clock: Arc<dyn Clock>,
}

impl SharedKey {
    pub(crate) fn new(account: String, key: SecretString, clock: Arc<dyn Clock>) -> Self {
        Self { account, key, clock }
    }

    fn string_to_sign(&self, request: &Request) -> String {
        let header =
            |name: &'static str| request.headers().get_optional_str(&HeaderName::from_static(name)).unwrap_or("");
        let length = match request.body().len() {
            None | Some(0) => String::new(),
            Some(length) => length.to_string(),
        };
        let mut text = format!("{}\n", request.method().as_str());
        for value in [
            header("content-encoding"),
            header("content-language"),
            &length,
            header("content-md5"),
            header("content-type"),
            header("date"),
            header("if-modified-since"),
            header("if-match"),
            header("if-none-match"),
            header("if-unmodified-since"),
            header("range"),
        ] {
            text.push_str(value);
            text.push('\n');
        }
        let mut own: Vec<(&str, &str)> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| name.starts_with("x-ms-"))
            .collect();
        own.sort_unstable();
        for (name, value) in own {
            text.extend([name, ":", value.trim(), "\n"]);
        }
        // With an emulator's URL the account stands in the path as well, and twice here.
        text.extend(["/", &self.account, request.url().path()]);
        let mut query: Vec<(String, String)> =
            request.url().query_pairs().map(|(name, value)| (name.to_ascii_lowercase(), value.into_owned())).collect();
        query.sort_unstable();
        for (name, value) in query {
            text.extend(["\n", &name, ":", &value]);
        }
        text
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKey").field("account", &self.account).finish_non_exhaustive()
    }
}

#[async_trait]
impl Policy for SharedKey {
    async fn send(&self, context: &Context, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        request.insert_header(DATE, self.clock.now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
        let key = Secret::new(self.key.expose_secret().to_owned());
        let signature = hmac_sha256(&self.string_to_sign(request), &key)?;
        request.insert_header(AUTHORIZATION, format!("SharedKey {}:{signature}", self.account));
        next[0].send(context, request, &next[1..]).await
    }
}
