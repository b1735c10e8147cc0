//! Reads a project's files. The only place of this crate that does.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use crate::{
    application::Application,
    catalogue::Catalogue,
    config::{self, Config, Values},
    problem::{Problem, Problems, Source},
};

/// Where the files lie in a project.
const FOLDER: &str = ".gitlab/managed-apps";

/// Why a project could not be read.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file or folder could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The files were read and are wrong.
    #[error("{}", counted(problems.errors()))]
    Invalid {
        /// Everything that was found, remarks included.
        problems: Problems,
    },
}

impl LoadError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { path, source } if source.kind() == io::ErrorKind::NotFound => {
                Some(format!(
                    "a project has its applications in {FOLDER}/config.yaml; name its folder with --project (looked for {})",
                    path.display()
                ))
            }
            _ => None,
        }
    }
}

/// Reads and checks the files of a project; every problem of every file is reported at once.
pub fn load(project: &Path, catalogue: &Catalogue) -> Result<Config, LoadError> {
    let folder = project.join(FOLDER);
    let source = read(
        &folder.join("config.yaml"),
        Path::new(FOLDER).join("config.yaml"),
    )?;
    let mut problems = Problems::default();
    let mut values = BTreeMap::new();
    for application in Application::ALL {
        let name = application.folder();
        if let Some((found, found_problems)) = read_values(&folder, name)? {
            problems.0.extend(found_problems.0);
            values.extend(found.map(|found| (application, found)));
        }
    }
    let (mut config, config_problems) = config::check(&source, values);
    problems.0.splice(0..0, config_problems.0);
    problems.0.extend(unread_files(project)?);
    problems.0.extend(catalogue.refusals(&config));
    if problems.errors() > 0 {
        return Err(LoadError::Invalid { problems });
    }
    config.remarks = problems;
    Ok(config)
}

fn read_values(folder: &Path, name: &str) -> Result<Option<(Option<Values>, Problems)>, LoadError> {
    let path = folder.join(name).join("values.yaml");
    // Shown as `cilium/values.yaml`: the folder that all of them share would only push the line number out.
    match read(&path, Path::new(name).join("values.yaml")) {
        Ok(source) => Ok(Some(config::check_values(&source))),
        Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Values that nobody reads are settings that silently do nothing: say so.
fn unread_files(project: &Path) -> Result<Vec<Problem>, LoadError> {
    let folder = project.join(FOLDER);
    let failed = |source| LoadError::Read {
        path: folder.clone(),
        source,
    };
    let known = Application::ALL.map(Application::folder);
    let mut unread = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let name = entry
            .map_err(failed)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if !known.contains(&name.as_str()) {
            let hint = crate::problem::did_you_mean(&name, known)
                .map(|name| format!("did you mean the folder `{name}`?"));
            unread.extend(unread_file(
                &folder,
                &format!("{name}/values.yaml"),
                "belongs to no application",
                hint,
            )?);
        }
    }
    let hint = "Hubble is part of Cilium's chart now; put its settings under `hubble:` in cilium/values.yaml";
    unread.extend(unread_file(
        &folder,
        "cilium/hubble-values.yaml",
        "is of the 13.2 format",
        Some(hint.to_owned()),
    )?);
    unread.sort_by(|a, b| a.source.path.cmp(&b.source.path));
    Ok(unread)
}

fn unread_file(
    folder: &Path,
    name: &str,
    why: &str,
    hint: Option<String>,
) -> Result<Option<Problem>, LoadError> {
    match read(&folder.join(name), PathBuf::from(name)) {
        Ok(source) => {
            let first_line = 0..source.line_of(0).len();
            let mut problem = Problem::warning(
                &source,
                first_line,
                format!("this file {why} and is not read"),
            );
            problem.hint = hint;
            Ok(Some(problem))
        }
        Err(LoadError::Read { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn read(path: &Path, shown: PathBuf) -> Result<Arc<Source>, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(Arc::new(Source::new(shown, text)))
}

fn counted(errors: usize) -> String {
    match errors {
        1 => "the configuration has 1 error".to_owned(),
        many => format!("the configuration has {many} errors"),
    }
}
