//! A file, or a directory with all below it, as a tar stream.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::error::{ArchiveError, On as _};
use crate::pack::{Outlet, Packer};

type Result<T> = std::result::Result<T, ArchiveError>;

/// A file, or a directory with all below it, known to exist.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    metadata: Metadata,
}

impl Tree {
    /// What is at `path`. The last link is followed if `follow` says so, or if a slash stands behind it.
    pub fn find(path: &Path, follow: bool) -> Result<Self> {
        let metadata = match follow {
            true => std::fs::metadata(path),
            false => std::fs::symlink_metadata(path),
        };
        let metadata = metadata.on("find", path)?;
        // Named in full, so that no link has to be followed again.
        let path = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if !follow && !metadata.is_dir() => {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                parent.canonicalize().on("find", parent)?.join(name)
            }
            _ => path.canonicalize().on("find", path)?,
        };
        Ok(Self { path, metadata })
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.metadata.is_dir()
    }

    /// Writes it as a tar stream, in which it is called `name`.
    pub fn pack(&self, name: &str, out: &mut dyn Outlet) -> Result<()> {
        let mut packer = Packer::new(out);
        packer.add(name.as_bytes(), &self.path, &self.metadata)?;
        if self.metadata.is_dir() {
            below(&mut packer, name.as_bytes(), &self.path)?;
        }
        packer.finish()
    }
}

/// Everything below a directory, each one before what is below it, in the order of names.
fn below(packer: &mut Packer<'_>, name: &[u8], directory: &Path) -> Result<()> {
    for child in names(directory)? {
        let path = directory.join(&child);
        // A running container may remove it at any time.
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let name = [name, b"/", child.as_os_str().as_bytes()].concat();
        packer.add(&name, &path, &metadata)?;
        if metadata.is_dir() {
            below(packer, &name, &path)?;
        }
    }
    Ok(())
}

/// The names in a directory, sorted; none if it is gone.
pub fn names(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).on("list", directory),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(PathBuf::from(entry.on("list", directory)?.file_name()));
    }
    names.sort();
    Ok(names)
}
