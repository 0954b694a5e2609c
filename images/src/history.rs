//! How an image was built, as far as its configuration tells: `lighter history`.

use serde::Serialize;

use crate::image::Image;

/// One step of an image's build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// When, RFC 3339.
    pub created: Option<String>,
    /// The command, if the builder noted one.
    pub created_by: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// What was said about it.
    pub comment: Option<String>,
    /// The layer that it made; `None` if it changed the configuration only.
    pub layer: Option<StepLayer>,
}

/// The layer of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepLayer {
    /// The stored blob.
    pub digest: crate::Digest,
    /// Its size in bytes, as stored.
    pub size: u64,
}

/// The steps of `image`, the newest first. The history belongs to the image's builder: where it names fewer steps
/// with layers than there are layers, the lowest ones that it leaves out stand alone.
pub fn of(image: &Image) -> Vec<Step> {
    let history = image.config.history().as_deref().unwrap_or_default();
    let mut layers = image.layers().iter().rev();
    let mut next = || layers.next().map(|layer| StepLayer { digest: layer.digest.clone(), size: layer.size });
    let mut steps: Vec<Step> = history
        .iter()
        .rev()
        .map(|entry| Step {
            created: entry.created().clone(),
            created_by: entry.created_by().clone(),
            author: entry.author().clone(),
            comment: entry.comment().clone(),
            layer: if entry.empty_layer().unwrap_or(false) { None } else { next() },
        })
        .collect();
    while let Some(layer) = next() {
        let unknown =
            Step { created: None, created_by: None, author: None, comment: None, layer: Some(layer) };
        steps.push(unknown);
    }
    steps
}
