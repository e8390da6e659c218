//! Where an administrator grants what a profile needs, and lists of profiles.

use dynavault_identity::{Cloud, SignIn, admin_consent_url};
use serde::Serialize;
use serde_json::Value;
use url::Url;

use crate::assemble::{Engine, resource_of};
use crate::config::{CredentialConfig, EnvironmentConfig, EnvironmentKind, ProfileConfig};
use crate::failure::Failure;
use crate::profile::{PermissionType, SignInMode, authority_of, graph_root_of, manifest, permissions_of};

/// Where to grant, and what the app registration has to ask for so that exactly that is granted.
#[derive(Debug, Clone, Serialize)]
pub struct ConsentPage {
    /// Name of the profile.
    pub profile: String,
    /// The page for an administrator of the tenant.
    pub url: String,
    /// The rows of the permission table.
    pub permissions: Vec<ConsentRow>,
    /// `requiredResourceAccess` of the app registration; rows without a public id are missing in it.
    #[serde(rename = "requiredResourceAccess")]
    pub required_resource_access: Value,
}

/// One permission to be listed by the app registration.
#[derive(Debug, Clone, Serialize)]
pub struct ConsentRow {
    /// Name of the service that publishes it.
    pub api: &'static str,
    /// Its value.
    pub permission: &'static str,
    /// Its type.
    #[serde(rename = "type")]
    pub of_type: PermissionType,
    /// What it is for.
    pub needed_for: &'static str,
    /// Its id in public manifests.
    pub id: Option<&'static str>,
}

/// A profile in a list.
#[derive(Debug, Clone, Serialize)]
pub struct ProfileLine {
    /// Its name.
    pub profile: String,
    /// Its kind.
    pub kind: EnvironmentKind,
    /// How it signs in.
    pub mode: SignInMode,
    /// Kind of its credential.
    pub credential: &'static str,
    /// Tenant as configured.
    pub tenant: String,
    /// Application id as configured.
    pub client_id: String,
    /// Its cloud.
    pub cloud: Cloud,
    /// Environments that use it.
    pub environments: Vec<String>,
    /// Who is signed in, for profiles of people.
    pub signed_in: Option<SignedInLine>,
}

/// Who is signed in on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct SignedInLine {
    /// Name of the person; `None` if nobody is signed in.
    pub user: Option<String>,
    /// When the person signed in.
    pub since: Option<jiff::Timestamp>,
    /// When the sign-in was last renewed; unused for 90 days it ends.
    pub renewed: Option<jiff::Timestamp>,
    /// Which store is in force.
    pub store: Option<String>,
    /// Why nothing is known.
    pub problem: Option<String>,
}

impl Engine {
    /// Where an administrator grants what a profile needs. Sends nothing, and needs no credential.
    pub fn consent_page(&self, name: &str) -> Result<ConsentPage, Failure> {
        let profile = self.profile(name)?;
        let what = |part: &str| format!("profile {name}: {part}");
        let tenant = profile.tenant.resolve(&what("tenant"))?;
        let client_id = profile.client_id.resolve(&what("client_id"))?;
        let rows = permissions_of(profile.kind).map(|row| ConsentRow {
            api: row.api.name(),
            permission: row.permission,
            of_type: row.of_type,
            needed_for: row.needed_for,
            id: row.id,
        });
        Ok(ConsentPage {
            profile: name.to_string(),
            url: admin_consent_url(&authority_of(profile)?, Some(&graph_root_of(profile)?), &tenant, &client_id, None)
                .to_string(),
            permissions: rows.collect(),
            required_resource_access: manifest(profile.kind),
        })
    }

    /// Every profile, without asking anybody. What is configured by reference and cannot be read is shown as the reference.
    pub async fn profiles(&self) -> Vec<ProfileLine> {
        let mut lines = Vec::new();
        for profile in &self.config().profiles {
            let shown = |text: &crate::Text| text.resolve("profile").unwrap_or_else(|_| format!("{text:?}"));
            let is_person = matches!(profile.credential, CredentialConfig::Delegated {});
            lines.push(ProfileLine {
                profile: profile.name.clone(),
                kind: profile.kind,
                mode: SignInMode::of(&profile.credential),
                credential: profile.credential.name(),
                tenant: shown(&profile.tenant),
                client_id: shown(&profile.client_id),
                cloud: profile.cloud,
                environments: self.environments_of(&profile.name).iter().map(|used| used.name.clone()).collect(),
                signed_in: if is_person { Some(self.signed_in(profile).await) } else { None },
            });
        }
        lines
    }

    async fn signed_in(&self, profile: &ProfileConfig) -> SignedInLine {
        let nobody = SignedInLine { user: None, since: None, renewed: None, store: None, problem: None };
        let look = async {
            let store = self.token_store()?.describe();
            let sign_in = SignIn::new(self.app_identity(profile)?, std::sync::Arc::clone(self.clock()))?;
            Ok::<_, Failure>((store, sign_in.current().await?))
        };
        match look.await {
            Err(failure) => SignedInLine { problem: Some(failure.message()), ..nobody },
            Ok((store, None)) => SignedInLine { store: Some(store), ..nobody },
            Ok((store, Some(current))) => SignedInLine {
                user: Some(current.user_name().unwrap_or(current.object_id()).to_string()),
                since: Some(current.signed_in()),
                renewed: Some(current.renewed()),
                store: Some(store),
                problem: None,
            },
        }
    }
}

/// A sentence if the address of an environment belongs to another cloud than the profile says. A hint only: the vendor adds
/// regions without telling, so any address is accepted (`dataverse` protocol, section 9.5).
pub(crate) fn cloud_hint(profile: &ProfileConfig, environment: &EnvironmentConfig) -> Option<String> {
    let address = Url::parse(&resource_of(environment).ok()?).ok()?;
    let cloud = Cloud::of_environment(address.host_str()?)?;
    // Both US clouds sign in at the same host.
    (cloud.authority() != profile.cloud.authority()).then(|| {
        format!(
            "the address of environment {} belongs to cloud {cloud}, and profile {} is of cloud {}",
            environment.name, profile.name, profile.cloud
        )
    })
}
