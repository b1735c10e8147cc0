//! What is wrong with a file that somebody wrote, and how that is shown: file, line, column, the
//! offending text underlined, and what to do.

use std::{
    fmt::{self, Display},
    ops::Range,
    path::PathBuf,
    sync::Arc,
};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// A file that was read, kept for showing parts of it.
#[derive(Debug)]
pub struct Source {
    /// The path as it is shown, relative to the project where possible.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// A source with a display path and its text.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// The line number, from 1, at a byte offset.
    pub fn line_number(&self, offset: usize) -> usize {
        self.text[..self.clamp(offset..offset).start]
            .matches('\n')
            .count()
            + 1
    }

    /// The column in characters, from 1, at a byte offset.
    pub fn column_number(&self, offset: usize) -> usize {
        let offset = self.clamp(offset..offset).start;
        let start = self.text[..offset]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        self.text[start..offset].chars().count() + 1
    }

    /// The text of the line at a byte offset.
    pub(crate) fn line_of(&self, offset: usize) -> &str {
        let offset = self.clamp(offset..offset).start;
        let start = self.text[..offset]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let end = self.text[offset..]
            .find('\n')
            .map_or(self.text.len(), |newline| offset + newline);
        &self.text[start..end]
    }

    /// The range cut to the text and to whole characters, so that it can always be sliced.
    pub(crate) fn clamp(&self, range: Range<usize>) -> Range<usize> {
        let floor = |mut offset: usize| {
            offset = offset.min(self.text.len());
            while !self.text.is_char_boundary(offset) {
                offset -= 1;
            }
            offset
        };
        let start = floor(range.start);
        start..floor(range.end).max(start)
    }
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is done until it is mended.
    Error,
    /// It is carried out as written, but hardly meant so.
    Warning,
    /// Worth knowing.
    Note,
}

/// One thing that is wrong, or odd, at one place of one file.
#[derive(Clone, Debug)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub source: Arc<Source>,
    /// The offending bytes.
    pub span: Range<usize>,
    /// What is wrong, in one line.
    pub message: String,
    /// Short text at the underlined place.
    pub label: Option<String>,
    /// Other places that matter, with their text.
    pub related: Vec<(Range<usize>, String)>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// An error at a place.
    pub(crate) fn error(
        source: &Arc<Source>,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            source: Arc::clone(source),
            span,
            message: message.into(),
            label: None,
            related: Vec::new(),
            hint: None,
        }
    }

    /// A warning at a place.
    pub(crate) fn warning(
        source: &Arc<Source>,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(source, span, message)
        }
    }

    /// A note at a place.
    pub(crate) fn note(
        source: &Arc<Source>,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Note,
            ..Self::error(source, span, message)
        }
    }

    pub(crate) fn label(self, label: impl Into<String>) -> Self {
        Self {
            label: Some(label.into()),
            ..self
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    pub(crate) fn related(mut self, span: Range<usize>, text: impl Into<String>) -> Self {
        self.related.push((span, text.into()));
        self
    }

    /// `path:line:column`, for a one-line form.
    pub fn place(&self) -> String {
        format!(
            "{}:{}:{}",
            self.source.path.display(),
            self.source.line_number(self.span.start),
            self.source.column_number(self.span.start)
        )
    }

    /// The problem with the piece of the file that it is about.
    pub fn render(&self) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let path = self.source.path.display().to_string();
        let mut primary = AnnotationKind::Primary.span(self.span.clone());
        if let Some(label) = &self.label {
            primary = primary.label(label.as_str());
        }
        let mut snippet = Snippet::source(&self.source.text)
            .path(&path)
            .annotation(primary);
        for (span, text) in &self.related {
            snippet = snippet.annotation(
                AnnotationKind::Context
                    .span(span.clone())
                    .label(text.as_str()),
            );
        }
        let mut group = level.primary_title(&self.message).element(snippet);
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.with_name("hint").message(hint));
        }
        Renderer::plain().render(&[group])
    }
}

/// Everything that was found in the files of a project, in the order of the files.
#[derive(Clone, Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The number of errors.
    pub fn errors(&self) -> usize {
        self.0
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .count()
    }

    /// What is not an error.
    pub fn remarks(&self) -> impl Iterator<Item = &Problem> {
        self.0
            .iter()
            .filter(|problem| problem.severity != Severity::Error)
    }

    pub(crate) fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }
}

impl Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            writeln!(f, "{}", problem.render())?;
        }
        Ok(())
    }
}

/// The known name that `typed` was probably meant to be.
pub(crate) fn did_you_mean<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let folded = fold(typed);
    known
        .into_iter()
        .map(|name| (distance(&folded, &fold(name)), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Case and the separators `-` and `_` are what people get wrong most; they count for nothing.
fn fold(name: &str) -> Vec<char> {
    name.chars()
        .filter(|c| !matches!(c, '-' | '_'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Edits between two words, with a swap of neighbours as one edit.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substitute = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitute.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_forgive_case_and_slips_but_do_not_invent() {
        let known = ["cilium", "certManager", "elasticStack"];
        assert_eq!(did_you_mean("cillium", known), Some("cilium"));
        assert_eq!(did_you_mean("cliium", known), Some("cilium"));
        assert_eq!(did_you_mean("cert-manager", known), Some("certManager"));
        assert_eq!(did_you_mean("elasticstck", known), Some("elasticStack"));
        assert_eq!(did_you_mean("mysql", known), None);
    }

    #[test]
    fn places_count_characters() {
        let source = Arc::new(Source::new("a.yaml", "ä: 1\nöb: x\n"));
        let offset = source.text.find('x').expect("there");
        assert_eq!(
            Problem::error(&source, offset..offset + 1, "m").place(),
            "a.yaml:2:5"
        );
    }
}
