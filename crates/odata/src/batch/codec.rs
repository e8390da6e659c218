//! Bodies of `$batch` as plain functions: requests in, bytes out; bytes in, answers out (`dataverse` protocol, section
//! 6.11; RFC 2046 for the multipart frame, RFC 9112 for the lines inside).
//!
//! Writing is strict: every line ends with CRLF, the last one too, or the service says "Stream was not readable". Our
//! boundaries are fixed words, because a body with a line break in it is refused here: JSON never needs one, and without
//! line breaks no body can look like a boundary.
//!
//! Reading is lenient about line ends and about what is missing after a status line. It is strict about the end: a part
//! counts only when the boundary after it has come.

use std::ops::Range;

use bytes::Bytes;
use memchr::{memchr, memchr2, memmem};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::{Item, Part};
use crate::client::ReplyHeaders;
use crate::write::Method;

/// Boundary of our batches.
const BATCH: &str = "batch_dynavault";
/// Boundary of our change sets; a number follows.
const CHANGE_SET: &str = "changeset_dynavault";
/// Content type of a body in a part, as the service's own documentation prints it.
const ENTRY: &str = "application/json; type=entry";
/// Headers of one part that are read; the service sends about ten.
const HEADERS_MAX: usize = 100;
/// What the frame around a part takes at most, in bytes, without its path and headers.
pub(crate) const FRAME_BYTES: usize = 512;

/// Content type of our batches.
pub(crate) fn content_type() -> String {
    format!("multipart/mixed; boundary=\"{BATCH}\"")
}

/// Checks that an item can be sent as it is.
pub(crate) fn check(item: &Item) -> Result<(), String> {
    match item {
        Item::Part(part) => check_part(part),
        Item::ChangeSet(parts) if parts.is_empty() => Err("a change set is empty".to_owned()),
        Item::ChangeSet(parts) if parts.iter().any(|part| part.method == Method::Get) => {
            Err("a change set cannot read".to_owned())
        }
        Item::ChangeSet(parts) => parts.iter().try_for_each(check_part),
    }
}

fn check_part(part: &Part) -> Result<(), String> {
    if memchr2(b'\r', b'\n', &part.body).is_some() || part.body.starts_with(b"--") {
        return Err("a body in a batch holds a line break or begins like a boundary".to_owned());
    }
    let sendable = |(name, value): &(String, String)| {
        HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok()
    };
    if !part.headers.iter().all(sendable) {
        return Err("a header in a batch cannot be sent".to_owned());
    }
    if part.path.bytes().any(|byte| byte.is_ascii_control()) {
        return Err("a path in a batch holds control characters".to_owned());
    }
    Ok(())
}

/// The body of a batch. `target` makes of a path what stands in the request line; references such as `$1` are left alone.
pub(crate) fn encode<E>(items: &[&Item], target: impl Fn(&str) -> Result<String, E>) -> Result<Bytes, E> {
    let mut body = Vec::with_capacity(items.iter().map(|item| item.bytes()).sum());
    let mut sets = 0;
    for item in items {
        line(&mut body, &["--", BATCH]);
        match item {
            Item::Part(part) => encode_part(&mut body, part, None, &target)?,
            Item::ChangeSet(parts) => {
                sets += 1;
                let boundary = format!("{CHANGE_SET}_{sets}");
                line(&mut body, &["Content-Type: multipart/mixed; boundary=\"", &boundary, "\""]);
                line(&mut body, &[]);
                for (part, number) in parts.iter().zip(1..) {
                    line(&mut body, &["--", &boundary]);
                    encode_part(&mut body, part, Some(number), &target)?;
                }
                line(&mut body, &["--", &boundary, "--"]);
            }
        }
    }
    line(&mut body, &["--", BATCH, "--"]);
    Ok(Bytes::from(body))
}

fn line(body: &mut Vec<u8>, words: &[&str]) {
    for word in words {
        body.extend_from_slice(word.as_bytes());
    }
    body.extend_from_slice(b"\r\n");
}

fn encode_part<E>(
    body: &mut Vec<u8>,
    part: &Part,
    content_id: Option<u32>,
    target: impl Fn(&str) -> Result<String, E>,
) -> Result<(), E> {
    line(body, &["Content-Type: application/http"]);
    line(body, &["Content-Transfer-Encoding: binary"]);
    if let Some(id) = content_id {
        line(body, &["Content-ID: ", &id.to_string()]);
    }
    line(body, &[]);
    let target = if part.path.starts_with('$') { part.path.clone() } else { target(&part.path)? };
    line(body, &[part.method.name(), " ", &target, " HTTP/1.1"]);
    let given = |wanted: &str| part.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    if !part.body.is_empty() && !given("content-type") {
        line(body, &["Content-Type: ", ENTRY]);
    }
    if part.method == Method::Get {
        for (name, value) in [("Accept", "application/json"), ("If-None-Match", "null")] {
            if !given(name) {
                line(body, &[name, ": ", value]);
            }
        }
    }
    for (name, value) in &part.headers {
        line(body, &[name, ": ", value]);
    }
    line(body, &[]);
    body.extend_from_slice(&part.body);
    line(body, &[]);
    Ok(())
}

/// One answer inside a batch.
#[derive(Debug, Clone)]
pub(crate) struct DecodedPart {
    pub(crate) status: u16,
    pub(crate) headers: ReplyHeaders,
    pub(crate) body: Bytes,
    pub(crate) content_id: Option<u32>,
}

/// The answer to one item.
#[derive(Debug, Clone)]
pub(crate) enum DecodedItem {
    Part(DecodedPart),
    /// The answers of a change set that was carried out; `None` where the set was cut.
    ChangeSet(Option<Vec<DecodedPart>>),
}

/// A batch's answer as far as it came.
#[derive(Debug, Clone)]
pub(crate) struct Decoded {
    pub(crate) items: Vec<DecodedItem>,
    /// The closing boundary came.
    pub(crate) closed: bool,
}

/// Reads the answer to a batch.
pub(crate) fn decode(content_type: &str, body: &Bytes) -> Result<Decoded, String> {
    let boundary = boundary(content_type).ok_or("the answer names no boundary")?;
    let (ranges, closed) = split(body, &boundary);
    let items = ranges.into_iter().map(|range| decode_item(&body.slice(range))).collect::<Result<_, _>>()?;
    Ok(Decoded { items, closed })
}

fn decode_item(item: &Bytes) -> Result<DecodedItem, String> {
    let (headers, rest) = headers(item, 0);
    let kind = headers.get("content-type").unwrap_or_default().to_owned();
    if !kind.trim_start().to_ascii_lowercase().starts_with("multipart/") {
        return Ok(DecodedItem::Part(decode_part(item)?));
    }
    let boundary = boundary(&kind).ok_or("the answer to a change set names no boundary")?;
    let inner = item.slice(rest..);
    let (ranges, closed) = split(&inner, &boundary);
    let parts = ranges.into_iter().map(|range| decode_part(&inner.slice(range))).collect::<Result<_, _>>()?;
    Ok(DecodedItem::ChangeSet(Some(parts).filter(|_| closed)))
}

fn decode_part(part: &Bytes) -> Result<DecodedPart, String> {
    // A part may come without headers, and then perhaps without the empty line after them too.
    let bare = part.iter().position(|byte| !byte.is_ascii_whitespace()).filter(|at| part[*at..].starts_with(b"HTTP/"));
    let (outer, rest) = bare.map_or_else(|| headers(part, 0), |at| (ReplyHeaders::default(), at));
    let (status_line, rest) = line_at(part, rest);
    let status_line = String::from_utf8_lossy(status_line);
    let mut words = status_line.split_ascii_whitespace();
    let status = words
        .next()
        .filter(|version| version.starts_with("HTTP/"))
        .and_then(|_| words.next()?.parse().ok())
        .filter(|status| (100..600).contains(status))
        .ok_or("a part of the answer has no status line")?;
    let (headers, rest) = headers(part, rest);
    let content_id =
        outer.get("content-id").or_else(|| headers.get("content-id")).and_then(|id| id.trim().parse().ok());
    let mut body = part.slice(rest.min(part.len())..);
    while body.last().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
        body.truncate(body.len() - 1);
    }
    Ok(DecodedPart { status, headers, body, content_id })
}

/// The boundary that a content type names.
fn boundary(content_type: &str) -> Option<String> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case("boundary") && !value.is_empty()).then(|| value.to_owned())
    })
}

/// The parts between boundaries, without the line end before the next one, and whether the closing boundary came. What
/// follows the last boundary is no part.
fn split(body: &[u8], boundary: &str) -> (Vec<Range<usize>>, bool) {
    let delimiter = format!("--{boundary}");
    let mut parts = Vec::new();
    let mut start = None;
    for at in memmem::find_iter(body, &delimiter) {
        if at > 0 && body[at - 1] != b'\n' {
            continue;
        }
        let rest = &body[at + delimiter.len()..];
        let closing = rest.starts_with(b"--");
        let (tail, next) = line_at(body, at + delimiter.len());
        let blank = tail.iter().all(|byte| matches!(byte, b' ' | b'\t')) && body[next - 1] == b'\n';
        if !closing && !blank {
            // Another boundary that begins like ours, or one that is cut.
            continue;
        }
        if let Some(start) = start {
            let mut end: usize = at;
            for byte in [b'\n', b'\r'] {
                if end > start && body[end - 1] == byte {
                    end -= 1;
                }
            }
            parts.push(start..end);
        }
        if closing {
            return (parts, true);
        }
        start = Some(next);
    }
    (parts, false)
}

/// The line at `at` without its end, and where the next one begins.
fn line_at(bytes: &[u8], at: usize) -> (&[u8], usize) {
    let rest = bytes.get(at..).unwrap_or_default();
    let (line, next) = match memchr(b'\n', rest) {
        Some(end) => (&rest[..end], at + end + 1),
        None => (rest, at + rest.len()),
    };
    (line.strip_suffix(b"\r").unwrap_or(line), next)
}

/// The headers from `at` to the next empty line, and where what follows begins.
fn headers(bytes: &[u8], mut at: usize) -> (ReplyHeaders, usize) {
    let mut headers = HeaderMap::new();
    while at < bytes.len() {
        let (line, next) = line_at(bytes, at);
        at = next;
        if line.is_empty() {
            break;
        }
        let Some(colon) = memchr(b':', line) else { continue };
        let name = HeaderName::from_bytes(line[..colon].trim_ascii());
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value), true) = (name, value, headers.len() < HEADERS_MAX) {
            headers.append(name, value);
        }
    }
    (ReplyHeaders::new(headers), at)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn part(method: Method, path: &str, body: &str) -> Part {
        Part { method, path: path.to_owned(), headers: Vec::new(), body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn encoded(items: &[Item]) -> String {
        let items: Vec<&Item> = items.iter().collect();
        let body = encode::<Infallible>(&items, |path| Ok(format!("/api/data/v9.2/{path}"))).unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[test]
    fn a_batch_is_written_as_the_service_documents_it() {
        let mut first = part(Method::Patch, "accounts(a1)", r#"{"name":"A"}"#);
        first.headers.push(("If-None-Match".to_owned(), "*".to_owned()));
        let items = [
            Item::Part(first),
            Item::ChangeSet(vec![
                part(Method::Post, "contacts", r#"{"lastname":"B"}"#),
                part(Method::Patch, "$1", r#"{"firstname":"C"}"#),
            ]),
            Item::Part(part(Method::Get, "accounts(a1)", "")),
            Item::Part(part(Method::Delete, "accounts(a2)", "")),
        ];
        let expected = r#"--batch_dynavault
Content-Type: application/http
Content-Transfer-Encoding: binary

PATCH /api/data/v9.2/accounts(a1) HTTP/1.1
Content-Type: application/json; type=entry
If-None-Match: *

{"name":"A"}
--batch_dynavault
Content-Type: multipart/mixed; boundary="changeset_dynavault_1"

--changeset_dynavault_1
Content-Type: application/http
Content-Transfer-Encoding: binary
Content-ID: 1

POST /api/data/v9.2/contacts HTTP/1.1
Content-Type: application/json; type=entry

{"lastname":"B"}
--changeset_dynavault_1
Content-Type: application/http
Content-Transfer-Encoding: binary
Content-ID: 2

PATCH $1 HTTP/1.1
Content-Type: application/json; type=entry

{"firstname":"C"}
--changeset_dynavault_1--
--batch_dynavault
Content-Type: application/http
Content-Transfer-Encoding: binary

GET /api/data/v9.2/accounts(a1) HTTP/1.1
Accept: application/json
If-None-Match: null


--batch_dynavault
Content-Type: application/http
Content-Transfer-Encoding: binary

DELETE /api/data/v9.2/accounts(a2) HTTP/1.1


--batch_dynavault--
"#;
        assert_eq!(encoded(&items), expected.replace('\n', "\r\n"));
    }

    #[test]
    fn what_could_break_the_frame_is_refused() {
        let with_header = |name: &str, value: &str| {
            let mut part = part(Method::Patch, "x", "{}");
            part.headers.push((name.to_owned(), value.to_owned()));
            Item::Part(part)
        };
        for item in [
            Item::Part(part(Method::Patch, "x", "{\n}")),
            Item::Part(part(Method::Patch, "x", "--batch_dynavault")),
            Item::Part(part(Method::Patch, "x HTTP/1.1\r\nIf-Match: *", "{}")),
            with_header("If-Match", "*\r\nOther: 1"),
            with_header("a b", "1"),
            Item::ChangeSet(Vec::new()),
            Item::ChangeSet(vec![part(Method::Get, "x", "")]),
        ] {
            assert!(check(&item).is_err(), "{item:?}");
        }
        assert!(check(&with_header("If-Match", "W/\"1\"")).is_ok());
    }

    #[test]
    fn answers_with_and_without_headers_and_line_ends_of_both_kinds_are_read() {
        let text = "--batchresponse_9
Content-Type: application/http
Content-Transfer-Encoding: binary

HTTP/1.1 204 No Content
OData-Version: 4.0
Location: https://o/api/data/v9.2/accounts(a1)
OData-EntityId: https://o/api/data/v9.2/accounts(a1)


--batchresponse_9
Content-Type: multipart/mixed; boundary=changesetresponse_91

--changesetresponse_91
Content-Type: application/http
Content-Transfer-Encoding: binary
Content-ID: 2

HTTP/1.1 204 No Content
--changesetresponse_91
Content-Type: application/http
Content-ID: 1

HTTP/1.1 201 Created
Content-Type: application/json

{\"text\":\"--batchresponse_9\"}
--changesetresponse_91--
--batchresponse_9
Content-Type: application/http

HTTP/1.1 400 Bad Request
REQ_ID: r7

{\"error\":{\"code\":\"0x80040237\",\"message\":\"no\"}}
--batchresponse_9--
";
        for body in [text.to_owned(), text.replace('\n', "\r\n")] {
            let decoded = decode("multipart/mixed; boundary=\"batchresponse_9\"", &Bytes::from(body)).unwrap();
            assert!(decoded.closed);
            let [DecodedItem::Part(first), DecodedItem::ChangeSet(Some(set)), DecodedItem::Part(last)] =
                &decoded.items[..]
            else {
                panic!("{decoded:?}")
            };
            assert_eq!((first.status, first.body.len()), (204, 0));
            assert_eq!(first.headers.get("odata-entityid"), Some("https://o/api/data/v9.2/accounts(a1)"));
            let ids: Vec<_> = set.iter().map(|part| (part.content_id, part.status)).collect();
            assert_eq!(ids, [(Some(2), 204), (Some(1), 201)]);
            assert_eq!(set[1].body.as_ref(), b"{\"text\":\"--batchresponse_9\"}");
            assert_eq!((last.status, last.headers.request_id().as_deref()), (400, Some("r7")));
        }
    }

    fn status(item: &DecodedItem) -> u16 {
        match item {
            DecodedItem::Part(part) => part.status,
            DecodedItem::ChangeSet(_) => 0,
        }
    }

    #[test]
    fn what_was_cut_and_what_has_no_headers() {
        let whole = "--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\r\n--b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\r\n--b--\r\n";
        let kind = "multipart/mixed;boundary=b";
        let of = |length: usize| decode(kind, &Bytes::copy_from_slice(&whole.as_bytes()[..length])).unwrap();
        assert_eq!((of(whole.len()).items.len(), of(whole.len()).closed), (2, true));
        assert_eq!((of(whole.len() - 2).items.len(), of(whole.len() - 2).closed), (2, true));
        for cut in 3..9 {
            assert_eq!((of(whole.len() - cut).items.len(), of(whole.len() - cut).closed), (1, false), "{cut}");
        }
        let bare = Bytes::from_static(
            b"--b\r\nHTTP/1.1 204 No Content\r\nOData-Version: 4.0\r\n\r\n--b\r\n\r\n\r\nHTTP/1.1 201 Created\r\n--b--",
        );
        let statuses: Vec<u16> = decode(kind, &bare).unwrap().items.iter().map(status).collect();
        assert_eq!(statuses, [204, 201]);
        assert!(decode("application/json", &Bytes::new()).is_err());
        assert!(decode(kind, &Bytes::from_static(b"--b\r\n\r\nno status\r\n--b--\r\n")).is_err());
    }

    fn any_part(methods: &'static [Method]) -> impl Strategy<Value = Part> {
        let header = ("[A-Za-z][A-Za-z-]{0,8}", "[!-~]{1,12}");
        (prop::sample::select(methods), "[a-z]{1,8}\\([0-9a-f-]{1,9}\\)", vec(header, 0..3), "(\\PC{0,40})").prop_map(
            |(method, path, headers, text)| {
                let body = if method == Method::Delete || method == Method::Get {
                    String::new()
                } else {
                    serde_json::json!({"text": text, "line": "a\r\n--batch_dynavault\r\n"}).to_string()
                };
                Part { method, path, headers, body: Bytes::from(body) }
            },
        )
    }

    fn any_item() -> impl Strategy<Value = Item> {
        const WRITES: &[Method] = &[Method::Post, Method::Patch, Method::Put, Method::Delete];
        const ALL: &[Method] = &[Method::Get, Method::Post, Method::Patch, Method::Put, Method::Delete];
        prop_oneof![any_part(ALL).prop_map(Item::Part), vec(any_part(WRITES), 1..5).prop_map(Item::ChangeSet),]
    }

    /// The request lines and bodies of a batch, found by splitting at boundaries only.
    fn found(body: &Bytes) -> Vec<(String, Bytes)> {
        let (ranges, closed) = split(body, BATCH);
        assert!(closed);
        let mut found = Vec::new();
        let mut note = |part: Bytes| {
            let (_, rest) = headers(&part, 0);
            let (line, rest) = line_at(&part, rest);
            let line = String::from_utf8(line.to_vec()).unwrap();
            let (_, rest) = headers(&part, rest);
            found.push((line, part.slice(rest..)));
        };
        for item in ranges.into_iter().map(|range| body.slice(range)) {
            let (outer, rest) = headers(&item, 0);
            match boundary(outer.get("content-type").unwrap()) {
                None => note(item),
                Some(inner) => {
                    let set = item.slice(rest..);
                    let (ranges, closed) = split(&set, &inner);
                    assert!(closed);
                    for range in ranges {
                        note(set.slice(range));
                    }
                }
            }
        }
        found
    }

    fn print(status: u16, body: &str, headers: bool) -> String {
        let more = if headers { "OData-Version: 4.0\r\nX-Long: a:b\r\n" } else { "" };
        format!("Content-Type: application/http\r\n\r\nHTTP/1.1 {status} X\r\n{more}\r\n{body}\r\n")
    }

    proptest! {
        #[test]
        fn every_batch_ends_its_lines_with_crlf_and_splits_into_what_went_in(items in vec(any_item(), 1..20)) {
            for item in &items {
                prop_assert!(check(item).is_ok());
            }
            let references: Vec<&Item> = items.iter().collect();
            let body = encode::<Infallible>(&references, |path| Ok(path.to_owned())).unwrap();
            for (at, byte) in body.iter().enumerate() {
                if *byte == b'\n' { prop_assert_eq!(body[at - 1], b'\r'); }
                if *byte == b'\r' { prop_assert_eq!(body[at + 1], b'\n'); }
            }
            prop_assert!(body.ends_with(b"--\r\n"));
            prop_assert!(body.len() <= items.iter().map(Item::bytes).sum::<usize>() + FRAME_BYTES);
            let parts: Vec<&Part> = items.iter().flat_map(Item::parts).collect();
            let found = found(&body);
            prop_assert_eq!(found.len(), parts.len());
            for ((line, bytes), part) in found.iter().zip(parts) {
                prop_assert_eq!(line, &format!("{} {} HTTP/1.1", part.method.name(), part.path));
                prop_assert_eq!(bytes, &part.body);
            }
        }

        #[test]
        fn answers_come_out_as_they_were_printed(
            parts in vec((200_u16..600, "\\{\"a\":\"[ -!#-\\[\\]-~]{0,30}\"\\}|", any::<bool>()), 0..12),
            sets in vec(any::<bool>(), 12),
        ) {
            let mut text = String::new();
            for ((status, body, headers), set) in parts.iter().zip(&sets) {
                let part = print(*status, body, *headers);
                text += "--br\r\n";
                let nested = "Content-Type: multipart/mixed; boundary=cr\r\n\r\n--cr\r\n";
                let pieces = if *set { vec![nested, &part, "--cr\r\n", &part, "--cr--\r\n"] } else { vec![&*part] };
                text.extend(pieces);
            }
            text += "--br--\r\n";
            let decoded = decode("multipart/mixed; boundary=br", &Bytes::from(text)).unwrap();
            prop_assert!(decoded.closed);
            prop_assert_eq!(decoded.items.len(), parts.len());
            for (item, (status, body, _)) in decoded.items.iter().zip(&parts) {
                let got = match item {
                    DecodedItem::Part(part) => std::slice::from_ref(part),
                    DecodedItem::ChangeSet(set) => set.as_deref().unwrap(),
                };
                for part in got {
                    prop_assert_eq!((part.status, part.body.as_ref()), (*status, body.as_bytes()));
                }
            }
        }

        #[test]
        fn no_bytes_bring_the_reader_down(bytes in vec(prop_oneof![Just(b'-'), Just(b'b'), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..300)) {
            let body = Bytes::from([b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n".as_slice(), &bytes].concat());
            if let Ok(decoded) = decode("multipart/mixed; boundary=b", &body) {
                prop_assert!(decoded.items.len() <= 301);
            }
        }
    }
}
