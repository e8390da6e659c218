//! The generated table: millions of rows that exist only while they are printed.
//!
//! Row `n` has an id whose order is `n`, so pages need no index. Edits are an overlay of the few rows that
//! were touched; everything else follows from the number. Text comes from a pool made once, so that a row of
//! two kilobytes costs little more than copying it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Bound;
use std::sync::OnceLock;

use crate::catalogue::BIG_TEXTS;
use crate::database::{RowKey, RowView};
use crate::dice::{Dice, mix};
use crate::guid::Guid;
use crate::values::sentence;

const POOL: usize = 256;
/// The number sits above the bits that make ids look random.
const NUMBER_SHIFT: u32 = 80;

/// State of the generated table.
#[derive(Debug)]
pub(crate) struct Big {
    seed: u64,
    /// Numbers from 0 to this exist, but for the deleted.
    rows: u64,
    /// Version of row 0; the rest follow.
    first_version: u64,
    touched: BTreeMap<u64, (u64, u64)>,
    by_version: BTreeMap<u64, u64>,
    gone: BTreeSet<u64>,
    pub(crate) deleted: BTreeMap<u64, RowKey>,
}

impl Big {
    /// Reserves the versions `first_version..first_version + rows`.
    pub(crate) fn new(seed: u64, rows: u64, first_version: u64) -> Self {
        Self {
            seed,
            rows,
            first_version,
            touched: BTreeMap::new(),
            by_version: BTreeMap::new(),
            gone: BTreeSet::new(),
            deleted: BTreeMap::new(),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.rows - self.gone.len() as u64
    }

    fn id(&self, number: u64) -> Guid {
        let hash = mix(number ^ self.seed);
        Guid::from_order((u128::from(number) << NUMBER_SHIFT) | (u128::from(hash) & ((1 << 64) - 1)))
    }

    fn view<'a>(&self, number: u64) -> RowView<'a> {
        let (version, revision) = self.touched.get(&number).copied().unwrap_or((self.first_version + number, 0));
        RowView::Generated { number, version, revision }
    }

    pub(crate) fn get<'a>(&self, id: Guid) -> Option<RowView<'a>> {
        let number = number_of(id);
        (number < self.rows && self.id(number) == id && !self.gone.contains(&number)).then(|| self.view(number))
    }

    pub(crate) fn scan<'a>(&self, from: Bound<Guid>, mut visit: impl FnMut(&RowKey, RowView<'a>) -> bool) {
        let start = match from {
            Bound::Unbounded => 0,
            Bound::Included(id) => number_of(id),
            Bound::Excluded(id) => number_of(id) + 1,
        };
        for number in start..self.rows {
            if !self.gone.contains(&number) && !visit(&self.id(number).into(), self.view(number)) {
                return;
            }
        }
    }

    pub(crate) fn scan_changes<'a>(&self, version: u64, mut visit: impl FnMut(&RowKey, RowView<'a>) -> bool) {
        // Before the first edit the versions are the row numbers themselves.
        if version < self.first_version + self.rows {
            for number in version.saturating_sub(self.first_version.saturating_sub(1))..self.rows {
                if !self.touched.contains_key(&number)
                    && !self.gone.contains(&number)
                    && !visit(&self.id(number).into(), self.view(number))
                {
                    return;
                }
            }
        }
        for number in self.by_version.range((Bound::Excluded(version), Bound::Unbounded)).map(|(_, number)| *number) {
            if !visit(&self.id(number).into(), self.view(number)) {
                return;
            }
        }
    }

    /// Changes a random row; false when there is none to change.
    pub(crate) fn touch(&mut self, dice: &mut Dice, version: u64) -> bool {
        let number = dice.below(self.rows);
        if self.rows == 0 || self.gone.contains(&number) {
            return false;
        }
        let revision = match self.touched.get(&number) {
            Some((old, revision)) => {
                self.by_version.remove(old);
                revision + 1
            }
            None => 1,
        };
        self.touched.insert(number, (version, revision));
        self.by_version.insert(version, number);
        true
    }

    /// Deletes a random row; false when that one was already gone.
    pub(crate) fn delete(&mut self, dice: &mut Dice, version: u64) -> bool {
        let number = dice.below(self.rows);
        if self.rows == 0 || !self.gone.insert(number) {
            return false;
        }
        if let Some((old, _)) = self.touched.remove(&number) {
            self.by_version.remove(&old);
        }
        self.deleted.insert(version, self.id(number).into());
        true
    }

    /// Appends a row at the end.
    pub(crate) fn append(&mut self, version: u64) {
        self.touched.insert(self.rows, (version, 0));
        self.by_version.insert(version, self.rows);
        self.rows += 1;
    }
}

fn number_of(id: Guid) -> u64 {
    (id.order() >> NUMBER_SHIFT) as u64
}

fn pool() -> &'static [String] {
    static TEXTS: OnceLock<Vec<String>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let mut dice = Dice::new(0x0b16, 0);
        (0..POOL).map(|_| format!("\"{}\"", sentence(&mut dice, 115))).collect()
    })
}

/// Appends the raw text of a cell; the order of cells is that of the definition of `new_big`.
pub(crate) fn write_cell(out: &mut String, number: u64, revision: u64, cell: usize) {
    const FIRST_TEXT: usize = 8;
    let hash = mix(number ^ (revision << 40) ^ ((cell as u64) << 56));
    // Writing to a string cannot fail.
    let written = match cell {
        0 => write!(out, "\"Big row {number} revision {revision}\""),
        1 => write!(out, "{}", number & 0x7fff_ffff),
        2 => write!(out, "{}.{:010}", hash >> 44, hash & 0x1_ffff_ffff),
        3 => write!(out, "{}.5", (hash >> 40) & 0xffff),
        4 => write!(out, "{}", 1 + hash % 4),
        5 => write!(out, "{}", hash.is_multiple_of(2)),
        6 => write!(out, "\"20{:02}-{:02}-{:02}\"", hash % 25, 1 + (hash >> 8) % 12, 1 + (hash >> 16) % 28),
        7 => write!(out, "{}", 9_007_199_254_740_993_u64 + (hash >> 12)),
        cell if cell < FIRST_TEXT + BIG_TEXTS => {
            out.push_str(&pool()[hash as usize % POOL]);
            Ok(())
        }
        // Dates of creation and change.
        _ => write!(
            out,
            "\"20{:02}-{:02}-{:02}T{:02}:{:02}:{:02}Z\"",
            15 + hash % 10,
            1 + (hash >> 8) % 12,
            1 + (hash >> 16) % 28,
            (hash >> 24) % 24,
            (hash >> 32) % 60,
            (hash >> 40) % 60
        ),
    };
    debug_assert!(written.is_ok(), "writing to a string");
}
