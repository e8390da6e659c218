//! Who may read and write what, and which tokens and links still count.

use std::collections::{BTreeMap, BTreeSet};

use crate::answer::Refusal;
use crate::dataset::user_id;
use crate::dice::named_guid;
use crate::guid::Guid;
use crate::schema::{Storage, TableDef, Unreadable, schema_name};

/// Sets `createdon` at creation (dataverse 6.6).
pub(crate) const OVERRIDE_CREATED_ON: &str = "prvOverrideCreatedOnCreatedBy";
/// Acts for another user (dataverse 6.6).
pub(crate) const ACT_ON_BEHALF: &str = "prvActOnBehalfOfAnotherUser";
/// Leaves synchronous custom logic out (dataverse 6.10).
pub(crate) const BYPASS_PLUGINS: &str = "prvBypassCustomPlugins";
/// Leaves custom logic out (dataverse 6.10).
pub(crate) const BYPASS_LOGIC: &str = "prvBypassCustomBusinessLogic";
/// Privileges that belong to no table.
pub(crate) const GLOBAL_PRIVILEGES: [&str; 4] = [OVERRIDE_CREATED_ON, ACT_ON_BEHALF, BYPASS_PLUGINS, BYPASS_LOGIC];
/// What can be done to a table, as the names of privileges say it (dataverse 9.4).
pub(crate) const ACTIONS: [&str; 8] = ["Create", "Read", "Write", "Delete", "Append", "AppendTo", "Assign", "Share"];

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
    /// Which environment it is; people have other ids in each.
    pub(crate) environment: u64,
    /// Privileges taken from all callers, by name.
    pub(crate) missing: BTreeSet<String>,
    /// Privileges that single users lack; they count when somebody acts for that user.
    pub(crate) missing_of: BTreeMap<Guid, BTreeSet<String>>,
    /// Users without any role.
    pub(crate) without_roles: BTreeSet<Guid>,
}

/// The name of a privilege: activities share theirs, and parts of other rows have those of their parent.
pub(crate) fn privilege(action: &str, def: &TableDef) -> String {
    let name = match def.name.as_str() {
        _ if def.activity => "Activity".to_owned(),
        "activityparty" | "activitymimeattachment" => "Activity".to_owned(),
        "customeraddress" => "Account".to_owned(),
        "annotation" => "Note".to_owned(),
        name => schema_name(name),
    };
    format!("prv{action}{name}")
}

impl Controls {
    fn restriction(&self, def: &TableDef) -> Option<Unreadable> {
        if self.denied.contains(&def.name) {
            return Some(Unreadable::NoPrivilege);
        }
        self.overridden.get(&def.name).copied().unwrap_or(def.unreadable)
    }

    /// `systemuserid` of a caller.
    pub(crate) fn user_id(&self, user: usize) -> Guid {
        user_id(self.environment, user)
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
            Some(Unreadable::NoPrivilege) => Err(no_privilege(&privilege("Read", def), Some(def), self.user_id(user))),
            Some(Unreadable::NotOrganizationWide) | None => Ok(()),
        }
    }

    /// Tracked reads need the privilege for the whole organization (dataverse 4.3).
    pub(crate) fn check_organization_read(&self, def: &TableDef, user: usize) -> Result<(), Refusal> {
        if self.restriction(def) == Some(Unreadable::NotOrganizationWide) {
            Err(no_privilege(&privilege("Read", def), Some(def), self.user_id(user)))
        } else {
            Ok(())
        }
    }

    /// Whether rows can be read at all.
    pub(crate) fn is_readable(&self, def: &TableDef) -> bool {
        def.set.is_some() && self.check_read(def, 0).is_ok()
    }

    /// Whether a user who acts, and the one who signed in, have a privilege: the intersection counts (dataverse 6.6).
    pub(crate) fn has(&self, privilege: &str, acting: Guid) -> bool {
        !self.missing.contains(privilege)
            && !self.missing_of.get(&acting).is_some_and(|missing| missing.contains(privilege))
    }
}

/// The refusal of dataverse 9.3; the name of the privilege sits in the text alone.
pub(crate) fn no_privilege(privilege: &str, def: Option<&TableDef>, user: Guid) -> Refusal {
    let about = def
        .map_or_else(|| " on OTC=0".to_owned(), |def| format!(" on OTC={} for entity '{}'", def.type_code, def.name));
    let message = format!(
        "Principal user (Id={user}, type=8, roleCount=1, privilegeCount=611, accessMode=4 Non-interactive) is missing {privilege} privilege (Id={}){about}.",
        named_guid(privilege),
    );
    Refusal::new(403, "0x80040220", message)
}
