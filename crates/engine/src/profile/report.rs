//! What `profile check` says, as values that print as its JSON.

use dynavault_model::FaultKind;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::config::EnvironmentKind;
use crate::profile::{PermissionType, SignInMode};

/// Whether a permission of the table is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PermissionState {
    /// It is.
    Granted,
    /// It is not, and it is needed.
    Missing,
    /// It has no effect in this mode, or the service is not in the tenant.
    NotNeeded,
    /// It could not be found out.
    Unknown,
}

impl PermissionState {
    /// The word in JSON and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Missing => "missing",
            Self::NotNeeded => "not-needed",
            Self::Unknown => "unknown",
        }
    }
}

/// What a state rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// The claims of a token, or its refusal.
    Token,
    /// The grants of the tenant, through Microsoft Graph.
    Graph,
    /// A request that needs the permission.
    Probe,
}

impl FoundBy {
    /// The word in JSON and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Graph => "graph",
            Self::Probe => "probe",
        }
    }
}

/// One row of the table with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PermissionLine {
    /// Name of the service that publishes it.
    pub api: &'static str,
    /// Its value.
    pub permission: &'static str,
    /// Its type.
    #[serde(rename = "type")]
    pub of_type: PermissionType,
    /// Whether it is there.
    pub state: PermissionState,
    /// What the state rests on.
    pub found_by: Option<FoundBy>,
    /// What it is for.
    pub needed_for: &'static str,
    /// Why the state is what it is, where that is not obvious.
    pub note: Option<String>,
    /// What the operator can do about a missing one.
    pub remedy: Option<String>,
    /// Where an administrator grants a missing one.
    pub grant_url: Option<String>,
}

/// The tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TenantInfo {
    /// Its GUID, or what is configured as long as nobody has told the GUID.
    pub id: String,
    /// Its name, where Graph tells.
    pub name: Option<String>,
    /// Its verified domains, where Graph tells.
    pub domains: Vec<String>,
}

/// Who signed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignedInAs {
    /// `user` or `application`.
    pub kind: &'static str,
    /// Object id in the directory.
    pub id: Option<String>,
    /// Name for people.
    pub name: Option<String>,
    /// Where the sign-in of a person is kept.
    pub store: Option<String>,
}

/// How an environment took us in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnvironmentLine {
    /// Configured name.
    pub environment: String,
    /// `ok`, `failed` or `not-probed`.
    pub state: &'static str,
    /// Id of our user there.
    pub user: Option<String>,
    /// Name of the organization, where it tells.
    pub organization: Option<String>,
    /// Companies that may be seen, in Unified Operations.
    pub companies: Option<u64>,
    /// Data entities that are offered, in Unified Operations.
    pub data_entities: Option<u64>,
    /// What went wrong.
    pub message: Option<String>,
    /// What the operator can do.
    pub remedy: Option<String>,
    #[serde(skip)]
    pub(crate) fault: Option<FaultKind>,
}

/// When a credential of the app ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CredentialLine {
    /// `client-secret` or `client-certificate`.
    pub kind: &'static str,
    /// Its name in the app registration, where it has one.
    pub name: Option<String>,
    /// When it ends.
    pub expires: Timestamp,
    /// Whole days until then; negative when it has ended.
    pub days_left: i64,
}

/// The outcome of `profile check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProfileCheck {
    /// Name of the profile.
    pub profile: String,
    /// Kind of the profile.
    pub kind: EnvironmentKind,
    /// How it signs in.
    pub mode: SignInMode,
    /// Application id.
    pub client_id: String,
    /// The tenant.
    pub tenant: TenantInfo,
    /// Who signed in.
    pub signed_in_as: SignedInAs,
    /// The rows of the permission table.
    pub permissions: Vec<PermissionLine>,
    /// The environments that use the profile.
    pub environments: Vec<EnvironmentLine>,
    /// Secrets and certificates with their ends, where they could be learned.
    pub credentials: Vec<CredentialLine>,
    /// Groups of the tenant, for profiles of Unified Operations.
    pub groups: Option<u64>,
    /// What is worth knowing and stops nothing.
    pub warnings: Vec<String>,
    /// How far the clocks of the services that answered are ahead of ours, with who they are.
    #[serde(skip)]
    pub(crate) clocks: Vec<(String, SignedDuration)>,
}

impl ProfileCheck {
    /// The permissions that are needed and not there.
    pub fn missing(&self) -> impl Iterator<Item = &PermissionLine> {
        self.permissions.iter().filter(|line| line.state == PermissionState::Missing)
    }

    /// The class of what is wrong, if something is.
    pub fn fault(&self) -> Option<FaultKind> {
        let faults = || self.environments.iter().filter_map(|line| line.fault);
        if self.missing().next().is_some() || faults().any(|fault| fault == FaultKind::SignIn) {
            return Some(FaultKind::SignIn);
        }
        faults().next()
    }
}
