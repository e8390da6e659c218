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

impl Text {
    /// The text itself.
    pub fn resolve(&self, what: &str) -> Result<String, ConfigError> {
        match self {
            Self::Plain(text) => Ok(text.clone()),
            Self::Env(name) => std::env::var(name)
                .map_err(|_| ConfigError::MissingVariable { what: what.to_string(), name: name.clone() }),
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
                Ok(std::fs::read_to_string(path).map_err(failed)?.trim().to_string())
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
