//! Where a tar stream goes, by the rules of `docker cp`.
//!
//! | destination | a file comes | a directory comes |
//! | --- | --- | --- |
//! | a directory | goes into it under its own name | the same; or only its content |
//! | a file | is replaced | refused |
//! | nothing, in a directory that exists | is made; refused if the path ends with a slash | is made, with its content |

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use crate::error::{ArchiveError, On as _};

type Result<T> = std::result::Result<T, ArchiveError>;

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// Entries with names of their own, for a directory that exists.
    Archive,
    /// One entry called `.` that is no directory.
    File {
        /// Its name, used if the destination is a directory.
        name: &'a str,
    },
    /// A directory called `.` and what is below it.
    Directory {
        /// Its name, used if the destination is a directory; `None` to put only its content there.
        name: Option<&'a str>,
    },
}

/// A destination, looked at before anything is written.
#[derive(Debug)]
pub struct Target {
    /// The directory that entries go into.
    pub(crate) directory: OwnedFd,
    /// What the entry `.` is called there; `None` if it is the directory itself, which stays as it is.
    pub(crate) root: Option<PathBuf>,
}

impl Target {
    /// What `incoming` becomes at `path`, whose links are followed.
    pub fn find(path: &Path, incoming: Incoming<'_>) -> Result<Self> {
        let found = match std::fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).on("find", path),
        };
        let is_directory = found.as_ref().is_some_and(Metadata::is_dir);
        let refused = |why| Err(ArchiveError::refused(path, why));
        let (comes_directory, name) = match incoming {
            Incoming::Archive if is_directory => return Self::into(path),
            Incoming::Archive => return refused("an archive can only go into a directory that exists"),
            Incoming::Directory { name: None } if is_directory => return Self::into(path),
            Incoming::Directory { name } => (true, name),
            Incoming::File { name } => (false, Some(name)),
        };
        let wants_directory = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let (directory, root) = match (found, name) {
            (Some(_), Some(name)) if is_directory => (path.to_owned(), plain(name)?.to_owned()),
            (Some(_), _) if comes_directory => return refused("a directory cannot replace a file"),
            // Through a link to the file, which stays a link.
            (Some(_), _) => split(&path.canonicalize().on("find", path)?)?,
            (None, _) if !comes_directory && wants_directory => return refused("no such directory"),
            (None, _) => split(path)?,
        };
        match directory.join(&root).symlink_metadata() {
            Ok(there) if there.is_dir() && !comes_directory => refused("a file cannot replace a directory"),
            Ok(there) if !there.is_dir() && comes_directory => refused("a directory cannot replace a file"),
            _ => Ok(Self { root: Some(root), ..Self::into(&directory)? }),
        }
    }

    fn into(directory: &Path) -> Result<Self> {
        let opened = File::open(directory).on("open the directory", directory)?;
        if !opened.metadata().on("find", directory)?.is_dir() {
            return Err(ArchiveError::refused(directory, "no directory"));
        }
        Ok(Self { directory: opened.into(), root: None })
    }
}

/// The directory around a path, and the name in it.
fn split(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ArchiveError::refused(path, "no such directory"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok((parent.to_owned(), name.into()))
}

/// A name that is one component.
fn plain(name: &str) -> Result<&Path> {
    match Path::new(name).components().collect::<Vec<_>>().as_slice() {
        [Component::Normal(_)] => Ok(Path::new(name)),
        _ => Err(ArchiveError::Refused(format!("{name:?} is no name for a file"))),
    }
}
