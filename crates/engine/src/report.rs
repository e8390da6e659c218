//! A page about one run: self-contained HTML, no script, nothing from another host, readable on paper.

use std::fmt::Write;

use dynavault_catalog::RunSummary;
use dynavault_model::{RunReport, TableStatus};

use crate::assemble::Engine;
use crate::failure::Failure;
use crate::restore::RestoreEnd;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1b1f}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.ok{color:#116329}.bad{color:#a40e26}code{background:#f3f3f5;padding:0 .2rem}.note{color:#555}\
@media(prefers-color-scheme:dark){body{background:#16161a;color:#e8e8ec}th,td{border-color:#333}code{background:#26262c}.ok{color:#57c27c}.bad{color:#ff7b85}.note{color:#aaa}}";

/// Text that cannot be taken for markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    out
}

/// A page under construction.
struct Page(String);

impl Page {
    fn new(title: &str) -> Self {
        let title = escape(title);
        Self(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        ))
    }

    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _infallible = self.0.write_fmt(text);
    }

    fn heading(&mut self, text: &str) {
        self.add(format_args!("<h2>{}</h2>\n", escape(text)));
    }

    /// A table; a header that begins with `>` is a column of numbers.
    fn table(&mut self, headers: &[&str], rows: &[Vec<String>]) {
        if rows.is_empty() {
            self.add(format_args!("<p class=\"note\">none</p>\n"));
            return;
        }
        let class = |header: &str| if header.starts_with('>') { " class=\"n\"" } else { "" };
        self.add(format_args!("<table><thead><tr>"));
        for header in headers {
            self.add(format_args!("<th{}>{}</th>", class(header), escape(header.trim_start_matches('>'))));
        }
        self.add(format_args!("</tr></thead><tbody>\n"));
        for row in rows {
            self.add(format_args!("<tr>"));
            for (header, cell) in headers.iter().zip(row) {
                self.add(format_args!("<td{}>{}</td>", class(header), escape(cell)));
            }
            self.add(format_args!("</tr>\n"));
        }
        self.add(format_args!("</tbody></table>\n"));
    }

    fn finish(mut self) -> String {
        self.0.push_str("</body></html>\n");
        self.0
    }
}

fn head(page: &mut Page, run: &RunSummary) {
    let good = run.status == "succeeded";
    page.add(format_args!(
        "<p>{} of <strong>{}</strong>: <strong class=\"{}\">{}</strong><br>started {}{}<br>run <code>{}</code></p>\n",
        escape(&run.kind),
        escape(&run.environment),
        if good { "ok" } else { "bad" },
        escape(&run.status),
        escape(&run.started),
        run.finished.as_deref().map(|end| format!(", ended {}", escape(end))).unwrap_or_default(),
        escape(&run.run)
    ));
    if let Some(error) = &run.error {
        page.add(format_args!("<p class=\"bad\">{}</p>\n", escape(error)));
    }
}

fn of_restore(page: &mut Page, end: &RestoreEnd) {
    let rows = &end.report.outcomes;
    page.heading("Rows");
    let counts = [
        ("planned", end.report.planned),
        ("created", rows.created),
        ("updated", rows.updated),
        ("deleted", rows.deleted),
        ("unchanged", rows.unchanged),
        ("skipped", rows.skipped),
        ("rejected", rows.rejected),
    ];
    let counts: Vec<Vec<String>> =
        counts.iter().map(|(name, count)| vec![(*name).to_string(), count.to_string()]).collect();
    page.table(&["outcome", ">rows"], &counts);
    let listed = |rows: &[dynavault_restore::RejectedRow]| -> Vec<Vec<String>> {
        rows.iter().map(|row| vec![row.table.clone(), row.id.clone(), row.code.clone(), row.message.clone()]).collect()
    };
    page.heading("Refused by the service");
    page.table(&["table", "row", "code", "message"], &listed(&end.report.rejections));
    page.heading("Left alone, because they changed since the plan was made");
    page.table(&["table", "row", "code", "message"], &listed(&end.report.conflicts));
    page.heading("Written differently from the plan");
    page.table(&["table", "row", "code", "message"], &listed(&end.report.adjusted));
    let Some(proof) = &end.proof else { return };
    page.heading("Read back and compared");
    page.add(format_args!(
        "<p class=\"{}\">{}</p>\n",
        if proof.holds() { "ok" } else { "bad" },
        if proof.holds() { "Every difference has a reason." } else { "Some values differ without a known reason." }
    ));
    let tables: Vec<Vec<String>> = proof
        .tables
        .iter()
        .map(|(name, table)| {
            let reasons: Vec<String> =
                table.reasons.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
            vec![name.clone(), table.rows.to_string(), table.equal.to_string(), reasons.join(", ")]
        })
        .collect();
    page.table(&["table", ">rows", ">equal in every value", "values that differ"], &tables);
    page.heading("Differences that are not the rule for their column");
    let differences: Vec<Vec<String>> = proof
        .differences
        .iter()
        .map(|difference| {
            let column = difference.column.clone().unwrap_or_default();
            vec![difference.table.clone(), difference.id.clone(), column, difference.reason.clone()]
        })
        .collect();
    page.table(&["table", "row", "column", "reason"], &differences);
    page.add(format_args!(
        "<p class=\"note\">{} requests were foreseen for writing, {} sent in all; {} times the service asked to slow down.</p>\n",
        end.requests_planned, end.requests, end.throttled
    ));
}

fn of_backup(page: &mut Page, report: &RunReport) {
    page.heading("Tables");
    let rows: Vec<Vec<String>> = report
        .tables
        .iter()
        .map(|table| {
            let word = match table.status {
                TableStatus::Succeeded => "captured",
                TableStatus::Refused => "refused",
                TableStatus::Failed => "failed",
            };
            vec![
                table.table.clone(),
                word.into(),
                table.rows_read.to_string(),
                table.created.to_string(),
                table.changed.to_string(),
                table.deleted.to_string(),
                table.live_rows.to_string(),
                table.bytes_stored.to_string(),
                table.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let headers =
        ["table", "status", ">rows read", ">created", ">changed", ">deleted", ">rows now", ">bytes stored", "reason"];
    page.table(&headers, &rows);
    page.add(format_args!(
        "<p class=\"note\">{} requests, {} bytes received, {} bytes stored.</p>\n",
        report.requests, report.bytes_received, report.bytes_stored
    ));
}

impl Engine {
    /// A page about a run.
    pub async fn run_page(&self, run: &str) -> Result<String, Failure> {
        let (summary, report) = self.run(run).await?;
        let mut page = Page::new(&format!("{} of {}, {}", summary.kind, summary.environment, summary.started));
        head(&mut page, &summary);
        let report = report.unwrap_or_default();
        match summary.kind.as_str() {
            "restore" => {
                if let Ok(end) = serde_json::from_str::<RestoreEnd>(&report) {
                    of_restore(&mut page, &end);
                }
            }
            _ => {
                if let Ok(report) = serde_json::from_str::<RunReport>(&report) {
                    of_backup(&mut page, &report);
                }
            }
        }
        Ok(page.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_the_service_becomes_markup() {
        let mut page = Page::new("<script>alert(1)</script>");
        page.table(&["a"], &[vec!["<img src=x onerror=y> & \"quoted\"".into()]]);
        let text = page.finish();
        assert!(!text.contains("<script>") && !text.contains("<img"), "{text}");
        assert!(text.contains("&lt;img src=x onerror=y&gt; &amp; &quot;quoted&quot;"));
    }
}
