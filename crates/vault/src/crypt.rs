//! The age layer: who can read what is written, and with which keys we read.
//!
//! Writing needs public keys only, so a host that captures cannot read older backups. The `age` format is a stream of
//! 64 KiB chunks and stays seekable, so one row of an encrypted segment costs a small ranged read.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::str::FromStr;

use age::x25519;
use dynavault_model::{Diagnose, FaultKind};
use secrecy::{ExposeSecret, SecretString};

/// Suffix of encrypted objects.
pub const ENCRYPTED_SUFFIX: &str = ".age";
/// Most recipients of a vault; each adds a stanza to the header of every object.
const RECIPIENTS_MAX: usize = 32;
/// Largest identity file.
const IDENTITY_FILE_BYTES_MAX: u64 = 64 * 1024;

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not an age X25519 public key.
    #[error("{text:?} is not an age recipient")]
    NotARecipient {
        /// The text; public keys are no secret.
        text: String,
    },
    /// Too many recipients.
    #[error("a vault has at most {RECIPIENTS_MAX} recipients")]
    TooManyRecipients,
    /// The identity file cannot be read.
    #[error("could not read the identity file {path}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The identity file holds no usable key.
    #[error("the identity file {path} holds no age secret key that can be used (line {line})")]
    NotAnIdentity {
        /// The file.
        path: String,
        /// The first line that is neither a key nor a comment; 0 if there is no key at all.
        line: usize,
    },
}

impl Diagnose for KeyError {
    fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NotARecipient { .. } => {
                "recipients begin with age1; make a pair with `dynavault key generate`".to_string()
            }
            Self::TooManyRecipients => "encrypt to one shared recovery key instead".to_string(),
            Self::Read { .. } | Self::NotAnIdentity { .. } => {
                "set vault.identity_file to a file with a line that begins with AGE-SECRET-KEY-1".to_string()
            }
        })
    }

    fn kind(&self) -> FaultKind {
        FaultKind::Usage
    }
}

/// Public keys to encrypt to. Empty means plain objects.
#[derive(Clone, Default)]
pub struct Recipients(Vec<x25519::Recipient>);

impl Recipients {
    /// Reads recipients of the form `age1…`.
    pub fn parse(texts: &[String]) -> Result<Self, KeyError> {
        if texts.len() > RECIPIENTS_MAX {
            return Err(KeyError::TooManyRecipients);
        }
        let keys = texts.iter().map(|text| {
            x25519::Recipient::from_str(text)
                .map_err(|_| KeyError::NotARecipient { text: text.chars().take(80).collect() })
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// Whether objects are written in plain.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public keys as text.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Wraps `output` in the age layer; `None` when objects are plain.
    pub(crate) fn wrap<W: Write>(&self, output: W) -> std::io::Result<Layer<W>> {
        if self.0.is_empty() {
            return Ok(Layer::Plain(output));
        }
        let keys = self.0.iter().map(|key| key as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(keys).map_err(std::io::Error::other)?;
        encryptor.wrap_output(output).map(|writer| Layer::Age(Box::new(writer)))
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.texts()).finish()
    }
}

/// An output with or without encryption.
pub(crate) enum Layer<W: Write> {
    Plain(W),
    Age(Box<age::stream::StreamWriter<W>>),
}

impl<W: Write> Layer<W> {
    /// Ends the encryption, if there is one, and gives the output back.
    pub(crate) fn finish(self) -> std::io::Result<W> {
        match self {
            Self::Plain(output) => Ok(output),
            Self::Age(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Layer<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Age(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Age(writer) => writer.flush(),
        }
    }
}

/// Secret keys to read with.
#[derive(Clone, Default)]
pub struct Identities(Vec<x25519::Identity>);

impl Identities {
    /// Reads a file with one `AGE-SECRET-KEY-1…` a line; comments begin with `#`.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let shown = path.display().to_string();
        let read = |source| KeyError::Read { path: shown.clone(), source };
        let mut text = String::new();
        std::fs::File::open(path)
            .map_err(read)?
            .take(IDENTITY_FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(read)?;
        let text = SecretString::from(text);
        let mut keys = Vec::new();
        for (number, line) in text.expose_secret().lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = x25519::Identity::from_str(line)
                .map_err(|_| KeyError::NotAnIdentity { path: shown.clone(), line: number + 1 })?;
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(KeyError::NotAnIdentity { path: shown, line: 0 });
        }
        Ok(Self(keys))
    }

    /// Whether there is no key to read with.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Opens an encrypted object; `None` if none of the keys fits or the header is damaged.
    pub(crate) fn open<R: Read>(&self, input: R) -> Option<age::stream::StreamReader<R>> {
        let decryptor = age::Decryptor::new(input).ok()?;
        let keys = self.0.iter().map(|key| key as &dyn age::Identity);
        decryptor.decrypt(keys).ok()
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} identities", self.0.len())
    }
}

/// A new key pair: the secret key as the text of an identity file, and the recipient.
pub fn generate_key() -> (SecretString, String) {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    (identity.to_string(), recipient)
}

/// Decrypts or copies a whole small object.
pub(crate) fn read_small(bytes: &[u8], encrypted: bool, identities: &Identities, limit: u64) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    if encrypted {
        identities.open(bytes)?.take(limit).read_to_end(&mut out).ok()?;
    } else {
        bytes.take(limit).read_to_end(&mut out).ok()?;
    }
    Some(out)
}

/// Encrypts or copies a whole small object.
pub(crate) fn write_small(bytes: &[u8], recipients: &Recipients) -> std::io::Result<Vec<u8>> {
    let mut layer = recipients.wrap(Vec::with_capacity(bytes.len() + 512))?;
    layer.write_all(bytes)?;
    layer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_a_recipient_is_read_with_its_identity_only() {
        let (secret, recipient) = generate_key();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, format!("# comment\n{}\n", secret.expose_secret())).unwrap();
        let identities = Identities::from_file(&file).unwrap();
        let recipients = Recipients::parse(&[recipient]).unwrap();
        let stored = write_small(b"rows", &recipients).unwrap();
        assert!(!stored.windows(4).any(|window| window == b"rows"));
        assert_eq!(read_small(&stored, true, &identities, 100).unwrap(), b"rows");
        std::fs::write(&file, generate_key().0.expose_secret()).unwrap();
        assert!(read_small(&stored, true, &Identities::from_file(&file).unwrap(), 100).is_none());
    }

    #[test]
    fn bad_keys_are_named_without_being_shown() {
        assert!(Recipients::parse(&["age1nonsense".into()]).is_err());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "AGE-SECRET-KEY-1WRONG\n").unwrap();
        let error = Identities::from_file(&file).unwrap_err();
        assert!(!error.to_string().contains("WRONG"), "{error}");
    }
}
