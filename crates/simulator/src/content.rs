//! Bytes of files, images and attachments.
//!
//! A stored file never changes: an upload gives it a new id (dataverse 7.1). So what the first data set holds
//! is computed from the id - bytes, size and name - and takes no memory, while uploads are kept under theirs.
//! Nothing is ever overwritten or taken away here, which is why a refused write needs no undoing.
//!
//! A thumbnail follows from the bytes of its image, so that the same image uploaded again looks the same.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::dice::mix;
use crate::guid::Guid;

/// Largest block the service hands out (dataverse 5.5).
pub(crate) const BLOCK_BYTES_MAX: u64 = 4_194_304;
/// `MaxSizeInKB` of file columns, in bytes.
pub(crate) const FILE_BYTES_MAX: u64 = BLOCK_BYTES_MAX * 8;
/// `MaxSizeInKB` of image columns, in bytes (dataverse 7.2).
pub(crate) const IMAGE_BYTES_MAX: u64 = 30_720 * 1_024;
/// Every image of the data set, and every thumbnail, begins like this.
const PNG: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
/// Images of the data set are longer than this, thumbnails shorter.
const THUMBNAIL_BYTES_MAX: usize = 512;

/// What kind of content an id stands for; sizes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentKind {
    File,
    Image,
    Body,
}

/// Something that was uploaded.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

impl fmt::Debug for Stored {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Stored")
            .field("name", &self.name)
            .field("size", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// Everything uploaded to one environment, by id; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents(Arc<RwLock<HashMap<Guid, Arc<Stored>>>>);

impl Contents {
    /// Keeps an upload under its new id.
    pub(crate) fn keep(&self, id: Guid, stored: Stored) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(stored));
    }

    /// The content an id stands for.
    pub(crate) fn find(&self, id: Guid, kind: ContentKind) -> Content {
        let stored = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).map(Arc::clone);
        Content { id, kind, stored }
    }
}

/// A stored content.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    id: Guid,
    kind: ContentKind,
    stored: Option<Arc<Stored>>,
}

impl Content {
    /// A content of the first data set.
    pub(crate) fn new(id: Guid, kind: ContentKind) -> Self {
        Self { id, kind, stored: None }
    }

    pub(crate) fn id(&self) -> Guid {
        self.id
    }

    /// Whether a client brought it; the rest is made from the id, whatever the id is.
    pub(crate) fn is_upload(&self) -> bool {
        self.stored.is_some()
    }

    /// Length in bytes.
    pub(crate) fn size(&self) -> u64 {
        if let Some(stored) = &self.stored {
            return stored.bytes.len() as u64;
        }
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
    pub(crate) fn is_large(&self) -> bool {
        self.size() > BLOCK_BYTES_MAX
    }

    /// The bytes from `start`, at most `length` of them.
    pub(crate) fn range(&self, start: u64, length: u64) -> Bytes {
        let end = self.size().min(start.saturating_add(length));
        let start = start.min(end);
        if let Some(stored) = &self.stored {
            return stored.bytes.slice(start as usize..end as usize);
        }
        let seed = self.id.fold();
        let mut bytes = Vec::with_capacity((end - start) as usize);
        let mut at = start;
        while at < end {
            let word =
                if at < 8 && self.kind == ContentKind::Image { *PNG } else { mix(seed ^ (at / 8)).to_le_bytes() };
            let from = (at % 8) as usize;
            let take = (8 - from).min((end - at) as usize);
            bytes.extend_from_slice(&word[from..from + take]);
            at += take as u64;
        }
        bytes.into()
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> Bytes {
        self.range(0, u64::MAX)
    }

    /// File name; some need percent-encoding in a header (dataverse 7.1).
    pub(crate) fn name(&self) -> &str {
        const NAMES: [&str; 6] = [
            "contract.pdf",
            "Angebot Müller & Söhne.docx",
            "契約書-2024.pdf",
            "a 'quoted' name; final.txt",
            "photo_0001.jpeg",
            "données – été.xlsx",
        ];
        match &self.stored {
            Some(stored) => &stored.name,
            None => NAMES[(mix(self.id.fold() ^ 1) % NAMES.len() as u64) as usize],
        }
    }

    /// Media type: the one given at upload, else the one that goes with the name.
    pub(crate) fn media_type(&self) -> &str {
        self.stored.as_ref().map_or_else(|| media_type(self.name()), |stored| &stored.media_type)
    }

    /// Whether it may be read in blocks smaller than itself; customer-managed keys forbid it (dataverse 7.1).
    pub(crate) fn is_chunking_supported(&self) -> bool {
        !mix(self.id.fold() ^ 2).is_multiple_of(5) || self.is_large()
    }

    /// Whether the full image was kept (`CanStoreFullImage`); of some old ones only the thumbnail is left (dataverse 7.2).
    pub(crate) fn has_full_image(&self) -> bool {
        self.stored.is_some() || !mix(self.id.fold() ^ 3).is_multiple_of(4)
    }

    /// The thumbnail of an image: 144 by 144 pixels, were they pixels. A thumbnail is its own.
    pub(crate) fn thumbnail(&self) -> Vec<u8> {
        let bytes = self.bytes();
        if bytes.len() < THUMBNAIL_BYTES_MAX && bytes.starts_with(PNG) {
            return bytes.to_vec();
        }
        let seed = bytes.chunks(8).fold(bytes.len() as u64, |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(hash ^ u64::from_le_bytes(word))
        });
        let mut thumbnail = PNG.to_vec();
        for index in 0..32 + mix(seed) % 16 {
            thumbnail.extend_from_slice(&mix(seed ^ index).to_le_bytes());
        }
        thumbnail
    }
}

/// The media type that goes with a file name.
pub(crate) fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("pdf") => "application/pdf",
        Some("txt") => "text/plain",
        Some("jpeg" | "jpg") => "image/jpeg",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    }
}

/// Base64 with padding, as note bodies and blocks are sent.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads base64 with padding.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::{Content, ContentKind, Contents, Stored};
    use crate::dice::Dice;

    #[test]
    fn ranges_make_the_whole() {
        let mut dice = Dice::new(3, 0);
        for _ in 0..20 {
            let content = Content::new(dice.guid(), ContentKind::Image);
            let whole = content.bytes();
            assert_eq!(whole.len() as u64, content.size());
            let cut = dice.below(content.size());
            let mut parts = content.range(0, cut).to_vec();
            parts.extend(content.range(cut, u64::MAX));
            assert_eq!(parts, whole);
        }
    }

    #[test]
    fn an_image_uploaded_again_has_the_same_thumbnail_and_a_thumbnail_is_its_own() {
        let mut dice = Dice::new(4, 0);
        let contents = Contents::default();
        let mut upload = |bytes: bytes::Bytes| {
            let id = dice.guid();
            contents.keep(id, Stored { name: String::new(), media_type: String::new(), bytes });
            contents.find(id, ContentKind::Image)
        };
        let original = Content::new(super::Guid::from_order(7), ContentKind::Image);
        let again = upload(original.bytes());
        assert_eq!(again.thumbnail(), original.thumbnail());
        let small = upload(original.thumbnail().into());
        assert_eq!(small.thumbnail(), original.thumbnail());
    }
}
