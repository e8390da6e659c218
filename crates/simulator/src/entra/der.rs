//! The little of DER that a certificate and an RSA key need: reading one element after the other, writing them.

/// `SEQUENCE`.
pub(super) const SEQUENCE: u8 = 0x30;
/// `SET`.
pub(super) const SET: u8 = 0x31;
/// `INTEGER`.
pub(super) const INTEGER: u8 = 0x02;
/// `BIT STRING`.
pub(super) const BIT_STRING: u8 = 0x03;
/// `UTF8String`.
pub(super) const TEXT: u8 = 0x0c;
/// `UTCTime`: two digits of the year, until 2049.
pub(super) const SHORT_TIME: u8 = 0x17;
/// `GeneralizedTime`.
pub(super) const LONG_TIME: u8 = 0x18;
/// `[0]`, constructed: the version of a certificate.
pub(super) const VERSION: u8 = 0xa0;

/// Longest length field that is read: three bytes, 16 MiB.
const LENGTH_BYTES_MAX: usize = 3;

/// One element of an encoding.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// Tag, length and content.
    pub(super) whole: &'a [u8],
}

/// Takes the next element off `input`; `None` at the end or where it is not DER.
pub(super) fn next<'a>(input: &mut &'a [u8]) -> Option<Element<'a>> {
    let all = *input;
    let (tag, first) = (*all.first()?, *all.get(1)?);
    let (start, length) = if first < 0x80 {
        (2, usize::from(first))
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > LENGTH_BYTES_MAX {
            return None;
        }
        let digits = all.get(2..2 + count)?;
        (2 + count, digits.iter().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte)))
    };
    let end = start.checked_add(length)?;
    let content = all.get(start..end)?;
    *input = &all[end..];
    Some(Element { tag, content, whole: &all[..end] })
}

/// The next element, if it has this tag.
pub(super) fn expect<'a>(input: &mut &'a [u8], tag: u8) -> Option<Element<'a>> {
    next(input).filter(|element| element.tag == tag)
}

/// Writes an element around the parts.
pub(super) fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let skip = bytes.iter().take_while(|byte| **byte == 0).count();
        out.push(0x80 | (bytes.len() - skip) as u8);
        out.extend_from_slice(&bytes[skip..]);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// An unsigned number without the zero byte that keeps it positive.
pub(super) fn unsigned(content: &[u8]) -> &[u8] {
    content.strip_prefix(&[0]).unwrap_or(content)
}

#[cfg(test)]
mod tests {
    use super::{INTEGER, SEQUENCE, next, write};

    #[test]
    fn what_is_written_is_read_back() {
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let content = vec![7_u8; length];
            let encoded = write(SEQUENCE, &[&write(INTEGER, &[&content]), &[5, 0]]);
            let mut input = encoded.as_slice();
            let outer = next(&mut input).unwrap();
            assert!(input.is_empty());
            let mut inner = outer.content;
            assert_eq!(next(&mut inner).unwrap().content, content);
            assert_eq!(next(&mut inner).unwrap().whole, [5, 0]);
            assert!(next(&mut inner).is_none());
        }
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        let mut input: &[u8] = &[SEQUENCE, 5, 1, 2];
        assert!(next(&mut input).is_none());
        let mut input: &[u8] = &[SEQUENCE, 0x84, 1, 2, 3, 4];
        assert!(next(&mut input).is_none());
    }
}
