//! Every command explains itself, and the commands that set a host up leave usable files and overwrite none.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::site::{Done, run_in};

fn run(arguments: &[&str]) -> Done {
    run_in(&std::env::temp_dir(), arguments)
}

/// Names below the heading `Commands:`.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect()
}

fn walk(path: &[&str], leaves: &mut Vec<String>) {
    let mut arguments = path.to_vec();
    arguments.push("--help");
    let done = run(&arguments).code(0);
    assert!(done.err.is_empty(), "help is data: {}", done.err);
    let help = done.text();
    assert!(help.contains("Usage: dynavault"), "{path:?}:\n{help}");
    let below = subcommands(help);
    if below.is_empty() {
        let example = help.lines().find(|line| line.starts_with("Example: dynavault "));
        let example = example.unwrap_or_else(|| panic!("{path:?} has no example:\n{help}"));
        assert!(example.contains(&path.join(" ")), "the example of {path:?} is of another command: {example}");
        leaves.push(path.join(" "));
    }
    for name in below {
        let mut longer = path.to_vec();
        longer.push(&name);
        walk(&longer, leaves);
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    let mut leaves = Vec::new();
    walk(&[], &mut leaves);
    for expected in ["demo", "init", "config check", "env list", "env tables", "env whoami", "backup", "snapshot list"]
        .iter()
        .chain(&["snapshot show", "export", "verify", "run list", "run show", "catalog rebuild", "key generate"])
    {
        assert!(leaves.iter().any(|leaf| leaf == expected), "{expected} is missing from {leaves:?}");
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error_without_data() {
    for arguments in [&["bakcup"][..], &["backup", "--ful"], &["export"], &["verify", "--sample", "0%"], &[]] {
        let done = run(arguments).code(2);
        assert!(done.out.is_empty() && (done.err.contains("Usage:") || done.err.contains("try '--help'")), "{done:?}");
    }
    assert!(run(&["bakcup"]).err.contains("backup"), "the nearest command is named");
}

#[test]
fn init_writes_a_file_that_config_check_accepts_and_overwrites_none() {
    let folder = tempfile::tempdir().unwrap();
    let done = run_in(folder.path(), &["init"]).code(0);
    assert!(done.out.is_empty(), "init talks, it prints no data");
    let path = folder.path().join("dynavault.toml");
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let checked = run_in(folder.path(), &["config", "check", "--json"]).code(0).json();
    for key in ["environments", "profiles", "jobs"] {
        assert!(checked[key].as_u64().unwrap() >= 1, "{checked}");
    }
    assert_eq!(checked["path"], "dynavault.toml");
    fs::write(&path, "mine").unwrap();
    run_in(folder.path(), &["init"]).code(1).one_error().says(&["dynavault.toml", "exists"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    let printed = run_in(folder.path(), &["init", "--print"]).code(0);
    assert_eq!(printed.text().trim_end(), written.trim_end());
}

#[test]
fn key_generate_writes_a_private_file_and_never_over_one() {
    let folder = tempfile::tempdir().unwrap();
    let done = run_in(folder.path(), &["key", "generate", "restore.key"]).code(0);
    let recipient = done.text().trim_end().to_owned();
    assert!(recipient.starts_with("age1") && !recipient.contains(char::is_whitespace), "{recipient:?}");
    let path = folder.path().join("restore.key");
    let secret = fs::read_to_string(&path).unwrap();
    assert!(secret.contains("AGE-SECRET-KEY-1") && secret.contains(&recipient));
    assert!(!done.err.contains("AGE-SECRET-KEY"), "the secret key was shown");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    run_in(folder.path(), &["key", "generate", "restore.key"]).code(1).one_error().says(&["restore.key", "exists"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), secret);
}

#[test]
fn completions_and_manual_pages_are_generated() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let done = run_in(folder.path(), &["completions", shell]).code(0);
        assert!(done.text().contains("snapshot") && done.err.is_empty());
    }
    run_in(folder.path(), &["man", "man"]).code(0);
    let pages = fs::read_dir(folder.path().join("man")).unwrap().count();
    assert!(pages > 15, "{pages} pages");
    let page = fs::read_to_string(folder.path().join("man/dynavault-backup.1")).unwrap();
    assert!(page.contains("dry\\-run"), "{page}");
}
