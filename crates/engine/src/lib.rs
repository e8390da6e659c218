//! The use cases, and the one place where configuration becomes concrete parts.
//!
//! Everything a command or, later, a daemon does is a function here: back up, list, show, export, verify, rebuild. They
//! take an [`Engine`], which holds the checked configuration and opens the catalog, the vault and the environments as they
//! are needed, and they end in a value or in a [`Failure`], which knows the exit code and what the operator can do.

mod assemble;
mod backup;
mod clock;
mod config;
mod doctor;
mod export;
mod failure;
mod finance;
mod graph;
mod inspect;
mod local_lock;
mod memory;
mod profile;
mod rebuild;
mod report;
mod restore;
mod restore_plan;
mod restore_undo;
mod verify;

pub use assemble::Engine;
pub use backup::{Backup, BackupEnd, BackupRequest};
pub use clock::SystemClock;
pub use config::{
    Config, ConfigError, EXAMPLE, EnvironmentConfig, EnvironmentKind, JobConfig, Loaded, Text, candidates,
};
pub use doctor::{CheckLine, CheckStatus, DoctorReport};
pub use dynavault_catalog::{RunFilter, RunSummary};
pub use dynavault_pipeline::TablePlan;
pub use dynavault_restore::{ConflictPolicy, Counts, Finding, PlanFile, PlanLine};
pub use dynavault_vault::{ContentReference, Damage, Manifest, VerifyOptions, VerifyReport, generate_key, sha256_hex};
pub use export::{Carried, ExportFormat, ExportRequest, ExportStats};
pub use failure::Failure;
pub use inspect::{SnapshotLine, SnapshotWanted};
pub use memory::peak_memory_bytes;
pub use profile::{
    Api, ConsentPage, ConsentRow, CredentialLine, EnvironmentLine, FoundBy, LoginAs, LoginEnd, LoginPrompt,
    LoginRequest, LoginWay, NewProfile, PERMISSIONS, PendingLogin, PermissionLine, PermissionRow, PermissionState,
    PermissionType, ProfileCheck, ProfileLine, Reference, SignInMode, SignedInAs, SignedInLine, TenantInfo,
    add_profile, manifest, permissions_of,
};
pub use rebuild::RebuildStats;
pub use restore::{Restore, RestoreEnd, RestoreStatus};
pub use restore_plan::RestoreRequest;
pub use secrecy::ExposeSecret;

/// Program and version, as manifests name it.
pub const TOOL: &str = concat!("dynavault ", env!("CARGO_PKG_VERSION"));
