//! A client that does one thing at a time and shows everything.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dynavault_simulator::{Config, Simulator};
use reqwest::header::HeaderMap;
use serde_json::Value;

/// RFC 7636 appendix B.
pub(crate) const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
pub(crate) const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
pub(crate) const REDIRECT: &str = "http://localhost:49731/cb";
pub(crate) const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Reply {
    /// `error` and the first of `error_codes`.
    pub(crate) fn refusal(&self) -> (String, u64) {
        let error = self.body["error"].as_str().unwrap_or_default().to_owned();
        (error, self.body["error_codes"][0].as_u64().unwrap_or(0))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self, name: &str) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.body)).to_owned()
    }

    pub(crate) fn token(&self) -> String {
        self.text("access_token")
    }
}

pub(crate) struct Client {
    pub(crate) simulator: Simulator,
    http: reqwest::Client,
    /// Scope of the environment with everything a sign-in wants.
    pub(crate) scope: String,
}

/// The claims of a JWT, unverified.
pub(crate) fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// Parameters of the address a browser was sent to.
pub(crate) fn returned(location: &str) -> Vec<(String, String)> {
    let (_, query) = location.split_once('?').unwrap();
    reqwest::Url::parse(&format!("http://localhost/?{query}")).unwrap().query_pairs().into_owned().collect()
}

pub(crate) fn parameter(location: &str, name: &str) -> Option<String> {
    returned(location).into_iter().find(|(own, _)| own == name).map(|(_, value)| value)
}

impl Client {
    pub(crate) async fn new() -> Self {
        Self::with(Config { rows: 200, ..Config::default() }).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let simulator = Simulator::start(config).await.unwrap();
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let scope = format!("openid profile offline_access {}/.default", simulator.url());
        Self { simulator, http, scope }
    }

    pub(crate) fn client_id(&self) -> String {
        self.simulator.client_id()
    }

    pub(crate) fn environment_scope(&self) -> String {
        format!("{}/.default", self.simulator.url())
    }

    pub(crate) fn graph_scope(&self) -> String {
        format!("{}/.default", self.simulator.entra().graph_url())
    }

    pub(crate) fn token_url(&self) -> String {
        format!("{}/{}/oauth2/v2.0/token", self.simulator.authority(), self.simulator.tenant())
    }

    async fn take(reply: reqwest::Response) -> Reply {
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        let body = reply.bytes().await.unwrap_or_default();
        Reply { status, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) }
    }

    pub(crate) async fn post(&self, url: &str, form: &[(&str, &str)]) -> Reply {
        Self::take(self.http.post(url).form(form).send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, url: &str, token: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = self.http.get(url);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Self::take(request.send().await.unwrap()).await
    }

    /// The token endpoint with the client id filled in.
    pub(crate) async fn token(&self, form: &[(&str, &str)]) -> Reply {
        let client = self.client_id();
        let mut form = form.to_vec();
        form.push(("client_id", &client));
        self.post(&self.token_url(), &form).await
    }

    pub(crate) async fn app_only(&self, scope: &str) -> Reply {
        let secret = self.simulator.secret();
        self.token(&[("grant_type", "client_credentials"), ("client_secret", &secret), ("scope", scope)]).await
    }

    /// A visit to `authorize`; where the browser is sent, or the status of the page it stays on.
    pub(crate) async fn visit(&self, more: &[(&str, &str)]) -> Result<String, u16> {
        let client = self.client_id();
        let mut query = vec![
            ("client_id", client.as_str()),
            ("response_type", "code"),
            ("redirect_uri", REDIRECT),
            ("scope", self.scope.as_str()),
            ("state", "state 1"),
            ("nonce", "nonce 1"),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ];
        query.retain(|(name, _)| more.iter().all(|(other, _)| name != other));
        query.extend_from_slice(more);
        let url = format!("{}/{}/oauth2/v2.0/authorize", self.simulator.authority(), self.simulator.tenant());
        let reply = Self::take(self.http.get(url).query(&query).send().await.unwrap()).await;
        if reply.status == 302 { Ok(reply.header("location").to_owned()) } else { Err(reply.status) }
    }

    pub(crate) async fn redeem(&self, code: &str, more: &[(&str, &str)]) -> Reply {
        let scope = self.environment_scope();
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", VERIFIER),
            ("scope", scope.as_str()),
        ];
        form.retain(|(name, _)| more.iter().all(|(other, _)| name != other));
        form.extend_from_slice(more);
        self.token(&form).await
    }

    /// Signs the person at the browser in.
    pub(crate) async fn sign_in(&self) -> Reply {
        let location = self.visit(&[]).await.unwrap();
        let code = parameter(&location, "code").unwrap_or_else(|| panic!("{location}"));
        self.redeem(&code, &[]).await
    }

    pub(crate) async fn refresh(&self, token: &str, scope: &str) -> Reply {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", token), ("scope", scope)]).await
    }

    pub(crate) async fn who_am_i(&self, token: &str) -> Reply {
        self.get(&format!("{}/api/data/v9.2/WhoAmI", self.simulator.url()), token, &[]).await
    }

    pub(crate) async fn graph(&self, token: &str, path: &str) -> Reply {
        self.get(&format!("{}/v1.0/{path}", self.simulator.entra().graph_url()), token, &[]).await
    }

    /// Object id of the first application's service principal.
    pub(crate) async fn own_principal(&self, token: &str) -> String {
        let path = format!("servicePrincipals(appId='{}')?$select=id,appId,accountEnabled", self.client_id());
        self.graph(token, &path).await.text("id")
    }
}
