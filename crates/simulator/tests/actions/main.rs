//! Links, state messages, files, the recycle bin and damage, over real HTTP.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
#![expect(clippy::disallowed_methods, reason = "answers are small, and this client has no budget to keep")]

mod bin;
mod client;
mod damage;
mod files;
mod links;
mod states;
