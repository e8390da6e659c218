//! Refusals of the sign-in endpoints and their bodies (entra 1.3, 7).

use serde_json::json;

use crate::answer::Answer;
use crate::dice::named_guid;

/// What is known about a code: `error`, `suberror`, text.
type Known = (u32, &'static str, &'static str, &'static str);

/// The codes of entra 7 and a few that stand around them. No suberror is an empty one.
const KNOWN: &[Known] = &[
    (
        28_000,
        "invalid_request",
        "",
        "Provided value for the input parameter scope is not valid because it contains more than one resource.",
    ),
    (
        28_002,
        "invalid_scope",
        "",
        "Provided value for the input parameter scope is not valid when requesting an access token.",
    ),
    (50_001, "invalid_resource", "", "The resource is disabled or does not exist."),
    (
        50_011,
        "invalid_request",
        "",
        "The redirect URI specified in the request does not match the redirect URIs configured for the application.",
    ),
    (50_012, "invalid_client", "", "Authentication failed."),
    (50_013, "invalid_grant", "", "Assertion failed signature validation."),
    (50_020, "invalid_grant", "", "User account from the identity provider does not exist in the tenant."),
    (50_027, "invalid_client", "", "The JWT token is invalid or malformed."),
    (50_033, "temporarily_unavailable", "", "A retryable error has occurred."),
    (
        50_034,
        "invalid_grant",
        "",
        "The user account does not exist in the directory. To sign into this application, the account must be added to the directory.",
    ),
    (
        50_053,
        "invalid_grant",
        "",
        "The account is locked because the user tried to sign in too many times with an incorrect user ID or password.",
    ),
    (50_055, "invalid_grant", "user_password_expired", "The password is expired."),
    (50_057, "invalid_grant", "", "The user account is disabled."),
    (
        50_072,
        "invalid_grant",
        "basic_action",
        "Due to a configuration change made by your administrator, you must enroll in multi-factor authentication.",
    ),
    (50_074, "invalid_grant", "basic_action", "Strong Authentication is required."),
    (
        50_076,
        "invalid_grant",
        "basic_action",
        "Due to a configuration change made by your administrator, or because you moved to a new location, you must use multi-factor authentication to access the resource.",
    ),
    (
        50_078,
        "interaction_required",
        "basic_action",
        "Presented multi-factor authentication has expired due to policies configured by your administrator, you must refresh your multi-factor authentication.",
    ),
    (
        50_079,
        "invalid_grant",
        "basic_action",
        "Due to a configuration change made by your administrator, you must enroll in multi-factor authentication.",
    ),
    (50_087, "temporarily_unavailable", "", "A transient error has occurred during single sign-out. Please try again."),
    (50_089, "invalid_grant", "bad_token", "Authentication failed due to flow token expired."),
    (50_105, "interaction_required", "", "The signed in user is not assigned to a role for the application."),
    (50_126, "invalid_grant", "", "Error validating credentials due to invalid username or password."),
    (
        50_132,
        "invalid_grant",
        "bad_token",
        "The session is not valid due to the following reasons: password expiration or recent password change.",
    ),
    (50_133, "invalid_grant", "bad_token", "Session is invalid due to expiration or recent password change."),
    (
        50_158,
        "interaction_required",
        "additional_action",
        "External security challenge not satisfied. User will be redirected to another page or authentication provider.",
    ),
    (
        50_173,
        "invalid_grant",
        "bad_token",
        "The provided grant has expired due to it being revoked, a fresh auth token is needed. The user might have changed or reset their password.",
    ),
    (
        50_194,
        "invalid_request",
        "",
        "Application is not configured as a multi-tenant application. Usage of the /common endpoint is not supported for such apps.",
    ),
    (50_196, "invalid_grant", "", "The server terminated an operation because it encountered a client request loop."),
    (51_004, "invalid_grant", "", "The user account does not exist in the directory."),
    (53_000, "invalid_grant", "message_only", "Device is not in required device state: compliant."),
    (53_001, "invalid_grant", "message_only", "Device is not in required device state: domain_joined."),
    (
        53_002,
        "invalid_grant",
        "message_only",
        "Application used is not an approved application for Conditional Access.",
    ),
    (
        53_003,
        "invalid_grant",
        "message_only",
        "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance.",
    ),
    (
        54_005,
        "invalid_grant",
        "",
        "OAuth2 Authorization code was already redeemed, please retry with a new valid code or use an existing refresh token.",
    ),
    (
        65_001,
        "invalid_grant",
        "consent_required",
        "The user or administrator has not consented to use the application. Send an interactive authorization request for this user and resource.",
    ),
    (65_004, "access_denied", "", "User declined to consent to access the app."),
    (70_000, "invalid_grant", "bad_token", "Provided grant is invalid or malformed."),
    (70_001, "unauthorized_client", "", "The application is disabled."),
    (70_003, "unsupported_grant_type", "", "The app requested an unsupported grant type."),
    (
        70_008,
        "invalid_grant",
        "token_expired",
        "The provided authorization code or refresh token has expired due to inactivity. Send a new interactive authorization request for this user and resource.",
    ),
    (
        70_011,
        "invalid_scope",
        "",
        "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid.",
    ),
    (70_016, "authorization_pending", "", "OAuth 2.0 device flow error. Authorization is pending. Continue polling."),
    (70_017, "authorization_declined", "", "OAuth 2.0 device flow error. The user declined the request."),
    (
        70_018,
        "bad_verification_code",
        "",
        "Invalid verification code due to user typing in wrong user code for device code flow.",
    ),
    (
        70_020,
        "expired_token",
        "",
        "The provided value for the input parameter 'device_code' is not valid. Device code has expired.",
    ),
    (70_021, "invalid_client", "", "No matching federated identity record found for presented assertion."),
    (
        70_043,
        "invalid_grant",
        "bad_token",
        "The refresh token has expired or is invalid due to sign-in frequency checks by Conditional Access.",
    ),
    (
        90_002,
        "invalid_request",
        "",
        "Tenant not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.",
    ),
    (90_006, "server_error", "", "An error has occurred. Please try again."),
    (
        90_008,
        "invalid_grant",
        "consent_required",
        "The user or administrator has not consented to use the application. The application must require access to Microsoft Graph by specifying at least 'Sign in and read user profile' permission.",
    ),
    (90_012, "temporarily_unavailable", "", "Request timed out. Please try again."),
    (90_024, "temporarily_unavailable", "", "A transient error has occurred. Please try again."),
    (90_033, "temporarily_unavailable", "", "A transient error has occurred. Please try again."),
    (
        90_038,
        "invalid_request",
        "",
        "Tenant belongs to another cloud. Cloud instance could not be determined for confidential requests.",
    ),
    (
        90_055,
        "temporarily_unavailable",
        "",
        "The server is terminating the request because there are too many requests.",
    ),
    (
        90_072,
        "invalid_request",
        "",
        "User account from the identity provider does not exist in the tenant and cannot access the application. The account needs to be added as an external user first.",
    ),
    (90_090, "server_error", "", "An unexpected error occurred. Please try again."),
    (
        90_094,
        "consent_required",
        "",
        "Administrator consent is required for the permissions requested by this application.",
    ),
    (
        90_095,
        "consent_required",
        "",
        "Admin consent is required for the permissions requested by this application. An admin consent request may be sent to the admin.",
    ),
    (
        500_011,
        "invalid_resource",
        "",
        "The resource principal was not found in the tenant. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant.",
    ),
    (
        500_112,
        "invalid_client",
        "",
        "The reply address does not match the reply address provided when requesting Authorization code.",
    ),
    (500_133, "invalid_grant", "", "Assertion is not within its valid time range."),
    (
        501_481,
        "invalid_grant",
        "",
        "The Code_Verifier does not match the code_challenge supplied in the authorization request.",
    ),
    (530_032, "invalid_grant", "message_only", "User blocked due to risk on home tenant."),
    (
        530_034,
        "invalid_grant",
        "message_only",
        "A delegated administrator was blocked from accessing the tenant due to account risk.",
    ),
    (530_035, "invalid_grant", "message_only", "Access has been blocked by security defaults."),
    (
        650_052,
        "invalid_resource",
        "",
        "The app needs access to a service that your organization has not subscribed to or enabled.",
    ),
    (
        650_057,
        "invalid_resource",
        "",
        "Invalid resource. The client has requested access to a resource which is not listed in the requested permissions in the client's application registration.",
    ),
    (
        700_005,
        "invalid_grant",
        "",
        "The provided Authorization Code is intended to use against other tenant, thus rejected.",
    ),
    (700_016, "unauthorized_client", "", "Application was not found in the directory."),
    (
        700_022,
        "invalid_scope",
        "",
        "The provided value for the input parameter scope is not valid because it contains more than one resource.",
    ),
    (700_024, "invalid_client", "", "Client assertion is not within its valid time range."),
    (
        700_025,
        "invalid_client",
        "",
        "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.",
    ),
    (
        700_027,
        "invalid_client",
        "",
        "The certificate with identifier used to sign the client assertion is not registered on application.",
    ),
    (700_082, "invalid_grant", "token_expired", "The refresh token has expired due to inactivity."),
    (
        700_084,
        "invalid_grant",
        "",
        "The refresh token was issued to a single page app, and therefore has a fixed, limited lifetime which cannot be extended.",
    ),
    (
        900_023,
        "invalid_tenant",
        "",
        "Specified tenant identifier is neither a valid DNS name, nor a valid external domain.",
    ),
    (900_144, "invalid_request", "", "The request body must contain a parameter that is missing."),
    (1_000_502, "invalid_client", "", "The provided certificate is not within its specified validity window."),
    (
        1_002_012,
        "invalid_scope",
        "",
        "The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier.",
    ),
    (7_000_112, "unauthorized_client", "", "Application is disabled."),
    (
        7_000_215,
        "invalid_client",
        "",
        "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to the app.",
    ),
    (50_000, "server_error", "", "There was an error issuing a token or an issue with our sign-in service."),
    (700_011, "unauthorized_client", "", "Application was not found in the tenant."),
    (700_030, "invalid_client", "", "Invalid certificate - subject name in certificate is not authorized."),
    (700_211, "invalid_client", "", "No matching federated identity record found for presented assertion issuer."),
    (700_212, "invalid_client", "", "No matching federated identity record found for presented assertion audience."),
    (700_213, "invalid_client", "", "No matching federated identity record found for presented assertion subject."),
    (
        7_000_218,
        "invalid_client",
        "",
        "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
    ),
    (7_000_222, "invalid_client", "", "The provided client secret keys for the app are expired."),
];

/// A refused sign-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Digits after `AADSTS`; 0 for an error of the protocol alone.
    pub(crate) code: u32,
    pub(crate) error: &'static str,
    suberror: &'static str,
    pub(crate) text: String,
    /// JSON the next interactive request must repeat.
    pub(crate) claims: Option<String>,
}

impl Failure {
    /// The failure of a code; an unknown code is an `invalid_grant`, as anything may be.
    pub(crate) fn of(code: u32) -> Self {
        let known = KNOWN.iter().find(|known| known.0 == code);
        let (_, error, suberror, text) =
            known.copied().unwrap_or((code, "invalid_grant", "", "The request was refused for a reason of its own."));
        Self { code, error, suberror, text: text.to_owned(), claims: None }
    }

    /// An error without a code.
    pub(crate) fn protocol(error: &'static str, text: &str) -> Self {
        Self { code: 0, error, suberror: "", text: text.to_owned(), claims: None }
    }

    /// The same with a text that names the things.
    pub(crate) fn saying(self, text: impl Into<String>) -> Self {
        Self { text: text.into(), ..self }
    }

    /// The same under another `error`.
    pub(crate) fn named(self, error: &'static str) -> Self {
        Self { error, ..self }
    }

    /// The same with claims to repeat.
    pub(crate) fn claiming(self, claims: &str) -> Self {
        Self { claims: Some(claims.to_owned()), ..self }
    }

    /// `error_description`.
    pub(crate) fn description(&self) -> String {
        if self.code == 0 { self.text.clone() } else { format!("AADSTS{}: {}", self.code, self.text) }
    }

    /// HTTP status (entra 1.3).
    fn status(&self) -> u16 {
        match (self.code, self.error) {
            (90_055, _) => 429,
            (_, "invalid_client") => 401,
            (_, "temporarily_unavailable") => 503,
            (_, "server_error") => 500,
            _ => 400,
        }
    }

    /// The JSON body of the token endpoint; `number` tells one refusal from the next, `request` is the id the client
    /// gave it (entra 1.3).
    pub(crate) fn answer(&self, url: &str, number: u64, request: Option<&str>, shown: jiff::Timestamp) -> Answer {
        let own = || named_guid(&format!("correlation {number}")).to_string();
        let mut body = json!({
            "error": self.error,
            "error_description": self.description(),
            "timestamp": shown.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            "trace_id": named_guid(&format!("trace {number}")).to_string(),
            "correlation_id": request.map_or_else(own, str::to_owned),
        });
        if self.code != 0 {
            body["error_codes"] = json!([self.code]);
            body["error_uri"] = json!(format!("{url}/entra/error?code={}", self.code));
        }
        if !self.suberror.is_empty() {
            body["suberror"] = json!(self.suberror);
        }
        if let Some(claims) = &self.claims {
            body["claims"] = json!(claims);
        }
        Answer { status: self.status(), ..Answer::json(body.to_string()) }
    }

    /// The page a browser shows when there is nowhere to send it back to.
    pub(crate) fn page(&self) -> Answer {
        Answer {
            status: 400,
            media_type: "text/html; charset=utf-8",
            ..Answer::text(format!(
                "<html><head><title>Sign in to your account</title></head><body><p>{}</p></body></html>",
                self.description()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Failure, KNOWN};

    #[test]
    fn every_code_stands_once_and_gives_its_status() {
        let codes: BTreeSet<u32> = KNOWN.iter().map(|known| known.0).collect();
        assert_eq!(codes.len(), KNOWN.len());
        for (code, status) in [(7_000_222, 401), (50_173, 400), (90_055, 429), (50_033, 503), (90_006, 500)] {
            let answer = Failure::of(code).answer("http://127.0.0.1", 1, None, jiff::Timestamp::UNIX_EPOCH);
            assert_eq!(answer.status, status, "{code}");
        }
        let body = Failure::of(50_076).claiming("{}").answer("", 1, Some("mine"), jiff::Timestamp::UNIX_EPOCH).body;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((body["error_codes"][0].as_u64(), body["claims"].as_str()), (Some(50_076), Some("{}")));
        assert_eq!(body["correlation_id"], "mine");
        assert_eq!((body["suberror"].as_str(), body["error"].as_str()), (Some("basic_action"), Some("invalid_grant")));
    }
}
