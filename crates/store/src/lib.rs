//! Object stores behind one port: Azure Blob, a local folder, memory.
//!
//! [`BlobStore`] knows bytes and names, not rows. Objects are created whole, once, and never changed; the folder and
//! Azure adapters make that true against crashes, lost replies and second writers. The Azure adapter holds the only
//! retry loop towards blobs; the SDK's own is off.

mod azure;
#[doc(hidden)]
pub mod conformance;
mod error;
mod folder;
mod location;
mod memory;
mod name;
mod port;

pub use azure::{AzureAuth, AzureStore, RetryLimits, STORAGE_SCOPE};
pub use error::{Cause, StoreError};
pub use folder::{FolderStore, MissingRoot};
pub use location::{AzureLocation, VaultLocation, parse_vault_url};
pub use memory::MemoryStore;
pub use name::{BlobName, NAME_BYTES_MAX, SEGMENT_BYTES_MAX};
pub use port::{BlobEntry, BlobStore, BlobWriter, LIST_ENTRIES_MAX, LockOwner, READ_BYTES_MAX, StoreLock};
