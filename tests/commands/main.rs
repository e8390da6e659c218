//! The program as an operator and their scripts meet it: the real binary against the in-process simulator.
//!
//! Each module is about one promise: exit codes, JSON shapes, help, export, failures of the world around, damage, secrets,
//! vaults of released formats, profiles and doctor, and a vault in Azure (when an emulator is named by `DYNAVAULT_AZURITE`).
//!
//! ```text
//! Site (scratch folder, simulator, configuration) ─▶ dynavault ARGS ─▶ Done (exit code, stdout, stderr)
//! ```

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]

mod azure;
mod damage;
mod doctor;
mod exits;
mod export;
mod failures;
mod golden;
mod help;
mod keyring;
mod operator;
mod profile;
mod profile_check;
mod profile_login;
mod profile_site;
mod secrets;
mod shapes;
mod site;
