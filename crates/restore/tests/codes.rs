//! Every code that a plan, a proof or an undo can give is explained in the guide, and the guide explains no other.

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Words in hyphens that are no codes: how names are spelled in files.
const NO_CODES: [&str; 1] = ["kebab-case"];
/// What stands before a code of one word, in the files that have such codes.
const GIVEN: [(&str, &[&str]); 7] = [
    ("restore/src/draft.rs", &[".row(", ".table(", ".add("]),
    ("restore/src/stage.rs", &[".row(", ".table("]),
    ("restore/src/tables.rs", &["Role::Left("]),
    ("restore/src/project.rs", &["&str ="]),
    ("restore/src/prove.rs", &["&str ="]),
    ("restore/src/adjust.rs", &["&str ="]),
    ("ce/src/rules.rs", &["return Some(", ".then_some(", "not_written: Some("]),
];

fn sources() -> Vec<PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    let entries = fs::read_dir(crates.join("restore/src")).unwrap().map(|entry| entry.unwrap().path());
    found.extend(entries.filter(|path| path.extension().is_some_and(|end| end == "rs")));
    found.push(crates.join("ce/src/rules.rs"));
    found
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.split('-').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase()))
}

/// Codes that the sources give.
fn given() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    for path in sources() {
        let before_words = GIVEN.iter().find(|(file, _)| path.ends_with(file)).map_or(&[][..], |(_, before)| before);
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let lines: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = lines.join("\n");
        let parts: Vec<&str> = code.split('"').collect();
        for pair in parts.windows(2).step_by(2) {
            let (before, word) = (pair[0].trim_end(), pair[1]);
            let code = before_words.iter().any(|given| before.ends_with(given)) || word.contains('-');
            if code && is_word(word) && !NO_CODES.contains(&word) {
                codes.insert(word.to_string());
            }
        }
    }
    codes
}

/// Codes that the guide explains: the first cells of its tables.
fn explained() -> BTreeSet<String> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/restore-differences.md");
    let text = fs::read_to_string(guide).unwrap();
    let first = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_string());
    let codes: Vec<String> = text.lines().filter_map(first).collect();
    let once: BTreeSet<String> = codes.iter().cloned().collect();
    assert_eq!(codes.len(), once.len(), "a code is explained twice: {codes:?}");
    once
}

#[test]
fn every_code_is_explained_in_the_guide() {
    let (given, explained) = (given(), explained());
    assert!(given.len() > 40, "{given:?}");
    let missing: Vec<_> = given.difference(&explained).collect();
    assert!(missing.is_empty(), "not in docs/guide/restore-differences.md: {missing:?}");
    let gone: Vec<_> = explained.difference(&given).collect();
    assert!(gone.is_empty(), "in docs/guide/restore-differences.md, and never given: {gone:?}");
}
