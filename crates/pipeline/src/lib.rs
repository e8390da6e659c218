//! Backup data path: rows from a source into segments, with checkpoints and backpressure.
