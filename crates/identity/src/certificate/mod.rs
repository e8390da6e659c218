//! A client certificate and the assertions signed with it (`entra` protocol, section 9.2).
//!
//! The file is taken apart once, at start-up: certificate and key have to belong together, the key has to be RSA of at
//! least 2048 bits, and the expiry is known from then on, all before anything is sent. Each assertion is a JWT with
//! `PS256` and `x5t#S256` that lives five minutes and has an id of its own.

mod pem;
mod pfx;

use std::fmt;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{KeyPair, RSA_PSS_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use der::Decode;
use dynavault_model::{Diagnose, FaultKind};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use zeroize::Zeroizing;

/// Longest file with a certificate, in bytes; chains with keys are below 20 KiB.
pub const CERTIFICATE_BYTES_MAX: usize = 256 * 1024;
/// An assertion is accepted for at most ten minutes (section 9.2); five are enough for one request.
const ASSERTION_LIFE: Duration = Duration::from_secs(300);
/// Clocks differ by seconds even where both are kept.
const ASSERTION_BACKDATED: Duration = Duration::from_secs(30);
/// RSA keys below this are refused by the service.
const KEY_BITS_MIN: usize = 2048;

/// The certificate cannot be used; nothing was sent. No part of the file occurs in the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Neither PEM nor PKCS#12, or damaged.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(&'static str),
    /// The key or the file is sealed and the password does not open it.
    #[error("the password does not open the certificate")]
    Password,
    /// A certificate without key, or a key without certificate.
    #[error("the file holds no {0}")]
    Missing(&'static str),
    /// The key is of a kind that cannot sign, or too short.
    #[error("the key of the certificate cannot sign assertions: {0}")]
    Key(&'static str),
    /// Certificate and key are not a pair.
    #[error("the key does not match the certificate")]
    Mismatch,
}

impl Diagnose for CertificateError {
    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Unreadable(_) => {
                "give a PEM file with certificate and key, or a PFX file; `openssl pkcs12 -in FILE -nodes` turns a PFX into PEM"
            }
            Self::Password => "check the password of the certificate in the profile",
            Self::Missing(_) => "put the certificate and its private key into one file",
            Self::Key(_) => "create a certificate with an RSA key of 2048 bits or more and register it with the app",
            Self::Mismatch => "put the private key that belongs to the certificate into the file",
        };
        Some(text.to_owned())
    }

    fn kind(&self) -> FaultKind {
        FaultKind::Usage
    }
}

/// What a file gave: certificates in DER, and keys in DER, PKCS#8 or PKCS#1.
#[derive(Default)]
struct Parts {
    certificates: Vec<Vec<u8>>,
    keys: Vec<Zeroizing<Vec<u8>>>,
}

/// A certificate with its key, checked to be a pair. The key never prints.
pub struct ClientCertificate {
    key: RsaKeyPair,
    thumbprint: [u8; 32],
    not_before: Timestamp,
    not_after: Timestamp,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("thumbprint", &self.thumbprint())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl ClientCertificate {
    /// Takes a file apart: PEM, PKCS#12, or the base64 text of PKCS#12 as key vaults hand it out. `password` opens
    /// PKCS#12 and encrypted keys.
    pub fn parse(content: &[u8], password: Option<&SecretString>) -> Result<Self, CertificateError> {
        if content.len() > CERTIFICATE_BYTES_MAX {
            return Err(CertificateError::Unreadable("it is longer than 256 KiB"));
        }
        let password = password.map_or("", |password| password.expose_secret());
        let parts = match std::str::from_utf8(content) {
            Ok(text) if text.contains("-----BEGIN ") => pem::parts(text, password)?,
            Ok(text) => {
                let packed: Zeroizing<String> = Zeroizing::new(text.split_ascii_whitespace().collect());
                let bytes = STANDARD
                    .decode(packed.as_bytes())
                    .map_err(|_| CertificateError::Unreadable("it is neither PEM nor PKCS#12"))?;
                pfx::parts(&Zeroizing::new(bytes), password)?
            }
            Err(_) => pfx::parts(content, password)?,
        };
        Self::of(&parts)
    }

    fn of(parts: &Parts) -> Result<Self, CertificateError> {
        let key = parts.keys.first().ok_or(CertificateError::Missing("private key"))?;
        let key = RsaKeyPair::from_pkcs8(key)
            .or_else(|_| RsaKeyPair::from_der(key))
            .map_err(|_| CertificateError::Key("it is no RSA key of 2048 bits or more"))?;
        if key.public_modulus_len() * 8 < KEY_BITS_MIN {
            return Err(CertificateError::Key("it is shorter than 2048 bits"));
        }
        if parts.certificates.is_empty() {
            return Err(CertificateError::Missing("certificate"));
        }
        // A file may hold the chain as well, in any order; ours is the one that the key belongs to.
        for der in &parts.certificates {
            let certificate = Certificate::from_der(der)
                .map_err(|_| CertificateError::Unreadable("a certificate in it is damaged"))?;
            let public = &certificate.tbs_certificate.subject_public_key_info.subject_public_key;
            if public.as_bytes() == Some(key.public_key().as_ref()) {
                let validity = certificate.tbs_certificate.validity;
                let time = |time: x509_cert::time::Time| {
                    let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
                    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
                };
                return Ok(Self {
                    key,
                    thumbprint: Sha256::digest(der).into(),
                    not_before: time(validity.not_before),
                    not_after: time(validity.not_after),
                });
            }
        }
        Err(CertificateError::Mismatch)
    }

    /// When the service stops accepting the certificate. Warn thirty days before (section 9.2).
    pub fn expires(&self) -> Timestamp {
        self.not_after
    }

    /// When the service starts accepting it.
    pub fn valid_from(&self) -> Timestamp {
        self.not_before
    }

    /// SHA-256 of the certificate in upper-case hex, as the portal shows it.
    pub fn thumbprint(&self) -> String {
        crate::endpoint::hex(&self.thumbprint).to_ascii_uppercase()
    }

    /// A fresh assertion of `client_id` for the token endpoint `audience`, good from `now` for a few minutes.
    pub(crate) fn assertion(
        &self,
        client_id: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<Zeroizing<String>, CertificateError> {
        let begin = now.as_second() - ASSERTION_BACKDATED.as_secs() as i64;
        let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": URL_SAFE_NO_PAD.encode(self.thumbprint)});
        let payload = json!({
            "aud": audience, "iss": client_id, "sub": client_id, "jti": crate::endpoint::random_guid(),
            "nbf": begin, "iat": begin, "exp": now.as_second() + ASSERTION_LIFE.as_secs() as i64,
        });
        let encoded = |part: &serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let mut assertion = Zeroizing::new(format!("{}.{}", encoded(&header), encoded(&payload)));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PSS_SHA256, &SystemRandom::new(), assertion.as_bytes(), &mut signature)
            .map_err(|_| CertificateError::Key("signing failed"))?;
        assertion.push('.');
        URL_SAFE_NO_PAD.encode_string(&signature, &mut assertion);
        Ok(assertion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};

    // Made for these tests with openssl; the password is `opensesame`.
    const PEM: &str = include_str!("../../tests/keys/client.pem");
    const OTHER_KEY: &str = include_str!("../../tests/keys/other-key.pem");
    const MODERN_PFX: &[u8] = include_bytes!("../../tests/keys/modern.pfx");
    const OLD_PFX: &[u8] = include_bytes!("../../tests/keys/old.pfx");

    fn password() -> SecretString {
        SecretString::from("opensesame")
    }

    #[test]
    fn every_form_of_the_file_gives_the_same_pair() {
        let expected = ClientCertificate::parse(PEM.as_bytes(), None).unwrap();
        let sealed = include_bytes!("../../tests/keys/sealed-key.pem");
        let rsa = include_bytes!("../../tests/keys/pkcs1.pem");
        let base64 = STANDARD.encode(MODERN_PFX);
        for (name, content) in [
            ("modern PFX", MODERN_PFX),
            ("PFX of the old kind", OLD_PFX),
            ("base64 of PFX", base64.as_bytes()),
            ("encrypted key", sealed),
            ("PKCS#1, chain, other order", rsa),
        ] {
            let parsed = ClientCertificate::parse(content, Some(&password())).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(parsed.thumbprint(), expected.thumbprint(), "{name}");
            assert_eq!(parsed.expires(), expected.expires(), "{name}");
        }
        assert!(expected.expires() > expected.valid_from());
        assert!(!format!("{expected:?}").contains("key"), "{expected:?}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let certificate = PEM.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        let file = format!("{certificate}{OTHER_KEY}");
        assert_eq!(ClientCertificate::parse(file.as_bytes(), None).unwrap_err(), CertificateError::Mismatch);
        let alone = ClientCertificate::parse(certificate.as_bytes(), None).unwrap_err();
        assert_eq!(alone, CertificateError::Missing("private key"));
        let alone = ClientCertificate::parse(OTHER_KEY.as_bytes(), None).unwrap_err();
        assert_eq!(alone, CertificateError::Missing("certificate"));
    }

    #[test]
    fn wrong_passwords_and_damaged_files_are_told_apart_and_never_panic() {
        for file in [MODERN_PFX, OLD_PFX] {
            for password in [None, Some(SecretString::from("wrong"))] {
                let error = ClientCertificate::parse(file, password.as_ref()).unwrap_err();
                assert_eq!(error, CertificateError::Password);
            }
            for at in (0..file.len()).step_by(97) {
                let mut damaged = file.to_vec();
                damaged[at] ^= 0x41;
                // Some bytes are free, e.g. a friendly name; what matters is that a key never comes out wrong.
                if let Ok(parsed) = ClientCertificate::parse(&damaged, Some(&password())) {
                    assert_eq!(
                        parsed.thumbprint(),
                        ClientCertificate::parse(PEM.as_bytes(), None).unwrap().thumbprint()
                    );
                }
                assert!(ClientCertificate::parse(&file[..at], Some(&password())).is_err());
            }
        }
        for text in
            ["", "hello", "-----BEGIN CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\n!!\n-----END PRIVATE KEY-----"]
        {
            assert!(ClientCertificate::parse(text.as_bytes(), None).is_err(), "{text}");
        }
    }

    #[test]
    fn an_assertion_verifies_lives_briefly_and_is_never_the_same() {
        let certificate = ClientCertificate::parse(PEM.as_bytes(), None).unwrap();
        let now: Timestamp = "2031-02-03T04:05:06Z".parse().unwrap();
        let mut ids = Vec::new();
        for _ in 0..2 {
            let assertion = certificate.assertion("app-1", "https://login.example/t/oauth2/v2.0/token", now).unwrap();
            let parts: Vec<&str> = assertion.split('.').collect();
            let decoded = |part: &str| -> serde_json::Value {
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
            };
            let (header, payload) = (decoded(parts[0]), decoded(parts[1]));
            assert_eq!(header["alg"], "PS256");
            assert_eq!(header["x5t#S256"], URL_SAFE_NO_PAD.encode(certificate.thumbprint));
            assert!(payload["exp"].as_i64().unwrap() - payload["nbf"].as_i64().unwrap() <= 600);
            assert_eq!((&payload["iss"], &payload["sub"]), (&json!("app-1"), &json!("app-1")));
            ids.push(payload["jti"].clone());
            // The verifier insists on PSS with a salt as long as the hash, 32 bytes.
            UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, certificate.key.public_key().as_ref())
                .verify(format!("{}.{}", parts[0], parts[1]).as_bytes(), &URL_SAFE_NO_PAD.decode(parts[2]).unwrap())
                .unwrap();
        }
        assert_ne!(ids[0], ids[1]);
    }
}
