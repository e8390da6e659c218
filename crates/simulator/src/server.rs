//! The HTTP side: sign-in, limits and faults around the answer.
//!
//! ```text
//! request ─▶ token? ─▶ limits ─▶ latency ─▶ fault instead? ─▶ answer ─▶ gzip ─▶ fault in the body?
//!              401        429                 5xx, 429                           cut, short, slow
//! ```
//!
//! Printing pages and compressing run on the blocking pool.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, Method, Request as HttpRequest, Response, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt as _;

use crate::access::Controls;
use crate::answer::{Answer, Refusal};
use crate::config::FaultKind;
use crate::dice::{mix, mix_text, named_guid};
use crate::edits::change_schema;
use crate::query::Prefer;
use crate::read::Reader;
use crate::route::{Headers, Request, Route, Verb, respond};
use crate::shared::{InFlight, Numbered, Shared};
use crate::write::{self, WriteContext};
use crate::{control, entra, erp, graph};

/// The largest upload in one request, and with it the largest body (dataverse 5.5).
const REQUEST_BYTES_MAX: usize = 128 << 20;
/// What of a body tells two requests apart.
const TELLING_BYTES_MAX: usize = 64 << 10;
/// Longest URL (dataverse 1.1).
const URL_LENGTH_MAX: usize = 32_768;
/// Smaller answers are not worth compressing.
const GZIP_BYTES_MIN: usize = 1_024;
/// A slow body comes in this many pieces, this far apart.
const SLOW_PIECES: usize = 20;
const SLOW_PAUSE: Duration = Duration::from_millis(25);

/// The application to serve.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(handle).with_state(shared)
}

async fn handle(Extract(shared): Extract<Arc<Shared>>, request: HttpRequest<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let Ok(body) = to_bytes(body, REQUEST_BYTES_MAX).await else {
        return send(Answer::empty(413), None);
    };
    if let Some(rest) = path.strip_prefix("/_simulator/") {
        return send(control::answer(&shared, parts.method == Method::POST, rest, &query, &body), None);
    }
    if let Some(rest) = path.strip_prefix("/entra/") {
        let (answer, fault) = entra::answer(&shared, &parts.method, rest, &query, &parts.headers, &body).await;
        return send(answer, fault);
    }
    if let Some(rest) = path.strip_prefix("/graph/") {
        let (answer, fault) = graph::answer(&shared, &parts.method, rest, &query, &parts.headers).await;
        return send(answer, fault);
    }
    if let Some(rest) = path.strip_prefix("/erp/") {
        return send(erp::answer(&shared, &parts.method, rest, &query, &parts.headers), None);
    }
    environment(shared, parts.method, &parts.headers, &path, &query, body).await
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn environment(
    shared: Arc<Shared>,
    method: Method,
    headers: &HeaderMap,
    path: &str,
    query: &str,
    body: Bytes,
) -> Response<Body> {
    let mut in_flight = InFlight::begin(&shared);
    let verb = Verb::parse(method.as_str());
    let gzip = shared.config.gzip && text(headers, "accept-encoding").is_some_and(|value| value.contains("gzip"));
    let link = if query.is_empty() { format!("{}{path}", shared.url) } else { format!("{}{path}?{query}", shared.url) };
    let prefer = Prefer::parse(headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok()));
    let request = Request {
        verb: verb.unwrap_or_default(),
        headers: Headers::new(headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))),
        path: Request::strip_path(path).unwrap_or_default(),
        query: query.to_owned(),
        prefer,
        range: text(headers, "range").map(str::to_owned),
        body,
        link,
    };
    let (route, table, kind) = {
        let database = shared.read();
        let route = request.route(&database);
        let (table, kind) = route.describe(&request);
        (route, table.map(|table| database.tables[table].def.name.clone()), kind)
    };
    let (numbered, user) = admit(&shared, headers, &mut in_flight, table.as_deref(), kind);
    let known = user.as_ref().ok().copied();
    let mut answer = match user {
        Err(answer) => answer,
        Ok(user) => {
            tokio::time::sleep(shared.config.latency).await;
            if verb.is_none() || Request::strip_path(path).is_none() {
                let text = format!("No HTTP resource was found that matches the request URI '{}'.", request.link);
                Refusal::new(404, "", text).into_answer()
            } else if request.link.len() > URL_LENGTH_MAX {
                Answer::empty(414)
            } else if let Some(instead) = numbered.fault.and_then(FaultKind::instead) {
                instead
            } else if numbered.fault == Some(FaultKind::CutBefore) {
                Answer::empty(200)
            } else {
                produce(&shared, request.clone(), route, user, numbered, &mut in_flight).await
            }
        }
    };
    let telling = &request.body[..request.body.len().min(TELLING_BYTES_MAX)];
    let served = mix_text(&request.link)
        ^ mix(mix_text(request.range.as_deref().unwrap_or_default()))
        ^ mix(mix_text(&String::from_utf8_lossy(telling)) ^ request.verb as u64);
    finish(&shared, &mut answer, known, numbered, served);
    // A thumbnail names no size: nobody could tell. Of the text of a note its row does.
    let note = answer.media_type == "text/plain" && request.link.contains("/$value");
    let telling = answer.media_type.starts_with("application/json")
        || answer.headers.iter().any(|(name, _)| matches!(*name, "x-ms-file-size" | "Content-Type"));
    if numbered.fault == Some(FaultKind::TruncatedJson) && (telling || note) {
        // Whole for HTTP, half for JSON; base64 that ends after a group of four looks whole.
        let half = answer.body.len() * 3 / 5;
        answer.body.truncate(if note { half / 4 * 4 } else { half });
    }
    let answer = compress(answer, gzip).await;
    shared.state().counter.stats.bytes_sent += answer.body.len() as u64;
    drop(in_flight);
    send(answer, numbered.fault)
}

/// Token, number and limits; the user's index or the answer that turns the request away.
fn admit(
    shared: &Shared,
    headers: &HeaderMap,
    in_flight: &mut InFlight,
    table: Option<&str>,
    kind: &'static str,
) -> (Numbered, Result<usize, Answer>) {
    let now = Instant::now();
    let mut guard = shared.state();
    let state = &mut *guard;
    let rows = table.filter(|_| matches!(kind, "page" | "delta"));
    let written = match kind {
        "batch" => Some("$batch"),
        "page" | "delta" | "row" | "count" | "file" | "metadata" | "other" => None,
        _ => table,
    };
    let (number, fault) = state.faults.choose(rows, written);
    let numbered = Numbered { number, fault };
    let counts = &mut state.counter.stats;
    *counts.by_kind.entry(kind.to_owned()).or_default() += 1;
    if let Some(table) = table {
        *counts.by_table.entry(table.to_owned()).or_default() += 1;
    }
    if text(headers, "cookie").is_some_and(|cookie| cookie.contains("ARRAffinity")) {
        counts.cookies_returned += 1;
    }
    if let Some(fault) = fault {
        counts.faults.push((number, fault));
    }
    if fault == Some(FaultKind::TokenRevoked) {
        state.authority.revoke_all();
    }
    let token = text(headers, "authorization").and_then(|value| value.strip_prefix("Bearer "));
    let caller = match state.authority.admit(token) {
        Ok(caller) => caller,
        Err(answer) => return (numbered, Err(answer)),
    };
    let user = caller.user;
    *state.counter.stats.by_client.entry(caller.client).or_default() += 1;
    if let Some(limits) = &state.limits
        && let Err(turned) = state.windows[user].admit(limits, now)
    {
        state.counter.stats.sent_while_blocked += u64::from(turned.was_blocked);
        return (numbered, Err(turned.refusal.into_answer()));
    }
    if state.limits.is_some() {
        in_flight.user = Some(user);
    }
    (numbered, Ok(user))
}

async fn produce(
    shared: &Arc<Shared>,
    request: Request,
    route: Route,
    user: usize,
    numbered: Numbered,
    in_flight: &mut InFlight,
) -> Answer {
    match numbered.fault {
        Some(FaultKind::SchemaChanged) => {
            change_schema(&mut shared.write(), shared.config.seed ^ numbered.number);
        }
        Some(FaultKind::LinksRejected) => shared.change_controls(|controls| controls.link_generation += 1),
        _ => {}
    }
    let shared = Arc::clone(shared);
    let made = tokio::task::spawn_blocking(move || {
        let (now, controls): (_, Arc<Controls>) = (shared.now(), Arc::clone(&shared.state().controls));
        if route.is_write(request.verb) {
            let mut database = shared.write();
            let mut context = WriteContext::new(&mut database, &shared, controls, now, user, numbered.fault);
            let answer = write::respond(&mut context, &route, &request);
            let tally = context.finish();
            let parts = tally.parts.max(1);
            shared.state().counter.stats.add_writes(tally);
            return (answer, parts);
        }
        let database = shared.read();
        let reader = Reader {
            database: &database,
            url: &shared.url,
            controls,
            now,
            page_size_max: shared.config.page_size_max,
            expired_status: shared.config.expired_token_status,
            user,
            fault: numbered.fault.and_then(FaultKind::page),
            own_link: &request.link,
        };
        (respond(&reader, &route, &request).unwrap_or_else(Refusal::into_answer), 1)
    });
    let (answer, parts) = made.await.unwrap_or_else(|error| {
        (Refusal::new(500, "0x80040216", format!("The simulator failed: {error}")).into_answer(), 1)
    });
    in_flight.parts = parts;
    answer
}

/// Headers of every answer of the environment, and the books.
fn finish(shared: &Shared, answer: &mut Answer, user: Option<usize>, numbered: Numbered, url: u64) {
    let request_id = named_guid(&format!("request {} {}", shared.config.seed, numbered.number)).to_string();
    let mut state = shared.state();
    answer.headers.extend(state.authority.date().map(|date| ("Date", date)));
    answer.headers.push(("OData-Version", "4.0".to_owned()));
    answer.headers.push(("x-ms-service-request-id", request_id.clone()));
    answer.headers.push(("REQ_ID", request_id));
    answer.headers.push((
        "Set-Cookie",
        format!("ARRAffinity={:016x}; domain=127.0.0.1; path=/; HttpOnly", mix(shared.config.seed)),
    ));
    if let Some(hint) = shared.config.dop_hint {
        answer.headers.push(("x-ms-dop-hint", hint.to_string()));
    }
    if let Some(limits) = state.limits.as_ref().filter(|limits| limits.headers)
        && let Some(user) = user
    {
        let (requests, time) = state.windows[user].remaining(limits);
        answer.headers.push(("x-ms-ratelimit-burst-remaining-xrm-requests", requests));
        answer.headers.push(("x-ms-ratelimit-time-remaining-xrm-requests", time));
    }
    let counter = &mut state.counter;
    *counter.stats.by_status.entry(answer.status).or_default() += 1;
    counter.stats.throttled += u64::from(answer.status == 429);
    counter.stats.unauthorized += u64::from(answer.status == 401);
    let spoilt = matches!(
        numbered.fault,
        Some(
            FaultKind::CutBody
                | FaultKind::CutBefore
                | FaultKind::CutAfter
                | FaultKind::TruncatedJson
                | FaultKind::HtmlSuccess
        )
    );
    if (200..300).contains(&answer.status) && !spoilt {
        counter.served(url);
    }
}

async fn compress(answer: Answer, gzip: bool) -> Answer {
    if !gzip || answer.body.len() < GZIP_BYTES_MIN || !answer.media_type.starts_with("application/json") {
        return answer;
    }
    let plain = answer.clone();
    let packed = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(answer.body.len() / 4), Compression::fast());
        encoder.write_all(&answer.body)?;
        let body = encoder.finish()?;
        Ok::<_, io::Error>(Answer { body, ..answer }.with("Content-Encoding", "gzip"))
    });
    match packed.await {
        Ok(Ok(answer)) => answer,
        _ => plain,
    }
}

fn send(answer: Answer, fault: Option<FaultKind>) -> Response<Body> {
    // A status without a body would be sent before anything could be cut.
    let cut = matches!(fault, Some(FaultKind::CutBefore | FaultKind::CutAfter));
    let mut response = Response::builder().status(if cut { 200 } else { answer.status });
    // A batch answers with a boundary of its own.
    let typed = answer.headers.iter().any(|(name, _)| *name == "Content-Type");
    if !answer.body.is_empty() && !typed {
        response = response.header(header::CONTENT_TYPE, answer.media_type);
    }
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    let length = answer.body.len();
    let body = Bytes::from(answer.body);
    let body = match fault {
        // Half of what the length promises, then nothing.
        Some(FaultKind::CutBody) if length > 0 => {
            response = response.header(header::CONTENT_LENGTH, length);
            let cut = Err(io::Error::new(io::ErrorKind::ConnectionReset, "cut by a fault"));
            // The pause lets the first half reach the client before the connection goes.
            let first = futures::stream::iter([Ok(body.slice(..length / 2))]);
            Body::from_stream(first.chain(futures::stream::once(async move {
                tokio::time::sleep(SLOW_PAUSE).await;
                cut
            })))
        }
        // An error before the first byte: the server gives the connection up without having said anything.
        Some(FaultKind::CutBefore | FaultKind::CutAfter) => {
            response = response.header(header::CONTENT_LENGTH, length.max(1));
            Body::from_stream(futures::stream::once(async {
                Err::<Bytes, _>(io::Error::new(io::ErrorKind::ConnectionReset, "cut by a fault"))
            }))
        }
        Some(FaultKind::SlowBody) if length > 0 => {
            let piece = length.div_ceil(SLOW_PIECES);
            let pieces: Vec<Bytes> =
                (0..length).step_by(piece).map(|start| body.slice(start..length.min(start + piece))).collect();
            Body::from_stream(futures::stream::iter(pieces).then(|piece| async move {
                tokio::time::sleep(SLOW_PAUSE).await;
                Ok::<_, io::Error>(piece)
            }))
        }
        _ => Body::from(body),
    };
    response.body(body).unwrap_or_else(|_| Response::new(Body::empty()))
}
