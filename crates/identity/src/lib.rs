//! Configured credentials turned into bearer tokens for one audience.
//!
//! [`token_source`] makes a [`TokenSource`] from an [`AppIdentity`]: it asks the sign-in service through the Azure SDK,
//! keeps the token until shortly before it expires, and says in one sentence why there is none. [`transport`] is the
//! HTTP client that the SDK is given, here and in the blob store; [`redact`] is what may be shown of URLs and foreign
//! messages.
//!
//! Tokens and secrets never appear in messages, logs or `Debug` output.

mod credential;
mod error;
mod fixed;
pub mod redact;
mod refusal;
mod source;
mod token;
pub mod transport;

pub use credential::{AppIdentity, Credential, PUBLIC_AUTHORITY};
pub use error::{TokenError, TokenFault, TraceIds};
pub use fixed::FixedToken;
pub use secrecy::{ExposeSecret, SecretString};
pub use source::token_source;
pub use token::{BearerToken, TokenSource};
