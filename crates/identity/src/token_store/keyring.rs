//! The keyring of the operating system: the Secret Service of a desktop session (GNOME Keyring, KWallet, KeePassXC).
//!
//! ```text
//! folder of sealed sign-ins ◀─ key ─ item of the keyring { application: dynavault, folder: … }
//! ```
//!
//! The keyring holds a random key, and the sign-ins are sealed with it in files (`entra` protocol, section 12.1): some
//! keyrings are too small for a refresh token, none promises when a change is durable, and a renewal then needs no
//! second way of being kept. The key is made once and never changed.
//!
//! Two processes may make a key at the same moment. Both keys then stay: files are opened with whichever fits, and all
//! processes seal with the same one, the first in the order of their text.
//!
//! The conversation goes over the session bus, encrypted, in a thread of its own with a time limit: a keyring may ask a
//! person for a password, and a bus may hang.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use secret_service::{Collection, EncryptionType, Error, Item, SecretService};
use zeroize::Zeroizing;

use super::StoreError;
use crate::endpoint::random_bytes;

/// Longest conversation: enough for a person to type the password of a keyring that is locked.
const CONVERSATION_TIME_MAX: Duration = Duration::from_secs(60);
/// Keys that are looked at; there is one, or two after a race.
const KEYS_MAX: usize = 8;
const CONTENT_TYPE: &str = "text/plain";

/// Where the key of sealed files is kept.
pub(super) trait Keyring: Send + Sync {
    /// Keys of the folder, in no order; empty if none was made yet.
    fn keys(&self) -> Result<Vec<SecretString>, StoreError>;

    /// Makes a key, which [`Self::keys`] gives from now on.
    fn make(&self) -> Result<(), StoreError>;
}

/// The Secret Service of this session. Nothing is asked before the first use.
pub(super) struct SessionKeyring {
    folder: String,
}

impl SessionKeyring {
    /// `folder` names the key: each folder of sign-ins has one of its own.
    pub(super) fn new(folder: String) -> Self {
        Self { folder }
    }

    fn converse<T: Send>(
        &self,
        work: impl AsyncFnOnce(&SecretService<'_>, HashMap<&str, &str>) -> Result<T, Error> + Send,
    ) -> Result<T, StoreError> {
        let attributes = HashMap::from([("application", "dynavault"), ("folder", self.folder.as_str())]);
        // Callers may be driven by a runtime themselves, and one cannot wait inside another.
        std::thread::scope(|scope| {
            let conversation = scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| refused("cannot be asked", error))?;
                let talk = async {
                    let service = SecretService::connect(EncryptionType::Dh).await?;
                    work(&service, attributes).await
                };
                match runtime.block_on(async { tokio::time::timeout(CONVERSATION_TIME_MAX, talk).await }) {
                    Ok(result) => result.map_err(of_service),
                    Err(late) => Err(refused("gave no answer in time", late)),
                }
            });
            let broken = |_| Err(StoreError::Keyring { problem: "cannot be asked", source: None });
            conversation.join().unwrap_or_else(broken)
        })
    }
}

impl Keyring for SessionKeyring {
    fn keys(&self) -> Result<Vec<SecretString>, StoreError> {
        self.converse(async |service, attributes| {
            let found = service.search_items(attributes).await?;
            let mut keys = Vec::new();
            for item in found.unlocked.iter().chain(&found.locked).take(KEYS_MAX) {
                keys.push(text_of(item).await?);
            }
            Ok(keys)
        })
    }

    fn make(&self) -> Result<(), StoreError> {
        let key = SecretString::from(STANDARD.encode(*Zeroizing::new(random_bytes::<32>())));
        let label = format!("dynavault: key of the sign-ins in {}", self.folder);
        self.converse(async |service, attributes| {
            let collection = service.get_default_collection().await?;
            unlock(&collection).await?;
            let key = key.expose_secret().as_bytes();
            collection.create_item(&label, attributes, key, false, CONTENT_TYPE).await.map(drop)
        })
    }
}

/// The text of an item; the keyring asks the person where the item is locked.
async fn text_of(item: &Item<'_>) -> Result<SecretString, Error> {
    if item.is_locked().await? {
        item.unlock().await?;
        item.ensure_unlocked().await?;
    }
    let bytes = Zeroizing::new(item.get_secret().await?);
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::Crypto("the key is no text"))?;
    Ok(SecretString::from(text))
}

async fn unlock(collection: &Collection<'_>) -> Result<(), Error> {
    if collection.is_locked().await? {
        collection.unlock().await?;
    }
    collection.ensure_unlocked().await
}

fn refused(problem: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Keyring { problem, source: Some(Box::new(source)) }
}

fn of_service(error: Error) -> StoreError {
    let problem = match &error {
        Error::Locked | Error::Prompt | Error::PromptDisconnected => "is locked",
        Error::NoResult => "has no default collection to keep a key in",
        _ => "does not answer",
    };
    refused(problem, error)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use dynavault_model::{Diagnose, FaultKind};

    use super::*;
    use crate::token_store::{FileTokenStore, StoredSignIn, TokenStore};
    use crate::{AccountKey, AppIdentity, Credential};

    /// A keyring in memory, and what goes on with it.
    #[derive(Default)]
    struct State {
        keys: Vec<String>,
        locked: bool,
        /// Another process makes this key at the moment we make ours.
        rival: Option<String>,
        asked: u32,
    }

    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<State>>);

    impl Keyring for Fake {
        fn keys(&self) -> Result<Vec<SecretString>, StoreError> {
            let mut state = self.0.lock().unwrap();
            state.asked += 1;
            if state.locked {
                return Err(of_service(Error::Prompt));
            }
            Ok(state.keys.iter().map(|key| SecretString::from(key.as_str())).collect())
        }

        fn make(&self) -> Result<(), StoreError> {
            let mut state = self.0.lock().unwrap();
            let made = STANDARD.encode(random_bytes::<32>());
            state.keys.push(made);
            let rival = state.rival.take();
            state.keys.extend(rival);
            Ok(())
        }
    }

    fn account() -> AccountKey {
        AccountKey::of(&AppIdentity {
            name: "p".into(),
            tenant: "contoso.com".into(),
            client_id: "app-1".into(),
            credential: Credential::AzureCli,
            authority: "https://login.microsoftonline.com".parse().unwrap(),
        })
    }

    fn sign_in(token: &str) -> StoredSignIn {
        serde_json::from_value(serde_json::json!({
            "tenant": "t", "object_id": "o", "user_name": null, "signed_in": "2031-02-03T04:05:06Z",
            "renewed": "2031-02-03T04:05:06Z", "refresh_token": token, "access_tokens": [], "claims_wanted": null,
        }))
        .unwrap()
    }

    fn open(folder: &Path, keyring: &Fake) -> FileTokenStore {
        let keyring = Box::new(keyring.clone());
        FileTokenStore::sealed_by(folder.join("sign-ins"), |_| keyring).unwrap()
    }

    fn kept(store: &FileTokenStore) -> String {
        store.load(&account()).unwrap().unwrap().refresh_token.0.to_string()
    }

    #[test]
    fn a_key_is_made_once_and_opens_what_any_process_has_kept() {
        let (folder, keyring) = (tempfile::tempdir().unwrap(), Fake::default());
        let first = open(folder.path(), &keyring);
        assert!(first.load(&account()).unwrap().is_none());
        assert_eq!(keyring.0.lock().unwrap().asked, 0, "without a sign-in there is nothing to be opened");
        first.save(&account(), &sign_in("ONE")).unwrap();
        let second = open(folder.path(), &keyring);
        assert_eq!(kept(&second), "ONE");
        second.save(&account(), &sign_in("TWO")).unwrap();
        assert_eq!(kept(&first), "TWO");
        let state = keyring.0.lock().unwrap();
        assert_eq!((state.keys.len(), state.asked), (1, 3), "each process asks once, and reads back what it made");
    }

    #[test]
    fn two_processes_that_make_a_key_at_the_same_moment_read_each_other() {
        for rival in ["", "~"] {
            // Before and after ours in the order of text.
            let rival = format!("{rival}{}", "!".repeat(44));
            let (folder, keyring) = (tempfile::tempdir().unwrap(), Fake::default());
            // The rival has searched before we came, and seals with its own key.
            let alone = Fake(Arc::new(Mutex::new(State { keys: vec![rival.clone()], ..State::default() })));
            let theirs = open(folder.path(), &alone);
            keyring.0.lock().unwrap().rival = Some(rival);
            let ours = open(folder.path(), &keyring);
            ours.save(&account(), &sign_in("OURS")).unwrap();
            theirs.save(&account(), &sign_in("THEIRS")).unwrap();
            assert_eq!(kept(&ours), "THEIRS");
            assert_eq!(kept(&open(folder.path(), &keyring)), "THEIRS");
        }
    }

    #[test]
    fn a_locked_keyring_is_named_with_its_setting_and_nothing_falls_back() {
        let (folder, keyring) = (tempfile::tempdir().unwrap(), Fake::default());
        open(folder.path(), &keyring).save(&account(), &sign_in("ONE")).unwrap();
        keyring.0.lock().unwrap().locked = true;
        let store = open(folder.path(), &keyring);
        let errors = [
            store.load(&account()).unwrap_err(),
            store.save(&account(), &sign_in("TWO")).unwrap_err(),
            store.prepare().unwrap_err(),
        ];
        for error in errors {
            assert_eq!(
                (error.to_string().as_str(), error.kind()),
                ("the keyring of the operating system is locked", FaultKind::SignIn)
            );
            assert!(error.remedy().unwrap().contains("[tokens] with store = \"file\""), "{error}");
        }
        keyring.0.lock().unwrap().locked = false;
        assert_eq!(kept(&store), "ONE");
        // Signing out needs no key.
        keyring.0.lock().unwrap().locked = true;
        assert!(store.delete(&account()).unwrap());
    }

    #[test]
    fn a_lost_key_asks_for_a_new_sign_in_and_a_changed_file_is_damage() {
        let (folder, keyring) = (tempfile::tempdir().unwrap(), Fake::default());
        open(folder.path(), &keyring).save(&account(), &sign_in("ONE")).unwrap();
        let key = std::mem::take(&mut keyring.0.lock().unwrap().keys);
        let error = open(folder.path(), &keyring).load(&account()).unwrap_err();
        assert!(matches!(error, StoreError::KeyGone { .. }), "{error:?}");
        assert!(error.remedy().unwrap().contains("profile login p"));
        keyring.0.lock().unwrap().keys = vec!["another key, of more than 32 characters".into()];
        let error = open(folder.path(), &keyring).load(&account()).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        keyring.0.lock().unwrap().keys.extend(key);
        assert_eq!(kept(&open(folder.path(), &keyring)), "ONE");
    }
}
