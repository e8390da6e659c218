//! App profiles: signing in, the permission table, and whether everything in it is granted.
//!
//! ```text
//! configuration ─▶ identity ─┬▶ tokens ─▶ environments, vault
//!                            ├▶ login, reauthorize, logout      (a person)
//!                            └▶ check ─▶ evidence ─▶ judge ─▶ report
//! table (ten rows) ──────────────┴──────────▶ consent page
//! ```
//!
//! A profile works for an app by itself or for a signed-in person. What it needs is the [`table`], one row per permission;
//! whether it is there is found out from tokens, from the tenant's grants, and by trying, in that order.

mod add;
mod check;
mod consent;
mod identity;
mod judge;
mod login;
mod report;
mod table;

pub use add::{NewProfile, Reference, add_profile};
pub(crate) use check::sign_in_failed;
pub(crate) use consent::cloud_hint;
pub use consent::{ConsentPage, ConsentRow, ProfileLine, SignedInLine};
pub use identity::SignInMode;
pub(crate) use identity::{authority_of, certificate, graph_root_of};
pub use login::{LoginAs, LoginEnd, LoginPrompt, LoginRequest, LoginWay, PendingLogin};
pub use report::{
    CredentialLine, EnvironmentLine, FoundBy, PermissionLine, PermissionState, ProfileCheck, SignedInAs, TenantInfo,
};
pub use table::{Api, PERMISSIONS, PermissionRow, PermissionType, manifest, permissions_of};
