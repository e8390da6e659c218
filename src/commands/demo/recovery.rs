//! The second half of the demo: an accident, a plan, a restore with its proof, and the way back.

use std::sync::Arc;

use dynavault_engine::{Failure, PlanFile, Restore, RestoreEnd, RestoreRequest};
use dynavault_model::{Observer, Tally};

use super::moment::{Excuses, Moment};
use super::{Demo, ENVIRONMENT};
use crate::commands::restore;
use crate::print;
use crate::progress::Progress;

/// Accounts that are deleted by accident; what belongs to them goes along.
const DELETED: usize = 5;
/// Share of rows that an import blanks.
const BLANKED: f64 = 0.4;
/// Differences shown.
const SHOWN_MAX: usize = 5;

/// What came of it.
pub(super) struct Recovery {
    pub(super) proved: bool,
    pub(super) restore: RestoreEnd,
    pub(super) undo: RestoreEnd,
}

impl Demo<'_> {
    /// Damages the environment, puts it back, takes that back, and compares with what it was each time.
    pub(super) async fn recover(&self, before: &Moment, seed: u64) -> Result<Recovery, Failure> {
        self.heading(
            "6. An accident: an import blanks columns, and somebody deletes accounts with all that belongs to them",
        );
        let contacts = self.simulator.blank("contact", &["telephone1", "emailaddress1", "jobtitle"], BLANKED, seed);
        let accounts = self.simulator.blank("account", &["revenue", "primarycontactid"], BLANKED, seed);
        let rows = self.simulator.rows("account");
        let doomed: Vec<&str> =
            rows.iter().take(DELETED).filter_map(|row| row.keys.first().map(String::as_str)).collect();
        let deleted = self.simulator.delete_rows("account", &doomed);
        let gone: u64 = deleted.tables.values().map(|table| table.deleted).sum();
        let loose: u64 = deleted.tables.values().map(|table| table.updated).sum();
        print::talk(&format!(
            "{} values are blank, {gone} rows are gone, {loose} rows have lost a reference",
            contacts.values + accounts.values
        ));
        let damaged = Moment::of(&self.simulator);

        self.heading("7. A plan: what a restore of the last snapshot would write; nothing is written yet");
        let plan = self.plan().await?;
        if !self.global.quiet {
            restore::summary(&plan)?;
        }
        self.heading("8. The restore, and its proof: every value it wrote is read back, every difference has a reason");
        let restored = self.apply(&plan).await?;
        let equal = self.judge("the accident", before, &plan, &restored);

        self.heading("9. Change your mind: the undo is a plan as well");
        let out = self.folder.join("undo.jsonl");
        let run = restored.report.run.to_string();
        let undo = self.with(|restore| async move { restore.plan_undo(&run, false, &out).await }).await?;
        let undone = self.apply(&undo).await?;
        let back = self.judge("the restore", &damaged, &plan, &undone);
        Ok(Recovery { proved: equal && back, restore: restored, undo: undone })
    }

    async fn with<'a, T, F: Future<Output = T>>(&'a self, work: impl FnOnce(Restore<'a>) -> F) -> T {
        let tally = Arc::new(Tally::default());
        let progress = Progress::new(self.global);
        let observer = Arc::clone(&progress) as Arc<dyn Observer>;
        let restore = Restore::new(&self.engine, observer, Arc::clone(&tally), self.cancel.clone());
        progress.during(&tally, Box::pin(work(restore))).await
    }

    async fn plan(&self) -> Result<PlanFile, Failure> {
        let request = RestoreRequest { environment: ENVIRONMENT.into(), ..RestoreRequest::default() };
        let out = self.folder.join("plan.jsonl");
        self.with(|restore| async move { restore.plan(&request, &out).await }).await
    }

    async fn apply(&self, plan: &PlanFile) -> Result<RestoreEnd, Failure> {
        let mut end = self.with(|restore| async move { restore.apply(plan.path(), true).await }).await?;
        if !self.global.quiet {
            restore::ended(&end, print::talk);
        }
        match end.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(end),
        }
    }

    /// Compares the environment with an earlier moment: it must be the same but for what the plan and the proof name.
    fn judge(&self, what: &str, before: &Moment, plan: &PlanFile, end: &RestoreEnd) -> bool {
        let mut excuses = Excuses::default();
        for table in plan.tables() {
            let columns = table.not_written.values().flatten().cloned();
            excuses.columns.entry(table.table.clone()).or_default().extend(columns);
        }
        for finding in plan.findings() {
            let Some(table) = finding.table.clone() else { continue };
            match (finding.code.as_str(), &finding.id, &finding.column) {
                ("by-state", Some(id), _) => drop(excuses.rows.insert((table, id.clone()))),
                ("mirrored", ..) => drop(excuses.own_ids.insert(table)),
                (_, Some(id), Some(column)) => drop(excuses.values.insert((table, id.clone(), column.clone()))),
                _ => {}
            }
        }
        if let Some(proof) = &end.proof {
            excuses.values.extend(proof.differences.iter().filter_map(|difference| {
                Some((difference.table.clone(), difference.id.clone(), difference.column.clone()?))
            }));
        }
        let found = before.differences(&Moment::of(&self.simulator), &excuses);
        if found.is_empty() {
            print::talk(&format!(
                "the environment is as before {what}: every row, link and file; only values the service sets itself differ"
            ));
        } else {
            print::talk(&format!("NOT as before {what}: {} differences", found.len()));
            for difference in found.iter().take(SHOWN_MAX) {
                print::talk(difference);
            }
        }
        found.is_empty()
    }
}
