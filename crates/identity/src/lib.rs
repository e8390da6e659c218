//! Configured credentials turned into bearer tokens for one audience.
//!
//! [`token_source`] makes a [`TokenSource`] from an [`AppIdentity`]: it asks the sign-in service, keeps the token until
//! shortly before it expires, and says in one sentence why there is none. An app signs in by itself with a secret, a
//! [`ClientCertificate`], a federated token or the identity of its machine; a person signs in once with [`SignIn`], and
//! what that gives is kept in a [`TokenStore`] and renewed by the source.
//!
//! Around it: [`Cloud`] knows the addresses of each cloud, [`TokenClaims`] reads what a token says about itself,
//! [`ClaimsChallenge`] what a service wants in the next one, [`admin_consent_url`] leads an administrator to the page that
//! grants permissions. [`transport`] is the HTTP client that the Azure SDK is given, here and in the blob store;
//! [`redact`] is what may be shown of URLs and foreign messages.
//!
//! Tokens and secrets never appear in messages, logs or `Debug` output.

mod certificate;
mod challenge;
mod claims;
mod cloud;
mod consent;
mod credential;
mod delegated;
mod endpoint;
mod error;
mod fixed;
pub mod redact;
mod refusal;
mod sdk;
mod sign_in;
mod source;
mod token;
mod token_store;
pub mod transport;

pub use certificate::{CERTIFICATE_BYTES_MAX, CertificateError, ClientCertificate};
pub use challenge::{CHALLENGE_BYTES_MAX, ClaimsChallenge};
pub use claims::{CLAIMS_BYTES_MAX, ClaimsUnread, Principal, TokenClaims};
pub use cloud::{Cloud, UnknownCloud};
pub use consent::{CONSENT_REDIRECT, ConsentError, admin_consent_url, read_consent_return};
pub use credential::{AppIdentity, Credential, PUBLIC_AUTHORITY};
pub use error::{TokenError, TokenFault, TraceIds};
pub use fixed::FixedToken;
pub use secrecy::{ExposeSecret, SecretString};
pub use sign_in::{CodeSignIn, DeviceSignIn, Prompt, SIGN_IN_TIME_MAX, SignIn, SignInError, SignInOptions, SignedIn};
pub use source::token_source;
pub use token::{BearerToken, TokenSource};
pub use token_store::{
    AccountKey, AccountLock, FileTokenStore, MemoryTokenStore, SEAL_SECRET_CHARS_MIN, StoreError, StoredSignIn,
    TokenStore,
};
