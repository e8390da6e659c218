//! `init`, `config check`, `key generate`, `completions`, `man`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::CommandFactory;
use dynavault_engine::{Config, EXAMPLE, ExposeSecret, Failure, generate_key};
use dynavault_model::FaultKind;

use super::Outcome;
use crate::args::{Args, Global, KeyCommand};
use crate::{exit, print};

fn write_failed(path: &Path, error: &std::io::Error) -> Failure {
    let remedy = match error.kind() {
        std::io::ErrorKind::AlreadyExists => "it exists; name another file or move it away",
        _ => "check that the folder exists and may be written",
    };
    Failure::new(FaultKind::Failed, format!("could not write {}: {error}", path.display()), Some(remedy.into()))
}

/// Writes a new file, never over an old one.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| write_failed(path, &error))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| write_failed(path, &error))
}

/// Says that a file was written: as data with `--json`, else as talk.
pub(super) fn written(path: &Path, text: &str, global: &Global) {
    if global.json {
        print::json(&serde_json::json!({"path": path}));
    } else if !global.quiet {
        print::talk(text);
    }
}

pub(super) fn init(path: &Path, only_print: bool, global: &Global) -> Outcome {
    if only_print {
        print::data(EXAMPLE.trim_end());
        return Ok(exit::DONE);
    }
    write_new(path, EXAMPLE, 0o600)?;
    written(path, &format!("wrote {}; edit it, then run `dynavault config check`", path.display()), global);
    Ok(exit::DONE)
}

pub(super) fn check(global: &Global) -> Outcome {
    let loaded = Config::load(global.config().as_deref())?;
    let config = &loaded.config;
    if global.json {
        print::json(&serde_json::json!({
            "path": loaded.path,
            "environments": config.environments.len(),
            "profiles": config.profiles.len(),
            "jobs": config.jobs.len(),
        }));
    } else {
        print::data(&format!(
            "{} is fine: {} environments, {} profiles, {} jobs",
            loaded.path.display(),
            config.environments.len(),
            config.profiles.len(),
            config.jobs.len()
        ));
    }
    Ok(exit::DONE)
}

pub(super) fn key(command: KeyCommand, global: &Global) -> Outcome {
    let KeyCommand::Generate { path } = command;
    let (secret, recipient) = generate_key();
    write_new(&path, &format!("# public key: {recipient}\n{}\n", secret.expose_secret()), 0o600)?;
    print::talk(&format!(
        "wrote the secret key to {}; keep it off the hosts that back up, and keep a copy: without it nothing can be read",
        path.display()
    ));
    if global.json {
        print::json(&serde_json::json!({"recipient": recipient, "path": path}));
    } else {
        print::data(&recipient);
    }
    Ok(exit::DONE)
}

pub(super) fn completions(shell: clap_complete::Shell) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "dynavault", &mut script);
    print::data(String::from_utf8_lossy(&script).trim_end());
    exit::DONE
}

pub(super) fn man(folder: &Path, global: &Global) -> Outcome {
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Args::command(), folder))
        .map_err(|error| write_failed(folder, &error))?;
    written(folder, &format!("wrote the manual pages into {}", folder.display()), global);
    Ok(exit::DONE)
}
