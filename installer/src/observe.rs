//! Asks the cluster for what a plan needs to know, and no more.

use crate::{
    catalogue::Catalogue,
    helm::{Helm, HelmError},
    plan::Observed,
};

/// Asks Helm for the releases, and for details of those that a plan may have to compare or recover.
pub async fn observe(helm: &Helm, catalogue: &Catalogue) -> Result<Observed, HelmError> {
    let mut observed = Observed {
        releases: helm.list().await?,
        ..Observed::default()
    };
    for recipe in catalogue.recipes() {
        let Some(release) = observed
            .releases
            .iter()
            .find(|release| release.name == recipe.release)
        else {
            continue;
        };
        observed
            .values
            .insert(recipe.release.clone(), helm.values(&recipe.release).await?);
        if release.status.is_pending() {
            observed
                .history
                .insert(recipe.release.clone(), helm.history(&recipe.release).await?);
        }
    }
    Ok(observed)
}
