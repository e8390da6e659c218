//! The Microsoft clouds as data: who signs in where, and which addresses belong to which cloud.
//!
//! One table (`entra` protocol, section 1.1; `dataverse` 9.5; `finops` 9.5). Tokens never cross clouds, and an app
//! registration exists once per cloud. Host names serve to *hint* at a wrong cloud; any https address that the operator
//! configured is accepted, because the vendor adds regions without telling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

/// Which Microsoft cloud a tenant is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cloud {
    /// Public, and Microsoft 365 GCC.
    #[default]
    #[serde(rename = "public")]
    Public,
    /// US government, GCC High.
    #[serde(rename = "usgov")]
    UsGov,
    /// US government, Department of Defense.
    #[serde(rename = "usgov-dod")]
    UsGovDod,
    /// China, operated by 21Vianet.
    #[serde(rename = "china")]
    China,
}

/// One line of the table.
struct Facts {
    cloud: Cloud,
    /// As written in the configuration.
    name: &'static str,
    authority: &'static str,
    /// Other host names of the same issuer.
    aliases: &'static [&'static str],
    graph: &'static str,
    /// Ends of Dataverse host names; the one of the public cloud comes with a region number, `crm4.dynamics.com`.
    dataverse: &'static [&'static str],
    finops: &'static [&'static str],
    storage: &'static str,
    federated_audience: &'static str,
}

const FACTS: [Facts; 4] = [
    Facts {
        cloud: Cloud::Public,
        name: "public",
        authority: "https://login.microsoftonline.com",
        aliases: &["login.windows.net", "login.microsoft.com", "sts.windows.net"],
        graph: "https://graph.microsoft.com",
        dataverse: &["dynamics.com"],
        finops: &[
            "operations.dynamics.com",
            "operations.eu.dynamics.com",
            "operations.fr.dynamics.com",
            "operations.no.dynamics.com",
            "operations.sa.dynamics.com",
            "operations.ch.dynamics.com",
            "operations.uae.dynamics.com",
            "cloudax.dynamics.com",
            "axcloud.dynamics.com",
            // GCC signs in at the public host.
            "operations.gov.microsoftdynamics.us",
        ],
        storage: "blob.core.windows.net",
        federated_audience: "api://AzureADTokenExchange",
    },
    Facts {
        cloud: Cloud::UsGov,
        name: "usgov",
        authority: "https://login.microsoftonline.us",
        aliases: &["login.usgovcloudapi.net"],
        graph: "https://graph.microsoft.us",
        dataverse: &["crm.microsoftdynamics.us"],
        finops: &["operations.high.microsoftdynamics.us"],
        storage: "blob.core.usgovcloudapi.net",
        federated_audience: "api://AzureADTokenExchangeUSGov",
    },
    Facts {
        cloud: Cloud::UsGovDod,
        name: "usgov-dod",
        authority: "https://login.microsoftonline.us",
        aliases: &["login.usgovcloudapi.net"],
        graph: "https://dod-graph.microsoft.us",
        dataverse: &["crm.appsplatform.us"],
        finops: &[],
        storage: "blob.core.usgovcloudapi.net",
        federated_audience: "api://AzureADTokenExchangeUSGov",
    },
    Facts {
        cloud: Cloud::China,
        name: "china",
        authority: "https://login.partner.microsoftonline.cn",
        aliases: &["login.chinacloudapi.cn"],
        graph: "https://microsoftgraph.chinacloudapi.cn",
        dataverse: &["crm.dynamics.cn"],
        // Assumed, not confirmed (`finops` 9.5).
        finops: &["operations.dynamics.cn"],
        storage: "blob.core.chinacloudapi.cn",
        federated_audience: "api://AzureADTokenExchangeChina",
    },
];

impl Cloud {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Public, Self::UsGov, Self::UsGovDod, Self::China];

    fn facts(self) -> &'static Facts {
        FACTS.iter().find(|facts| facts.cloud == self).expect("the table has a line for each cloud")
    }

    /// Name in the configuration, e.g. `usgov-dod`.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Preferred address of the sign-in service, without trailing slash.
    pub fn authority(self) -> &'static str {
        self.facts().authority
    }

    /// Root of Microsoft Graph, without trailing slash; also its audience.
    pub fn graph(self) -> &'static str {
        self.facts().graph
    }

    /// End of the host names of Blob storage. The scope is `https://storage.azure.com/.default` in every cloud.
    pub fn storage_suffix(self) -> &'static str {
        self.facts().storage
    }

    /// The audience a federated credential is registered with.
    pub fn federated_audience(self) -> &'static str {
        self.facts().federated_audience
    }

    /// Ends of Dataverse host names. In the public cloud a region stands before it, `contoso.crm4.dynamics.com`.
    pub fn dataverse_suffixes(self) -> &'static [&'static str] {
        self.facts().dataverse
    }

    /// Ends of Finance and Operations host names.
    pub fn finops_suffixes(self) -> &'static [&'static str] {
        self.facts().finops
    }

    /// The cloud whose sign-in service this is, by preferred name or alias. The two US clouds share theirs; the answer
    /// is then [`Cloud::UsGov`].
    pub fn of_authority(authority: &Url) -> Option<Self> {
        let host = authority.host_str()?.to_ascii_lowercase();
        let own = |facts: &&Facts| {
            facts.authority.strip_prefix("https://") == Some(host.as_str()) || facts.aliases.contains(&host.as_str())
        };
        FACTS.iter().find(own).map(|facts| facts.cloud)
    }

    /// The cloud an environment's host name points to; `None` for names that no line of the table knows. A hint only.
    pub fn of_environment(host: &str) -> Option<Self> {
        let host = host.to_ascii_lowercase();
        let named = |suffix: &str| host.strip_suffix(suffix).is_some_and(|name| name.ends_with('.'));
        let own = |facts: &&Facts| facts.dataverse.iter().chain(facts.finops).any(|suffix| named(suffix));
        FACTS.iter().find(own).map(|facts| facts.cloud)
    }

    /// Whether a resource is Microsoft Graph of any cloud.
    pub(crate) fn is_graph(resource: &str) -> bool {
        FACTS.iter().any(|facts| resource.trim_end_matches('/').eq_ignore_ascii_case(facts.graph))
    }

    /// The name under which an issuer is remembered: the preferred host of a known cloud, else host and port.
    pub(crate) fn issuer_key(authority: &Url) -> String {
        match Self::of_authority(authority) {
            Some(cloud) => cloud.authority().trim_start_matches("https://").to_owned(),
            None => authority.as_str().trim_end_matches('/').to_ascii_lowercase(),
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no cloud.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no cloud {0:?}; known are public, usgov, usgov-dod, china")]
pub struct UnknownCloud(String);

impl dynavault_model::Diagnose for UnknownCloud {
    fn remedy(&self) -> Option<String> {
        Some("use public (also for GCC), usgov (GCC High), usgov-dod or china".to_owned())
    }

    fn kind(&self) -> dynavault_model::FaultKind {
        dynavault_model::FaultKind::Usage
    }
}

impl FromStr for Cloud {
    type Err = UnknownCloud;

    fn from_str(text: &str) -> Result<Self, UnknownCloud> {
        Self::ALL.into_iter().find(|cloud| cloud.name() == text).ok_or_else(|| UnknownCloud(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_an_unknown_one_is_refused() {
        for cloud in Cloud::ALL {
            assert_eq!(cloud.to_string().parse(), Ok(cloud));
            assert_eq!(serde_json::to_value(cloud).unwrap(), cloud.name(), "the configuration has the same word");
            assert!(Url::parse(cloud.authority()).is_ok() && Url::parse(cloud.graph()).is_ok());
        }
        assert_eq!(Cloud::default(), Cloud::Public);
        assert!("germany".parse::<Cloud>().unwrap_err().to_string().contains("germany"));
    }

    #[test]
    fn aliases_of_an_issuer_share_one_name() {
        let key = |host: &str| Cloud::issuer_key(&Url::parse(&format!("https://{host}/")).unwrap());
        assert_eq!(key("login.chinacloudapi.cn"), key("login.partner.microsoftonline.cn"));
        assert_eq!(key("LOGIN.windows.net"), "login.microsoftonline.com");
        assert_eq!(key("login.example.com:8443"), "https://login.example.com:8443");
        assert_ne!(key("login.microsoftonline.us"), key("login.microsoftonline.com"));
    }

    #[test]
    fn an_address_hints_at_its_cloud() {
        for (host, cloud) in [
            ("contoso.crm4.dynamics.com", Some(Cloud::Public)),
            ("contoso.crm9.dynamics.com", Some(Cloud::Public)),
            ("contoso.crm.microsoftdynamics.us", Some(Cloud::UsGov)),
            ("contoso.crm.appsplatform.us", Some(Cloud::UsGovDod)),
            ("contoso.crm.dynamics.cn", Some(Cloud::China)),
            ("contoso.sandbox.operations.eu.dynamics.com", Some(Cloud::Public)),
            ("contoso.operations.high.microsoftdynamics.us", Some(Cloud::UsGov)),
            ("evilcrm.dynamics.cn", None),
            ("contoso.example.com", None),
        ] {
            assert_eq!(Cloud::of_environment(host), cloud, "{host}");
        }
        assert!(
            Cloud::is_graph("https://graph.microsoft.com/") && !Cloud::is_graph("https://contoso.crm.dynamics.com")
        );
    }
}
