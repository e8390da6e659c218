//! Where sign-ins of people are kept between runs: the port, the entry, and a store in memory.
//!
//! A stored sign-in is worth as much as the person's password for as long as it lasts, so a store is chosen by the
//! operator and nothing falls back to another one silently. There is one entry per profile, issuer, tenant and app.
//!
//! Stores block; callers run them on a blocking thread. Whoever changes an entry holds its lock, which also excludes
//! other processes where the store is shared by them.

mod file;
mod keyring;
mod seal;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dynavault_model::{Diagnose, FaultKind, Retry};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use file::FileTokenStore;
pub use seal::SEAL_SECRET_CHARS_MIN;

use crate::{AppIdentity, BearerToken, Cloud};

/// Access tokens kept beside a refresh token, one per resource; the oldest makes room.
const ACCESS_TOKENS_MAX: usize = 16;

/// How far the clocks of two runs may be apart before a kept access token is not trusted.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

/// Whose sign-in: profile, issuer by its preferred name, tenant as configured, and app.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccountKey {
    profile: String,
    issuer: String,
    tenant: String,
    client_id: String,
}

impl AccountKey {
    /// The key of an identity's sign-in. Spelling and aliases of the issuer do not matter.
    pub fn of(identity: &AppIdentity) -> Self {
        Self {
            profile: identity.name.clone(),
            issuer: Cloud::issuer_key(&identity.authority),
            tenant: identity.tenant.to_ascii_lowercase(),
            client_id: identity.client_id.to_ascii_lowercase(),
        }
    }

    /// Name of the profile.
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// One text per key, so that no two keys share one.
    fn canonical(&self) -> String {
        serde_json::json!([self.profile, self.issuer, self.tenant, self.client_id]).to_string()
    }
}

/// A person's sign-in. The tokens never print.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredSignIn {
    /// GUID of the tenant, as the sign-in service said.
    pub(crate) tenant: String,
    /// Object id of the person; with the tenant the stable key.
    pub(crate) object_id: String,
    pub(crate) user_name: Option<String>,
    pub(crate) signed_in: Timestamp,
    pub(crate) renewed: Timestamp,
    pub(crate) refresh_token: Secret,
    pub(crate) access_tokens: Vec<StoredAccess>,
    /// Claims that the next interactive sign-in has to carry.
    pub(crate) claims_wanted: Option<Secret>,
}

/// An access token of one resource, so that a short run after another needs no request.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredAccess {
    pub(crate) scope: String,
    pub(crate) token: Secret,
    pub(crate) expires_on: Timestamp,
    pub(crate) life_s: u64,
}

/// Text that is wiped when dropped. It has no `Debug`; it is written only into what is sealed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub(crate) struct Secret(pub(crate) Zeroizing<String>);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.0.as_str().to_owned()
    }
}

impl StoredSignIn {
    /// GUID of the tenant the person signed in to.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Object id of the person.
    pub fn object_id(&self) -> &str {
        &self.object_id
    }

    /// Name of the person, for display; it can change.
    pub fn user_name(&self) -> Option<&str> {
        self.user_name.as_deref()
    }

    /// When the person signed in.
    pub fn signed_in(&self) -> Timestamp {
        self.signed_in
    }

    /// When the sign-in was last renewed. Unused for 90 days it expires (section 6).
    pub fn renewed(&self) -> Timestamp {
        self.renewed
    }

    /// The access token for `scope`, with total life and what is left at `now`, if one is kept and has not expired.
    pub(crate) fn access(&self, scope: &str, now: Timestamp) -> Option<(BearerToken, Duration, Duration)> {
        let access = self.access_tokens.iter().find(|access| access.scope == scope)?;
        let left = Duration::try_from(access.expires_on.duration_since(now)).ok()?;
        let life = Duration::from_secs(access.life_s);
        // Much more left than there ever was: the clock was set back, and the time of expiry means nothing.
        let token = || BearerToken::new(access.token.0.as_str(), access.expires_on);
        (left <= life + CLOCKS_APART_MAX).then(|| (token(), life, left.min(life)))
    }

    /// Keeps an access token, replacing the one for the same scope.
    pub(crate) fn keep_access(&mut self, scope: &str, token: &BearerToken, life: Duration) {
        self.access_tokens.retain(|access| access.scope != scope);
        self.access_tokens.truncate(ACCESS_TOKENS_MAX - 1);
        let token_text = Secret(Zeroizing::new(token.secret().to_owned()));
        self.access_tokens.insert(
            0,
            StoredAccess {
                scope: scope.to_owned(),
                token: token_text,
                expires_on: token.expires_on(),
                life_s: life.as_secs(),
            },
        );
    }
}

impl fmt::Debug for StoredSignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredSignIn")
            .field("tenant", &self.tenant)
            .field("object_id", &self.object_id)
            .field("signed_in", &self.signed_in)
            .field("renewed", &self.renewed)
            .finish_non_exhaustive()
    }
}

/// Excludes others from changing an entry until it is dropped.
pub struct AccountLock(#[expect(dead_code, reason = "held for its Drop")] Box<dyn Send>);

impl AccountLock {
    /// A lock that `guard` releases when it is dropped.
    pub fn new(guard: impl Send + 'static) -> Self {
        Self(Box::new(guard))
    }
}

impl fmt::Debug for AccountLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccountLock")
    }
}

/// Keeps sign-ins. All functions block for the time of a small file.
pub trait TokenStore: Send + Sync + fmt::Debug {
    /// The sign-in of an account; `None` if nobody signed in.
    fn load(&self, account: &AccountKey) -> Result<Option<StoredSignIn>, StoreError>;

    /// Keeps a sign-in. When this returns, it survives a crash; when it fails, the one before is still there. The
    /// caller holds the lock.
    fn save(&self, account: &AccountKey, sign_in: &StoredSignIn) -> Result<(), StoreError>;

    /// Forgets a sign-in; tells whether there was one. The caller holds the lock. The service is not told: it has no
    /// way of revoking one sign-in (section 1.2).
    fn delete(&self, account: &AccountKey) -> Result<bool, StoreError>;

    /// The lock of an account, or `None` while somebody else holds it. Does not wait.
    fn try_lock(&self, account: &AccountKey) -> Result<Option<AccountLock>, StoreError>;

    /// Makes sure that a sign-in can be kept, before a person is bothered with one.
    fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Which store is in force, for status output, e.g. `file /var/lib/dynavault/sign-ins`.
    fn describe(&self) -> String;
}

/// A store failed. Messages name files, never content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Others could read or replace the file.
    #[error("{path} is not safe to keep a sign-in in: {reason}")]
    Unsafe {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What the operator can do.
        remedy: String,
    },
    /// The content does not pass its check: damaged, swapped, or sealed with another secret.
    #[error("the sign-in in {path} does not pass its check: it is damaged, or sealed with another secret")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Name of the profile.
        profile: String,
    },
    /// Written by a newer version.
    #[error("the sign-in in {path} has format {version}, which this version does not know")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version byte.
        version: u8,
    },
    /// The keyring of the operating system gives no key.
    #[error("the keyring of the operating system {problem}")]
    Keyring {
        /// What is wrong with it, e.g. `is locked`.
        problem: &'static str,
        /// What it said, or why it said nothing.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// There is a sealed sign-in, and the keyring holds no key for it any more.
    #[error("the keyring of the operating system no longer holds the key of the sign-in in {path}")]
    KeyGone {
        /// The file.
        path: PathBuf,
        /// Name of the profile.
        profile: String,
    },
    /// The secret that seals the files cannot be used.
    #[error("the secret that seals sign-ins cannot be used: {0}")]
    Secret(&'static str),
    /// The file system refused.
    #[error("could not {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody held the lock for too long.
    #[error("another process has been renewing the sign-in of profile {profile} for {seconds} s")]
    Busy {
        /// Name of the profile.
        profile: String,
        /// How long was waited.
        seconds: u64,
    },
}

impl Diagnose for StoreError {
    fn retry(&self) -> Retry {
        match self {
            Self::Busy { .. } => Retry::Backoff,
            _ => Retry::Permanent,
        }
    }

    fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Unsafe { remedy, .. } => remedy.clone(),
            Self::Corrupt { profile, .. } => format!(
                "configure the secret the file was sealed with; if that is lost, sign in again with `dynavault profile login {profile}`"
            ),
            Self::Version { .. } => "use the version of dynavault that wrote the file, or sign in again".to_owned(),
            Self::Keyring { .. } => {
                "start or unlock the keyring of this desktop session (GNOME Keyring, KWallet); where there is none, write [tokens] with store = \"file\" and key = { file = \"PATH\" }, and sign in again".to_owned()
            }
            Self::KeyGone { profile, .. } => format!("sign in again with `dynavault profile login {profile}`"),
            Self::Secret(_) => "make one with `openssl rand -base64 32`, keep it in a file of mode 0600".to_owned(),
            Self::Io { path, .. } => format!("check that {} can be written and has room", path.display()),
            Self::Busy { .. } => "look for a hanging dynavault process with this profile".to_owned(),
        })
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Corrupt { .. }
            | Self::Unsafe { .. }
            | Self::Version { .. }
            | Self::Keyring { .. }
            | Self::KeyGone { .. } => FaultKind::SignIn,
            Self::Secret(_) => FaultKind::Usage,
            Self::Io { .. } => FaultKind::Failed,
            Self::Busy { .. } => FaultKind::Busy,
        }
    }
}

/// Keeps sign-ins until the process ends.
#[derive(Debug, Default)]
pub struct MemoryTokenStore {
    entries: Mutex<HashMap<AccountKey, StoredSignIn>>,
    locks: Mutex<HashMap<AccountKey, Arc<()>>>,
}

impl TokenStore for MemoryTokenStore {
    fn load(&self, account: &AccountKey) -> Result<Option<StoredSignIn>, StoreError> {
        Ok(self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(account).cloned())
    }

    fn save(&self, account: &AccountKey, sign_in: &StoredSignIn) -> Result<(), StoreError> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(account.clone(), sign_in.clone());
        Ok(())
    }

    fn delete(&self, account: &AccountKey) -> Result<bool, StoreError> {
        Ok(self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(account).is_some())
    }

    fn try_lock(&self, account: &AccountKey) -> Result<Option<AccountLock>, StoreError> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let held = locks.entry(account.clone()).or_default();
        // One count is the map's, a second one that of whoever holds the lock.
        Ok((Arc::strong_count(held) == 1).then(|| AccountLock::new(Arc::clone(held))))
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}
