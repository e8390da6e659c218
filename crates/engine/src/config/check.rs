//! Whether a configuration makes sense, and errors that say where it does not and what is meant.

use std::collections::HashSet;

use globset::Glob;
use url::Url;

use dynavault_model::Diagnose;
use dynavault_store::{VaultLocation, parse_vault_url};
use dynavault_vault::Recipients;

use super::{Config, ConfigError, CredentialConfig, EnvironmentConfig, JobConfig, Text, TokenStoreKind, schedule};

/// The known word nearest to a mistyped one, if one is near.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A TOML error with its line, and for an unknown key the nearest known one.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().trim();
    let mut parts = message.split('`');
    let explained = match (parts.next(), parts.next(), parts.next()) {
        (Some(start), Some(key), Some(_)) if start.starts_with("unknown field") => {
            let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
            match nearest(key, known.iter().copied()) {
                Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
                None => format!("unknown key `{key}`; known here: {}", known.join(", ")),
            }
        }
        _ => message.to_string(),
    };
    match line {
        Some(line) => format!("line {line}: {explained}"),
        None => explained,
    }
}

fn sense(message: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
    ConfigError::Sense { message: message.into(), remedy: remedy.into() }
}

/// What another part says of a value of ours.
fn told(what: &str, error: &(impl Diagnose + 'static)) -> ConfigError {
    sense(format!("{what}: {}", dynavault_model::chain(error)), error.remedy().unwrap_or_default())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Addresses that are written out are checked here; those by reference when they are used.
pub(crate) fn check_address(what: &str, text: &str) -> Result<Url, ConfigError> {
    let url = Url::parse(text)
        .map_err(|error| sense(format!("{what}: {text:?} is not an address ({error})"), "write it with https://"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        _ => {
            Err(sense(format!("{what}: {text:?} is not https"), "plain http is allowed for hosts of this machine only"))
        }
    }
}

fn check_text_address(what: &str, text: Option<&Text>) -> Result<(), ConfigError> {
    match text {
        Some(Text::Plain(text)) => check_address(what, text).map(|_| ()),
        _ => Ok(()),
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for name in names {
        if name.is_empty() {
            return Err(sense(format!("a {what} has an empty name"), "give it a name"));
        }
        if !seen.insert(name) {
            return Err(sense(format!("two {what}s are called {name:?}"), "names must differ"));
        }
    }
    Ok(())
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        unique("profile", self.profiles.iter().map(|profile| profile.name.as_str()))?;
        unique("environment", self.environments.iter().map(|environment| environment.name.as_str()))?;
        unique("job", self.jobs.iter().map(|job| job.name.as_str()))?;
        self.check_vault()?;
        if self.limits.memory_mib < 32 {
            return Err(sense("limits.memory_mib is below 32", "a backup needs at least 32 MiB, better 256"));
        }
        for (what, value) in [
            ("limits.tables_in_parallel", self.limits.tables_in_parallel),
            ("limits.segment_mib_max", self.limits.segment_mib_max),
            ("limits.segment_seconds_max", self.limits.segment_seconds_max),
        ] {
            if value == 0 {
                return Err(sense(format!("{what} is 0"), "it must be at least 1"));
            }
        }
        if self.limits.segment_mib_max > 1024 {
            return Err(sense("limits.segment_mib_max is above 1024", "64 is a good value"));
        }
        for profile in &self.profiles {
            check_text_address(&format!("profile {}: authority", profile.name), profile.authority.as_ref())?;
            check_text_address(&format!("profile {}: graph", profile.name), profile.graph.as_ref())?;
        }
        self.check_tokens()?;
        self.environments.iter().try_for_each(|environment| self.check_environment(environment))?;
        self.jobs.iter().try_for_each(|job| self.check_job(job))
    }

    /// What is written by reference is checked when it is used.
    fn check_vault(&self) -> Result<(), ConfigError> {
        let vault = &self.vault;
        check_text_address("vault.endpoint", vault.endpoint.as_ref())?;
        let endpoint = match &vault.endpoint {
            Some(Text::Plain(text)) => Some(text.as_str()),
            _ => None,
        };
        if let Text::Plain(url) = &vault.url {
            let location = parse_vault_url(url, endpoint).map_err(|error| told("vault.url", &error))?;
            if matches!(location, VaultLocation::Azure(_)) && vault.auth.is_none() {
                return Err(sense(
                    "vault.auth is missing: a vault in Azure Blob needs a credential",
                    "for example auth = { kind = \"sas\", token = { env = \"VAULT_SAS\" } }",
                ));
            }
        }
        for recipient in &vault.recipients {
            if let Text::Plain(text) = recipient {
                Recipients::parse(std::slice::from_ref(text)).map_err(|error| told("vault.recipients", &error))?;
            }
        }
        Ok(())
    }

    fn check_tokens(&self) -> Result<(), ConfigError> {
        let store = self.tokens.store();
        if store == TokenStoreKind::Keyring && self.tokens.key.is_some() {
            return Err(sense(
                "tokens.key seals files, and tokens.store is \"keyring\", which holds a key of its own",
                "take the key away, or use store = \"file\"",
            ));
        }
        let person = self.profiles.iter().find(|profile| matches!(profile.credential, CredentialConfig::Delegated {}));
        if let Some(profile) = person
            && store == TokenStoreKind::File
            && self.tokens.key.is_none()
        {
            return Err(sense(
                format!(
                    "profile {}: a person signs in with it, and tokens.key, which seals the sign-in, is missing",
                    profile.name
                ),
                "make one with `openssl rand -base64 32` in a file of mode 0600, and write [tokens] with key = { file = \"PATH\" }",
            ));
        }
        Ok(())
    }

    fn check_environment(&self, environment: &EnvironmentConfig) -> Result<(), ConfigError> {
        let name = &environment.name;
        if !dynavault_vault::is_environment_name(name) {
            return Err(sense(
                format!("environment {name:?}: the name cannot be a folder of the vault"),
                "use at most 63 lower-case letters, digits, '-', '_' and '.', beginning with a letter or digit",
            ));
        }
        check_text_address(&format!("environment {name}: url"), Some(&environment.url))?;
        if environment.profiles.is_empty() {
            return Err(sense(format!("environment {name}: no profile"), "name at least one in `profiles`"));
        }
        for used in environment.profiles.iter().chain(&environment.restore_profile) {
            let Some(profile) = self.profile(used) else {
                let known: Vec<&str> = self.profiles.iter().map(|profile| profile.name.as_str()).collect();
                let remedy = match nearest(used, known.iter().copied()) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known: {}", known.join(", ")),
                };
                return Err(sense(format!("environment {name}: there is no profile {used:?}"), remedy));
            };
            if profile.kind != environment.kind {
                return Err(sense(
                    format!("environment {name}: profile {used:?} is of another kind"),
                    "a ce environment needs ce profiles, a uo environment uo profiles",
                ));
            }
        }
        for glob in environment.include.iter().chain(&environment.exclude) {
            if let Err(error) = Glob::new(glob) {
                return Err(sense(
                    format!("environment {name}: {glob:?} is not a pattern ({error})"),
                    "use *, ? and [a-z]",
                ));
            }
        }
        if environment.max_requests_in_flight == 0 || environment.max_requests_in_flight > 48 {
            return Err(sense(
                format!("environment {name}: max_requests_in_flight must be from 1 to 48"),
                "the service allows 52 requests at the same time per user",
            ));
        }
        Ok(())
    }

    fn check_job(&self, job: &JobConfig) -> Result<(), ConfigError> {
        let name = &job.name;
        self.environment(&job.environment).map_err(|_| {
            sense(format!("job {name}: there is no environment {:?}", job.environment), "name a configured one")
        })?;
        if let Some(fault) = schedule::fault(&job.schedule) {
            return Err(sense(
                format!("job {name}: the schedule {:?} cannot be understood: {fault}", job.schedule),
                "minute hour day month weekday, e.g. \"0 * * * *\"",
            ));
        }
        if jiff::tz::TimeZone::get(&job.timezone).is_err() {
            return Err(sense(
                format!("job {name}: unknown time zone {:?}", job.timezone),
                "use a name such as Europe/Berlin",
            ));
        }
        if let Some(span) = &job.full_every
            && !span.parse::<jiff::Span>().is_ok_and(jiff::Span::is_positive)
        {
            return Err(sense(format!("job {name}: full_every {span:?} is not a span"), "write for example \"30d\""));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, "test.toml")
            .map_err(|error| format!("{error} / {}", dynavault_model::Diagnose::remedy(&error).unwrap_or_default()))
    }

    const VAULT: &str = "[vault]\nurl = \"file:///tmp/v\"\n";

    #[test]
    fn the_example_is_complete_and_parses() {
        let config = parse(super::super::EXAMPLE).unwrap();
        assert!(!config.environments.is_empty() && !config.jobs.is_empty() && !config.profiles.is_empty());
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
        let error = parse(&format!("{VAULT}[limits]\nmemory_mb = 3\n")).unwrap_err();
        assert!(error.contains("line 4") && error.contains("memory_mib"), "{error}");
    }

    #[test]
    fn a_secret_in_the_file_is_refused_without_being_shown() {
        let text = format!(
            "{VAULT}[[profile]]\nname=\"p\"\nkind=\"ce\"\ntenant=\"t\"\nclient_id=\"c\"\ncredential={{kind=\"client-secret\",secret=\"hunter2\"}}\n"
        );
        let error = parse(&text).unwrap_err();
        assert!(error.contains("must not be written") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for (url, ok) in [("http://127.0.0.1:1", true), ("http://localhost:1", true), ("http://contoso.example", false)]
        {
            let text = format!(
                "[vault]\nurl = \"azblob://acct/vault\"\nendpoint = \"{url}\"\nauth = {{ kind = \"managed-identity\" }}\n"
            );
            assert_eq!(parse(&text).is_ok(), ok, "{url}");
        }
    }

    #[test]
    fn a_vault_that_cannot_be_used_is_found_before_it_is_used() {
        let vault = |lines: &str| parse(&format!("[vault]\n{lines}\n"));
        assert!(vault("url=\"azblob://acct/vault\"\nauth={kind=\"azure-cli\"}").is_ok());
        for (lines, said) in [
            ("url=\"file://relative/vault\"", "vault.url: "),
            ("url=\"/var/lib/vault\"", "vault.url: "),
            ("url=\"s3://bucket\"", "neither file nor azblob"),
            ("url=\"azblob://acct/vault\"", "vault.auth is missing"),
            ("url=\"file:///v\"\nendpoint=\"https://x.example\"", "a folder has no endpoint"),
            ("url=\"file:///v\"\nrecipients=[\"age1nobody\"]", "is not an age recipient"),
        ] {
            let error = vault(lines).unwrap_err();
            assert!(error.contains(said) && !error.ends_with("/ "), "{lines}: {error}");
        }
    }

    #[test]
    fn a_job_that_never_could_run_is_refused() {
        let job = |more: &str| {
            parse(&format!(
                "{VAULT}[[profile]]\nname=\"p\"\nkind=\"ce\"\ntenant=\"t\"\nclient_id=\"c\"\ncredential={{kind=\"managed-identity\"}}\n\
                 [[environment]]\nname=\"prod\"\nkind=\"ce\"\nurl=\"https://x.example\"\nprofiles=[\"p\"]\n\
                 [[job]]\nname=\"j\"\nenvironment=\"prod\"\n{more}\n"
            ))
        };
        assert!(job("schedule=\"0 * * * *\"\nfull_every=\"30d\"").is_ok());
        for more in [
            "schedule=\"99 * * * *\"",
            "schedule=\"hourly\"",
            "schedule=\"0 * * * *\"\nfull_every=\"-3d\"",
            "schedule=\"0 * * * *\"\nfull_every=\"0d\"",
            "schedule=\"0 * * * *\"\ntimezone=\"Mars/Base\"",
        ] {
            assert!(job(more).unwrap_err().contains("job j: "), "{more}");
        }
    }

    #[test]
    fn any_string_may_be_written_by_reference() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            format!("{{ file = {:?} }}", path.display().to_string())
        };
        let (name, profile, glob) = (file("name", "prod\n"), file("profile", "app\n"), file("glob", "acc*\n"));
        let (schedule, empty) = (file("schedule", "0 3 * * *\n"), file("empty", " \n"));
        let text = |name: &str| {
            format!(
                "{VAULT}[[profile]]\nname={profile}\nkind=\"ce\"\ntenant=\"t\"\nclient_id=\"c\"\ncredential={{kind=\"managed-identity\"}}\n\
                 [[environment]]\nname={name}\nkind=\"ce\"\nurl=\"https://x.example\"\nprofiles=[{profile}]\ninclude=[{glob}]\n\
                 [[job]]\nname=\"j\"\nenvironment={name}\nschedule={schedule}\n"
            )
        };
        let config = parse(&text(&name)).unwrap();
        let environment = &config.environments[0];
        assert_eq!(environment.name, "prod");
        assert_eq!((&environment.profiles[..], &environment.include[..]), (&["app".into()][..], &["acc*".into()][..]));
        assert_eq!((&config.profiles[0].name, &config.jobs[0].schedule), (&"app".into(), &"0 3 * * *".into()));
        let error = parse(&text("{ env = \"DYNAVAULT_NOT_SET\" }")).unwrap_err();
        assert!(error.contains("line 10: ") && error.contains("DYNAVAULT_NOT_SET is not set"), "{error}");
        let error = parse(&text(&empty)).unwrap_err();
        assert!(error.contains("it is empty"), "{error}");
    }

    #[test]
    fn a_person_signs_in_only_where_the_sign_in_can_be_kept() {
        let text = |tokens: &str| {
            format!(
                "{VAULT}{tokens}[[profile]]\nname=\"me\"\nkind=\"ce\"\ntenant=\"t\"\nclient_id=\"c\"\ncredential={{kind=\"delegated\"}}\n"
            )
        };
        let error = parse(&text("[tokens]\nstore=\"file\"\n")).unwrap_err();
        assert!(error.contains("profile me") && error.contains("[tokens]"), "{error}");
        assert!(parse(&text("[tokens]\nkey={file=\"/k\"}\n")).is_ok());
        assert!(parse(&text("[tokens]\nstore=\"memory\"\n")).is_ok());
        // The keyring holds a key of its own, and is what counts where nothing else is said.
        assert!(parse(&text("")).is_ok() && parse(&text("[tokens]\nstore=\"keyring\"\n")).is_ok());
        let both = parse(&text("[tokens]\nstore=\"keyring\"\nkey={file=\"/k\"}\n")).unwrap_err();
        assert!(both.contains("tokens.store") && both.contains("tokens.key"), "{both}");
        let error = parse(&text("[tokens]\nkey=\"hunter2hunter2\"\n")).unwrap_err();
        assert!(error.contains("must not be written") && !error.contains("hunter2"), "{error}");
        assert!(parse(&text("[tokens]\nkye={file=\"/k\"}\n")).unwrap_err().contains("did you mean `key`"));
    }

    #[test]
    fn every_credential_kind_and_cloud_is_understood() {
        for credential in [
            "kind=\"client-secret\",secret={env=\"S\"}",
            "kind=\"client-certificate\",certificate={file=\"/c.pfx\"},password={env=\"P\"}",
            "kind=\"client-certificate\",certificate={file=\"/c.pem\"}",
            "kind=\"workload-identity\"",
            "kind=\"workload-identity\",token_file=\"/t\"",
            "kind=\"managed-identity\"",
            "kind=\"managed-identity\",client_id=\"c\"",
            "kind=\"azure-cli\"",
            "kind=\"delegated\"",
        ] {
            for cloud in ["public", "usgov", "usgov-dod", "china"] {
                let text = format!(
                    "{VAULT}[tokens]\nkey={{env=\"K\"}}\n[[profile]]\nname=\"p\"\nkind=\"uo\"\ntenant=\"t\"\nclient_id=\"c\"\n\
                     credential={{{credential}}}\ncloud=\"{cloud}\"\n"
                );
                parse(&text).unwrap_or_else(|error| panic!("{credential}, {cloud}: {error}"));
            }
        }
    }

    #[test]
    fn names_that_cannot_be_folders_and_unknown_profiles_are_refused() {
        let environment = |name: &str, profile: &str| {
            format!(
                "{VAULT}[[profile]]\nname=\"main\"\nkind=\"ce\"\ntenant=\"t\"\nclient_id=\"c\"\ncredential={{kind=\"managed-identity\"}}\n\
                 [[environment]]\nname=\"{name}\"\nkind=\"ce\"\nurl=\"https://x.example\"\nprofiles=[\"{profile}\"]\n"
            )
        };
        assert!(parse(&environment("prod", "main")).is_ok());
        for name in ["../x", "Prod", "", "a/b", "a..b"] {
            assert!(parse(&environment(name, "main")).is_err(), "{name}");
        }
        assert!(parse(&environment("prod", "mian")).unwrap_err().contains("main"));
    }
}
