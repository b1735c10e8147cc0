//! Keys that are given twice, in any map of any file.

use std::sync::Arc;

use crate::{
    application::Application,
    problem::{Problem, Problems, Source},
    yaml::Entry,
};

/// The entries without those whose key came before, each of which is reported.
pub(super) fn unique<'n>(
    source: &Arc<Source>,
    entries: &'n [Entry],
    problems: &mut Problems,
) -> Vec<&'n Entry> {
    let mut kept: Vec<&Entry> = Vec::new();
    for entry in entries {
        let key = entry.key.as_str();
        match kept
            .iter()
            .find(|other| canonical(&other.key) == canonical(key))
        {
            None => kept.push(entry),
            Some(first) => problems.push(
                Problem::error(
                    source,
                    entry.key_span.clone(),
                    format!("`{key}` is given twice"),
                )
                .label("given again here")
                .related(first.key_span.clone(), "first given here"),
            ),
        }
    }
    kept
}

/// `Fluentd` and `fluentd` are one key.
fn canonical(key: &str) -> &str {
    match Application::from_documented_capital(key) {
        Some(application) => application.key(),
        None => key,
    }
}
