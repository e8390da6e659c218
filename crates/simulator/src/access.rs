//! Who may read what, and which tokens and links still count.

use std::collections::{BTreeMap, BTreeSet};

use crate::answer::Refusal;
use crate::dataset::user_id;
use crate::dice::named_guid;
use crate::schema::{Storage, TableDef, Unreadable, schema_name};

/// The switches of a running simulator; a request works with the value it started with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Controls {
    /// Tables whose read privilege was removed.
    pub(crate) denied: BTreeSet<String>,
    /// Tables whose built-in restriction was lifted or replaced.
    pub(crate) overridden: BTreeMap<String, Option<Unreadable>>,
    /// Next links of another generation are refused.
    pub(crate) link_generation: u64,
    /// Delta tokens below this version have expired.
    pub(crate) delta_floor: u64,
    /// Metadata stamps below this version have expired.
    pub(crate) stamp_floor: u64,
    /// Days a delta token lives.
    pub(crate) expiry_days: u32,
}

impl Controls {
    fn restriction(&self, def: &TableDef) -> Option<Unreadable> {
        if self.denied.contains(&def.name) {
            return Some(Unreadable::NoPrivilege);
        }
        self.overridden.get(&def.name).copied().unwrap_or(def.unreadable)
    }

    /// Refuses a table whose rows cannot be read (dataverse 2.8, 8.13, 9.3).
    pub(crate) fn check_read(&self, def: &TableDef, user: usize) -> Result<(), Refusal> {
        if def.storage == Storage::Virtual {
            return Err(Refusal::new(
                400,
                "0x80044822",
                "The external data source of the virtual table did not accept the query.",
            ));
        }
        match self.restriction(def) {
            Some(Unreadable::NotSupported) => Err(Refusal::new(
                501,
                "0x80040800",
                format!("The 'RetrieveMultiple' method does not support entities of type '{}'.", def.name),
            )),
            Some(Unreadable::NoPrivilege) => Err(no_privilege(def, user)),
            Some(Unreadable::NotOrganizationWide) | None => Ok(()),
        }
    }

    /// Tracked reads need the privilege for the whole organization (dataverse 4.3).
    pub(crate) fn check_organization_read(&self, def: &TableDef, user: usize) -> Result<(), Refusal> {
        if self.restriction(def) == Some(Unreadable::NotOrganizationWide) {
            Err(no_privilege(def, user))
        } else {
            Ok(())
        }
    }

    /// Whether rows can be read at all.
    pub(crate) fn is_readable(&self, def: &TableDef) -> bool {
        def.set.is_some() && self.check_read(def, 0).is_ok()
    }
}

fn no_privilege(def: &TableDef, user: usize) -> Refusal {
    let privilege = format!("prvRead{}", schema_name(&def.name));
    let message = format!(
        "Principal user (Id={}, type=8, roleCount=1, privilegeCount=611, accessMode=4 Non-interactive) is missing {privilege} privilege (Id={}) on OTC={} for entity '{}'.",
        user_id(user),
        named_guid(&privilege),
        def.type_code,
        def.name,
    );
    Refusal::new(403, "0x80040220", message)
}
