//! What is said about the files that people write.

use installer::{
    application::Application,
    catalogue::Catalogue,
    config::{ChartOrigin, Promise, Settings, Switch},
    project::{self, LoadError},
};

use crate::fixture;

fn catalogue() -> Catalogue {
    Catalogue::embedded()
        .map_err(|problems| problems.to_string())
        .expect("the catalogue reads")
}

#[test]
fn every_bad_project_gets_its_report() {
    let folder = fixture("bad");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    assert!(names.len() >= 10);
    for name in names {
        match project::load(&folder.join(&name), &catalogue()) {
            Err(LoadError::Invalid { problems }) => {
                insta::assert_snapshot!(format!("bad-{name}"), problems);
            }
            other => panic!("{name} must be refused, and was {other:?}"),
        }
    }
}

#[test]
fn every_documented_key_is_taken() {
    let config = project::load(&fixture("documented"), &catalogue()).expect("valid");
    assert_eq!(config.applications.len(), Application::ALL.len());
    let cilium = &config.applications[&Application::Cilium];
    assert_eq!(cilium.switch, Switch::Install);
    assert_eq!(cilium.expect, Promise::Watching);
    assert_eq!(
        cilium.settings,
        Settings::Cilium {
            hubble: Some(Switch::Remove)
        }
    );
    assert_eq!(
        cilium.chart.origin,
        Some(ChartOrigin::Repo("https://charts.example.com".to_owned()))
    );
    insta::assert_snapshot!("documented-remarks", config.remarks);
}

#[test]
fn values_are_laid_over_what_the_other_files_say() {
    let catalogue = catalogue();
    let config = project::load(&fixture("documented"), &catalogue).expect("valid");
    let recipe = catalogue.recipe(Application::Cilium).expect("there");
    let values = recipe.values_for(
        &config.applications[&Application::Cilium],
        config.cluster_type,
    );
    insta::assert_json_snapshot!("documented-values", values);
}

#[test]
fn a_missing_file_is_named() {
    let error = project::load(&fixture("nothing-here"), &catalogue()).expect_err("nothing there");
    assert!(
        error
            .to_string()
            .ends_with("nothing-here/.gitlab/managed-apps/config.yaml"),
        "{error}"
    );
    assert!(error.hint().is_some());
}
