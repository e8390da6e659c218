//! What the roles in an environment allow: for backup, and separately for restore (`dataverse` protocol, sections 6.10 and
//! 9.4).
//!
//! The service lists the privileges of a user by name. A table's own are called after it, but some tables share those of
//! another one, so a name that is not held is a hint and no proof: backup itself names what it may not read. The depth of a
//! privilege is not judged.

use std::collections::BTreeSet;
use std::sync::Arc;

use dynavault_ce::DataverseTarget;
use dynavault_model::{Abilities, Ability, Call, RowSource, RowTarget, TableSchema, Tally};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{CheckLine, failure_of};
use crate::assemble::{Engine, resource_of};
use crate::backup::protects;
use crate::config::{EnvironmentConfig, EnvironmentKind};
use crate::failure::Failure;
use crate::profile::ProfileCheck;

/// Names that a line lists.
const NAMES_MAX: usize = 8;

/// What a user has to be able to do with a row to restore it.
const RESTORING: [&str; 4] = ["Create", "Write", "Append", "AppendTo"];

/// What was learned about one profile in one environment.
struct Seen {
    abilities: Abilities,
    tables: Vec<TableSchema>,
}

impl Engine {
    /// Privileges of the profiles that read an environment, and of the one that would restore into it. Profiles that could
    /// not sign in, or were not let in, have been told before.
    pub(super) async fn check_privileges(
        &self,
        environment: &EnvironmentConfig,
        usable: &[ProfileCheck],
        cancel: &CancellationToken,
    ) -> Vec<CheckLine> {
        let let_in = |profile: &str| {
            usable.iter().any(|check| {
                check.profile == profile
                    && check.environments.iter().any(|line| line.environment == environment.name && line.state == "ok")
            })
        };
        let mut lines = Vec::new();
        if environment.kind == EnvironmentKind::Uo {
            return lines;
        }
        let restores_with = environment.restore_profile.as_ref().or_else(|| environment.profiles.first());
        let mut profiles: Vec<&String> = environment.profiles.iter().collect();
        if let Some(profile) = restores_with
            && !profiles.contains(&profile)
        {
            profiles.push(profile);
        }
        for profile in profiles.into_iter().filter(|profile| let_in(profile)) {
            let subject = format!("{} with {profile}", environment.name);
            let seen = match self.look(environment, profile, cancel).await {
                Ok(seen) => seen,
                Err(failure) => {
                    lines.push(CheckLine::failed("privileges", subject, &failure));
                    continue;
                }
            };
            if environment.profiles.contains(profile) {
                lines.push(for_backup(&subject, &seen, environment.restore_profile.is_some()));
            }
            if Some(profile) == restores_with {
                lines.extend(for_restore(&subject, &seen, environment.restore_profile.is_some()));
            }
        }
        lines
    }

    async fn look(
        &self,
        environment: &EnvironmentConfig,
        profile: &str,
        cancel: &CancellationToken,
    ) -> Result<Seen, Failure> {
        let call = Call { tally: Arc::new(Tally::default()), cancel: cancel.clone() };
        let tokens = self.profile_tokens(self.profile(profile)?, &format!("{}/.default", resource_of(environment)?))?;
        let source = Arc::new(self.source_as(environment, tokens)?);
        // The client may not write; asking what one may do is reading.
        let target = DataverseTarget::new(Arc::clone(&source), Arc::clone(self.clock()));
        let abilities = target.abilities(&call).await.map_err(failure_of)?;
        let included = protects(environment)?;
        let listings = source.discover(&call).await.map_err(failure_of)?;
        let tables = listings.into_iter().filter(|listing| included(&listing.table.name));
        Ok(Seen { abilities, tables: tables.filter_map(|listing| listing.schema.ok()).collect() })
    }
}

/// The name of a table's privilege; `None` for tables that have none of their own (sections 9.4 and 2.1).
fn privilege(action: &str, table: &TableSchema) -> Option<String> {
    let definition = &table.definition;
    let is = |property: &str| definition[property].as_bool() == Some(true);
    if is("IsIntersect") || definition["OwnershipType"] == "None" {
        return None;
    }
    let name = match table.table.name.as_str() {
        _ if is("IsActivity") => "Activity",
        "activityparty" | "activitymimeattachment" => "Activity",
        "customeraddress" => "Account",
        "annotation" => "Note",
        _ => definition.get("SchemaName").and_then(Value::as_str)?,
    };
    Some(format!("prv{action}{name}"))
}

/// Tables without the privilege for an action.
fn without<'a>(action: &str, held: &BTreeSet<String>, tables: &'a [TableSchema]) -> Vec<&'a str> {
    let lacks = |table: &&TableSchema| {
        privilege(action, table).is_some_and(|name| !held.iter().any(|own| own.eq_ignore_ascii_case(&name)))
    };
    tables.iter().filter(lacks).map(|table| table.table.name.as_str()).collect()
}

fn some_of(names: &[&str]) -> String {
    let shown = names[..names.len().min(NAMES_MAX)].join(", ");
    match names.len().checked_sub(NAMES_MAX) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

fn for_backup(subject: &str, seen: &Seen, restores_apart: bool) -> CheckLine {
    const CHECK: &str = "privileges for backup";
    let Some(held) = &seen.abilities.privileges else {
        let found = "the service does not list them; a backup names what it may not read";
        return CheckLine::ok(CHECK, subject, found);
    };
    let unreadable = without("Read", held, &seen.tables);
    if !unreadable.is_empty() {
        return CheckLine::warning(
            CHECK,
            subject,
            format!(
                "no privilege to read is held for {} of {} tables: {}",
                unreadable.len(),
                seen.tables.len(),
                some_of(&unreadable)
            ),
            "give the user a role with these privileges at organization depth, or add the tables to `exclude`; `dynavault env tables` shows each",
        );
    }
    let may_write = without("Write", held, &seen.tables).len() < seen.tables.len();
    let found = format!("all {} tables may be read", seen.tables.len());
    if may_write && restores_apart {
        return CheckLine::warning(
            CHECK,
            subject,
            format!("{found}; the user may also write, which is more than backup needs"),
            "give the user a role that only reads; restore_profile is there for writing",
        );
    }
    CheckLine::ok(CHECK, subject, found)
}

fn for_restore(subject: &str, seen: &Seen, restores_apart: bool) -> Vec<CheckLine> {
    const CHECK: &str = "privileges for restore";
    let abilities = &seen.abilities;
    let mut lacks: Vec<String> = Vec::new();
    if let Some(held) = &abilities.privileges {
        for action in RESTORING {
            let tables = without(action, held, &seen.tables);
            if !tables.is_empty() {
                lacks.push(format!("prv{action}… of {} tables ({})", tables.len(), some_of(&tables)));
            }
        }
    }
    let special = [
        ("skip custom logic", &abilities.bypass_logic),
        ("keep the original creation time", &abilities.created_on),
        ("write on behalf of another user (--as-creator)", &abilities.on_behalf),
    ];
    for (what, ability) in special {
        if let Ability::Missing(name) = ability {
            lacks.push(format!("{name}, to {what}"));
        }
    }
    let unknown = special.iter().any(|(_, ability)| **ability == Ability::Unknown);
    if lacks.is_empty() {
        let found = if unknown {
            "the service does not list them; a restore names what it may not write"
        } else {
            "may create and write, skip custom logic, keep creation times, act on behalf of others"
        };
        return vec![CheckLine::ok(CHECK, subject, found)];
    }
    let found = format!("not held: {}", lacks.join("; "));
    if restores_apart {
        let remedy = "give the user of restore_profile a role with these privileges (System Administrator has them)";
        vec![CheckLine::warning(CHECK, subject, found, remedy)]
    } else {
        // As it should be: the identity that reads every day need not be able to write.
        vec![CheckLine::ok(
            CHECK,
            subject,
            format!("{found}; good for backup. For a restore set restore_profile to a profile that holds them"),
        )]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::CheckStatus;
    use dynavault_model::TableRef;

    fn table(name: &str, definition: Value) -> TableSchema {
        TableSchema {
            table: TableRef::ce(name),
            entity_set: format!("{name}s"),
            key: vec![format!("{name}id")],
            columns: Vec::new(),
            content: Vec::new(),
            tracked: true,
            page_rows_max: 5000,
            not_captured: Vec::new(),
            definition,
        }
    }

    fn seen(held: Option<&[&str]>, abilities: [Ability; 3]) -> Seen {
        let [bypass_logic, created_on, on_behalf] = abilities;
        Seen {
            abilities: Abilities {
                bypass_logic,
                created_on,
                on_behalf,
                privileges: held.map(|held| held.iter().map(ToString::to_string).collect()),
                recycle_bin: Vec::new(),
                base_currency_id: None,
            },
            tables: vec![
                table("account", json!({"SchemaName": "Account", "OwnershipType": "UserOwned"})),
                table("task", json!({"SchemaName": "Task", "IsActivity": true})),
                table("accountleads", json!({"SchemaName": "accountleads", "IsIntersect": true})),
                table("new_log", json!({"SchemaName": "new_Log", "OwnershipType": "None"})),
            ],
        }
    }

    const ABLE: [Ability; 3] = [Ability::Granted, Ability::Granted, Ability::Granted];

    #[test]
    fn tables_that_cannot_be_read_are_named_and_shared_privileges_count() {
        let line = for_backup("x", &seen(Some(&["prvReadActivity"]), ABLE), false);
        assert_eq!(line.status, CheckStatus::Warning);
        assert!(line.found.contains("1 of 4 tables: account"), "{line:?}");
        let line = for_backup("x", &seen(Some(&["prvReadaccount", "prvReadActivity"]), ABLE), false);
        assert_eq!(line.status, CheckStatus::Ok, "{line:?}");
        assert_eq!(for_backup("x", &seen(None, ABLE), true).status, CheckStatus::Ok);
    }

    #[test]
    fn what_a_restore_lacks_matters_only_where_a_profile_is_kept_for_it() {
        let read_only = [
            Ability::Missing("prvBypassCustomBusinessLogic".into()),
            Ability::Granted,
            Ability::Missing("prvActOnBehalfOfAnotherUser".into()),
        ];
        let seen = seen(Some(&["prvReadAccount", "prvReadActivity"]), read_only);
        let line = &for_restore("x", &seen, true)[0];
        assert_eq!(line.status, CheckStatus::Warning);
        for name in ["prvBypassCustomBusinessLogic", "prvActOnBehalfOfAnotherUser", "prvCreate", "prvAppendTo"] {
            assert!(line.found.contains(name), "{name}: {line:?}");
        }
        assert_eq!(for_restore("x", &seen, false)[0].status, CheckStatus::Ok);
    }
}
