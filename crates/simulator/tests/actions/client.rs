//! A client of a few dozen lines that shares nothing with the simulator.

use dynavault_simulator::{Config, Simulator};
use serde_json::{Value, json};

pub(crate) struct Client {
    http: reqwest::Client,
    pub(crate) url: String,
    token: String,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Status and code, as refusals are told apart.
    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

/// A quiet environment, and somebody signed in to it.
pub(crate) async fn start(config: Config) -> (Simulator, Client) {
    let simulator = Simulator::start(Config { rows: 600, custom_logic: false, ..config }).await.unwrap();
    let http = reqwest::Client::new();
    let scope = format!("{}/.default", simulator.url());
    let (id, secret) = (simulator.client_id(), simulator.secret());
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", id.as_str()),
        ("client_secret", secret.as_str()),
        ("scope", scope.as_str()),
    ];
    let url = format!("{}/{}/oauth2/v2.0/token", simulator.authority(), simulator.tenant());
    let body: Value = http.post(url).form(&form).send().await.unwrap().json().await.unwrap();
    let token = body["access_token"].as_str().unwrap().to_owned();
    let client = Client { http, url: simulator.url(), token };
    (simulator, client)
}

impl Client {
    pub(crate) fn api(&self, path: &str) -> String {
        if path.starts_with("http") { path.to_owned() } else { format!("{}/api/data/v9.2/{path}", self.url) }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Reply {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, self.api(path)).bearer_auth(&self.token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = request.body(body).send().await.unwrap();
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        Reply { status, headers, body: reply.bytes().await.unwrap().to_vec() }
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, path, &[("content-type", "application/json")], body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let reply = self.send("GET", path, &[], Vec::new()).await;
        assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
        reply.json()
    }

    /// Creates a row with a given id.
    pub(crate) async fn create(&self, set: &str, id: &str, body: Value) {
        let reply = self.call("PATCH", &format!("{set}({id})"), &body).await;
        assert_eq!(reply.status, 204, "{set}: {}", String::from_utf8_lossy(&reply.body));
    }

    pub(crate) async fn message(&self, path: &str, body: Value) -> Reply {
        self.call("POST", path, &body).await
    }

    /// An ordinary account.
    pub(crate) async fn account(&self, id: &str) {
        self.create("accounts", id, json!({"name": "Made here"})).await;
    }
}

/// An id that no seed makes.
pub(crate) fn id(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}
