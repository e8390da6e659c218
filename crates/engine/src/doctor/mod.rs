//! `doctor`: everything that has to be right before a backup or a restore, looked at in one go.
//!
//! ```text
//! addresses ─ disk ─ catalog ─▶ each profile: sign-in, permissions ─▶ clock ─▶ each environment: privileges ─▶ storage
//! ```
//!
//! Each check is a line: ok, warning or failed, what was found, and what mends it. A check that fails does not keep the
//! others from being made. Nothing is changed but one small object below `doctor/` in the storage, which is deleted again
//! where that is allowed. A warning is something to know; it does not change the exit code.

mod environment;
mod machine;
mod storage;

use dynavault_model::{Diagnose, FaultKind};
use jiff::SignedDuration;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::assemble::Engine;
use crate::config::{ConfigError, EnvironmentConfig};
use crate::failure::Failure;
use crate::profile::{PermissionState, ProfileCheck};

/// Clocks that are further apart make assertions and tokens invalid (`entra` protocol, section 12.2).
const CLOCKS_APART_MAX: SignedDuration = SignedDuration::from_mins(5);
/// Clocks this far apart are worth a word: something does not keep the time.
const CLOCKS_APART_WARNED: SignedDuration = SignedDuration::from_secs(60);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// It works, and there is something to know.
    Warning,
    /// It does not work.
    Failed,
}

impl CheckStatus {
    /// The word in JSON and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckLine {
    /// What was looked at, e.g. `sign-in` or `storage delete`.
    pub check: &'static str,
    /// Which one: a profile, an environment, an address.
    pub subject: String,
    /// How it ended.
    pub status: CheckStatus,
    /// What was found.
    pub found: String,
    /// What mends it.
    pub remedy: Option<String>,
    #[serde(skip)]
    fault: Option<FaultKind>,
}

impl CheckLine {
    fn ok(check: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Self {
        let (subject, found) = (subject.into(), found.into());
        Self { check, subject, status: CheckStatus::Ok, found, remedy: None, fault: None }
    }

    fn warning(
        check: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { status: CheckStatus::Warning, remedy, ..Self::ok(check, subject, found) }
    }

    fn failed(check: &'static str, subject: impl Into<String>, failure: &Failure) -> Self {
        let remedy = failure.remedy().map(str::to_string);
        let fault = Some(failure.kind());
        Self { status: CheckStatus::Failed, remedy, fault, ..Self::ok(check, subject, failure.message()) }
    }
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    /// The worst status of all.
    pub status: CheckStatus,
    /// The checks, in the order in which they were made.
    pub checks: Vec<CheckLine>,
}

impl DoctorReport {
    fn new(checks: Vec<CheckLine>) -> Self {
        let status = checks.iter().map(|line| line.status).max().unwrap_or(CheckStatus::Ok);
        Self { status, checks }
    }

    /// The report when there is no configuration to look with.
    pub fn without_configuration(error: ConfigError) -> Self {
        Self::new(vec![CheckLine::failed("configuration", "file", &error.into())])
    }

    /// The class of what is wrong: the configuration before sign-in before anything else.
    pub fn fault(&self) -> Option<FaultKind> {
        let has = |kind: FaultKind| self.checks.iter().any(|line| line.fault == Some(kind));
        let named = [FaultKind::Usage, FaultKind::SignIn].into_iter().find(|kind| has(*kind));
        named.or_else(|| (self.status == CheckStatus::Failed).then_some(FaultKind::Failed))
    }
}

impl Engine {
    /// Looks at everything, or at one environment with its profiles. `path` is the configuration file, to be named.
    pub async fn doctor(
        &self,
        environment: Option<&str>,
        path: &str,
        cancel: &CancellationToken,
    ) -> Result<DoctorReport, Failure> {
        let environments: Vec<&EnvironmentConfig> = match environment {
            Some(name) => vec![self.config().environment(name)?],
            None => self.config().environments.iter().collect(),
        };
        let mut profiles: Vec<&str> = match environment {
            Some(_) => Vec::new(),
            None => self.config().profiles.iter().map(|profile| profile.name.as_str()).collect(),
        };
        for used in environments.iter().flat_map(|used| used.profiles.iter().chain(&used.restore_profile)) {
            if !profiles.contains(&used.as_str()) {
                profiles.push(used);
            }
        }
        let mut checks = vec![CheckLine::ok(
            "configuration",
            path,
            format!("{} environments, {} profiles", self.config().environments.len(), self.config().profiles.len()),
        )];
        checks.extend(self.check_addresses(&environments, &profiles));
        checks.extend(self.check_machine().await);
        let mut usable = Vec::new();
        for profile in profiles {
            stopped(cancel)?;
            match self.check_profile(profile, cancel).await {
                Ok(check) => {
                    checks.extend(of_profile(&check));
                    usable.push(check);
                }
                Err(failure) => {
                    stopped(cancel)?;
                    checks.push(CheckLine::failed("sign-in", profile, &failure));
                }
            }
        }
        checks.extend(clocks(&usable));
        for environment in environments {
            stopped(cancel)?;
            checks.extend(self.check_privileges(environment, &usable, cancel).await);
        }
        stopped(cancel)?;
        checks.extend(self.check_storage().await);
        stopped(cancel)?;
        Ok(DoctorReport::new(checks))
    }
}

fn stopped(cancel: &CancellationToken) -> Result<(), Failure> {
    if cancel.is_cancelled() { Err(Failure::new(FaultKind::Cancelled, "cancelled", None)) } else { Ok(()) }
}

fn of_profile(check: &ProfileCheck) -> Vec<CheckLine> {
    let profile = check.profile.as_str();
    let who = check.signed_in_as.name.as_ref().or(check.signed_in_as.id.as_ref());
    let tenant = check.tenant.name.as_ref().unwrap_or(&check.tenant.id);
    let who = who.map_or_else(String::new, |who| format!(" as {who}"));
    let kept = check.signed_in_as.store.as_ref().map_or_else(String::new, |store| format!(", kept in {store}"));
    let mut lines =
        vec![CheckLine::ok("sign-in", profile, format!("{}{who}, tenant {tenant}{kept}", check.mode.name()))];
    let count = |state| check.permissions.iter().filter(|line| line.state == state).count();
    let missing: Vec<String> = check.missing().map(|line| format!("{} {}", line.api, line.permission)).collect();
    let found = format!(
        "{} granted, {} not needed, {} unknown",
        count(PermissionState::Granted),
        count(PermissionState::NotNeeded),
        count(PermissionState::Unknown)
    );
    lines.push(match check.missing().next() {
        None => CheckLine::ok("permissions", profile, found),
        Some(line) => {
            let found = format!("missing: {}; {found}", missing.join(", "));
            CheckLine::failed("permissions", profile, &Failure::new(FaultKind::SignIn, found, line.remedy.clone()))
        }
    });
    for line in &check.environments {
        let subject = format!("{} with {profile}", line.environment);
        let message = line.message.clone().unwrap_or_default();
        lines.push(match line.fault {
            Some(fault) => {
                CheckLine::failed("environment", subject, &Failure::new(fault, message, line.remedy.clone()))
            }
            None if line.state == "ok" => {
                let found = if let (Some(companies), Some(entities)) = (line.companies, line.data_entities) {
                    format!("{companies} companies, {entities} data entities")
                } else {
                    let organization = line.organization.as_deref().unwrap_or("an organization without a name");
                    let user = line.user.as_deref().unwrap_or("unknown");
                    format!("{organization}, we are user {user}")
                };
                CheckLine::ok("environment", subject, found)
            }
            None => {
                CheckLine::warning("environment", subject, message, format!("see `dynavault profile check {profile}`"))
            }
        });
    }
    for warning in &check.warnings {
        lines.push(CheckLine::warning(
            "profile",
            profile,
            warning.clone(),
            format!("see `dynavault profile check {profile}`"),
        ));
    }
    lines
}

/// The service whose clock differs most from ours.
fn clocks(checks: &[ProfileCheck]) -> Option<CheckLine> {
    let all = checks.iter().flat_map(|check| &check.clocks);
    let (whose, ahead) = all.max_by_key(|(_, ahead)| ahead.abs())?;
    let found = format!("{} s apart from {whose}", ahead.abs().as_secs());
    let remedy = "keep the clock of this host in time with NTP (timedatectl set-ntp true)";
    Some(if ahead.abs() > CLOCKS_APART_MAX {
        let failure = Failure::new(FaultKind::Failed, found, Some(remedy.to_string()));
        CheckLine::failed("clock", "this host", &failure)
    } else if ahead.abs() > CLOCKS_APART_WARNED {
        CheckLine::warning("clock", "this host", found, remedy)
    } else {
        CheckLine::ok("clock", "this host", found)
    })
}

/// What a failed check found, for causes of the libraries.
fn failure_of<E: Diagnose + Send + Sync + 'static>(error: E) -> Failure {
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: FaultKind) -> CheckLine {
        CheckLine::failed("x", "y", &Failure::new(kind, "no", None))
    }

    #[test]
    fn the_configuration_comes_before_sign_in_and_sign_in_before_the_rest() {
        let report = |kinds: &[FaultKind]| DoctorReport::new(kinds.iter().copied().map(failed).collect()).fault();
        assert_eq!(report(&[FaultKind::Failed, FaultKind::SignIn, FaultKind::Usage]), Some(FaultKind::Usage));
        assert_eq!(report(&[FaultKind::Failed, FaultKind::SignIn]), Some(FaultKind::SignIn));
        assert_eq!(report(&[FaultKind::Busy]), Some(FaultKind::Failed));
        let warned = DoctorReport::new(vec![CheckLine::ok("a", "b", "c"), CheckLine::warning("a", "b", "c", "d")]);
        assert_eq!((warned.status, warned.fault()), (CheckStatus::Warning, None));
    }
}
