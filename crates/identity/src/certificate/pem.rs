//! PEM (RFC 7468): sections between `BEGIN` and `END` lines, of which the certificates and the private keys are taken.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{CertificateError, Parts, pfx};

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// Certificates and keys in the order of the file; an encrypted key is opened with `password`.
pub(super) fn parts(text: &str, password: &str) -> Result<Parts, CertificateError> {
    let mut parts = Parts::default();
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let section = &rest[at + BEGIN.len()..];
        let broken = CertificateError::Unreadable("a PEM section in it is not closed");
        let (label, body) = section.split_once(DASHES).ok_or(broken.clone())?;
        let (body, after) = body.split_once(&format!("-----END {label}-----")).ok_or(broken)?;
        rest = after;
        match label {
            "CERTIFICATE" => parts.certificates.push(decode(body)?.to_vec()),
            "PRIVATE KEY" | "RSA PRIVATE KEY" => parts.keys.push(decode(body)?),
            "ENCRYPTED PRIVATE KEY" => parts.keys.push(pfx::open_key(&decode(body)?, password)?),
            "EC PRIVATE KEY" => return Err(CertificateError::Key("it is no RSA key")),
            // Parameters, public keys and requests may stand beside them.
            _ => {}
        }
    }
    Ok(parts)
}

fn decode(body: &str) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
    if body.contains(':') {
        return Err(CertificateError::Unreadable("its key is encrypted in the way of old OpenSSL versions"));
    }
    let packed: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
    let bytes = STANDARD.decode(packed.as_bytes());
    Ok(Zeroizing::new(bytes.map_err(|_| CertificateError::Unreadable("a PEM section in it is damaged"))?))
}
