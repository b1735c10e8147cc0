//! Which chart an application is installed from: a folder or a repository.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    catalogue::UpstreamChart,
    config::{ChartChoice, ChartOrigin},
    problem::{Problem, Source},
    yaml,
};

/// A chart that has been decided on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chart {
    /// Its name.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// Where it comes from.
    pub source: ChartSource,
}

/// Where a chart comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChartSource {
    /// An unpacked chart.
    Folder(PathBuf),
    /// A chart repository.
    Repo(String),
}

/// Why there is no chart.
#[derive(Debug, Error)]
pub enum ChartError {
    /// Its description could not be read.
    #[error("cannot read the chart's description {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its description is wrong.
    #[error("the chart's description is wrong\n{}", .0.render())]
    Description(Box<Problem>),
    /// It is another chart.
    #[error("{} is the chart {found}, not {wanted}", path.display())]
    Other {
        /// Where it lies.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
}

impl ChartError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => {
                Some("a folder of charts has one unpacked chart for each name, as in CHARTS/cilium/Chart.yaml".to_owned())
            }
            Self::Other { .. } => Some("change `chart.version` in config.yaml, or give another folder".to_owned()),
            Self::Description(_) => None,
        }
    }
}

/// Decides on a chart: `chart.path` of the config first, then the folder of charts, then a repository.
pub fn resolve(
    upstream: &UpstreamChart,
    choice: &ChartChoice,
    project: &Path,
    charts: Option<&Path>,
) -> Result<Chart, ChartError> {
    let folder = match (&choice.origin, charts) {
        (Some(ChartOrigin::Path(path)), _) => Some(project.join(path)),
        (_, Some(charts)) => Some(charts.join(&upstream.name)),
        (_, None) => None,
    };
    if let Some(folder) = folder {
        return from_folder(folder, &upstream.name, choice.version.as_deref());
    }
    let repo = match &choice.origin {
        Some(ChartOrigin::Repo(url)) => url,
        _ => &upstream.repo,
    };
    Ok(Chart {
        name: upstream.name.clone(),
        version: choice.version.as_ref().unwrap_or(&upstream.version).clone(),
        source: ChartSource::Repo(repo.clone()),
    })
}

#[derive(Deserialize)]
struct Description {
    name: String,
    version: String,
}

fn from_folder(folder: PathBuf, name: &str, version: Option<&str>) -> Result<Chart, ChartError> {
    let path = folder.join("Chart.yaml");
    let text = std::fs::read_to_string(&path).map_err(|source| ChartError::Read {
        path: path.clone(),
        source,
    })?;
    let found: Description =
        yaml::read_typed(&Arc::new(Source::new(path, text))).map_err(ChartError::Description)?;
    if found.name != name || version.is_some_and(|version| version != found.version) {
        return Err(ChartError::Other {
            path: folder,
            found: format!("{} {}", found.name, found.version),
            wanted: format!("{name} {}", version.unwrap_or("(any version)")),
        });
    }
    Ok(Chart {
        name: found.name,
        version: found.version,
        source: ChartSource::Folder(folder),
    })
}
