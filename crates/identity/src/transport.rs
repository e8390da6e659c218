//! The HTTP client that the Azure SDK is given, here and in the blob store.
//!
//! The SDK brings its own client, but that one prints whole URLs (a SAS is part of the URL), retries by its own rules
//! and real clock, and reads replies of any length. This one
//!
//! - reports every failure as a [`WireError`], which the SDK passes on untouched and never retries, because only
//!   `Io` and `Connection` errors and plain replies are retried by it;
//! - turns every reply that is not a success into such an error, with status, `Retry-After` and a bounded body;
//! - bounds the bytes of a reply;
//! - can send requests to a loopback host over plain `http`, which the SDK refuses. Tests and the simulator need that.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::{AsyncRawResponse, Body, HttpClient, Method, Request};
use azure_core::{Bytes, Error, error::ErrorKind};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use url::Url;

use crate::redact;

/// Bytes of a failed reply that are kept to be understood; the services' error bodies are below 4 KiB.
pub const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

/// A request that brought no success.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// No connection; the request was surely not sent.
    #[error("could not connect to {host}")]
    Connect {
        /// Host and port.
        host: String,
        /// What the HTTP client said, without URL.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke or timed out; the service may have acted on the request.
    #[error("the connection to {host} broke")]
    Interrupted {
        /// Host and port.
        host: String,
        /// What the HTTP client said, without URL.
        #[source]
        source: reqwest::Error,
    },
    /// The reply was longer than agreed.
    #[error("the reply of {host} is longer than {limit} bytes")]
    TooLong {
        /// Host and port.
        host: String,
        /// The limit.
        limit: u64,
    },
    /// The service answered with something other than success.
    #[error("{host} answered {status}")]
    Status {
        /// Host and port.
        host: String,
        /// Status, `Retry-After`, codes and the start of the body.
        status: FailedReply,
    },
}

/// An answer that is not a success. Prints the status and the service's code only.
pub struct FailedReply {
    /// HTTP status.
    pub code: u16,
    /// `Retry-After`, in whichever of its forms it came.
    pub retry_after: Option<RetryAfter>,
    /// `x-ms-error-code`: Azure Storage sends its code here, even where a reply has no body.
    pub error_code: Option<String>,
    /// `x-ms-request-id`.
    pub request_id: Option<String>,
    /// `Date`: the service's clock.
    pub date: Option<Timestamp>,
    /// At most [`ERROR_BODY_BYTES_MAX`] bytes of the body.
    pub body: Bytes,
}

impl fmt::Display for FailedReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(code) = &self.error_code {
            write!(f, " {}", redact::scrub(code))?;
        }
        if let Some(id) = &self.request_id {
            write!(f, " (request id {})", redact::scrub(id))?;
        }
        Ok(())
    }
}

impl fmt::Debug for FailedReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FailedReply({self})")
    }
}

/// When the service wants to be asked again (RFC 9110, section 10.2.3, and the millisecond form of Azure).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// After a while.
    Delay(Duration),
    /// At a time.
    At(Timestamp),
}

impl RetryAfter {
    /// The pause from `now` on.
    pub fn pause(self, now: Timestamp) -> Duration {
        match self {
            Self::Delay(delay) => delay,
            Self::At(time) => Duration::try_from(time.duration_since(now)).unwrap_or(Duration::ZERO),
        }
    }

    fn of(headers: &reqwest::header::HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let milliseconds = |name: &str| text(name).and_then(|t| t.parse().ok()).map(Duration::from_millis);
        if let Some(delay) = milliseconds("x-ms-retry-after-ms").or_else(|| milliseconds("retry-after-ms")) {
            return Some(Self::Delay(delay));
        }
        let value = text("retry-after")?;
        if let Ok(seconds) = value.parse() {
            return Some(Self::Delay(Duration::from_secs(seconds)));
        }
        http_date(value).map(Self::At)
    }
}

/// How a [`HttpTransport`] connects and waits.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// Longest time to a connection.
    pub connect_timeout: Duration,
    /// Longest silence while a reply is read.
    pub read_timeout: Duration,
    /// Longest successful reply, in bytes.
    pub reply_bytes_max: u64,
    /// Whether the proxy settings of the environment apply. Never for loopback hosts and the metadata service.
    pub proxy: bool,
    /// Requests go to scheme, host and port of this loopback URL, whatever they name, and below its path.
    pub redirect_to_loopback: Option<Url>,
}

/// The HTTP client for the Azure SDK.
pub struct HttpTransport {
    client: reqwest::Client,
    options: TransportOptions,
}

impl fmt::Debug for HttpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTransport").field("options", &self.options).finish_non_exhaustive()
    }
}

impl HttpTransport {
    /// Builds the client; fails only if the TLS stack cannot start, e.g. for lack of root certificates.
    pub fn new(options: TransportOptions) -> Result<Arc<Self>, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(options.connect_timeout)
            .read_timeout(options.read_timeout)
            // The services do not redirect; a redirect would carry a token or a SAS to another host.
            .redirect(reqwest::redirect::Policy::none());
        if !options.proxy {
            builder = builder.no_proxy();
        }
        Ok(Arc::new(Self { client: builder.build()?, options }))
    }

    fn target(&self, url: &Url) -> Url {
        let mut target = url.clone();
        if let Some(loopback) = &self.options.redirect_to_loopback {
            // These fail only for URLs without a host; both have one.
            let _has_host = target.set_scheme(loopback.scheme());
            let _has_host = target.set_host(loopback.host_str());
            let _has_host = target.set_port(loopback.port());
            // The SDK takes the host of an authority and forgets its path; a test server may live below one.
            let below = loopback.path().trim_end_matches('/');
            if !below.is_empty() && !target.path().starts_with(&format!("{below}/")) {
                let path = format!("{below}{}", target.path());
                target.set_path(&path);
            }
        }
        target
    }
}

#[async_trait]
impl HttpClient for HttpTransport {
    async fn execute_request(&self, request: &Request) -> Result<AsyncRawResponse, Error> {
        let url = self.target(request.url());
        let host = host_of(&url);
        let mut builder = self.client.request(method_of(request.method()), url);
        for (name, value) in request.headers().iter() {
            builder = builder.header(name.as_str(), value.as_str());
        }
        builder = match request.body().clone() {
            Body::Bytes(bytes) => builder.body(bytes),
            Body::SeekableStream(stream) => builder.body(reqwest::Body::wrap_stream(stream)),
        };
        let reply = builder.send().await.map_err(|error| wire(failure(&host, error)))?;
        if !reply.status().is_success() {
            return Err(wire(WireError::Status { status: failed_reply(reply).await, host }));
        }
        let limit = self.options.reply_bytes_max;
        if reply.content_length().is_some_and(|length| length > limit) {
            return Err(wire(WireError::TooLong { host, limit }));
        }
        let status = reply.status().as_u16().into();
        let headers = headers_of(reply.headers());
        Ok(AsyncRawResponse::new(status, headers, Box::pin(bounded(reply.bytes_stream(), host, limit))))
    }
}

/// The [`WireError`] inside an error of the SDK, however deep.
pub fn wire_error(error: &Error) -> Option<&WireError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(wire) = inner.downcast_ref::<WireError>() {
            return Some(wire);
        }
        cause = inner.source();
    }
    None
}

/// Whether a URL names this machine, the only place where plain `http` is accepted.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(url::Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

fn wire(error: WireError) -> Error {
    // `Other`, because the SDK retries `Io` and `Connection`.
    Error::new(ErrorKind::Other, error)
}

fn failure(host: &str, error: reqwest::Error) -> WireError {
    let source = error.without_url();
    let host = host.to_owned();
    if source.is_connect() { WireError::Connect { host, source } } else { WireError::Interrupted { host, source } }
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn date_of(headers: &reqwest::header::HeaderMap) -> Option<Timestamp> {
    http_date(headers.get(reqwest::header::DATE)?.to_str().ok()?)
}

/// A time as HTTP headers carry it.
pub(crate) fn http_date(value: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()
}

async fn failed_reply(reply: reqwest::Response) -> FailedReply {
    let code = reply.status().as_u16();
    let retry_after = RetryAfter::of(reply.headers());
    let date = date_of(reply.headers());
    let header = |name: &str| reply.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (error_code, request_id) = (header("x-ms-error-code"), header("x-ms-request-id"));
    let mut body = Vec::new();
    let mut chunks = reply.bytes_stream();
    // A body that breaks off leaves the status as what is known.
    while let Some(Ok(chunk)) = chunks.next().await {
        let room = ERROR_BODY_BYTES_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == ERROR_BODY_BYTES_MAX {
            break;
        }
    }
    FailedReply { code, retry_after, error_code, request_id, date, body: body.into() }
}

fn bounded(
    chunks: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    host: String,
    limit: u64,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let start = (Box::pin(chunks), 0_u64, host);
    stream::try_unfold(start, move |(mut chunks, read, host)| async move {
        match chunks.next().await {
            None => Ok(None),
            Some(Err(error)) => Err(wire(failure(&host, error))),
            Some(Ok(chunk)) => {
                let read = read + chunk.len() as u64;
                if read > limit {
                    return Err(wire(WireError::TooLong { host, limit }));
                }
                Ok(Some((chunk, (chunks, read, host))))
            }
        }
    })
}

fn headers_of(map: &reqwest::header::HeaderMap) -> Headers {
    let headers: HashMap<_, _> = map
        .iter()
        .filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            Some((HeaderName::from(name.as_str().to_owned()), HeaderValue::from(value.to_owned())))
        })
        .collect();
    Headers::from(headers)
}

fn method_of(method: Method) -> reqwest::Method {
    // The SDK's enum is open; all of its methods are standard ones, so their name says everything.
    method.as_str().parse().expect("the name of a method is a valid method")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_only() {
        for url in ["http://localhost:1/", "http://127.0.0.1/", "http://127.8.9.1/x", "http://[::1]:8/"] {
            assert!(is_loopback(&Url::parse(url).unwrap()), "{url}");
        }
        for url in ["http://localhost.evil.com/", "http://10.0.0.1/", "http://[::2]/", "http://127.0.0.1.nip.io/"] {
            assert!(!is_loopback(&Url::parse(url).unwrap()), "{url}");
        }
    }

    #[test]
    fn retry_after_is_understood_in_all_its_forms() {
        let of = |name: &'static str, value: &'static str| {
            let mut map = reqwest::header::HeaderMap::new();
            map.insert(name, value.parse().unwrap());
            RetryAfter::of(&map).map(|after| after.pause("1994-11-06T08:49:30Z".parse().unwrap()))
        };
        assert_eq!(of("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(of("x-ms-retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(of("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(of("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(of("retry-after", "soon"), None);
    }
}
