//! `profile list`, `add`, `login`, `reauthorize`, `logout`, `consent-url`, `check`.

use std::path::PathBuf;
use std::process::Stdio;

use dynavault_engine::{
    Config, Failure, LoginAs, LoginPrompt, LoginRequest, LoginWay, NewProfile, PermissionState, ProfileCheck,
    Reference, add_profile,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Outcome, engine};
use crate::args::{AddProfile, CredentialArg, Global, LoginArgs, ProfileCommand};
use crate::{exit, print};

/// What a browser needs of our environment. The rest stays here: secrets may be among it.
const BROWSER_ENVIRONMENT: [&str; 18] = [
    "BROWSER",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "HOME",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "PATH",
    "USER",
    "WAYLAND_DISPLAY",
    "WSL_DISTRO_NAME",
    "WSL_INTEROP",
    "XAUTHORITY",
    "XDG_CONFIG_HOME",
    "XDG_CURRENT_DESKTOP",
    "XDG_DATA_DIRS",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_TYPE",
];

pub(super) async fn run(command: ProfileCommand, global: &Global, cancel: CancellationToken) -> Outcome {
    match command {
        ProfileCommand::List => list(global).await,
        ProfileCommand::Add(add) => add_to_file(*add, global),
        ProfileCommand::Login { profile, way } => login(profile, way, LoginAs::Anybody, global, cancel).await,
        ProfileCommand::Reauthorize { profile, way, switch_user } => {
            let person = if switch_user { LoginAs::Anybody } else { LoginAs::SamePerson };
            login(profile, way, person, global, cancel).await
        }
        ProfileCommand::Logout { profile } => logout(&profile, global).await,
        ProfileCommand::ConsentUrl { profile } => consent_url(&profile, global),
        ProfileCommand::Check { profile } => check(&profile, global, &cancel).await,
    }
}

async fn list(global: &Global) -> Outcome {
    let profiles = engine(global)?.profiles().await;
    if global.json {
        print::json(&profiles);
        return Ok(exit::DONE);
    }
    let rows: Vec<Vec<String>> = profiles
        .into_iter()
        .map(|line| {
            let person = line.signed_in.map(|person| match (person.problem, person.user) {
                (Some(problem), _) => problem,
                (None, Some(user)) => user,
                (None, None) => "nobody".to_string(),
            });
            vec![
                line.profile,
                word(&line.kind),
                line.mode.name().to_string(),
                line.credential.to_string(),
                line.tenant,
                line.client_id,
                line.cloud.to_string(),
                person.unwrap_or_default(),
                line.environments.join(", "),
            ]
        })
        .collect();
    let headers =
        ["profile", "kind", "mode", "credential", "tenant", "client id", "cloud", "signed in", "environments"];
    print::table(&headers, &rows);
    Ok(exit::DONE)
}

/// A word that the configuration uses.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_string)).unwrap_or_default()
}

/// A value by reference, from the two options that may give it.
fn reference(key: &'static str, variable: Option<String>, file: Option<String>) -> Option<(&'static str, Reference)> {
    let variable = variable.map(Reference::Env);
    variable.or(file.map(Reference::File)).map(|found| (key, found))
}

fn credential(add: &AddProfile) -> Result<Vec<(&'static str, Reference)>, Failure> {
    let secret = || reference("secret", add.secret_env.clone(), add.secret_file.clone());
    let certificate = || reference("certificate", None, add.certificate_file.clone());
    let password = || reference("password", add.password_env.clone(), add.password_file.clone());
    let plain = |key: &'static str, value: &Option<String>| value.clone().map(|text| (key, Reference::Plain(text)));
    let needs = |options: &str| {
        Failure::usage("the credential is not complete".to_string(), format!("say where it is with {options}"))
    };
    let (kind, keys) = match add.credential {
        CredentialArg::ClientSecret => {
            let secret = secret().ok_or_else(|| needs("--secret-env NAME or --secret-file PATH"))?;
            ("client-secret", vec![Some(secret)])
        }
        CredentialArg::ClientCertificate => {
            let certificate = certificate().ok_or_else(|| needs("--certificate-file PATH"))?;
            ("client-certificate", vec![Some(certificate), password()])
        }
        CredentialArg::WorkloadIdentity => ("workload-identity", vec![plain("token_file", &add.token_file)]),
        CredentialArg::ManagedIdentity => ("managed-identity", vec![plain("client_id", &add.identity_client_id)]),
        CredentialArg::AzureCli => ("azure-cli", Vec::new()),
        CredentialArg::Delegated => ("delegated", Vec::new()),
    };
    let given = [secret(), certificate(), password(), plain("token_file", &add.token_file)];
    let given = given.into_iter().flatten().chain(plain("client_id", &add.identity_client_id));
    let keys: Vec<(&'static str, Reference)> = keys.into_iter().flatten().collect();
    if let Some((key, _)) = given.into_iter().find(|(key, _)| keys.iter().all(|(used, _)| used != key)) {
        return Err(Failure::usage(
            format!("a credential of kind {kind} has no {key}"),
            "leave the option out, or choose another --credential",
        ));
    }
    Ok([("kind", Reference::Plain(kind.to_string()))].into_iter().chain(keys).collect())
}

fn add_to_file(add: AddProfile, global: &Global) -> Outcome {
    let loaded = Config::load(global.config().as_deref())?;
    let credential = credential(&add)?;
    let AddProfile { name, kind, tenant, client_id, cloud, authority, graph, .. } = add;
    let profile = NewProfile { name, kind, tenant, client_id, credential, cloud, authority, graph };
    add_profile(&loaded, &profile)?;
    let name = &profile.name;
    if global.json {
        print::json(&json!({"profile": name, "path": loaded.path}));
    } else {
        print::data(profile.text().trim_end());
    }
    print::talk(&format!(
        "added to {}; next: name it in `profiles` of an environment, `dynavault profile consent-url {name}`, `dynavault profile check {name}`",
        loaded.path.display()
    ));
    Ok(exit::DONE)
}

async fn login(
    profile: String,
    way: LoginArgs,
    person: LoginAs,
    global: &Global,
    cancel: CancellationToken,
) -> Outcome {
    let engine = engine(global)?;
    let browser = if way.device_code || way.no_browser { None } else { browser() };
    let device = way.device_code || (browser.is_none() && !way.no_browser);
    if device && !way.device_code {
        print::talk(
            "no browser was found on this machine; signing in with a code (--no-browser prints the address instead)",
        );
    }
    let request = LoginRequest {
        profile,
        way: if device { LoginWay::DeviceCode } else { LoginWay::Browser },
        person,
        consent: way.consent,
    };
    let pending = engine.login(&request).await?;
    match pending.prompt() {
        LoginPrompt::Page { url } => {
            if browser.is_some_and(|browser| open(&browser, &url)) {
                print::talk(&format!(
                    "a browser should open; if it does not, open this address on this machine:\n\n  {url}\n"
                ));
            } else {
                print::talk(&format!("open this address in a browser on this machine:\n\n  {url}\n"));
            }
        }
        LoginPrompt::Code { page, code, life } => print::talk(&format!(
            "open {page} on any device and enter the code {code} (it works for {} minutes); enter only a code that you asked for yourself",
            life.as_secs() / 60
        )),
    }
    let end = pending.finish(&cancel).await?;
    if let Some(before) = &end.replaced {
        print::talk(&format!("the sign-in of {before} was replaced"));
    }
    if global.json {
        print::json(&end);
    } else {
        print::data(&format!(
            "{} is signed in with profile {} (tenant {}); kept in {}",
            end.user.as_deref().unwrap_or(&end.user_id),
            end.profile,
            end.tenant,
            end.store
        ));
    }
    Ok(exit::DONE)
}

/// The command that opens an address: `$BROWSER`, or the desktop's own where there is a desktop.
fn browser() -> Option<String> {
    let named = std::env::var("BROWSER").unwrap_or_default();
    if let Some(first) = named.split(':').find(|command| !command.trim().is_empty()) {
        return Some(first.to_string());
    }
    let desktop = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    let in_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
    };
    let opener: Option<PathBuf> =
        if cfg!(target_os = "macos") { in_path("open") } else { in_path("xdg-open").filter(|_| desktop) };
    opener.map(|program| program.display().to_string())
}

/// Starts the browser and leaves it alone; whether it started.
fn open(browser: &str, url: &str) -> bool {
    let mut words = browser.split_ascii_whitespace();
    let Some(program) = words.next() else { return false };
    let mut arguments: Vec<String> = words.map(|word| word.replace("%s", url)).collect();
    if !browser.contains("%s") {
        arguments.push(url.to_string());
    }
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    for name in BROWSER_ENVIRONMENT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.spawn().is_ok()
}

async fn logout(profile: &str, global: &Global) -> Outcome {
    let was = engine(global)?.logout(profile).await?;
    if global.json {
        print::json(&json!({"profile": profile, "signed_out": was}));
    } else if was {
        print::data(&format!(
            "signed out of profile {profile} on this machine; other sign-ins of the person end only in the directory (revoke sessions)"
        ));
    } else {
        print::data(&format!("nobody was signed in with profile {profile}"));
    }
    Ok(exit::DONE)
}

fn consent_url(profile: &str, global: &Global) -> Outcome {
    let page = engine(global)?.consent_page(profile)?;
    if global.json {
        print::json(&page);
        return Ok(exit::DONE);
    }
    print::talk("the page grants what the app registration lists; for exactly what is needed, let it list:");
    for row in &page.permissions {
        let id = row.id.unwrap_or("by name in the portal");
        print::talk(&format!("  {} {} ({}), {}: {id}", row.api, row.permission, row.of_type.name(), row.needed_for));
    }
    print::talk("let an administrator of the tenant open:");
    print::data(&page.url);
    Ok(exit::DONE)
}

async fn check(profile: &str, global: &Global, cancel: &CancellationToken) -> Outcome {
    let check = engine(global)?.check_profile(profile, cancel).await?;
    if global.json {
        print::json(&check);
    } else {
        show_check(&check);
    }
    Ok(check.fault().map_or(exit::DONE, exit::of_failure))
}

fn show_check(check: &ProfileCheck) {
    let rows: Vec<Vec<String>> = check
        .permissions
        .iter()
        .map(|line| {
            vec![
                line.api.to_string(),
                line.permission.to_string(),
                line.of_type.name().to_string(),
                line.state.name().to_string(),
                line.found_by.map(|found| found.name().to_string()).unwrap_or_default(),
                line.needed_for.to_string(),
            ]
        })
        .collect();
    print::table(&["api", "permission", "type", "state", "found by", "needed for"], &rows);
    let mut facts = vec![vec!["mode".to_string(), check.mode.name().to_string()]];
    let tenant = check.tenant.name.as_ref().map(|name| format!("{name} ")).unwrap_or_default();
    facts.push(vec!["tenant".into(), format!("{tenant}{} {}", check.tenant.id, check.tenant.domains.join(" "))]);
    let who = &check.signed_in_as;
    let names: Vec<&str> = who.name.iter().chain(&who.id).map(String::as_str).collect();
    facts.push(vec![who.kind.into(), names.join(" ")]);
    facts.extend(who.store.iter().map(|store| vec!["sign-in kept in".to_string(), store.clone()]));
    for line in &check.environments {
        let user = line.user.as_ref().map(|user| format!(" as user {user}")).unwrap_or_default();
        let offer = line.companies.zip(line.data_entities);
        let offer = offer.map(|(companies, entities)| format!(", {companies} companies, {entities} data entities"));
        let found = format!("{}{user}{}", line.state, offer.unwrap_or_default());
        facts.push(vec![format!("environment {}", line.environment), found]);
    }
    for line in &check.credentials {
        let ends = line.expires.strftime("%Y-%m-%d");
        facts.push(vec![line.kind.into(), format!("ends on {ends}, {} days left", line.days_left)]);
    }
    if let Some(groups) = check.groups {
        facts.push(vec!["groups".into(), print::count(groups)]);
    }
    print::data("");
    print::table(&["what", "value"], &facts);
    for line in &check.permissions {
        match (&line.state, &line.note) {
            (PermissionState::Missing, _) => {
                print::talk(&format!(
                    "missing: {} {} ({}): {}",
                    line.api,
                    line.permission,
                    line.of_type.name(),
                    line.needed_for
                ));
                print::talk(&format!("hint: {}", line.remedy.as_deref().unwrap_or_default()));
            }
            (PermissionState::Unknown | PermissionState::Granted, Some(note)) => {
                print::talk(&format!("note: {} {}: {note}", line.api, line.permission));
            }
            _ => {}
        }
    }
    for line in check.environments.iter().filter(|line| line.state != "ok") {
        let message = line.message.as_deref().unwrap_or_default();
        print::talk(&format!("{}: environment {}: {message}", line.state, line.environment));
        if let Some(remedy) = &line.remedy {
            print::talk(&format!("hint: {remedy}"));
        }
    }
    for warning in &check.warnings {
        print::talk(&format!("warning: {warning}"));
    }
}
