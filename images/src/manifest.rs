//! Manifests, indexes and image configurations as bytes from the outside: parsed once, against stated limits.
//!
//! OCI image-spec `manifest.md`, `image-index.md` and `config.md`; Docker's "image manifest version 2, schema 2" has
//! the same shape under other media types.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;

use crate::digest::{DiffId, Digest, DigestError};

/// A registry that answers with an endless manifest must not fill the memory; registries themselves stop at 4 MiB.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// The same for an image's configuration, which holds the history of its build.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// A manifest with more layers is an attack on the unpacker; Docker stops at 127.
pub const MAX_LAYERS: usize = 512;

/// The media types of manifests and indexes, as asked for in `Accept`.
pub const MANIFEST_MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Why a manifest or a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the shape.
    #[error("{what} is malformed")]
    Parse {
        /// What was parsed.
        what: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Of a kind that is not a runnable image.
    #[error(
        "the manifest is of type \"{0}\", which is no image that can be run (old schema 1 images must be pushed again)"
    )]
    Unsupported(String),
    /// Both an index and a manifest: two readers would see two images.
    #[error("the manifest has both \"layers\" and \"manifests\", so what it means is ambiguous")]
    Ambiguous,
    /// Beyond [`MAX_LAYERS`].
    #[error("the image has {0} layers: at most {MAX_LAYERS} are allowed")]
    TooManyLayers(usize),
    /// A layer is not a tar stream.
    #[error("layer {digest} is of type \"{media_type}\": this is no container image")]
    LayerType {
        /// The layer.
        digest: String,
        /// Its media type.
        media_type: String,
    },
    /// A digest in it is malformed.
    #[error("{what} has a bad digest")]
    Digest {
        /// Where it is.
        what: &'static str,
        /// What is wrong.
        source: DigestError,
    },
    /// The configuration names more or fewer layers than the manifest.
    #[error("the manifest has {layers} layers, but the configuration names {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Diff IDs of the configuration.
        diff_ids: usize,
    },
}

/// How a layer's tar stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar stream.
    None,
    /// Gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
}

impl Compression {
    /// By the media type of a layer; `None` if it is no layer.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        let kind = media_type
            .strip_prefix("application/vnd.oci.image.layer.v1.tar")
            .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar"))
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar"))?;
        match kind {
            "" => Some(Self::None),
            "+gzip" | ".gzip" => Some(Self::Gzip),
            "+zstd" | ".zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// By the first bytes of a stream.
    pub fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first (RFC 8878, section 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// What a name resolves to.
#[derive(Debug)]
pub enum Document {
    /// One image for one platform.
    Manifest(Box<Manifest>),
    /// A choice of manifests by platform.
    Index(Vec<Descriptor>),
}

impl Document {
    /// Parses a manifest or an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let shape: Shape = parse("the manifest", bytes)?;
        if shape.layers.is_some() && shape.manifests.is_some() {
            return Err(ManifestError::Ambiguous);
        }
        if shape.schema_version != 2 {
            return Err(ManifestError::Unsupported(
                shape.media_type.unwrap_or_else(|| format!("schema {}", shape.schema_version)),
            ));
        }
        if shape.manifests.is_some() {
            let index: ImageIndex = parse("the image index", bytes)?;
            return Ok(Self::Index(index.manifests().clone()));
        }
        Manifest::parse(bytes).map(|manifest| Self::Manifest(Box::new(manifest)))
    }
}

/// Only what tells a manifest from an index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// A blob as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// Its content address.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
}

impl BlobRef {
    /// From a descriptor; `what` names the place for the error.
    pub fn parse(what: &'static str, descriptor: &Descriptor) -> Result<Self, ManifestError> {
        let digest = descriptor.digest().to_string();
        let digest = digest.parse().map_err(|source| ManifestError::Digest { what, source })?;
        Ok(Self { digest, size: descriptor.size(), media_type: descriptor.media_type().to_string() })
    }
}

/// One image for one platform: its configuration and its layers, lowest first.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The configuration's blob.
    pub config: BlobRef,
    /// The layers' blobs, each of a known media type.
    pub layers: Vec<BlobRef>,
}

impl Manifest {
    /// Parses a manifest that is known to be no index.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: ImageManifest = parse("the image manifest", bytes)?;
        if manifest.layers().len() > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers(manifest.layers().len()));
        }
        let layers = manifest.layers().iter().map(parse_layer).collect::<Result<_, _>>()?;
        Ok(Self { config: BlobRef::parse("the configuration", manifest.config())?, layers })
    }

    /// Every blob the image needs besides its manifest.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobRef> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// The sum of the layers' sizes, as stored.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

fn parse_layer(descriptor: &Descriptor) -> Result<BlobRef, ManifestError> {
    let layer = BlobRef::parse("a layer", descriptor)?;
    match Compression::of_media_type(&layer.media_type) {
        Some(_) => Ok(layer),
        None => {
            let media_type = layer.media_type.chars().take(200).collect();
            Err(ManifestError::LayerType { digest: layer.digest.to_string(), media_type })
        }
    }
}

/// Parses an image's configuration, which must name exactly `layers` layers. Returns it with its diff IDs.
pub fn parse_config(bytes: &[u8], layers: usize) -> Result<(ImageConfiguration, Vec<DiffId>), ManifestError> {
    let config: ImageConfiguration = parse("the image configuration", bytes)?;
    let texts = config.rootfs().diff_ids();
    if texts.len() != layers {
        return Err(ManifestError::LayerCount { layers, diff_ids: texts.len() });
    }
    let diff_id = |text: &String| match text.parse() {
        Ok(digest) => Ok(DiffId(digest)),
        Err(source) => Err(ManifestError::Digest { what: "the configuration", source }),
    };
    let diff_ids = texts.iter().map(diff_id).collect::<Result<_, _>>()?;
    Ok((config, diff_ids))
}

fn parse<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse { what, source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor(media_type: &str, content: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","size":7,"digest":"{}"}}"#, Digest::of(content.as_bytes()))
    }

    fn manifest(layers: &[&str]) -> String {
        let layers: Vec<_> = layers.iter().map(|media_type| descriptor(media_type, media_type)).collect();
        let config = descriptor("application/vnd.oci.image.config.v1+json", "c");
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","))
    }

    #[test]
    fn layers_of_every_known_type_are_accepted() {
        let types = [
            ("application/vnd.oci.image.layer.v1.tar", Compression::None),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
            ("application/vnd.docker.image.rootfs.diff.tar", Compression::None),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Compression::Gzip),
        ];
        let names: Vec<_> = types.iter().map(|(name, _)| *name).collect();
        let parsed = Manifest::parse(manifest(&names).as_bytes()).unwrap();
        assert_eq!(parsed.layers.len(), types.len());
        assert_eq!(parsed.layer_bytes(), 7 * 6);
        for (name, compression) in types {
            assert_eq!(Compression::of_media_type(name), Some(compression));
        }
    }

    #[test]
    fn an_artifact_that_is_no_image_is_refused() {
        let text = manifest(&["application/vnd.cncf.helm.chart.content.v1.tar+gzip"]);
        assert!(matches!(Document::parse(text.as_bytes()), Err(ManifestError::LayerType { .. })));
    }

    #[test]
    fn a_document_that_is_both_index_and_manifest_is_refused() {
        let text = r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#;
        assert!(matches!(Document::parse(text.as_bytes()), Err(ManifestError::Ambiguous)));
    }

    #[test]
    fn schema_1_is_refused_by_its_name() {
        let text = r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#;
        let error = Document::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("schema 1"), "{error}");
    }

    #[test]
    fn too_many_layers_are_refused() {
        let layers = vec!["application/vnd.oci.image.layer.v1.tar"; MAX_LAYERS + 1];
        let text = manifest(&layers);
        assert!(matches!(Document::parse(text.as_bytes()), Err(ManifestError::TooManyLayers(513))));
    }

    #[test]
    fn a_path_in_the_place_of_a_digest_is_refused() {
        let text = manifest(&[]).replace("sha256:", "sha256:../../");
        assert!(Document::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn a_config_with_nulls_is_read_and_its_layer_count_checked() {
        let diff_id = Digest::of(b"layer");
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","history":null,"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}},
            "config":{{"Env":null,"Cmd":["sh"],"Volumes":null,"Labels":null,"Entrypoint":null}}}}"#
        );
        let (config, diff_ids) = parse_config(text.as_bytes(), 1).unwrap();
        assert_eq!(diff_ids, [DiffId(diff_id)]);
        assert_eq!(config.config().clone().unwrap().cmd().clone().unwrap(), ["sh"]);
        assert!(matches!(parse_config(text.as_bytes(), 2), Err(ManifestError::LayerCount { .. })));
    }

    #[test]
    fn compression_is_seen_in_the_first_bytes() {
        assert_eq!(Compression::sniff(&[0x1f, 0x8b, 8]), Compression::Gzip);
        assert_eq!(Compression::sniff(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::sniff(&[0x5a, 0x2a, 0x4d, 0x18]), Compression::Zstd);
        assert_eq!(Compression::sniff(b"etc/"), Compression::None);
        assert_eq!(Compression::sniff(b""), Compression::None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes);
            let _ = parse_config(&bytes, 0);
        }
    }
}
