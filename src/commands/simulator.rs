//! `simulator serve`, and the configuration that fits a simulator.

use std::path::Path;
use std::time::Duration;

use dynavault_engine::Failure;
use dynavault_model::FaultKind;
use dynavault_simulator::{Config, Handle, Limits, Simulator};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Outcome;
use crate::args::SimulatorCommand;
use crate::{exit, print};

pub(super) fn failed(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(FaultKind::Failed, format!("could not {what}: {error}"), None)
}

/// A configuration for a simulator, with everything in one folder. The secret goes into a file of its own.
pub(super) fn write_config(folder: &Path, simulator: &Handle) -> std::io::Result<std::path::PathBuf> {
    std::fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    let secret = folder.join("simulator-secret.txt");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::write(&secret, simulator.secret()).and_then(|()| std::fs::set_permissions(&secret, private))?;
    let path = folder.join("dynavault.toml");
    // Paths are written as TOML strings: a folder may have quotes or backslashes in its name.
    let quoted = |path: &Path| toml_string(&path.display().to_string());
    let text = format!(
        "# For the simulator at {url}\n\n[vault]\nurl = {vault}\n\n[catalog]\npath = {catalog}\n\n\
         [[profile]]\nname = \"simulator\"\nkind = \"ce\"\ntenant = \"{tenant}\"\nclient_id = \"{client}\"\n\
         credential = {{ kind = \"client-secret\", secret = {{ file = {secret} }} }}\nauthority = \"{authority}\"\ngraph = \"{graph}\"\n\n\
         [[environment]]\nname = \"simulated\"\nkind = \"ce\"\nurl = \"{url}\"\nprofiles = [\"simulator\"]\n",
        url = simulator.url(),
        vault = toml_string(&format!("file://{}", url_path(&folder.join("vault")))),
        catalog = quoted(&folder.join("catalog.db")),
        tenant = simulator.tenant(),
        client = simulator.client_id(),
        secret = quoted(&secret),
        authority = simulator.authority(),
        graph = simulator.entra().graph_url(),
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

/// A path as part of a URL: what would end the path or be taken for an escape is escaped.
fn url_path(path: &Path) -> String {
    let mut text = path.display().to_string();
    for (plain, escaped) in [('%', "%25"), ('?', "%3F"), ('#', "%23"), ('\\', "%5C")] {
        text = text.replace(plain, escaped);
    }
    text
}

fn toml_string(text: &str) -> String {
    // JSON's escapes are a subset of those of TOML basic strings.
    serde_json::Value::from(text).to_string()
}

pub(super) async fn run(command: SimulatorCommand, cancel: CancellationToken) -> Outcome {
    let SimulatorCommand::Serve { port, rows, big_rows, seed, limits, latency_ms, write_config: folder } = command;
    let config = Config {
        seed,
        port,
        rows,
        big_table_rows: big_rows,
        limits: limits.then(Limits::default),
        latency: Duration::from_millis(latency_ms),
        ..Config::default()
    };
    let simulator = Simulator::start(config).await.map_err(|error| failed("start the simulator", &error))?;
    let written = match &folder {
        Some(folder) => {
            Some(write_config(folder, &simulator).map_err(|error| failed("write the configuration", &error))?)
        }
        None => None,
    };
    print::json(&json!({
        "url": simulator.url(),
        "authority": simulator.authority(),
        "tenant": simulator.tenant(),
        "client_id": simulator.client_id(),
        "secret": simulator.secret(),
        "config": written,
    }));
    print::talk("serving until interrupted; controls are below /_simulator/ (see docs/guide/simulator.md)");
    cancel.cancelled().await;
    simulator.stop().await;
    Ok(exit::DONE)
}
