//! What the signed-in user may do, and which deleted rows the service keeps (`dataverse`, sections 6.6, 6.10, 6.15, 9.4).

use std::collections::BTreeSet;

use dynavault_model::{Abilities, Ability, Call, RowSource, SourceError};
use dynavault_odata::RequestError;
use serde_json::Value;

use crate::known::Bypass;
use crate::refusals;
use crate::source::DataverseSource;

/// Skips synchronous and asynchronous custom logic; the older privilege skips synchronous logic only.
const BYPASS_ALL: &str = "prvBypassCustomBusinessLogic";
const BYPASS_SYNCHRONOUS: &str = "prvBypassCustomPlugins";
const CREATED_ON: &str = "prvOverrideCreatedOnCreatedBy";
const ON_BEHALF: &str = "prvActOnBehalfOfAnotherUser";
/// Largest answer to the question who we are.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Ids that Microsoft documents for the two bypass privileges, for a service that gives ids only.
const BYPASS_IDS: [(&str, &str); 2] = [
    (BYPASS_ALL, "0ea552b0-a491-4470-9a1b-82068deccf66"),
    (BYPASS_SYNCHRONOUS, "148a9eaf-d0c4-4196-9852-c3a38e35f6a1"),
];

/// Asks; a service that does not tell leaves an ability unknown.
pub(crate) async fn abilities(source: &DataverseSource, call: &Call) -> Result<(Abilities, Bypass), SourceError> {
    let identity = source.identity(call).await?;
    let path = format!("systemusers({})/Microsoft.Dynamics.CRM.RetrieveUserPrivileges()", identity.user_id);
    let answer = source.optional(&path, call).await?;
    let held = answer["RolePrivileges"].as_array();
    let (names, complete) = match held {
        Some(held) => names(source, held, call).await?,
        None => (None, false),
    };
    let has = |name: &str| names.as_ref().is_some_and(|names| names.contains(name));
    let told = of_names(names.as_ref());
    let bypass_logic = match &told.bypass_logic {
        Ability::Unknown => try_bypass(source, call).await?,
        known => known.clone(),
    };
    let bypass = if has(BYPASS_SYNCHRONOUS) && !has(BYPASS_ALL) { Bypass::SynchronousOnly } else { Bypass::All };
    let abilities = Abilities {
        recycle_bin: recycle_bin(source, call).await?,
        base_currency_id: identity.base_currency_id,
        bypass_logic,
        ..told
    };
    Ok((Abilities { privileges: names.filter(|_| complete), ..abilities }, bypass))
}

/// A service that does not list privileges may still say no to a harmless request that bypasses custom logic (section 6.10).
async fn try_bypass(source: &DataverseSource, call: &Call) -> Result<Ability, SourceError> {
    let slot = source.slot("");
    let headers = [("MSCRM.BypassBusinessLogicExecution", "CustomSync,CustomAsync")];
    match source.client.get(&slot, "WhoAmI", None, &headers, ANSWER_BYTES_MAX, call).await {
        Err(error) if error.status() == Some(403) => {
            Ok(Ability::Missing(error.privilege().unwrap_or(BYPASS_ALL).to_string()))
        }
        Ok(_) | Err(RequestError::Service { .. } | RequestError::Protocol { .. }) => Ok(Ability::Unknown),
        Err(error) => Err(refusals::of_run(error)),
    }
}

fn of_names(names: Option<&BTreeSet<String>>) -> Abilities {
    let one_of = |wanted: &[&str]| match names {
        None => Ability::Unknown,
        Some(names) if wanted.iter().any(|name| names.contains(*name)) => Ability::Granted,
        Some(_) => Ability::Missing(wanted[0].to_string()),
    };
    Abilities {
        bypass_logic: one_of(&[BYPASS_ALL, BYPASS_SYNCHRONOUS]),
        created_on: one_of(&[CREATED_ON]),
        on_behalf: one_of(&[ON_BEHALF]),
        privileges: None,
        recycle_bin: Vec::new(),
        base_currency_id: None,
    }
}

/// Names of the privileges held, and whether these are all. Older services give ids; then only the few that matter here are
/// looked up.
async fn names(
    source: &DataverseSource,
    held: &[Value],
    call: &Call,
) -> Result<(Option<BTreeSet<String>>, bool), SourceError> {
    let text = |member: &'static str| held.iter().filter_map(move |privilege| privilege[member].as_str());
    let names: BTreeSet<String> = text("PrivilegeName").filter(|name| !name.is_empty()).map(str::to_string).collect();
    if !names.is_empty() || held.is_empty() {
        return Ok((Some(names), true));
    }
    let ids: BTreeSet<String> = text("PrivilegeId").map(str::to_ascii_lowercase).collect();
    let filter: Vec<String> = [CREATED_ON, ON_BEHALF].iter().map(|name| format!("name eq '{name}'")).collect();
    let path = format!("privileges?$select=privilegeid,name&$filter={}", filter.join(" or "));
    let answer = source.optional(&path, call).await?;
    let Some(rows) = answer["value"].as_array() else { return Ok((None, false)) };
    let looked_up = rows.iter().filter_map(|row| Some((row["name"].as_str()?, row["privilegeid"].as_str()?)));
    let known = looked_up.chain(BYPASS_IDS).filter(|(_, id)| ids.contains(&id.to_ascii_lowercase()));
    Ok((Some(known.map(|(name, _)| name.to_string()).collect()), false))
}

/// Tables with a recycle bin that is switched on; none where the service has no such feature. The configuration names a table by
/// its row in the table of tables, whose id is the same in no two environments.
async fn recycle_bin(source: &DataverseSource, call: &Call) -> Result<Vec<String>, SourceError> {
    let configurations = "recyclebinconfigs?$select=_extensionofrecordid_value\
         &$filter=statecode eq 0 and isreadyforrecyclebin eq true";
    let ids: BTreeSet<String> = texts(&source.optional(configurations, call).await?, "_extensionofrecordid_value");
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let tables = source.optional("entities?$select=entityid,logicalname", call).await?;
    let rows = tables["value"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_bin =
        rows.iter().filter(|row| row["entityid"].as_str().is_some_and(|id| ids.contains(&id.to_ascii_lowercase())));
    let mut names: Vec<String> = of_bin.filter_map(|row| row["logicalname"].as_str().map(str::to_string)).collect();
    names.sort_unstable();
    Ok(names)
}

fn texts(answer: &Value, member: &str) -> BTreeSet<String> {
    let rows = answer["value"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|row| row[member].as_str()).map(str::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abilities_follow_from_the_privileges_held() {
        let held = |names: &[&str]| of_names(Some(&names.iter().map(ToString::to_string).collect()));
        let abilities = held(&[BYPASS_SYNCHRONOUS, CREATED_ON]);
        assert_eq!(abilities.bypass_logic, Ability::Granted);
        assert_eq!(abilities.created_on, Ability::Granted);
        assert_eq!(abilities.on_behalf, Ability::Missing(ON_BEHALF.into()));
        assert_eq!(held(&[]).bypass_logic, Ability::Missing(BYPASS_ALL.into()));
        assert_eq!(of_names(None).created_on, Ability::Unknown);
    }
}
