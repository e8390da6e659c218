//! One read from first try to last. Writes follow other rules ([`crate::write`]) within the same budgets.
//!
//! ```text
//!   token ─ permit ─ send ─┬ success ─ stream the body ─┬ whole ─▶ done
//!     ▲                    │                            └ cut, malformed, error inside ─┐
//!     │                    └ refused: classify by code, then status                     │
//!     └──────────── pause, within the budget of `retry` ◀───────────────────────────────┘
//! ```
//!
//! Network time-outs run on the runtime's timer, because a socket does not know the `Clock` port; every pause and every
//! budget runs on the port.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dynavault_identity::{BearerToken, ClaimsChallenge};
use dynavault_model::{Call, chain};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;
use tracing::{debug, trace};
use url::Url;

use crate::client::{Client, ReplyHeaders, User};
use crate::fault::{ErrorBody, RequestError, Verdict, verdict};
use crate::governor::{Ask, Outcome, Permit, Signals, Throttle};
use crate::intake::{
    AtLimit, BufferIntake, CHUNKS_AT_A_TIME, CHUNKS_MAX, Facts, Intake, IntakeFault, Maker, Piece, take_in,
};
use crate::retry::{Attempts, Failure, Next};

/// Most of an error body that is read; plug-in traces can be long, the words we need come first.
pub(crate) const ERROR_BODY_BYTES_MAX: usize = 256 * 1024;
/// Time for the body of a refusal: the words of a 429 are not worth waiting for.
pub(crate) const ERROR_BODY_TIME_MAX: Duration = Duration::from_secs(5);
/// A token that is refused this soon after a renewal was hardly used: such renewals are counted together.
const RENEWAL_LIFE_MIN: Duration = Duration::from_secs(60);
/// Renewals of the token for one request without anything but refusals between them: a second one is final (`dataverse`
/// protocol, section 5.7 and test T01; `entra` protocol, section 8).
const RENEWALS_IN_ROW_MAX: u32 = 1;
/// Renewals of the token in one request, however long it lasts: a token that was taken may be revoked later.
const RENEWALS_MAX: u32 = 4;
/// After waiting this long for leave to send, the token is asked for again.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(60);

/// A request as it is sent, again and again if need be.
pub(crate) struct Outgoing<'a> {
    pub(crate) url: Url,
    pub(crate) prefer: Option<&'a str>,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// A POST with this JSON body; a GET without.
    pub(crate) body: Option<Bytes>,
    pub(crate) ask: Ask,
    pub(crate) what: &'a str,
}

/// The head of a successful answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: ReplyHeaders,
}

/// How one try ended.
enum Tried<T> {
    Done(Head, T),
    /// The service said no, with a status or inside a body.
    Refused {
        status: u16,
        verdict: Verdict,
        body: ErrorBody,
        request_id: Option<String>,
        after: Option<Duration>,
        challenge: Option<ClaimsChallenge>,
    },
    /// No usable answer.
    Failed(Failure, String),
    Fatal(RequestError),
}

/// What one try leaves behind for the next.
#[derive(Default)]
pub(crate) struct Progress {
    /// Body bytes of this try, as received.
    received: u64,
    /// The sink has been given bytes that the next try must take back.
    begun: bool,
}

/// Counts how often the token was renewed for one request.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    last: Option<Duration>,
    count: u32,
    in_row: u32,
}

impl Renewals {
    /// Whether the token may be renewed once more, at the time `now`.
    pub(crate) fn another(&mut self, now: Duration) -> bool {
        if self.last.is_none_or(|last| now.saturating_sub(last) >= RENEWAL_LIFE_MIN) {
            self.in_row = 0;
        }
        if self.in_row == RENEWALS_IN_ROW_MAX || self.count == RENEWALS_MAX {
            return false;
        }
        self.last = Some(now);
        self.count += 1;
        self.in_row += 1;
        true
    }

    /// The service took the token.
    pub(crate) fn accepted(&mut self) {
        self.in_row = 0;
    }
}

/// Waits for `future` unless the operator stops the run first.
pub(crate) async fn unless_cancelled<F: Future>(call: &Call, future: F) -> Result<F::Output, RequestError> {
    tokio::select! {
        biased;
        () = call.cancel.cancelled() => Err(RequestError::Cancelled),
        output = future => Ok(output),
    }
}

impl Client {
    /// Sends a request until it is answered, refused, or its budget is spent. `make` gives each try its intake; it is
    /// told whether an earlier try had begun to fill the sink.
    pub(crate) async fn exchange<I: Intake>(
        &self,
        user: &User,
        outgoing: &Outgoing<'_>,
        make: Maker<I>,
        call: &Call,
    ) -> Result<(Head, I::Output), RequestError> {
        let mut attempts = Attempts::new(self.config.retry.clone(), self.clock.elapsed());
        let mut renewals = Renewals::default();
        let mut begun = false;
        loop {
            attempts.begin();
            if attempts.tries() > 1 {
                call.tally.retries(1);
            }
            let (token, permit) = self.admit(user, outgoing.ask, &mut attempts, call).await?;
            let mut progress = Progress::default();
            let tried = self.attempt(outgoing, &token, permit, (&make, begun), &mut progress, call).await;
            begun |= progress.begun;
            if progress.begun || matches!(&tried, Tried::Refused { verdict, .. } if *verdict != Verdict::Renew) {
                renewals.accepted();
            }
            let now = self.clock.elapsed();
            attempts.progress(progress.received, now);
            let (failure, after, last, refusal) = match tried {
                Tried::Done(head, output) => return Ok((head, output)),
                Tried::Fatal(error) => return Err(error),
                Tried::Failed(failure, text) => (failure, None, text, None),
                Tried::Refused { verdict: Verdict::Renew, body, request_id, challenge, .. } => {
                    if !renewals.another(now) {
                        return Err(RequestError::Unauthorized { message: body.message, request_id });
                    }
                    user.refused(&token, challenge.as_ref());
                    continue;
                }
                Tried::Refused { status, verdict, body, request_id, after, .. } => {
                    let error = RequestError::Service { status, code: body.code, message: body.message, request_id };
                    let failure = match verdict {
                        Verdict::Final | Verdict::Renew => return Err(error),
                        Verdict::Throttled => Failure::Throttled,
                        Verdict::Transient => Failure::Transient,
                        Verdict::Doubtful => Failure::Doubtful,
                    };
                    (failure, after, error.to_string(), (failure == Failure::Doubtful).then_some(error))
                }
            };
            let paused = self.pause_or_give_up(&mut attempts, (failure, after), outgoing.what, last, call).await;
            match (paused, refusal) {
                // The service's own words about an unexpected error help more than ours about giving up.
                (Err(RequestError::Exhausted { .. }), Some(refusal)) => return Err(refusal),
                (paused, _) => paused?,
            }
        }
    }

    /// Waits until the next try, or says which limit was reached. `after` is the pause the service asked for.
    pub(crate) async fn pause_or_give_up(
        &self,
        attempts: &mut Attempts,
        (failure, after): (Failure, Option<Duration>),
        what: &str,
        last: String,
        call: &Call,
    ) -> Result<(), RequestError> {
        let now = self.clock.elapsed();
        let next = attempts.failed(failure, now, after, self.chance.next());
        let reached = self.reached.load(Ordering::Relaxed);
        match if reached { next } else { attempts.before_first_contact(next, now) } {
            Next::Pause(pause) => {
                debug!(what, tries = attempts.tries(), pause_ms = pause.as_millis() as u64, last, "trying again");
                if !pause.is_zero() {
                    unless_cancelled(call, self.clock.sleep(pause)).await?;
                }
                Ok(())
            }
            Next::GiveUp(limit) => Err(RequestError::Exhausted {
                what: what.to_owned(),
                tries: attempts.tries(),
                elapsed: attempts.elapsed(now),
                limit,
                last,
            }),
        }
    }

    /// A token and leave to send. The token comes first: asking for one takes time that is not the service's.
    pub(crate) async fn admit(
        &self,
        user: &User,
        ask: Ask,
        attempts: &mut Attempts,
        call: &Call,
    ) -> Result<(BearerToken, Permit), RequestError> {
        let token = unless_cancelled(call, user.tokens.token()).await?.map_err(RequestError::SignIn)?;
        let before = self.clock.elapsed();
        let permit = unless_cancelled(call, user.governor.acquire(ask)).await?;
        let waited = self.clock.elapsed().saturating_sub(before);
        attempts.waited(waited);
        if waited < TOKEN_AGE_MAX {
            return Ok((token, permit));
        }
        let token = unless_cancelled(call, user.tokens.token()).await?.map_err(RequestError::SignIn)?;
        Ok((token, permit))
    }

    async fn attempt<I: Intake>(
        &self,
        outgoing: &Outgoing<'_>,
        token: &BearerToken,
        permit: Permit,
        (make, begun): (&Maker<I>, bool),
        progress: &mut Progress,
        call: &Call,
    ) -> Tried<I::Output> {
        let request = match request(outgoing, token) {
            Ok(request) => request,
            Err(error) => return Tried::Fatal(error),
        };
        call.tally.requests(1);
        trace!(what = outgoing.what, "sending");
        let sending = tokio::time::timeout(self.config.headers_timeout, self.http.execute(request));
        let response = match unless_cancelled(call, sending).await {
            Err(cancelled) => return Tried::Fatal(cancelled),
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(fault))) => {
                permit.answered(Outcome::Lost, &Signals::default());
                return Tried::Failed(Failure::Transient, describe(fault));
            }
            Ok(Err(_)) => {
                permit.answered(Outcome::Lost, &Signals::default());
                let seconds = self.config.headers_timeout.as_secs();
                return Tried::Failed(Failure::Transient, format!("no answer within {seconds} s"));
            }
        };
        self.reached.store(true, Ordering::Relaxed);
        let status = response.status().as_u16();
        let headers = ReplyHeaders::new(response.headers().clone());
        let signals = Signals::read(|name| headers.get(name), self.clock.now());
        self.note_service_time(&headers);

        if !(response.status().is_success() || status == 304) {
            let mut unused = Progress::default();
            let reading = self.body(response, Arc::new(error_intake), Facts::default(), &mut unused, call);
            let text = match tokio::time::timeout(ERROR_BODY_TIME_MAX, reading).await {
                Ok(Err(BodyFault::Cancelled)) => return Tried::Fatal(RequestError::Cancelled),
                Ok(Ok(text)) => text,
                _ => Bytes::new(),
            };
            let body = ErrorBody::parse(status, &text);
            let verdict = verdict(status, &body);
            let busy = verdict == Verdict::Transient && (status == 503 || signals.retry_after.is_some());
            let outcome = match verdict {
                Verdict::Throttled => Outcome::Throttled(Throttle::read(&body)),
                _ if busy => Outcome::Busy,
                _ => Outcome::Answered,
            };
            if verdict == Verdict::Throttled {
                call.tally.throttled(1);
            }
            permit.answered(outcome, &signals);
            // A pause the service asked for is kept by the governor, for all requests of this user.
            let after = signals.retry_after.filter(|_| busy).map(|_| Duration::ZERO);
            let (request_id, challenge) = (headers.request_id(), headers.challenge());
            return Tried::Refused { status, verdict, body, request_id, after, challenge };
        }
        permit.answered(Outcome::Answered, &signals);
        // The service names the size of a file; HTML without it is a gateway's page, not an answer.
        let file_size = headers.get("x-ms-file-size");
        if file_size.is_none() && headers.get("content-type").is_some_and(|kind| kind.starts_with("text/html")) {
            return Tried::Failed(Failure::Malformed, "an HTML page came instead of data".to_owned());
        }
        let json = headers.get("content-type").is_some_and(|kind| kind.contains("json"));
        let size = file_size.filter(|_| status == 200).and_then(|size| size.trim().parse().ok());
        let request_id = headers.request_id();
        let outcome = self.body(response, Arc::clone(make), Facts { again: begun, json, size }, progress, call).await;
        match outcome {
            Ok(output) => Tried::Done(Head { status, headers }, output),
            Err(BodyFault::Cancelled) => Tried::Fatal(RequestError::Cancelled),
            Err(BodyFault::Transport(text)) => Tried::Failed(Failure::Transient, text),
            Err(BodyFault::Intake(fault)) => match fault {
                IntakeFault::Stopped => Tried::Fatal(RequestError::SinkStopped),
                IntakeFault::Abandoned => Tried::Failed(Failure::Transient, "the body was cut".to_owned()),
                // Cut without the transport noticing: as likely to happen again as anything malformed.
                IntakeFault::Cut(text) | IntakeFault::Malformed(text) => Tried::Failed(Failure::Malformed, text),
                IntakeFault::TooLarge(limit) => Tried::Fatal(RequestError::Protocol {
                    what: outgoing.what.to_owned(),
                    detail: format!("the answer is larger than {limit} bytes"),
                }),
                // The status was sent before the service knew; treat the words as those of a server error.
                IntakeFault::Service(body) => {
                    let verdict = verdict(500, &body);
                    Tried::Refused { status, verdict, body, request_id, after: None, challenge: None }
                }
            },
        }
    }

    /// Streams a body to its intake. Returns only when the blocking thread is done with the sink, whatever happens.
    pub(crate) async fn body<I: Intake>(
        &self,
        mut response: reqwest::Response,
        make: Maker<I>,
        facts: Facts,
        progress: &mut Progress,
        call: &Call,
    ) -> Result<I::Output, BodyFault> {
        let encoding = response.headers().get("content-encoding").map(|value| value.as_bytes().to_ascii_lowercase());
        let gzip = match encoding.as_deref() {
            None | Some(b"" | b"identity") => false,
            Some(b"gzip" | b"x-gzip") => true,
            Some(_) => {
                return Err(BodyFault::Intake(IntakeFault::Malformed("the body has an unknown encoding".into())));
            }
        };
        let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
        let taking = tokio::task::spawn_blocking(move || take_in(receiver, gzip, facts.size, make(facts)));
        progress.begun = true;
        // Places are taken several at a time: when the far end is the slower one, the reactor then wakes once for a few
        // chunks instead of once for each.
        let mut places = None;
        let fault = loop {
            let chunk = tokio::time::timeout(self.config.idle_timeout, response.chunk());
            let piece = match unless_cancelled(call, chunk).await {
                Err(_) => break Some(BodyFault::Cancelled),
                Ok(Err(_)) => {
                    let seconds = self.config.idle_timeout.as_secs_f32();
                    break Some(BodyFault::Transport(format!("nothing came for {seconds} s in the middle of a body")));
                }
                Ok(Ok(Err(fault))) => break Some(BodyFault::Transport(describe(fault))),
                Ok(Ok(Ok(Some(bytes)))) => {
                    call.tally.bytes_received(bytes.len() as u64);
                    progress.received += bytes.len() as u64;
                    Piece::Bytes(bytes)
                }
                Ok(Ok(Ok(None))) => Piece::End,
            };
            let last = matches!(piece, Piece::End);
            let place = match places.as_mut().and_then(Iterator::next) {
                Some(place) => place,
                None => match unless_cancelled(call, sender.reserve_many(CHUNKS_AT_A_TIME)).await {
                    Err(_) => break Some(BodyFault::Cancelled),
                    // The intake ended early and will say why.
                    Ok(Err(_)) => break None,
                    Ok(Ok(mut more)) => {
                        let Some(first) = more.next() else { break None };
                        places = Some(more);
                        first
                    }
                },
            };
            place.send(piece);
            if last {
                break None;
            }
        };
        drop(places);
        drop(sender);
        drop(response);
        let taken = taking.await;
        match (fault, taken) {
            // What the sink or the service said outweighs how the connection ended.
            (_, Ok(Err(fault @ (IntakeFault::Stopped | IntakeFault::Service(_))))) => Err(BodyFault::Intake(fault)),
            (Some(fault), _) => Err(fault),
            (None, Ok(result)) => result.map_err(BodyFault::Intake),
            // The intake panicked, or the runtime is shutting down.
            (None, Err(_)) => Err(BodyFault::Intake(IntakeFault::Stopped)),
        }
    }
}

/// The request with the headers of every call.
pub(crate) fn request(outgoing: &Outgoing<'_>, token: &BearerToken) -> Result<reqwest::Request, RequestError> {
    let protocol = |detail: &str| RequestError::Protocol { what: outgoing.what.to_owned(), detail: detail.to_owned() };
    let method = if outgoing.body.is_some() { reqwest::Method::POST } else { reqwest::Method::GET };
    let mut request = reqwest::Request::new(method, outgoing.url.clone());
    let headers: &mut HeaderMap = request.headers_mut();
    // The headers of every call (`dataverse` protocol, section 1.2); what the caller adds replaces them.
    headers.insert("accept", HeaderValue::from_static("application/json"));
    headers.insert("accept-encoding", HeaderValue::from_static("gzip"));
    headers.insert("odata-version", HeaderValue::from_static("4.0"));
    headers.insert("odata-maxversion", HeaderValue::from_static("4.0"));
    headers.insert("if-none-match", HeaderValue::from_static("null"));
    if let Some(prefer) = outgoing.prefer {
        let value = HeaderValue::from_str(prefer).map_err(|_| protocol("a preference cannot be sent"))?;
        headers.insert("prefer", value);
    }
    for (name, value) in outgoing.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| protocol("a header cannot be sent"))?;
        let value = HeaderValue::from_str(value).map_err(|_| protocol("a header cannot be sent"))?;
        headers.insert(name, value);
    }
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.secret()))
        .map_err(|_| protocol("the token holds characters that a header cannot"))?;
    bearer.set_sensitive(true);
    headers.insert("authorization", bearer);
    if let Some(body) = &outgoing.body {
        headers.insert("content-type", HeaderValue::from_static("application/json; charset=utf-8"));
        *request.body_mut() = Some(body.clone().into());
    }
    Ok(request)
}

fn error_intake(_: Facts) -> BufferIntake {
    BufferIntake::new(ERROR_BODY_BYTES_MAX, AtLimit::Ignore, Facts::default())
}

/// Why a body did not arrive.
pub(crate) enum BodyFault {
    Cancelled,
    Transport(String),
    Intake(IntakeFault),
}

/// A transport error in words, without the URL: its query may hold values.
pub(crate) fn describe(fault: reqwest::Error) -> String {
    chain(&fault.without_url())
}
