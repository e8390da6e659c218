//! Sealing of stored sign-ins: XChaCha20-Poly1305 with a key derived from the operator's secret.
//!
//! ```text
//! version 1 │ nonce, 24 bytes, random │ ciphertext and tag
//! ```
//!
//! The version byte, the name of the file and the account are authenticated with the content, so a sealed file is worth
//! nothing under another name. A key is derived per account. The nonce is random for each write; 192 bits make a
//! repetition impossible in practice. The seal does not tell an old file from the newest: who can write the folder can
//! put yesterday's sign-in back.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::{AccountKey, StoreError};
use crate::endpoint::random_bytes;

/// Shortest secret that is accepted, in characters. The key is derived without a slow function, so the secret has to be
/// random: 32 characters of base64 are 192 bits.
pub const SEAL_SECRET_CHARS_MIN: usize = 32;

pub(super) const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
/// Names the use of the derived key; changes with the format.
const CONTEXT: &str = "dynavault 2026 stored sign-in, format 1, sealing key";

pub(super) struct Seal {
    root: Zeroizing<[u8; 32]>,
}

pub(super) enum Unsealed {
    Open(Zeroizing<Vec<u8>>),
    Corrupt,
    Version(u8),
}

impl Seal {
    pub(super) fn new(secret: &SecretString) -> Result<Self, StoreError> {
        // A file ends in a line break as often as not.
        let secret = secret.expose_secret().trim();
        if secret.chars().count() < SEAL_SECRET_CHARS_MIN {
            return Err(StoreError::Secret("it is shorter than 32 characters"));
        }
        Ok(Self { root: Zeroizing::new(blake3::derive_key(CONTEXT, secret.as_bytes())) })
    }

    pub(super) fn seal(&self, account: &AccountKey, file: &str, content: &[u8]) -> Vec<u8> {
        let nonce = random_bytes::<NONCE_BYTES>();
        let bound = bound(account, file);
        let sealed = self
            .cipher(account)
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: content, aad: &bound })
            .expect("only content beyond 256 GiB cannot be sealed");
        [&[VERSION], nonce.as_slice(), &sealed].concat()
    }

    pub(super) fn open(&self, account: &AccountKey, file: &str, sealed: &[u8]) -> Unsealed {
        let Some((&version, rest)) = sealed.split_first() else { return Unsealed::Corrupt };
        let Some((nonce, content)) = rest.split_at_checked(NONCE_BYTES) else { return Unsealed::Corrupt };
        // A flipped bit in the version byte is damage as well. Versions to come are small numbers.
        if version != VERSION {
            return if (VERSION + 1..VERSION + 16).contains(&version) && !self.opens(account, file, nonce, content) {
                Unsealed::Version(version)
            } else {
                Unsealed::Corrupt
            };
        }
        let payload = Payload { msg: content, aad: &bound(account, file) };
        match self.cipher(account).decrypt(XNonce::from_slice(nonce), payload) {
            Ok(open) => Unsealed::Open(Zeroizing::new(open)),
            Err(_) => Unsealed::Corrupt,
        }
    }

    fn opens(&self, account: &AccountKey, file: &str, nonce: &[u8], content: &[u8]) -> bool {
        let payload = Payload { msg: content, aad: &bound(account, file) };
        self.cipher(account).decrypt(XNonce::from_slice(nonce), payload).is_ok()
    }

    fn cipher(&self, account: &AccountKey) -> XChaCha20Poly1305 {
        let key = Zeroizing::new(*blake3::keyed_hash(&self.root, account.canonical().as_bytes()).as_bytes());
        XChaCha20Poly1305::new(key.as_slice().into())
    }
}

fn bound(account: &AccountKey, file: &str) -> Vec<u8> {
    [&[VERSION], file.as_bytes(), b"\0", account.canonical().as_bytes()].concat()
}
