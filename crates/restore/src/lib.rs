//! Restore: plan, apply, undo, prove.
//!
//! ```text
//!  snapshot ──┐
//!  live rows ─┼─▶ planner ─▶ plan file ─▶ apply ─▶ RowTarget        (journal before, outcome after)
//!  rules ─────┘                 │            │
//!                               └─ vault ◀───┘  before-images and outcomes ─▶ undo = another plan
//!                                            └─▶ prove: read back, compare, a reason for every difference
//! ```
//!
//! The plan says everything: each operation carries the values it writes, the values it overwrites and the version of the row
//! it was made for. Applying it adds nothing. The planner reads and never writes; see `docs/design/restore.md`.

mod adjust;
mod apply;
mod batches;
mod below;
mod captured;
mod chains;
mod closes;
mod compare;
mod content;
mod creators;
mod disowned;
mod doubts;
mod draft;
mod emit;
mod error;
mod file;
mod filter;
mod findings;
mod heirs;
mod history;
mod links;
mod live;
mod mapping;
mod mirror;
mod openings;
mod outcomes;
mod owners;
mod parties;
mod pass;
mod pieces;
mod plan;
mod planner;
mod project;
mod prove;
mod readback;
mod related;
mod remake;
mod resolve;
mod revert;
mod select;
mod settle;
mod spill;
mod stage;
mod tables;
mod undo;
mod waves;
mod work;

pub use apply::{ApplyParts, Ops, apply, stream_ops};
pub use batches::BATCH_BYTES_MAX;
pub use error::RestoreError;
pub use file::{PlanFile, PlanWriter};
pub use filter::{BoundFilter, Filter, FilterError};
pub use history::OUTCOME_LOST;
pub use mapping::{MappingFile, TableMapping, Unmatched};
pub use outcomes::{LISTED_MAX, Outcomes, RejectedRow, RestoreReport};
pub use plan::{
    Action, Conflict, ConflictPolicy, ContentOp, Counts, FORMAT, Finding, Gone, Op, PlanEnd, PlanHead, PlanKind,
    PlanLine, Step, TablePlan,
};
pub use planner::{PlanRequest, PlanSummary, PlanTarget, plan};
pub use prove::{Difference, Proof, TableProof};
pub use readback::{ProveParts, prove};
pub use select::Selection;
pub use undo::{UndoParts, plan_undo};
