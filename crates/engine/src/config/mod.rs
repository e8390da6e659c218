//! The configuration file: its shape, where it is looked for, and what is wrong with it.
//!
//! Shape first: `serde` refuses unknown keys and wrong types. Then sense: names, references between sections, addresses,
//! patterns. Values by reference are resolved when a part is made of them, so that a command needs only the secrets it uses.

mod check;
mod profile;
mod schedule;
mod text;

use std::path::{Path, PathBuf};

use dynavault_identity::Cloud;
use serde::Deserialize;

pub(crate) use check::{check_address, nearest};
pub(crate) use profile::{CredentialConfig, ProfileConfig, TokenStoreKind, TokensConfig};
pub(crate) use text::Secret;
pub use text::Text;

/// A complete commented example, which `init` writes.
pub const EXAMPLE: &str = include_str!("../../../../config/dynavault.example.toml");

/// Largest configuration file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no file.
    #[error("no configuration found (looked for {looked})")]
    NotFound {
        /// The places.
        looked: String,
    },
    /// The file cannot be read.
    #[error("could not read the configuration {path}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML of the expected shape.
    #[error("configuration {path}: {message}")]
    Shape {
        /// The file.
        path: String,
        /// Line, what is wrong, nearest known key.
        message: String,
    },
    /// A value makes no sense.
    #[error("configuration: {message}")]
    Sense {
        /// What is wrong.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// A referenced environment variable is not set.
    #[error("{what}: environment variable {name} is not set or empty")]
    MissingVariable {
        /// The setting.
        what: String,
        /// The variable.
        name: String,
    },
    /// A referenced file cannot be read.
    #[error("{what}: could not read {path}")]
    MissingFile {
        /// The setting.
        what: String,
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl dynavault_model::Diagnose for ConfigError {
    fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { .. } => "write one with `dynavault init`, or try `dynavault demo`".into(),
            Self::Read { .. } | Self::MissingFile { .. } => "check the path and its permissions".into(),
            Self::Shape { .. } => "`dynavault init --print` shows every key with its meaning".into(),
            Self::Sense { remedy, .. } => remedy.clone(),
            Self::MissingVariable { name, .. } => format!("set {name} in the environment of the process"),
        })
    }

    fn kind(&self) -> dynavault_model::FaultKind {
        dynavault_model::FaultKind::Usage
    }
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where backups go.
    pub vault: VaultConfig,
    /// The local journal.
    #[serde(default)]
    pub catalog: CatalogConfig,
    /// What the process may use.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Where sign-ins of people are kept.
    #[serde(default)]
    pub tokens: TokensConfig,
    /// App registrations.
    #[serde(default, rename = "profile")]
    pub profiles: Vec<ProfileConfig>,
    /// What is backed up.
    #[serde(default, rename = "environment")]
    pub environments: Vec<EnvironmentConfig>,
    /// When.
    #[serde(default, rename = "job")]
    pub jobs: Vec<JobConfig>,
}

/// `[vault]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultConfig {
    /// `file:///…` or `azblob://ACCOUNT/CONTAINER/PREFIX`.
    pub url: Text,
    /// Emulator, private link.
    pub endpoint: Option<Text>,
    /// The cloud whose storage and sign-in addresses are used where none is written out.
    #[serde(default)]
    pub cloud: Cloud,
    /// Credential of the store.
    pub auth: Option<AuthConfig>,
    /// age public keys to encrypt to.
    #[serde(default)]
    pub recipients: Vec<Text>,
    /// Secret keys, on hosts that read backups.
    pub identity_file: Option<Text>,
}

/// `auth` of `[vault]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AuthConfig {
    /// Shared access signature.
    Sas {
        /// The query string of the signature.
        token: Secret,
    },
    /// App registration with a secret.
    ClientSecret {
        /// Tenant id.
        tenant: Text,
        /// Application id.
        client_id: Text,
        /// The secret.
        secret: Secret,
        /// Sign-in host, when it is not the cloud's own.
        authority: Option<Text>,
    },
    /// App registration with a certificate.
    ClientCertificate {
        /// Tenant id.
        tenant: Text,
        /// Application id.
        client_id: Text,
        /// The certificate with its key, PEM or PFX.
        certificate: Secret,
        /// Opens a PFX file or an encrypted key.
        password: Option<Secret>,
        /// Sign-in host, when it is not the cloud's own.
        authority: Option<Text>,
    },
    /// Federated token of a Kubernetes service account.
    WorkloadIdentity {
        /// Tenant id; default from the usual webhook's environment.
        tenant: Option<Text>,
        /// Application id; default from the usual webhook's environment.
        client_id: Option<Text>,
        /// File of the federated token.
        #[serde(default, deserialize_with = "text::now_if_any")]
        token_file: Option<PathBuf>,
    },
    /// Managed identity of the machine.
    ManagedIdentity {
        /// Application id of a user-assigned identity.
        client_id: Option<Text>,
    },
    /// The signed-in user of the Azure command line, for developers.
    AzureCli,
    /// Account key, for emulators and old accounts.
    AccountKey {
        /// The key.
        key: Secret,
    },
}

/// `[catalog]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogConfig {
    /// The SQLite file; state files live in a folder beside it.
    pub path: Option<Text>,
}

/// `[limits]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Peak memory of a backup, in MiB.
    pub memory_mib: u32,
    /// Tables read at the same time.
    pub tables_in_parallel: u32,
    /// Row JSON in a segment, in MiB.
    pub segment_mib_max: u32,
    /// Longest time before rows are made durable, in seconds.
    pub segment_seconds_max: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { memory_mib: 256, tables_in_parallel: 4, segment_mib_max: 64, segment_seconds_max: 60 }
    }
}

/// Family of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvironmentKind {
    /// Customer Engagement (Dataverse).
    Ce,
    /// Unified Operations (Finance & Operations).
    Uo,
}

/// `[[environment]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentConfig {
    /// Name; also the folder in the vault.
    #[serde(deserialize_with = "text::now")]
    pub name: String,
    /// Family of services.
    pub kind: EnvironmentKind,
    /// Address.
    pub url: Text,
    /// Profiles that read it; several application users raise the service limits.
    #[serde(deserialize_with = "text::all_now")]
    pub profiles: Vec<String>,
    /// A separate identity that may write.
    #[serde(default, deserialize_with = "text::now_if_any")]
    pub restore_profile: Option<String>,
    /// Globs of tables to protect.
    #[serde(default = "everything", deserialize_with = "text::all_now")]
    pub include: Vec<String>,
    /// Globs of tables to leave out.
    #[serde(default, deserialize_with = "text::all_now")]
    pub exclude: Vec<String>,
    /// Companies (UO only).
    #[serde(default, deserialize_with = "text::all_now")]
    pub companies: Vec<String>,
    /// Texts of choices and dates as a person sees them.
    #[serde(default)]
    pub formatted_values: bool,
    /// Bytes of files, images and attachments.
    #[serde(default = "yes")]
    pub files: bool,
    /// Ceiling for the governor, per application user.
    #[serde(default = "in_flight")]
    pub max_requests_in_flight: u32,
}

fn everything() -> Vec<String> {
    vec!["*".into()]
}

fn yes() -> bool {
    true
}

fn in_flight() -> u32 {
    8
}

/// `[[job]]`; carried out by the daemon, checked here.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobConfig {
    /// Name.
    #[serde(deserialize_with = "text::now")]
    pub name: String,
    /// Environment.
    #[serde(deserialize_with = "text::now")]
    pub environment: String,
    /// Five-field cron.
    #[serde(deserialize_with = "text::now")]
    pub schedule: String,
    /// Time zone of the schedule.
    #[serde(default = "utc", deserialize_with = "text::now")]
    pub timezone: String,
    /// How often everything is read again.
    #[serde(default, deserialize_with = "text::now_if_any")]
    pub full_every: Option<String>,
    /// What happens when the run before is still going on.
    #[serde(default)]
    pub overlap: Overlap,
    /// What is kept.
    pub retention: Option<Retention>,
}

fn utc() -> String {
    "UTC".into()
}

/// What happens when the run before is still going on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// The new run does not happen.
    #[default]
    Skip,
    /// The new run waits.
    Queue,
}

/// How many snapshots are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the keys of the configuration file")]
pub struct Retention {
    /// The newest.
    pub keep_last: Option<u32>,
    /// One a day.
    pub keep_daily: Option<u32>,
    /// One a week.
    pub keep_weekly: Option<u32>,
    /// One a month.
    pub keep_monthly: Option<u32>,
    /// One a year.
    pub keep_yearly: Option<u32>,
}

/// A configuration and where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file.
    pub path: PathBuf,
    /// Its content, checked.
    pub config: Config,
}

/// A folder of the user: what the variable names, else the usual one below the home folder. The base directory specification
/// wants variables that are empty or relative ignored.
pub(crate) fn user_folder(variable: &str, usual: &str) -> Option<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    named(variable).or_else(|| named("HOME").map(|home| home.join(usual)))
}

/// Places that are looked at when none is named, in order.
pub fn candidates() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("dynavault.toml")];
    if let Some(folder) = user_folder("XDG_CONFIG_HOME", ".config") {
        places.push(folder.join("dynavault").join("dynavault.toml"));
    }
    places.push(PathBuf::from("/etc/dynavault/dynavault.toml"));
    places
}

impl Config {
    /// Reads and checks a file; without a path, the first of [`candidates`] that exists. A link that leads nowhere exists: to
    /// pass over it would be to work with another file than the one that was meant.
    pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        let path = match path {
            Some(path) => path.to_path_buf(),
            None => candidates().into_iter().find(|place| place.symlink_metadata().is_ok()).ok_or_else(|| {
                ConfigError::NotFound {
                    looked: candidates().iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", "),
                }
            })?,
        };
        let shown = path.display().to_string();
        let read = |source| ConfigError::Read { path: shown.clone(), source };
        if std::fs::metadata(&path).map_err(read)?.len() > FILE_BYTES_MAX {
            return Err(read(std::io::Error::other("it is too large for a configuration")));
        }
        let text = std::fs::read_to_string(&path).map_err(read)?;
        let config = Self::parse(&text, &shown)?;
        Ok(Loaded { path, config })
    }

    /// Reads and checks text; `name` is shown in errors.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Shape { path: name.to_string(), message: check::explain(text, &error) })?;
        config.check()?;
        Ok(config)
    }

    /// An environment by name.
    pub fn environment(&self, name: &str) -> Result<&EnvironmentConfig, ConfigError> {
        self.environments.iter().find(|environment| environment.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.environments.iter().map(|environment| environment.name.as_str()).collect();
            ConfigError::Sense {
                message: format!("there is no environment {name:?}"),
                remedy: match check::nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean {near:?}? known: {}", known.join(", ")),
                    None => format!("known: {}", known.join(", ")),
                },
            }
        })
    }

    /// A profile by name.
    pub fn profile(&self, name: &str) -> Option<&ProfileConfig> {
        self.profiles.iter().find(|profile| profile.name == name)
    }
}
