//! Listing files in the byte order of their full names.
//!
//! A folder sorts as its name with `/` behind it: `a-b`, `a/x`, `a0`. Folders that lie wholly before `after` or outside
//! of `prefix` are not read, so that a page costs the folders it touches.

use std::fs;
use std::io;
use std::path::Path;

use crate::folder::io_error;
use crate::{BlobEntry, BlobName, StoreError};

/// Deepest folder that is looked into; names have at most 512 segments.
const DEPTH_MAX: usize = 512;

pub(crate) fn list(
    root: &Path,
    prefix: &str,
    after: Option<&BlobName>,
    limit: usize,
) -> Result<Vec<BlobEntry>, StoreError> {
    let mut listing = Listing { prefix, after: after.map_or("", BlobName::as_str), limit, entries: Vec::new() };
    listing.folder(root, "", 0)?;
    Ok(listing.entries)
}

struct Listing<'a> {
    prefix: &'a str,
    after: &'a str,
    limit: usize,
    entries: Vec<BlobEntry>,
}

impl Listing<'_> {
    /// `place` is the folder's name with `/` behind it; empty for the root.
    fn folder(&mut self, path: &Path, place: &str, depth: usize) -> Result<(), StoreError> {
        if self.limit == 0 || depth > DEPTH_MAX {
            return Ok(());
        }
        for key in self.sorted_keys(path, place)? {
            if self.entries.len() >= self.limit {
                break;
            }
            let below = path.join(key.strip_prefix(place).unwrap_or(&key));
            if key.ends_with('/') {
                self.folder(&below, &key, depth + 1)?;
                continue;
            }
            match fs::symlink_metadata(&below) {
                Ok(found) => {
                    // Anything that cannot be a name is not ours.
                    if let Ok(name) = BlobName::new(key) {
                        self.entries.push(BlobEntry { name, size: found.len() });
                    }
                }
                // Deleted since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error("listing", below.display(), error)),
            }
        }
        Ok(())
    }

    /// Full names of the files and, with `/` behind them, the folders that may belong to the page.
    fn sorted_keys(&self, path: &Path, place: &str) -> Result<Vec<String>, StoreError> {
        let failed = |error| io_error("listing", path.display(), error);
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut keys = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let Ok(own) = entry.file_name().into_string() else { continue };
            if own.starts_with('.') {
                continue;
            }
            let key = format!("{place}{own}{}", if kind.is_dir() { "/" } else { "" });
            let wanted = if kind.is_dir() { self.may_hold(&key) } else { kind.is_file() && self.is_wanted(&key) };
            if wanted {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    fn is_wanted(&self, name: &str) -> bool {
        name.starts_with(self.prefix) && name > self.after
    }

    fn may_hold(&self, folder: &str) -> bool {
        let inside = folder.starts_with(self.prefix) || self.prefix.starts_with(folder);
        inside && (folder > self.after || self.after.starts_with(folder))
    }
}
