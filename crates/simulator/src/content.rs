//! Bytes of files, images and attachments, computed from their id.
//!
//! A stored file never changes: an upload gives it a new id (dataverse 7.1). So its bytes, size and name can
//! be functions of the id, any range of them can be made without the rest, and nothing is kept in memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::dice::mix;
use crate::guid::Guid;

/// Largest block the service hands out (dataverse 5.5).
pub(crate) const BLOCK_BYTES_MAX: u64 = 4_194_304;

/// What kind of content an id stands for; sizes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentKind {
    File,
    Image,
    Body,
}

/// A stored content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content {
    id: Guid,
    kind: ContentKind,
}

impl Content {
    pub(crate) fn new(id: Guid, kind: ContentKind) -> Self {
        Self { id, kind }
    }

    /// Length in bytes.
    pub(crate) fn size(self) -> u64 {
        let hash = mix(self.id.fold());
        let spread = hash >> 16;
        match (self.kind, hash % 1000) {
            // More than one block, and not a multiple of one.
            (ContentKind::File, 0..4) => BLOCK_BYTES_MAX + 1 + spread % BLOCK_BYTES_MAX,
            (ContentKind::File, 4) => BLOCK_BYTES_MAX,
            (ContentKind::File, 5..40) | (ContentKind::Body, 0..20) => 100_000 + spread % 300_000,
            (ContentKind::Image, _) => 2_000 + spread % 20_000,
            _ => 1 + spread % 12_000,
        }
    }

    /// More than one block long.
    pub(crate) fn is_large(self) -> bool {
        self.size() > BLOCK_BYTES_MAX
    }

    /// The bytes from `start`, at most `length` of them.
    pub(crate) fn range(self, start: u64, length: u64) -> Vec<u8> {
        let end = self.size().min(start.saturating_add(length));
        let seed = self.id.fold();
        let mut bytes = Vec::with_capacity(end.saturating_sub(start) as usize);
        let mut at = start;
        while at < end {
            let word = mix(seed ^ (at / 8)).to_le_bytes();
            let from = (at % 8) as usize;
            let take = (8 - from).min((end - at) as usize);
            bytes.extend_from_slice(&word[from..from + take]);
            at += take as u64;
        }
        bytes
    }

    /// All bytes.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.range(0, u64::MAX)
    }

    /// File name; some need percent-encoding in a header (dataverse 7.1).
    pub(crate) fn name(self) -> &'static str {
        const NAMES: [&str; 6] = [
            "contract.pdf",
            "Angebot Müller & Söhne.docx",
            "契約書-2024.pdf",
            "a 'quoted' name; final.txt",
            "photo_0001.jpeg",
            "données – été.xlsx",
        ];
        NAMES[(mix(self.id.fold() ^ 1) % NAMES.len() as u64) as usize]
    }

    /// Media type that goes with the name.
    pub(crate) fn media_type(self) -> &'static str {
        match self.name().rsplit('.').next() {
            Some("pdf") => "application/pdf",
            Some("txt") => "text/plain",
            Some("jpeg") => "image/jpeg",
            _ => "application/octet-stream",
        }
    }

    /// Whether it may be read in blocks smaller than itself; customer-managed keys forbid it (dataverse 7.1).
    pub(crate) fn is_chunking_supported(self) -> bool {
        !mix(self.id.fold() ^ 2).is_multiple_of(5) || self.is_large()
    }
}

/// Whether the full image was kept (`CanStoreFullImage`); otherwise only the thumbnail is left (dataverse 7.2).
pub(crate) fn has_full_image(id: Guid) -> bool {
    !mix(id.fold() ^ 3).is_multiple_of(4)
}

/// Appends the thumbnail of an image in base64, without quotes.
pub(crate) fn write_thumbnail(id: Guid, out: &mut String) {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let seed = id.fold() ^ 4;
    for index in 0..32 + mix(seed) % 16 {
        bytes.extend_from_slice(&mix(seed ^ index).to_le_bytes());
    }
    STANDARD.encode_string(&bytes, out);
}

/// Base64 with padding, as note bodies and blocks are sent.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Content, ContentKind};
    use crate::dice::Dice;

    #[test]
    fn ranges_make_the_whole() {
        let mut dice = Dice::new(3, 0);
        for _ in 0..20 {
            let content = Content::new(dice.guid(), ContentKind::Body);
            let whole = content.bytes();
            assert_eq!(whole.len() as u64, content.size());
            let cut = dice.below(content.size());
            let mut parts = content.range(0, cut);
            parts.extend(content.range(cut, u64::MAX));
            assert_eq!(parts, whole);
        }
    }
}
