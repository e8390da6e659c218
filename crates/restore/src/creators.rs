//! Who made the rows: with `--as-creator` a row is made on behalf of the user who made it, where that user can act in the
//! environment.
//!
//! (`dataverse` protocol, section 6.6.) Rows that come back from the recycle bin keep their creator anyway. A user who is
//! disabled or unknown cannot make anything, and the row is then made by the user who restores. Whether the creator may
//! write the row is known only by trying; a refusal is dealt with when the plan is applied.

use dynavault_model::{Ability, Row, RowId, SourceError};

use crate::adjust::CREATOR_LOST;
use crate::compare::reference;
use crate::draft::Drafting;
use crate::error::RestoreError;
use crate::live::gather;
use crate::mapping::Mapped;
use crate::work::Work;

const USERS: &str = "systemuser";

/// The users of the environment who can act.
#[derive(Debug)]
pub(crate) struct Creators {
    /// Sorted.
    active: Vec<RowId>,
    /// Our own user.
    own: Option<RowId>,
}

impl Work {
    /// Reads which users can act. `own` is our own user.
    pub(crate) fn read_creators(&mut self, own: &str) -> Result<(), RestoreError> {
        let why = match &self.abilities.on_behalf {
            // What the service does not tell is tried: a row that is refused for it is made by us.
            Ability::Granted | Ability::Unknown => None,
            Ability::Missing(privilege) => Some(format!("the privilege {privilege} is missing")),
        };
        if let Some(why) = why {
            self.no_creators(&why);
            return Ok(());
        }
        let Some(schema) = self.live_schema(USERS) else {
            self.no_creators("the users of the environment cannot be read");
            return Ok(());
        };
        let users = std::sync::Arc::clone(&schema);
        let make = move |row: &Row<'_>| {
            let disabled = row.get("isdisabled") == Some(b"true");
            Ok(users.row_id(row).filter(|_| !disabled))
        };
        let read = self.captured.handle.block_on(gather(self.source.as_ref(), &schema, make, &self.call));
        match read {
            Ok(mut active) => {
                active.sort_unstable();
                active.dedup();
                self.creators = Some(Creators { active, own: RowId::from_guid(own.as_bytes()) });
                Ok(())
            }
            Err(RestoreError::Environment(SourceError::Refused { reason, .. })) => {
                self.no_creators(&format!("the users of the environment cannot be read: {reason}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn no_creators(&mut self, why: &str) {
        let message = format!("{why}: all rows are made by the user who restores");
        self.findings.table(CREATOR_LOST, "", 0, message);
    }
}

impl Drafting<'_> {
    /// The user on whose behalf a row is made.
    pub(crate) fn creator(&mut self, row: &Row<'_>) -> Option<String> {
        let (creators, member) = (self.creators?, self.rules.created_by.as_deref()?);
        let who = reference(row, member, self.rules.column(member))?;
        let is_user = who.table.as_deref().is_none_or(|table| table == USERS);
        let id = match self.resolver.mapping.map(USERS, who.id) {
            _ if !is_user => None,
            Mapped::Same => Some(who.id),
            Mapped::To(id) => Some(id),
            Mapped::Unmapped => None,
        };
        if let Some(id) = id
            && creators.own == Some(id)
        {
            return None;
        }
        let id = id.filter(|id| creators.active.binary_search(id).is_ok());
        if id.is_none() {
            let message = "the user who made the row is disabled or not there: it is made by the user who restores";
            self.findings.table(CREATOR_LOST, self.name, 1, message);
        }
        id.map(|id| id.to_string())
    }
}
