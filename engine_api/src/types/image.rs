//! Images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{PullWhen, Registry};
use crate::convert::rfc3339;

/// An image in a list.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct ImageSummary {
    /// Its name.
    pub name: String,
    /// Digest of its configuration.
    pub id: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// OS/ARCH[/VARIANT]
    pub platform: String,
    /// When it was built, as it says.
    pub created: Option<String>,
    /// When it was fetched.
    pub pulled: String,
    /// Bytes of its layers, as stored.
    pub size: u64,
}

/// Images, by name.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct ImageList {
    /// They.
    pub items: Vec<ImageSummary>,
}

impl From<&images::ImageSummary> for ImageSummary {
    fn from(image: &images::ImageSummary) -> Self {
        Self {
            name: crate::convert::familiar(&image.name),
            id: image.id.to_string(),
            manifest: image.manifest.to_string(),
            platform: image.platform.clone(),
            created: image.created.clone(),
            pulled: rfc3339(image.pulled_at.saturating_mul(1_000_000_000)),
            size: image.size,
        }
    }
}

/// All that is known of an image.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Digest of its configuration.
    pub id: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// Bytes of its layers, as stored.
    pub size: u64,
    /// Digests of its layers, lowest first.
    pub layers: Vec<String>,
    /// Its OCI configuration.
    pub config: Value,
}

impl From<&images::Image> for Image {
    fn from(image: &images::Image) -> Self {
        Self {
            name: crate::convert::familiar(&image.name),
            id: image.config_digest.to_string(),
            manifest: image.manifest_digest.to_string(),
            size: image.size(),
            layers: image.layers().iter().map(|layer| layer.digest.to_string()).collect(),
            config: serde_json::to_value(&image.config).unwrap_or_default(),
        }
    }
}

/// An image to fetch.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    /// A reference, or `oci:DIR[:TAG]`, `oci-archive:FILE`, `docker-archive:FILE`.
    #[schemars(length(min = 1))]
    pub image: String,
    /// When to ask the registry.
    #[serde(default = "always")]
    pub pull: PullWhen,
    /// How to talk to it.
    #[serde(default)]
    pub registry: Registry,
    /// Also build the root filesystem, which otherwise the first container does.
    #[serde(default)]
    pub unpack: bool,
}

fn always() -> PullWhen {
    PullWhen::Always
}

/// A step of a transfer. The last event, `done`, has what was transferred.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
pub struct Progress {
    /// What happened: resolving, resolved, cached, waiting, started, bytes, done, retrying, rootfs, unreadable.
    pub step: String,
    /// The blob, or the image.
    pub what: String,
    /// Bytes so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// Bytes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// One more name.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tag {
    /// NAME[:TAG]
    pub name: String,
}

/// Where an image goes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Push {
    /// REGISTRY/NAME:TAG; the registry of its name where nothing is said.
    pub destination: Option<String>,
    /// How to talk to the registry.
    pub registry: Registry,
}

/// What went to a registry.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Pushed {
    /// Where.
    pub name: String,
    /// The manifest's digest.
    pub digest: String,
    /// Bytes of the manifest.
    pub size: u64,
    /// Bytes that were sent.
    pub sent: u64,
}

impl From<&images::push::Pushed> for Pushed {
    fn from(pushed: &images::push::Pushed) -> Self {
        Self {
            name: pushed.name.clone(),
            digest: pushed.digest.to_string(),
            size: pushed.size,
            sent: pushed.sent,
        }
    }
}

/// Images that came.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Loaded {
    /// Their names.
    pub names: Vec<String>,
}

/// What went.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Removed {
    /// The name that is gone.
    pub untagged: String,
    /// Bytes of disk space given back.
    pub bytes: u64,
}

/// How an image was built.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct History {
    /// The newest first.
    pub steps: Vec<Step>,
}

/// A step of a build.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
pub struct Step {
    /// When.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// What was said about it.
    pub comment: Option<String>,
    /// Bytes of its layer, as stored.
    pub size: u64,
}
