//! A plan as people read it.

use std::fmt::{self, Display};

use super::{Action, Plan, Recovery, Step};
use crate::{
    chart::{Chart, ChartSource},
    config::Promise,
};

/// Shows a [`Plan`] in a few lines.
#[derive(Debug)]
pub struct Text<'a>(pub &'a Plan);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { namespace, steps } = self.0;
        if steps.is_empty() {
            return writeln!(
                f,
                "nothing to do: the project names no application that is or should be there"
            );
        }
        writeln!(f, "plan for namespace {namespace}:")?;
        for step in steps {
            show(step, f)?;
        }
        let count =
            |wanted: fn(&Action) -> bool| steps.iter().filter(|step| wanted(&step.action)).count();
        writeln!(
            f,
            "{} to install, {} to upgrade, {} to remove, {} to keep",
            count(|action| *action == Action::Install),
            count(|action| matches!(action, Action::Upgrade { .. })),
            count(|action| *action == Action::Remove),
            count(|action| matches!(action, Action::Keep { .. })),
        )
    }
}

fn show(step: &Step, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (sign, word) = match step.action {
        Action::Install => ('+', "install"),
        Action::Upgrade { .. } => ('~', "upgrade"),
        Action::Keep { .. } => ('=', "keep"),
        Action::Remove => ('-', "remove"),
        Action::Absent => (' ', "absent"),
        Action::NotManaged => (' ', "not managed"),
    };
    write!(f, "  {sign} {}: {word}", step.application)?;
    match &step.action {
        Action::Upgrade { reason } | Action::Keep { reason } => write!(f, " ({reason})")?,
        Action::Remove => write!(f, " (`installed: false`; apply needs --allow-removal)")?,
        Action::NotManaged => write!(f, " (release {} is left alone)", step.release)?,
        Action::Install | Action::Absent => {}
    }
    writeln!(f)?;
    if let Some(recovery) = &step.recovery {
        writeln!(f, "      first: {recovery}")?;
    }
    if let Some(chart) = &step.chart {
        writeln!(f, "      chart: {chart}")?;
    }
    if step.expect == Some(Promise::Watching) {
        writeln!(f, "      expect: watching")?;
    }
    for warning in &step.warnings {
        writeln!(f, "      warning: {warning}")?;
    }
    Ok(())
}

impl Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rollback { revision, found } => {
                write!(
                    f,
                    "roll back to revision {revision}, because an earlier run left the release {found}"
                )
            }
            Self::Uninstall { found } => {
                write!(
                    f,
                    "uninstall what an earlier run left {found}; it never was fully deployed or was on its way out"
                )
            }
        }
    }
}

impl Display for Chart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} from ", self.name, self.version)?;
        match &self.source {
            ChartSource::Folder(path) => write!(f, "the folder {}", path.display()),
            ChartSource::Repo(url) => write!(f, "the repository {url}"),
        }
    }
}
