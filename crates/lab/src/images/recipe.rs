//! Image recipes: what goes into an image, and under which name it is known.

use std::path::Path;

use fs_err as fs;
use serde::Deserialize;

use crate::error::{Attempt as _, Error, Result};

/// An image recipe, one TOML file in `fixtures/images/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The reference that charts and manifests use.
    pub name: String,
    /// The image's entry point.
    pub entrypoint: Vec<String>,
    /// The default arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// The working folder.
    #[serde(default)]
    pub working_dir: String,
    /// Environment as `NAME=value`.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Debian packages of the root layer; empty for an image without a distribution.
    pub debian: Vec<String>,
    /// Single files, installed executable.
    #[serde(default)]
    pub file: Vec<Entry>,
    /// Whole folders.
    #[serde(default)]
    pub tree: Vec<Entry>,
    /// Symbolic links.
    #[serde(default)]
    pub link: Vec<Link>,
}

/// A file or folder of an image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where it comes from.
    pub from: Source,
    /// The path in the image, without the leading slash.
    pub to: String,
}

/// A symbolic link of an image.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The path of the link in the image, without the leading slash.
    pub to: String,
    /// What it points to.
    pub target: String,
}

/// Where a file of an image comes from: `part:NAME/PATH` or `built:PROGRAM`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Source {
    /// A file of a built part.
    Part {
        /// The part.
        part: String,
        /// The path in the part's folder.
        path: String,
    },
    /// A static program that this workspace builds.
    Built {
        /// The program's name.
        program: String,
    },
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some((part, path)) = text
            .strip_prefix("part:")
            .and_then(|rest| rest.split_once('/'))
        {
            if !crate::parts::ALL.contains(&part) {
                return Err(format!(
                    "`{part}` is not a part; the parts are {}",
                    crate::parts::ALL.join(", ")
                ));
            }
            return Ok(Self::Part {
                part: part.to_owned(),
                path: path.to_owned(),
            });
        }
        match text.strip_prefix("built:") {
            Some(program) => Ok(Self::Built {
                program: program.to_owned(),
            }),
            None => Err(format!(
                "`{text}` is neither `part:NAME/PATH` nor `built:PROGRAM`"
            )),
        }
    }
}

impl Recipe {
    /// Reads a recipe file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).attempt(|| "read an image recipe".to_owned())?;
        toml::from_str(&text).map_err(|error| Error::Recipe {
            path: path.to_owned(),
            problem: error.to_string(),
        })
    }

    /// Every source that the image draws on.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.file.iter().chain(&self.tree).map(|entry| &entry.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_recipe_loads() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/images");
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            names.push(Recipe::load(&entry.unwrap().path()).unwrap().name);
        }
        assert!(names.iter().all(|name| name.contains(':')), "{names:?}");
    }

    #[test]
    fn a_source_that_is_no_part_is_refused_with_the_list() {
        let error = Source::try_from("part:cillium/agent".to_owned()).unwrap_err();
        assert!(error.contains("the parts are"), "{error}");
        assert!(Source::try_from("agent".to_owned()).is_err());
    }
}
