//! `[[profile]]`: an app registration and how we sign in with it; `[tokens]`: where sign-ins of people are kept.

use std::path::PathBuf;

use dynavault_identity::Cloud;
use serde::Deserialize;

use super::{EnvironmentKind, Secret, Text};

/// `[[profile]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileConfig {
    /// Name, used by environments.
    #[serde(deserialize_with = "super::text::now")]
    pub name: String,
    /// Family of services.
    pub kind: EnvironmentKind,
    /// Tenant id or domain.
    pub tenant: Text,
    /// Application id.
    pub client_id: Text,
    /// How the application proves who it is.
    pub credential: CredentialConfig,
    /// Cloud.
    #[serde(default)]
    pub cloud: Cloud,
    /// Sign-in host, when it is not the cloud's own.
    pub authority: Option<Text>,
    /// Microsoft Graph, when it is not the cloud's own.
    pub graph: Option<Text>,
}

/// `credential` of a profile.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CredentialConfig {
    /// A secret of the app registration.
    ClientSecret {
        /// The secret.
        secret: Secret,
    },
    /// A certificate of the app registration.
    ClientCertificate {
        /// The certificate with its key, PEM or PFX.
        certificate: Secret,
        /// Opens a PFX file or an encrypted key.
        password: Option<Secret>,
    },
    /// Federated token of a Kubernetes service account.
    WorkloadIdentity {
        /// File of the federated token.
        #[serde(default, deserialize_with = "super::text::now_if_any")]
        token_file: Option<PathBuf>,
    },
    /// Managed identity of the machine.
    ManagedIdentity {
        /// Application id of a user-assigned identity; without it the machine's own.
        client_id: Option<Text>,
    },
    /// The signed-in user of the Azure command line, for developers.
    AzureCli {},
    /// A signed-in person.
    Delegated {},
}

impl CredentialConfig {
    /// The word in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ClientSecret { .. } => "client-secret",
            Self::ClientCertificate { .. } => "client-certificate",
            Self::WorkloadIdentity { .. } => "workload-identity",
            Self::ManagedIdentity { .. } => "managed-identity",
            Self::AzureCli {} => "azure-cli",
            Self::Delegated {} => "delegated",
        }
    }
}

/// `[tokens]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensConfig {
    /// Which store is in force; see [`TokensConfig::store`].
    store: Option<TokenStoreKind>,
    /// The secret that seals the files.
    pub key: Option<Secret>,
    /// Folder of the files; beside the catalog when left out.
    pub path: Option<Text>,
}

impl TokensConfig {
    /// Which store is in force: the one that is named, else sealed files where there is a key for them, else the keyring.
    /// It follows from the configuration alone and never from what answers today, so a job without a desktop session
    /// does not look for a sign-in in another place than the person left it.
    pub fn store(&self) -> TokenStoreKind {
        let unnamed = if self.key.is_some() { TokenStoreKind::File } else { TokenStoreKind::Keyring };
        self.store.unwrap_or(unnamed)
    }
}

/// `store` of `[tokens]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenStoreKind {
    /// Sealed files.
    File,
    /// The keyring of the operating system.
    Keyring,
    /// Until the process ends.
    Memory,
}
