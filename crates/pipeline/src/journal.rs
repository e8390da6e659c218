//! Append-only scratch files of a table that is being read: rows seen unchanged, and content still to be fetched.
//!
//! Their length is part of a checkpoint. After a crash a file is cut back to the length the checkpoint knows, so what was
//! appended later is forgotten together with the rows it came from.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dynavault_model::ContentItem;

use crate::state::{StateError, failed};

/// An append-only file.
pub(crate) struct Journal {
    path: PathBuf,
    out: BufWriter<File>,
    bytes: u64,
}

impl Journal {
    /// Opens a journal and cuts it to `bytes`.
    pub(crate) fn open(path: &Path, bytes: u64) -> Result<Self, StateError> {
        let fail = failed(path);
        // Not truncated at opening: the checkpoint says how much of it counts.
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(&fail)?;
        if file.metadata().map_err(&fail)?.len() < bytes {
            return Err(fail(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "it is shorter than its checkpoint says",
            )));
        }
        file.set_len(bytes).map_err(&fail)?;
        file.seek(SeekFrom::End(0)).map_err(&fail)?;
        Ok(Self { path: path.to_path_buf(), out: BufWriter::new(file), bytes })
    }

    pub(crate) fn append(&mut self, record: &[u8]) -> Result<(), StateError> {
        self.bytes += record.len() as u64;
        self.out.write_all(record).map_err(failed(&self.path))
    }

    /// Makes everything appended durable; the length for the checkpoint.
    pub(crate) fn sync(&mut self) -> Result<u64, StateError> {
        self.out.flush().map_err(failed(&self.path))?;
        self.out.get_ref().sync_data().map_err(failed(&self.path))?;
        Ok(self.bytes)
    }
}

/// Calls `each` with every ordinal of a journal of unchanged rows.
pub(crate) fn read_ordinals(path: &Path, bytes: u64, mut each: impl FnMut(u64)) -> Result<(), StateError> {
    if bytes == 0 {
        return Ok(());
    }
    let file = File::open(path).map_err(failed(path))?;
    let mut input = BufReader::new(file.take(bytes));
    let mut ordinal = [0; 8];
    for _ in 0..bytes / 8 {
        input.read_exact(&mut ordinal).map_err(failed(path))?;
        each(u64::from_le_bytes(ordinal));
    }
    Ok(())
}

/// Reads a journal of content items from a byte offset on, a few at a time.
pub(crate) struct ItemReader {
    path: PathBuf,
    input: BufReader<std::io::Take<File>>,
    offset: u64,
}

impl ItemReader {
    pub(crate) fn open(path: &Path, offset: u64, bytes: u64) -> Result<Self, StateError> {
        let mut file = File::open(path).map_err(failed(path))?;
        file.seek(SeekFrom::Start(offset)).map_err(failed(path))?;
        Ok(Self { path: path.to_path_buf(), input: BufReader::new(file.take(bytes.saturating_sub(offset))), offset })
    }

    /// The next item, and the offset after it.
    pub(crate) fn next(&mut self) -> Result<Option<(ContentItem, u64)>, StateError> {
        let mut line = Vec::new();
        let read = self.input.read_until(b'\n', &mut line).map_err(failed(&self.path))?;
        if read == 0 {
            return Ok(None);
        }
        self.offset += read as u64;
        let item = serde_json::from_slice(&line).map_err(|error| failed(&self.path)(error.into()))?;
        Ok(Some((item, self.offset)))
    }
}
