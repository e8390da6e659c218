//! A server that costs next to nothing: pages go from the file to the socket inside the kernel.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use crate::pages;

/// Serves the pages of a folder until killed; prints its address first.
#[expect(clippy::print_stdout, reason = "the parent reads the address from standard output")]
pub(crate) fn serve(folder: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    println!("http://{}", listener.local_addr().expect("a bound socket has an address"));
    let address = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
    for stream in listener.incoming().flatten() {
        let (folder, address) = (folder.to_path_buf(), address.clone());
        std::thread::spawn(move || while answer(&stream, &folder, &address) {});
    }
}

/// Reads the address that [`serve`] prints.
pub(crate) fn read_address(output: impl Read) -> String {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).expect("the server prints its address");
    line.trim().to_string()
}

fn json(stream: &mut &TcpStream, body: &str) -> bool {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).is_ok()
}

fn answer(stream: &TcpStream, folder: &Path, address: &str) -> bool {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    if reader.read_line(&mut request).unwrap_or(0) == 0 {
        return false;
    }
    let mut body_bytes = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) == 0 {
            return false;
        }
        if let Some(length) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            body_bytes = length.trim().parse().unwrap_or(0);
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; body_bytes];
    if reader.read_exact(&mut body).is_err() {
        return false;
    }
    let mut stream = stream;
    let path = request.split(' ').nth(1).unwrap_or_default();
    if path.contains("/oauth2/") {
        return json(&mut stream, r#"{"token_type":"Bearer","expires_in":3600,"access_token":"bench"}"#);
    }
    if path.contains("WhoAmI") {
        return json(
            &mut stream,
            r#"{"OrganizationId":"00000000-0000-0000-0000-000000000001","UserId":"00000000-0000-0000-0000-000000000002","BusinessUnitId":"x"}"#,
        );
    }
    if path.contains("EntityDefinitions") {
        return json(
            &mut stream,
            r#"{"value":[{"LogicalName":"account","EntitySetName":"accounts","PrimaryIdAttribute":"accountid","TableType":"Standard","ChangeTrackingEnabled":true}]}"#,
        );
    }
    if path.contains("RetrieveMetadataChanges") {
        let columns: Vec<serde_json::Value> = pages::columns()
            .into_iter()
            .map(|(name, kind)| serde_json::json!({"LogicalName": name, "AttributeTypeName": {"Value": kind}, "IsValidForRead": true}))
            .collect();
        let table = serde_json::json!({"LogicalName": "account", "Attributes": columns});
        return json(&mut stream, &serde_json::json!({"EntityMetadata": [table]}).to_string());
    }
    let number = match path.rsplit_once("/page/") {
        Some((_, number)) => number.parse().unwrap_or(0),
        None if path.contains("/accounts") => 0,
        None => return json(&mut stream, r#"{"value":[]}"#),
    };
    page(stream, folder, address, number)
}

fn page(mut stream: &TcpStream, folder: &Path, address: &str, number: u64) -> bool {
    let Ok(mut file) = std::fs::File::open(folder.join(format!("page-{number}.json"))) else { return false };
    let next = folder.join(format!("page-{}.json", number + 1)).exists();
    let tail = if next {
        format!(",\"@odata.nextLink\":\"{address}/page/{}\"}}", number + 1)
    } else {
        format!(",\"@odata.deltaLink\":\"{address}/delta\"}}")
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len()) + tail.len() as u64;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).is_ok()
        && std::io::copy(&mut file, &mut stream).is_ok()
        && stream.write_all(tail.as_bytes()).is_ok()
}

/// Writes a configuration for the served pages.
pub(crate) fn write_config(folder: &Path, address: &str, vault: &Path, recipient: Option<&str>) -> PathBuf {
    let secret = folder.join("secret.txt");
    std::fs::write(&secret, "bench").expect("the secret can be written");
    let recipients = recipient.map(|key| format!("recipients = [\"{key}\"]\n")).unwrap_or_default();
    let path = folder.join(if recipient.is_some() { "encrypted.toml" } else { "plain.toml" });
    let text = format!(
        "[vault]\nurl = \"file://{}\"\n{recipients}[catalog]\npath = \"{}\"\n[[profile]]\nname = \"bench\"\nkind = \"ce\"\ntenant = \"bench\"\nclient_id = \"bench\"\ncredential = {{ kind = \"client-secret\", secret = {{ file = \"{}\" }} }}\nauthority = \"{address}\"\n[[environment]]\nname = \"bench\"\nkind = \"ce\"\nurl = \"{address}\"\nprofiles = [\"bench\"]\n",
        vault.display(),
        folder.join("catalog.db").display(),
        secret.display()
    );
    std::fs::write(&path, text).expect("the configuration can be written");
    path
}
