//! Writing rows through the Web API, seen by a client that shares nothing with the simulator.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
#![expect(clippy::disallowed_methods, reason = "answers are small, and this client has no budget to keep")]

mod batch;
mod bulk;
mod client;
mod conditions;
mod effects;
mod environments;
mod faults;
mod refusals;
mod restoring;
