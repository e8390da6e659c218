//! What the sign-in service's refusals mean (`entra` protocol, section 7).
//!
//! The service says that its numeric codes and texts may change. So `error` and the HTTP status decide whether another
//! try can help, and the code chooses the sentence shown to a person and splits classes where `error` is too coarse. An
//! unknown code falls back to the class of its `error`.

use std::time::Duration;

use dynavault_model::Retry;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use crate::challenge::ClaimsChallenge;
use crate::consent::admin_consent_url;
use crate::transport::FailedReply;
use crate::{TokenError, TokenFault, TraceIds, redact};

/// Pause after the metadata service said 410: it is being updated and is back within 70 s (section 9.4). Five tries
/// with this pause cover that time.
const METADATA_UPDATE_PAUSE: Duration = Duration::from_secs(20);

/// No federated credential matches (section 7): the app was set up wrongly, or minutes ago.
pub(crate) const UNMATCHED_CODES: [u64; 4] = [70_021, 700_211, 700_212, 700_213];

/// Who asked for what; the placeholders of the sentences.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) profile: String,
    pub(crate) tenant: String,
    pub(crate) client_id: String,
    pub(crate) scope: String,
    pub(crate) authority: Url,
    pub(crate) host: String,
    /// The metadata service of the machine was asked, not the tenant.
    pub(crate) managed: bool,
}

/// Body of a refusal; only `error` is guaranteed (section 1.3).
#[derive(Deserialize)]
struct Body {
    error: String,
    #[serde(default)]
    error_description: String,
    #[serde(default)]
    error_codes: Vec<u64>,
    #[serde(default)]
    suberror: String,
    trace_id: Option<String>,
    correlation_id: Option<String>,
    timestamp: Option<String>,
    claims: Option<String>,
}

/// An answer that is no token: what it was called on the wire, and what it means.
pub(crate) struct Refusal {
    /// `error`, e.g. `authorization_pending`; empty for an answer that is no JSON.
    pub(crate) error: String,
    /// The service's numeric code.
    pub(crate) code: Option<u64>,
    /// Ready to be shown.
    pub(crate) cause: TokenError,
}

struct Meaning {
    codes: &'static [u64],
    fault: TokenFault,
    sentence: &'static str,
    remedy: &'static str,
}

const fn meaning(codes: &'static [u64], fault: TokenFault, sentence: &'static str, remedy: &'static str) -> Meaning {
    Meaning { codes, fault, sentence, remedy }
}

const SIGN_IN_AGAIN: &str = "sign in again with `dynavault profile login {profile}`";
const CONSENT: &str =
    "let an administrator open {consent_url} (`dynavault profile consent-url {profile}` prints it, too)";

/// The table of section 7. `{profile}`, `{client_id}`, `{tenant}`, `{scope}`, `{host}` and `{consent_url}` are filled in.
#[rustfmt::skip] // One case reads as two lines.
const MEANINGS: &[Meaning] = &[
    meaning(&[7_000_215], TokenFault::BadCredential, "the client secret of app {client_id} is wrong",
        "configure the secret's value, not its id, in profile {profile}"),
    meaning(&[7_000_222], TokenFault::BadCredential, "the client secret of app {client_id} has expired",
        "create a new client secret in the app registration {client_id} and configure its value"),
    meaning(&[700_027, 700_030, 50_012], TokenFault::BadCredential, "the certificate or assertion of app {client_id} is not accepted",
        "upload the certificate in use to the app registration {client_id}"),
    meaning(&[700_024, 50_013, 500_133], TokenFault::BadConfig, "the assertion is outside its time window",
        "set the clock of this host; it differs from the service's clock by minutes"),
    meaning(&[7_000_218], TokenFault::BadConfig, "app {client_id} needs a secret or assertion, or does not allow public client flows",
        "configure a credential, or set \"Allow public client flows\" to Yes in the app registration {client_id} (Authentication, Advanced settings)"),
    meaning(&[700_025], TokenFault::BadConfig, "app {client_id} is a public client and must not send a secret",
        "remove the secret from the profile, or register the app as a confidential client"),
    meaning(&[700_016, 700_011], TokenFault::BadConfig, "there is no app {client_id} in tenant {tenant}",
        "check client_id and tenant, and that an administrator has consented to the app in this tenant"),
    meaning(&[7_000_112, 70_001], TokenFault::PolicyBlocked, "app {client_id} is disabled in tenant {tenant}",
        "enable the enterprise application {client_id} in the tenant"),
    meaning(&[90_002], TokenFault::BadConfig, "there is no tenant {tenant} at {host}",
        "check tenant and cloud of the profile: a tenant is known in its own cloud only"),
    meaning(&[900_023], TokenFault::BadConfig, "{tenant} is neither the GUID nor a domain of a tenant",
        "write the tenant's GUID, or one of its verified domains such as contoso.com, as tenant of the profile"),
    meaning(&[90_038], TokenFault::BadConfig, "tenant {tenant} is in another cloud than {host}",
        "set cloud of the profile to the one the tenant is in"),
    meaning(&[500_011, 650_052, 650_057], TokenFault::BadConfig, "tenant {tenant} does not know the resource of {scope}",
        "check the environment's URL, and that the product is present in this tenant"),
    meaning(&[50_001, 70_011, 28_002, 28_000, 700_022], TokenFault::BadConfig, "the scope {scope} is not valid",
        "check the environment's URL in the configuration"),
    meaning(&[50_011, 50_194], TokenFault::BadConfig, "the redirect address or audience setting of app {client_id} does not fit",
        "register the redirect address for desktop apps, and use the tenant's GUID instead of a common endpoint"),
    meaning(&UNMATCHED_CODES, TokenFault::BadConfig, "no federated credential of app {client_id} matches the presented token",
        "compare issuer, subject and audience of the federated credential with those of the token file; a new one needs up to ten minutes to spread"),
    meaning(&[70_008, 700_082], TokenFault::ReauthUser, "the sign-in was unused for too long and has expired",
        "sign in again with `dynavault profile login {profile}`; a job that runs at least every 90 days prevents this"),
    meaning(&[50_173, 50_133, 50_132, 50_089], TokenFault::ReauthUser, "the sign-in was revoked, or the password has changed", SIGN_IN_AGAIN),
    meaning(&[70_043], TokenFault::ReauthUser, "a policy of the tenant limits how long a sign-in lasts",
        "sign in again with `dynavault profile login {profile}`; use an app credential for unattended jobs"),
    meaning(&[70_000], TokenFault::ReauthUser, "the stored sign-in cannot be used", SIGN_IN_AGAIN),
    meaning(&[700_084], TokenFault::BadConfig, "the stored sign-in belongs to a browser app and lasts a day only",
        "register the redirect address for desktop apps instead of single-page apps"),
    meaning(&[65_001, 90_008, 65_004, 90_094, 90_095], TokenFault::ConsentNeeded, "nobody has consented to app {client_id} in tenant {tenant}",
        CONSENT),
    meaning(&[50_076, 50_079, 50_072, 50_074, 50_078, 50_158], TokenFault::ReauthUser, "the tenant asks for multi-factor authentication",
        "sign in interactively with `dynavault profile login {profile}`"),
    meaning(&[53_000, 53_001, 53_002, 53_003, 530_032, 530_034, 530_035], TokenFault::PolicyBlocked, "a Conditional Access policy of tenant {tenant} refuses the sign-in",
        "ask an administrator to look up the correlation id in the sign-in log and to allow app {client_id}"),
    meaning(&[50_105], TokenFault::PolicyBlocked, "the user is not assigned to app {client_id}",
        "assign the user to the enterprise application, or turn \"Assignment required\" off"),
    meaning(&[50_034, 51_004, 50_020, 90_072], TokenFault::BadConfig, "the account does not exist in tenant {tenant}",
        "check tenant of the profile, or invite the account as a guest"),
    meaning(&[50_053, 50_055, 50_057, 50_126], TokenFault::ReauthUser, "the account is locked, disabled or its password is not accepted",
        "ask the directory administrator about the state of the account"),
    meaning(&[54_005, 501_481, 700_005], TokenFault::Bug, "the sign-in code was used twice or does not belong here",
        "start the sign-in again; if it fails the same way, report it"),
    meaning(&[50_196], TokenFault::Bug, "the service stopped a client that asks for tokens in a loop",
        "stop other copies of the program with this profile, wait an hour, and report it if it comes back"),
    meaning(&[90_055], TokenFault::Throttled, "the sign-in service is asked too often", "wait some minutes"),
    meaning(&[50_033, 50_087, 90_006, 90_012, 90_024, 90_033, 90_090], TokenFault::Transient, "the sign-in service has trouble", "try again later"),
];

/// Turns a refusal into an error.
pub(crate) fn classify(asked: &Asked, reply: &FailedReply, now: Timestamp) -> Refusal {
    match serde_json::from_slice(&reply.body) {
        Ok(body) => of_body(asked, body, reply, now),
        // A proxy's page, or a service too ill to answer in its own format (section 1.3).
        Err(_) => Refusal { error: String::new(), code: None, cause: without_body(asked, reply, now) },
    }
}

/// Turns the parameters of a redirect that brought no code into an error (section 4.3).
pub(crate) fn classify_redirect(asked: &Asked, error: &str, description: &str) -> Refusal {
    let body = Body {
        error: error.to_owned(),
        error_description: description.to_owned(),
        error_codes: Vec::new(),
        suberror: String::new(),
        trace_id: None,
        correlation_id: None,
        timestamp: None,
        claims: None,
    };
    let reply = FailedReply {
        code: 400,
        retry_after: None,
        error_code: None,
        request_id: None,
        date: None,
        body: azure_core::Bytes::new(),
    };
    of_body(asked, body, &reply, Timestamp::UNIX_EPOCH)
}

impl Refusal {
    /// Whether the code names a policy: `access_denied` alone means that the person refused.
    pub(crate) fn is_policy(&self) -> bool {
        let known = MEANINGS.iter().find(|meaning| self.code.is_some_and(|code| meaning.codes.contains(&code)));
        known.is_some_and(|meaning| meaning.fault == TokenFault::PolicyBlocked)
    }
}

fn of_body(asked: &Asked, body: Body, reply: &FailedReply, now: Timestamp) -> Refusal {
    let code = body.error_codes.first().copied().or_else(|| code_in(&body.error_description));
    let known = code.and_then(|code| MEANINGS.iter().find(|meaning| meaning.codes.contains(&code)));
    let by_status = fault_of_status(asked, reply.code);
    // Repeating these locks accounts and trips 50196, whatever the status says.
    let final_answer = matches!(body.error.as_str(), "invalid_grant" | "invalid_client");
    let fault = match (by_status, known) {
        (Some(fault), _) if !final_answer => fault,
        (_, Some(meaning)) => meaning.fault,
        (_, None) => fault_of_error(asked, &body.error, &body.suberror),
    };
    let (sentence, remedy) = match known {
        Some(meaning) => (asked.fill(meaning.sentence), asked.fill(meaning.remedy)),
        None if asked.managed => managed_sentence(fault, &body.error_description),
        None => {
            let (sentence, remedy) = fallback_sentence(fault, &body);
            (sentence, asked.fill(&remedy))
        }
    };
    let remedy = match fault {
        TokenFault::Transient | TokenFault::Throttled => remedy,
        _ if remedy.contains('`') => remedy,
        // Where the cure lies outside this program, it can at least tell whether it worked.
        _ => format!("{remedy}; `dynavault doctor` shows whether it helped"),
    };
    let sentence = match code {
        Some(code) => format!("{sentence}: AADSTS{code}"),
        None => format!("{sentence}: {}", redact::scrub(&body.error)),
    };
    let cause = TokenError::Refused {
        profile: asked.profile.clone(),
        fault,
        retry: if final_answer { Retry::Permanent } else { retry_of(fault, reply, now) },
        sentence,
        remedy,
        ids: Box::new(TraceIds {
            trace: body.trace_id.as_deref().map(redact::scrub),
            correlation: body.correlation_id.as_deref().map(redact::scrub),
            timestamp: body.timestamp.as_deref().map(redact::scrub),
        }),
        claims: body.claims.as_deref().and_then(ClaimsChallenge::from_json).map(Box::new),
    };
    Refusal { error: body.error, code, cause }
}

impl Asked {
    fn fill(&self, text: &str) -> String {
        let consent_url = || admin_consent_url(&self.authority, None, &self.tenant, &self.client_id, None).to_string();
        let text = if text.contains("{consent_url}") {
            text.replace("{consent_url}", &consent_url())
        } else {
            text.to_owned()
        };
        text.replace("{profile}", &self.profile)
            .replace("{client_id}", &self.client_id)
            .replace("{tenant}", &self.tenant)
            .replace("{scope}", &self.scope)
            .replace("{host}", &self.host)
    }
}

fn without_body(asked: &Asked, reply: &FailedReply, now: Timestamp) -> TokenError {
    let fault = fault_of_status(asked, reply.code).unwrap_or(TokenFault::Transient);
    // Without JSON only a status that promises recovery is worth another try; a 403 page of a proxy is not.
    let retry = match fault_of_status(asked, reply.code) {
        Some(fault) => retry_of(fault, reply, now),
        None => Retry::Permanent,
    };
    TokenError::Refused {
        profile: asked.profile.clone(),
        fault,
        retry,
        sentence: format!("{} answered {} without a sign-in message", asked.host, reply.code),
        remedy: format!("check whether a proxy or firewall stands between this host and {}", asked.host),
        ids: Box::default(),
        claims: None,
    }
}

/// What the HTTP status alone says about trying again.
fn fault_of_status(asked: &Asked, status: u16) -> Option<TokenFault> {
    match status {
        429 => Some(TokenFault::Throttled),
        408 | 500..=599 => Some(TokenFault::Transient),
        404 | 410 if asked.managed => Some(TokenFault::Transient),
        _ => None,
    }
}

fn fault_of_error(asked: &Asked, error: &str, suberror: &str) -> TokenFault {
    match (error, suberror) {
        ("temporarily_unavailable" | "server_error", _) => TokenFault::Transient,
        ("consent_required", _) | (_, "consent_required") => TokenFault::ConsentNeeded,
        (_, "protection_policy_required" | "message_only") | ("access_denied", _) => TokenFault::PolicyBlocked,
        ("invalid_grant" | "interaction_required" | "login_required", _) => TokenFault::ReauthUser,
        ("invalid_client", _) => TokenFault::BadCredential,
        ("unauthorized_client" | "invalid_request" | "invalid_resource" | "invalid_scope" | "invalid_tenant", _) => {
            TokenFault::BadConfig
        }
        _ if asked.managed => TokenFault::BadConfig,
        _ => TokenFault::Bug,
    }
}

fn retry_of(fault: TokenFault, reply: &FailedReply, now: Timestamp) -> Retry {
    match fault {
        TokenFault::Transient | TokenFault::Throttled => match reply.retry_after {
            Some(after) => Retry::After(after.pause(now)),
            None if reply.code == 410 => Retry::After(METADATA_UPDATE_PAUSE),
            None => Retry::Backoff,
        },
        _ => Retry::Permanent,
    }
}

fn managed_sentence(fault: TokenFault, description: &str) -> (String, String) {
    let remedy = match fault {
        TokenFault::Transient | TokenFault::Throttled => "try again later",
        _ => "assign a managed identity to this machine, and set client_id if it has several",
    };
    (format!("the metadata service of this machine gave no token ({})", redact::scrub(description)), remedy.to_owned())
}

fn fallback_sentence(fault: TokenFault, body: &Body) -> (String, String) {
    let remedy = match fault {
        TokenFault::Transient | TokenFault::Throttled => "try again later",
        TokenFault::ReauthUser => SIGN_IN_AGAIN,
        TokenFault::ConsentNeeded => CONSENT,
        TokenFault::PolicyBlocked => "ask an administrator to look up the correlation id in the sign-in log",
        TokenFault::BadCredential => "check the credential in the app registration",
        TokenFault::BadConfig => "check tenant, client_id and the environment's URL",
        TokenFault::Bug => "look up the correlation id in the tenant's sign-in log",
    };
    // The description names tenant, app and scope, never the credential; it is scrubbed all the same.
    let first_line = body.error_description.lines().next().unwrap_or_default();
    (format!("the sign-in service refused: {}", redact::scrub(first_line)), remedy.to_owned())
}

fn code_in(description: &str) -> Option<u64> {
    let (_, rest) = description.split_once("AADSTS")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynavault_model::{Diagnose, FaultKind};

    fn asked(managed: bool) -> Asked {
        Asked {
            profile: "p".into(),
            tenant: "t-1".into(),
            client_id: "app-1".into(),
            scope: "https://x.example/.default".into(),
            authority: Url::parse("https://login.microsoftonline.us").unwrap(),
            host: "login.example".into(),
            managed,
        }
    }

    fn classified(managed: bool, status: u16, body: &str) -> (TokenFault, Retry, String, String, FaultKind) {
        let reply = FailedReply {
            code: status,
            retry_after: None,
            error_code: None,
            request_id: None,
            date: None,
            body: body.to_owned().into(),
        };
        let error = classify(&asked(managed), &reply, Timestamp::UNIX_EPOCH).cause;
        let text = error.to_string();
        let kind = error.kind();
        match error {
            TokenError::Refused { fault, retry, remedy, .. } => (fault, retry, text, remedy, kind),
            other => panic!("{other:?}"),
        }
    }

    fn body(error: &str, code: u64) -> String {
        format!(
            r#"{{"error":"{error}","error_codes":[{code}],"error_description":"AADSTS{code}: words.\r\nmore","correlation_id":"c-1","trace_id":"t-9"}}"#
        )
    }

    #[test]
    fn each_known_code_has_its_own_class_and_advice() {
        let cases = [
            ("invalid_client", 7_000_215, TokenFault::BadCredential, "wrong"),
            ("invalid_client", 7_000_222, TokenFault::BadCredential, "expired"),
            ("unauthorized_client", 700_016, TokenFault::BadConfig, "no app app-1 in tenant t-1"),
            ("invalid_resource", 500_011, TokenFault::BadConfig, "https://x.example/.default"),
            ("invalid_request", 90_002, TokenFault::BadConfig, "no tenant t-1"),
            ("invalid_request", 900_023, TokenFault::BadConfig, "neither the GUID nor a domain"),
            ("invalid_grant", 53_003, TokenFault::PolicyBlocked, "Conditional Access"),
            ("invalid_grant", 65_001, TokenFault::ConsentNeeded, "consented"),
            ("invalid_grant", 700_082, TokenFault::ReauthUser, "expired"),
            ("invalid_grant", 70_008, TokenFault::ReauthUser, "unused for too long"),
            ("invalid_grant", 50_173, TokenFault::ReauthUser, "revoked"),
            ("invalid_grant", 70_043, TokenFault::ReauthUser, "how long a sign-in lasts"),
            ("consent_required", 90_094, TokenFault::ConsentNeeded, "consented"),
            ("invalid_client", 7_000_218, TokenFault::BadConfig, "public client flows"),
        ];
        for (error, code, fault, words) in cases {
            let (got, retry, text, remedy, kind) = classified(false, 400, &body(error, code));
            assert_eq!((got, retry, kind), (fault, Retry::Permanent, FaultKind::SignIn), "{code}");
            assert!(text.contains(words) && text.contains(&format!("AADSTS{code}")), "{text}");
            assert!(text.contains("correlation id c-1") && text.contains("trace id t-9"), "{text}");
            assert!(!remedy.is_empty() && !remedy.contains('{'), "{remedy}");
        }
    }

    #[test]
    fn every_class_names_the_command_that_helps() {
        for (error, code, command) in [
            ("invalid_grant", 700_082, "`dynavault profile login p`"),
            ("invalid_grant", 50_076, "`dynavault profile login p`"),
            ("invalid_grant", 1, "`dynavault profile login p`"),
            ("invalid_client", 7_000_215, "`dynavault doctor`"),
            ("invalid_client", 7_000_222, "create a new client secret"),
            ("unauthorized_client", 700_016, "`dynavault doctor`"),
            ("consent_required", 1, "`dynavault profile consent-url p`"),
            (
                "invalid_grant",
                65_001,
                "https://login.microsoftonline.us/t-1/v2.0/adminconsent?client_id=app-1&scope=https%3A%2F%2Fgraph.microsoft.us%2F.default",
            ),
        ] {
            let (_, _, _, remedy, _) = classified(false, 400, &body(error, code));
            assert!(remedy.contains(command) && !remedy.contains('{'), "{remedy}");
        }
    }

    #[test]
    fn claims_of_a_refusal_are_kept_for_the_next_sign_in_and_not_shown() {
        let text = r#"{"error":"interaction_required","error_codes":[50076],"claims":"{\"access_token\":{\"capolids\":{\"values\":[\"SECRET\"]}}}"}"#;
        let reply = FailedReply {
            code: 400,
            retry_after: None,
            error_code: None,
            request_id: None,
            date: None,
            body: text.into(),
        };
        let error = classify(&asked(false), &reply, Timestamp::UNIX_EPOCH).cause;
        assert!(error.claims().unwrap().parameter().contains("SECRET"));
        assert!(!format!("{error:?} {error}").contains("SECRET"));
    }

    #[test]
    fn an_unknown_code_falls_back_to_the_class_of_its_error() {
        let (fault, retry, text, ..) = classified(false, 400, &body("invalid_grant", 123));
        assert_eq!((fault, retry), (TokenFault::ReauthUser, Retry::Permanent));
        assert!(text.contains("words.") && !text.contains("more"), "{text}");
        let (fault, retry, _, _, kind) = classified(false, 400, r#"{"error":"temporarily_unavailable"}"#);
        assert_eq!((fault, retry, kind), (TokenFault::Transient, Retry::Backoff, FaultKind::SignIn));
    }

    #[test]
    fn a_bad_grant_is_never_repeated_even_with_a_server_error_status() {
        for error in ["invalid_grant", "invalid_client"] {
            let (_, retry, ..) = classified(false, 503, &body(error, 90_033));
            assert_eq!(retry, Retry::Permanent);
        }
        let (fault, retry, ..) = classified(false, 503, &body("server_error", 90_033));
        assert_eq!((fault, retry), (TokenFault::Transient, Retry::Backoff));
    }

    #[test]
    fn a_page_instead_of_json_is_trouble_of_the_way_not_a_refusal() {
        let (fault, retry, text, _, kind) = classified(false, 502, "<html>Bad gateway</html>");
        assert_eq!((fault, retry, kind), (TokenFault::Transient, Retry::Backoff, FaultKind::SignIn));
        assert!(!text.contains("html"), "{text}");
        let (_, retry, ..) = classified(false, 403, "<html>");
        assert_eq!(retry, Retry::Permanent);
    }

    #[test]
    fn the_metadata_service_being_updated_is_waited_for() {
        let (_, retry, ..) = classified(true, 410, "{\"error\":\"gone\"}");
        assert_eq!(retry, Retry::After(METADATA_UPDATE_PAUSE));
        let (fault, retry, ..) =
            classified(true, 400, r#"{"error":"invalid_request","error_description":"Identity not found"}"#);
        assert_eq!((fault, retry), (TokenFault::BadConfig, Retry::Permanent));
    }
}
