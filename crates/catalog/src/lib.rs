//! SQLite journal of runs, checkpoints, snapshots and delta tokens, behind one writer thread.
