//! Strings of the configuration: written out, or by reference to the environment or a file.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::ConfigError;
use dynavault_identity::{CERTIFICATE_BYTES_MAX, SecretString};
use secrecy::SecretSlice;

/// Largest file a value is read from.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A string, or where to find it: `"text"`, `{ env = "NAME" }` or `{ file = "PATH" }`.
#[derive(Clone, PartialEq, Eq)]
pub enum Text {
    /// Written out.
    Plain(String),
    /// In an environment variable.
    Env(String),
    /// In a file; white space around it does not count.
    File(PathBuf),
}

/// Reads a string that is needed as soon as the file is read (names, patterns, schedules), written out or by reference.
pub(super) fn now<'de, D: Deserializer<'de>, T: From<String>>(deserializer: D) -> Result<T, D::Error> {
    let text = Text::deserialize(deserializer)?;
    let read = text.resolve("a value by reference");
    read.map(T::from).map_err(|error| de::Error::custom(dynavault_model::chain(&error)))
}

/// What [`now`] reads, in lists and where it may be left out.
struct Now<T>(T);

impl<'de, T: From<String>> Deserialize<'de> for Now<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        now(deserializer).map(Self)
    }
}

/// [`now`], where it may be left out.
pub(super) fn now_if_any<'de, D: Deserializer<'de>, T: From<String>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Now<T>>::deserialize(deserializer)?.map(|now| now.0))
}

/// [`now`], for a list.
pub(super) fn all_now<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Vec::<Now<String>>::deserialize(deserializer)?.into_iter().map(|now| now.0).collect())
}

impl Text {
    /// The text itself.
    pub fn resolve(&self, what: &str) -> Result<String, ConfigError> {
        match self {
            Self::Plain(text) => Ok(text.clone()),
            Self::Env(name) => match std::env::var(name) {
                // A line end is what `echo` leaves behind, in a variable as in a file.
                Ok(text) if !text.trim().is_empty() => Ok(text.trim_end_matches(['\r', '\n']).to_string()),
                _ => Err(ConfigError::MissingVariable { what: what.to_string(), name: name.clone() }),
            },
            Self::File(path) => {
                let failed = |source| ConfigError::MissingFile {
                    what: what.to_string(),
                    path: path.display().to_string(),
                    source,
                };
                let size = std::fs::metadata(path).map_err(failed)?.len();
                if size > FILE_BYTES_MAX {
                    return Err(failed(std::io::Error::other("it is too large for a value")));
                }
                match std::fs::read_to_string(path).map_err(failed)?.trim() {
                    "" => Err(failed(std::io::Error::other("it is empty"))),
                    text => Ok(text.to_string()),
                }
            }
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => write!(f, "{text:?}"),
            Self::Env(name) => write!(f, "{{ env = {name:?} }}"),
            Self::File(path) => write!(f, "{{ file = {path:?} }}"),
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_string())
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, { env = \"NAME\" } or { file = \"PATH\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text::Plain(text.to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
        let text = match map.next_key::<String>()?.as_deref() {
            Some("env") => Text::Env(map.next_value()?),
            Some("file") => Text::File(map.next_value()?),
            Some(other) => return Err(de::Error::unknown_field(other, &["env", "file"])),
            None => {
                return Err(de::Error::custom("an empty reference; write { env = \"NAME\" } or { file = \"PATH\" }"));
            }
        };
        match map.next_key::<String>()? {
            None => Ok(text),
            Some(_) => Err(de::Error::custom("a reference has one key: env or file")),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

/// A secret: by reference only, never written out in the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Text);

impl Secret {
    /// The secret itself.
    pub fn resolve(&self, what: &str) -> Result<SecretString, ConfigError> {
        self.0.resolve(what).map(SecretString::from)
    }

    /// The bytes of a certificate file, which need not be text.
    pub fn resolve_bytes(&self, what: &str) -> Result<SecretSlice<u8>, ConfigError> {
        let Text::File(path) = &self.0 else {
            return self.0.resolve(what).map(|text| SecretSlice::from(text.into_bytes()));
        };
        let failed =
            |source| ConfigError::MissingFile { what: what.to_string(), path: path.display().to_string(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > CERTIFICATE_BYTES_MAX as u64 {
            return Err(failed(std::io::Error::other("it is too large for a certificate")));
        }
        std::fs::read(path).map(SecretSlice::from).map_err(failed)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Text::deserialize(deserializer)? {
            // The value is not repeated: it is a secret that should not have been there.
            Text::Plain(_) => Err(de::Error::custom(
                "a secret must not be written in the file; use { env = \"NAME\" } or { file = \"PATH\" }",
            )),
            reference => Ok(Self(reference)),
        }
    }
}
