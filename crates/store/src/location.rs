//! Where a vault is: `file:///absolute/path` or `azblob://ACCOUNT/CONTAINER/PREFIX`.

use std::path::PathBuf;

use dynavault_identity::redact::url_for_message;
use dynavault_identity::transport::is_loopback;
use url::Url;

use crate::{BlobName, StoreError};

/// Where a vault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultLocation {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A container in Azure Blob, or a folder of it.
    Azure(AzureLocation),
}

/// A place in Azure Blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureLocation {
    /// Storage account.
    pub account: String,
    /// Container.
    pub container: String,
    /// Folder within the container without slashes at its ends; empty for the whole container.
    pub prefix: String,
    /// Blob service of the account, without query.
    pub endpoint: Url,
}

/// Reads the location from the configuration. `endpoint` replaces the public address of the account's blob service:
/// an emulator, a sovereign cloud, a private link. Plain `http` is accepted for loopback hosts only.
pub fn parse_vault_url(url: &str, endpoint: Option<&str>) -> Result<VaultLocation, StoreError> {
    // A SAS pasted behind the location must not come back in a message.
    let shown = url.split(['?', '#']).next().unwrap_or_default();
    let refuse = |reason: &str| StoreError::Location {
        text: shown.to_owned(),
        reason: reason.to_owned(),
        remedy: "write file:///absolute/path or azblob://ACCOUNT/CONTAINER/PREFIX".to_owned(),
    };
    if shown != url {
        return Err(refuse("it has a query; a SAS belongs in vault.auth"));
    }
    if url.contains('\\') {
        return Err(refuse("it contains a backslash"));
    }
    if let Some(rest) = url.strip_prefix("azblob://") {
        return azure(rest, endpoint, &refuse).map(VaultLocation::Azure);
    }
    let parsed = Url::parse(url).map_err(|error| refuse(&error.to_string()))?;
    if parsed.scheme() != "file" {
        return Err(refuse("its scheme is neither file nor azblob"));
    }
    if endpoint.is_some() {
        return Err(refuse("a folder has no endpoint"));
    }
    match parsed.to_file_path() {
        Ok(path) if path.is_absolute() && parsed.path() != "/" => Ok(VaultLocation::Folder(path)),
        _ => Err(refuse("it does not name a folder by its absolute path")),
    }
}

fn azure(rest: &str, endpoint: Option<&str>, refuse: &dyn Fn(&str) -> StoreError) -> Result<AzureLocation, StoreError> {
    let mut parts = rest.splitn(3, '/');
    let account = parts.next().unwrap_or_default().to_owned();
    let container = parts.next().unwrap_or_default().to_owned();
    let prefix = parts.next().unwrap_or_default().trim_end_matches('/').to_owned();
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    // Naming rules of storage accounts and containers, Azure resource naming documentation.
    if !(3..=24).contains(&account.len()) || !plain(&account) {
        return Err(refuse("an account name has 3 to 24 lower-case letters and digits"));
    }
    let dashes_inside = container.split('-').all(|part| !part.is_empty() && plain(part));
    if !(3..=63).contains(&container.len()) || !dashes_inside {
        return Err(refuse("a container name has 3 to 63 lower-case letters, digits and single dashes"));
    }
    if !prefix.is_empty() {
        BlobName::new(prefix.as_str()).map_err(|_| refuse("its folder breaks the rules for object names"))?;
    }
    let endpoint = match endpoint {
        None => Url::parse(&format!("https://{account}.blob.core.windows.net/")),
        Some(text) => Url::parse(text),
    };
    let endpoint = endpoint.map_err(|error| refuse(&format!("its endpoint is not a URL: {error}")))?;
    let shown = url_for_message(&endpoint);
    match endpoint.scheme() {
        "https" => {}
        "http" if is_loopback(&endpoint) => {}
        _ => return Err(refuse(&format!("its endpoint {shown} is not https; http is for loopback hosts only"))),
    }
    if shown != endpoint.as_str() {
        return Err(refuse(&format!("its endpoint {shown} has a query or a user; a SAS belongs in vault.auth")));
    }
    Ok(AzureLocation { account, container, prefix, endpoint })
}

impl AzureLocation {
    /// URL of the container.
    pub fn container_url(&self) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(&self.container);
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(url: &str, endpoint: Option<&str>) -> String {
        parse_vault_url(url, endpoint).unwrap_err().to_string()
    }

    #[test]
    fn both_kinds_of_location_are_understood() {
        assert_eq!(
            parse_vault_url("file:///var/lib/dynavault/a%20b", None).unwrap(),
            VaultLocation::Folder("/var/lib/dynavault/a b".into())
        );
        let VaultLocation::Azure(public) = parse_vault_url("azblob://acct1/my-vault/prod/ce/", None).unwrap() else {
            panic!()
        };
        assert_eq!(public.container_url().as_str(), "https://acct1.blob.core.windows.net/my-vault");
        assert_eq!(public.prefix, "prod/ce");
        let emulator = "http://127.0.0.1:10000/devstoreaccount1";
        let VaultLocation::Azure(local) = parse_vault_url("azblob://devstoreaccount1/v01", Some(emulator)).unwrap()
        else {
            panic!()
        };
        assert_eq!(local.container_url().as_str(), "http://127.0.0.1:10000/devstoreaccount1/v01");
        assert_eq!(local.prefix, "");
    }

    #[test]
    fn locations_that_cannot_work_are_refused_without_showing_a_signature() {
        for url in [
            "file://relative",
            "file:///",
            "/var/x",
            "https://x/y",
            "azblob://A/c",
            "azblob://acct",
            "azblob://acct/c",
            "azblob://acct/con--tainer",
            "azblob://acct/cont/a//b",
            "azblob://acct/cont/../x",
            "azblob://acct/a\\b",
        ] {
            reason(url, None);
        }
        let shown = reason("azblob://acct/cont?sig=SECRET", None);
        assert!(!shown.contains("SECRET") && shown.contains("vault.auth"), "{shown}");
        let shown = reason("azblob://acct/cont", Some("https://h/?sig=SECRET"));
        assert!(!shown.contains("SECRET"), "{shown}");
        assert!(reason("azblob://acct/cont", Some("http://example.com")).contains("loopback"));
        assert!(reason("file:///a", Some("https://h")).contains("endpoint"));
    }
}
