//! PKCS#12 (RFC 7292), the form in which Windows and key vaults export a certificate with its key.
//!
//! ```text
//! PFX ─ MAC over ─▶ list of safes ─┬ plain or sealed ─▶ list of bags ─┬ certificate
//!                                  └ …                                └ sealed or plain key (PKCS#8)
//! ```
//!
//! The MAC is checked first, so a wrong password is known before anything is opened. Safes are sealed with PBES2
//! (today's tools) or with 3DES in the way of the format's own first version (Windows until recently). RC2, which only
//! very old files use for certificates, is not understood; the remedy names a conversion.

use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut, KeyIvInit};
use cms::content_info::ContentInfo;
use cms::encrypted_data::EncryptedData;
use der::asn1::{ContextSpecific, ObjectIdentifier, OctetString};
use der::{Any, Decode, Encode};
use hmac::{Mac, SimpleHmac};
use pkcs5::EncryptionScheme;
use pkcs12::cert_type::CertBag;
use pkcs12::kdf::{Pkcs12KeyType, derive_key_utf8};
use pkcs12::mac_data::MacData;
use pkcs12::pbe_params::{EncryptedPrivateKeyInfo, Pkcs12PbeParams};
use pkcs12::pfx::Pfx;
use pkcs12::safe_bag::SafeContents;
use sha1::Sha1;
use sha2::digest::core_api::BlockSizeUser;
use sha2::digest::{Digest, FixedOutputReset};
use sha2::{Sha256, Sha384, Sha512};
use x509_cert::spki::AlgorithmIdentifierOwned;
use zeroize::Zeroizing;

use super::{CertificateError, Parts};

const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const ENCRYPTED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.6");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");

/// Rounds of a key derivation that are carried out; a file asking for more would only keep us busy. Tools use 2,000 to
/// 2,000,000.
const ROUNDS_MAX: i32 = 10_000_000;

const DAMAGED: CertificateError = CertificateError::Unreadable("it is no PKCS#12 file in DER, or damaged");
const UNKNOWN_SEAL: CertificateError = CertificateError::Unreadable("it is sealed in a way this program does not know");

/// Certificates and keys of a file.
pub(super) fn parts(content: &[u8], password: &str) -> Result<Parts, CertificateError> {
    let pfx = Pfx::from_der(content).map_err(|_| DAMAGED)?;
    let safes = plain(&pfx.auth_safe)?;
    // A file without MAC exists; what it holds is still checked to be a pair.
    if let Some(mac) = &pfx.mac_data {
        check_mac(mac, safes.as_bytes(), password)?;
    }
    let mut parts = Parts::default();
    for safe in Vec::<ContentInfo>::from_der(safes.as_bytes()).map_err(|_| DAMAGED)? {
        let bags = match safe.content_type {
            DATA => Zeroizing::new(plain(&safe)?.into_bytes()),
            ENCRYPTED_DATA => {
                let sealed: EncryptedData = safe.content.decode_as().map_err(|_| DAMAGED)?;
                let info = sealed.enc_content_info;
                let bytes = info.encrypted_content.ok_or(DAMAGED)?;
                open(&info.content_enc_alg, bytes.as_bytes(), password)?
            }
            _ => return Err(UNKNOWN_SEAL),
        };
        take(&bags, password, &mut parts)?;
    }
    Ok(parts)
}

/// Opens an encrypted PKCS#8 key, which is also a PEM section of its own.
pub(super) fn open_key(content: &[u8], password: &str) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
    let sealed = EncryptedPrivateKeyInfo::from_der(content).map_err(|_| DAMAGED)?;
    open(&sealed.encryption_algorithm, sealed.encrypted_data.as_bytes(), password)
}

fn take(bags: &[u8], password: &str, parts: &mut Parts) -> Result<(), CertificateError> {
    for bag in SafeContents::from_der(bags).map_err(|_| DAMAGED)? {
        let value = || ContextSpecific::<Any>::from_der(&bag.bag_value).map_err(|_| DAMAGED);
        match bag.bag_id {
            pkcs12::PKCS_12_CERT_BAG_OID => {
                let certificate: CertBag = value()?.value.decode_as().map_err(|_| DAMAGED)?;
                if certificate.cert_id == pkcs12::PKCS_12_X509_CERT_OID {
                    parts.certificates.push(certificate.cert_value.into_bytes());
                }
            }
            pkcs12::PKCS_12_KEY_BAG_OID => {
                parts.keys.push(Zeroizing::new(value()?.value.to_der().map_err(|_| DAMAGED)?));
            }
            pkcs12::PKCS_12_PKCS8_KEY_BAG_OID => {
                parts.keys.push(open_key(&value()?.value.to_der().map_err(|_| DAMAGED)?, password)?);
            }
            // Revocation lists and other secrets do not concern us.
            _ => {}
        }
    }
    Ok(())
}

fn plain(safe: &ContentInfo) -> Result<OctetString, CertificateError> {
    if safe.content_type != DATA {
        return Err(UNKNOWN_SEAL);
    }
    safe.content.decode_as().map_err(|_| DAMAGED)
}

fn check_mac(mac: &MacData, content: &[u8], password: &str) -> Result<(), CertificateError> {
    match mac.mac.algorithm.oid {
        SHA1 => check_mac_with::<Sha1>(mac, content, password),
        SHA256 => check_mac_with::<Sha256>(mac, content, password),
        SHA384 => check_mac_with::<Sha384>(mac, content, password),
        SHA512 => check_mac_with::<Sha512>(mac, content, password),
        _ => Err(UNKNOWN_SEAL),
    }
}

fn check_mac_with<D>(mac: &MacData, content: &[u8], password: &str) -> Result<(), CertificateError>
where
    D: Digest + FixedOutputReset + BlockSizeUser + Clone,
{
    let size = <D as Digest>::output_size();
    let key = derive::<D>(password, mac.mac_salt.as_bytes(), Pkcs12KeyType::Mac, mac.iterations, size)?;
    let mut check = SimpleHmac::<D>::new_from_slice(&key).map_err(|_| DAMAGED)?;
    check.update(content);
    check.verify_slice(mac.mac.digest.as_bytes()).map_err(|_| CertificateError::Password)
}

fn derive<D>(
    password: &str,
    salt: &[u8],
    use_: Pkcs12KeyType,
    rounds: i32,
    size: usize,
) -> Result<Zeroizing<Vec<u8>>, CertificateError>
where
    D: Digest + FixedOutputReset + BlockSizeUser,
{
    if !(1..=ROUNDS_MAX).contains(&rounds) {
        return Err(UNKNOWN_SEAL);
    }
    let key = derive_key_utf8::<D>(password, salt, use_, rounds, size);
    key.map(Zeroizing::new).map_err(|_| CertificateError::Password)
}

fn open(
    algorithm: &AlgorithmIdentifierOwned,
    sealed: &[u8],
    password: &str,
) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
    let mut buffer = Zeroizing::new(sealed.to_vec());
    if algorithm.oid == pkcs12::PKCS_12_PBE_WITH_SHAAND3_KEY_TRIPLE_DES_CBC {
        let parameters: Pkcs12PbeParams =
            algorithm.parameters.as_ref().ok_or(DAMAGED)?.decode_as().map_err(|_| DAMAGED)?;
        let derived =
            |use_, size| derive::<Sha1>(password, parameters.salt.as_bytes(), use_, parameters.iterations, size);
        let (key, iv) = (derived(Pkcs12KeyType::EncryptionKey, 24)?, derived(Pkcs12KeyType::Iv, 8)?);
        let cipher = cbc::Decryptor::<des::TdesEde3>::new_from_slices(&key, &iv).map_err(|_| DAMAGED)?;
        let opened = cipher.decrypt_padded_mut::<Pkcs7>(&mut buffer).map_err(|_| CertificateError::Password)?.len();
        buffer.truncate(opened);
        return Ok(buffer);
    }
    let bytes = algorithm.to_der().map_err(|_| DAMAGED)?;
    let scheme = EncryptionScheme::from_der(&bytes).map_err(|_| UNKNOWN_SEAL)?;
    let rounds = scheme.pbes2().and_then(|pbes2| pbes2.kdf.pbkdf2()).map_or(0, |kdf| kdf.iteration_count);
    if rounds > ROUNDS_MAX.unsigned_abs() {
        return Err(UNKNOWN_SEAL);
    }
    let opened = scheme.decrypt_in_place(password, &mut buffer).map_err(|error| match error {
        pkcs5::Error::DecryptFailed | pkcs5::Error::EncryptFailed => CertificateError::Password,
        _ => UNKNOWN_SEAL,
    })?;
    let opened = opened.len();
    buffer.truncate(opened);
    Ok(buffer)
}
