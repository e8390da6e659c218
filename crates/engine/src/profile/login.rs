//! `profile login`, `reauthorize` and `logout`: a person signs in with a profile, again, or out.
//!
//! ```text
//! stored sign-in ─copy─▶ memory ─▶ browser or device code ─▶ memory ─▶ same person? ─▶ stored sign-in
//! ```
//!
//! What the interactive sign-in brings is kept in memory first, and replaces the stored one only when it is of whom it has
//! to be. So a sign-in that fails, or is of somebody else, leaves the stored one in use. Name and history of the profile
//! are not touched: they hang on its name.

use std::sync::Arc;
use std::time::Duration;

use dynavault_identity::{
    AccountKey, AppIdentity, CodeSignIn, Credential, DeviceSignIn, MemoryTokenStore, Prompt, SignIn, SignInError,
    SignInOptions, StoreError, StoredSignIn, TokenStore,
};
use dynavault_model::FaultKind;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::assemble::Engine;
use crate::config::CredentialConfig;
use crate::failure::Failure;

/// Pause between two looks at a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for it; a renewal takes seconds.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(90);

/// How a person signs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginWay {
    /// With a browser that can reach this machine at `localhost`.
    Browser,
    /// With a code that is entered on any device.
    DeviceCode,
}

/// Who may take the place of the person who is signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginAs {
    /// Anybody of the tenant.
    Anybody,
    /// The same person of the same tenant only.
    SamePerson,
}

/// A sign-in to begin.
#[derive(Debug, Clone)]
pub struct LoginRequest {
    /// Name of the profile.
    pub profile: String,
    /// How.
    pub way: LoginWay,
    /// As whom.
    pub person: LoginAs,
    /// Show the permissions again, also those added to the app registration since the last time.
    pub consent: bool,
}

/// What the person needs to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginPrompt {
    /// An address to open in a browser on this machine.
    Page {
        /// The address.
        url: String,
    },
    /// A code to enter on a page.
    Code {
        /// The page.
        page: String,
        /// The code.
        code: String,
        /// How long it works.
        life: Duration,
    },
}

/// How a sign-in ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoginEnd {
    /// Name of the profile.
    pub profile: String,
    /// GUID of the tenant.
    pub tenant: String,
    /// Object id of the person.
    pub user_id: String,
    /// Name of the person, for display.
    pub user: Option<String>,
    /// Scopes of the first token.
    pub scopes: Vec<String>,
    /// Who was signed in before, if it was somebody else.
    pub replaced: Option<String>,
    /// Which store keeps it.
    pub store: String,
}

enum Waiting {
    Code(Box<CodeSignIn>),
    Device(Box<DeviceSignIn>),
}

/// A sign-in that waits for a person.
pub struct PendingLogin<'a> {
    engine: &'a Engine,
    waiting: Waiting,
    account: AccountKey,
    staging: Arc<MemoryTokenStore>,
    store: Arc<dyn TokenStore>,
    before: Option<StoredSignIn>,
    person: LoginAs,
}

fn failed(error: SignInError) -> Failure {
    match error {
        SignInError::Token(error) => crate::profile::sign_in_failed(&error),
        error => error.into(),
    }
}

fn of_store(error: StoreError) -> Failure {
    error.into()
}

/// Uses a store, which blocks: it writes files, and asks a keyring that may ask a person.
async fn in_store<T: Send + 'static>(
    store: &Arc<dyn TokenStore>,
    account: &AccountKey,
    work: impl FnOnce(&dyn TokenStore, &AccountKey) -> Result<T, StoreError> + Send + 'static,
) -> Result<Result<T, StoreError>, Failure> {
    let (store, account) = (Arc::clone(store), account.clone());
    let done = tokio::task::spawn_blocking(move || work(&*store, &account)).await;
    done.map_err(|error| Failure::new(FaultKind::Failed, format!("the store of sign-ins broke: {error}"), None))
}

impl Engine {
    fn person_identity(&self, name: &str) -> Result<AppIdentity, Failure> {
        let profile = self.profile(name)?;
        if !matches!(profile.credential, CredentialConfig::Delegated {}) {
            return Err(Failure::usage(
                format!(
                    "profile {name} signs in by itself, with a credential of kind {}; nobody signs in with it",
                    profile.credential.name()
                ),
                format!(
                    "renew the credential in the configuration and look with `dynavault profile check {name}`; permissions are granted at the address of `dynavault profile consent-url {name}`"
                ),
            ));
        }
        self.app_identity(profile)
    }

    /// Begins a sign-in. The stored one stays in use until [`PendingLogin::finish`].
    pub async fn login(&self, request: &LoginRequest) -> Result<PendingLogin<'_>, Failure> {
        let identity = self.person_identity(&request.profile)?;
        let scope = self.first_scope(self.profile(&request.profile)?)?;
        let account = AccountKey::of(&identity);
        let store = self.token_store()?;
        let look = |store: &dyn TokenStore, account: &AccountKey| {
            // Before a person is bothered.
            store.prepare()?;
            store.load(account)
        };
        let before = match in_store(&store, &account, look).await? {
            Ok(before) => before,
            // An entry that cannot be read is replaced, unless it matters whose it is.
            Err(StoreError::Corrupt { .. } | StoreError::Version { .. } | StoreError::KeyGone { .. })
                if request.person == LoginAs::Anybody =>
            {
                None
            }
            Err(error) => return Err(of_store(error)),
        };
        let staging = Arc::new(MemoryTokenStore::default());
        if let Some(before) = &before {
            // Its notes go along: claims that the next sign-in has to bring.
            staging.save(&account, before).map_err(of_store)?;
        }
        let credential = Credential::Delegated { store: Arc::clone(&staging) as Arc<dyn TokenStore> };
        let sign_in = SignIn::new(AppIdentity { credential, ..identity }, Arc::clone(self.clock()))?;
        let waiting = match request.way {
            LoginWay::Browser => {
                let options = SignInOptions {
                    scope,
                    prompt: if request.consent { Prompt::Consent } else { Prompt::SelectAccount },
                    // Where anybody may sign in, the person chooses.
                    login_hint: before
                        .as_ref()
                        .filter(|_| request.person == LoginAs::SamePerson)
                        .and_then(|before| before.user_name().map(str::to_string)),
                    claims: None,
                };
                Waiting::Code(Box::new(sign_in.begin_code(options).await.map_err(failed)?))
            }
            LoginWay::DeviceCode => Waiting::Device(Box::new(sign_in.begin_device(&scope).await.map_err(failed)?)),
        };
        Ok(PendingLogin { engine: self, waiting, account, staging, store, before, person: request.person })
    }

    /// Forgets the sign-in of a profile on this machine; whether there was one. The service is not told: it has no way of
    /// revoking a single sign-in (`entra` protocol, section 1.2).
    pub async fn logout(&self, name: &str) -> Result<bool, Failure> {
        let sign_in = SignIn::new(self.person_identity(name)?, Arc::clone(self.clock()))?;
        Ok(sign_in.sign_out().await?)
    }
}

impl PendingLogin<'_> {
    /// What to show.
    pub fn prompt(&self) -> LoginPrompt {
        match &self.waiting {
            Waiting::Code(pending) => LoginPrompt::Page { url: pending.url().to_string() },
            Waiting::Device(pending) => LoginPrompt::Code {
                page: pending.verification_uri().to_string(),
                code: pending.user_code().to_string(),
                life: pending.life(),
            },
        }
    }

    /// Waits until the person is done, and keeps the sign-in.
    pub async fn finish(self, cancel: &CancellationToken) -> Result<LoginEnd, Failure> {
        let Self { engine, waiting, account, staging, store, before, person } = self;
        let signed_in = match waiting {
            Waiting::Code(pending) => pending.finish(cancel).await,
            Waiting::Device(pending) => pending.finish(cancel).await,
        };
        let signed_in = signed_in.map_err(failed)?;
        let profile = account.profile().to_string();
        let other = before.filter(|before| {
            !before.tenant().eq_ignore_ascii_case(&signed_in.tenant)
                || !before.object_id().eq_ignore_ascii_case(&signed_in.object_id)
        });
        let named = other.as_ref().map(|other| other.user_name().unwrap_or(other.object_id()).to_string());
        if let Some(other) = &named
            && person == LoginAs::SamePerson
        {
            let user = signed_in.user_name.unwrap_or(signed_in.object_id);
            return Err(Failure::new(
                FaultKind::SignIn,
                format!("{user} signed in, but profile {profile} is that of {other}; nothing was changed"),
                Some(format!(
                    "sign in as {other}, or hand the profile over with `dynavault profile reauthorize {profile} --switch-user`"
                )),
            ));
        }
        let fresh = staging.load(&account).map_err(of_store)?.ok_or_else(|| {
            Failure::new(
                FaultKind::Failed,
                format!("the sign-in of profile {profile} was lost before it was kept"),
                None,
            )
        })?;
        let clock = engine.clock();
        let start = clock.elapsed();
        let lock = loop {
            match in_store(&store, &account, |store, account| store.try_lock(account)).await?.map_err(of_store)? {
                Some(lock) => break lock,
                None if clock.elapsed().saturating_sub(start) >= LOCK_WAIT_MAX => {
                    let seconds = LOCK_WAIT_MAX.as_secs();
                    return Err(of_store(StoreError::Busy { profile, seconds }));
                }
                None => clock.sleep(LOCK_PAUSE).await,
            }
        };
        let keep = move |store: &dyn TokenStore, account: &AccountKey| {
            let kept = store.save(account, &fresh);
            drop(lock);
            kept
        };
        in_store(&store, &account, keep).await?.map_err(of_store)?;
        Ok(LoginEnd {
            profile,
            tenant: signed_in.tenant,
            user_id: signed_in.object_id,
            user: signed_in.user_name,
            scopes: signed_in.scopes,
            replaced: named,
            store: store.describe(),
        })
    }
}
