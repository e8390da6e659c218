//! `env list`, `env tables`, `env whoami`.

use std::sync::Arc;

use dynavault_engine::{Backup, BackupRequest, TablePlan};
use dynavault_model::Tally;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Outcome, engine, environment};
use crate::args::Global;
use crate::{exit, print};

pub(super) fn list(global: &Global) -> Outcome {
    let engine = engine(global)?;
    let environments = &engine.config().environments;
    if global.json {
        let list: Vec<Value> = environments
            .iter()
            .map(|environment| {
                json!({"environment": environment.name, "kind": environment.kind, "url": format!("{:?}", environment.url).trim_matches('"'), "profiles": environment.profiles})
            })
            .collect();
        print::json(&list);
    } else {
        let rows: Vec<Vec<String>> = environments
            .iter()
            .map(|environment| {
                let kind = serde_json::to_value(environment.kind).ok();
                vec![
                    environment.name.clone(),
                    kind.and_then(|kind| kind.as_str().map(str::to_string)).unwrap_or_default(),
                    format!("{:?}", environment.url).trim_matches('"').to_string(),
                    environment.profiles.join(", "),
                ]
            })
            .collect();
        print::table(&["environment", "kind", "url", "profiles"], &rows);
    }
    Ok(exit::DONE)
}

pub(super) async fn tables(named: Option<String>, global: &Global, cancel: CancellationToken) -> Outcome {
    let engine = engine(global)?;
    let request = BackupRequest { environment: environment(&engine, named)?, ..BackupRequest::default() };
    let backup = Backup::new(&engine, request, Arc::new(()), Arc::new(Tally::default()), cancel)?;
    show_plan(&backup.plan().await?, global);
    Ok(exit::DONE)
}

/// Tables with rows and mode, or the reason for a refusal.
pub(super) fn show_plan(plans: &[TablePlan], global: &Global) {
    if global.json {
        let list: Vec<Value> = plans
            .iter()
            .map(|plan| {
                let (mode, reason, remedy) = words(plan);
                json!({"table": plan.table, "mode": mode, "rows": plan.rows, "reason": reason, "remedy": remedy})
            })
            .collect();
        print::json(&list);
        return;
    }
    let rows: Vec<Vec<String>> = plans
        .iter()
        .map(|plan| {
            let (mode, reason, _) = words(plan);
            vec![plan.table.clone(), plan.rows.map(print::count).unwrap_or_default(), mode, reason.unwrap_or_default()]
        })
        .collect();
    print::table(&["table", ">rows", "mode", "why"], &rows);
}

fn words(plan: &TablePlan) -> (String, Option<String>, Option<String>) {
    if plan.excluded {
        return ("excluded".into(), Some("left out by the configuration or by default".into()), None);
    }
    match &plan.mode {
        Ok(planned) => {
            let word = serde_json::to_value(planned.mode).ok();
            let word = word.and_then(|word| word.as_str().map(str::to_string)).unwrap_or_default();
            (word, planned.reason.clone(), None)
        }
        Err(refusal) => ("refused".into(), Some(refusal.reason.clone()), refusal.remedy.clone()),
    }
}

pub(super) async fn whoami(named: Option<String>, global: &Global, cancel: CancellationToken) -> Outcome {
    let engine = engine(global)?;
    let request = BackupRequest { environment: environment(&engine, named)?, ..BackupRequest::default() };
    let backup = Backup::new(&engine, request, Arc::new(()), Arc::new(Tally::default()), cancel)?;
    let identity = backup.whoami().await?;
    if global.json {
        print::json(&identity);
        return Ok(exit::DONE);
    }
    let unknown = || "not told".to_string();
    let rows = vec![
        vec!["organization".into(), identity.organization_id],
        vec!["name".into(), identity.friendly_name.unwrap_or_else(unknown)],
        vec!["environment id".into(), identity.environment_id.unwrap_or_else(unknown)],
        vec!["tenant".into(), identity.tenant_id.unwrap_or_else(unknown)],
        vec!["version".into(), identity.version.unwrap_or_else(unknown)],
        vec!["our user".into(), identity.user_id],
        vec![
            "change tokens last".into(),
            identity.change_tracking_days.map_or_else(unknown, |days| format!("{days} days without a backup")),
        ],
    ];
    print::table(&["what", "value"], &rows);
    Ok(exit::DONE)
}
