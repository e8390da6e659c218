//! Who acts in an operation, and which custom logic it leaves out (dataverse 6.6, 6.10).

use crate::access::{ACT_ON_BEHALF, BYPASS_LOGIC, BYPASS_PLUGINS, no_privilege, privilege};
use crate::answer::Refusal;
use crate::guid::Guid;
use crate::route::Headers;

use super::WriteContext;

/// Most plug-in steps one request may name (dataverse 1.2).
const STEPS_MAX: usize = 3;

/// The user who acts, with the headers of one operation.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// `systemuserid` of the user who acts.
    pub(crate) id: Guid,
    /// The user who signed in, when acting for another.
    pub(crate) on_behalf: Option<Guid>,
    /// Custom plug-ins do not run.
    pub(crate) skips_plugins: bool,
    /// Cloud flows are not started.
    pub(crate) skips_flows: bool,
}

impl Caller {
    /// Somebody who acts for nobody else.
    pub(crate) fn signed_in(id: Guid) -> Self {
        Self { id, on_behalf: None, skips_plugins: false, skips_flows: false }
    }

    /// Reads the headers of an operation.
    pub(crate) fn read(context: &WriteContext<'_>, headers: &Headers) -> Result<Self, Refusal> {
        let mut caller = Self::signed_in(context.controls.user_id(context.user));
        let signed_in = caller.id;
        if let Some(other) = impersonated(context, headers)?.filter(|other| *other != signed_in) {
            if !context.controls.has(ACT_ON_BEHALF, signed_in) {
                return Err(Refusal::new(
                    403,
                    "0x8004a110",
                    format!(
                        "User {signed_in} doesn't have the privilege to act on behalf another user: {ACT_ON_BEHALF}."
                    ),
                ));
            }
            check_active(context, other)?;
            caller.id = other;
            caller.on_behalf = Some(signed_in);
        }
        let is_true = |name: &str| headers.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let require = |privilege: &str| {
            if context.controls.has(privilege, caller.id) {
                Ok(())
            } else {
                Err(no_privilege(privilege, None, caller.id))
            }
        };
        let mut skips_plugins = false;
        if is_true("mscrm.bypasscustompluginexecution") {
            require(BYPASS_PLUGINS)?;
            skips_plugins = true;
        }
        if let Some(kinds) = headers.get("mscrm.bypassbusinesslogicexecution") {
            require(BYPASS_LOGIC)?;
            skips_plugins |= kinds.split(',').any(|kind| kind.trim() == "CustomSync");
        }
        if let Some(steps) = headers.get("mscrm.bypassbusinesslogicexecutionstepids") {
            require(BYPASS_LOGIC)?;
            let steps: Vec<&str> = steps.split(',').map(str::trim).collect();
            if steps.len() > STEPS_MAX {
                return Err(Refusal::new(400, "0x80040203", format!("At most {STEPS_MAX} steps can be bypassed.")));
            }
            let own = super::logic::step_id().to_string();
            skips_plugins |= steps.iter().any(|step| step.eq_ignore_ascii_case(&own));
        }
        caller.skips_plugins = skips_plugins;
        caller.skips_flows = is_true("mscrm.suppresscallbackregistrationexpanderjob");
        Ok(caller)
    }
}

/// The user named by one of the two headers (dataverse 1.2).
fn impersonated(context: &WriteContext<'_>, headers: &Headers) -> Result<Option<Guid>, Refusal> {
    let unknown = |id: &str| Refusal::no_row("systemuser", id);
    let Some(users) = context.database.table("systemuser") else { return Ok(None) };
    let table = &context.database.tables[users];
    if let Some(text) = headers.get("callerobjectid") {
        let wanted = Guid::parse(text).ok_or_else(|| unknown(text))?;
        let cell = table.def.cell("azureactivedirectoryobjectid").ok_or_else(|| unknown(text))?;
        let found = table.rows.iter().find(|(_, row)| Guid::parse(row.cell(cell).trim_matches('"')) == Some(wanted));
        return found.map(|(key, _)| Some(key.id)).ok_or_else(|| unknown(text));
    }
    let Some(text) = headers.get("mscrmcallerid") else { return Ok(None) };
    let id = Guid::parse(text).filter(|id| table.rows.contains_key(&(*id).into())).ok_or_else(|| unknown(text))?;
    Ok(Some(id))
}

/// Refuses a user who is disabled or has no role (dataverse 6.7, 9.3).
pub(super) fn check_active(context: &WriteContext<'_>, user: Guid) -> Result<(), Refusal> {
    if context.controls.without_roles.contains(&user) {
        return Err(Refusal::new(403, "0x80042f09", "The user has not been assigned any roles."));
    }
    if is_disabled(context, user) {
        return Err(Refusal::new(403, "0x8004a112", format!("The system user was disabled. User id: {user}.")));
    }
    Ok(())
}

fn is_disabled(context: &WriteContext<'_>, user: Guid) -> bool {
    let Some(table) = context.database.table("systemuser").map(|index| &context.database.tables[index]) else {
        return false;
    };
    let (Some(cell), Some(row)) = (table.def.cell("isdisabled"), table.rows.get(&user.into())) else { return false };
    row.cell(cell) == "true"
}

impl WriteContext<'_> {
    /// Refuses an action the caller has no privilege for (dataverse 9.3, 9.4).
    pub(crate) fn require(&self, action: &str, table: usize) -> Result<(), Refusal> {
        let def = &self.database.tables[table].def;
        let name = privilege(action, def);
        if self.controls.has(&name, self.caller.id) {
            Ok(())
        } else {
            Err(no_privilege(&name, Some(def), self.caller.id))
        }
    }

    /// Whether the caller has a privilege that belongs to no table.
    pub(crate) fn has(&self, privilege: &str) -> bool {
        self.controls.has(privilege, self.caller.id)
    }
}
