//! `doctor`.

use dynavault_engine::{CheckStatus, Config, DoctorReport, Engine};
use tokio_util::sync::CancellationToken;

use super::Outcome;
use crate::args::Global;
use crate::{exit, print};

pub(super) async fn run(environment: Option<String>, global: &Global, cancel: &CancellationToken) -> Outcome {
    let report = match Config::load(global.config().as_deref()) {
        Ok(loaded) => {
            let path = loaded.path.display().to_string();
            Engine::new(loaded.config).doctor(environment.as_deref(), &path, cancel).await?
        }
        // The first check has failed, and the others need it.
        Err(error) => DoctorReport::without_configuration(error),
    };
    if global.json {
        print::json(&report);
    } else {
        show(&report);
    }
    Ok(report.fault().map_or(exit::DONE, exit::of_failure))
}

fn show(report: &DoctorReport) {
    let rows: Vec<Vec<String>> = report
        .checks
        .iter()
        .map(|line| {
            vec![line.status.name().to_string(), line.check.to_string(), line.subject.clone(), line.found.clone()]
        })
        .collect();
    print::table(&["status", "check", "of", "found"], &rows);
    for line in report.checks.iter().filter(|line| line.status != CheckStatus::Ok) {
        print::talk(&format!("{}: {} of {}: {}", line.status.name(), line.check, line.subject, line.found));
        if let Some(remedy) = &line.remedy {
            print::talk(&format!("hint: {remedy}"));
        }
    }
}
