//! The controls of the sign-in side over HTTP.
//!
//! `POST /_simulator/entra` takes one command as JSON, such as
//! `{"do":"withdraw","client":"…","api":"graph","type":"delegated","value":"User.Read"}`; the commands are the
//! methods of [`Entra`]. `GET /_simulator/entra` lists people, waiting user codes and requests.

use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::json;

use crate::answer::{Answer, Refusal};
use crate::entra::permission::{Api, Permission, PermissionType};
use crate::entra::script::{AnswerFault, BrowserOutcome, TokenQuirk};
use crate::entra::steer::Entra;
use crate::graph::GraphQuirk;

/// A permission in words.
#[derive(Debug, Deserialize)]
struct Words {
    api: Api,
    #[serde(rename = "type")]
    kind: PermissionType,
    value: String,
}

impl Words {
    fn find(&self) -> Option<Permission> {
        Permission::find(self.api, self.kind, &self.value)
    }
}

/// One command; names and meaning are those of the methods of [`Entra`].
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Command {
    AddErp {
        url: String,
    },
    LetIntoErp {
        client: String,
        on: bool,
    },
    SetErpCompanies {
        companies: Vec<String>,
    },
    HideInErp {
        entity_set: String,
    },
    AddSecret {
        client: String,
        value: String,
        seconds: u64,
    },
    ExpireSecretsIn {
        client: String,
        seconds: i64,
    },
    RegisterCertificate {
        client: String,
        pem: String,
    },
    ForgetCertificates {
        client: String,
    },
    TrustFederated {
        client: String,
        issuer: String,
        subject: String,
        audience: String,
    },
    AcceptAssertion {
        client: String,
        assertion: String,
    },
    EnableApp {
        client: String,
        on: bool,
    },
    AllowPublicFlows {
        client: String,
        on: bool,
    },
    RegisterRedirect {
        client: String,
        address: String,
    },
    RegisterWebRedirect {
        client: String,
        address: String,
    },
    ForgetRedirects {
        client: String,
    },
    Require {
        client: String,
        permissions: Vec<Words>,
    },
    Grant {
        client: String,
        #[serde(flatten)]
        permission: Words,
    },
    GrantTo {
        client: String,
        person: String,
        #[serde(flatten)]
        permission: Words,
    },
    Withdraw {
        client: String,
        #[serde(flatten)]
        permission: Words,
    },
    InstallApi {
        api: Api,
        on: bool,
    },
    SpreadGrantsAfter {
        seconds: u64,
    },
    AllowUserConsent {
        on: bool,
    },
    SitAtBrowser {
        person: String,
    },
    EnablePerson {
        person: String,
        on: bool,
    },
    RequireMfa {
        person: String,
    },
    RequireClaims {
        person: String,
        claims: String,
    },
    Relax {
        person: String,
    },
    RevokeRefreshTokens {
        person: String,
    },
    SetTokenLifetime {
        seconds: u64,
    },
    SetRefreshLifetime {
        seconds: u64,
    },
    RotateStrictly {
        on: bool,
    },
    Challenge {
        api: Api,
        claims: String,
    },
    EndChallenge {
        api: Api,
    },
    Distort {
        quirks: Vec<TokenQuirk>,
    },
    FailNext {
        fault: AnswerFault,
        times: u32,
    },
    Refuse {
        code: u32,
    },
    RefuseNext {
        code: u32,
        times: u32,
    },
    RefuseGrant {
        grant_type: String,
        code: u32,
        claims: Option<String>,
    },
    Accept,
    SkewClock {
        seconds: i64,
    },
    AnswerBrowser {
        outcome: BrowserOutcome,
    },
    ApproveDevice {
        user_code: String,
    },
    DeclineDevice {
        user_code: String,
    },
    ApproveDevicesAfter {
        polls: Option<u32>,
    },
    SlowDownPolls {
        times: u32,
    },
    MeasurePolls {
        on: bool,
    },
    SetDeviceCodes {
        interval_seconds: u64,
        seconds: u64,
    },
    ForgetRequests,
    SetGroups {
        count: usize,
    },
    SetGraphPage {
        size: Option<usize>,
    },
    FailGraphNext {
        fault: AnswerFault,
        times: u32,
    },
    DistortGraph {
        quirk: Option<GraphQuirk>,
    },
}

/// Answers a request to `/_simulator/entra`.
pub(crate) fn answer(entra: &Entra, post: bool, body: &[u8]) -> Answer {
    if !post {
        return Answer::json(
            json!({
                "graph": entra.graph_url(), "erp": entra.erp_url(), "people": entra.people(),
                "user_codes": entra.user_codes(), "requests": entra.requests(), "graph_requests": entra.graph_requests(),
            })
            .to_string(),
        );
    }
    match serde_json::from_slice::<Command>(body) {
        Ok(command) => {
            if carry_out(entra, command) {
                Answer::json("{\"done\":true}".to_owned())
            } else {
                Refusal::new(404, "", "The command names something that does not exist.").into_answer()
            }
        }
        Err(error) => Refusal::new(400, "", error.to_string()).into_answer(),
    }
}

fn carry_out(entra: &Entra, command: Command) -> bool {
    let seconds = Duration::from_secs;
    // Commands that can name something wrong say so; the others are done.
    match command {
        Command::AddSecret { client, value, seconds: lives } => {
            return entra.add_secret(&client, &value, seconds(lives));
        }
        Command::ExpireSecretsIn { client, seconds } => {
            return entra.expire_secrets_in(&client, SignedDuration::from_secs(seconds));
        }
        Command::RegisterCertificate { client, pem } => return entra.register_certificate(&client, &pem),
        Command::ForgetCertificates { client } => return entra.forget_certificates(&client),
        Command::TrustFederated { client, issuer, subject, audience } => {
            return entra.trust_federated(&client, &issuer, &subject, &audience);
        }
        Command::AcceptAssertion { client, assertion } => return entra.accept_assertion(&client, &assertion),
        Command::EnableApp { client, on } => return entra.enable_app(&client, on),
        Command::AllowPublicFlows { client, on } => return entra.allow_public_flows(&client, on),
        Command::RegisterRedirect { client, address } => return entra.register_redirect(&client, &address),
        Command::RegisterWebRedirect { client, address } => return entra.register_web_redirect(&client, &address),
        Command::ForgetRedirects { client } => return entra.forget_redirects(&client),
        Command::Require { client, permissions } => {
            let found: Option<Vec<Permission>> = permissions.iter().map(Words::find).collect();
            return found.is_some_and(|found| entra.require(&client, &found));
        }
        Command::Grant { client, permission } => {
            return permission.find().is_some_and(|permission| entra.grant(&client, permission));
        }
        Command::GrantTo { client, person, permission } => {
            return permission.find().is_some_and(|permission| entra.grant_to(&client, permission, &person));
        }
        Command::Withdraw { client, permission } => {
            return permission.find().is_some_and(|permission| entra.withdraw(&client, permission));
        }
        Command::SitAtBrowser { person } => return entra.sit_at_browser(&person),
        Command::EnablePerson { person, on } => return entra.enable_person(&person, on),
        Command::RequireMfa { person } => return entra.require_mfa(&person),
        Command::RequireClaims { person, claims } => return entra.require_claims(&person, &claims),
        Command::Relax { person } => return entra.relax(&person),
        Command::RevokeRefreshTokens { person } => return entra.revoke_refresh_tokens(&person),
        Command::Challenge { api, claims } => return entra.challenge(api, &claims),
        Command::ApproveDevice { user_code } => return entra.approve_device(&user_code),
        Command::DeclineDevice { user_code } => return entra.decline_device(&user_code),
        Command::AddErp { url } => entra.add_erp(&url),
        Command::LetIntoErp { client, on } => entra.let_into_erp(&client, on),
        Command::SetErpCompanies { companies } => {
            entra.set_erp_companies(&companies.iter().map(String::as_str).collect::<Vec<_>>());
        }
        Command::HideInErp { entity_set } => entra.hide_in_erp(&entity_set),
        Command::InstallApi { api, on } => entra.install_api(api, on),
        Command::SpreadGrantsAfter { seconds: time } => entra.spread_grants_after(seconds(time)),
        Command::AllowUserConsent { on } => entra.allow_user_consent(on),
        Command::SetTokenLifetime { seconds: time } => entra.set_token_lifetime(seconds(time)),
        Command::SetRefreshLifetime { seconds: time } => entra.set_refresh_lifetime(seconds(time)),
        Command::RotateStrictly { on } => entra.rotate_strictly(on),
        Command::EndChallenge { api } => entra.end_challenge(api),
        Command::Distort { quirks } => entra.distort(&quirks),
        Command::FailNext { fault, times } => entra.fail_next(fault, times),
        Command::Refuse { code } => entra.refuse(code),
        Command::RefuseNext { code, times } => entra.refuse_next(code, times),
        Command::RefuseGrant { grant_type, code, claims } => entra.refuse_grant(&grant_type, code, claims.as_deref()),
        Command::Accept => entra.accept(),
        Command::SkewClock { seconds } => entra.skew_clock(SignedDuration::from_secs(seconds)),
        Command::AnswerBrowser { outcome } => entra.answer_browser(outcome),
        Command::ApproveDevicesAfter { polls } => entra.approve_devices_after(polls),
        Command::SlowDownPolls { times } => entra.slow_down_polls(times),
        Command::MeasurePolls { on } => entra.measure_polls(on),
        Command::SetDeviceCodes { interval_seconds, seconds: life } => {
            entra.set_device_codes(seconds(interval_seconds), seconds(life));
        }
        Command::ForgetRequests => entra.forget_requests(),
        Command::SetGroups { count } => entra.set_groups(count),
        Command::SetGraphPage { size } => entra.set_graph_page(size),
        Command::FailGraphNext { fault, times } => entra.fail_graph_next(fault, times),
        Command::DistortGraph { quirk } => entra.distort_graph(quirk),
    }
    true
}
