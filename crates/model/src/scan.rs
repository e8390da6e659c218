//! The scanner that finds the members of a row without building a tree.
//!
//! The scanner is the innermost loop of a backup: it finds in one pass where an object ends, where its top-level
//! members are, and that it is valid JSON. Values stay bytes. What it accepts it accepts exactly: numbers and literals
//! are checked against the grammar, escapes are checked, control characters inside strings and invalid UTF-8 are
//! refused, nested values are checked by `serde_json`.
//!
//! A [`crate::Row`] has no white space between its tokens, so it holds no line breaks and can be hashed as it stands; a row that
//! arrives with white space goes through [`minify`] first, which drops it and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

use memchr::memchr2;

/// Where a top-level member of a row is: byte offsets into the row. The key is without its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// First byte of the key, after the quote.
    pub key_start: u32,
    /// End of the key, at the quote.
    pub key_end: u32,
    /// First byte of the value.
    pub value_start: u32,
    /// End of the value.
    pub value_end: u32,
    /// Number of the name among those the [`Scanner`] knows; equal numbers mean equal names. [`Member::UNNUMBERED`] if
    /// it was not scanned by one.
    pub name: u32,
}

impl Member {
    /// The name has no number.
    pub const UNNUMBERED: u32 = u32::MAX;
}

/// What the scanner found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// A whole object.
    Complete {
        /// Its length in bytes.
        length: usize,
        /// Whether there is white space between tokens.
        spaced: bool,
    },
    /// The bytes end inside the object.
    Incomplete,
}

/// The bytes are not a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed JSON at byte {at}: {what}")]
pub struct Malformed {
    /// Offset from the start of the object.
    pub at: usize,
    /// What was wrong; never contains a value.
    pub what: &'static str,
}

/// Deepest nesting accepted inside a value; the limit of `serde_json`, which checks nested values.
const DEPTH_MAX: usize = 127;

/// Most names a [`Scanner`] remembers; rows of one table have a few hundred at most.
const NAMES_MAX: usize = 2048;
/// Bytes of names a [`Scanner`] remembers.
const NAMES_BYTES_MAX: usize = 1 << 20;
/// How far a [`Scanner`] looks ahead for a name when a row leaves some out.
const NAMES_AHEAD: usize = 6;

/// Scans objects that mostly have the same members in the same order: a name that is the expected one is recognised by
/// one comparison, and not searched for its end.
#[derive(Debug)]
pub struct Scanner {
    /// Names with their closing quotes, one after the other: what is compared lies together.
    text: Vec<u8>,
    /// Where each name is and its number, in the order last seen.
    names: Vec<KnownName>,
    /// Place of the name expected next.
    next: usize,
    /// Tells this scanner's numbers from those of another.
    serial: u64,
}

#[derive(Debug, Clone, Copy)]
struct KnownName {
    start: u32,
    length: u32,
    number: u32,
}

impl Default for Scanner {
    fn default() -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Self { text: Vec::new(), names: Vec::new(), next: 0, serial: SERIAL.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Scanner {
    /// Like [`scan`], with what earlier objects taught.
    pub fn scan(&mut self, bytes: &[u8], members: &mut Vec<Member>) -> Result<Scan, Malformed> {
        self.next = 0;
        scan_with(bytes, members, Some(self))
    }

    /// Tells this scanner's numbers of names from those of another; for [`crate::Row::numbered`].
    pub fn serial(&self) -> u64 {
        self.serial
    }

    fn text_of(&self, name: KnownName) -> &[u8] {
        &self.text[name.start as usize..(name.start + name.length) as usize]
    }

    /// Length and number of the name at the start of `bytes`, if it is the expected one.
    #[inline]
    fn expected(&mut self, bytes: &[u8]) -> Option<(usize, u32)> {
        let name = *self.names.get(self.next)?;
        if !bytes.starts_with(self.text_of(name)) {
            return None;
        }
        self.next += 1;
        Some((name.length as usize - 1, name.number))
    }

    /// Learns from a name (with its closing quote) that was not the expected one; gives its number.
    #[cold]
    fn learn(&mut self, name: &[u8]) -> u32 {
        let ahead = self.names.iter().skip(self.next).take(NAMES_AHEAD).position(|known| self.text_of(*known) == name);
        if let Some(distance) = ahead {
            self.next += distance + 1;
            return self.names[self.next - 1].number;
        }
        if self.names.len() >= NAMES_MAX || self.text.len() + name.len() > NAMES_BYTES_MAX {
            self.next += 1;
            return Member::UNNUMBERED;
        }
        // A name out of its place is known already; a second entry for the new place shares its text and number.
        let known = self.names.iter().copied().find(|known| self.text_of(*known) == name);
        let entry = known.unwrap_or_else(|| {
            let start = self.text.len() as u32;
            self.text.extend_from_slice(name);
            KnownName { start, length: name.len() as u32, number: self.names.len() as u32 }
        });
        let place = self.next.min(self.names.len());
        self.names.insert(place, entry);
        self.next = place + 1;
        entry.number
    }
}

/// Scans the JSON object at the start of `bytes`, replacing `members` by its top-level members.
///
/// After [`Scan::Incomplete`] the contents of `members` are meaningless.
pub fn scan(bytes: &[u8], members: &mut Vec<Member>) -> Result<Scan, Malformed> {
    scan_with(bytes, members, None)
}

#[inline]
fn scan_with(bytes: &[u8], members: &mut Vec<Member>, mut known: Option<&mut Scanner>) -> Result<Scan, Malformed> {
    members.clear();
    let mut spaced = false;
    let mut at = 0;
    macro_rules! next {
        () => {{
            match bytes.get(at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => {
                    spaced = true;
                    at = skip_space(bytes, at);
                    match bytes.get(at) {
                        Some(byte) => *byte,
                        None => return Ok(Scan::Incomplete),
                    }
                }
                Some(byte) => *byte,
                None => return Ok(Scan::Incomplete),
            }
        }};
    }
    if bytes.is_empty() {
        return Ok(Scan::Incomplete);
    }
    if bytes[0] != b'{' {
        return Err(Malformed { at: 0, what: "a row is not an object" });
    }
    at += 1;
    if next!() == b'}' {
        return finish(bytes, at + 1, spaced);
    }
    loop {
        if next!() != b'"' {
            return Err(Malformed { at, what: "a member name was expected" });
        }
        let key_start = at + 1;
        let expected = known.as_mut().and_then(|known| known.expected(&bytes[key_start..]));
        let (key_end, name) = if let Some((length, number)) = expected {
            (key_start + length, number)
        } else {
            let Some(end) = string_end(bytes, key_start)? else { return Ok(Scan::Incomplete) };
            let number = known.as_mut().map(|known| known.learn(&bytes[key_start..=end]));
            (end, number.unwrap_or(Member::UNNUMBERED))
        };
        at = key_end + 1;
        if next!() != b':' {
            return Err(Malformed { at, what: "a colon was expected" });
        }
        at += 1;
        let first = next!();
        let value_start = at;
        at = match first {
            b'"' => match string_end(bytes, at + 1)? {
                Some(end) => end + 1,
                None => return Ok(Scan::Incomplete),
            },
            b'{' | b'[' => match nested_end(bytes, at)? {
                Some(end) => end,
                None => return Ok(Scan::Incomplete),
            },
            _ => match scalar_end(bytes, at)? {
                Some(end) => end,
                None => return Ok(Scan::Incomplete),
            },
        };
        members.push(Member {
            key_start: key_start as u32,
            key_end: key_end as u32,
            value_start: value_start as u32,
            value_end: at as u32,
            name,
        });
        match next!() {
            b',' => at += 1,
            b'}' => return finish(bytes, at + 1, spaced),
            _ => return Err(Malformed { at, what: "a comma or the end of the object was expected" }),
        }
    }
}

/// Checks that need the whole object: UTF-8, and no control character but white space between tokens.
fn finish(bytes: &[u8], length: usize, spaced: bool) -> Result<Scan, Malformed> {
    if u32::try_from(length).is_err() {
        return Err(Malformed { at: 0, what: "a row is larger than 4 GiB" });
    }
    let object = &bytes[..length];
    if simdutf8::basic::from_utf8(object).is_err() {
        return Err(Malformed { at: 0, what: "a row is not valid UTF-8" });
    }
    // One vectorised pass; control characters are so rare that the careful walk hardly ever runs.
    let mut spaced = spaced;
    if object.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < 0x20 {
        control_characters_are_space(object)?;
        spaced = true;
    } else if !spaced && object.contains(&b' ') {
        // A space may be in a string or inside a nested value; only the latter needs removing.
        spaced = has_space_in_nested(object);
    }
    Ok(Scan::Complete { length, spaced })
}

fn has_space_in_nested(object: &[u8]) -> bool {
    // Only nested values can hide white space from the member loop; without a bracket after the first byte there is none.
    if memchr2(b'{', b'[', &object[1..]).is_none() {
        return false;
    }
    let mut at = 0;
    while at < object.len() {
        match object[at] {
            b'"' => match string_end(object, at + 1) {
                Ok(Some(end)) => at = end,
                _ => return true,
            },
            b' ' => return true,
            _ => {}
        }
        at += 1;
    }
    false
}

fn control_characters_are_space(object: &[u8]) -> Result<(), Malformed> {
    let mut at = 0;
    while at < object.len() {
        match object[at] {
            b'"' => {
                let Some(end) = string_end(object, at + 1)? else {
                    return Err(Malformed { at, what: "a string does not end" });
                };
                if object[at..end].iter().any(|byte| *byte < 0x20) {
                    return Err(Malformed { at, what: "a string holds a control character" });
                }
                at = end;
            }
            b'\n' | b'\r' | b'\t' => {}
            byte if byte < 0x20 => return Err(Malformed { at, what: "a control character stands between tokens" }),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// Bytes looked at eight at a time before the vectorised search takes over.
const NEAR_BYTES: usize = 64;
const ONES: u64 = 0x0101_0101_0101_0101;

/// The high bit of the first zero byte of a little-endian word is set; bits above it may be wrong, which does not matter
/// to who looks for the first.
#[inline]
fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & (ONES << 7)
}

/// Offset of the quote that ends the string whose content starts at `at`; `None` if the bytes end first.
#[inline]
fn string_end(bytes: &[u8], mut at: usize) -> Result<Option<usize>, Malformed> {
    // Most keys and values are short: eight bytes at a time beat the set-up of a vectorised search.
    let near = bytes.len().min(at + NEAR_BYTES);
    while let Some(word) = bytes.get(at..at + 8).filter(|_| at < near) {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        let eight = u64::from_le_bytes(eight);
        let stops = zero_bytes(eight ^ (ONES * u64::from(b'"'))) | zero_bytes(eight ^ (ONES * u64::from(b'\\')));
        if stops != 0 {
            at += stops.trailing_zeros() as usize / 8;
            if bytes[at] == b'"' {
                return Ok(Some(at));
            }
            break;
        }
        at += 8;
    }
    loop {
        let Some(found) = memchr2(b'"', b'\\', &bytes[at.min(bytes.len())..]) else { return Ok(None) };
        at += found;
        if bytes[at] == b'"' {
            return Ok(Some(at));
        }
        match bytes.get(at + 1) {
            None => return Ok(None),
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 2,
            Some(b'u') => {
                let Some(digits) = bytes.get(at + 2..at + 6) else { return Ok(None) };
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(Malformed { at, what: "a unicode escape is not four hexadecimal digits" });
                }
                at += 6;
            }
            Some(_) => return Err(Malformed { at, what: "an unknown escape" }),
        }
    }
}

/// End of the number or literal at `at`; `None` if the bytes end before it is known to end.
#[inline]
fn scalar_end(bytes: &[u8], at: usize) -> Result<Option<usize>, Malformed> {
    // More than half of a wide row is this one literal, and most numbers are whole.
    if let Some(b"null,") = bytes.get(at..at + 5) {
        return Ok(Some(at + 4));
    }
    let digits = bytes[at..].iter().take(NEAR_BYTES).take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 && (bytes[at] != b'0' || digits == 1) && bytes.get(at + digits) == Some(&b',') {
        return Ok(Some(at + digits));
    }
    let mut end = at;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t' => {
                let token = &bytes[at..end];
                return match token {
                    b"null" | b"true" | b"false" => Ok(Some(end)),
                    _ if is_number(token) => Ok(Some(end)),
                    _ => Err(Malformed { at, what: "a value is neither a number nor a literal" }),
                };
            }
            _ => end += 1,
        }
        // Longer than any number a service prints, and without this a hostile page could grow a token for ever.
        if end - at > 4096 {
            return Err(Malformed { at, what: "a number is longer than 4096 characters" });
        }
    }
    Ok(None)
}

/// The number grammar of RFC 8259.
fn is_number(token: &[u8]) -> bool {
    let digits = |rest: &[u8]| rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut rest = token.strip_prefix(b"-").unwrap_or(token);
    match rest.first() {
        Some(b'0') => rest = &rest[1..],
        Some(b'1'..=b'9') => rest = &rest[digits(rest)..],
        _ => return false,
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = &fraction[count..];
    }
    if let Some(b'e' | b'E') = rest.first() {
        let mut exponent = &rest[1..];
        if let Some(b'+' | b'-') = exponent.first() {
            exponent = &exponent[1..];
        }
        let count = digits(exponent);
        if count == 0 {
            return false;
        }
        rest = &exponent[count..];
    }
    rest.is_empty()
}

/// End of the object or array at `at`; checked by `serde_json` once its end is known.
fn nested_end(bytes: &[u8], start: usize) -> Result<Option<usize>, Malformed> {
    let mut depth = 0_usize;
    let mut at = start;
    loop {
        let Some(byte) = bytes.get(at) else { return Ok(None) };
        match byte {
            b'"' => match string_end(bytes, at + 1)? {
                Some(end) => at = end,
                None => return Ok(None),
            },
            b'{' | b'[' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(Malformed { at, what: "a value is nested too deeply" });
                }
            }
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    let value = &bytes[start..=at];
                    return match serde_json::from_slice::<serde::de::IgnoredAny>(value) {
                        Ok(_) => Ok(Some(at + 1)),
                        Err(_) => Err(Malformed { at: start, what: "a nested value is not valid JSON" }),
                    };
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// Finds the items of a JSON array without white space: byte offsets into `array`, which [`scan`] has accepted.
pub fn array_items(array: &[u8], items: &mut Vec<(u32, u32)>) -> Result<(), Malformed> {
    items.clear();
    if array.first() != Some(&b'[') || array.last() != Some(&b']') {
        return Err(Malformed { at: 0, what: "an array was expected" });
    }
    if array.len() == 2 {
        return Ok(());
    }
    let mut at = 1;
    loop {
        let end = match array.get(at) {
            Some(b'"') => string_end(array, at + 1)?.map(|end| end + 1),
            Some(b'{' | b'[') => nested_end(array, at)?,
            Some(_) => scalar_end(array, at)?,
            None => None,
        }
        .ok_or(Malformed { at, what: "an array ends early" })?;
        items.push((at as u32, end as u32));
        match array.get(end) {
            Some(b',') => at = end + 1,
            Some(b']') if end + 1 == array.len() => return Ok(()),
            _ => return Err(Malformed { at: end, what: "a comma or the end of the array was expected" }),
        }
    }
}

/// Copies an object that [`scan`] found complete, without the white space between its tokens.
pub fn minify(object: &[u8], compact: &mut Vec<u8>) {
    compact.clear();
    let mut at = 0;
    while at < object.len() {
        match object[at] {
            b'"' => {
                // The object has been scanned: every string in it ends.
                let end = string_end(object, at + 1).ok().flatten().unwrap_or(object.len() - 1);
                compact.extend_from_slice(&object[at..=end]);
                at = end;
            }
            b' ' | b'\n' | b'\r' | b'\t' => {}
            byte => compact.push(byte),
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Row;

    fn scan_all(text: &str) -> Result<(Scan, Vec<(String, String)>), Malformed> {
        let mut members = Vec::new();
        let result = scan(text.as_bytes(), &mut members)?;
        let row = Row::new(text.as_bytes(), &members);
        let pairs = members
            .iter()
            .map(|m| {
                (String::from_utf8(row.key(m).to_vec()).unwrap(), String::from_utf8(row.value(m).to_vec()).unwrap())
            })
            .collect();
        Ok((result, pairs))
    }

    #[test]
    fn members_keep_the_bytes_the_service_sent() {
        let text = r#"{"@odata.etag":"W/\"1\"","n":20000.0000,"big":638751518483842799,"s":"a\u0001\"é","z":null,"o":{"x":[1,"}"]}}"#;
        let (result, pairs) = scan_all(text).unwrap();
        assert_eq!(result, Scan::Complete { length: text.len(), spaced: false });
        assert_eq!(pairs[1], ("n".into(), "20000.0000".into()));
        assert_eq!(pairs[2].1, "638751518483842799");
        assert_eq!(pairs[3].1, r#""a\u0001\"é""#);
        assert_eq!(pairs[5].1, r#"{"x":[1,"}"]}"#);
    }

    #[test]
    fn every_prefix_of_a_row_is_incomplete_not_malformed() {
        let text = r#"{"a":"x\u00e9\\","b":-1.5e+10,"c":[{"d":"]"}],"e":true,"f":null}"#;
        let mut members = Vec::new();
        for end in 0..text.len() {
            assert_eq!(scan(&text.as_bytes()[..end], &mut members), Ok(Scan::Incomplete), "prefix of {end} bytes");
        }
    }

    #[test]
    fn malformed_rows_are_refused() {
        for text in [
            "[]",
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":+1}"#,
            r#"{"a":nul}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":"\u00g0"}"#,
            "{\"a\":\"line\nbreak\"}",
            "{\"a\":\"\u{1}\"}",
            r#"{"a" 1}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":{"b"}}"#,
            "{,}",
        ] {
            let mut members = Vec::new();
            assert!(scan(text.as_bytes(), &mut members).is_err(), "{text:?} was accepted");
        }
        let mut members = Vec::new();
        assert!(scan(b"{\"a\":\"\xff\"}", &mut members).is_err());
    }

    #[test]
    fn white_space_between_tokens_is_dropped_and_only_that() {
        let text = "{ \"a b\" : [ 1 ,\n \"x  y\" ] ,\t\"c\":1 }";
        let mut members = Vec::new();
        assert_eq!(scan(text.as_bytes(), &mut members), Ok(Scan::Complete { length: text.len(), spaced: true }));
        let mut compact = Vec::new();
        minify(text.as_bytes(), &mut compact);
        assert_eq!(compact, br#"{"a b":[1,"x  y"],"c":1}"#);
        let nested = r#"{"a":[1, 2]}"#;
        assert_eq!(scan(nested.as_bytes(), &mut members), Ok(Scan::Complete { length: nested.len(), spaced: true }));
        let in_string = r#"{"a":["1, 2"],"b":"c d"}"#;
        assert_eq!(
            scan(in_string.as_bytes(), &mut members),
            Ok(Scan::Complete { length: in_string.len(), spaced: false })
        );
    }

    #[test]
    fn a_scanner_that_has_learned_finds_what_a_new_one_finds() {
        let rows = [
            r#"{"a":1,"b":2,"c":3,"d":4}"#,
            r#"{"a":1,"d":4}"#,
            r#"{"d":1,"a":2}"#,
            r#"{"a\"x":1,"a":2,"ab":3}"#,
            r#"{"b":1,"new":[1],"c":{}}"#,
            "{}",
            r#"{"a":1,"b":2,"c":3,"d":4}"#,
        ];
        let mut scanner = Scanner::default();
        let (mut learned, mut fresh) = (Vec::new(), Vec::new());
        for text in rows.iter().chain(&rows) {
            assert_eq!(scanner.scan(text.as_bytes(), &mut learned), scan(text.as_bytes(), &mut fresh), "{text}");
            let places = |members: &[Member]| -> Vec<(u32, u32, u32, u32)> {
                members.iter().map(|m| (m.key_start, m.key_end, m.value_start, m.value_end)).collect()
            };
            assert_eq!(places(&learned), places(&fresh), "{text}");
            let names: Vec<&[u8]> =
                learned.iter().map(|m| &text.as_bytes()[m.key_start as usize..m.key_end as usize]).collect();
            for (a, name_a) in learned.iter().zip(&names) {
                for (b, name_b) in learned.iter().zip(&names) {
                    assert_eq!(a.name == b.name, name_a == name_b, "{text}");
                }
            }
        }
    }
}
