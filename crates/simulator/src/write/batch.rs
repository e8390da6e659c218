//! Many requests in one (dataverse 6.11).
//!
//! Parts run in order. A change set is one transaction; everything else stands by itself, and stays done when
//! a later part fails. Without `odata.continue-on-error` the batch ends at the first failure, whose status
//! the whole answer then has.

use crate::answer::{Answer, Refusal};
use crate::config::FaultKind;
use crate::dice::named_guid;
use crate::query::Prefer;
use crate::route::{Request, Route, Verb};

use super::bulk::{has_failed, preferences};
use super::multipart::{self, Operation, Part, Writer};
use super::{WriteContext, operation};

/// Most operations in one batch.
const OPERATIONS_MAX: usize = 1_000;
/// Longest URL of a part (dataverse 1.1).
const URL_LENGTH_MAX: usize = 65_536;

/// `POST $batch`.
pub(super) fn respond(context: &mut WriteContext<'_>, request: &Request) -> Answer {
    run(context, request).unwrap_or_else(Refusal::into_answer)
}

fn run(context: &mut WriteContext<'_>, request: &Request) -> Result<Answer, Refusal> {
    if request.verb != Verb::Post {
        return Err(Refusal::new(404, "", "No HTTP resource was found that matches the request URI."));
    }
    let content_type = request.headers.get("content-type").unwrap_or_default();
    let boundary = multipart::boundary(content_type).ok_or_else(|| {
        Refusal::new(400, "0x80048d19", "The content type of a batch is multipart/mixed with a boundary.")
    })?;
    let parts = multipart::parse(&request.body, &boundary)?;
    let count: usize = parts
        .iter()
        .map(|part| match part {
            Part::Single(_) => 1,
            Part::ChangeSet(operations) => operations.len(),
        })
        .sum();
    if count > OPERATIONS_MAX {
        return Err(Refusal::new(
            400,
            "0x80060888",
            format!("The number of operations in a batch exceeds the limit of {OPERATIONS_MAX}."),
        ));
    }
    context.tally.parts += count as u32;
    let name = |kind: &str, context: &WriteContext<'_>| {
        format!("{kind}_{}", named_guid(&format!("{kind} {} {}", context.shared.config.seed, context.database.version)))
    };
    let mut writer = Writer::new(name("batchresponse", context));
    let mut status = 200;
    // The fault: a part in the middle is turned away.
    let throttled = (context.fault == Some(FaultKind::ThrottledPart)).then_some(parts.len() / 2);
    for (index, part) in parts.iter().enumerate() {
        if throttled == Some(index) {
            let answer = throttled_part();
            writer.add(&answer, None);
            status = answer.status;
        } else {
            match part {
                Part::Single(part) => {
                    let answer = single(context, part)?;
                    if has_failed(&answer) {
                        status = answer.status;
                    }
                    writer.add(&answer, part.content_id.as_deref());
                }
                Part::ChangeSet(part) => {
                    let inner = Writer::new(name("changesetresponse", context));
                    match change_set(context, part, inner) {
                        Ok(inner) => writer.nest(inner),
                        Err(refusal) if refusal.plain => return Err(refusal),
                        Err(refusal) => {
                            // One part stands for the whole set.
                            status = refusal.status;
                            writer.add(&failure(context, refusal), None);
                        }
                    }
                }
            }
        }
        if status >= 400 && !request.prefer.continue_on_error {
            break;
        }
    }
    Ok(writer.finish(if request.prefer.continue_on_error { 200 } else { status }))
}

fn throttled_part() -> Answer {
    let text = "Number of requests exceeded the limit of 6000 over time window of 300 seconds.";
    Refusal::new(429, "0x80072322", text).into_answer().with("Retry-After", "1")
}

fn failure(context: &WriteContext<'_>, refusal: Refusal) -> Answer {
    let id = named_guid(&format!("part {} {}", context.shared.config.seed, context.database.version));
    refusal.into_answer().with("REQ_ID", id.to_string())
}

/// The request a part stands for, with its route; the headers of the batch do not reach it (dataverse 6.10).
fn request_of(context: &WriteContext<'_>, part: &Operation) -> Result<(Request, Route, Prefer), Refusal> {
    let url = context.expand(&part.url)?;
    if url.len() > URL_LENGTH_MAX {
        return Err(Refusal::new(414, "", "The URL of the part is too long."));
    }
    let base = &context.shared.url;
    let path = url.strip_prefix(base.as_str()).unwrap_or(&url);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("/api/data/v9.2/{path}") };
    let path = Request::strip_path(&whole).ok_or_else(|| {
        Refusal::new(404, "", format!("No HTTP resource was found that matches the request URI '{url}'."))
    })?;
    let prefer = preferences(&part.headers);
    let request = Request {
        verb: part.verb,
        headers: part.headers.clone(),
        path,
        query: query.to_owned(),
        prefer: prefer.clone(),
        range: part.headers.get("range").map(str::to_owned),
        body: part.body.clone(),
        link: format!("{base}{whole}?{query}").trim_end_matches('?').to_owned(),
    };
    let route = request.route(context.database);
    if matches!(route, Route::Batch) {
        return Err(Refusal::new(400, "0x80048d19", "A batch cannot hold another batch."));
    }
    Ok((request, route, prefer))
}

/// A part by itself. An error here ends the whole batch.
fn single(context: &mut WriteContext<'_>, part: &Operation) -> Result<Answer, Refusal> {
    let (result, prefer) = match request_of(context, part) {
        Err(refusal) => (Err(refusal), Prefer::default()),
        Ok((request, route, prefer)) => (operation(context, &route, &request), prefer),
    };
    match result {
        Err(refusal) if refusal.plain => Err(refusal),
        Err(refusal) => Ok(failure(context, refusal.for_client(&prefer))),
        Ok(answer) => Ok(answer),
    }
}

/// A change set: all or nothing.
fn change_set(context: &mut WriteContext<'_>, parts: &[Operation], mut writer: Writer) -> Result<Writer, Refusal> {
    context.references.clear();
    let result = context.transaction(|context| {
        for part in parts {
            if part.verb == Verb::Get {
                return Err(Refusal::new(400, "0x80048d19", "A change set holds no GET."));
            }
            let id = part
                .content_id
                .as_deref()
                .ok_or_else(|| Refusal::new(400, "0x80048d19", "A part of a change set has no Content-ID."))?;
            let (request, route, prefer) = request_of(context, part)?;
            let answer = operation(context, &route, &request).map_err(|refusal| refusal.for_client(&prefer))?;
            // Elastic rows are not atomic, and their partial answers not refusals (dataverse 6.11).
            let row = answer.headers.iter().find(|(name, _)| *name == "OData-EntityId");
            if let Some((_, url)) = row {
                context.references.insert(id.to_owned(), url.clone());
            }
            writer.add(&answer, Some(id));
        }
        Ok(())
    });
    context.references.clear();
    result.map(|()| writer)
}
