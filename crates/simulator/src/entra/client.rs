//! Who asks: the client's secret, certificate or federated assertion (entra 9).

use jiff::{SignedDuration, Timestamp};

use crate::entra::Authority;
use crate::entra::directory::App;
use crate::entra::failure::Failure;
use crate::entra::keys::{Jwt, Scheme, signing_key};
use crate::entra::request::Form;

/// The one kind of assertion there is (RFC 7523).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Longest life of an assertion (entra 9.2).
const ASSERTION_SECONDS_MAX: i64 = 600;
/// How far a client's clock may be off.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// How the client proved itself; the number is the claim `appidacr` (entra 10.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Not at all.
    Public = 0,
    Secret = 1,
    /// A certificate or another issuer's token.
    Assertion = 2,
}

impl Authority {
    /// Checks the credential of a client, if it sent one.
    pub(crate) fn prove(
        &mut self,
        app: usize,
        form: &Form,
        audiences: &[String],
        shown: Timestamp,
    ) -> Result<Proof, Failure> {
        let (secret, assertion) = (form.secret(), form.get("client_assertion"));
        if secret.is_some() && assertion.is_some() {
            return Err(Failure::of(50_012).saying("Only one of 'client_secret' and 'client_assertion' may be sent."));
        }
        if let Some(secret) = secret {
            check_secret(&self.directory.apps[app], secret, self.now())?;
            return Ok(Proof::Secret);
        }
        let Some(assertion) = assertion else { return Ok(Proof::Public) };
        if form.get("client_assertion_type") != Some(ASSERTION_TYPE) {
            return Err(Failure::of(50_027).saying("The client_assertion_type is missing or not supported."));
        }
        let app = &self.directory.apps[app];
        if app.assertions.contains(assertion) {
            return Ok(Proof::Assertion);
        }
        let Some(jwt) = Jwt::parse(assertion) else { return Err(Failure::of(50_027)) };
        if jwt.text("iss") != app.client_id {
            check_federated(app, &jwt, shown)?;
            return Ok(Proof::Assertion);
        }
        check_certificate(app, &jwt, audiences, shown)?;
        let id = jwt.text("jti");
        if id.is_empty() {
            return Err(Failure::of(50_027).saying("The JWT token has no 'jti' claim."));
        }
        if !self.ledger.assertions.insert(id.to_owned()) {
            return Err(Failure::of(50_012).saying("The client assertion was already used: its 'jti' is not new."));
        }
        Ok(Proof::Assertion)
    }
}

fn check_secret(app: &App, secret: &str, now: Timestamp) -> Result<(), Failure> {
    let client = &app.client_id;
    let Some(found) = app.secrets.iter().find(|known| known.value == secret) else {
        return Err(Failure::of(7_000_215).saying(format!(
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{client}'."
        )));
    };
    if now >= found.until {
        return Err(
            Failure::of(7_000_222).saying(format!("The provided client secret keys for app '{client}' are expired."))
        );
    }
    Ok(())
}

/// Times of an assertion, in seconds.
fn check_window(jwt: &Jwt<'_>, shown: Timestamp, needs_start: bool) -> Result<(), Failure> {
    let seconds = |claim: &str| jwt.claims[claim].as_i64();
    let Some(end) = seconds("exp") else { return Err(Failure::of(50_027).saying("The JWT token has no 'exp' claim.")) };
    let Some(start) = seconds("nbf").or_else(|| (!needs_start).then_some(i64::MIN)) else {
        return Err(Failure::of(50_027).saying("The JWT token has no 'nbf' claim."));
    };
    let (now, tolerance) = (shown.as_second(), CLOCK_TOLERANCE.as_secs());
    let too_long = needs_start && end.saturating_sub(start) > ASSERTION_SECONDS_MAX;
    if too_long || now.saturating_add(tolerance) < start || now.saturating_sub(tolerance) >= end {
        return Err(Failure::of(700_024).saying(format!(
            "Client assertion is not within its valid time range. Current time: {shown}, assertion valid from {start}, expiry time of assertion {end}."
        )));
    }
    Ok(())
}

/// An assertion signed with the key of a registered certificate (entra 9.2).
fn check_certificate(app: &App, jwt: &Jwt<'_>, audiences: &[String], shown: Timestamp) -> Result<(), Failure> {
    let header = |name: &str| jwt.header[name].as_str();
    let scheme = match header("alg") {
        Some("PS256") => Scheme::Ps256,
        // The older form.
        Some("RS256") => Scheme::Rs256,
        _ => return Err(Failure::of(50_027).saying("The algorithm of the JWT token is not supported.")),
    };
    let certificate = match (header("x5t#S256"), header("x5t")) {
        (Some(thumbprint), None) => app.certificates.iter().find(|known| known.thumbprint == thumbprint),
        (None, Some(thumbprint)) => app.certificates.iter().find(|known| known.old_thumbprint == thumbprint),
        // Exactly one of them names the certificate.
        _ => None,
    };
    let Some(certificate) = certificate else {
        return Err(Failure::of(700_027).saying(format!(
            "The certificate with identifier used to sign the client assertion is not registered on application '{}'.",
            app.client_id
        )));
    };
    if !jwt.is_signed_by(scheme, &certificate.public_der) {
        return Err(Failure::of(700_027).saying("Client assertion failed signature validation."));
    }
    if shown < certificate.from || shown >= certificate.until {
        return Err(Failure::of(1_000_502));
    }
    if jwt.text("sub") != app.client_id {
        return Err(Failure::of(50_027).saying("The 'sub' claim of the JWT token is not the client id."));
    }
    if !audiences.iter().any(|audience| audience == jwt.text("aud")) {
        return Err(Failure::of(50_027).saying(format!("The audience of the JWT token is not one of {audiences:?}.")));
    }
    check_window(jwt, shown, true)
}

/// A token of another issuer that the application trusts (entra 9.3). The other issuers of the simulated world all
/// sign with its one key.
fn check_federated(app: &App, jwt: &Jwt<'_>, shown: Timestamp) -> Result<(), Failure> {
    let (issuer, subject, audience) = (jwt.text("iss"), jwt.text("sub"), jwt.text("aud"));
    let presented = format!(
        "Presented assertion issuer '{issuer}', subject '{subject}', audience '{audience}'. Please check your federated identity credential."
    );
    let of_issuer: Vec<_> = app.federated.iter().filter(|known| known.issuer == issuer).collect();
    let code = if app.federated.is_empty() {
        70_021
    } else if of_issuer.is_empty() {
        700_211
    } else if !of_issuer.iter().any(|known| known.subject == subject) {
        700_213
    } else if !of_issuer.iter().any(|known| known.subject == subject && known.audience == audience) {
        700_212
    } else if !jwt.is_signed_by(Scheme::Rs256, &signing_key().public_der()) {
        return Err(Failure::of(50_013).named("invalid_client"));
    } else {
        return check_window(jwt, shown, false);
    };
    Err(Failure::of(code)
        .saying(format!("No matching federated identity record found for presented assertion. {presented}")))
}
