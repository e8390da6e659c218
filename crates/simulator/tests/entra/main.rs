//! Sign-in, directory and Graph over real HTTP, seen by a client that shares nothing with them.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
#![expect(clippy::disallowed_methods, reason = "answers are small, and this client has no budget to keep")]

mod client;
mod consent;
mod credentials;
mod failures;
mod graph;
mod interactive;
mod refresh;
