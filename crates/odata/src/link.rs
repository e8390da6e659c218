//! Which addresses a token may be sent to: those of its own environment, and no other.
//!
//! Links come from the service and are followed as given. A link to another host would carry our token there, so it is
//! an error, not a request (`dataverse` protocol, test T18). `{org}.crm4.dynamics.com` and `{org}.api.crm4.dynamics.com`
//! are the same environment, and both appear in links (section 1.1, confirmed).

use std::net::IpAddr;

use url::{Host, Url};

/// Whether plain http may be spoken with the host of this address.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

/// Reads the address of an environment's Web API: https, or http on this machine; it ends in a slash so that paths can
/// be joined to it.
pub(crate) fn read_base(text: &str) -> Result<Url, String> {
    let mut base = Url::parse(text).map_err(|fault| format!("the environment's address is not a URL: {fault}"))?;
    if base.scheme() != "https" && !(base.scheme() == "http" && is_loopback(&base)) {
        return Err("the environment's address is not https".to_owned());
    }
    if !base.username().is_empty() || base.password().is_some() {
        return Err("the environment's address holds a user name".to_owned());
    }
    base.set_query(None);
    base.set_fragment(None);
    if !base.path().ends_with('/') {
        let path = format!("{}/", base.path());
        base.set_path(&path);
    }
    Ok(base)
}

/// Makes an absolute address of `path_or_url` and checks that it belongs to the environment at `base`.
pub(crate) fn resolve(base: &Url, path_or_url: &str) -> Result<Url, String> {
    let url = base.join(path_or_url).map_err(|fault| format!("the link is not a URL: {fault}"))?;
    if url.scheme() != base.scheme() {
        return Err(format!("the link uses {} instead of {}", url.scheme(), base.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the link holds a user name".to_owned());
    }
    let (ours, theirs) = (base.host_str().unwrap_or_default(), url.host_str().unwrap_or_default());
    if url.port_or_known_default() != base.port_or_known_default() || !same_environment(ours, theirs) {
        return Err(format!("the link leads to another host, {theirs}"));
    }
    Ok(url)
}

fn same_environment(one: &str, other: &str) -> bool {
    one == other || matches!((environment(one), environment(other)), (Some(a), Some(b)) if a == b)
}

/// Organisation and region of a host name, `api` left out; `None` for names too short to have both.
fn environment(host: &str) -> Option<(&str, &str)> {
    let (organisation, rest) = host.split_once('.')?;
    let region = rest.strip_prefix("api.").unwrap_or(rest);
    (region.contains('.') && !organisation.is_empty()).then_some((organisation, region))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "https://contoso.crm4.dynamics.com/api/data/v9.2";

    #[test]
    fn links_of_the_same_environment_are_followed_as_given() {
        let base = read_base(BASE).unwrap();
        for (link, expected) in [
            ("accounts?$select=name", "https://contoso.crm4.dynamics.com/api/data/v9.2/accounts?$select=name"),
            ("/api/data/v9.2/WhoAmI", "https://contoso.crm4.dynamics.com/api/data/v9.2/WhoAmI"),
            (
                "https://contoso.api.crm4.dynamics.com/api/data/v9.2/accounts?$skiptoken=%3Ccookie%20pagenumber=%222%22%20/%3E",
                "https://contoso.api.crm4.dynamics.com/api/data/v9.2/accounts?$skiptoken=%3Ccookie%20pagenumber=%222%22%20/%3E",
            ),
            ("https://CONTOSO.crm4.dynamics.com:443/x", "https://contoso.crm4.dynamics.com/x"),
        ] {
            assert_eq!(resolve(&base, link).unwrap().as_str(), expected);
        }
        let api = read_base("https://contoso.api.crm4.dynamics.com/api/data/v9.2/").unwrap();
        assert!(resolve(&api, "https://contoso.crm4.dynamics.com/x").is_ok());
    }

    #[test]
    fn links_that_would_carry_the_token_elsewhere_are_refused() {
        let base = read_base(BASE).unwrap();
        for link in [
            "https://evil.example/api/data/v9.2/accounts",
            "https://fabrikam.crm4.dynamics.com/x",
            "https://contoso.crm5.dynamics.com/x",
            "https://contoso.crm4.dynamics.com.evil.example/x",
            "https://contoso.api.api.crm4.dynamics.com/x",
            "https://contoso.crm4.dynamics.com:8443/x",
            "http://contoso.crm4.dynamics.com/x",
            "https://user:password@contoso.crm4.dynamics.com/x",
            "//evil.example/x",
            "\\\\evil.example\\x",
            "file:///etc/passwd",
        ] {
            assert!(resolve(&base, link).is_err(), "{link}");
        }
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for (address, accepted) in [
            ("http://127.0.0.1:8080/api/data/v9.2/", true),
            ("http://localhost:8080", true),
            ("http://[::1]:8080", true),
            ("http://contoso.crm4.dynamics.com", false),
            ("ftp://127.0.0.1", false),
            ("https://user@contoso.crm4.dynamics.com", false),
            ("contoso", false),
        ] {
            assert_eq!(read_base(address).is_ok(), accepted, "{address}");
        }
        let base = read_base("http://127.0.0.1:8080").unwrap();
        assert!(resolve(&base, "http://127.0.0.1:8081/").is_err());
        assert!(resolve(&base, "http://127.0.0.2:8080/").is_err());
    }
}
