//! `restore`: plan, apply, undo, status.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynavault_engine::{
    ConflictPolicy, Counts, Engine, Finding, PlanFile, PlanLine, Restore, RestoreEnd, RestoreRequest,
};
use dynavault_model::{FaultKind, Observer, RunStatus, Tally};
use tokio_util::sync::CancellationToken;

use super::{Outcome, engine, environment, wanted};
use crate::args::{ConflictArg, Global, RestoreArgs, RestoreCommand};
use crate::progress::Progress;
use crate::{exit, print};

/// Findings and conflicts shown on the terminal; the plan file has them all.
const SHOWN_MAX: usize = 20;

pub(super) async fn run(args: RestoreArgs, global: &Global, cancel: CancellationToken) -> Outcome {
    let engine = engine(global)?;
    let desk = Desk { engine: &engine, global, tally: Arc::new(Tally::default()), cancel };
    match args.command {
        Some(RestoreCommand::Apply { plan, confirm_deletes }) => desk.apply(&plan, confirm_deletes).await,
        Some(RestoreCommand::Status { run }) => desk.status(&run).await,
        Some(RestoreCommand::Undo { run, overwrite, output, apply, confirm_deletes }) => {
            let out = output.unwrap_or_else(default_plan);
            let plan = desk.with(|restore| async move { restore.plan_undo(&run, overwrite, &out).await }).await?;
            desk.show_and_apply(&plan, apply, confirm_deletes).await
        }
        None => {
            let request = request(&engine, &args)?;
            let out = args.output.clone().unwrap_or_else(default_plan);
            let plan = desk.with(|restore| async move { restore.plan(&request, &out).await }).await?;
            desk.show_and_apply(&plan, args.apply, args.confirm_deletes).await
        }
    }
}

fn default_plan() -> PathBuf {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    PathBuf::from(format!("plan-{now}.jsonl"))
}

fn request(engine: &Engine, args: &RestoreArgs) -> Result<RestoreRequest, dynavault_engine::Failure> {
    let (mut up, mut down) = (0, 0);
    for part in &args.related {
        let wrong = || {
            dynavault_engine::Failure::usage(
                format!("--related: {part:?} is not up:N or down:N"),
                "for example --related up:1,down:2",
            )
        };
        let (way, levels) = part.split_once(':').ok_or_else(wrong)?;
        let levels: u32 = levels.parse().map_err(|_| wrong())?;
        match way {
            "up" => up = levels,
            "down" => down = levels,
            _ => return Err(wrong()),
        }
    }
    Ok(RestoreRequest {
        environment: environment(engine, args.environment.clone())?,
        snapshot: wanted(&args.when)?,
        tables: args.tables.clone(),
        ids: args.ids.clone(),
        filter: args.filter.clone(),
        columns: args.columns.clone(),
        up,
        down,
        deleted_only: args.deleted_only,
        to: args.to.clone(),
        map: args.map.clone(),
        conflict: match args.conflict {
            ConflictArg::Skip => ConflictPolicy::Skip,
            ConflictArg::Overwrite => ConflictPolicy::Overwrite,
            ConflictArg::FillEmpty => ConflictPolicy::FillEmpty,
            ConflictArg::NewerWins => ConflictPolicy::NewerWins,
            ConflictArg::Fail => ConflictPolicy::Fail,
        },
        mirror: args.mirror,
        run_automation: args.run_automation,
        as_creator: args.as_creator,
    })
}

/// What every part of the command works with.
struct Desk<'a> {
    engine: &'a Engine,
    global: &'a Global,
    tally: Arc<Tally>,
    cancel: CancellationToken,
}

impl Desk<'_> {
    async fn with<'a, T, F: Future<Output = T>>(&'a self, work: impl FnOnce(Restore<'a>) -> F) -> T {
        let progress = Progress::new(self.global);
        let observer = Arc::clone(&progress) as Arc<dyn Observer>;
        let restore = Restore::new(self.engine, observer, Arc::clone(&self.tally), self.cancel.clone());
        progress.during(&self.tally, Box::pin(work(restore))).await
    }

    async fn show_and_apply(&self, plan: &PlanFile, apply: bool, confirm_deletes: bool) -> Outcome {
        if !apply {
            if self.global.json {
                print::json(&summary_json(plan));
            } else {
                summary(plan)?;
                print::talk(&format!(
                    "nothing has been written; carry it out with: dynavault restore apply {}{}",
                    plan.path().display(),
                    if deletions(&plan.end().counts) > 0 { " --confirm-deletes" } else { "" }
                ));
            }
            return Ok(exit::DONE);
        }
        if !self.global.quiet && !self.global.json {
            summary(plan)?;
        }
        self.apply(plan.path(), confirm_deletes).await
    }

    async fn apply(&self, plan: &Path, confirm_deletes: bool) -> Outcome {
        let end = self.with(|restore| async move { restore.apply(plan, confirm_deletes).await }).await?;
        if self.global.json {
            print::json(&end);
        } else if !self.global.quiet {
            ended(&end, print::talk);
        }
        match end.failure {
            Some(failure) => {
                if failure.kind() == FaultKind::Failed && end.proof.is_none() {
                    print::talk(&format!("go on with: dynavault restore apply {}", plan.display()));
                }
                Err(failure)
            }
            None => Ok(exit::of_status(end.report.status)),
        }
    }

    async fn status(&self, run: &str) -> Outcome {
        let status = self.with(|restore| async move { restore.status(run).await }).await?;
        if self.global.json {
            print::json(&status);
            return Ok(exit::DONE);
        }
        let restore = &status.restore;
        print::data(&format!(
            "{} {} into {}: {}; plan {} with {} operations",
            restore.kind,
            restore.run,
            restore.target,
            restore.status,
            restore.plan,
            print::count(restore.ops)
        ));
        for (state, count) in &status.operations {
            let word = serde_json::to_value(state).ok();
            let word = word.and_then(|word| word.as_str().map(str::to_string)).unwrap_or_default();
            print::data(&format!("{word:>10} {}", print::count(*count)));
        }
        for outcome in status.refused.iter().take(SHOWN_MAX) {
            print::data(&format!(
                "operation {}: {} {}",
                outcome.n,
                outcome.code.as_deref().unwrap_or_default(),
                outcome.message.as_deref().unwrap_or_default()
            ));
        }
        Ok(exit::DONE)
    }
}

fn deletions(counts: &Counts) -> u64 {
    counts.delete + counts.unlink
}

fn summary_json(plan: &PlanFile) -> serde_json::Value {
    serde_json::json!({
        "plan": plan.path().display().to_string(),
        "head": plan.head(),
        "tables": plan.tables(),
        "findings": plan.findings(),
        "counts": plan.end().counts,
        "operations": plan.end().ops,
        "requests": plan.end().requests,
        "minutes": plan.end().minutes,
        "digest": plan.end().digest,
        "peak_memory_bytes": dynavault_engine::peak_memory_bytes(),
    })
}

/// Findings by kind and table: one line each, with the first row as an example.
fn grouped(findings: &[Finding]) -> Vec<String> {
    let mut kinds: Vec<(&Finding, u64)> = Vec::new();
    for finding in findings {
        let same = |known: &Finding| {
            (&known.code, &known.table, &known.column) == (&finding.code, &finding.table, &finding.column)
        };
        match kinds.iter_mut().find(|(known, _)| same(known)) {
            Some((_, rows)) => *rows += finding.rows,
            None => kinds.push((finding, finding.rows)),
        }
    }
    kinds
        .into_iter()
        .map(|(finding, rows)| {
            let place = [&finding.table, &finding.column];
            let place: Vec<&str> = place.into_iter().filter_map(|part| part.as_deref()).collect();
            let example = match (&finding.id, rows) {
                (Some(id), 1) => format!(" (row {id})"),
                (Some(id), rows) => format!(" ({} rows, e.g. {id})", print::count(rows)),
                (None, 0 | 1) => String::new(),
                (None, rows) => format!(" ({} rows)", print::count(rows)),
            };
            format!("{}: {}: {}{example}", finding.code, place.join(" "), finding.message)
        })
        .collect()
}

/// What a person wants to know of a plan.
pub(super) fn summary(plan: &PlanFile) -> Result<(), dynavault_engine::Failure> {
    let rows: Vec<Vec<String>> = plan
        .tables()
        .iter()
        .filter(|table| {
            let counts = Counts { unchanged: 0, ..table.counts };
            counts != Counts::default()
        })
        .map(|table| {
            let counts = &table.counts;
            vec![
                table.table.clone(),
                print::count(table.selected),
                print::count(counts.create + counts.undelete),
                print::count(counts.update),
                print::count(counts.link + counts.unlink),
                print::count(counts.content),
                print::count(counts.state),
                print::count(counts.delete),
                print::count(counts.unchanged),
                print::count(counts.conflicts),
                print::count(counts.impossible),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let headers = [
            "table",
            ">selected",
            ">create",
            ">update",
            ">links",
            ">files",
            ">state",
            ">delete",
            ">unchanged",
            ">conflicts",
            ">impossible",
        ];
        print::talk(&print::table_text(&headers, &rows));
    }
    for line in grouped(plan.findings()) {
        print::talk(&line);
    }
    let conflicts = plan.end().counts.conflicts;
    if conflicts > 0 {
        for line in
            plan.lines()?.filter_map(Result::ok).take_while(|line| !matches!(line, PlanLine::Op(_))).take(10_000)
        {
            if let PlanLine::Conflict(conflict) = line {
                print::talk(&format!(
                    "conflict: {} {} {} differs; it is left alone (both values are in the plan)",
                    conflict.table, conflict.id, conflict.column
                ));
                break;
            }
        }
        print::talk(&format!("{} values differ and are left alone by this plan", print::count(conflicts)));
    }
    let end = plan.end();
    print::talk(&format!(
        "plan {}: {} operations, {} write requests, about {} min under the service's limits",
        plan.path().display(),
        print::count(end.ops),
        print::count(end.requests),
        end.minutes
    ));
    Ok(())
}

/// What a person wants to know of a finished restore; talk where it was asked for, data where its report is.
pub(super) fn ended(end: &RestoreEnd, say: fn(&str)) {
    let report = &end.report;
    let rows = &report.outcomes;
    for rejection in report.rejections.iter().take(SHOWN_MAX) {
        say(&format!("refused: {} {}: {} {}", rejection.table, rejection.id, rejection.code, rejection.message));
    }
    for conflict in report.conflicts.iter().take(SHOWN_MAX) {
        say(&format!("skipped: {} {}: {}", conflict.table, conflict.id, conflict.message));
    }
    let mut adjusted: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for row in &report.adjusted {
        *adjusted.entry((&row.table, &row.message)).or_default() += 1;
    }
    for ((table, message), rows) in adjusted {
        say(&format!("adjusted: {table}: {message} ({} rows)", print::count(rows)));
    }
    say(&format!(
        "run {}: {} rows created, {} updated, {} deleted, {} unchanged, {} skipped, {} rejected",
        report.run,
        print::count(rows.created),
        print::count(rows.updated),
        print::count(rows.deleted),
        print::count(rows.unchanged),
        print::count(rows.skipped),
        print::count(rows.rejected)
    ));
    if let Some(proof) = &end.proof {
        let compared: u64 = proof.tables.values().map(|table| table.rows).sum();
        let explained: u64 = proof.tables.values().flat_map(|table| table.reasons.values()).sum();
        say(&format!(
            "read back: {} rows, {} links, {} files; {} values differ for a known reason, {} without one",
            print::count(compared),
            print::count(proof.links),
            print::count(proof.content),
            print::count(explained - proof.unexplained),
            proof.unexplained
        ));
    }
    if matches!(report.status, RunStatus::Succeeded | RunStatus::Partial) {
        say(&format!("take it back with: dynavault restore undo {}", report.run));
    }
}
