//! Finds where a JSON token ends when it arrives in pieces.
//!
//! The row scanner of the model needs a whole row. A row that is cut by the end of a chunk, and above all a giant one
//! that spans thousands of chunks, must not be scanned from its start again with each chunk. This scanner keeps three
//! facts between chunks (depth, in a string, after a backslash), looks at every byte once, and checks nothing else.

use memchr::memchr2;

/// What kind of token is being followed; decided by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// An object or an array: ends with the bracket that brings the depth back to zero.
    Nested,
    /// A string: ends with its quote.
    Text,
    /// A number or literal: ends before the first byte that cannot belong to it.
    Scalar,
}

/// Resumable search for the end of one JSON token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boundary {
    shape: Shape,
    depth: u64,
    in_string: bool,
    escaped: bool,
    begun: bool,
}

impl Boundary {
    /// A search for the end of the token that starts with `first`; feed it that byte too.
    pub(crate) fn of(first: u8) -> Self {
        let shape = match first {
            b'{' | b'[' => Shape::Nested,
            b'"' => Shape::Text,
            _ => Shape::Scalar,
        };
        Self { shape, depth: 0, in_string: false, escaped: false, begun: false }
    }

    /// Looks at the next bytes of the token. Returns how many of them belong to it, if it ends among them.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        match self.shape {
            Shape::Nested => self.advance_nested(bytes),
            Shape::Text => self.advance_text(bytes),
            Shape::Scalar => {
                bytes.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'))
            }
        }
    }

    fn advance_nested(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.in_string {
                at = self.leave_string(bytes, at)?;
                continue;
            }
            match bytes[at] {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        None
    }

    fn advance_text(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut from = 0;
        if !self.begun && !bytes.is_empty() {
            self.begun = true;
            self.in_string = true;
            from = 1;
        }
        self.leave_string(bytes, from)
    }

    /// Offset after the quote that ends the string we are in; `None` if the bytes end first.
    fn leave_string(&mut self, bytes: &[u8], mut at: usize) -> Option<usize> {
        if self.escaped && at < bytes.len() {
            self.escaped = false;
            at += 1;
        }
        while at < bytes.len() {
            at += memchr2(b'"', b'\\', &bytes[at..])?;
            if bytes[at] == b'"' {
                self.in_string = false;
                return Some(at + 1);
            }
            if at + 1 == bytes.len() {
                self.escaped = true;
                return None;
            }
            at += 2;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// End of the token at the start of `text`, fed in pieces of `size` bytes.
    fn end_of(text: &str, size: usize) -> Option<usize> {
        let mut boundary = Boundary::of(text.as_bytes()[0]);
        let mut fed = 0;
        for piece in text.as_bytes().chunks(size) {
            if let Some(end) = boundary.advance(piece) {
                return Some(fed + end);
            }
            fed += piece.len();
        }
        None
    }

    #[test]
    fn tokens_end_at_the_same_place_in_any_pieces() {
        for (token, rest) in [
            (r#"{"a":"}","b":[{"c":"\\"},{"d":"\""}]}"#, r#",{"x":1}"#),
            (r#"["]",[]]"#, "]"),
            (r#""quote \" and backslash \\""#, r#","next":1"#),
            (r#""""#, ""),
            ("-12.5e3", ","),
            ("null", "}"),
        ] {
            let text = format!("{token}{rest}");
            for size in 1..=text.len() {
                let expected =
                    (!rest.is_empty() || !token.ends_with(|last: char| last.is_alphanumeric())).then_some(token.len());
                assert_eq!(end_of(&text, size), expected, "{text} in pieces of {size}");
            }
        }
    }

    #[test]
    fn unfinished_tokens_have_no_end() {
        for text in [r#"{"a":"}"#, r"[[]", r#""abc\""#, r#""abc\"#, "12"] {
            for size in 1..=text.len() {
                assert_eq!(end_of(text, size), None, "{text} in pieces of {size}");
            }
        }
    }
}
