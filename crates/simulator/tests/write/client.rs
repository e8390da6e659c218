//! The client: requests, answers, and the text of a batch.

use dynavault_simulator::{Config, Simulator};
use serde_json::Value;

/// No faults, no custom logic, a small data set.
pub(crate) fn quiet() -> Config {
    Config { rows: 600, custom_logic: false, ..Config::default() }
}

pub(crate) struct Client {
    http: reqwest::Client,
    pub(crate) url: String,
    token: String,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and code, as refusals are told apart.
    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status, self.code())
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

/// An environment and somebody signed in to it.
pub(crate) async fn start(config: Config) -> (Simulator, Client) {
    let simulator = Simulator::start(config).await.unwrap();
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
    fn api(&self, path: &str) -> String {
        if path.starts_with("http") { path.to_owned() } else { format!("{}/api/data/v9.2/{path}", self.url) }
    }

    pub(crate) async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Reply, reqwest::Error> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, self.api(path)).bearer_auth(&self.token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = request.body(body.to_owned()).send().await?;
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        Ok(Reply { status, headers, body: reply.text().await? })
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.try_send(method, path, headers, &body).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[], body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Reply {
        self.send("PATCH", path, &[], body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[], &Value::Null).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let reply = self.send("GET", path, &[], &Value::Null).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.json()
    }

    /// Makes a row; it must work.
    pub(crate) async fn make(&self, path: &str, body: &Value) {
        let reply = self.patch(path, body).await;
        assert_eq!(reply.status, 204, "{path}: {}", reply.body);
    }

    /// Sends parts as a batch.
    pub(crate) async fn batch(&self, headers: &[(&str, &str)], parts: &[String]) -> Reply {
        let mut body = String::new();
        for part in parts {
            body.push_str("--batch_1\r\n");
            body.push_str(part);
            body.push_str("\r\n");
        }
        body.push_str("--batch_1--\r\n");
        let mut all = vec![("content-type", "multipart/mixed; boundary=\"batch_1\"")];
        all.extend_from_slice(headers);
        self.try_send("POST", "$batch", &all, &body).await.unwrap()
    }
}

/// One request as a part of a batch; `headers` are lines that end with CRLF.
pub(crate) fn part(line: &str, headers: &str, body: &Value) -> String {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    format!(
        "Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n{line} HTTP/1.1\r\nContent-Type: application/json\r\n{headers}\r\n{body}"
    )
}

/// Requests as a change set, numbered from 1.
pub(crate) fn change_set(requests: &[(&str, Value)]) -> String {
    let mut text = String::from("Content-Type: multipart/mixed; boundary=changeset_1\r\n\r\n");
    for (index, (line, body)) in requests.iter().enumerate() {
        let head = format!("--changeset_1\r\nContent-ID: {}\r\n", index + 1);
        text.push_str(&head);
        text.push_str(&part(line, "", body));
        text.push_str("\r\n");
    }
    text.push_str("--changeset_1--\r\n");
    text
}

/// The statuses of the parts of a batch answer, in order.
pub(crate) fn statuses(reply: &Reply) -> Vec<u16> {
    let lines = reply.body.split("\r\n").filter_map(|line| line.strip_prefix("HTTP/1.1 "));
    lines.map(|line| line[..3].parse().unwrap()).collect()
}

/// An id that no seed makes.
pub(crate) fn id(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}
