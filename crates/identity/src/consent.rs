//! Admin consent: the address an administrator opens, and what comes back (`entra` protocol, section 3.1).
//!
//! With `/.default` the page covers everything the app registration lists, delegated and application permissions of all
//! resources. The answer comes as a redirect whose `admin_consent=True` stands there on failure as well, so only the
//! absence of `error` means success; and its `tenant` is a claim of whoever made the redirect, to be compared.

use dynavault_model::{Diagnose, FaultKind};
use url::Url;

use crate::endpoint::same_secret;
use crate::{Cloud, redact};

/// Where the page returns to if nothing else is registered; nobody needs to listen there.
pub const CONSENT_REDIRECT: &str = "http://localhost";

/// The address at which an administrator grants what the app registration asks for. `listener` is where the answer is
/// awaited, `graph` the root of Graph where the authority does not say it (two clouds share one), and a random `state` that comes back with it; without, the page returns to [`CONSENT_REDIRECT`].
pub fn admin_consent_url(
    authority: &Url,
    graph: Option<&str>,
    tenant: &str,
    client_id: &str,
    listener: Option<(&str, &str)>,
) -> Url {
    // The page refuses `common`; any organisation of whoever signs in is the nearest meaning.
    let tenant = if tenant.eq_ignore_ascii_case("common") { "organizations" } else { tenant };
    let graph = graph.unwrap_or_else(|| Cloud::of_authority(authority).unwrap_or_default().graph());
    let mut url = crate::endpoint::below(authority, &[tenant, "v2.0", "adminconsent"]);
    let mut query = url.query_pairs_mut();
    query.append_pair("client_id", client_id).append_pair("scope", &format!("{graph}/.default"));
    query.append_pair("redirect_uri", listener.map_or(CONSENT_REDIRECT, |(redirect, _)| redirect));
    if let Some((_, state)) = listener {
        query.append_pair("state", state);
    }
    drop(query);
    url
}

/// Consent was not given, or the answer is not to our question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsentError {
    /// The page says no.
    #[error("consent was not given: {error}: {description}")]
    Refused {
        /// The page's word, e.g. `access_denied`.
        error: String,
        /// The page's sentence, scrubbed.
        description: String,
    },
    /// The answer carries another `state`, or none: it does not belong to this question.
    #[error("the answer does not belong to this request for consent")]
    Foreign,
    /// Consent was given in another tenant.
    #[error("consent was given in tenant {got}, not in {asked}")]
    OtherTenant {
        /// The tenant that was asked for.
        asked: String,
        /// The tenant that answered.
        got: String,
    },
    /// Neither yes nor no.
    #[error("the answer of the consent page is incomplete")]
    Incomplete,
}

impl Diagnose for ConsentError {
    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Refused { .. } => "let an administrator of the tenant open the address and accept",
            Self::OtherTenant { .. } => "sign in to the consent page with an administrator of the configured tenant",
            Self::Foreign | Self::Incomplete => "open the address again and finish the page",
        };
        Some(text.to_owned())
    }

    fn kind(&self) -> FaultKind {
        FaultKind::SignIn
    }
}

/// Reads the query of the redirect that ends the page and gives the tenant in which consent was given. `tenant` is the
/// one asked for; a domain name cannot be compared with the GUID that comes back, so there the caller compares with the
/// `tid` of the next token.
///
/// A token fetched before consent lacks the new permissions: get the next one from [`TokenSource::fresh_token`].
///
/// [`TokenSource::fresh_token`]: crate::TokenSource::fresh_token
pub fn read_consent_return(query: &str, tenant: &str, state: &str) -> Result<String, ConsentError> {
    let one = |name: &str| {
        let mut values = url::form_urlencoded::parse(query.as_bytes()).filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.into_owned());
        value.filter(|_| values.next().is_none())
    };
    let given = one("state").unwrap_or_default();
    if !same_secret(&given, state) {
        return Err(ConsentError::Foreign);
    }
    if query_names(query, "error") {
        let word = |name: &str| redact::scrub(&one(name).unwrap_or_default());
        return Err(ConsentError::Refused { error: word("error"), description: word("error_description") });
    }
    let Some(got) = one("tenant").filter(|_| one("admin_consent").is_some_and(|v| v.eq_ignore_ascii_case("true")))
    else {
        return Err(ConsentError::Incomplete);
    };
    if is_guid(tenant) && !got.eq_ignore_ascii_case(tenant) {
        return Err(ConsentError::OtherTenant { asked: tenant.to_owned(), got: redact::scrub(&got) });
    }
    if !is_guid(&got) {
        return Err(ConsentError::Incomplete);
    }
    Ok(got)
}

fn query_names(query: &str, name: &str) -> bool {
    url::form_urlencoded::parse(query.as_bytes()).any(|(known, _)| known == name)
}

/// Whether a text is a GUID in its usual spelling.
pub(crate) fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text
            .char_indices()
            .all(|(at, c)| if matches!(at, 8 | 13 | 18 | 23) { c == '-' } else { c.is_ascii_hexdigit() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "11111111-2222-3333-4444-555555555555";

    #[test]
    fn the_address_is_that_of_the_clouds_own_service() {
        let authority = Url::parse("https://login.partner.microsoftonline.cn/").unwrap();
        let url = admin_consent_url(&authority, None, "common", "app 1", Some(("http://localhost:7/consent", "s&1")));
        assert_eq!(
            url.as_str(),
            "https://login.partner.microsoftonline.cn/organizations/v2.0/adminconsent?client_id=app+1&scope=https%3A%2F%2F\
             microsoftgraph.chinacloudapi.cn%2F.default&redirect_uri=http%3A%2F%2Flocalhost%3A7%2Fconsent&state=s%261"
        );
    }

    #[test]
    fn a_return_with_an_error_is_a_failure_although_it_says_consent() {
        let read = |query: &str| read_consent_return(query, TENANT, "s1");
        let failure = read("admin_consent=True&error=access_denied&error_description=AADSTS65004%3A+no%0Away&state=s1");
        assert_eq!(
            failure,
            Err(ConsentError::Refused { error: "access_denied".into(), description: "AADSTS65004: no way".into() })
        );
        assert_eq!(read(&format!("admin_consent=True&tenant={TENANT}&state=s1&scope=x")), Ok(TENANT.to_owned()));
        let other = "99999999-2222-3333-4444-555555555555";
        assert!(matches!(
            read(&format!("admin_consent=True&tenant={other}&state=s1")),
            Err(ConsentError::OtherTenant { got, .. }) if got == other
        ));
        assert_eq!(read(&format!("admin_consent=True&tenant={TENANT}&state=s2")), Err(ConsentError::Foreign));
        assert_eq!(read(&format!("admin_consent=True&tenant={TENANT}&state=s1&state=s1")), Err(ConsentError::Foreign));
        assert_eq!(read(&format!("tenant={TENANT}&state=s1")), Err(ConsentError::Incomplete));
        assert_eq!(
            read_consent_return(&format!("admin_consent=true&tenant={TENANT}&state=s"), "contoso.com", "s"),
            Ok(TENANT.into())
        );
        assert!(read_consent_return("admin_consent=true&tenant=../x&state=s", "contoso.com", "s").is_err());
    }
}
