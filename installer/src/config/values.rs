//! A `values.yaml`: read with the place of every value, checked for what Helm would take differently
//! from what was meant, and handed on as JSON.

use std::sync::Arc;

use serde_json::Value;

use super::unique::unique;
use crate::{
    problem::{Problem, Problems, Source},
    yaml::{self, Kind, Node},
};

/// A `values.yaml` with the place of each value.
#[derive(Clone, Debug)]
pub struct Values {
    source: Arc<Source>,
    tree: Node,
}

impl Values {
    /// As Helm gets them.
    pub fn to_json(&self) -> Value {
        self.tree.to_json()
    }

    /// The value at a path of keys, with the path and line to show for it.
    pub(crate) fn find(&self, path: &[impl AsRef<str>]) -> Option<(Value, String)> {
        let entry = self.tree.at(path)?;
        let line = self.source.line_number(entry.key_span.start);
        Some((
            entry.value.to_json(),
            format!("{}:{line}", self.source.path.display()),
        ))
    }
}

/// Checks a `values.yaml`. There are no values when it is empty or cannot be used.
pub(crate) fn check_values(source: &Arc<Source>) -> (Option<Values>, Problems) {
    let mut problems = Problems::default();
    let tree = match yaml::read(source) {
        Ok(tree) => tree,
        Err(problem) => return (None, Problems(vec![*problem])),
    };
    match &tree.kind {
        Kind::Map(_) => {}
        Kind::Null => return (None, problems),
        _ => {
            let message = format!("values must be a map, not {}", tree.describe());
            problems.push(Problem::error(source, tree.span.clone(), message));
            return (None, problems);
        }
    }
    tree.walk(&mut |node| check_node(source, node, &mut problems));
    (
        Some(Values {
            source: Arc::clone(source),
            tree,
        }),
        problems,
    )
}

fn check_node(source: &Arc<Source>, node: &Node, problems: &mut Problems) {
    if let Some(entries) = node.entries() {
        unique(source, entries, problems);
    }
    let Kind::Number(number) = &node.kind else {
        return;
    };
    let written = &source.text[node.span.clone()];
    let digits = written.trim_start_matches(['-', '+']);
    let leading_zero = digits
        .strip_prefix('0')
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if let Some(rest) = leading_zero {
        let message = format!("`{written}` is read as the number {number}");
        let hint = format!("for the text write \"{written}\"; for an octal number write 0o{rest}");
        problems.push(Problem::warning(source, node.span.clone(), message).hint(hint));
    }
}
