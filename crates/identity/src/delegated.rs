//! Access tokens from a person's stored sign-in, and the renewal of that sign-in (`entra` protocol, section 6).
//!
//! ```text
//! lock the account ─ load ─┬ nobody signed in ─▶ NotSignedIn
//!                          ├ another process has a fresh token for this resource ─▶ that one
//!                          └ redeem the refresh token ─ check whose ─ keep the new one durably ─▶ hand out
//! ```
//!
//! The order matters: the new refresh token is durable before the access token is handed out. A crash between the answer
//! and the write is harmless, because the service does not withdraw the old one; a write that fails hands nothing out.
//! One refresh token serves all resources, so the lock covers the account, not the resource, and it covers other
//! processes.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use crate::credential::{Expected, Want, claims_parameter};
use crate::endpoint::{Endpoint, Form, Granted, Issued};
use crate::token_store::{AccountLock, Secret, StoreError, StoredSignIn};
use crate::{AccountKey, AppIdentity, TokenError, TokenStore};

/// Pause between two looks at a lock that somebody else holds.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for it: twice what one request may take at worst.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(90);

/// What every interactive request and every renewal asks for beside the resource: `offline_access` brings the refresh
/// token, the other two the id token that names the person (section 3).
pub(crate) const IDENTITY_SCOPES: &str = "offline_access openid profile";

/// Asks for tokens of one person for one scope.
pub(crate) struct Delegated {
    endpoint: Endpoint,
    entries: Entries,
}

impl Delegated {
    pub(crate) fn new(endpoint: Endpoint, store: Arc<dyn TokenStore>, identity: &AppIdentity) -> Self {
        Self { endpoint, entries: Entries { store, account: AccountKey::of(identity) } }
    }

    pub(crate) async fn ask(&self, want: &Want) -> Result<Issued, TokenError> {
        let asked = &self.endpoint.asked;
        let clock = self.endpoint.clock();
        let lock = self.entries.lock(&**clock).await?;
        let (entry, lock) = self.entries.load(lock).await?;
        let Some(mut entry) = entry else {
            return Err(TokenError::NotSignedIn { profile: asked.profile.clone() });
        };
        if want.claims.is_none()
            && !want.fresh
            && let Some((token, life, left)) = entry.access(&asked.scope, clock.now())
            && left > crate::source::renewal_margin(life)
            && want.refused.as_ref() != Some(&token)
        {
            debug!(profile = asked.profile, "another run has fetched a token already");
            return Ok(Issued { token, life, left });
        }
        let mut form = Form::default()
            .with("client_id", &asked.client_id)
            .with("grant_type", "refresh_token")
            .with("refresh_token", &entry.refresh_token.0)
            .with("scope", &format!("{} {IDENTITY_SCOPES}", asked.scope));
        if let Some(claims) = claims_parameter(&asked.scope, want.claims.as_ref()) {
            form = form.with("claims", &claims);
        }
        match self.endpoint.token(&entry.tenant, form).await {
            Ok(granted) => {
                let expected =
                    Expected { tenant: Some(&entry.tenant), app: Some(&asked.client_id), user: Some(&entry.object_id) };
                expected.check(&asked.profile, &granted.issued.token)?;
                let Granted { issued, refresh_token, .. } = granted;
                // An answer without a new one means that the old one goes on.
                if let Some(token) = refresh_token {
                    entry.refresh_token = Secret(token);
                }
                entry.renewed = clock.now();
                entry.claims_wanted = None;
                entry.keep_access(&asked.scope, &issued.token, issued.life);
                self.entries.save(entry, lock).await?;
                Ok(issued)
            }
            Err(refusal) => {
                if let Some(claims) = refusal.cause.claims() {
                    // The person who signs in next has to bring these, in another process maybe.
                    entry.claims_wanted = Some(Secret::from(claims.json()));
                    if let Err(error) = self.entries.save(entry, lock).await {
                        warn!(profile = asked.profile, error = %dynavault_model::chain(&error), "could not note what the next sign-in has to bring");
                    }
                }
                Err(refusal.cause)
            }
        }
    }
}

/// One account's entry in a store, used from asynchronous code. The lock goes along into each blocking step, so that a
/// caller who gives up does not free it while the step is still under way.
#[derive(Debug, Clone)]
pub(crate) struct Entries {
    pub(crate) store: Arc<dyn TokenStore>,
    pub(crate) account: AccountKey,
}

impl Entries {
    pub(crate) async fn lock(&self, clock: &dyn dynavault_model::Clock) -> Result<AccountLock, TokenError> {
        let start = clock.elapsed();
        loop {
            let taken = self.blocking(|store, account| store.try_lock(account)).await?;
            if let Some(lock) = taken {
                return Ok(lock);
            }
            if clock.elapsed().saturating_sub(start) >= LOCK_WAIT_MAX {
                let profile = self.account.profile().to_owned();
                return Err(self.failed(StoreError::Busy { profile, seconds: LOCK_WAIT_MAX.as_secs() }));
            }
            clock.sleep(LOCK_PAUSE).await;
        }
    }

    pub(crate) async fn load(&self, lock: AccountLock) -> Result<(Option<StoredSignIn>, AccountLock), TokenError> {
        self.blocking(move |store, account| store.load(account).map(|entry| (entry, lock))).await
    }

    /// The entry as it is, without changing it.
    pub(crate) async fn look(&self) -> Result<Option<StoredSignIn>, TokenError> {
        self.blocking(|store, account| store.load(account)).await
    }

    /// Keeps the entry and frees the lock.
    pub(crate) async fn save(&self, entry: StoredSignIn, lock: AccountLock) -> Result<(), TokenError> {
        self.blocking(move |store, account| {
            let saved = store.save(account, &entry);
            drop(lock);
            saved
        })
        .await
    }

    pub(crate) async fn delete(&self, lock: AccountLock) -> Result<bool, TokenError> {
        self.blocking(move |store, account| {
            let deleted = store.delete(account);
            drop(lock);
            deleted
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn TokenStore, &AccountKey) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, TokenError> {
        let entries = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&*entries.store, &entries.account)).await;
        match done {
            Ok(result) => result.map_err(|error| self.failed(error)),
            // The runtime is shutting down, or a store outside this crate panicked.
            Err(error) => Err(self.failed(StoreError::Io {
                what: "finish with",
                path: self.store.describe().into(),
                source: std::io::Error::other(error),
            })),
        }
    }

    fn failed(&self, error: StoreError) -> TokenError {
        TokenError::Store { profile: self.account.profile().to_owned(), source: Arc::new(error) }
    }
}
