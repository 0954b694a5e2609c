//! Where an image comes from: a registry, or one of skopeo's local transports.
//!
//! | text | source |
//! | --- | --- |
//! | `alpine:3.20`, `docker://alpine:3.20` | a registry |
//! | `oci:DIR[:TAG]` | an OCI image layout |
//! | `oci-archive:FILE[:TAG]` | an OCI image layout in a tar file |
//! | `docker-archive:FILE[:REFERENCE]` | what `docker save` writes, plain or compressed |
//! | `dir:PATH` | a plain directory that is the root of a filesystem |
//!
//! A path ends at its first colon, as in skopeo. A transport's name wins over an image of that name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::reference::{Reference, ReferenceError};

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The transport was named, but no path.
    #[error("\"{0}\" names no path: write {0}PATH")]
    NoPath(&'static str),
    /// The text is no transport and no reference either.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// A registry, or the store if it is there already.
    Registry(Reference),
    /// An OCI image layout in a directory.
    OciDir {
        /// The directory with `oci-layout` and `index.json`.
        path: PathBuf,
        /// The image in it; not needed if there is only one.
        tag: Option<String>,
    },
    /// An OCI image layout in a tar file.
    OciArchive {
        /// The tar file.
        path: PathBuf,
        /// The image in it; not needed if there is only one.
        tag: Option<String>,
    },
    /// A tar file as `docker save` writes it.
    DockerArchive {
        /// The tar file, plain, gzip or zstd.
        path: PathBuf,
        /// The image in it; not needed if there is only one.
        reference: Option<Reference>,
    },
    /// A plain root directory: no layers, no configuration.
    Dir(PathBuf),
}

impl FromStr for ImageSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = path_and_rest("oci:", rest)?;
            return Ok(Self::OciDir { path, tag: tag.map(str::to_owned) });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, tag) = path_and_rest("oci-archive:", rest)?;
            return Ok(Self::OciArchive { path, tag: tag.map(str::to_owned) });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, reference) = path_and_rest("docker-archive:", rest)?;
            return Ok(Self::DockerArchive { path, reference: reference.map(str::parse).transpose()? });
        }
        if let Some(path) = text.strip_prefix("dir:") {
            return match path {
                "" => Err(SourceError::NoPath("dir:")),
                path => Ok(Self::Dir(path.into())),
            };
        }
        Ok(Self::Registry(text.strip_prefix("docker://").unwrap_or(text).parse()?))
    }
}

impl ImageSource {
    /// The same source with an absolute path, so that it means the same from any working directory. A path that
    /// cannot be resolved stays as it is: opening it will say why.
    pub fn absolute(mut self) -> Self {
        let path = match &mut self {
            Self::Registry(_) => return self,
            Self::OciDir { path, .. } | Self::OciArchive { path, .. } => path,
            Self::DockerArchive { path, .. } | Self::Dir(path) => path,
        };
        if let Ok(absolute) = path.canonicalize() {
            *path = absolute;
        }
        self
    }

    /// The local path, if this is not a registry.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Registry(_) => None,
            Self::OciDir { path, .. } | Self::OciArchive { path, .. } => Some(path),
            Self::DockerArchive { path, .. } | Self::Dir(path) => Some(path),
        }
    }
}

/// The normalized text, which is the image's name in the store.
impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, rest) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::OciDir { path, tag } => ("oci:", path, tag.clone()),
            Self::OciArchive { path, tag } => ("oci-archive:", path, tag.clone()),
            Self::DockerArchive { path, reference } => {
                ("docker-archive:", path, reference.as_ref().map(Reference::to_string))
            }
            Self::Dir(path) => ("dir:", path, None),
        };
        write!(f, "{transport}{}", path.display())?;
        rest.map_or(Ok(()), |rest| write!(f, ":{rest}"))
    }
}

fn path_and_rest<'a>(
    transport: &'static str,
    text: &'a str,
) -> Result<(PathBuf, Option<&'a str>), SourceError> {
    let (path, rest) = text.split_once(':').map_or((text, None), |(path, rest)| (path, Some(rest)));
    if path.is_empty() {
        return Err(SourceError::NoPath(transport));
    }
    Ok((path.into(), rest.filter(|rest| !rest.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transport_is_parsed_and_shown_again() {
        let cases = [
            ("oci:/a/b:v1", ImageSource::OciDir { path: "/a/b".into(), tag: Some("v1".into()) }),
            ("oci:/a/b", ImageSource::OciDir { path: "/a/b".into(), tag: None }),
            (
                "oci-archive:x.tar:a:b",
                ImageSource::OciArchive { path: "x.tar".into(), tag: Some("a:b".into()) },
            ),
            (
                "docker-archive:x.tar:docker.io/library/busybox:1",
                ImageSource::DockerArchive {
                    path: "x.tar".into(),
                    reference: Some("busybox:1".parse().unwrap()),
                },
            ),
            ("dir:/srv/root:1", ImageSource::Dir("/srv/root:1".into())),
            ("docker.io/library/alpine:latest", ImageSource::Registry("alpine".parse().unwrap())),
        ];
        for (text, source) in cases {
            assert_eq!(text.parse::<ImageSource>().unwrap(), source, "{text}");
            assert_eq!(source.to_string(), text);
        }
        let schemed: ImageSource = "docker://alpine".parse().unwrap();
        assert_eq!(schemed, "alpine".parse().unwrap());
    }

    #[test]
    fn a_transport_without_a_path_is_refused() {
        for text in ["oci:", "oci::tag", "oci-archive:", "docker-archive:", "dir:", "docker-archive:x:UPPER"]
        {
            assert!(text.parse::<ImageSource>().is_err(), "{text}");
        }
    }
}
