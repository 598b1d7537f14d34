//! What the documents name exists: tests, files, folders.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn document(name: &str) -> String {
    std::fs::read_to_string(workspace().join(name)).unwrap()
}

/// All Rust sources of the workspace.
fn sources() -> String {
    let mut text = String::new();
    let roots = ["crates", "hooks", "shim", "supervisor", "launcher", "install", "tests"];
    let mut folders: Vec<PathBuf> = roots.iter().map(|root| workspace().join(root)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    text
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_promise_names_tests_that_exist() {
    let security = document("SECURITY.md");
    let (promises, rest) = security.split_once("### Promises and their tests").unwrap();
    let (table, _) = rest.split_once("\n## ").unwrap();
    let numbered =
        promises.lines().filter_map(|line| line.split_once(". ")?.0.parse::<u32>().ok()).collect::<Vec<_>>();
    assert_eq!(numbered, (1..=39).collect::<Vec<_>>(), "the promises are numbered");
    let sources = sources();
    for number in numbered {
        let row = table.lines().find(|line| line.starts_with(&format!("| {number} |")));
        let tests: Vec<&str> = quoted(row.unwrap()).collect();
        assert!(!tests.is_empty(), "promise {number} has no test");
        for test in tests {
            assert!(sources.contains(&format!("fn {test}(")), "promise {number}: there is no test {test}");
        }
    }
}

#[test]
fn every_row_of_the_comparison_names_tests_that_exist() {
    let (text, sources) = (document("docs/parity.md"), sources());
    let mut rows = 0;
    for line in text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---")) {
        let cell = line.trim_end_matches('|').rsplit('|').next().unwrap();
        if cell.trim() == "tests" {
            continue;
        }
        rows += 1;
        let tests: Vec<&str> = quoted(cell).collect();
        assert!(!tests.is_empty(), "no test: {line}");
        for test in tests {
            assert!(sources.contains(&format!("fn {test}(")), "there is no test {test}: {line}");
        }
    }
    assert!(rows > 20, "{rows} rows");
}

#[test]
fn every_link_and_folder_of_the_documents_exists() {
    for name in [
        "README.md",
        "SECURITY.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/parity.md",
        "docs/providers.md",
        "docs/vault.md",
    ] {
        let text = document(name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") {
                let folder = workspace().join(name).parent().unwrap().to_path_buf();
                assert!(folder.join(path).exists(), "{name}: {link}");
            }
        }
        for word in quoted(&text) {
            let is_ours =
                ["crates/", "hooks/", "supervisor/", "launcher/", "install/", "profiles/", "tests/"];
            let is_path = is_ours.iter().any(|folder| word.starts_with(folder)) && !word.contains([' ', '*']);
            assert!(!is_path || workspace().join(word).exists(), "{name}: {word}");
        }
    }
}
