//! Authorization code with PKCE, device code.

use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dynavault_simulator::{BrowserOutcome, TokenQuirk};

use crate::client::{Client, DEVICE_GRANT, REDIRECT, claims, parameter};

#[tokio::test]
async fn a_person_signs_in_with_code_and_pkce_and_is_known_to_the_environment() {
    let client = Client::new().await;
    let person = client.simulator.entra().people()[0].clone();
    let location = client.visit(&[]).await.unwrap();
    assert!(location.starts_with(&format!("{REDIRECT}?code=")), "{location}");
    assert_eq!(parameter(&location, "state").unwrap(), "state 1");
    let reply = client.redeem(&parameter(&location, "code").unwrap(), &[]).await;
    let token = claims(&reply.token());
    assert_eq!((token["scp"].as_str(), token["idtyp"].as_str()), (Some("user_impersonation"), Some("user")));
    assert_eq!(
        (token["aud"].as_str(), token["oid"].as_str()),
        (Some(&*client.simulator.url()), Some(&*person.object_id))
    );
    assert_eq!(reply.text("scope"), format!("{}/user_impersonation", client.simulator.url()));
    let id = claims(&reply.text("id_token"));
    assert_eq!((id["nonce"].as_str(), id["aud"].as_str()), (Some("nonce 1"), Some(&*client.client_id())));
    assert_eq!((id["tid"].as_str(), id["oid"].as_str()), (Some(&*client.simulator.tenant()), Some(&*person.object_id)));
    let user = client.who_am_i(&reply.token()).await.text("UserId");
    assert_eq!(Some(&user), person.user.as_ref());
    let row =
        client.get(&format!("{}/api/data/v9.2/systemusers({user})", client.simulator.url()), &reply.token(), &[]).await;
    assert_eq!(row.text("azureactivedirectoryobjectid"), person.object_id);
    assert_eq!(row.text("domainname"), person.sign_in_name);
}

#[tokio::test]
async fn tokens_verify_with_the_key_that_the_metadata_leads_to() {
    let client = Client::new().await;
    let root = client.simulator.authority();
    let metadata =
        client.get(&format!("{root}/simulated.example/v2.0/.well-known/openid-configuration"), "", &[]).await;
    assert!(metadata.text("issuer").ends_with(&format!("/{}/v2.0", client.simulator.tenant())));
    let keys = client.get(&metadata.text("jwks_uri"), "", &[]).await.body;
    let number = |name: &str| URL_SAFE_NO_PAD.decode(keys["keys"][0][name].as_str().unwrap()).unwrap();
    let reply = client.sign_in().await;
    for token in [reply.token(), reply.text("id_token")] {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let key = RsaPublicKeyComponents { n: number("n"), e: number("e") };
        key.verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature).unwrap();
    }
    for (tenant, code) in [("nowhere.example", 90_002), ("nonsense", 900_023)] {
        let reply = client.get(&format!("{root}/{tenant}/v2.0/.well-known/openid-configuration"), "", &[]).await;
        assert_eq!((reply.status, reply.refusal()), (400, ("invalid_tenant".to_owned(), code)));
    }
    let common = client.get(&format!("{root}/common/v2.0/.well-known/openid-configuration"), "", &[]).await;
    assert!(common.text("issuer").contains("{tenantid}"));
}

#[tokio::test]
async fn codes_work_once_for_the_same_address_and_verifier() {
    let client = Client::new().await;
    let code = || async { parameter(&client.visit(&[]).await.unwrap(), "code").unwrap() };
    let grant = |code| ("invalid_grant".to_owned(), code);
    let text = code().await;
    let other = "another-verifier-that-is-long-enough-for-rfc-7636-4";
    assert_eq!(client.redeem(&text, &[("code_verifier", other)]).await.refusal(), grant(501_481));
    let reply = client.redeem(&text, &[("redirect_uri", "http://localhost:49732/cb")]).await;
    assert_eq!((reply.status, reply.refusal()), (401, ("invalid_client".to_owned(), 500_112)));
    let secret = client.simulator.secret();
    assert_eq!(client.redeem(&text, &[("client_secret", &secret)]).await.refusal().1, 700_025);
    assert_eq!(client.redeem(&text, &[]).await.status, 200);
    assert_eq!(client.redeem(&text, &[]).await.refusal(), grant(54_005));
    let late = code().await;
    client.simulator.pass_time(Duration::from_secs(601));
    assert_eq!(client.redeem(&late, &[]).await.refusal(), grant(70_008));
    assert_eq!(client.redeem("nonsense", &[]).await.refusal(), grant(70_000));
    // A web application redeems with its credential.
    client.simulator.entra().register_web_redirect(&client.client_id(), "https://app.example/back");
    let web = [("redirect_uri", "https://app.example/back")];
    let text = parameter(&client.visit(&web).await.unwrap(), "code").unwrap();
    assert_eq!(client.redeem(&text, &web).await.refusal().1, 7_000_218);
    assert_eq!(client.redeem(&text, &[web[0], ("client_secret", &secret)]).await.status, 200);
}

#[tokio::test]
async fn the_browser_stays_on_a_page_where_it_cannot_be_sent_back() {
    let client = Client::new().await;
    for wrong in [
        ("redirect_uri", "http://localhost:49731/other"),
        ("redirect_uri", "http://[::1]:49731/cb"),
        ("redirect_uri", "https://elsewhere.example/cb"),
        ("client_id", "00000000-0000-0000-0000-000000000001"),
    ] {
        assert_eq!(client.visit(&[wrong]).await, Err(400), "{wrong:?}");
    }
    let bare = client.visit(&[("redirect_uri", "http://localhost:49731")]).await.unwrap();
    assert!(bare.starts_with("http://localhost:49731/?code="), "{bare}");
    for wrong in
        [("code_challenge_method", "plain"), ("response_type", "token"), ("scope", "openid https://x.example/.default")]
    {
        let location = client.visit(&[wrong]).await.unwrap();
        assert!(parameter(&location, "error").is_some(), "{location}");
        assert_eq!(parameter(&location, "state").unwrap(), "state 1");
    }
}

#[tokio::test]
async fn the_person_at_the_browser_may_refuse() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    for (outcome, error) in [
        (BrowserOutcome::Decline, "access_denied"),
        (BrowserOutcome::ConsentRequired, "consent_required"),
        (BrowserOutcome::ServerError, "server_error"),
        (BrowserOutcome::TemporarilyUnavailable, "temporarily_unavailable"),
        (BrowserOutcome::InteractionRequired, "interaction_required"),
    ] {
        entra.answer_browser(outcome);
        let location = client.visit(&[]).await.unwrap();
        assert_eq!(parameter(&location, "error").as_deref(), Some(error));
        assert!(parameter(&location, "error_description").unwrap().starts_with("AADSTS"));
    }
    entra.answer_browser(BrowserOutcome::WrongState);
    assert_ne!(parameter(&client.visit(&[]).await.unwrap(), "state").unwrap(), "state 1");
    entra.answer_browser(BrowserOutcome::Nothing);
    assert_eq!(parameter(&client.visit(&[]).await.unwrap(), "code"), None);
}

#[tokio::test]
async fn somebody_the_environment_does_not_know_is_turned_away_there() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    let people = entra.people();
    let stranger = people.iter().find(|person| person.user.is_none()).unwrap();
    assert!(entra.sit_at_browser(&stranger.sign_in_name));
    let reply = client.who_am_i(&client.sign_in().await.token()).await;
    assert_eq!((reply.status, reply.body["error"]["code"].as_str()), (403, Some("0x80072560")));
    // A hint chooses another account.
    let location = client.visit(&[("login_hint", &people[1].sign_in_name)]).await.unwrap();
    let token = client.redeem(&parameter(&location, "code").unwrap(), &[]).await.token();
    assert_eq!(Some(client.who_am_i(&token).await.text("UserId")), people[1].user);
}

async fn device(client: &Client) -> (String, String) {
    let url = format!("{}/{}/oauth2/v2.0/devicecode", client.simulator.authority(), client.simulator.tenant());
    let reply = client.post(&url, &[("client_id", &client.client_id()), ("scope", &client.scope)]).await;
    assert_eq!((reply.body["interval"].as_u64(), reply.body["expires_in"].as_u64()), (Some(5), Some(900)));
    (reply.text("device_code"), reply.text("user_code"))
}

async fn poll(client: &Client, code: &str) -> (String, u64) {
    let reply = client.token(&[("grant_type", DEVICE_GRANT), ("device_code", code)]).await;
    if reply.status == 200 { ("ok".to_owned(), 0) } else { reply.refusal() }
}

#[tokio::test]
async fn a_device_code_waits_for_its_person_and_for_its_interval() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    let wait = |seconds| client.simulator.pass_time(Duration::from_secs(seconds));
    let (code, user_code) = device(&client).await;
    assert_eq!(poll(&client, &code).await.0, "slow_down");
    wait(5);
    // The interval has grown by five seconds.
    assert_eq!(poll(&client, &code).await.0, "slow_down");
    wait(15);
    assert_eq!(poll(&client, &code).await, ("authorization_pending".to_owned(), 70_016));
    assert_eq!(entra.user_codes(), std::slice::from_ref(&user_code));
    assert!(entra.approve_device(&user_code.to_lowercase()));
    wait(15);
    assert_eq!(poll(&client, &code).await.0, "ok");
    wait(15);
    assert_ne!(poll(&client, &code).await.0, "ok");
    assert!(!entra.approve_device("NOBODY123"));
}

#[tokio::test]
async fn device_codes_end_by_refusal_by_time_and_by_the_switch() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    entra.measure_polls(false);
    let (code, user_code) = device(&client).await;
    entra.slow_down_polls(1);
    assert_eq!(poll(&client, &code).await.0, "slow_down");
    assert_eq!(poll(&client, &code).await.0, "authorization_pending");
    entra.decline_device(&user_code);
    assert_eq!(poll(&client, &code).await.0, "authorization_declined");
    let (code, _) = device(&client).await;
    client.simulator.pass_time(Duration::from_secs(901));
    assert_eq!(poll(&client, &code).await.0, "expired_token");
    assert_eq!(poll(&client, "unknown").await, ("bad_verification_code".to_owned(), 70_018));
    entra.approve_devices_after(Some(3));
    let (code, _) = device(&client).await;
    for expected in ["authorization_pending", "authorization_pending", "authorization_pending", "ok"] {
        assert_eq!(poll(&client, &code).await.0, expected);
    }
    entra.allow_public_flows(&client.client_id(), false);
    let (code, _) = device(&client).await;
    assert_eq!(poll(&client, &code).await, ("invalid_client".to_owned(), 7_000_218));
}

#[tokio::test]
async fn answers_can_be_odd_on_purpose() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    entra.distort(&[
        TokenQuirk::OtherTenant,
        TokenQuirk::OtherClient,
        TokenQuirk::OtherAudience,
        TokenQuirk::OtherNonce,
    ]);
    let reply = client.sign_in().await;
    let token = claims(&reply.token());
    assert_ne!(token["tid"].as_str(), Some(&*client.simulator.tenant()));
    assert_ne!(token["appid"].as_str(), Some(&*client.client_id()));
    assert_ne!(token["aud"].as_str(), Some(&*client.simulator.url()));
    assert_ne!(claims(&reply.text("id_token"))["nonce"], "nonce 1");
    entra.distort(&[TokenQuirk::Opaque, TokenQuirk::NoRefreshToken, TokenQuirk::TextExpiry]);
    let reply = client.sign_in().await;
    assert!(!reply.token().contains('.') && reply.body["refresh_token"].is_null());
    assert_eq!(reply.text("expires_in"), "3600");
    assert_eq!(client.who_am_i(&reply.token()).await.status, 200);
    entra.distort(&[TokenQuirk::Huge]);
    assert!(client.app_only(&client.environment_scope()).await.token().len() > 1 << 20);
}
