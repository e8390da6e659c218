//! Whole runs of the program against the simulated service, compared with what the service had at that moment.
//!
//! - `rounds`: a year in short; every snapshot stays what it was, also without the catalog.
//! - `kill`: the process dies at any moment; the next one goes on, and nothing is lost or counted twice.
//! - `faults`: the service misbehaves in every way it knows; a run ends whole or says what is missing.
//! - `sweeps`: expired tokens, tables without tokens, schema changes, privileges that come and go.
//! - `limits`: close to what the service permits, and hardly ever above it.
//! - `healing`: lost state, damaged segments, another vault: the next run heals and says so.
//! - `restore_whole`, `restore_columns`, `restore_elsewhere`: everything, a part, another environment, the recycle bin; compared
//!   with what the service had, value for value, and taken back.
//! - `restore_again`: a restore leaves nothing for the next one to do.
//! - `encryption`: a host that can write backups and cannot read them.
//! - `restore_faults`: a restore that dies or loses answers ends where an undisturbed one ends.
//! - `restore_limits`: writing close to what the service permits, and hardly ever above it.
//! - `restore_undo`: any restore taken back, also one that was killed, and from the vault alone.
//! - `restore_owners`: rows whose owners cannot own any more.
//! - `restore_plans`: hostile plans, missing privileges, refused rows; what a restore tells of itself.
//!
//! Everything follows from a seed, which a failing test prints.

mod encryption;
mod faults;
mod harness;
mod healing;
mod kill;
mod limits;
mod restore_again;
mod restore_columns;
mod restore_elsewhere;
mod restore_faults;
mod restore_limits;
mod restore_owners;
mod restore_plans;
mod restore_undo;
mod restore_whole;
mod restored;
mod rounds;
mod sweeps;
