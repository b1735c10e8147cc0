//! The house rules, as code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use fs_err as fs;
use lab::run::Program;

use crate::workspace::{self, tell};

/// A file longer than this is asking to be two.
const MOST_LINES: usize = 500;

/// Checks every tracked file. Adding a rule is adding a function to [`problems`].
pub(crate) fn run() -> Result<ExitCode> {
    let root = workspace::root();
    let listing = Program::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .dir(&root)
        .read()
        .context("listing the files of this clone")?;
    let files: Vec<PathBuf> = listing
        .lines()
        .map(PathBuf::from)
        .filter(|path| root.join(path).is_file())
        .collect();
    let mut found = Vec::new();
    let mut texts = Vec::new();
    for path in &files {
        // A file that is no text has no rules.
        if let Ok(text) = fs::read_to_string(root.join(path)) {
            found.extend(problems(path, &text));
            texts.push((path.clone(), text));
        }
    }
    found.extend(unused_fixtures(&texts));
    for problem in &found {
        tell(&format!("{problem}\n"));
    }
    if found.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    tell(&format!("tidy: {} problems\n", found.len()));
    Ok(ExitCode::FAILURE)
}

fn problems(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let place = path.display();
    let ending = path.extension().unwrap_or_default();
    if ending == "rs" {
        if !text.starts_with("//!") {
            found.push(format!("{place}:1: says nothing of what it is for (`//!`)"));
        }
        let lines = text.lines().count();
        if lines > MOST_LINES {
            found.push(format!(
                "{place}: has {lines} lines, more than {MOST_LINES}"
            ));
        }
        for (index, line) in text.lines().enumerate() {
            // Split, so that this file does not break its own rule.
            if line.contains(concat!("TO", "DO")) || line.contains(concat!("FIX", "ME")) {
                found.push(format!("{place}:{}: puts something off", index + 1));
            }
        }
    }
    if ["rs", "toml", "yaml", "sh", "md"]
        .iter()
        .any(|known| ending == *known)
    {
        for (index, line) in text.lines().enumerate() {
            if line.ends_with(' ') && ending != "md" {
                found.push(format!("{place}:{}: ends in a space", index + 1));
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            found.push(format!("{place}: does not end in a newline"));
        }
    }
    if path.ends_with("Cargo.toml")
        && path != Path::new("Cargo.toml")
        && !text.contains("[lints]\nworkspace = true")
    {
        found.push(format!("{place}: does not take the workspace's lints"));
    }
    found
}

/// A fixture that no code names is dead. A fixture is named by its file, or by a folder above it.
fn unused_fixtures(texts: &[(PathBuf, String)]) -> Vec<String> {
    let code: Vec<&String> = texts
        .iter()
        .filter(|(path, _)| {
            path.extension()
                .is_some_and(|ending| ending == "rs" || ending == "snap")
                || path.ends_with("README.md")
        })
        .map(|(_, text)| text)
        .collect();
    let named = |name: &str| code.iter().any(|text| text.contains(name));
    texts
        .iter()
        .map(|(path, _)| path)
        .filter(|path| path.starts_with("fixtures"))
        .filter(|path| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            // Two levels below `fixtures/`: fixtures/KIND/NAME.
            let parts: Vec<_> = path
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            let folder = parts.get(1..3).map(|parts| parts.join("/"));
            let kind = parts.get(1).map(|kind| format!("fixtures/{kind}"));
            !(named(&format!("\"{stem}\""))
                || folder.is_some_and(|folder| named(&folder))
                || kind.is_some_and(|kind| named(&kind)))
        })
        .map(|path| format!("{}: no code names this fixture", path.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_problem() {
        let long = format!("//! x\n{}", "\n".repeat(MOST_LINES));
        let cases = [
            ("a.rs", "fn x() {}\n", "says nothing"),
            ("a.rs", long.as_str(), "more than 500"),
            (
                "a.rs",
                concat!("//! x\n// TO", "DO\n"),
                "puts something off",
            ),
            ("a.toml", "a = 1 \n", "ends in a space"),
            ("a.yaml", "a: 1", "does not end in a newline"),
            ("b/Cargo.toml", "[package]\n", "lints"),
        ];
        for (path, text, expected) in cases {
            let found = problems(Path::new(path), text);
            assert!(
                found.iter().any(|problem| problem.contains(expected)),
                "{path}: {found:?}"
            );
        }
        assert!(problems(Path::new("a.rs"), "//! Good.\n").is_empty());
    }

    #[test]
    fn a_fixture_without_a_reader_is_found() {
        let texts = |code: &str| {
            vec![
                (
                    PathBuf::from("fixtures/network/lost/policies.yaml"),
                    String::new(),
                ),
                (PathBuf::from("a.rs"), code.to_owned()),
            ]
        };
        assert_eq!(unused_fixtures(&texts("nothing")).len(), 1);
        assert!(unused_fixtures(&texts("load(\"network/lost\")")).is_empty());
    }
}
