//! Where configuration becomes concrete parts: stores, vault, catalog, environments. Each is made when it is first needed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dynavault_catalog::Catalog;
use dynavault_ce::{DataverseSource, DataverseTarget, SourceOptions};
use dynavault_identity::{AppIdentity, Credential, MemoryTokenStore, TokenSource, token_source};
use dynavault_model::{Clock, FaultKind, RowSource, RowTarget};
use dynavault_odata::{Client, ClientConfig};
use dynavault_store::{
    AzureAuth, AzureStore, BlobStore, FolderStore, MemoryStore, MissingRoot, RetryLimits, STORAGE_SCOPE, VaultLocation,
    parse_vault_url,
};
use dynavault_vault::{Identities, Recipients, Vault};
use url::Url;

use crate::clock::SystemClock;
use crate::config::{AuthConfig, EnvironmentConfig, EnvironmentKind};
use crate::failure::Failure;
use crate::profile::certificate;
use crate::{Config, TOOL};

/// Path of the Web API below an environment's address (`dataverse` protocol, section 1.1: pin a version).
const WEB_API: &str = "/api/data/v9.2/";

/// How long a check waits for an environment that does not answer.
const PROBE_TIME_MAX: Duration = Duration::from_secs(30);

/// The checked configuration and what is made of it.
pub struct Engine {
    config: Config,
    clock: Arc<dyn Clock>,
    /// Sign-ins that are kept in memory, where the configuration wants that.
    sign_ins: Arc<MemoryTokenStore>,
}

/// Whether the vault may be made when it is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VaultUse {
    /// It must exist.
    Read,
    /// It is looked at; one that does not exist counts as empty, and is not made.
    Look,
    /// It is made when needed.
    Write,
}

/// An environment for reading and for writing.
pub(crate) type BothSides = (Arc<dyn RowSource>, Arc<dyn RowTarget>);

/// Whether an environment may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Engine {
    /// An engine over a checked configuration.
    pub fn new(config: Config) -> Self {
        Self { config, clock: Arc::new(SystemClock::new()), sign_ins: Arc::default() }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn sign_ins_in_memory(&self) -> Arc<MemoryTokenStore> {
        Arc::clone(&self.sign_ins)
    }

    /// Path of the catalog: configured, else in the user's state folder.
    pub(crate) fn catalog_path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.config.catalog.path {
            return Ok(PathBuf::from(path.resolve("catalog.path")?));
        }
        crate::config::user_folder("XDG_STATE_HOME", ".local/state")
            .map(|folder| folder.join("dynavault/catalog.db"))
            .ok_or_else(|| Failure::usage("there is no place for the catalog", "set catalog.path in the configuration"))
    }

    /// Folder of an environment's state and scratch files, beside the catalog.
    pub(crate) fn state_folder(&self, environment: &str) -> Result<PathBuf, Failure> {
        let catalog = self.catalog_path()?;
        let folder = catalog.parent().unwrap_or_else(|| Path::new("."));
        let stem = catalog.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(folder.join(format!("{stem}.state")).join(environment))
    }

    pub(crate) async fn catalog(&self) -> Result<Catalog, Failure> {
        let path = self.catalog_path()?;
        // Opening migrates, which may take a moment on a large file.
        match tokio::task::spawn_blocking(move || Catalog::open(&path)).await {
            Ok(catalog) => Ok(catalog?),
            Err(error) => Err(Failure::new(FaultKind::Failed, error.to_string(), None)),
        }
    }

    /// Where the vault is: as written, else at the storage address of its cloud.
    pub(crate) fn vault_location(&self) -> Result<VaultLocation, Failure> {
        let vault = &self.config.vault;
        let url = vault.url.resolve("vault.url")?;
        let endpoint = vault.endpoint.as_ref().map(|text| text.resolve("vault.endpoint")).transpose()?;
        match parse_vault_url(&url, endpoint.as_deref())? {
            VaultLocation::Azure(location) if endpoint.is_none() => {
                let endpoint = format!("https://{}.{}", location.account, vault.cloud.storage_suffix());
                Ok(parse_vault_url(&url, Some(&endpoint))?)
            }
            location => Ok(location),
        }
    }

    pub(crate) async fn store(&self, use_: VaultUse) -> Result<Arc<dyn BlobStore>, Failure> {
        match self.vault_location()? {
            VaultLocation::Folder(path) => {
                let missing = if use_ == VaultUse::Write { MissingRoot::Create } else { MissingRoot::Refuse };
                Ok(Arc::new(FolderStore::open(path, missing, Arc::clone(&self.clock)).await?))
            }
            VaultLocation::Azure(location) => {
                let auth = self.storage_auth()?;
                Ok(Arc::new(AzureStore::new(location, auth, RetryLimits::default(), Arc::clone(&self.clock))?))
            }
        }
    }

    fn storage_auth(&self) -> Result<AzureAuth, Failure> {
        let Some(auth) = &self.config.vault.auth else {
            return Err(Failure::usage(
                "vault.auth is missing: a vault in Azure Blob needs a credential",
                "for example auth = { kind = \"sas\", token = { env = \"VAULT_SAS\" } }",
            ));
        };
        let app = |tenant: String, client_id: String, credential: Credential, authority: Option<String>| {
            let authority = authority.unwrap_or_else(|| self.config.vault.cloud.authority().to_string());
            self.token_source("vault.auth", tenant, client_id, credential, &authority, STORAGE_SCOPE)
                .map(AzureAuth::Token)
        };
        let environment = |name: &str| std::env::var(name).unwrap_or_default();
        match auth {
            AuthConfig::Sas { token } => Ok(AzureAuth::Sas(token.resolve("vault.auth.token")?)),
            AuthConfig::AccountKey { key } => Ok(AzureAuth::AccountKey(key.resolve("vault.auth.key")?)),
            AuthConfig::ClientSecret { tenant, client_id, secret, authority } => app(
                tenant.resolve("vault.auth.tenant")?,
                client_id.resolve("vault.auth.client_id")?,
                Credential::ClientSecret { secret: secret.resolve("vault.auth.secret")? },
                authority.as_ref().map(|text| text.resolve("vault.auth.authority")).transpose()?,
            ),
            AuthConfig::ClientCertificate { tenant, client_id, certificate: file, password, authority } => app(
                tenant.resolve("vault.auth.tenant")?,
                client_id.resolve("vault.auth.client_id")?,
                Credential::ClientCertificate { certificate: certificate("vault.auth", file, password.as_ref())? },
                authority.as_ref().map(|text| text.resolve("vault.auth.authority")).transpose()?,
            ),
            AuthConfig::WorkloadIdentity { tenant, client_id, token_file } => {
                let resolve = |text: &Option<crate::Text>, what: &str, variable: &str| match text {
                    Some(text) => text.resolve(what),
                    None => Ok(environment(variable)),
                };
                app(
                    resolve(tenant, "vault.auth.tenant", "AZURE_TENANT_ID")?,
                    resolve(client_id, "vault.auth.client_id", "AZURE_CLIENT_ID")?,
                    Credential::WorkloadIdentity { token_file: token_file.clone() },
                    None,
                )
            }
            AuthConfig::ManagedIdentity { client_id } => {
                let client_id = client_id.as_ref().map(|text| text.resolve("vault.auth.client_id")).transpose()?;
                app(String::new(), String::new(), Credential::ManagedIdentity { client_id }, None)
            }
            AuthConfig::AzureCli => app(String::new(), String::new(), Credential::AzureCli, None),
        }
    }

    fn token_source(
        &self,
        name: &str,
        tenant: String,
        client_id: String,
        credential: Credential,
        authority: &str,
        scope: &str,
    ) -> Result<Arc<dyn TokenSource>, Failure> {
        let authority = Url::parse(authority).map_err(|error| {
            Failure::usage(format!("{name}: authority is not an address ({error})"), "write it with https://")
        })?;
        let identity = AppIdentity { name: name.to_string(), tenant, client_id, credential, authority };
        Ok(token_source(identity, scope.to_string(), Arc::clone(&self.clock))?)
    }

    fn recipients(&self) -> Result<Recipients, Failure> {
        let texts = self
            .config
            .vault
            .recipients
            .iter()
            .map(|text| text.resolve("vault.recipients"))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Recipients::parse(&texts)?)
    }

    fn identities(&self) -> Result<Identities, Failure> {
        match &self.config.vault.identity_file {
            Some(path) => Ok(Identities::from_file(Path::new(&path.resolve("vault.identity_file")?))?),
            None => Ok(Identities::default()),
        }
    }

    pub(crate) async fn vault(&self, use_: VaultUse) -> Result<Vault, Failure> {
        let (recipients, identities) = (self.recipients()?, self.identities()?);
        let store = match (self.store(use_).await, use_) {
            (Err(failure), VaultUse::Look) if failure.kind() == FaultKind::Usage => {
                Arc::new(MemoryStore::new()) as Arc<dyn BlobStore>
            }
            (store, _) => store?,
        };
        let clock = Arc::clone(&self.clock);
        Ok(match use_ {
            VaultUse::Read => Vault::open(store, recipients, identities, clock).await?,
            VaultUse::Look => Vault::look(store, recipients, identities, clock).await?,
            VaultUse::Write => Vault::open_or_create(store, recipients, identities, clock, TOOL).await?,
        })
    }

    /// The reading side of an environment.
    pub(crate) fn source(&self, environment: &EnvironmentConfig) -> Result<Arc<dyn RowSource>, Failure> {
        Ok(Arc::new(self.dataverse(environment, &environment.profiles, Access::Read)?))
    }

    /// Both sides of an environment that is written to, as its restore profile where it has one.
    pub(crate) fn target(&self, environment: &EnvironmentConfig) -> Result<BothSides, Failure> {
        let profiles: Vec<String> = match &environment.restore_profile {
            Some(profile) => vec![profile.clone()],
            None => environment.profiles.clone(),
        };
        let source = Arc::new(self.dataverse(environment, &profiles, Access::Write)?);
        let target = DataverseTarget::new(Arc::clone(&source), Arc::clone(&self.clock));
        Ok((source, Arc::new(target)))
    }

    fn dataverse(
        &self,
        environment: &EnvironmentConfig,
        profiles: &[String],
        access: Access,
    ) -> Result<DataverseSource, Failure> {
        let name = &environment.name;
        if environment.kind == EnvironmentKind::Uo {
            return Err(Failure::usage(
                format!("environment {name}: kind uo is not supported by this version"),
                "this version backs up Dataverse (kind ce)",
            ));
        }
        let resource = resource_of(environment)?;
        let mut users = Vec::new();
        for profile in profiles {
            let Some(profile) = self.config.profile(profile) else { continue };
            users.push(self.profile_tokens(profile, &format!("{resource}/.default"))?);
        }
        let client = ClientConfig::new(format!("{resource}{WEB_API}"));
        self.dataverse_as(environment, client, users, access)
    }

    /// The reading side of an environment as one application user, for a check that a person waits for.
    pub(crate) fn source_as(
        &self,
        environment: &EnvironmentConfig,
        user: Arc<dyn TokenSource>,
    ) -> Result<DataverseSource, Failure> {
        let mut client = ClientConfig::new(format!("{}{WEB_API}", resource_of(environment)?));
        client.retry.first_contact_time_max = PROBE_TIME_MAX;
        client.retry.time_max = PROBE_TIME_MAX;
        self.dataverse_as(environment, client, vec![user], Access::Read)
    }

    fn dataverse_as(
        &self,
        environment: &EnvironmentConfig,
        mut client: ClientConfig,
        users: Vec<Arc<dyn TokenSource>>,
        access: Access,
    ) -> Result<DataverseSource, Failure> {
        client.in_flight_max = environment.max_requests_in_flight;
        client.writes = access == Access::Write;
        let client = Client::new(client, users, Arc::clone(&self.clock))?;
        let options = SourceOptions { formatted_values: environment.formatted_values };
        Ok(DataverseSource::new(client, options))
    }
}

/// What tokens for an environment are asked for: its origin (`dataverse` protocol, section 9.1); for Unified Operations the
/// address as it is written, without a slash at its end (`entra` protocol, section 3).
pub(crate) fn resource_of(environment: &EnvironmentConfig) -> Result<String, Failure> {
    let what = format!("environment {}: url", environment.name);
    let url = crate::config::check_address(&what, &environment.url.resolve(&what)?)?;
    Ok(match environment.kind {
        EnvironmentKind::Ce => url.origin().ascii_serialization(),
        EnvironmentKind::Uo => url.as_str().trim_end_matches('/').to_string(),
    })
}
