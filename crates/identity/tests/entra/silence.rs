//! Nothing that is secret is ever logged, shown or left in an error, at the most talkative level.

use std::io::Write;
use std::sync::{Arc, Mutex};

use dynavault_identity::{
    ClientCertificate, Credential, FileTokenStore, SecretString, SignIn, SignInOptions, token_source,
};
use dynavault_model::chain;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

use crate::device::code;
use crate::support::{
    FakeClock, RealClock, SCOPE, Service, browse, granted, id_claims, identity, parameter, person, reply,
};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn no_secret_occurs_in_any_output_of_any_flow() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_max_level(tracing::Level::TRACE).finish();
    // For the whole process: other tests' threads add to the log, which harms nobody.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mut shown = Vec::new();

    // A browser, a renewal that is refused with everything in it, and one that fails midway.
    let nonce = Arc::<Mutex<String>>::default();
    let told = Arc::clone(&nonce);
    let refused = json!({
        "error": "invalid_grant", "error_codes": [1], "claims": "{\"SECRET-claims\":1}",
        "error_description": "AADSTS1: refresh_token=SECRET-refresh code=SECRET-code access_token: SECRET-access",
    });
    let mut renewals = 0;
    let service = Service::answering(move |request| match request.field("grant_type").as_deref() {
        None => code(1, 900).replace("DEVICE-SECRET", "SECRET-device"),
        Some("authorization_code") => {
            granted("SECRET-access", Some("SECRET-refresh"), &id_claims(&told.lock().unwrap()))
        }
        Some("refresh_token") => {
            renewals += 1;
            match renewals {
                1 => reply("400 Bad Request", "", &refused.to_string()),
                2 => reply("200 OK", "", r#"{"access_token":"SECRET-access","expires_in":"SECRET-refresh"}"#),
                _ => reply("500 Oops", "", "SECRET-access"),
            }
        }
        _ => reply("400 Bad Request", "", &refused.to_string()),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let seal = SecretString::from("SECRET-seal 0123456789abcdef0123456789abcdef");
    let store = Arc::new(FileTokenStore::open(folder.path().join("sign-ins"), &seal).unwrap());
    let delegated = identity(person(store.clone()), service.authority());
    let sign_in = SignIn::new(delegated.clone(), RealClock::start()).unwrap();
    let options = SignInOptions { scope: SCOPE.into(), ..SignInOptions::default() };
    let code = sign_in.begin_code(options).await.unwrap();
    let url = code.url().clone();
    *nonce.lock().unwrap() = parameter(&url, "nonce").unwrap();
    shown.push(format!("{code:?} {sign_in:?} {store:?} {delegated:?}"));
    let port = url::Url::parse(&parameter(&url, "redirect_uri").unwrap()).unwrap().port().unwrap();
    let target = format!("/?code=SECRET-code&state={}", parameter(&url, "state").unwrap());
    let never = CancellationToken::new();
    let (signed_in, _page) = tokio::join!(code.finish(&never), browse("127.0.0.1", port, &target));
    shown.push(format!("{:?}", signed_in.unwrap()));
    let clock = Arc::<FakeClock>::default();
    for _ in 0..2 {
        let scope = "https://other.example/.default".to_owned();
        let source = token_source(delegated.clone(), scope, clock.clone()).unwrap();
        let error = source.token().await.unwrap_err();
        shown.push(format!("{error:?} {} {source:?}", chain(&error)));
    }
    let device = SignIn::new(delegated.clone(), clock.clone()).unwrap().begin_device(SCOPE).await.unwrap();
    shown.push(format!("{device:?}"));
    let error = device.finish(&never).await.unwrap_err();
    shown.push(format!("{error:?} {}", chain(&error)));
    shown.push(format!("{:?}", sign_in.current().await.unwrap()));

    // Apps: a secret and a certificate, refused.
    let service = Service::answering(|_| reply("401 Unauthorized", "", r#"{"error":"invalid_client"}"#)).await;
    let secret = Credential::ClientSecret { secret: SecretString::from("SECRET-client") };
    let pair = ClientCertificate::parse(include_bytes!("../keys/client.pem"), None).unwrap();
    for credential in [secret, Credential::ClientCertificate { certificate: Arc::new(pair) }] {
        let source = service.source(credential.clone(), &clock);
        let error = source.token().await.unwrap_err();
        shown.push(format!("{error:?} {} {source:?} {credential:?}", chain(&error)));
    }
    let state = parameter(&url, "state").unwrap();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(!log.is_empty());
    for (what, text) in [("log", log), ("shown", shown.concat())] {
        for secret in
            ["SECRET-", "client_assertion=", "client_secret=", "code_verifier=", "device_code=", state.as_str()]
        {
            let at = text.find(secret);
            let around =
                at.map(|at| &text[text.floor_char_boundary(at.saturating_sub(200))..][..300.min(text.len() - at)]);
            assert!(at.is_none(), "{what}: {around:?}");
        }
    }
}
