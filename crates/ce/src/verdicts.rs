//! What the service's answer to one write means for that row (`dataverse`, sections 6.13, 6.15, 6.16, 9.3).
//!
//! What a code means is [`dynavault_odata`]'s table; what that means for a row depends on what was tried: an id that is taken
//! is a conflict for a new row and success for a link. A refusal that is in no list refuses the row with the service's own
//! words and is never tried again in another form.

use dynavault_model::{Rejection, RejectionClass, RowKey, SourceError, TableRef, WriteKind, WriteOutcome};
use dynavault_odata::fault::privilege;
use dynavault_odata::{Refusal, RefusalClass, RequestError};

/// The row is in the state already, or cannot be closed because it is (section 6.5).
const IN_STATE_ALREADY: [u32; 2] = [0x8004_051a, 0x8004_0516];
/// The signed-in user has no licence or is not in the environment; in a write on behalf of another user, that one is meant
/// (section 9.3). That a user is disabled (0x8004a112) is said of owners too: our own would not have come this far.
const NOT_LET_IN: [u32; 2] = [0x8004_d24b, 0x8007_2560];
/// Privileges that bypassing custom logic takes (section 6.10).
const BYPASSES: [&str; 2] = ["prvBypassCustomPlugins", "prvBypassCustomBusinessLogic"];
/// A privilege is missing (section 6.16).
const PRIVILEGES: [u32; 2] = [0x8004_0220, 0x8004_0299];
/// Restoring from the bin: a row with the id exists, under the two codes that Microsoft's page gives (section 6.15). Every other
/// refusal ends in making the row, also that a row it refers to is missing: two deleted rows may refer to each other.
const BIN_DUPLICATE: [u32; 2] = [0x8004_9939, 0x8004_4a02];

/// A refusal as the service gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) code: Option<u32>,
    pub(crate) printed_code: String,
    pub(crate) message: String,
    pub(crate) class: RefusalClass,
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        Self {
            status: refusal.status,
            code: refusal.code,
            printed_code: refusal.printed_code.clone(),
            message: refusal.message.clone(),
            class: refusal.class(),
        }
    }
}

/// What a write was, as far as its refusal is concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tried<'a> {
    pub(crate) kind: WriteKind,
    /// The row is a link.
    pub(crate) link: bool,
    pub(crate) key: &'a RowKey,
    /// Written on behalf of another user.
    pub(crate) on_behalf: bool,
}

/// What to do about a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The row's outcome.
    Row(WriteOutcome),
    /// The row may be in the state already; it has to be read.
    LookAtState,
    /// The bin does not give the row back; it can be made.
    Make,
    /// The table compares no entity tags, whatever its metadata says; the comparison is ours to make.
    Untagged,
    /// No write of this run can succeed.
    Stop,
}

/// Decides about one row.
pub(crate) fn verdict(tried: Tried<'_>, refused: &Refused) -> Verdict {
    let (kind, code) = (tried.kind, refused.code.unwrap_or(0));
    if stops(refused, tried.on_behalf) {
        return Verdict::Stop;
    }
    let conflict = || WriteOutcome::Conflict { message: refused.message.clone() };
    let rejected = |class| WriteOutcome::Rejected(rejection(refused, class));
    let outcome = match (kind, refused.class) {
        // It stayed so until the budget of pauses was spent; nothing was done.
        (_, RefusalClass::Throttled) => WriteOutcome::NotSent,
        (WriteKind::Undelete, _) if BIN_DUPLICATE.contains(&code) => conflict(),
        (WriteKind::Undelete, _) => return Verdict::Make,
        // The row may be in the state already, or another write may have brought it to where no such step leads on.
        (WriteKind::State, RefusalClass::State | RefusalClass::Closed | RefusalClass::AlreadySo) => {
            return Verdict::LookAtState;
        }
        (WriteKind::State, _) if IN_STATE_ALREADY.contains(&code) => return Verdict::LookAtState,
        (WriteKind::Update | WriteKind::Delete, RefusalClass::NoEntityTags) => return Verdict::Untagged,
        (WriteKind::Create, RefusalClass::AlreadySo) | (WriteKind::Delete, RefusalClass::Missing) => {
            WriteOutcome::Unchanged
        }
        (WriteKind::Create, RefusalClass::Duplicate) if tried.link => WriteOutcome::Unchanged,
        (WriteKind::Create, RefusalClass::Duplicate) | (_, RefusalClass::Conflict) => conflict(),
        // The same code says that the row itself is gone or a row it refers to; the text names the row.
        (WriteKind::Update | WriteKind::State | WriteKind::Parties, RefusalClass::Missing)
            if is_about(tried.key, refused) =>
        {
            conflict()
        }
        (_, RefusalClass::Missing) => rejected(RejectionClass::MissingReference),
        (_, RefusalClass::Owner) => rejected(RejectionClass::Owner),
        (_, RefusalClass::Closed) => rejected(RejectionClass::Closed),
        (_, RefusalClass::Table) => rejected(RejectionClass::Table),
        _ => rejected(RejectionClass::Row),
    };
    Verdict::Row(outcome)
}

/// Whether no write of this run can succeed.
fn stops(refused: &Refused, on_behalf: bool) -> bool {
    if lacks_bypass(refused).is_some() {
        return true;
    }
    let not_let_in = refused.code.is_some_and(|code| NOT_LET_IN.contains(&code));
    if not_let_in { !on_behalf } else { refused.class == RefusalClass::Environment }
}

/// The privilege that is missing where custom logic may not be bypassed: every write of the run says the same (section 6.10).
fn lacks_bypass(refused: &Refused) -> Option<&str> {
    let name = privilege(&refused.message).filter(|_| refused.class == RefusalClass::Table)?;
    BYPASSES.contains(&name).then_some(name)
}

/// Whether a refusal of a missing privilege is about `principal`, and not about who writes: a new owner has to be able to read
/// the table (section 6.7).
pub(crate) fn is_about_principal(refused: &Refused, principal: &str) -> bool {
    refused.code.is_some_and(|code| PRIVILEGES.contains(&code))
        && refused.message.to_ascii_lowercase().contains(&principal.to_ascii_lowercase())
}

/// Whether a refusal of a whole bulk message concerns every row of it, so that taking it apart would change nothing.
pub(crate) fn is_of_every_row(refused: &Refused) -> bool {
    matches!(refused.class, RefusalClass::Table | RefusalClass::Environment | RefusalClass::OnBehalf)
}

/// The refusal as a person reads it.
pub(crate) fn rejection(refused: &Refused, class: RejectionClass) -> Rejection {
    Rejection { code: refused.printed_code.clone(), message: refused.message.clone(), class }
}

/// Why the run stops, in the words of the reading side.
pub(crate) fn stopped(table: &TableRef, refused: Refused) -> SourceError {
    if let Some(name) = lacks_bypass(&refused) {
        let remedy =
            format!("give the user who restores the privilege {name}, or let custom logic run with --run-automation");
        let reason = format!("the environment does not let custom logic be bypassed: {}", refused.message);
        return SourceError::StopRun { reason, remedy: Some(remedy) };
    }
    let Refused { status, code, message, .. } = refused;
    let error = RequestError::Service { status, code, message, request_id: None };
    if code.is_some() { crate::refusals::of_run(error) } else { crate::refusals::of_table(table, error, false) }
}

fn is_about(key: &RowKey, refused: &Refused) -> bool {
    // A missing row may be said with the status alone, a missing reference never.
    refused.code.is_none_or(|code| code < 0x8000_0000)
        || refused.message.to_ascii_lowercase().contains(&key.id.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use dynavault_odata::ErrorBody;
    use dynavault_odata::refusal::classify;

    use super::*;

    const ID: &str = "0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f";

    fn refused(status: u16, code: u32, message: &str) -> Refused {
        let code = (code != 0).then_some(code);
        let class = classify(status, &ErrorBody { code, message: message.into() });
        Refused { status, code, printed_code: String::new(), message: message.into(), class }
    }

    fn of(kind: WriteKind, link: bool, refusal: &Refused) -> Verdict {
        verdict(Tried { kind, link, key: &RowKey::new(ID), on_behalf: false }, refusal)
    }

    fn class(verdict: &Verdict) -> Option<RejectionClass> {
        match verdict {
            Verdict::Row(WriteOutcome::Rejected(rejection)) => Some(rejection.class),
            _ => None,
        }
    }

    fn is_conflict(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Row(WriteOutcome::Conflict { .. }))
    }

    #[test]
    fn a_row_that_exists_is_a_conflict_and_a_link_that_exists_is_done() {
        for refusal in [
            refused(412, 0, "A record with matching key values already exists."),
            refused(400, 0x8004_0237, "Cannot insert duplicate key."),
        ] {
            assert!(is_conflict(&of(WriteKind::Create, false, &refusal)));
            assert_eq!(of(WriteKind::Create, true, &refusal), Verdict::Row(WriteOutcome::Unchanged));
        }
        let other_key = refused(412, 0x8006_0892, "A record that has the attribute values already exists.");
        assert_eq!(class(&of(WriteKind::Create, false, &other_key)), Some(RejectionClass::Row));
        let queued = refused(400, 0x8004_0526, "active");
        assert_eq!(of(WriteKind::Create, false, &queued), Verdict::Row(WriteOutcome::Unchanged));
    }

    #[test]
    fn a_missing_row_is_told_from_a_missing_reference_by_its_name() {
        let own = refused(404, 0x8004_0217, &format!("account With Id = {} Does Not Exist", ID.to_uppercase()));
        let other = refused(404, 0x8004_0217, "contact With Id = 1 Does Not Exist");
        assert!(is_conflict(&of(WriteKind::Update, false, &own)));
        assert_eq!(class(&of(WriteKind::Update, false, &other)), Some(RejectionClass::MissingReference));
        assert_eq!(class(&of(WriteKind::Create, false, &own)), Some(RejectionClass::MissingReference));
        assert_eq!(of(WriteKind::Delete, false, &own), Verdict::Row(WriteOutcome::Unchanged));
    }

    #[test]
    fn refusals_of_a_table_and_of_closed_rows_are_told_apart() {
        for (code, expected) in [
            (0x8004_0220, RejectionClass::Table),
            (0x8004_8306, RejectionClass::Row),
            (0x8004_0230, RejectionClass::Closed),
            (0x8004_4331, RejectionClass::Row),
            (0x8004_a110, RejectionClass::Row),
        ] {
            assert_eq!(class(&of(WriteKind::Update, false, &refused(403, code, "no"))), Some(expected), "{code:x}");
        }
        assert_eq!(of(WriteKind::Update, false, &refused(400, 0x8007_2325, "full")), Verdict::Stop);
    }

    #[test]
    fn a_user_who_is_not_let_in_stops_the_run_and_a_disabled_owner_only_refuses_the_row() {
        let stranger = refused(403, 0x8004_d24b, "has not been assigned any License");
        assert_eq!(of(WriteKind::Create, false, &stranger), Verdict::Stop);
        let key = RowKey::new(ID);
        let tried = Tried { kind: WriteKind::Create, link: false, key: &key, on_behalf: true };
        assert_eq!(class(&verdict(tried, &stranger)), Some(RejectionClass::Row));
        let owner = refused(403, 0x8004_a112, "The system user was disabled.");
        assert_eq!(class(&of(WriteKind::Create, false, &owner)), Some(RejectionClass::Owner));
    }

    #[test]
    fn a_state_that_is_refused_is_looked_at_and_versions_are_compared_otherwise() {
        for code in [0x8004_8408, 0x8004_f00e, 0x8004_f856, 0x8004_0230, 0x8004_051a] {
            assert_eq!(of(WriteKind::State, false, &refused(400, code, "no")), Verdict::LookAtState, "{code:x}");
        }
        let untagged = refused(400, 0x8006_088d, "optimistic concurrency is not enabled");
        assert_eq!(of(WriteKind::Update, false, &untagged), Verdict::Untagged);
        assert_eq!(of(WriteKind::Delete, false, &untagged), Verdict::Untagged);
        assert_eq!(class(&of(WriteKind::Create, false, &untagged)), Some(RejectionClass::Row));
    }

    #[test]
    fn the_bin_is_left_for_a_plain_creation_unless_the_row_is_there() {
        let missing = refused(400, 0x8004_9959, "a referenced row is missing");
        assert_eq!(of(WriteKind::Undelete, false, &missing), Verdict::Make);
        assert!(is_conflict(&of(WriteKind::Undelete, false, &refused(400, 0x8004_9939, "exists"))));
        assert_eq!(of(WriteKind::Undelete, false, &refused(400, 0x8004_9949, "choice")), Verdict::Make);
        assert_eq!(of(WriteKind::Undelete, false, &refused(404, 0x8004_0217, "not in the bin")), Verdict::Make);
    }
}
