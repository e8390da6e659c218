//! House rules that no compiler checks: the layers of the crates, leftovers, file sizes, documents that name files which are
//! gone, and what must not come in through dependencies. Ratchets: an exception is listed here, and goes when it is mended.

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates a crate may use, lowest layer first. `simulator` is a fake of the services, written independently:
/// it may use none of ours, and only the binary and tests may use it. Tests of a crate may use any crate of a lower layer as
/// well: dev-dependencies are not part of what ships.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("model", &[]),
    ("identity", &["model"]),
    ("catalog", &["model"]),
    ("odata", &["model", "identity"]),
    ("store", &["model", "identity"]),
    ("ce", &["model", "odata"]),
    ("uo", &["model", "odata"]),
    ("vault", &["model", "store"]),
    ("pipeline", &["model", "vault", "catalog"]),
    ("restore", &["model", "vault", "catalog"]),
    ("engine", &["model", "identity", "catalog", "odata", "store", "ce", "uo", "vault", "pipeline", "restore"]),
    ("daemon", &["model", "engine"]),
    ("simulator", &[]),
    ("dynavault", &["model", "engine", "daemon", "simulator"]),
];

/// Longest file of Rust source.
const LINES_MAX: usize = 700;
/// Files that are longer, with the length they may have. Shorten a file, then its number here.
const LONG_FILES: [(&str, usize); 0] = [];

/// Files that print to standard output beside the print modules.
const PRINTING_FILES: [&str; 0] = [];

/// Folders that hold nothing of ours.
const FOREIGN: [&str; 5] = [".git", "target", "node_modules", ".venv", "golden"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of the repository whose names end so, by their paths from the root.
fn files(ends: &[&str]) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !FOREIGN.contains(&name) {
                    folders.push(path);
                }
            } else if ends.iter().any(|end| name.ends_with(end)) {
                found.insert(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), path);
            }
        }
    }
    found
}

fn lines(path: &Path) -> Vec<(usize, String)> {
    fs::read_to_string(path).unwrap().lines().enumerate().map(|(at, line)| (at + 1, line.to_owned())).collect()
}

/// Fails with every finding at once.
#[track_caller]
fn none(findings: Vec<String>, rule: &str) {
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}

/// Our crates among the dependencies of a manifest: `(crate, in which section)`.
fn edges(manifest: &toml::Table) -> Vec<(String, String)> {
    let mut edges = Vec::new();
    let mut collect = |table: &toml::Table, under: &str| {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for name in table.get(section).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys) {
                if let Some(short) = name.strip_prefix("dynavault-") {
                    edges.push((short.to_owned(), format!("{under}{section}")));
                }
            }
        }
    };
    collect(manifest, "");
    for (target, table) in manifest.get("target").and_then(toml::Value::as_table).into_iter().flatten() {
        collect(table.as_table().unwrap(), &format!("target.{target}."));
    }
    edges
}

/// Layer of a crate: one above the highest of those it may use.
fn layer(name: &str) -> usize {
    let uses = MAY_USE.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, uses)| uses);
    uses.iter().map(|used| layer(used) + 1).max().unwrap_or(0)
}

#[test]
fn crates_depend_only_downwards() {
    let known: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let mut findings = Vec::new();
    let mut seen = 0;
    for (name, path) in files(&["Cargo.toml"]) {
        let manifest: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        let package = manifest["package"]["name"].as_str().unwrap();
        let package = package.strip_prefix("dynavault-").unwrap_or(package);
        let Some(allowed) = known.get(package) else {
            findings.push(format!(
                "{name}: crate {package} has no layer; give it a row in MAY_USE of tests/tidy.rs, with a reason"
            ));
            continue;
        };
        seen += 1;
        for (used, section) in edges(&manifest) {
            // What tests use is not part of what ships: a vault needs a store to be tried on. The simulator stays apart even so.
            let below = package != "simulator" && layer(&used) < layer(package);
            let by_test = section.ends_with("dev-dependencies") && (below || used == "simulator");
            if !allowed.contains(&used.as_str()) && !by_test {
                let why = match used.as_str() {
                    "simulator" => "only the binary and tests use the simulator, so that it stays an independent reading of the protocols".to_owned(),
                    _ if package == "simulator" => "the simulator uses none of ours: a misreading shared with the client would stay hidden".to_owned(),
                    _ if known.get(used.as_str()).is_some_and(|theirs| theirs.contains(&package)) => format!("{used} is above {package}; move what is shared down"),
                    _ => format!("{package} may use {}; a port in a lower crate, or a part handed in by engine, does without the edge", allowed.join(", ")),
                };
                findings.push(format!("{name}: {section} of {package} names {used}: {why}"));
            }
        }
    }
    assert!(seen >= 11, "{seen} crates");
    none(findings, "stray edges between crates");
}

#[test]
fn the_layers_have_no_circle() {
    let mut below = BTreeSet::new();
    for (name, uses) in MAY_USE {
        assert!(uses.iter().all(|used| below.contains(used)), "{name} uses a crate that is not below it");
        below.insert(name);
    }
}

#[test]
fn nothing_unfinished_is_left_in_the_source() {
    // Put together here, so that this file does not find itself.
    let words = [
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
    ];
    let mut findings = Vec::new();
    for (name, path) in files(&[".rs"]) {
        for (number, line) in lines(&path) {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                findings.push(format!("{name}:{number}: {word}"));
            }
        }
    }
    none(findings, "leftovers");
}

#[test]
fn only_print_modules_print_to_standard_output() {
    let mut findings = Vec::new();
    for (name, path) in files(&[".rs"]) {
        if name.ends_with("print.rs") || name.starts_with("benches/") || PRINTING_FILES.contains(&name.as_str()) {
            continue;
        }
        for (number, line) in lines(&path) {
            let prints = line.match_indices("print").any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let own_word = before.is_none_or(|before| !before.is_alphanumeric() && before != '_');
                own_word
                    && [concat!("print", "ln!("), concat!("print", "!(")]
                        .iter()
                        .any(|word| line[at..].starts_with(word))
            });
            if prints {
                findings.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    none(findings, "standard output is data, and has one door");
}

#[test]
fn files_are_short_enough_to_be_read() {
    let long: BTreeMap<&str, usize> = LONG_FILES.into_iter().collect();
    let mut findings = Vec::new();
    for (name, path) in files(&[".rs"]) {
        let count = lines(&path).len();
        match long.get(name.as_str()) {
            None if count > LINES_MAX => findings.push(format!("{name} has {count} lines, {LINES_MAX} is the limit")),
            Some(allowed) if count > *allowed => {
                findings.push(format!("{name} has grown to {count} lines from {allowed}"));
            }
            Some(_) if count <= LINES_MAX => findings.push(format!("{name} is short now; take it from LONG_FILES")),
            _ => {}
        }
    }
    for (name, _) in LONG_FILES {
        if !root().join(name).exists() {
            findings.push(format!("{name} is gone; take it from LONG_FILES"));
        }
    }
    none(findings, "file lengths");
}

/// Texts between single backticks of a line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Targets of the links of a line that lead to files of the repository.
fn links(line: &str) -> Vec<&str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(|target| target.split(['#', ' ']).next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

#[test]
fn documents_name_files_that_exist() {
    let mut findings = Vec::new();
    for (name, path) in files(&[".md", ".rs", ".sh", ".toml"]) {
        let is_document = path.extension().is_some_and(|end| end == "md");
        let mut in_code = false;
        for (number, line) in lines(&path) {
            if line.trim_start().starts_with("```") {
                in_code = !in_code && is_document;
                continue;
            }
            let comment = line.trim_start().starts_with("//") || line.trim_start().starts_with('#');
            if in_code || !(is_document || comment) {
                continue;
            }
            for text in quoted(&line) {
                // A path may be followed by where in the file, or be the program of a command line.
                let word = text.split([' ', ':', '#']).next().unwrap_or_default().trim_end_matches(['.', ',', ';']);
                let ours = ["crates/", "docs/", "tests/", "src/", "benches/", "config/", ".ci/"]
                    .iter()
                    .any(|start| word.starts_with(start));
                if !ours || word.contains(['*', '<', '{', '…', '$']) {
                    continue;
                }
                let beside = path.ancestors().skip(1).take(3).any(|folder| folder.join(word).exists());
                if !beside && !root().join(word).exists() {
                    findings.push(format!("{name}:{number}: `{word}`"));
                }
            }
            if is_document {
                for target in links(&line) {
                    let found = match target.strip_prefix('/') {
                        Some(from_root) => root().join(from_root),
                        None => path.parent().unwrap().join(target),
                    };
                    if !found.exists() {
                        findings.push(format!("{name}:{number}: link to {target}"));
                    }
                }
            }
        }
    }
    none(findings, "files that are named and gone");
}

#[test]
fn one_http_stack_and_no_openssl() {
    let lock: toml::Table = fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        versions.entry(package["name"].as_str().unwrap()).or_default().insert(package["version"].as_str().unwrap());
    }
    assert!(versions.len() > 100);
    for absent in ["openssl", "openssl-sys", "native-tls", "openssl-src"] {
        assert!(!versions.contains_key(absent), "{absent} came in; cargo tree -i {absent} says through whom");
    }
    for single in ["reqwest", "hyper", "rustls", "tokio", "serde_json", "zstd-safe"] {
        let found = versions.get(single).unwrap_or_else(|| panic!("{single} is not in the lock file"));
        assert_eq!(found.len(), 1, "{single} is there as {found:?}; cargo tree -d says through whom");
    }
}

#[test]
fn each_dependency_has_one_version_and_a_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let mut findings = Vec::new();
    for line in
        section.lines().filter(|line| line.contains('=') && !line.starts_with("dynavault-") && !line.starts_with('#'))
    {
        if line.split(" # ").nth(1).is_none_or(|reason| reason.trim().len() < 5) {
            findings.push(line.to_owned());
        }
    }
    none(findings, "dependencies without a word why they are in the tree");
    let mut findings = Vec::new();
    for (name, path) in files(&["Cargo.toml"]) {
        let manifest: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (used, how) in manifest.get(section).and_then(toml::Value::as_table).into_iter().flatten() {
                if how.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    findings.push(format!("{name}: {used} in {section}"));
                }
            }
        }
    }
    none(findings, "versions are said once, in the root");
}
