//! The same backups into Azure Blob, against the emulator.
//!
//! Runs when `DYNAVAULT_AZURITE` holds the emulator's blob endpoint, e.g. `http://127.0.0.1:10000/devstoreaccount1`;
//! `tests/run.sh` starts one. Says that it was skipped otherwise.

use std::collections::BTreeSet;
use std::fs;

use dynavault_engine::sha256_hex;
use reqwest::Method;
use serde_json::Value;

use crate::site::{Done, Site, UNREADABLE, is_encrypted, sorted};

/// The emulator's well-known account and key (Azurite documentation).
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;

fn from_base64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for character in text.bytes().filter(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|known| *known == character).unwrap();
        bits = (bits << 6) | u32::try_from(value).unwrap();
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().chain(&[0; 3]).take(3).fold(0_usize, |bits, byte| (bits << 8) | usize::from(*byte));
        for place in 0..4 {
            let character = ALPHABET[(bits >> (18 - 6 * place)) & 63];
            text.push(if place <= chunk.len() { character as char } else { '=' });
        }
    }
    text
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    let hex = sha256_hex(bytes);
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// HMAC-SHA256 (RFC 2104); the key fits one block.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let pad = |byte: u8| -> Vec<u8> { (0..64).map(|at| key.get(at).unwrap_or(&0) ^ byte).collect() };
    let inner = sha256(&[&pad(0x36), text].concat());
    sha256(&[pad(0x5c), inner].concat())
}

/// An account SAS with the given rights ("Create an account SAS", Azure Storage REST documentation).
pub(crate) fn sas(rights: &str, expiry: &str) -> String {
    let version = "2021-12-02";
    let text = format!("{ACCOUNT}\n{rights}\nb\nsco\n\n{expiry}\n\n\n{version}\n\n");
    let signature = to_base64(&hmac(&from_base64(KEY), text.as_bytes()));
    let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("sv={version}&ss=b&srt=sco&sp={rights}&se={}&sig={signature}", expiry.replace(':', "%3A"))
}

/// The emulator, a container of this test's own, and a site.
pub(crate) struct Cloud {
    endpoint: String,
    container: String,
    pub(crate) site: Site,
    runtime: tokio::runtime::Runtime,
}

impl Cloud {
    pub(crate) fn open(purpose: &str) -> Option<Self> {
        let Ok(endpoint) = std::env::var("DYNAVAULT_AZURITE") else {
            crate::site::skipped("DYNAVAULT_AZURITE is not set");
            return None;
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let container = format!("{purpose}-{:x}", jiff::Timestamp::now().as_nanosecond());
        let cloud = Self { endpoint, container, site: Site::small(), runtime };
        let (status, text) = cloud.ask(Method::PUT, "restype=container");
        assert_eq!(status, 201, "{text}");
        Some(cloud)
    }

    /// One request for the container, with every right.
    fn ask(&self, method: Method, query: &str) -> (u16, String) {
        let url = format!("{}/{}?{query}&{}", self.endpoint, self.container, sas("rwdlac", "2999-01-01T00:00:00Z"));
        self.runtime.block_on(async {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let mut reply = client.request(method, url).header("content-length", 0).send().await.unwrap();
            let mut body = Vec::new();
            while let Some(chunk) = reply.chunk().await.unwrap() {
                body.extend_from_slice(&chunk);
                assert!(body.len() < ANSWER_BYTES_MAX);
            }
            (reply.status().as_u16(), String::from_utf8(body).unwrap())
        })
    }

    /// Names of all objects of the container.
    pub(crate) fn objects(&self) -> BTreeSet<String> {
        let (status, text) = self.ask(Method::GET, "restype=container&comp=list");
        assert_eq!(status, 200, "{text}");
        assert!(text.contains("<NextMarker/>") || text.contains("<NextMarker></NextMarker>"), "one page is enough");
        text.split("<Name>").skip(1).map(|rest| rest.split("</Name>").next().unwrap().to_owned()).collect()
    }

    /// Writes a configuration with this credential; `more` are further lines of `[vault]`.
    pub(crate) fn configure(&self, name: &str, auth: &str, more: &str) {
        let mut settings = self.site.settings();
        settings.vault = format!(
            "url = \"azblob://{ACCOUNT}/{}/vaults/one\"\nendpoint = \"{}\"\nauth = {auth}\n{more}",
            self.container, self.endpoint
        );
        settings.environment = format!("exclude = {UNREADABLE:?}\n");
        self.site.configure(name, &settings);
    }

    /// A SAS in a file, and the credential that names the file.
    pub(crate) fn sas(&self, file: &str, sas: &str) -> String {
        fs::write(self.site.path(file), sas).unwrap();
        format!("{{ kind = \"sas\", token = {{ file = {:?} }} }}", self.site.path(file).display().to_string())
    }

    pub(crate) fn run(&self, config: &str, arguments: &[&str]) -> Done {
        let mut line = vec!["--config", config];
        line.extend_from_slice(arguments);
        self.site.run(&line)
    }
}

#[test]
fn the_signature_of_a_sas_is_right() {
    // RFC 4231, test case 2.
    let found = hmac(b"Jefe", b"what do ya want for nothing?");
    assert_eq!(&found[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    assert_eq!(to_base64(&from_base64(KEY)), KEY);
    assert_eq!((to_base64(b"ab"), from_base64("YWI=")), ("YWI=".to_owned(), b"ab".to_vec()));
}

#[test]
fn a_vault_in_azure_is_like_one_in_a_folder() {
    let Some(cloud) = Cloud::open("whole") else { return };
    cloud.configure("dynavault.toml", &cloud.sas("sas.txt", &sas("rwdlac", "2999-01-01T00:00:00Z")), "");
    let first = cloud.site.run(&["backup", "--json"]).code(0).json();
    cloud.site.is_equal("dynavault.toml");
    cloud.site.simulator.edit(41, 60);
    let second = cloud.site.run(&["backup", "--json"]).code(0).json();
    cloud.site.is_equal("dynavault.toml");
    let report = cloud.site.run(&["--json", "verify", "--deep"]).code(0).json();
    assert_eq!(report["manifests"], 2);

    // Exactly the documented names, and all of them.
    let objects = cloud.objects();
    for report in [&first, &second] {
        let name = format!("vaults/one/environments/simulated/manifests/{}.json", report["snapshot"].as_str().unwrap());
        assert!(objects.contains(&name), "{name} is missing from {objects:?}");
    }
    assert!(objects.contains("vaults/one/dynavault.json"));
    let manifest = cloud.site.run(&["--json", "snapshot", "show"]).code(0).json();
    let mut segments = 0;
    for table in manifest["tables"].as_array().unwrap() {
        for segment in table["segments"].as_array().unwrap() {
            let start = format!(
                "vaults/one/environments/simulated/tables/{}/{}",
                table["table"].as_str().unwrap(),
                segment["id"].as_str().unwrap()
            );
            assert!(objects.iter().any(|name| name.starts_with(&start)), "{start}");
            segments += 1;
        }
    }
    assert_eq!(
        objects.iter().filter(|name| name.contains("/tables/")).count(),
        segments,
        "objects that no manifest names"
    );
    assert!(objects.iter().any(|name| name.contains("/content/")));

    // The account's key opens the same vault, and another host goes on with it.
    let key = cloud.site.path("key.txt");
    fs::write(&key, KEY).unwrap();
    cloud.configure("key.toml", &format!("{{ kind = \"account-key\", key = {{ file = {key:?} }} }}"), "");
    let text = fs::read_to_string(cloud.site.path("key.toml")).unwrap().replace("catalog.db", "other.db");
    fs::write(cloud.site.path("key.toml"), text).unwrap();
    cloud.site.simulator.edit(42, 30);
    cloud.run("key.toml", &["backup", "-q"]).code(0);
    cloud.site.is_equal("key.toml");
}

#[test]
fn a_wrong_expired_or_narrow_sas_is_6_and_says_what_is_missing() {
    let Some(cloud) = Cloud::open("denied") else { return };
    let good = sas("rwdlac", "2999-01-01T00:00:00Z");
    let refused = |name: &str, token: &str, arguments: &[&str]| {
        cloud.configure(name, &cloud.sas("token.txt", token), "");
        let done = cloud.run(name, arguments).code(6).one_error();
        let signature = token.split("sig=").nth(1).unwrap();
        assert!(!done.err.contains(signature) && !done.err.contains(&signature.replace("%3D", "=")), "{}", done.err);
        done
    };
    let wrong = good.replace("sig=", "sig=AAAA");
    refused("wrong.toml", &wrong, &["backup"]).says(&["not allowed", "SAS"]);
    refused("wrong.toml", &wrong, &["snapshot", "list"]).says(&["not allowed", "SAS"]);
    refused("expired.toml", &sas("rwdlac", "2020-01-01T00:00:00Z"), &["backup"]).says(&["not allowed", "SAS"]);
    refused("read.toml", &sas("rl", "2999-01-01T00:00:00Z"), &["backup"]).says(&["not allowed", "create, write"]);
    assert_eq!(cloud.site.simulator.stats().by_kind.get("page"), None, "rows were read although they cannot be stored");
    assert_eq!(cloud.objects(), BTreeSet::new());
    let runs = cloud.run("read.toml", &["--json", "run", "list"]).code(0).json();
    assert!(
        runs.as_array().unwrap().iter().all(|run| run["status"] == "failed") && runs.as_array().unwrap().len() == 3,
        "{runs}"
    );
}

#[test]
fn a_host_that_may_only_write_captures_increments_that_the_key_holder_reads() {
    let Some(cloud) = Cloud::open("writeonly") else { return };
    let recipient = cloud.site.run(&["key", "generate", "restore.key"]).code(0).text().trim().to_owned();
    let recipients = format!("recipients = [\"{recipient}\"]\n");
    cloud.configure("capture.toml", &cloud.sas("narrow.txt", &sas("wc", "2999-01-01T00:00:00Z")), &recipients);
    let first = cloud.run("capture.toml", &["backup", "--json"]).code(0).json();
    assert_eq!(first["status"], "succeeded");
    let edits = cloud.site.simulator.edit(43, 60);
    let second = cloud.run("capture.toml", &["backup", "--json"]).code(0).json();
    assert_eq!(second["status"], "succeeded");
    let mode = |table: &str| {
        let tables = second["tables"].as_array().unwrap();
        tables.iter().find(|line| line["table"] == table).unwrap()["mode"].clone()
    };
    assert_eq!(mode("account"), "delta", "increments work without reading");
    assert!(edits.tables.values().map(|edit| edit.deleted).sum::<u64>() > 0, "seed 43");
    // What this host wrote it cannot read.
    cloud.run("capture.toml", &["export", "--table", "account"]).code(6).one_error().says(&["not allowed"]);

    let everything = format!("{recipients}identity_file = {:?}\n", cloud.site.path("restore.key"));
    cloud.configure("restore.toml", &cloud.sas("sas.txt", &sas("rl", "2999-01-01T00:00:00Z")), &everything);
    let text = fs::read_to_string(cloud.site.path("restore.toml")).unwrap().replace("catalog.db", "restore.db");
    fs::write(cloud.site.path("restore.toml"), text).unwrap();
    cloud.site.is_equal("restore.toml");
    let report = cloud.run("restore.toml", &["--json", "verify", "--deep"]).code(0).json();
    assert_eq!((&report["manifests"], &report["damage"]), (&Value::from(2), &Value::Array(vec![])));
    for name in cloud.objects() {
        assert!(
            is_encrypted(&name) || name.ends_with("/lock") || name.ends_with("/dynavault.json"),
            "{name} is not encrypted"
        );
    }
    let done = cloud.run("restore.toml", &["-q", "export", "--table", "annotation"]).code(0);
    assert_eq!(sorted(done.text()), cloud.site.oracle("annotation"));
}

#[test]
fn a_restore_reads_from_azure_keeps_its_record_there_and_is_taken_back_from_it() {
    let Some(cloud) = Cloud::open("restore") else { return };
    let recipient = cloud.site.run(&["key", "generate", "restore.key"]).code(0).text().trim().to_owned();
    let recipients = format!("recipients = [\"{recipient}\"]\n");
    cloud.configure("capture.toml", &cloud.sas("narrow.txt", &sas("wc", "2999-01-01T00:00:00Z")), &recipients);
    cloud.run("capture.toml", &["backup", "-q"]).code(0);
    let keys = format!("{recipients}identity_file = {:?}\n", cloud.site.path("restore.key"));
    cloud.configure("restore.toml", &cloud.sas("sas.txt", &sas("rwlc", "2999-01-01T00:00:00Z")), &keys);
    let text = fs::read_to_string(cloud.site.path("restore.toml")).unwrap().replace("catalog.db", "restore.db");
    fs::write(cloud.site.path("restore.toml"), text).unwrap();

    cloud.site.simulator.wipe();
    let wiped = cloud.site.simulator.row_counts();
    let done = cloud.run("restore.toml", &["--json", "restore", "-o", "plan.jsonl", "--apply"]).code(0).json();
    assert_eq!((&done["status"], &done["proof"]["unexplained"]), (&Value::from("succeeded"), &Value::from(0)));
    assert!(done["proof"]["content"].as_u64().unwrap() > 0, "files came out of the container too");
    assert!(cloud.site.simulator.row_counts()["account"] > wiped["account"]);
    let run = done["run"].as_str().unwrap();
    for file in ["plan", "outcomes"] {
        let name = format!("vaults/one/environments/simulated/restores/{run}/{file}.jsonl.zst.age");
        assert!(cloud.objects().contains(&name), "{name}");
    }
    // Another host, which has never heard of that restore, takes it back.
    let text = fs::read_to_string(cloud.site.path("restore.toml")).unwrap().replace("restore.db", "third.db");
    fs::write(cloud.site.path("third.toml"), text).unwrap();
    let undone = ["--json", "restore", "undo", run, "-o", "undo.jsonl", "--apply", "--confirm-deletes"];
    cloud.run("third.toml", &undone).code(0);
    assert_eq!(cloud.site.simulator.row_counts(), wiped);
}
