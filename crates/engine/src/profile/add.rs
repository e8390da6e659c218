//! `profile add`: one more `[[profile]]` at the end of the configuration file.
//!
//! The entry is appended as text, so nothing that a person wrote there moves or changes. Before that the whole is read as
//! a configuration; what would not be accepted is not written. Secrets are named by reference and never looked at.

use std::io::Write;
use std::path::Path;

use toml::Value;

use crate::config::{Config, Loaded};
use crate::failure::Failure;
use dynavault_model::FaultKind;

/// A profile to add.
#[derive(Debug, Clone, Default)]
pub struct NewProfile {
    /// Its name.
    pub name: String,
    /// `ce` or `uo`.
    pub kind: String,
    /// Tenant id or domain.
    pub tenant: String,
    /// Application id.
    pub client_id: String,
    /// The credential: `kind` first, then its keys.
    pub credential: Vec<(&'static str, Reference)>,
    /// Cloud, where it is not the public one.
    pub cloud: Option<String>,
    /// Sign-in host, when it is not the cloud's own.
    pub authority: Option<String>,
    /// Microsoft Graph, when it is not the cloud's own.
    pub graph: Option<String>,
}

/// A value of the credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// Written out; never a secret.
    Plain(String),
    /// In an environment variable.
    Env(String),
    /// In a file.
    File(String),
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

impl Reference {
    fn text(&self) -> String {
        match self {
            Self::Plain(text) => quoted(text),
            Self::Env(name) => format!("{{ env = {} }}", quoted(name)),
            Self::File(path) => format!("{{ file = {} }}", quoted(path)),
        }
    }
}

impl NewProfile {
    /// The entry as it stands in the file.
    pub fn text(&self) -> String {
        let credential: Vec<String> =
            self.credential.iter().map(|(key, value)| format!("{key} = {}", value.text())).collect();
        let mut lines = vec![
            "[[profile]]".to_string(),
            format!("name = {}", quoted(&self.name)),
            format!("kind = {}", quoted(&self.kind)),
            format!("tenant = {}", quoted(&self.tenant)),
            format!("client_id = {}", quoted(&self.client_id)),
            format!("credential = {{ {} }}", credential.join(", ")),
        ];
        for (key, value) in [("cloud", &self.cloud), ("authority", &self.authority), ("graph", &self.graph)] {
            lines.extend(value.as_ref().map(|value| format!("{key} = {}", quoted(value))));
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

/// Appends a profile to the configuration file it is given. Refuses a name that is taken.
pub fn add_profile(loaded: &Loaded, profile: &NewProfile) -> Result<(), Failure> {
    if loaded.config.profile(&profile.name).is_some() {
        return Err(Failure::usage(
            format!("there is a profile {:?} already", profile.name),
            format!("choose another name, or sign in again with `dynavault profile reauthorize {}`", profile.name),
        ));
    }
    let path = &loaded.path;
    let before = std::fs::read_to_string(path).map_err(|error| could_not(path, &error))?;
    let separator = if before.is_empty() || before.ends_with('\n') { "\n" } else { "\n\n" };
    let added = format!("{separator}{}", profile.text());
    Config::parse(&format!("{before}{added}"), &path.display().to_string())?;
    // One write at the end: readers see the file without the entry or with all of it.
    let written = std::fs::OpenOptions::new().append(true).open(path).and_then(|mut file| {
        file.write_all(added.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| could_not(path, &error))
}

fn could_not(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        FaultKind::Failed,
        format!("could not add the profile to {}: {error}", path.display()),
        Some("check that the file may be written".into()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# mine\n[vault]\nurl = \"file:///v\"  # here\n\n[[environment]]\nname = \"prod\"\nkind = \"ce\"\n\
                          url = \"https://x.example\"\nprofiles = [\"first\"]\n\n[[profile]]\nname = \"first\"\nkind = \"ce\"\n\
                          tenant = \"t\"\nclient_id = \"c\"\ncredential = { kind = \"managed-identity\" }";

    fn profile(name: &str) -> NewProfile {
        NewProfile {
            name: name.into(),
            kind: "ce".into(),
            tenant: "contoso.com".into(),
            client_id: "11111111-1111-1111-1111-111111111111".into(),
            credential: vec![
                ("kind", Reference::Plain("client-secret".into())),
                ("secret", Reference::File("/secure/\"odd\" name".into())),
            ],
            cloud: Some("usgov".into()),
            ..NewProfile::default()
        }
    }

    fn loaded(folder: &Path) -> Loaded {
        let path = folder.join("dynavault.toml");
        Config::load(Some(&path)).unwrap()
    }

    #[test]
    fn the_entry_comes_after_everything_else_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dynavault.toml");
        std::fs::write(&path, BEFORE).unwrap();
        add_profile(&loaded(folder.path()), &profile("second")).unwrap();
        let after = std::fs::read_to_string(&path).unwrap();
        assert!(after.starts_with(BEFORE) && after.ends_with("cloud = \"usgov\"\n"), "{after}");
        let names: Vec<String> = loaded(folder.path()).config.profiles.into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["first", "second"]);
        let failure = add_profile(&loaded(folder.path()), &profile("second")).unwrap_err();
        assert!(failure.message().contains("already"), "{}", failure.message());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
    }

    #[test]
    fn what_would_not_be_accepted_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dynavault.toml");
        let before = format!("{BEFORE}\n[tokens]\nstore = \"file\"\n");
        std::fs::write(&path, &before).unwrap();
        // Nothing says with what the sign-in of a person would be sealed.
        let person = NewProfile { credential: vec![("kind", Reference::Plain("delegated".into()))], ..profile("me") };
        let failure = add_profile(&loaded(folder.path()), &person).unwrap_err();
        assert!(failure.remedy().unwrap().contains("[tokens]"));
        let unknown = NewProfile { cloud: Some("mars".into()), ..profile("far") };
        assert!(add_profile(&loaded(folder.path()), &unknown).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }
}
