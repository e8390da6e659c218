//! From a configured profile to an identity that can sign in, and to its tokens.

use std::path::PathBuf;
use std::sync::Arc;

use dynavault_identity::{
    AppIdentity, ClientCertificate, Credential, FileTokenStore, TokenSource, TokenStore, token_source,
};
use secrecy::ExposeSecret;
use url::Url;

use crate::assemble::{Engine, resource_of};
use crate::config::{ConfigError, CredentialConfig, EnvironmentConfig, ProfileConfig, Secret, TokenStoreKind};
use crate::failure::Failure;

/// How a profile works (`entra` protocol, section 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignInMode {
    /// The app by itself; in the environment it is an application user.
    AppOnly,
    /// A signed-in person, through the app.
    Delegated,
}

impl SignInMode {
    pub(crate) fn of(credential: &CredentialConfig) -> Self {
        match credential {
            CredentialConfig::Delegated {} | CredentialConfig::AzureCli {} => Self::Delegated,
            _ => Self::AppOnly,
        }
    }

    /// The word in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::AppOnly => "app-only",
            Self::Delegated => "delegated",
        }
    }
}

/// Reads a certificate with its key; `what` names the setting.
pub(crate) fn certificate(
    what: &str,
    file: &Secret,
    password: Option<&Secret>,
) -> Result<Arc<ClientCertificate>, Failure> {
    let bytes = file.resolve_bytes(&format!("{what}.certificate"))?;
    let password = password.map(|secret| secret.resolve(&format!("{what}.password"))).transpose()?;
    Ok(Arc::new(ClientCertificate::parse(bytes.expose_secret(), password.as_ref())?))
}

/// The sign-in service of a profile: as written, else that of its cloud.
pub(crate) fn authority_of(profile: &ProfileConfig) -> Result<Url, Failure> {
    let what = format!("profile {}: authority", profile.name);
    let text = match &profile.authority {
        Some(text) => text.resolve(&what)?,
        None => profile.cloud.authority().to_string(),
    };
    Ok(crate::config::check_address(&what, &text)?)
}

/// Root of Microsoft Graph for a profile, without a slash at its end; also the resource of its tokens.
pub(crate) fn graph_root_of(profile: &ProfileConfig) -> Result<String, Failure> {
    let what = format!("profile {}: graph", profile.name);
    let text = match &profile.graph {
        Some(text) => text.resolve(&what)?,
        None => profile.cloud.graph().to_string(),
    };
    Ok(crate::config::check_address(&what, &text)?.as_str().trim_end_matches('/').to_string())
}

impl Engine {
    /// A profile by name, or a failure that names the nearest one.
    pub(crate) fn profile(&self, name: &str) -> Result<&ProfileConfig, ConfigError> {
        self.config().profile(name).ok_or_else(|| {
            let known: Vec<&str> = self.config().profiles.iter().map(|profile| profile.name.as_str()).collect();
            ConfigError::Sense {
                message: format!("there is no profile {name:?}"),
                remedy: match crate::config::nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean {near:?}? known: {}", known.join(", ")),
                    None if known.is_empty() => "add one with `dynavault profile add`".to_string(),
                    None => format!("known: {}", known.join(", ")),
                },
            }
        })
    }

    /// Who signs in with a profile, and how. Reads secrets and certificate; sends nothing.
    pub(crate) fn app_identity(&self, profile: &ProfileConfig) -> Result<AppIdentity, Failure> {
        let what = |part: &str| format!("profile {}: {part}", profile.name);
        let credential = match &profile.credential {
            CredentialConfig::ClientSecret { secret } => {
                Credential::ClientSecret { secret: secret.resolve(&what("credential.secret"))? }
            }
            CredentialConfig::ClientCertificate { certificate: file, password } => Credential::ClientCertificate {
                certificate: certificate(&what("credential"), file, password.as_ref())?,
            },
            CredentialConfig::WorkloadIdentity { token_file } => {
                Credential::WorkloadIdentity { token_file: token_file.clone() }
            }
            CredentialConfig::ManagedIdentity { client_id } => Credential::ManagedIdentity {
                client_id: client_id.as_ref().map(|text| text.resolve(&what("credential.client_id"))).transpose()?,
            },
            CredentialConfig::AzureCli {} => Credential::AzureCli,
            CredentialConfig::Delegated {} => Credential::Delegated { store: self.token_store()? },
        };
        Ok(AppIdentity {
            name: profile.name.clone(),
            tenant: profile.tenant.resolve(&what("tenant"))?,
            client_id: profile.client_id.resolve(&what("client_id"))?,
            credential,
            authority: authority_of(profile)?,
        })
    }

    /// Tokens of a profile for one scope. Sends nothing yet.
    pub(crate) fn profile_tokens(&self, profile: &ProfileConfig, scope: &str) -> Result<Arc<dyn TokenSource>, Failure> {
        Ok(token_source(self.app_identity(profile)?, scope.to_string(), Arc::clone(self.clock()))?)
    }

    /// Where sign-ins of people are kept, as configured. Makes the folder.
    pub(crate) fn token_store(&self) -> Result<Arc<dyn TokenStore>, Failure> {
        let tokens = &self.config().tokens;
        match (tokens.store(), &tokens.key) {
            (TokenStoreKind::Memory, _) => Ok(self.sign_ins_in_memory()),
            (TokenStoreKind::Keyring, _) => Ok(Arc::new(FileTokenStore::with_keyring(self.sign_in_folder()?)?)),
            (TokenStoreKind::File, Some(key)) => {
                let key = key.resolve("tokens.key")?;
                Ok(Arc::new(FileTokenStore::open(self.sign_in_folder()?, &key)?))
            }
            // The check of the configuration refuses it before anything is done.
            (TokenStoreKind::File, None) => Err(Failure::usage(
                "there is no key that would seal sign-ins of people",
                "write [tokens] with key = { file = \"PATH\" }, or store = \"keyring\"",
            )),
        }
    }

    /// Folder of the sealed sign-ins: configured, else beside the catalog.
    fn sign_in_folder(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.config().tokens.path {
            return Ok(PathBuf::from(path.resolve("tokens.path")?));
        }
        Ok(self.catalog_path()?.with_extension("sign-ins"))
    }

    /// Environments that are read or written with a profile.
    pub(crate) fn environments_of(&self, profile: &str) -> Vec<&EnvironmentConfig> {
        let uses = |environment: &&EnvironmentConfig| {
            environment.profiles.iter().chain(&environment.restore_profile).any(|used| used == profile)
        };
        self.config().environments.iter().filter(uses).collect()
    }

    /// The scope of the first token of a sign-in: of an environment that uses the profile, else of Graph. One sign-in
    /// serves all resources of the tenant (`entra` protocol, section 6).
    pub(crate) fn first_scope(&self, profile: &ProfileConfig) -> Result<String, Failure> {
        let resource = match self.environments_of(&profile.name).first() {
            Some(environment) => resource_of(environment)?,
            None => graph_root_of(profile)?,
        };
        Ok(format!("{resource}/.default"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::profile::cloud_hint;

    /// An engine over a profile of a cloud, an environment and a vault in Azure.
    fn engine(cloud: &str, environment: &str) -> Engine {
        let text = format!(
            "[vault]\nurl = \"azblob://contoso/vault\"\ncloud = \"{cloud}\"\nauth = {{ kind = \"managed-identity\" }}\n[catalog]\npath = \"/state/catalog.db\"\n\
             [[profile]]\nname = \"p\"\nkind = \"ce\"\ntenant = \"t\"\nclient_id = \"c\"\ncredential = {{ kind = \"managed-identity\" }}\n\
             cloud = \"{cloud}\"\n[[environment]]\nname = \"e\"\nkind = \"ce\"\nurl = \"https://{environment}/main.aspx\"\nprofiles = [\"p\"]\n"
        );
        Engine::new(Config::parse(&text, "test.toml").unwrap())
    }

    #[test]
    fn every_address_follows_from_the_cloud() {
        for (cloud, authority, graph, storage, host) in [
            ("public", "login.microsoftonline.com", "graph.microsoft.com", "core.windows.net", "x.crm4.dynamics.com"),
            (
                "usgov",
                "login.microsoftonline.us",
                "graph.microsoft.us",
                "core.usgovcloudapi.net",
                "x.crm.microsoftdynamics.us",
            ),
            (
                "usgov-dod",
                "login.microsoftonline.us",
                "dod-graph.microsoft.us",
                "core.usgovcloudapi.net",
                "x.crm.appsplatform.us",
            ),
            (
                "china",
                "login.partner.microsoftonline.cn",
                "microsoftgraph.chinacloudapi.cn",
                "core.chinacloudapi.cn",
                "x.crm.dynamics.cn",
            ),
        ] {
            let engine = engine(cloud, host);
            let profile = engine.profile("p").unwrap();
            assert_eq!(authority_of(profile).unwrap().host_str(), Some(authority));
            assert_eq!(graph_root_of(profile).unwrap(), format!("https://{graph}"));
            let dynavault_store::VaultLocation::Azure(location) = engine.vault_location().unwrap() else { panic!() };
            assert_eq!(location.endpoint.as_str(), format!("https://contoso.blob.{storage}/"));
            assert_eq!(engine.first_scope(profile).unwrap(), format!("https://{host}/.default"));
            assert_eq!(cloud_hint(profile, &engine.config().environments[0]), None, "{cloud}");
        }
    }

    #[test]
    fn an_address_of_another_cloud_is_a_hint_and_no_error() {
        let engine = engine("public", "x.crm.dynamics.cn");
        let hint = cloud_hint(engine.profile("p").unwrap(), &engine.config().environments[0]).unwrap();
        assert!(hint.contains("china") && hint.contains("public"), "{hint}");
        let unknown = self::engine("public", "crm.example.com");
        assert_eq!(cloud_hint(unknown.profile("p").unwrap(), &unknown.config().environments[0]), None);
    }

    #[test]
    fn an_unknown_profile_is_refused_with_the_nearest_name() {
        let engine = engine("public", "x.crm.dynamics.com");
        let error = engine.profile("q").unwrap_err();
        assert!(dynavault_model::Diagnose::remedy(&error).unwrap().contains("\"p\""));
    }
}
