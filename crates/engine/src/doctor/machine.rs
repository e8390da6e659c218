//! This host: addresses it would speak with, room on its disks, its catalog.

use std::path::{Path, PathBuf};

use dynavault_catalog::Catalog;
use dynavault_model::FaultKind;
use dynavault_store::VaultLocation;
use rustix::fs::{Access, access, statvfs};
use url::Url;

use super::{CheckLine, failure_of};
use crate::assemble::{Engine, resource_of};
use crate::config::EnvironmentConfig;
use crate::failure::Failure;
use crate::profile::{authority_of, cloud_hint, graph_root_of};

/// Less free space than this stops a backup soon: state files and scratch of one large table.
const DISK_BYTES_MIN: u64 = 100 << 20;
/// Less free space than this is worth a word.
const DISK_BYTES_WARNED: u64 = 1 << 30;

impl Engine {
    /// Whether everything is spoken with over TLS. Plain http is for this machine only, which the configuration enforces for
    /// addresses that are written out, and this for those by reference.
    pub(super) fn check_addresses(&self, environments: &[&EnvironmentConfig], profiles: &[&str]) -> Vec<CheckLine> {
        let mut addresses: Vec<(String, Result<String, Failure>)> = Vec::new();
        for profile in profiles.iter().filter_map(|name| self.config().profile(name)) {
            addresses.push((format!("sign-in of {}", profile.name), authority_of(profile).map(|url| url.to_string())));
            addresses.push((format!("Graph of {}", profile.name), graph_root_of(profile)));
        }
        for environment in environments {
            addresses.push((format!("environment {}", environment.name), resource_of(environment)));
        }
        match self.vault_location() {
            Ok(VaultLocation::Azure(location)) => {
                addresses.push(("vault".to_string(), Ok(location.endpoint.to_string())));
            }
            Ok(VaultLocation::Folder(_)) => {}
            Err(failure) => addresses.push(("vault".to_string(), Err(failure))),
        }
        let mut lines: Vec<CheckLine> = Vec::new();
        for (subject, address) in addresses {
            match address {
                Err(failure) => lines.push(CheckLine::failed("address", subject, &failure)),
                Ok(address) => {
                    let found = match Url::parse(&address).map(|url| url.origin().ascii_serialization()) {
                        Ok(origin) if origin.starts_with("https:") => format!("{origin}, with TLS"),
                        Ok(origin) => format!("{origin}, without TLS, on this machine"),
                        Err(error) => error.to_string(),
                    };
                    lines.push(CheckLine::ok("address", subject, found));
                }
            }
        }
        // One profile that fits no environment is named once, not once for each check of it.
        for environment in environments {
            let used = environment.profiles.iter().chain(&environment.restore_profile);
            for hint in used.filter_map(|name| cloud_hint(self.config().profile(name)?, environment)) {
                lines.push(CheckLine::warning("address", &environment.name, hint, "set cloud of the profile"));
            }
        }
        lines
    }

    /// Room and rights where the catalog, the state files and a vault in a folder are.
    pub(super) async fn check_machine(&self) -> Vec<CheckLine> {
        let catalog = match self.catalog_path() {
            Ok(path) => path,
            Err(failure) => return vec![CheckLine::failed("catalog", "file", &failure)],
        };
        let mut lines = vec![folder("disk", "catalog and state", catalog.parent().unwrap_or_else(|| Path::new(".")))];
        if let Ok(VaultLocation::Folder(vault)) = self.vault_location() {
            lines.push(folder("disk", "vault", &vault));
        }
        let shown = catalog.display().to_string();
        lines.push(if catalog.exists() {
            let opened = tokio::task::spawn_blocking(move || Catalog::open(&catalog)).await;
            match opened {
                Ok(Ok(_)) => CheckLine::ok("catalog", shown, "opens"),
                Ok(Err(error)) => CheckLine::failed("catalog", shown, &failure_of(error)),
                Err(error) => {
                    CheckLine::failed("catalog", shown, &Failure::new(FaultKind::Failed, error.to_string(), None))
                }
            }
        } else {
            CheckLine::ok("catalog", shown, "is made by the first run")
        });
        lines
    }
}

/// The folder, or the nearest one above it that exists.
fn existing(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|place| place.is_dir());
    found.filter(|place| !place.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")).to_path_buf()
}

fn folder(check: &'static str, what: &str, folder: &Path) -> CheckLine {
    let place = existing(folder);
    let subject = format!("{what}, {}", folder.display());
    let failed = |found: String, remedy: &str| {
        CheckLine::failed(check, subject.clone(), &Failure::new(FaultKind::Failed, found, Some(remedy.to_string())))
    };
    if let Err(error) = access(&place, Access::WRITE_OK | Access::EXEC_OK) {
        return failed(
            format!("{} may not be written: {error}", place.display()),
            "run as the user who owns the folder, or give this user the right to write there",
        );
    }
    let free = match statvfs(&place) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(error) => {
            return failed(format!("the free space of {} is not known: {error}", place.display()), "look at the disk");
        }
    };
    let found = format!("{} MiB free", free >> 20);
    if free < DISK_BYTES_MIN {
        failed(found, "free space on this disk, or choose another one")
    } else if free < DISK_BYTES_WARNED {
        CheckLine::warning(check, subject, found, "free space on this disk soon")
    } else {
        CheckLine::ok(check, subject, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::CheckStatus;

    #[test]
    fn a_folder_that_is_still_to_be_made_is_judged_by_the_one_above() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(existing(&root.path().join("a/b/c")), root.path());
        assert_eq!(existing(Path::new("not-there/x")), Path::new("."));
        let line = folder("disk", "vault", &root.path().join("a/b"));
        assert_ne!(line.status, CheckStatus::Failed, "{line:?}");
        assert!(line.found.ends_with("MiB free"), "{line:?}");
    }
}
