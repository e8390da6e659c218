//! Decodes base64 text while it streams, so that a note's body of any size costs a few bytes of memory.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dynavault_model::{ContentSink, SharedContentSink, Stopped};

/// A sink for base64 text that passes the bytes on.
pub(crate) struct Base64Sink {
    inner: SharedContentSink,
    /// Text that does not make a whole group of four yet.
    rest: Vec<u8>,
    malformed: bool,
}

impl Base64Sink {
    pub(crate) fn new(inner: SharedContentSink) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { inner, rest: Vec::new(), malformed: false }))
    }

    /// Whether all text so far was base64 and nothing is left over.
    pub(crate) fn is_whole(&self) -> bool {
        !self.malformed && self.rest.is_empty()
    }
}

impl ContentSink for Base64Sink {
    fn write(&mut self, text: &[u8]) -> Result<(), Stopped> {
        // Line breaks are allowed in base64 text of mail; a JSON-like quote around it is not, and fails below.
        self.rest.extend(text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()));
        let whole = self.rest.len() / 4 * 4;
        if whole == 0 || self.malformed {
            return Ok(());
        }
        if let Ok(bytes) = STANDARD.decode(&self.rest[..whole]) {
            self.rest.drain(..whole);
            self.inner.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes)
        } else {
            self.malformed = true;
            Ok(())
        }
    }

    fn restarted(&mut self) {
        self.rest.clear();
        self.malformed = false;
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).restarted();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Collect(Vec<u8>);
    impl ContentSink for Collect {
        fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
        fn restarted(&mut self) {
            self.0.clear();
        }
    }

    #[test]
    fn text_in_any_pieces_decodes_to_the_same_bytes() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1001).collect();
        let text = STANDARD.encode(&bytes);
        for piece in [1, 3, 7, 64, 5000] {
            let collect = Arc::new(Mutex::new(Collect::default()));
            let sink = Base64Sink::new(collect.clone() as SharedContentSink);
            for part in text.as_bytes().chunks(piece) {
                sink.lock().unwrap().write(part).unwrap();
            }
            assert!(sink.lock().unwrap().is_whole());
            assert_eq!(collect.lock().unwrap().0, bytes);
        }
    }

    #[test]
    fn what_is_not_base64_is_noticed() {
        for text in ["abc", "ab!d", "\"YWJj\""] {
            let sink = Base64Sink::new(Arc::new(Mutex::new(Collect::default())) as SharedContentSink);
            sink.lock().unwrap().write(text.as_bytes()).unwrap();
            assert!(!sink.lock().unwrap().is_whole(), "{text}");
        }
    }
}
