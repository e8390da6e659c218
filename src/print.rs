//! The only place that writes to the terminal: data to standard output, talk to standard error.
//!
//! Talk that nobody can hear must not stop a backup: a closed pipe or a full disk behind standard error is passed over. Data
//! that could not be written is another matter; [`lost`] tells, and the program does not end with 0 then.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use dynavault_engine::Failure;
use serde::Serialize;
use serde_json::json;

/// Whether data could not be written.
static LOST: AtomicBool = AtomicBool::new(false);
/// Whether a JSON document was printed.
static DOCUMENT: AtomicBool = AtomicBool::new(false);

/// A line of talk.
pub(crate) fn talk(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Data. A reader that has gone away (`| head`) is not an error.
pub(crate) fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
        && !LOST.swap(true, Ordering::Relaxed)
    {
        talk(&format!("error: could not write standard output: {error}"));
    }
}

/// Whether data could not be written to standard output.
pub(crate) fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// One JSON document on standard output.
pub(crate) fn json(value: &impl Serialize) {
    DOCUMENT.store(true, Ordering::Relaxed);
    match serde_json::to_string_pretty(value) {
        Ok(text) => data(&text),
        Err(error) => talk(&format!("error: could not print the result: {error}")),
    }
}

/// A failure: the chain of causes, then what to do.
pub(crate) fn failure(failure: &Failure) {
    talk(&format!("error: {}", failure.message()));
    if let Some(remedy) = failure.remedy() {
        talk(&format!("hint: {remedy}"));
    }
}

/// A failure as the one JSON document, unless the command has printed one of its own, such as the report of a failed run.
pub(crate) fn failure_document(message: &str, hint: Option<&str>, code: u8) {
    if !DOCUMENT.load(Ordering::Relaxed) {
        let status = if code == crate::exit::INTERRUPTED { "cancelled" } else { "failed" };
        json(&json!({"status": status, "error": message, "hint": hint, "exit_code": code}));
    }
}

/// A table with aligned columns; columns whose header begins with `>` are right-aligned.
pub(crate) fn table(headers: &[&str], rows: &[Vec<String>]) {
    data(&table_text(headers, rows));
}

/// The text of [`table`].
pub(crate) fn table_text(headers: &[&str], rows: &[Vec<String>]) -> String {
    let titles: Vec<&str> = headers.iter().map(|header| header.trim_start_matches('>')).collect();
    let mut widths: Vec<usize> = titles.iter().map(|title| title.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (index, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[index].saturating_sub(cell.chars().count()));
            let right = headers[index].starts_with('>');
            let (first, second) = if right { (pad.as_str(), *cell) } else { (*cell, pad.as_str()) };
            text.extend([first, second, "  "]);
        }
        text.trim_end().to_string()
    };
    let mut lines = vec![line(titles.clone())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// Bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Counts for people: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!((count(0), count(999), count(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((bytes(12), bytes(1536), bytes(5 << 30)), ("12 B".into(), "1.5 KiB".into(), "5.0 GiB".into()));
    }

    #[test]
    fn tables_line_up() {
        let text = table_text(&["name", ">rows"], &[vec!["a".into(), "10".into()], vec!["bcdef".into(), "7".into()]]);
        assert_eq!(text, "name   rows\na        10\nbcdef     7");
    }
}
