//! Loading every image of an archive, under the names that it gives them: `lighter load`.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::archive::Archive;
use super::docker::DockerArchive;
use super::layout::Layout;
use super::origin::Origin;
use super::{ArchiveError, Fetched, Job, PullError, PullOptions, Resolved};
use crate::digest::Digest;
use crate::image::Image;
use crate::progress::Progress;
use crate::reference::{Reference, Version};
use crate::store::Store;

/// An archive that names more images is not one that anybody saved; each is a write of the list of names.
const MAX_NAMES: usize = 1000;

/// Where an archive is.
#[derive(Clone, Debug)]
pub enum LoadFrom<'a> {
    /// A tar file (plain, gzip or zstd), or a directory with an OCI image layout.
    Path(&'a Path),
    /// A stream called so in errors. It is copied to the store's disk first, because archives are not in reading
    /// order.
    Stream(&'a str),
}

/// An image of an archive and what it shall be called there.
struct Found {
    resolved: Resolved,
    names: Vec<String>,
}

/// An image of an archive whose blobs are in the store, and what it shall be called.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unnamed {
    fetched: Fetched,
    names: Vec<String>,
}

impl Store {
    /// Brings every image of an archive into the store: a docker-archive, or an OCI image layout. An image without a
    /// name is named by its ID. `stream` is read for [`LoadFrom::Stream`] only.
    pub fn load_archive(
        &self,
        from: &LoadFrom<'_>,
        stream: &mut dyn Read,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, PullError> {
        let _lease = self.lease()?;
        let unnamed = self.fetch_archive(from, stream, options, progress)?;
        self.adopt_archive(unnamed, options)
    }

    /// Brings the blobs of an archive into the store, as [`Store::fetch`] does.
    pub fn fetch_archive(
        &self,
        from: &LoadFrom<'_>,
        stream: &mut dyn Read,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Unnamed>, PullError> {
        let (found, origin) = match from {
            LoadFrom::Path(path) if path.is_dir() => from_layout(Layout::dir(path), options)?,
            LoadFrom::Path(path) => contents(Archive::open(path, self)?, options)?,
            LoadFrom::Stream(name) => contents(Archive::spool(&PathBuf::from(name), stream, self)?, options)?,
        };
        let fetch = |Found { resolved, names }: Found| {
            let name = names.first().map(String::as_str).unwrap_or_default();
            let record = self.take(&Job { name, options, progress }, resolved, &*origin)?;
            Ok(Unnamed { fetched: Fetched { record }, names })
        };
        found.into_iter().map(fetch).collect()
    }

    /// Checks what an archive brought, and gives it the names that the archive says: each a tag, or of the image's ID.
    pub fn adopt_archive(
        &self,
        unnamed: Vec<Unnamed>,
        options: &PullOptions,
    ) -> Result<Vec<Image>, PullError> {
        check_count(Path::new("the archive"), unnamed.iter().map(|unnamed| unnamed.names.len()).sum())?;
        let mut images = Vec::new();
        for Unnamed { fetched: Fetched { record }, names } in unnamed {
            for name in names {
                let name = reference(Path::new("the archive"), &name)?;
                images.push(self.name(&name, options, record.clone())?);
            }
        }
        Ok(images)
    }
}

type Contents = (Vec<Found>, Box<dyn Origin>);

/// What Docker writes today is both kinds at once. The layout says more, so it is preferred.
fn contents(archive: Archive, options: &PullOptions) -> Result<Contents, PullError> {
    if archive.size("index.json").is_some() && archive.size("oci-layout").is_some() {
        return from_layout(Layout::archive(archive), options);
    }
    let mut archive = DockerArchive::new(archive);
    let mut found = Vec::new();
    let entries = archive.entries()?;
    check_count(archive.path(), entries.iter().map(|entry| entry.repo_tags().count().max(1)).sum())?;
    for entry in entries {
        let names =
            entry.repo_tags().map(|tag| reference(archive.path(), tag)).collect::<Result<Vec<_>, _>>()?;
        let resolved = archive.resolve(entry)?;
        found.push(Found { names: names_or_id(names, &resolved), resolved });
    }
    Ok((found, Box::new(archive)))
}

fn from_layout(layout: Layout, options: &PullOptions) -> Result<Contents, PullError> {
    let entries = layout.entries()?;
    check_count(layout.path(), entries.len())?;
    let mut found: Vec<Found> = Vec::new();
    let mut loaded = BTreeSet::new();
    for entry in &entries {
        // What was built for another machine, and what only describes an image.
        if entry.platform().is_some() && options.platform.select(std::slice::from_ref(entry)).is_none() {
            continue;
        }
        let resolved = layout.follow(entry, &options.platform)?;
        let name = super::layout::full_name(entry).map(|name| reference(layout.path(), name)).transpose()?;
        let names = names_or_id(name.into_iter().collect(), &resolved);
        if names.iter().any(|name| loaded.insert(name.clone())) {
            found.push(Found { names, resolved });
        }
    }
    match found.is_empty() {
        true => Err(layout.nothing_for(&options.platform).into()),
        false => Ok((found, Box::new(layout))),
    }
}

fn check_count(path: &Path, names: usize) -> Result<(), ArchiveError> {
    if names <= MAX_NAMES {
        return Ok(());
    }
    let reason = format!("it names {names} images, more than {MAX_NAMES}");
    Err(ArchiveError::Structure { path: path.to_owned(), kind: "an archive of images", reason })
}

fn reference(path: &Path, text: &str) -> Result<String, ArchiveError> {
    let refused = |reason: String| ArchiveError::Structure {
        path: path.to_owned(),
        kind: "an archive of images",
        reason,
    };
    let reference: Reference =
        text.parse().map_err(|error| refused(format!("it names an image wrongly: {error}")))?;
    match reference.version() {
        Version::Tag(_) => Ok(reference.to_string()),
        Version::Digest(_) => Err(refused(format!("it gives an image the digest {reference} as a name"))),
    }
}

fn names_or_id(names: Vec<String>, resolved: &Resolved) -> Vec<String> {
    let config: &Digest = &resolved.manifest.config.digest;
    if names.is_empty() { vec![crate::commit::nameless(config)] } else { names }
}
