//! RSA: the authority's signing key, signatures of assertions, and the JWTs around both.
//!
//! The key is made once per process, so that no private key lies in the repository. The tokens of two
//! simulators of one process verify with the same key; each simulator accepts only what it gave out.

use std::sync::OnceLock;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::entra::der;

/// Longest token that is looked into, in bytes (entra 10.1 caps what a client reads at the same).
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// How a JWT is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// RSASSA-PSS with SHA-256 and a salt of 32 bytes (entra 9.2).
    Ps256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
}

/// An RSA key with its private half.
#[derive(Debug)]
pub(super) struct Key(KeyPair);

/// The key that signs the tokens of this process.
pub(super) fn signing_key() -> &'static Key {
    static KEY: OnceLock<Key> = OnceLock::new();
    KEY.get_or_init(Key::generate)
}

impl Key {
    /// A new key of 2,048 bits; takes some tens of milliseconds.
    pub(super) fn generate() -> Self {
        Self(KeyPair::generate(KeySize::Rsa2048).expect("the system has randomness for a key"))
    }

    /// PKCS#8.
    pub(super) fn private_der(&self) -> Vec<u8> {
        let der: Pkcs8V1Der<'_> = self.0.as_der().expect("a generated key can be encoded");
        der.as_ref().to_vec()
    }

    /// `SubjectPublicKeyInfo`.
    pub(super) fn public_der(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().expect("a generated key can be encoded");
        der.as_ref().to_vec()
    }

    /// Modulus and exponent.
    fn numbers(&self) -> Option<(&[u8], &[u8])> {
        // `RSAPublicKey` of RFC 8017: a sequence of the two.
        let mut outer = self.0.public_key().as_ref();
        let mut inner = der::expect(&mut outer, der::SEQUENCE)?.content;
        let modulus = der::expect(&mut inner, der::INTEGER)?.content;
        let exponent = der::expect(&mut inner, der::INTEGER)?.content;
        Some((der::unsigned(modulus), der::unsigned(exponent)))
    }

    /// Name of the key in JWT headers and in the key set.
    pub(super) fn name(&self) -> String {
        URL_SAFE_NO_PAD.encode(&sha256(&self.public_der())[..20])
    }

    /// Signs with RS256.
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .expect("the buffer has the length of the key");
        signature
    }

    /// A signed JWT (RS256).
    pub(super) fn jwt(&self, claims: &Value) -> String {
        let name = self.name();
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head =
            format!("{}.{}", part(&json!({"typ": "JWT", "alg": "RS256", "x5t": name, "kid": name})), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(head.as_bytes()));
        format!("{head}.{signature}")
    }

    /// The JSON Web Key Set with this key alone.
    pub(super) fn key_set(&self, issuer: &str) -> Value {
        let (modulus, exponent) = self.numbers().unwrap_or_default();
        let name = self.name();
        json!({"keys": [{
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": name, "x5t": name,
            "n": URL_SAFE_NO_PAD.encode(modulus), "e": URL_SAFE_NO_PAD.encode(exponent), "issuer": issuer,
        }]})
    }
}

/// Whether `signature` of `message` was made by the owner of this public key (`SubjectPublicKeyInfo`).
pub(super) fn is_signed(scheme: Scheme, public_der: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let algorithm = match scheme {
        Scheme::Ps256 => &RSA_PSS_2048_8192_SHA256,
        Scheme::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
    };
    UnparsedPublicKey::new(algorithm, public_der).verify(message, signature).is_ok()
}

/// SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

/// SHA-1, for the older thumbprint of a certificate.
pub(super) fn sha1(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
}

/// A JWT taken apart.
#[derive(Debug)]
pub(super) struct Jwt<'a> {
    pub(super) header: Value,
    pub(super) claims: Value,
    /// Header and claims as they were signed.
    pub(super) signed: &'a str,
    pub(super) signature: Vec<u8>,
}

impl<'a> Jwt<'a> {
    /// Takes `text` apart; `None` if it is no JWT.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let json = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        Some(Self {
            header: json(header)?,
            claims: json(claims)?,
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// A claim that is text; empty if it is missing.
    pub(super) fn text(&self, claim: &str) -> &str {
        self.claims[claim].as_str().unwrap_or_default()
    }

    /// Whether the owner of this public key signed it.
    pub(super) fn is_signed_by(&self, scheme: Scheme, public_der: &[u8]) -> bool {
        is_signed(scheme, public_der, self.signed.as_bytes(), &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Jwt, Scheme, signing_key};

    #[test]
    fn tokens_verify_with_the_published_key_and_no_other_way() {
        let key = signing_key();
        let token = key.jwt(&json!({"sub": "somebody"}));
        let parsed = Jwt::parse(&token).unwrap();
        assert_eq!(parsed.text("sub"), "somebody");
        assert!(parsed.is_signed_by(Scheme::Rs256, &key.public_der()));
        assert!(!parsed.is_signed_by(Scheme::Ps256, &key.public_der()));
        let forged = token.replacen('.', ".e", 1);
        assert!(Jwt::parse(&forged).is_none_or(|jwt| !jwt.is_signed_by(Scheme::Rs256, &key.public_der())));
        let set = key.key_set("https://issuer.example");
        assert_eq!(set["keys"][0]["e"], "AQAB");
        assert!(set["keys"][0]["n"].as_str().unwrap().len() > 300);
    }
}
