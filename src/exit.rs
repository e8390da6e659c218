//! Exit codes, documented for scripts. Unknown codes mean failure.

use dynavault_model::{FaultKind, RunStatus};

/// Done.
pub(crate) const DONE: u8 = 0;
/// Failed.
pub(crate) const FAILED: u8 = 1;
/// Usage or configuration.
pub(crate) const USAGE: u8 = 2;
/// Finished with refused rows or tables.
pub(crate) const PARTIAL: u8 = 3;
/// Damage found.
pub(crate) const DAMAGE: u8 = 4;
/// Another run holds the lock.
pub(crate) const BUSY: u8 = 5;
/// Sign-in or permission.
pub(crate) const SIGN_IN: u8 = 6;
/// Interrupted.
pub(crate) const INTERRUPTED: u8 = 130;

/// The code of a failure.
pub(crate) fn of_failure(kind: FaultKind) -> u8 {
    match kind {
        FaultKind::Failed => FAILED,
        FaultKind::Usage => USAGE,
        FaultKind::SignIn => SIGN_IN,
        FaultKind::Busy => BUSY,
        FaultKind::Damage => DAMAGE,
        FaultKind::Cancelled => INTERRUPTED,
    }
}

/// The code of a run that made a snapshot.
pub(crate) fn of_status(status: RunStatus) -> u8 {
    match status {
        RunStatus::Succeeded => DONE,
        RunStatus::Partial => PARTIAL,
        RunStatus::Cancelled => INTERRUPTED,
        RunStatus::Running | RunStatus::Failed | RunStatus::Interrupted => FAILED,
    }
}
