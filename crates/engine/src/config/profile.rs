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
    /// Which store is in force. Nothing falls back to another one.
    #[serde(default)]
    pub store: TokenStoreKind,
    /// The secret that seals the files.
    pub key: Option<Secret>,
    /// Folder of the files; beside the catalog when left out.
    pub path: Option<Text>,
}

/// `store` of `[tokens]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenStoreKind {
    /// Sealed files.
    #[default]
    File,
    /// The keyring of the operating system; refused by this version.
    Keyring,
    /// Until the process ends.
    Memory,
}
