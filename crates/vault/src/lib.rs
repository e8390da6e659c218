//! The vault: how rows are stored, found, read back and checked. `docs/design/vault-format.md` has every byte.
//!
//! ```text
//!  rows ─▶ SegmentWriter ─▶ frames of column-major JSON ─▶ zstd ─▶ (age) ─▶ store
//!                           sorted index, seek table
//!  manifest LAST: it names every segment; without a manifest there is no snapshot
//!  store ─▶ TableReader ─▶ merge of indexes: newest wins, tombstones remove ─▶ rows
//! ```
//!
//! Everything that waits for the store is either `async` or says that it must run on a blocking thread; compression and
//! encryption are plain blocking code.

mod batch;
mod blob_file;
mod content;
mod crypt;
mod error;
mod index;
mod liveness;
mod manifest;
mod names;
mod reader;
mod restore_record;
mod segment;
mod sorted;
mod table;
mod upload;
mod vault;
mod verify;

pub use batch::{Batch, BatchBuilder, BatchError, NotABatch};
pub use content::{ContentReference, ContentSpool, StoredContent, version_hash};
pub use crypt::{ENCRYPTED_SUFFIX, Identities, KeyError, Recipients, generate_key};
pub use error::VaultError;
pub use index::IndexEntry;
pub use liveness::RowSet;
pub use manifest::{
    Coverage, CutWindow, DeltaToken, FORMAT, Manifest, Previous, RefusedTable, SegmentInfo, SegmentKind, TableManifest,
    VaultDescription,
};
pub use names::{content as content_name, is_environment_name, segment as segment_name};
pub use reader::SegmentReader;
pub use restore_record::RestoreRecord;
pub use segment::{FRAME_BYTES, FinishedSegment, SegmentWriter};
pub use table::TableReader;
pub use upload::sha256_hex;
pub use vault::{PreparedManifest, SnapshotObject, Vault, VaultWriter};
pub use verify::{Damage, Remembered, VerifyOptions, VerifyReport, verify_environment};
