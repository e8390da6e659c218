//! Records in a nameless scratch file: what a plan holds besides ids is on disk, not in memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::RestoreError;

/// Buffer of a file that is written; several tables are read at once, each into its own.
const WRITE_BUFFER_BYTES: usize = 256 << 10;
/// Buffer of a file that is read from end to end.
const READ_BUFFER_BYTES: usize = 1 << 20;

/// Records by offset, in the order they were added. Nothing is left behind, however the process ends.
#[derive(Debug)]
pub(crate) struct Spill {
    folder: PathBuf,
    out: BufWriter<File>,
    length: u64,
}

impl Spill {
    pub(crate) fn new(folder: &Path) -> Result<Self, RestoreError> {
        let file = tempfile::tempfile_in(folder).map_err(|source| failed(folder, source))?;
        Ok(Self { folder: folder.to_path_buf(), out: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file), length: 0 })
    }

    /// Adds a record; gives its offset.
    pub(crate) fn push(&mut self, record: &[u8]) -> Result<u64, RestoreError> {
        let offset = self.length;
        let length = u32::try_from(record.len())
            .map_err(|_| failed(&self.folder, std::io::Error::other("a record is larger than 4 GiB")))?;
        let written = self.out.write_all(&length.to_le_bytes()).and_then(|()| self.out.write_all(record));
        written.map_err(|source| failed(&self.folder, source))?;
        self.length += u64::from(length) + 4;
        Ok(offset)
    }

    /// Adds a value as JSON.
    pub(crate) fn push_json(&mut self, value: &impl serde::Serialize) -> Result<u64, RestoreError> {
        let record = serde_json::to_vec(value).map_err(|error| failed(&self.folder, error.into()))?;
        self.push(&record)
    }

    /// The record at an offset that [`Self::push`] gave.
    pub(crate) fn read(&mut self, offset: u64, record: &mut Vec<u8>) -> Result<(), RestoreError> {
        self.try_read(offset, record).map_err(|source| failed(&self.folder, source))
    }

    fn try_read(&mut self, offset: u64, record: &mut Vec<u8>) -> std::io::Result<()> {
        self.out.flush()?;
        let file = self.out.get_mut();
        file.seek(SeekFrom::Start(offset))?;
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        record.resize(u32::from_le_bytes(length) as usize, 0);
        file.read_exact(record)?;
        file.seek(SeekFrom::End(0)).map(|_| ())
    }

    /// Gives every record in order.
    pub(crate) fn scan(&mut self, mut each: impl FnMut(&[u8]) -> Result<(), RestoreError>) -> Result<(), RestoreError> {
        let folder = self.folder.clone();
        let failed = |source| failed(&folder, source);
        self.out.flush().map_err(failed)?;
        let file = self.out.get_mut();
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, &*file);
        let mut record = Vec::new();
        let mut left = self.length;
        while left > 0 {
            let mut length = [0; 4];
            reader.read_exact(&mut length).map_err(failed)?;
            let length = u32::from_le_bytes(length);
            record.resize(length as usize, 0);
            reader.read_exact(&mut record).map_err(failed)?;
            left -= u64::from(length) + 4;
            each(&record)?;
        }
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(())
    }

    /// Gives every record in order, read back from JSON.
    pub(crate) fn scan_json<T: serde::de::DeserializeOwned>(
        &mut self,
        mut each: impl FnMut(T) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let folder = self.folder.clone();
        self.scan(|record| each(serde_json::from_slice(record).map_err(|error| failed(&folder, error.into()))?))
    }
}

pub(crate) fn failed(path: &Path, source: std::io::Error) -> RestoreError {
    RestoreError::File { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_again_between_writes() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::new(folder.path()).unwrap();
        let first = spill.push(b"one").unwrap();
        let empty = spill.push(b"").unwrap();
        let mut record = Vec::new();
        spill.read(first, &mut record).unwrap();
        assert_eq!(record, b"one");
        let large = spill.push(&vec![7; 600_000]).unwrap();
        spill.read(empty, &mut record).unwrap();
        assert!(record.is_empty());
        spill.read(large, &mut record).unwrap();
        assert_eq!(record.len(), 600_000);
        spill.push(b"last").unwrap();
        let mut lengths = Vec::new();
        spill
            .scan(|record| {
                lengths.push(record.len());
                Ok(())
            })
            .unwrap();
        assert_eq!(lengths, [3, 0, 600_000, 4]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
