//! A folder of sealed sign-ins, one file each (`entra` protocol, section 12.1).
//!
//! ```text
//! <folder>/                 mode 0700, ours
//!   <hash of account>.seal  mode 0600, ours, no link: anything else is refused, not repaired
//!   <hash of account>.new   what a crash left of a write; removed by the next one
//!   <hash of account>.lock  empty; flock
//! ```
//!
//! A file is replaced whole: new file, fsync, rename, fsync of the folder. Before the rename the old sign-in is there,
//! after it the new one.
//!
//! What seals the files is a secret of the operator, or a key that the keyring of the operating system holds. Nothing
//! else differs between the two.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::process::geteuid;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::keyring::{Keyring, SessionKeyring};
use super::seal::{Seal, Unsealed};
use super::{AccountKey, AccountLock, StoreError, StoredSignIn, TokenStore};

const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Longest file that is read, in bytes: sixteen access tokens of 16 KiB and a refresh token stay below.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Keeps sign-ins in a folder, sealed with a secret of the operator or with a key in the keyring.
pub struct FileTokenStore {
    folder: PathBuf,
    sealing: Sealing,
}

/// What seals the files.
enum Sealing {
    Operator(Arc<Seal>),
    Keyring {
        keyring: Box<dyn Keyring>,
        /// Seals of the keys that were seen, the one for new files first. Empty until the keyring was asked.
        known: Mutex<Vec<Arc<Seal>>>,
    },
}

impl fmt::Debug for FileTokenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileTokenStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl FileTokenStore {
    /// Opens the folder and creates it if it is missing. `secret` seals the files; it has to be random, see
    /// [`SEAL_SECRET_CHARS_MIN`](super::SEAL_SECRET_CHARS_MIN). A folder that others may enter is refused.
    pub fn open(folder: impl Into<PathBuf>, secret: &SecretString) -> Result<Self, StoreError> {
        let sealing = Sealing::Operator(Arc::new(Seal::new(secret)?));
        let store = Self { folder: folder.into(), sealing };
        store.make_folder()?;
        Ok(store)
    }

    /// Opens the folder, whose files are sealed with a random key that the keyring of this session holds. The keyring is
    /// asked when the key is first needed. There is no fallback: without the keyring the files stay closed.
    pub fn with_keyring(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = folder.into();
        Self::sealed_by(folder, |named| Box::new(SessionKeyring::new(named)))
    }

    pub(super) fn sealed_by(
        folder: PathBuf,
        keyring: impl FnOnce(String) -> Box<dyn Keyring>,
    ) -> Result<Self, StoreError> {
        // The key is named after the folder, however it is spelled.
        let named = std::path::absolute(&folder).map_err(|source| failed("look at", &folder, source))?;
        let keyring = keyring(named.display().to_string());
        let store = Self { folder, sealing: Sealing::Keyring { keyring, known: Mutex::default() } };
        store.make_folder()?;
        Ok(store)
    }

    fn make_folder(&self) -> Result<(), StoreError> {
        let folder = &self.folder;
        match fs::symlink_metadata(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = folder.parent() {
                    fs::create_dir_all(parent).map_err(|source| failed("create", parent, source))?;
                }
                let made = DirBuilder::new().mode(FOLDER_MODE).create(folder);
                match made {
                    // Another process was faster; what it made is checked below.
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(failed("create", folder, error));
                    }
                    _ => {}
                }
            }
            Err(error) => return Err(failed("look at", folder, error)),
            Ok(_) => {}
        }
        self.check_folder()
    }

    fn check_folder(&self) -> Result<(), StoreError> {
        let found = fs::symlink_metadata(&self.folder).map_err(|source| failed("look at", &self.folder, source))?;
        let kind = if found.is_dir() { None } else { Some("it is not a folder") };
        check(&self.folder, &found, kind, FOLDER_MODE)
    }

    fn path(&self, account: &AccountKey, ending: &str) -> (PathBuf, String) {
        let hash = blake3::hash(account.canonical().as_bytes()).to_hex();
        let name = format!("{}.{ending}", &hash[..32]);
        (self.folder.join(&name), name)
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        let folder = File::open(&self.folder).and_then(|folder| folder.sync_all());
        folder.map_err(|source| failed("make durable", &self.folder, source))
    }
}

impl TokenStore for FileTokenStore {
    fn load(&self, account: &AccountKey) -> Result<Option<StoredSignIn>, StoreError> {
        self.check_folder()?;
        let (path, name) = self.path(account, "seal");
        let mut file = match options().read(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refused_link(&path, error, "read")),
        };
        let found = file.metadata().map_err(|source| failed("look at", &path, source))?;
        let kind = if found.is_file() { None } else { Some("it is not a file") };
        check(&path, &found, kind, FILE_MODE)?;
        let mut sealed = Vec::new();
        Read::by_ref(&mut file)
            .take(FILE_BYTES_MAX)
            .read_to_end(&mut sealed)
            .map_err(|source| failed("read", &path, source))?;
        let profile = || account.profile().to_owned();
        let corrupt = || StoreError::Corrupt { path: path.clone(), profile: profile() };
        let open = |seals: &[Arc<Seal>]| {
            let opened = seals.iter().map(|seal| seal.open(account, &name, &sealed));
            let mut opened = opened.filter(|opened| !matches!(opened, Unsealed::Corrupt));
            opened.next().unwrap_or(Unsealed::Corrupt)
        };
        let mut opened = open(&self.sealing.known());
        if let (Unsealed::Corrupt, Sealing::Keyring { .. }) = (&opened, &self.sealing) {
            // Not asked yet, or another process has made a key since.
            let seals = self.sealing.ask_keyring()?;
            if seals.is_empty() {
                return Err(StoreError::KeyGone { path, profile: profile() });
            }
            opened = open(&seals);
        }
        match opened {
            Unsealed::Open(content) => serde_json::from_slice(&content).map(Some).map_err(|_| corrupt()),
            Unsealed::Corrupt => Err(corrupt()),
            Unsealed::Version(version) => Err(StoreError::Version { path, version }),
        }
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.check_folder()?;
        self.sealing.for_new_files().map(drop)
    }

    fn save(&self, account: &AccountKey, sign_in: &StoredSignIn) -> Result<(), StoreError> {
        self.check_folder()?;
        let (path, name) = self.path(account, "seal");
        let (new, _) = self.path(account, "new");
        let content = serde_json::to_vec(sign_in).map(Zeroizing::new).expect("a sign-in is plain data");
        let sealed = self.sealing.for_new_files()?.seal(account, &name, &content);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new, error)),
            _ => {}
        }
        // Create-only and not through a link: nobody prepared this name for us.
        let written = options().write(true).create_new(true).mode(FILE_MODE).open(&new).and_then(|mut file| {
            file.write_all(&sealed)?;
            file.sync_all()
        });
        written.map_err(|source| failed("write", &new, source))?;
        fs::rename(&new, &path).map_err(|source| failed("replace", &path, source))?;
        self.sync_folder()
    }

    fn delete(&self, account: &AccountKey) -> Result<bool, StoreError> {
        self.check_folder()?;
        let mut found = false;
        for ending in ["seal", "new"] {
            let (path, _) = self.path(account, ending);
            match fs::remove_file(&path) {
                Ok(()) => found |= ending == "seal",
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("remove", &path, error)),
            }
        }
        // The lock file stays: somebody may be waiting for it.
        self.sync_folder()?;
        Ok(found)
    }

    fn try_lock(&self, account: &AccountKey) -> Result<Option<AccountLock>, StoreError> {
        self.check_folder()?;
        let (path, _) = self.path(account, "lock");
        let file = options()
            .write(true)
            .create(true)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|error| refused_link(&path, error, "lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(AccountLock::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path, error)),
        }
    }

    fn describe(&self) -> String {
        let folder = self.folder.display();
        match self.sealing {
            Sealing::Operator(_) => format!("file {folder}"),
            Sealing::Keyring { .. } => format!("keyring (its key opens the files in {folder})"),
        }
    }
}

impl Sealing {
    /// Seals that are known without asking anybody, the one for new files first.
    fn known(&self) -> Vec<Arc<Seal>> {
        match self {
            Self::Operator(seal) => vec![Arc::clone(seal)],
            Self::Keyring { known, .. } => known.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Seals of all keys that the keyring holds now.
    fn ask_keyring(&self) -> Result<Vec<Arc<Seal>>, StoreError> {
        let Self::Keyring { keyring, known } = self else { return Ok(self.known()) };
        let mut keys = keyring.keys()?;
        // All processes have to choose the same one for new files.
        keys.sort_unstable_by(|left, right| left.expose_secret().cmp(right.expose_secret()));
        let seals: Vec<Arc<Seal>> = keys.iter().map(|key| Seal::new(key).map(Arc::new)).collect::<Result<_, _>>()?;
        known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&seals);
        Ok(seals)
    }

    /// What seals new files. A key is made where the keyring has none.
    fn for_new_files(&self) -> Result<Arc<Seal>, StoreError> {
        let mut seals = self.known();
        if seals.is_empty() {
            seals = self.ask_keyring()?;
        }
        if let (true, Self::Keyring { keyring, .. }) = (seals.is_empty(), self) {
            keyring.make()?;
            // What is read back is surely there.
            seals = self.ask_keyring()?;
        }
        seals
            .into_iter()
            .next()
            .ok_or(StoreError::Keyring { problem: "did not keep the key it was given", source: None })
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { what, path: path.to_owned(), source }
}

/// `O_NOFOLLOW` meets a link with `ELOOP`.
fn refused_link(path: &Path, error: io::Error, what: &'static str) -> StoreError {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        return not_safe(path, "it is a symbolic link".to_owned(), format!("remove {}", path.display()));
    }
    failed(what, path, error)
}

fn not_safe(path: &Path, reason: String, remedy: String) -> StoreError {
    StoreError::Unsafe { path: path.to_owned(), reason, remedy }
}

fn check(path: &Path, found: &Metadata, kind: Option<&str>, mode: u32) -> Result<(), StoreError> {
    if let Some(kind) = kind {
        return Err(not_safe(path, kind.to_owned(), format!("move {} out of the way", path.display())));
    }
    check_owner_and_mode(path, found.uid(), found.mode(), geteuid().as_raw(), mode)
}

fn check_owner_and_mode(path: &Path, owner: u32, mode: u32, we: u32, allowed: u32) -> Result<(), StoreError> {
    if owner != we {
        let reason = format!("it belongs to user {owner}, and this is user {we}");
        return Err(not_safe(path, reason, format!("run as the user who signed in, or chown {}", path.display())));
    }
    let mode = mode & 0o7777;
    if mode & !allowed != 0 {
        let reason = format!("its mode is {mode:04o}, so others than its owner may use it");
        return Err(not_safe(path, reason, format!("chmod {allowed:04o} {}", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppIdentity, Credential};
    use dynavault_model::{Diagnose, FaultKind};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn secret() -> SecretString {
        SecretString::from("0123456789abcdef0123456789abcdef\n")
    }

    fn account(profile: &str) -> AccountKey {
        AccountKey::of(&AppIdentity {
            name: profile.to_owned(),
            tenant: "Contoso.com".into(),
            client_id: "APP-1".into(),
            credential: Credential::AzureCli,
            authority: "https://login.windows.net".parse().unwrap(),
        })
    }

    fn sign_in(token: &str) -> StoredSignIn {
        serde_json::from_value(serde_json::json!({
            "tenant": "t", "object_id": "o", "user_name": null, "signed_in": "2031-02-03T04:05:06Z",
            "renewed": "2031-02-03T04:05:06Z", "refresh_token": token, "access_tokens": [], "claims_wanted": null,
        }))
        .unwrap()
    }

    struct Folder {
        _root: tempfile::TempDir,
        store: FileTokenStore,
    }

    fn folder() -> Folder {
        let root = tempfile::tempdir().unwrap();
        let store = FileTokenStore::open(root.path().join("state/sign-ins"), &secret()).unwrap();
        Folder { _root: root, store }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_kept_comes_back_sealed_and_private() {
        let Folder { _root, store } = folder();
        let account = account("p");
        assert!(store.load(&account).unwrap().is_none());
        for token in ["FIRST", "SECOND"] {
            store.save(&account, &sign_in(token)).unwrap();
            assert_eq!(store.load(&account).unwrap().unwrap().refresh_token.0.as_str(), token);
        }
        let (path, _) = store.path(&account, "seal");
        assert_eq!((mode(&store.folder), mode(&path)), (0o700, 0o600));
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"SECOND"));
        let names: Vec<_> = fs::read_dir(&store.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert!(store.delete(&account).unwrap() && !store.delete(&account).unwrap());
        assert!(store.load(&account).unwrap().is_none());
        assert!(!format!("{store:?} {:?}", sign_in("SECRET")).contains("SECRET"));
    }

    #[test]
    fn spelling_of_the_account_does_not_matter_but_the_account_does() {
        let Folder { _root, store } = folder();
        store.save(&account("p"), &sign_in("T")).unwrap();
        assert!(store.load(&account("q")).unwrap().is_none());
        let same = AccountKey {
            profile: "p".into(),
            issuer: "login.microsoftonline.com".into(),
            tenant: "contoso.com".into(),
            client_id: "app-1".into(),
        };
        assert_eq!(account("p"), same);
    }

    #[test]
    fn a_flipped_bit_is_damage_and_not_a_missing_sign_in() {
        let Folder { _root, store } = folder();
        let account = account("p");
        store.save(&account, &sign_in("T")).unwrap();
        let (path, _) = store.path(&account, "seal");
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            let error = store.load(&account).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "bit {bit}: {error:?}");
            assert_eq!(error.kind(), FaultKind::SignIn);
        }
        for length in [0, 1, 20, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(store.load(&account), Err(StoreError::Corrupt { .. })));
        }
        let mut later = whole.clone();
        (later[0], later[40]) = (2, !later[40]);
        fs::write(&path, &later).unwrap();
        assert!(matches!(store.load(&account), Err(StoreError::Version { version: 2, .. })));
    }

    #[test]
    fn another_secret_or_another_name_does_not_open_it() {
        let Folder { _root, store } = folder();
        store.save(&account("p"), &sign_in("T")).unwrap();
        let other = SecretString::from("another secret of thirty-two characters");
        let wrong = FileTokenStore::open(&store.folder, &other).unwrap();
        let error = wrong.load(&account("p")).unwrap_err();
        assert!(error.remedy().unwrap().contains("dynavault profile login p"), "{error:?}");
        fs::copy(store.path(&account("p"), "seal").0, store.path(&account("q"), "seal").0).unwrap();
        assert!(matches!(store.load(&account("q")), Err(StoreError::Corrupt { .. })));
        let short = FileTokenStore::open(&store.folder, &SecretString::from("too short")).unwrap_err();
        assert_eq!(short.kind(), FaultKind::Usage);
    }

    #[test]
    fn files_that_others_can_reach_are_refused_with_the_cure() {
        let Folder { _root, store } = folder();
        let account = account("p");
        store.save(&account, &sign_in("T")).unwrap();
        let (path, _) = store.path(&account, "seal");
        chmod(&path, 0o644);
        let error = store.load(&account).unwrap_err();
        assert!(error.to_string().contains("0644") && error.remedy().unwrap().starts_with("chmod 0600"), "{error}");
        fs::remove_file(&path).unwrap();
        let elsewhere = store.folder.join("elsewhere");
        fs::write(&elsewhere, "x").unwrap();
        symlink(&elsewhere, &path).unwrap();
        let error = store.load(&account).unwrap_err();
        assert!(matches!(&error, StoreError::Unsafe { reason, .. } if reason.contains("symbolic")), "{error:?}");
        // A save replaces the link itself and leaves alone what it points to.
        store.save(&account, &sign_in("T")).unwrap();
        assert_eq!((fs::read(&elsewhere).unwrap().as_slice(), store.load(&account).is_ok()), (b"x".as_slice(), true));
        chmod(&store.folder, 0o750);
        for error in [store.load(&account).unwrap_err(), store.try_lock(&account).unwrap_err()] {
            assert!(error.remedy().unwrap().starts_with("chmod 0700"), "{error}");
        }
        chmod(&store.folder, 0o700);
        let error = check_owner_and_mode(&path, 1001, 0o100_600, 1000, FILE_MODE).unwrap_err();
        assert!(error.to_string().contains("belongs to user 1001"), "{error}");
        let link = store.folder.join("link");
        symlink(&store.folder, &link).unwrap();
        assert!(matches!(FileTokenStore::open(&link, &secret()), Err(StoreError::Unsafe { .. })));
    }

    #[test]
    fn what_a_crash_left_of_a_write_is_in_nobodys_way() {
        let Folder { _root, store } = folder();
        let account = account("p");
        store.save(&account, &sign_in("OLD")).unwrap();
        fs::write(store.path(&account, "new").0, "half a fi").unwrap();
        assert_eq!(store.load(&account).unwrap().unwrap().refresh_token.0.as_str(), "OLD");
        store.save(&account, &sign_in("NEW")).unwrap();
        assert_eq!(store.load(&account).unwrap().unwrap().refresh_token.0.as_str(), "NEW");
    }

    #[test]
    fn a_lock_excludes_until_it_is_dropped() {
        let Folder { _root, store } = folder();
        let again = FileTokenStore::open(&store.folder, &secret()).unwrap();
        let held = store.try_lock(&account("p")).unwrap().unwrap();
        assert!(again.try_lock(&account("p")).unwrap().is_none());
        assert!(again.try_lock(&account("q")).unwrap().is_some());
        drop(held);
        assert!(again.try_lock(&account("p")).unwrap().is_some());
    }
}
