//! One write, sent so that afterwards it is known what became of it, or known that it is not known.
//!
//! ```text
//!   token ─ permit ─ send ─┬ no connection ───────────── surely not sent ──▶ again
//!     ▲                    ├ 401, 429 ────────────────── surely not done ──▶ renew or wait, again
//!     │                    ├ success ──────────────────────────────────────▶ Done
//!     │                    ├ refused, with proof ──────────────────────────▶ Refused (again if it passes by itself)
//!     │                    └ cut, silent, 5xx without the service's code ──▶ Unknown, never again
//!     └──────────── pause, within the budget of `retry` ◀─────┘
//! ```
//!
//! A write whose answer is lost may have been carried out (`dataverse` protocol, section 5.3). It is not sent a second
//! time, whatever it is: whoever asked reads the row and decides. What is sent again was surely not carried out.
//!
//! Below us the HTTP library repeats a request only where the far end is known not to have looked at it: a pooled
//! connection that was closed before the first byte was written, an HTTP/2 stream that was refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use dynavault_identity::BearerToken;
use dynavault_model::{Call, Diagnose, FaultKind, Retry};
use reqwest::header::HeaderValue;
use tokio_util::sync::CancellationToken;
use tracing::trace;
use url::Url;

use crate::client::{Client, Reply, ReplyHeaders, User, UserSlot};
use crate::exchange::{
    BodyFault, ERROR_BODY_BYTES_MAX, ERROR_BODY_TIME_MAX, Outgoing, Progress, Renewals, describe, request,
};
use crate::fault::{RequestError, Verdict, verdict};
use crate::governor::{Outcome, Permit, RequestKind, Signals, Throttle};
use crate::intake::{AtLimit, BufferIntake, Facts, IntakeFault};
use crate::refusal::{Refusal, RefusalClass, proves_nothing_done};
use crate::retry::{Attempts, Failure};

/// Content type of rows and messages (`dataverse` protocol, section 1.2).
pub const JSON: &str = "application/json; charset=utf-8";
/// Content type of a file or a piece of one (section 7.1).
pub const BINARY: &str = "application/octet-stream";
/// Largest piece of a file in one request, in bytes (section 5.5).
pub const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of an answer kept unless the request says otherwise; most writes are answered with headers alone.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Methods of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Reads; in batches only.
    Get,
    /// Creates a row or a link, or sends a message.
    Post,
    /// Updates, creates under a known id, or puts bytes into a column.
    Patch,
    /// Sets a single property.
    Put,
    /// Deletes a row, a link or a value.
    Delete,
}

impl Method {
    /// The method's name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }

    fn of_http(self) -> reqwest::Method {
        match self {
            Self::Get => reqwest::Method::GET,
            Self::Post => reqwest::Method::POST,
            Self::Patch => reqwest::Method::PATCH,
            Self::Put => reqwest::Method::PUT,
            Self::Delete => reqwest::Method::DELETE,
        }
    }
}

/// Whether a refusal means that nothing at all was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomicity {
    /// One transaction: a row, a message, a bulk message of a standard table.
    Whole,
    /// Row by row: a bulk message of an elastic table (`dataverse` protocol, section 6.12).
    Parts,
}

/// One write. A long body is sent in requests of at most [`CHUNK_BYTES_MAX`] each, which share their bytes with the caller.
#[derive(Clone)]
pub struct WriteRequest<'a> {
    /// Method; not [`Method::Get`].
    pub method: Method,
    /// Path relative to the Web API, or an absolute link of the same environment.
    pub path: &'a str,
    /// Headers besides those of every call; they replace defaults of the same name.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body; empty for none.
    pub body: Bytes,
    /// What the body is, e.g. [`JSON`] or [`BINARY`].
    pub content_type: &'a str,
    /// What is being done, for errors; no row values.
    pub what: &'a str,
    /// How long it may take, for the governor.
    pub kind: RequestKind,
    /// Whether a refusal means that nothing was done.
    pub atomicity: Atomicity,
    /// Largest answer in bytes; a larger one counts as lost.
    pub bytes_max: usize,
}

impl<'a> WriteRequest<'a> {
    /// A write of one row: JSON, in one transaction, without further headers.
    pub fn new(method: Method, path: &'a str, body: Bytes, what: &'a str) -> Self {
        Self {
            method,
            path,
            headers: &[],
            body,
            content_type: JSON,
            what,
            kind: RequestKind::Write,
            atomicity: Atomicity::Whole,
            bytes_max: ANSWER_BYTES_MAX,
        }
    }
}

/// What the service said to a write.
#[derive(Debug, Clone)]
pub enum WriteReply {
    /// Done.
    Done(Reply),
    /// Surely not done, or, where [`Refusal::is_partial`] says so, only for some rows.
    Refused(Refusal),
}

/// Why it is not known from the service's own words what became of a write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteFault {
    /// It may or may not have been carried out; read the row.
    #[error("lost the answer while {what}: {message}")]
    Unknown {
        /// What was being done.
        what: String,
        /// What was seen instead of an answer.
        message: String,
        /// The service's id of the request, where it gave one.
        request_id: Option<String>,
    },
    /// Surely not carried out.
    #[error(transparent)]
    NotDone(#[from] RequestError),
}

impl Diagnose for WriteFault {
    fn retry(&self) -> Retry {
        match self {
            Self::Unknown { .. } => Retry::Permanent,
            Self::NotDone(error) => error.retry(),
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some("read the row again before deciding whether to write it".into()),
            Self::NotDone(error) => error.remedy(),
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Unknown { .. } => FaultKind::Failed,
            Self::NotDone(error) => error.kind(),
        }
    }
}

/// What sending again would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Writes in one transaction.
    Whole,
    /// Writes in several.
    Parts,
    /// Only reads.
    Reads,
}

/// A request on its way, again if need be.
pub(crate) struct Sending<'a> {
    pub(crate) outgoing: Outgoing<'a>,
    pub(crate) method: Method,
    pub(crate) content_type: &'a str,
    pub(crate) nature: Nature,
    pub(crate) bytes_max: usize,
}

impl Sending<'_> {
    fn request(&self, token: &BearerToken) -> Result<reqwest::Request, RequestError> {
        let mut request = request(&self.outgoing, token)?;
        *request.method_mut() = self.method.of_http();
        if self.outgoing.body.is_some() {
            let value = HeaderValue::from_str(self.content_type).map_err(|_| RequestError::Protocol {
                what: self.outgoing.what.to_owned(),
                detail: "a content type cannot be sent".to_owned(),
            })?;
            request.headers_mut().insert("content-type", value);
        } else if self.method != Method::Delete {
            // Servers ask for a length where a method usually has a body, and the HTTP library sends none by itself.
            request.headers_mut().insert("content-length", HeaderValue::from_static("0"));
        }
        Ok(request)
    }
}

/// How one sending ended.
enum Sent {
    Answered(Answer),
    /// No connection was made.
    Unsent(String),
    /// It may have reached the service.
    Lost(String, Option<String>),
}

/// An answer as it came, for whoever knows what is in it. The governor is told by [`Answer::close`].
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ReplyHeaders,
    pub(crate) body: Bytes,
    pub(crate) signals: Signals,
    permit: Permit,
}

impl Answer {
    /// Tells the governor how the request ended and frees its place.
    pub(crate) fn close(self, outcome: Outcome) -> Reply {
        self.permit.answered(outcome, &self.signals);
        Reply { status: self.status, headers: self.headers, body: self.body }
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(crate) fn is_multipart(&self) -> bool {
        is_multipart(&self.headers)
    }
}

fn is_multipart(headers: &ReplyHeaders) -> bool {
    headers.get("content-type").is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("multipart/"))
}

/// What a delivered request came to.
pub(crate) enum Delivered {
    /// A success, or an answer in parts whatever its status.
    Answer(Answer),
    Refused(Refusal),
}

/// What an answer that is no success proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    Throttled,
    Renew,
    /// Refused for good, or at least for now.
    Definite,
    /// Nothing.
    Lost,
}

pub(crate) fn judge(nature: Nature, refusal: &Refusal) -> Judgement {
    if refusal.is_partial() {
        return Judgement::Definite;
    }
    let status = refusal.status;
    match verdict(status, &refusal.error_body()) {
        Verdict::Throttled => Judgement::Throttled,
        Verdict::Renew => Judgement::Renew,
        _ if !proves_nothing_done(status, refusal.code) => Judgement::Lost,
        // A server error in the middle of several transactions proves nothing about the earlier ones.
        _ if nature == Nature::Parts && status >= 500 && refusal.class() != RefusalClass::Environment => {
            Judgement::Lost
        }
        _ => Judgement::Definite,
    }
}

/// The tries of one request, with their budgets.
pub(crate) struct Series<'a> {
    client: &'a Client,
    user: &'a User,
    what: &'a str,
    call: &'a Call,
    attempts: Attempts,
    renewals: Renewals,
    repeats: u32,
}

impl<'a> Series<'a> {
    pub(crate) fn new(client: &'a Client, slot: &'a UserSlot, what: &'a str, call: &'a Call) -> Self {
        let attempts = Attempts::new(client.config.retry.clone(), client.clock.elapsed());
        Self { client, user: slot.user(), what, call, attempts, renewals: Renewals::default(), repeats: 0 }
    }

    /// How often the service's "passes by itself" was believed.
    pub(crate) fn repeats(&self) -> u32 {
        self.repeats
    }

    /// Waits before the same is tried again because a refusal may pass.
    pub(crate) async fn pause_for(&mut self, failure: Failure, last: String) -> Result<(), RequestError> {
        if failure != Failure::Throttled {
            self.repeats += 1;
        }
        self.pause(failure, last).await
    }

    /// Waits before the next try.
    async fn pause(&mut self, failure: Failure, last: String) -> Result<(), RequestError> {
        self.client.pause_or_give_up(&mut self.attempts, (failure, None), self.what, last, self.call).await
    }

    /// Sends until there is an answer that means something.
    pub(crate) async fn deliver(&mut self, sending: &Sending<'_>) -> Result<Delivered, WriteFault> {
        loop {
            self.attempts.begin();
            if self.attempts.tries() > 1 {
                self.call.tally.retries(1);
            }
            let (token, permit) =
                self.client.admit(self.user, sending.outgoing.ask, &mut self.attempts, self.call).await?;
            let request = sending.request(&token)?;
            let answer = match self.send(sending, request, permit).await {
                Sent::Answered(answer) => answer,
                Sent::Unsent(text) => {
                    self.pause(Failure::Transient, text).await?;
                    continue;
                }
                Sent::Lost(message, request_id) => {
                    self.lost(sending, Failure::Transient, message, request_id).await?;
                    continue;
                }
            };
            if answer.status != 401 {
                self.renewals.accepted();
            }
            if answer.is_success() || answer.is_multipart() {
                return Ok(Delivered::Answer(answer));
            }
            let refusal = Refusal::read(answer.status, &answer.headers, answer.body.clone());
            let challenge = answer.headers.challenge();
            let judgement = judge(sending.nature, &refusal);
            let busy = answer.status == 503 || answer.signals.retry_after.is_some();
            // Some rows of a bulk message were written, and others told to come later.
            let later = refusal.is_partial() && refusal.class() == RefusalClass::Throttled;
            if later {
                self.call.tally.throttled(1);
            }
            answer.close(match judgement {
                _ if later => Outcome::Throttled(Throttle::default()),
                Judgement::Throttled => Outcome::Throttled(Throttle::read(&refusal.error_body())),
                Judgement::Lost | Judgement::Definite if busy => Outcome::Busy,
                _ => Outcome::Answered,
            });
            match judgement {
                Judgement::Throttled => {
                    self.call.tally.throttled(1);
                    self.pause(Failure::Throttled, refusal.message).await?;
                }
                Judgement::Renew => {
                    let Refusal { message, request_id, .. } = refusal;
                    if !self.renewals.another(self.client.clock.elapsed()) {
                        return Err(RequestError::Unauthorized { message, request_id }.into());
                    }
                    self.user.refused(&token, challenge.as_ref());
                }
                Judgement::Definite => {
                    let class = refusal.class();
                    let again = sending.nature != Nature::Parts && self.repeats < class.repeats_max();
                    if !again || refusal.is_partial() {
                        return Ok(Delivered::Refused(refusal));
                    }
                    match self.pause_for(class.failure(), refusal.message.clone()).await {
                        Ok(()) => {}
                        Err(RequestError::Exhausted { .. }) => return Ok(Delivered::Refused(refusal)),
                        Err(error) => return Err(error.into()),
                    }
                }
                Judgement::Lost => {
                    let failure = if refusal.status == 500 { Failure::Doubtful } else { Failure::Transient };
                    self.lost(sending, failure, refusal.message, refusal.request_id).await?;
                }
            }
        }
    }

    /// Nobody knows what became of a try: the end of a write, another try of a read.
    async fn lost(
        &mut self,
        sending: &Sending<'_>,
        failure: Failure,
        message: String,
        request_id: Option<String>,
    ) -> Result<(), WriteFault> {
        if sending.nature == Nature::Reads {
            let doubtful = failure == Failure::Doubtful;
            let paused =
                if doubtful { self.pause_for(failure, message).await } else { self.pause(failure, message).await };
            return Ok(paused?);
        }
        Err(WriteFault::Unknown { what: self.what.to_owned(), message, request_id })
    }

    /// Sends once. When the run is cancelled, a write is still given a little time to be answered.
    async fn send(&self, sending: &Sending<'_>, request: reqwest::Request, permit: Permit) -> Sent {
        let patient = Call { tally: Arc::clone(&self.call.tally), cancel: CancellationToken::new() };
        let once = self.client.send_once(sending, request, permit, &patient);
        tokio::pin!(once);
        tokio::select! {
            biased;
            sent = &mut once => return sent,
            () = self.call.cancel.cancelled() => {}
        }
        if sending.nature != Nature::Reads
            && let Ok(sent) = tokio::time::timeout(self.client.config.cancel_grace, once).await
        {
            return sent;
        }
        Sent::Lost("the run was cancelled before the answer came".to_owned(), None)
    }
}

impl Client {
    /// Sends one write. Waits and sends again where the service surely did nothing; a lost answer is
    /// [`WriteFault::Unknown`] and the request is not sent again. When the run is cancelled, the answer to a write under
    /// way is waited for up to [`crate::ClientConfig::cancel_grace`]. Dropping the future leaves unknown what became of it.
    pub async fn write(
        &self,
        slot: &UserSlot,
        request: &WriteRequest<'_>,
        call: &Call,
    ) -> Result<WriteReply, WriteFault> {
        self.may_write(request.what)?;
        if request.method == Method::Get {
            let detail = "a write cannot be a GET".to_owned();
            return Err(RequestError::Protocol { what: request.what.to_owned(), detail }.into());
        }
        let nature = match request.atomicity {
            Atomicity::Whole => Nature::Whole,
            Atomicity::Parts => Nature::Parts,
        };
        let sending = Sending {
            outgoing: Outgoing {
                url: self.check_link(request.path)?,
                prefer: None,
                headers: request.headers,
                body: Some(request.body.clone()).filter(|body| !body.is_empty()),
                ask: request.kind.into(),
                what: request.what,
            },
            method: request.method,
            content_type: request.content_type,
            nature,
            bytes_max: request.bytes_max,
        };
        let mut series = Series::new(self, slot, request.what, call);
        Ok(match series.deliver(&sending).await? {
            Delivered::Refused(refusal) => WriteReply::Refused(refusal),
            Delivered::Answer(answer) if answer.is_success() => WriteReply::Done(answer.close(Outcome::Answered)),
            // An answer in parts to a request that had none, and not a success either.
            Delivered::Answer(answer) => {
                let message = format!("an answer in parts came with status {}", answer.status);
                let request_id = answer.close(Outcome::Answered).headers.request_id();
                return Err(WriteFault::Unknown { what: request.what.to_owned(), message, request_id });
            }
        })
    }

    /// Refuses unless the client was made for writing (`dataverse` protocol, test T102).
    pub(crate) fn may_write(&self, what: &str) -> Result<(), RequestError> {
        if self.config.writes { Ok(()) } else { Err(RequestError::ReadOnly { what: what.to_owned() }) }
    }

    /// An absolute address as the target of a part of a batch.
    pub(crate) fn target(&self, path: &str) -> Result<String, RequestError> {
        let url: Url = self.check_link(path)?;
        Ok(url[url::Position::BeforePath..url::Position::AfterQuery].to_owned())
    }

    async fn send_once(&self, sending: &Sending<'_>, request: reqwest::Request, permit: Permit, call: &Call) -> Sent {
        call.tally.requests(1);
        trace!(what = sending.outgoing.what, "sending");
        let response = match tokio::time::timeout(self.config.headers_timeout, self.http.execute(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(fault)) => {
                permit.answered(Outcome::Lost, &Signals::default());
                // Name, connection, TLS: the request itself had not been begun.
                let unsent = fault.is_connect();
                let text = describe(fault);
                return if unsent { Sent::Unsent(text) } else { Sent::Lost(text, None) };
            }
            Err(_) => {
                permit.answered(Outcome::Lost, &Signals::default());
                return Sent::Lost(format!("no answer within {} s", self.config.headers_timeout.as_secs()), None);
            }
        };
        self.reached.store(true, Ordering::Relaxed);
        let status = response.status().as_u16();
        let headers = ReplyHeaders::new(response.headers().clone());
        let signals = Signals::read(|name| headers.get(name), self.clock.now());
        self.note_service_time(&headers);
        let kind = headers.get("content-type").unwrap_or_default().to_ascii_lowercase();
        let mut unused = Progress::default();

        if !(200..300).contains(&status) && !is_multipart(&headers) {
            let make = |_| BufferIntake::new(ERROR_BODY_BYTES_MAX, AtLimit::Ignore, Facts::default());
            let reading = self.body(response, Arc::new(make), Facts::default(), &mut unused, call);
            // The status alone decides when the words do not come.
            let read = tokio::time::timeout(ERROR_BODY_TIME_MAX, reading).await;
            let body = read.ok().and_then(Result::ok).unwrap_or_default();
            return Sent::Answered(Answer { status, headers, body, signals, permit });
        }
        let bytes_max = sending.bytes_max;
        let make = move |facts| BufferIntake::new(bytes_max, AtLimit::Fail, facts);
        let facts = Facts { json: kind.contains("json"), ..Facts::default() };
        let read = if kind.starts_with("text/html") {
            Err("an HTML page came instead of an answer".to_owned())
        } else {
            self.body(response, Arc::new(make), facts, &mut unused, call).await.map_err(words)
        };
        match read {
            Ok(body) => Sent::Answered(Answer { status, headers, body, signals, permit }),
            Err(text) => {
                permit.answered(Outcome::Answered, &signals);
                Sent::Lost(text, headers.request_id())
            }
        }
    }
}

/// What kept an answer from being read.
fn words(fault: BodyFault) -> String {
    match fault {
        BodyFault::Transport(text) | BodyFault::Intake(IntakeFault::Cut(text) | IntakeFault::Malformed(text)) => text,
        BodyFault::Intake(IntakeFault::TooLarge(limit)) => format!("the answer is larger than {limit} bytes"),
        BodyFault::Cancelled | BodyFault::Intake(_) => "the answer was cut".to_owned(),
    }
}
