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
    /// Bytes passed on.
    decoded: u64,
    malformed: bool,
}

impl Base64Sink {
    pub(crate) fn new(inner: SharedContentSink) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { inner, rest: Vec::new(), decoded: 0, malformed: false }))
    }

    /// Bytes that the text so far stands for, if all of it was base64 and nothing is left over. Text that was cut after a
    /// group of four looks whole: only its length tells.
    pub(crate) fn bytes(&self) -> Option<u64> {
        (!self.malformed && self.rest.is_empty()).then_some(self.decoded)
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
            self.decoded += bytes.len() as u64;
            self.inner.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes)
        } else {
            self.malformed = true;
            Ok(())
        }
    }

    fn restarted(&mut self) {
        self.rest.clear();
        self.decoded = 0;
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
            assert_eq!(sink.lock().unwrap().bytes(), Some(1001));
            assert_eq!(collect.lock().unwrap().0, bytes);
            // Begun again, and cut where nothing shows it.
            sink.lock().unwrap().restarted();
            sink.lock().unwrap().write(&text.as_bytes()[..400]).unwrap();
            assert_eq!(sink.lock().unwrap().bytes(), Some(300));
            assert_eq!(collect.lock().unwrap().0, bytes[..300]);
        }
    }

    #[test]
    fn what_is_not_base64_is_noticed() {
        for text in ["abc", "ab!d", "\"YWJj\""] {
            let sink = Base64Sink::new(Arc::new(Mutex::new(Collect::default())) as SharedContentSink);
            sink.lock().unwrap().write(text.as_bytes()).unwrap();
            assert_eq!(sink.lock().unwrap().bytes(), None, "{text}");
        }
    }
}
