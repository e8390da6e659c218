//! Live progress on a terminal, and what a run says while it goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dynavault_model::{Observer, TableEvent, TableStatus, Tally};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Global;
use crate::print;

/// How often the line is drawn.
const INTERVAL: Duration = Duration::from_millis(250);

/// Watches a run and shows one line: rows, rate, bytes in and stored, throttling, remaining tables.
pub(crate) struct Progress {
    bar: ProgressBar,
    quiet: bool,
    verbose: bool,
    tables: AtomicUsize,
    done: AtomicUsize,
    expected: AtomicU64,
}

impl Progress {
    /// A progress for the terminal, or a silent one where there is none.
    pub(crate) fn new(global: &Global) -> Arc<Self> {
        let shown = !global.quiet && !global.no_progress && std::io::IsTerminal::is_terminal(&std::io::stderr());
        let target = if shown { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Arc::new(Self {
            bar,
            quiet: global.quiet,
            verbose: global.verbose > 0,
            tables: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            expected: AtomicU64::new(0),
        })
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| print::talk(text));
        }
    }

    /// Draws the line until the future ends.
    pub(crate) async fn during<T>(&self, tally: &Arc<Tally>, work: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let mut interval = tokio::time::interval(INTERVAL);
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = interval.tick() => {
                    self.bar.set_message(self.line(tally, start.elapsed()));
                    self.bar.tick();
                }
            }
        };
        self.bar.finish_and_clear();
        result
    }

    fn line(&self, tally: &Tally, elapsed: Duration) -> String {
        let totals = tally.totals();
        let seconds = elapsed.as_secs_f64().max(0.001);
        let rate = (totals.rows_read as f64 / seconds) as u64;
        let expected = match self.expected.load(Ordering::Relaxed) {
            0 => String::new(),
            rows => format!(" of about {}", print::count(rows)),
        };
        let (tables, done) = (self.tables.load(Ordering::Relaxed), self.done.load(Ordering::Relaxed));
        let throttled = match totals.throttled {
            0 => String::new(),
            count => format!(" · throttled {count}×"),
        };
        format!(
            "{} rows{expected} · {} rows/s · {} in · {} stored{throttled} · {} of {tables} tables left",
            print::count(totals.rows_read),
            print::count(rate),
            print::bytes(totals.bytes_received),
            print::bytes(totals.bytes_stored),
            tables.saturating_sub(done),
        )
    }
}

impl Observer for Progress {
    fn event(&self, event: TableEvent) {
        match event {
            TableEvent::Planned { tables, rows } => {
                self.tables.store(tables, Ordering::Relaxed);
                self.expected.store(rows.unwrap_or(0), Ordering::Relaxed);
            }
            TableEvent::Started { table, mode } if self.verbose => {
                let mode = serde_json::to_value(mode).ok().and_then(|mode| mode.as_str().map(str::to_string));
                self.say(&format!("reading {table} ({})", mode.unwrap_or_default()));
            }
            TableEvent::Finished { table, status, rows } => {
                self.done.fetch_add(1, Ordering::Relaxed);
                if self.verbose || status == TableStatus::Failed {
                    let word = match status {
                        TableStatus::Succeeded => "done",
                        TableStatus::Refused => "refused",
                        TableStatus::Failed => "failed",
                    };
                    self.say(&format!("{table}: {word}, {} rows stored", print::count(rows)));
                }
            }
            TableEvent::Notice { table, message } => match table {
                Some(table) => self.say(&format!("{table}: {message}")),
                None => self.say(&message),
            },
            TableEvent::Started { .. } | TableEvent::Committing | TableEvent::Written { .. } => {}
        }
    }
}
