//! An honest Dataverse and Entra over real HTTP on loopback, seeded, with limits and faults.
//!
//! The simulator is written from the protocol notes alone and shares no code with the client: two independent
//! readings catch what one misreading would hide. It refuses what the real service refuses, with the same
//! codes; "dataverse 4.5" in a comment is a section of those notes, "entra 1.3" one of theirs.
//!
//! ```text
//! config ─▶ catalogue ─▶ dataset ─▶ database ◀── rows, edits      (what there is, and what changes)
//!                                      │
//! server ─┬▶ entra, limits, faults ─▶ route ─┬▶ read, metadata, files ─▶ print
//!         │                                  └▶ write, links, actions, uploads ─▶ follow ─▶ database
//!         └▶ graph ◀── entra::directory ──▶ entra: authorize, token, consent   (who may what)
//! ```
//!
//! - Everything random follows from a seed, and a fault from a seed and the number of the request.
//! - What the service would print now can be asked for at any time ([`Handle::rows`], [`Handle::files`]).
//! - Rows change through the Web API, and behind its back through [`Handle::edit`] and its relatives.

mod access;
mod actions;
mod answer;
mod big;
mod bin;
mod catalogue;
mod config;
mod content;
mod control;
mod cookie;
mod damage;
mod database;
mod dataset;
mod dice;
mod edits;
mod entra;
mod erp;
mod faults;
mod files;
mod filter;
mod follow;
mod graph;
mod guid;
mod limits;
mod links;
mod metadata;
mod print;
mod query;
mod read;
mod route;
mod rows;
mod schema;
mod server;
mod shared;
mod simulator;
mod stats;
mod uploads;
mod values;
mod write;

pub use config::{Config, FaultKind, Faults, Limits, TableFault};
pub use damage::{Blanked, EditedRow};
pub use edits::{EditSummary, SchemaChange, TableEdits};
pub use entra::certificate::IssuedCertificate;
pub use entra::permission::{Api, Permission, PermissionType};
pub use entra::request::SignInRequest;
pub use entra::script::{AnswerFault, BrowserOutcome, TokenQuirk};
pub use entra::steer::{Entra, PersonInfo};
pub use graph::{GraphQuirk, GraphRequest};
pub use simulator::{Handle, OracleFile, OracleRow, Simulator, TableInfo, TableKind};
pub use stats::Stats;
pub use write::RowWrites;
