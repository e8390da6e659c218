//! Certificates of applications: reading what is registered, making self-signed ones for tests (entra 9.2).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::entra::der;
use crate::entra::keys::{Key, sha1, sha256};

/// `sha256WithRSAEncryption` with its empty parameters.
const SHA256_WITH_RSA: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00];
/// `commonName`.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
/// Characters of base64 on a line of PEM.
const PEM_LINE: usize = 64;
/// From this year on a certificate uses the long form of time (RFC 5280 4.1.2.5).
const LONG_TIME_YEAR: i16 = 2050;

/// A certificate and its private key, as an operator would keep them.
#[derive(Clone)]
pub struct IssuedCertificate {
    /// The private key (PKCS#8) followed by the certificate, both PEM.
    pub pem: String,
    /// The certificate.
    pub der: Vec<u8>,
    /// The private key, PKCS#8.
    pub private_der: Vec<u8>,
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("IssuedCertificate").field("thumbprint", &thumbprint(&self.der)).finish_non_exhaustive()
    }
}

impl IssuedCertificate {
    /// A self-signed certificate of a new key.
    pub(crate) fn new(name: &str, from: Timestamp, until: Timestamp) -> Self {
        let key = Key::generate();
        let public = key.public_der();
        // Positive, and different for every key.
        let mut serial = sha256(&public)[..16].to_vec();
        serial[0] = (serial[0] & 0x7f) | 0x40;
        let common_name = der::write(der::SEQUENCE, &[&COMMON_NAME, &der::write(der::TEXT, &[name.as_bytes()])]);
        let subject = der::write(der::SEQUENCE, &[&der::write(der::SET, &[&common_name])]);
        let validity = der::write(der::SEQUENCE, &[&write_time(from), &write_time(until)]);
        let body = der::write(
            der::SEQUENCE,
            &[
                &der::write(der::VERSION, &[&der::write(der::INTEGER, &[&[2]])]),
                &der::write(der::INTEGER, &[&serial]),
                &SHA256_WITH_RSA,
                &subject,
                &validity,
                &subject,
                &public,
            ],
        );
        let signature = der::write(der::BIT_STRING, &[&[0], &key.sign(&body)]);
        let certificate = der::write(der::SEQUENCE, &[&body, &SHA256_WITH_RSA, &signature]);
        let private_der = key.private_der();
        let pem = format!("{}{}", to_pem("PRIVATE KEY", &private_der), to_pem("CERTIFICATE", &certificate));
        Self { pem, der: certificate, private_der }
    }
}

/// The public half that the directory keeps.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    /// `SubjectPublicKeyInfo`.
    pub(crate) public_der: Vec<u8>,
    /// `x5t#S256`.
    pub(crate) thumbprint: String,
    /// `x5t`.
    pub(crate) old_thumbprint: String,
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

impl Certificate {
    /// Reads DER; `None` if it is no certificate.
    pub(crate) fn parse(certificate: &[u8]) -> Option<Self> {
        let mut outer = certificate;
        let mut inner = der::expect(&mut outer, der::SEQUENCE)?.content;
        let mut body = der::expect(&mut inner, der::SEQUENCE)?.content;
        let mut after_version = body;
        if der::expect(&mut after_version, der::VERSION).is_some() {
            body = after_version;
        }
        der::expect(&mut body, der::INTEGER)?;
        // Algorithm and issuer.
        der::expect(&mut body, der::SEQUENCE)?;
        der::expect(&mut body, der::SEQUENCE)?;
        let mut validity = der::expect(&mut body, der::SEQUENCE)?.content;
        let (from, until) = (read_time(der::next(&mut validity)?)?, read_time(der::next(&mut validity)?)?);
        // Subject.
        der::expect(&mut body, der::SEQUENCE)?;
        let public_der = der::expect(&mut body, der::SEQUENCE)?.whole.to_vec();
        Some(Self {
            public_der,
            thumbprint: thumbprint(certificate),
            old_thumbprint: URL_SAFE_NO_PAD.encode(sha1(certificate)),
            from,
            until,
        })
    }

    /// The first certificate of a PEM text, other blocks being passed over.
    pub(crate) fn parse_pem(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----")?;
        let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
        let digits: String = body.split_whitespace().collect();
        Self::parse(&STANDARD.decode(digits).ok()?)
    }
}

fn thumbprint(certificate: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(sha256(certificate))
}

fn to_pem(label: &str, content: &[u8]) -> String {
    let digits = STANDARD.encode(content);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = digits.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(PEM_LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

fn write_time(time: Timestamp) -> Vec<u8> {
    let civil = time.to_zoned(TimeZone::UTC).datetime();
    if civil.year() < LONG_TIME_YEAR {
        der::write(der::SHORT_TIME, &[civil.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()])
    } else {
        der::write(der::LONG_TIME, &[civil.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()])
    }
}

fn read_time(element: der::Element<'_>) -> Option<Timestamp> {
    let text = std::str::from_utf8(element.content).ok()?.strip_suffix('Z')?;
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i16>().ok();
    let (year, rest) = match element.tag {
        // RFC 5280: 50 and more is the last century.
        der::SHORT_TIME => {
            let year = number(0..2)?;
            (if year >= 50 { 1_900 + year } else { 2_000 + year }, 2)
        }
        der::LONG_TIME => (number(0..4)?, 4),
        _ => return None,
    };
    let part = |index: usize| i8::try_from(number(rest + index * 2..rest + index * 2 + 2)?).ok();
    let civil = DateTime::new(year, part(0)?, part(1)?, part(2)?, part(3)?, part(4)?, 0).ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// A time later or earlier by whole seconds; held at the ends of time.
pub(crate) fn shifted(time: Timestamp, seconds: i64) -> Timestamp {
    let end = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    time.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{Certificate, IssuedCertificate};
    use crate::entra::keys::{Scheme, is_signed};

    #[test]
    fn a_made_certificate_reads_back_with_its_dates_and_signs_itself() {
        let from: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let until: Timestamp = "2051-01-02T03:04:05Z".parse().unwrap();
        let issued = IssuedCertificate::new("dynavault test", from, until);
        let read = Certificate::parse_pem(&issued.pem).unwrap();
        assert_eq!((read.from, read.until), (from, until));
        assert_eq!(read.thumbprint.len(), 43);
        let mut outer = issued.der.as_slice();
        let mut inner = super::der::expect(&mut outer, super::der::SEQUENCE).unwrap().content;
        let body = super::der::next(&mut inner).unwrap().whole;
        super::der::next(&mut inner).unwrap();
        let signature = &super::der::next(&mut inner).unwrap().content[1..];
        assert!(is_signed(Scheme::Rs256, &read.public_der, body, signature));
        assert!(!format!("{issued:?}").contains("PRIVATE"));
    }

    #[test]
    fn other_bytes_are_no_certificate() {
        assert!(Certificate::parse(b"certificate").is_none());
        assert!(Certificate::parse_pem("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----").is_none());
    }
}
