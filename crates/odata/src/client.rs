//! The client of one environment: its address, its application users, and the few kinds of request a backup makes. Those of
//! a restore are in [`crate::write`] and [`crate::batch`].
//!
//! No cookies: the affinity cookie would tie us to one web server (`dataverse` protocol, section 5.1). No redirects: a
//! token goes where we decided, nowhere else. Answers are asked for in gzip and inflated by us, so that bytes are counted
//! as they came over the wire and a cut body is noticed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dynavault_identity::{BearerToken, ClaimsChallenge, TokenSource};
use dynavault_model::{Call, Clock, PageEnd, SharedContentSink, SharedSink};
use jiff::Timestamp;
use reqwest::header::HeaderMap;
use url::Url;

use crate::exchange::Outgoing;
use crate::fault::RequestError;
use crate::governor::{Governor, RequestKind, http_date};
use crate::intake::{AtLimit, BufferIntake, ContentIntake, PageIntake};
use crate::link;
use crate::retry::{Chance, RetryPolicy};

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Address of the Web API, e.g. `https://contoso.crm.dynamics.com/api/data/v9.2/`. Paths are relative to it.
    pub base_url: String,
    /// `User-Agent` of every call.
    pub user_agent: String,
    /// Most requests one application user has under way.
    pub in_flight_max: u32,
    /// Time for a connection.
    pub connect_timeout: Duration,
    /// Time from sending a request to its first answer.
    pub headers_timeout: Duration,
    /// Longest silence in the middle of a body.
    pub idle_timeout: Duration,
    /// Budgets of trying again.
    pub retry: RetryPolicy,
    /// Seed of the jitter of pauses.
    pub seed: u64,
    /// Whether the client may write. Without it every request that is not known to read only is refused before it is sent.
    pub writes: bool,
    /// How long the answer to a write under way is still waited for when the run is cancelled: a write whose answer is
    /// known need not be read again.
    pub cancel_grace: Duration,
}

impl ClientConfig {
    /// The defaults, for the environment at `base_url`.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            user_agent: concat!("dynavault/", env!("CARGO_PKG_VERSION")).to_owned(),
            in_flight_max: 8,
            connect_timeout: Duration::from_secs(20),
            // The front of the service drops connections that were silent for four minutes (section 5.3).
            headers_timeout: Duration::from_secs(240),
            idle_timeout: Duration::from_secs(60),
            retry: RetryPolicy::default(),
            seed: 0,
            writes: false,
            cancel_grace: Duration::from_secs(10),
        }
    }
}

/// One application user of an environment, with its own governor (rule 5.3).
pub(crate) struct User {
    pub(crate) tokens: Arc<dyn TokenSource>,
    pub(crate) governor: Arc<Governor>,
    /// Slots handed out.
    slots: AtomicUsize,
}

impl User {
    /// Gives up a token that was refused; the next one carries the claims that were asked for, if any.
    pub(crate) fn refused(&self, token: &BearerToken, challenge: Option<&ClaimsChallenge>) {
        tracing::debug!(
            profile = self.tokens.name(),
            claims = challenge.is_some(),
            "the service refused the token; renewing it"
        );
        match challenge {
            Some(challenge) => self.tokens.challenge(token, challenge),
            None => self.tokens.invalidate(token),
        }
    }
}

/// The application user that a series of requests is made as. Requests that belong together (the pages of a table)
/// should share one.
pub struct UserSlot(Arc<User>);

impl UserSlot {
    /// Name of the profile.
    pub fn name(&self) -> &str {
        self.0.tokens.name()
    }

    pub(crate) fn user(&self) -> &User {
        &self.0
    }

    /// The user's governor.
    pub fn governor(&self) -> &Arc<Governor> {
        &self.0.governor
    }
}

impl Clone for UserSlot {
    fn clone(&self) -> Self {
        self.0.slots.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for UserSlot {
    fn drop(&mut self) {
        self.0.slots.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for UserSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UserSlot").field(&self.name()).finish()
    }
}

/// Headers of an answer. `Debug` shows names only.
#[derive(Clone, Default)]
pub struct ReplyHeaders(HeaderMap);

impl ReplyHeaders {
    pub(crate) fn new(mut headers: HeaderMap) -> Self {
        headers.remove("set-cookie");
        Self(headers)
    }

    /// The text of a header, by its name in any case; `None` if it is missing or not text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    /// The claims a refusal asks for (`entra` protocol, section 8), if it does.
    pub(crate) fn challenge(&self) -> Option<ClaimsChallenge> {
        ClaimsChallenge::from_headers(self.0.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok()))
    }

    /// The service's id of the request (section 1.3).
    pub fn request_id(&self) -> Option<String> {
        let names = ["x-ms-service-request-id", "req_id", "x-ms-request-id", "request-id"];
        names.iter().find_map(|name| self.get(name)).map(|id| id.chars().take(100).collect())
    }
}

impl fmt::Debug for ReplyHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

/// A whole answer. `Debug` does not show the body.
#[derive(Clone)]
pub struct Reply {
    /// HTTP status, a success or 304.
    pub status: u16,
    /// The headers. Of a write: `OData-EntityId`, `Location`, `ETag`, `x-ms-chunk-size` and others, as the service sends them.
    pub headers: ReplyHeaders,
    /// The body, decompressed.
    pub body: Bytes,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// The head of an answer whose body went to a sink.
#[derive(Debug, Clone)]
pub struct Downloaded {
    /// HTTP status, a success or 304.
    pub status: u16,
    /// The headers.
    pub headers: ReplyHeaders,
}

/// The client of one environment.
pub struct Client {
    pub(crate) config: ClientConfig,
    base: Url,
    pub(crate) http: reqwest::Client,
    users: Vec<Arc<User>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) chance: Chance,
    /// The environment has answered, whatever it said.
    pub(crate) reached: AtomicBool,
    /// Seconds since 1970 by the service's clock; [`NO_TIME`] before the first answer.
    service_seconds: AtomicI64,
}

/// Messages sent by POST that only read (`dataverse` protocol, test T102). Batches of reads are [`Client::batch`].
const READING_MESSAGES: [&str; 4] = [
    "InitializeFileBlocksDownload",
    "InitializeAnnotationBlocksDownload",
    "InitializeAttachmentBlocksDownload",
    "DownloadBlock",
];

const NO_TIME: i64 = i64::MIN;

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.base.as_str())
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the environment in `config`, with one or more application users.
    pub fn new(
        config: ClientConfig,
        users: Vec<Arc<dyn TokenSource>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RequestError> {
        if users.is_empty() {
            return Err(RequestError::Setup("no application user is configured".to_owned()));
        }
        let base = link::read_base(&config.base_url).map_err(RequestError::Setup)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(&config.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(config.connect_timeout)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_max_idle_per_host(config.in_flight_max as usize)
            // Other crates may switch these on for everyone; here bodies stay as they came.
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd();
        if link::is_loopback(&base) {
            builder = builder.no_proxy();
        } else {
            builder = builder.https_only(true);
        }
        let http = builder.build().map_err(|fault| RequestError::Setup(dynavault_model::chain(&fault)))?;
        let users = users
            .into_iter()
            .zip(1..)
            .map(|(tokens, number)| {
                let chance = Chance::new(config.seed.wrapping_add(number));
                let governor = Governor::new(config.in_flight_max, Arc::clone(&clock), chance);
                Arc::new(User { tokens, governor, slots: AtomicUsize::new(0) })
            })
            .collect();
        let chance = Chance::new(config.seed);
        let (reached, service_seconds) = (AtomicBool::new(false), AtomicI64::new(NO_TIME));
        Ok(Self { config, base, http, users, clock, chance, reached, service_seconds })
    }

    /// Address that paths are relative to.
    pub fn base_url(&self) -> &str {
        self.base.as_str()
    }

    /// The least loaded application user.
    pub fn slot(&self) -> UserSlot {
        let load = |user: &&Arc<User>| (user.slots.load(Ordering::Relaxed), user.governor.load());
        let user = self.users.iter().min_by_key(load).expect("a client has at least one user");
        user.slots.fetch_add(1, Ordering::Relaxed);
        UserSlot(Arc::clone(user))
    }

    /// Time by the service's clock at the last answer, to the second.
    pub fn service_time(&self) -> Option<Timestamp> {
        Some(self.service_seconds.load(Ordering::Relaxed))
            .filter(|seconds| *seconds != NO_TIME)
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
    }

    pub(crate) fn note_service_time(&self, headers: &ReplyHeaders) {
        if let Some(time) = headers.get("date").and_then(http_date) {
            self.service_seconds.store(time.as_second(), Ordering::Relaxed);
        }
    }

    /// Makes an absolute address of a path or link and checks that it belongs to this environment.
    pub fn check_link(&self, path_or_url: &str) -> Result<Url, RequestError> {
        link::resolve(&self.base, path_or_url)
            .map_err(|detail| RequestError::Protocol { what: "following a link".to_owned(), detail })
    }

    /// Reads one answer of at most `bytes_max` bytes into memory.
    pub async fn get(
        &self,
        slot: &UserSlot,
        path_or_url: &str,
        prefer: Option<&str>,
        headers: &[(&str, &str)],
        bytes_max: usize,
        call: &Call,
    ) -> Result<Reply, RequestError> {
        self.buffered(slot, path_or_url, prefer, headers, None, bytes_max, call).await
    }

    /// Sends a message that only reads (a block of a file) and reads its answer into memory. It may be sent again like any
    /// read, so other messages than those known to read only are refused.
    #[expect(clippy::too_many_arguments, reason = "the parts of a request, each named at the call")]
    pub async fn post_read(
        &self,
        slot: &UserSlot,
        path_or_url: &str,
        prefer: Option<&str>,
        headers: &[(&str, &str)],
        body: Bytes,
        bytes_max: usize,
        call: &Call,
    ) -> Result<Reply, RequestError> {
        let name = path_or_url.rsplit('/').next().unwrap_or_default();
        if !READING_MESSAGES.contains(&name) {
            let detail = "the message is not known to read only".to_owned();
            return Err(RequestError::Protocol { what: "sending a message that reads".to_owned(), detail });
        }
        self.buffered(slot, path_or_url, prefer, headers, Some(body), bytes_max, call).await
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a request, each named at the call")]
    async fn buffered(
        &self,
        slot: &UserSlot,
        path_or_url: &str,
        prefer: Option<&str>,
        headers: &[(&str, &str)],
        body: Option<Bytes>,
        bytes_max: usize,
        call: &Call,
    ) -> Result<Reply, RequestError> {
        let url = self.check_link(path_or_url)?;
        let what = format!("reading {}", url.path());
        let outgoing = Outgoing { url, prefer, headers, body, ask: RequestKind::Small.into(), what: &what };
        let make = Arc::new(move |facts| BufferIntake::new(bytes_max, AtLimit::Fail, facts));
        let (head, body) = self.exchange(&slot.0, &outgoing, make, call).await?;
        Ok(Reply { status: head.status, headers: head.headers, body })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a request, each named at the call")]
    /// Reads one page of a collection into `sink`, row by row, on a blocking thread. Tries again inside; see
    /// [`dynavault_model::RowSink::restarted`]. Returns when the sink is no longer used.
    pub async fn read_page(
        &self,
        slot: &UserSlot,
        path_or_url: &str,
        prefer: Option<&str>,
        headers: &[(&str, &str)],
        sink: SharedSink,
        what: &str,
        call: &Call,
    ) -> Result<PageEnd, RequestError> {
        let url = self.check_link(path_or_url)?;
        let outgoing = Outgoing { url, prefer, headers, body: None, ask: RequestKind::Page.into(), what };
        let make = Arc::new(move |facts| PageIntake::new(Arc::clone(&sink), facts));
        let (_, end) = self.exchange(&slot.0, &outgoing, make, call).await?;
        Ok(end)
    }

    /// Reads the bytes of an answer into `sink`, on a blocking thread. Tries again inside; see
    /// [`dynavault_model::ContentSink::restarted`]. Returns when the sink is no longer used.
    pub async fn download(
        &self,
        slot: &UserSlot,
        path_or_url: &str,
        headers: &[(&str, &str)],
        sink: SharedContentSink,
        what: &str,
        call: &Call,
    ) -> Result<Downloaded, RequestError> {
        let url = self.check_link(path_or_url)?;
        let outgoing = Outgoing { url, prefer: None, headers, body: None, ask: RequestKind::Content.into(), what };
        let make = Arc::new(move |facts| ContentIntake::new(Arc::clone(&sink), facts));
        let (head, ()) = self.exchange(&slot.0, &outgoing, make, call).await?;
        Ok(Downloaded { status: head.status, headers: head.headers })
    }
}
