//! What an access token says about itself (`entra` protocol, section 10.1).
//!
//! A token belongs to its resource. We look at it to name the tenant, the app and the granted permissions, and to refuse
//! a token that is for somebody else; nothing is authorised by what is read here, so the signature is not checked. A
//! token may be opaque: encrypted, or no JWT at all. Then nothing is known, which is not a fault.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Longest middle segment that is decoded, in bytes of base64url. Tokens with many groups stay far below.
pub const CLAIMS_BYTES_MAX: usize = 64 * 1024;

/// Whose token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    /// A signed-in person, through the app.
    User,
    /// The app by itself.
    App,
}

/// The claims we use; each may be absent, and claims of an unexpected type count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenClaims {
    /// `aud`: the resource, as the URL that was asked for or as its application id.
    pub audience: Option<String>,
    /// `iss`.
    pub issuer: Option<String>,
    /// `tid`: GUID of the tenant.
    pub tenant: Option<String>,
    /// `oid`: object id of the user, or of our service principal in an app-only token.
    pub object_id: Option<String>,
    /// `appid` (version 1) or `azp` (version 2): the app the token was issued to.
    pub app_id: Option<String>,
    /// `idtyp`: `app` or `user`, when present.
    pub id_type: Option<String>,
    /// `scp`: delegated permissions.
    pub scopes: Vec<String>,
    /// `roles`: application permissions in app-only tokens.
    pub roles: Vec<String>,
    /// `wids`: template ids of the user's directory roles.
    pub directory_roles: Vec<String>,
    /// `exp`.
    pub expires: Option<Timestamp>,
    /// `uti`: matches the sign-in log; safe to print.
    pub token_id: Option<String>,
    /// Whether `xms_cc` shows that continuous access evaluation was agreed on.
    pub continuous_evaluation: bool,
    /// `sub`: whom a federated token names; for messages.
    pub(crate) subject: Option<String>,
    /// `nonce`, in id tokens.
    pub(crate) nonce: Option<String>,
    /// `preferred_username`, in id tokens; for display only, because it can change.
    pub(crate) user_name: Option<String>,
}

/// Why nothing is known about a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimsUnread {
    /// Not a JWT, or an encrypted one. Normal for some resources.
    #[error("the token is opaque")]
    Opaque,
    /// Longer than any real token.
    #[error("the token is longer than {CLAIMS_BYTES_MAX} bytes")]
    TooLong,
}

impl dynavault_model::Diagnose for ClaimsUnread {}

impl TokenClaims {
    /// Decodes the middle segment of `token`, without checking the signature.
    pub fn read(token: &str) -> Result<Self, ClaimsUnread> {
        let mut segments = token.split('.');
        let (Some(_), Some(middle), Some(_), None) =
            (segments.next(), segments.next(), segments.next(), segments.next())
        else {
            // A token without dots may be as long as it likes; it is not decoded. A hostile one is named as such.
            return Err(if token.len() > CLAIMS_BYTES_MAX { ClaimsUnread::TooLong } else { ClaimsUnread::Opaque });
        };
        if middle.len() > CLAIMS_BYTES_MAX {
            return Err(ClaimsUnread::TooLong);
        }
        let bytes = URL_SAFE_NO_PAD.decode(middle.trim_end_matches('=')).map_err(|_| ClaimsUnread::Opaque)?;
        let Ok(Value::Object(claims)) = serde_json::from_slice(&bytes) else { return Err(ClaimsUnread::Opaque) };
        Ok(Self::of(&claims))
    }

    fn of(claims: &Map<String, Value>) -> Self {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
        let list = |name: &str| match claims.get(name) {
            Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(one)) => vec![one.clone()],
            _ => Vec::new(),
        };
        Self {
            audience: list("aud").into_iter().next(),
            issuer: text("iss"),
            tenant: text("tid"),
            object_id: text("oid"),
            app_id: text("appid").or_else(|| text("azp")),
            id_type: text("idtyp"),
            scopes: text("scp")
                .map(|scp| scp.split_ascii_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            roles: list("roles"),
            directory_roles: list("wids"),
            expires: claims.get("exp").and_then(Value::as_i64).and_then(|exp| Timestamp::from_second(exp).ok()),
            token_id: text("uti"),
            continuous_evaluation: list("xms_cc").iter().any(|value| value.eq_ignore_ascii_case("cp1")),
            subject: text("sub"),
            nonce: text("nonce"),
            user_name: text("preferred_username"),
        }
    }

    /// Whose token it is: by `idtyp`, else by the presence of `scp`.
    pub fn principal(&self) -> Principal {
        match self.id_type.as_deref() {
            Some("app") => Principal::App,
            Some("user") => Principal::User,
            _ if self.scopes.is_empty() => Principal::App,
            _ => Principal::User,
        }
    }

    /// Whether the token is for `resource`, given as URL; `app_id` is the resource's well-known application id, if it
    /// has one. Case and one trailing slash do not matter. A token without `aud` is for nobody.
    pub fn is_for(&self, resource: &str, app_id: Option<&str>) -> bool {
        let plain = |text: &str| text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
        let Some(audience) = self.audience.as_deref().map(plain) else { return false };
        audience == plain(resource) || app_id.is_some_and(|id| audience == plain(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_delegated_token_shows_its_scopes_and_an_app_token_its_roles() {
        let user = TokenClaims::read(&token(
            r#"{"aud":"https://X.example/","tid":"t","oid":"o","appid":"a","scp":" user_impersonation  b ","exp":1900000000,"wids":["w"],"roles":[],"xms_cc":["CP1"]}"#,
        ))
        .unwrap();
        assert_eq!((user.principal(), user.scopes.len(), user.app_id.as_deref()), (Principal::User, 2, Some("a")));
        assert!(user.is_for("https://x.example", None) && !user.is_for("https://y.example", None));
        assert!(user.continuous_evaluation && user.expires.is_some() && user.directory_roles == ["w"]);
        let app = TokenClaims::read(&token(
            r#"{"aud":"00000003-0000-0000-c000-000000000000","azp":"a","idtyp":"app","roles":["Directory.Read.All"]}"#,
        ))
        .unwrap();
        assert_eq!(
            (app.principal(), app.roles.as_slice()),
            (Principal::App, ["Directory.Read.All".to_owned()].as_slice())
        );
        assert!(app.is_for("https://graph.microsoft.com", Some("00000003-0000-0000-C000-000000000000")));
        // Without idtyp and scp it is the app's own.
        assert_eq!(TokenClaims::read(&token("{}")).unwrap().principal(), Principal::App);
    }

    #[test]
    fn opaque_and_strange_tokens_are_no_fault_and_huge_ones_are_refused() {
        for opaque in ["", "opaque", "a.b", "a.!!.c", "a.bm90IGpzb24.c", "a.W10.c", "a.b.c.d.e", "é.é.é"] {
            assert_eq!(TokenClaims::read(opaque), Err(ClaimsUnread::Opaque), "{opaque}");
        }
        let mega = "A".repeat(1024 * 1024);
        assert_eq!(TokenClaims::read(&mega), Err(ClaimsUnread::TooLong));
        assert_eq!(TokenClaims::read(&format!("a.{mega}.c")), Err(ClaimsUnread::TooLong));
        let odd =
            TokenClaims::read(&token(r#"{"aud":7,"tid":[],"scp":{},"exp":"soon","roles":[1,"r"],"aud2":1}"#)).unwrap();
        assert_eq!((odd.audience, odd.tenant, odd.expires, odd.roles), (None, None, None, vec!["r".to_owned()]));
    }
}
