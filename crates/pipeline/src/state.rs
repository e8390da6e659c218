//! Local state: sorted files of (row id, row hash) that mirror the indexes of a table's segments.
//!
//! They tell a new row from a changed and an unchanged one, and find the rows that are gone, without reading the vault:
//! a host without keys could not, and a host with keys should not have to. Each durable segment leaves one file; when
//! there are too many they are folded into one. They are a cache: lost files are made again from the vault's indexes, or
//! the next read of the table stores it in full.
//!
//! A record is 24 bytes: id, hash as u64 LE. Hash 0 marks a tombstone; row hashes are never 0.
//!
//! Files are read by position rather than mapped: mapping needs `unsafe`, and a disk error would arrive as a signal.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use dynavault_model::RowId;

/// Hash that marks a tombstone.
pub(crate) const GONE: u64 = 0;
/// Files of a table before they are folded.
pub(crate) const FILES_MAX: usize = 8;
const RECORD_BYTES: usize = 24;
/// Records fetched by one lookup: 4 KiB, one page of the system's cache.
const BLOCK_RECORDS: usize = 170;

/// A failure of local state, with the file it concerns.
#[derive(Debug, thiserror::Error)]
#[error("could not use the state file {path}")]
pub struct StateError {
    pub(crate) path: String,
    #[source]
    pub(crate) source: io::Error,
}

pub(crate) fn failed(path: &Path) -> impl Fn(io::Error) -> StateError + '_ {
    move |source| StateError { path: path.display().to_string(), source }
}

/// Writes one sorted file. Visible under its name only when whole and durable.
pub(crate) struct StateWriter {
    path: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
    entries: u64,
}

impl StateWriter {
    pub(crate) fn create(path: &Path) -> Result<Self, StateError> {
        let partial = path.with_extension("partial");
        let file = File::create(&partial).map_err(failed(&partial))?;
        Ok(Self { path: path.to_path_buf(), partial, out: BufWriter::with_capacity(1 << 16, file), entries: 0 })
    }

    /// Adds a record; ids must come in order.
    pub(crate) fn push(&mut self, id: RowId, hash: u64) -> Result<(), StateError> {
        let written = self.out.write_all(&id.0).and_then(|()| self.out.write_all(&hash.to_le_bytes()));
        self.entries += 1;
        written.map_err(failed(&self.partial))
    }

    pub(crate) fn finish(self) -> Result<u64, StateError> {
        let file = self.out.into_inner().map_err(|error| failed(&self.partial)(error.into()))?;
        file.sync_all().map_err(failed(&self.partial))?;
        std::fs::rename(&self.partial, &self.path).map_err(failed(&self.path))?;
        sync_folder(&self.path)?;
        Ok(self.entries)
    }
}

/// Makes a rename in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), StateError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))
}

/// Writes a whole sorted file.
pub(crate) fn write_file(path: &Path, records: &[(RowId, u64)]) -> Result<u64, StateError> {
    let mut writer = StateWriter::create(path)?;
    for (id, hash) in records {
        writer.push(*id, *hash)?;
    }
    writer.finish()
}

/// A sorted file, open for lookups.
struct SortedFile {
    path: PathBuf,
    file: File,
    records: u64,
    /// First id of every block.
    firsts: Vec<RowId>,
    /// The block read last; rows often come in an order that stays near.
    cached: Mutex<(usize, Vec<u8>)>,
}

impl SortedFile {
    fn open(path: &Path) -> Result<Self, StateError> {
        let file = File::open(path).map_err(failed(path))?;
        let bytes = file.metadata().map_err(failed(path))?.len();
        if bytes % RECORD_BYTES as u64 != 0 {
            return Err(failed(path)(io::Error::new(io::ErrorKind::InvalidData, "it is cut inside a record")));
        }
        let records = bytes / RECORD_BYTES as u64;
        let mut firsts = Vec::with_capacity(records as usize / BLOCK_RECORDS + 1);
        let mut at = 0;
        while at < records {
            let mut id = [0; 16];
            file.read_exact_at(&mut id, at * RECORD_BYTES as u64).map_err(failed(path))?;
            firsts.push(RowId(id));
            at += BLOCK_RECORDS as u64;
        }
        Ok(Self { path: path.to_path_buf(), file, records, firsts, cached: Mutex::new((usize::MAX, Vec::new())) })
    }

    /// Ordinal and hash of an id.
    fn find(&self, id: RowId) -> Result<Option<(u64, u64)>, StateError> {
        let block = match self.firsts.partition_point(|first| *first <= id) {
            0 => return Ok(None),
            after => after - 1,
        };
        let first = block * BLOCK_RECORDS;
        let count = BLOCK_RECORDS.min(self.records as usize - first);
        let mut cached = self.cached.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if cached.0 != block {
            cached.1.resize(count * RECORD_BYTES, 0);
            cached.0 = usize::MAX;
            self.file.read_exact_at(&mut cached.1, (first * RECORD_BYTES) as u64).map_err(failed(&self.path))?;
            cached.0 = block;
        }
        let bytes = &cached.1;
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = usize::midpoint(low, high);
            let record = &bytes[middle * RECORD_BYTES..(middle + 1) * RECORD_BYTES];
            match record[..16].cmp(&id.0) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    return Ok(Some(((first + middle) as u64, hash_of(record))));
                }
            }
        }
        Ok(None)
    }
}

fn hash_of(record: &[u8]) -> u64 {
    let mut hash = [0; 8];
    hash.copy_from_slice(&record[16..24]);
    u64::from_le_bytes(hash)
}

/// The state of a table: files, oldest first. The newest file that names an id decides.
pub(crate) struct State {
    files: Vec<SortedFile>,
}

impl State {
    /// Opens files, oldest first.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self, StateError> {
        Ok(Self { files: paths.iter().map(|path| SortedFile::open(path)).collect::<Result<_, _>>()? })
    }

    pub(crate) fn add(&mut self, path: &Path) -> Result<(), StateError> {
        self.files.push(SortedFile::open(path)?);
        Ok(())
    }

    /// The hash of a live row; `None` if it is not there or gone.
    pub(crate) fn hash(&self, id: RowId) -> Result<Option<u64>, StateError> {
        Ok(self.find(id)?.map(|(_, hash)| hash).filter(|hash| *hash != GONE))
    }

    /// What the newest file that names the id says, with the ordinal there.
    pub(crate) fn find(&self, id: RowId) -> Result<Option<(u64, u64)>, StateError> {
        for file in self.files.iter().rev() {
            if let Some(found) = file.find(id)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Records of the only file, for a sweep's bitmap.
    pub(crate) fn records(&self) -> u64 {
        self.files.iter().map(|file| file.records).sum()
    }
}

struct RecordReader {
    path: PathBuf,
    input: BufReader<File>,
}

impl RecordReader {
    fn open(path: &Path) -> Result<Self, StateError> {
        let file = File::open(path).map_err(failed(path))?;
        Ok(Self { path: path.to_path_buf(), input: BufReader::with_capacity(1 << 15, file) })
    }

    fn next(&mut self) -> Result<Option<(RowId, u64)>, StateError> {
        let mut record = [0; RECORD_BYTES];
        match self.input.read_exact(&mut record) {
            Ok(()) => {
                let mut id = [0; 16];
                id.copy_from_slice(&record[..16]);
                Ok(Some((RowId(id), hash_of(&record))))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(failed(&self.path)(error)),
        }
    }
}

/// Calls `each` with the newest record of every id, tombstones included, in order of ids.
pub(crate) fn merge(
    paths: &[PathBuf],
    mut each: impl FnMut(RowId, u64) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let mut readers = paths.iter().map(|path| RecordReader::open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut heap = BinaryHeap::with_capacity(readers.len());
    for (number, reader) in readers.iter_mut().enumerate() {
        if let Some((id, hash)) = reader.next()? {
            heap.push(Reverse((id, Reverse(number), hash)));
        }
    }
    let mut decided = None;
    while let Some(Reverse((id, Reverse(number), hash))) = heap.pop() {
        if let Some((next, hash)) = readers[number].next()? {
            heap.push(Reverse((next, Reverse(number), hash)));
        }
        if decided != Some(id) {
            decided = Some(id);
            each(id, hash)?;
        }
    }
    Ok(())
}

/// Folds files into one of live rows; gives its records.
pub(crate) fn fold(paths: &[PathBuf], into: &Path) -> Result<u64, StateError> {
    let mut writer = StateWriter::create(into)?;
    merge(paths, |id, hash| if hash == GONE { Ok(()) } else { writer.push(id, hash) })?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> RowId {
        RowId(u128::from(n).wrapping_mul(0x0123_4567_89ab_cdef_0011_2233_4455_6677).to_be_bytes())
    }

    fn write(folder: &Path, name: &str, records: impl IntoIterator<Item = (u32, u64)>) -> PathBuf {
        let mut records: Vec<(RowId, u64)> = records.into_iter().map(|(n, hash)| (id(n), hash)).collect();
        records.sort_unstable();
        let path = folder.join(name);
        write_file(&path, &records).unwrap();
        path
    }

    #[test]
    fn the_newest_file_decides_and_tombstones_hide() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [
            write(folder.path(), "1", (0..1000).map(|n| (n, 1))),
            write(folder.path(), "2", [(5, 2), (6, GONE), (2000, 7)]),
        ];
        let state = State::open(&paths).unwrap();
        assert_eq!(state.hash(id(4)).unwrap(), Some(1));
        assert_eq!(state.hash(id(5)).unwrap(), Some(2));
        assert_eq!(state.hash(id(6)).unwrap(), None);
        assert_eq!(state.hash(id(1500)).unwrap(), None);
        assert_eq!(state.hash(id(2000)).unwrap(), Some(7));
        let one = folder.path().join("folded");
        assert_eq!(fold(&paths, &one).unwrap(), 1000);
        let state = State::open(&[one]).unwrap();
        assert_eq!((state.hash(id(5)).unwrap(), state.hash(id(6)).unwrap()), (Some(2), None));
        assert_eq!(state.records(), 1000);
    }

    #[test]
    fn a_file_cut_inside_a_record_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "1", [(1, 1), (2, 2)]);
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..30]).unwrap();
        assert!(State::open(&[path]).is_err());
    }
}
