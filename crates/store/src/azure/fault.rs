//! What an answer of the blob service means.
//!
//! The service's code comes in a header, also where a reply has no body. Codes are those of "Blob service error codes"
//! and "Common REST API error codes" of the Azure Storage REST documentation; unknown ones go by their status.

use dynavault_identity::TokenError;
use dynavault_identity::redact::scrub;
use dynavault_identity::transport::{RetryAfter, WireError, wire_error};
use dynavault_model::chain;

use crate::error::Cause;

/// What to do about a failed request.
#[derive(Debug, Clone)]
pub(crate) enum Class {
    /// No such object.
    Missing,
    /// No such container, or no such account.
    NoContainer,
    /// An object of that name is there.
    Exists,
    /// A range behind the end.
    PastEnd,
    /// Blocks of a list are gone: another writer committed the object.
    BadBlocks,
    /// Somebody else holds the lease.
    Leased,
    /// The lease is not ours any more.
    LeaseLost,
    /// The token is not accepted.
    Unauthorized,
    /// Not allowed; the service's code, if it sent one.
    Denied(String),
    /// No token.
    SignIn(TokenError),
    /// Worth another try.
    Trouble {
        /// The request was surely not sent or not acted on.
        without_effect: bool,
        /// No connection came about.
        unreachable: bool,
        /// When the service wants to be asked again.
        after: Option<RetryAfter>,
    },
    /// Everything else.
    Other,
}

/// A failed request: what it means, and in words.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) class: Class,
    pub(crate) cause: Cause,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Words(String);

pub(crate) fn classify(error: &azure_core::Error) -> Fault {
    if let Some(refused) = token_error(error) {
        let refused = refused.clone();
        return Fault { class: Class::SignIn(refused.clone()), cause: Box::new(refused) };
    }
    let class = match wire_error(error) {
        Some(WireError::Connect { source, .. }) => {
            // Another try does not mend a certificate.
            let text = chain(source);
            if text.contains("certificate") || text.contains("UnknownIssuer") {
                Class::Other
            } else {
                Class::Trouble { without_effect: true, unreachable: true, after: None }
            }
        }
        Some(WireError::Interrupted { .. }) => {
            Class::Trouble { without_effect: false, unreachable: false, after: None }
        }
        Some(WireError::Status { status, .. }) => {
            of_status(status.code, status.error_code.as_deref().unwrap_or_default(), status.retry_after)
        }
        _ => Class::Other,
    };
    // The layers of the SDK repeat each other and add nothing; the wire error says it all.
    let cause: Cause = match wire_error(error) {
        Some(wire) => Box::new(Words(scrub(&chain(wire)))),
        None => Box::new(Words(scrub(&chain(error)))),
    };
    Fault { class, cause }
}

fn of_status(status: u16, code: &str, after: Option<RetryAfter>) -> Class {
    match (status, code) {
        // The second is what a SAS without the write right gets for an object that exists.
        (409, "BlobAlreadyExists" | "ContainerAlreadyExists") | (403, "UnauthorizedBlobOverwrite") => Class::Exists,
        (409, "BlobImmutableDueToPolicy") => Class::Denied(code.to_owned()),
        (_, "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled") => Class::NoContainer,
        (404, _) => Class::Missing,
        (_, "LeaseAlreadyPresent" | "LeaseIdMissing") => Class::Leased,
        (_, code) if code.starts_with("Lease") => Class::LeaseLost,
        (412, _) => Class::Exists,
        (416, _) => Class::PastEnd,
        (400, "InvalidBlockList" | "InvalidBlobOrBlock") => Class::BadBlocks,
        // The checksum did not fit: the bytes were damaged on the way.
        (400, "Crc64Mismatch" | "Md5Mismatch") => Class::Trouble { without_effect: true, unreachable: false, after },
        (401, _) => Class::Unauthorized,
        (403, _) => Class::Denied(code.to_owned()),
        (408 | 429, _) => Class::Trouble { without_effect: status == 429, unreachable: false, after },
        (500 | 502 | 503 | 504, _) => Class::Trouble { without_effect: false, unreachable: false, after },
        _ => Class::Other,
    }
}

fn token_error(error: &azure_core::Error) -> Option<&TokenError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<TokenError>() {
            return Some(refused);
        }
        cause = inner.source();
    }
    None
}

/// What the operator can do about a denial.
pub(crate) fn denial_remedy(code: &str, sas: bool) -> String {
    match code {
        "AuthenticationFailed" if sas => {
            "check that the SAS is complete, not expired and signed with a current key, and the clock of this host".into()
        }
        "AuthenticationFailed" => "check the credential in vault.auth and the clock of this host".into(),
        "BlobImmutableDueToPolicy" => {
            "an immutability policy protects the object; wait until it ends".into()
        }
        "AuthorizationSourceIPMismatch" | "AuthorizationProtocolMismatch" => {
            "the SAS is limited to other addresses or protocols; issue one that fits this host".into()
        }
        "KeyBasedAuthenticationNotPermitted" => {
            "the account refuses keys and their SAS; use an Entra credential or a user delegation SAS".into()
        }
        "AccountIsDisabled" => "enable the storage account".into(),
        _ if sas => {
            "the SAS needs the rights create, write, list and read on the container (create and write suffice for capture; \
             prune needs delete); if it has them, allow this host in the account's firewall"
                .into()
        }
        _ => {
            "give the identity the role Storage Blob Data Contributor on the container; if it has it, allow this host in the \
             account's firewall"
                .into()
        }
    }
}
