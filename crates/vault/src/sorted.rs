//! Rows in the order of their ids within a memory budget: sorted runs in scratch files, then a merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use dynavault_model::RowId;

use crate::VaultError;

/// Most scratch files merged at once; more are folded into one first.
const RUNS_MAX: usize = 64;
/// Bookkeeping per row in memory, added to its bytes.
const ROW_OVERHEAD_BYTES: usize = 48;

/// Sorts rows by id. Rows must be distinct by id.
pub(crate) struct RowSorter {
    scratch: PathBuf,
    memory_bytes: usize,
    rows: Vec<(RowId, Box<[u8]>)>,
    held: usize,
    runs: Vec<File>,
}

impl RowSorter {
    pub(crate) fn new(scratch: &Path, memory_bytes: usize) -> Self {
        Self { scratch: scratch.to_path_buf(), memory_bytes, rows: Vec::new(), held: 0, runs: Vec::new() }
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> VaultError + use<> {
        let path = self.scratch.display().to_string();
        move |source| VaultError::Scratch { path: path.clone(), source }
    }

    pub(crate) fn push(&mut self, id: RowId, row: &[u8]) -> Result<(), VaultError> {
        self.held += row.len() + ROW_OVERHEAD_BYTES;
        self.rows.push((id, row.into()));
        if self.held >= self.memory_bytes { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), VaultError> {
        self.rows.sort_unstable_by_key(|(id, _)| *id);
        let rows = std::mem::take(&mut self.rows);
        self.held = 0;
        let mut run = self.new_run()?;
        for (id, row) in rows {
            write_record(&mut run, id, &row).map_err(self.failed())?;
        }
        self.end_run(run)?;
        if self.runs.len() >= RUNS_MAX {
            let mut folded = self.new_run()?;
            let failed = self.failed();
            let runs = std::mem::take(&mut self.runs);
            merge_runs(runs, &failed, |id, row| write_record(&mut folded, id, row).map_err(&failed))?;
            self.end_run(folded)?;
        }
        Ok(())
    }

    /// A scratch file without a name: nothing is left behind, however the process ends.
    fn new_run(&self) -> Result<zstd::Encoder<'static, BufWriter<File>>, VaultError> {
        let file = tempfile::tempfile_in(&self.scratch).map_err(self.failed())?;
        zstd::Encoder::new(BufWriter::new(file), 1).map_err(self.failed())
    }

    fn end_run(&mut self, run: zstd::Encoder<'static, BufWriter<File>>) -> Result<(), VaultError> {
        let failed = self.failed();
        let mut file = run.finish().and_then(|out| out.into_inner().map_err(std::io::Error::from)).map_err(&failed)?;
        std::io::Seek::rewind(&mut file).map_err(&failed)?;
        self.runs.push(file);
        Ok(())
    }

    /// Gives the rows in order.
    pub(crate) fn finish(
        mut self,
        mut each: impl FnMut(RowId, &[u8]) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        if self.runs.is_empty() {
            self.rows.sort_unstable_by_key(|(id, _)| *id);
            return self.rows.iter().try_for_each(|(id, row)| each(*id, row));
        }
        if !self.rows.is_empty() {
            self.spill()?;
        }
        let failed = self.failed();
        merge_runs(std::mem::take(&mut self.runs), &failed, each)
    }
}

fn write_record(out: &mut impl Write, id: RowId, row: &[u8]) -> std::io::Result<()> {
    out.write_all(&id.0)?;
    out.write_all(&(row.len() as u32).to_le_bytes())?;
    out.write_all(row)
}

fn read_record(run: &mut impl Read) -> std::io::Result<Option<(RowId, Vec<u8>)>> {
    let mut id = [0; 16];
    match run.read_exact(&mut id[..1]) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    run.read_exact(&mut id[1..])?;
    let mut length = [0; 4];
    run.read_exact(&mut length)?;
    let mut row = vec![0; u32::from_le_bytes(length) as usize];
    run.read_exact(&mut row)?;
    Ok(Some((RowId(id), row)))
}

fn merge_runs(
    runs: Vec<File>,
    failed: &impl Fn(std::io::Error) -> VaultError,
    mut each: impl FnMut(RowId, &[u8]) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let mut readers = runs
        .into_iter()
        .map(|file| zstd::Decoder::new(file).map(BufReader::new))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let mut heap = BinaryHeap::new();
    for (number, reader) in readers.iter_mut().enumerate() {
        if let Some((id, row)) = read_record(reader).map_err(failed)? {
            heap.push(Reverse((id, number, row)));
        }
    }
    while let Some(Reverse((id, number, row))) = heap.pop() {
        each(id, &row)?;
        if let Some((id, row)) = read_record(&mut readers[number]).map_err(failed)? {
            heap.push(Reverse((id, number, row)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_order_however_little_memory_there_is() {
        let folder = tempfile::tempdir().unwrap();
        for memory in [1, 200, 1 << 20] {
            let mut sorter = RowSorter::new(folder.path(), memory);
            for n in 0_u64..300 {
                let id = RowId((u128::from(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)) << 32).to_be_bytes());
                sorter.push(id, format!("row {n}").as_bytes()).unwrap();
            }
            let mut last = None;
            let mut count = 0;
            sorter
                .finish(|id, row| {
                    assert!(last < Some(id) && row.starts_with(b"row "));
                    last = Some(id);
                    count += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(count, 300);
        }
    }
}
