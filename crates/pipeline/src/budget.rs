//! The memory budget: what a run may hold, divided once, up front.
//!
//! ```text
//! limits.memory_mib = fixed part (runtime, catalog, TLS)               32 MiB
//!                   + tables_in_parallel × ( batch, line and compressed frame   about 3 × frame
//!                                          + largest row, twice while scanned
//!                                          + index of the open segment          segment_rows_max × 32 bytes )
//! ```

use crate::SegmentLimits;

/// What the process needs before the first row: measured at 20 MiB, with room.
const FIXED_BYTES: u64 = 32 << 20;
/// Smallest and largest row that is ever refused: below 1 MiB ordinary memos would be, above 32 MiB one row would fill
/// what a page of the service may hold.
const ROW_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(32 << 20);

/// Tables read at the same time, at most: each keeps up to three threads for blocking work, of which the program has 64. If
/// splitting pages held all of them, writing what was split would wait for ever.
const TABLES_MAX: u64 = 16;

/// What may be held at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Tables read at the same time.
    pub tables_in_parallel: usize,
    /// Largest row held, in bytes.
    pub row_bytes_max: usize,
}

impl MemoryBudget {
    /// Divides `memory_mib`; fewer tables are read at the same time than asked for if they would not fit.
    pub fn divide(memory_mib: u32, tables_in_parallel: usize, segments: &SegmentLimits) -> Self {
        let total = u64::from(memory_mib) << 20;
        let per_table = 3 * dynavault_vault::FRAME_BYTES as u64 + u64::from(segments.rows_max) * 32;
        let room = total.saturating_sub(FIXED_BYTES);
        let fitting = (room / (per_table + 4 * ROW_BYTES.start())).max(1);
        let tables = fitting.min(tables_in_parallel.max(1) as u64).min(TABLES_MAX);
        let per_row = (room / tables).saturating_sub(per_table) / 6;
        Self {
            tables_in_parallel: tables as usize,
            row_bytes_max: per_row.clamp(*ROW_BYTES.start(), *ROW_BYTES.end()) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_budget_reads_fewer_tables_at_a_time_and_never_none() {
        let limits = SegmentLimits::default();
        assert_eq!(MemoryBudget::divide(256, 4, &limits).tables_in_parallel, 4);
        assert_eq!(MemoryBudget::divide(64, 4, &limits).tables_in_parallel, 1);
        assert_eq!(MemoryBudget::divide(1, 4, &limits).tables_in_parallel, 1);
        assert_eq!(MemoryBudget::divide(65_536, 10_000, &limits).tables_in_parallel, TABLES_MAX as usize);
        assert!(MemoryBudget::divide(256, 4, &limits).row_bytes_max >= 4 << 20);
    }
}
