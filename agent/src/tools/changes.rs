//! What a container changed in its image, by what the overlay keeps of it.
//!
//! The overlay's upper directory holds every file that was written, a device 0/0 in place of what was removed
//! (*whiteout*), and marks a directory whose lower content does not count any more (*opaque*); Linux,
//! `Documentation/filesystems/overlayfs.rst`. A directory is there for each file below it, and a file that was opened
//! for writing is there whether it was written or not, so both are compared with the image. The time of a directory
//! alone is no change: it follows from what is in it.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use agent_protocol::tool::{ADDED, CHANGED, DELETED};
use archive::{ArchiveError, On as _, Outlet, Packer, attribute, attributes_of, names};

use super::Result;

/// Files that lighter itself lays over the image's, and where it mounts.
const OURS: [&str; 6] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc", "/sys", "/dev"];

/// Bytes compared at once.
const COMPARE_CHUNK: usize = 256 << 10;

/// Marks in the overlay's own attributes (`fs/overlayfs/overlayfs.h`).
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";

/// Writes the list of changes, see [`agent_protocol::tool::ToolPlan::Changes`].
pub fn list(upper: &Path, lower: &Path, ignored: &[String], out: &mut dyn Write) -> Result<()> {
    let mut visit = |change: Change<'_>| {
        let kind = match change.kind {
            Kind::Added => ADDED,
            Kind::Changed { .. } => CHANGED,
            Kind::Deleted { .. } => DELETED,
        };
        let record = [&[kind, b'/'], change.path.as_os_str().as_bytes(), &[0]].concat();
        out.write_all(&record).on("send", change.path)
    };
    Walk::new(upper, lower, ignored, &mut visit).run()?;
    out.flush().on("send", Path::new("the list of changes"))
}

/// Writes the changes as a layer.
pub fn archive(upper: &Path, lower: &Path, ignored: &[String], out: &mut dyn Outlet) -> Result<()> {
    let mut archive = Packer::new(out);
    let mut visit = |change: Change<'_>| {
        let name = change.path.as_os_str().as_bytes();
        match (change.kind, change.metadata) {
            // The opaque mark of its directory says it.
            (Kind::Deleted { by_opaque: true }, _) => Ok(()),
            (Kind::Deleted { by_opaque: false }, _) | (_, None) => archive.mark(&whiteout(change.path)),
            (kind, Some(metadata)) => {
                archive.add(name, &upper.join(change.path), metadata)?;
                match kind {
                    Kind::Changed { opaque: true } => archive.mark(&[name, b"/.wh..wh..opq"].concat()),
                    _ => Ok(()),
                }
            }
        }
    };
    Walk::new(upper, lower, ignored, &mut visit).run()?;
    archive.finish()
}

/// `a/b` → `a/.wh.b`.
fn whiteout(path: &Path) -> Vec<u8> {
    let name = [b".wh.", path.file_name().unwrap_or_default().as_bytes()].concat();
    match path.parent().map(|parent| parent.as_os_str().as_bytes()).filter(|parent| !parent.is_empty()) {
        Some(parent) => [parent, b"/", &name].concat(),
        None => name,
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Added,
    /// `opaque`: a directory of the image whose content there does not count any more.
    Changed {
        opaque: bool,
    },
    /// `by_opaque`: because the directory around it is opaque.
    Deleted {
        by_opaque: bool,
    },
}

/// One change.
struct Change<'a> {
    kind: Kind,
    /// Relative to the root.
    path: &'a Path,
    /// In the upper directory; nothing of what is deleted.
    metadata: Option<&'a Metadata>,
}

struct Walk<'a> {
    upper: &'a Path,
    lower: &'a Path,
    ignored: HashSet<PathBuf>,
    visit: &'a mut dyn FnMut(Change<'_>) -> Result<()>,
    /// Directories around the current one that were not visited yet: they are only if something below them changed.
    unvisited: Vec<(PathBuf, Metadata)>,
}

impl<'a> Walk<'a> {
    fn new(
        upper: &'a Path,
        lower: &'a Path,
        ignored: &[String],
        visit: &'a mut dyn FnMut(Change<'_>) -> Result<()>,
    ) -> Self {
        let relative = |path: &str| PathBuf::from(path.trim_matches('/'));
        let ignored = OURS.iter().copied().chain(ignored.iter().map(String::as_str)).map(relative).collect();
        Self { upper, lower, ignored, visit, unvisited: Vec::new() }
    }

    fn run(mut self) -> Result<()> {
        self.directory(Path::new(""), true)
    }

    /// `has_lower`: the image has a directory here, and it counts.
    fn directory(&mut self, path: &Path, has_lower: bool) -> Result<()> {
        for name in names(&self.upper.join(path))? {
            let path = path.join(name);
            let upper = self.upper.join(&path);
            if self.ignored.contains(&path) {
                continue;
            }
            // The container may remove it at any time.
            let Ok(metadata) = upper.symlink_metadata() else { continue };
            let lower = match has_lower {
                true => self.lower.join(&path).symlink_metadata().ok(),
                false => None,
            };
            if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                if lower.is_some() {
                    self.found(Kind::Deleted { by_opaque: false }, &path, None)?;
                }
            } else if metadata.is_dir() {
                self.subdirectory(&path, metadata, lower)?;
            } else {
                refuse_marks(&upper, &[METACOPY])?;
                match lower {
                    None => self.found(Kind::Added, &path, Some(&metadata))?,
                    Some(lower) if same(&metadata, &lower, &upper, &self.lower.join(&path))? => {}
                    Some(_) => self.found(Kind::Changed { opaque: false }, &path, Some(&metadata))?,
                }
            }
        }
        Ok(())
    }

    fn subdirectory(&mut self, path: &Path, metadata: Metadata, lower: Option<Metadata>) -> Result<()> {
        let upper = self.upper.join(path);
        refuse_marks(&upper, &[REDIRECT])?;
        let Some(lower) = lower else {
            self.found(Kind::Added, path, Some(&metadata))?;
            return self.directory(path, false);
        };
        if !lower.is_dir() {
            self.found(Kind::Changed { opaque: false }, path, Some(&metadata))?;
            return self.directory(path, false);
        }
        if attribute(&upper, OPAQUE)?.as_deref() == Some(b"y") {
            self.found(Kind::Changed { opaque: true }, path, Some(&metadata))?;
            for name in names(&self.lower.join(path))? {
                let lost = path.join(name);
                if upper_lacks(&self.upper.join(&lost)) {
                    self.found(Kind::Deleted { by_opaque: true }, &lost, None)?;
                }
            }
            // Everything there was put there, also what has the name of something in the image.
            return self.directory(path, false);
        }
        if same_directory(&metadata, &lower, &upper, &self.lower.join(path))? {
            let depth = self.unvisited.len();
            self.unvisited.push((path.to_owned(), metadata));
            self.directory(path, true)?;
            self.unvisited.truncate(depth);
            return Ok(());
        }
        self.found(Kind::Changed { opaque: false }, path, Some(&metadata))?;
        self.directory(path, true)
    }

    /// Visits a change, and before it every directory around it that was not visited yet.
    fn found(&mut self, kind: Kind, path: &Path, metadata: Option<&Metadata>) -> Result<()> {
        for (path, metadata) in std::mem::take(&mut self.unvisited) {
            let kind = Kind::Changed { opaque: false };
            (self.visit)(Change { kind, path: &path, metadata: Some(&metadata) })?;
        }
        (self.visit)(Change { kind, path, metadata })
    }
}

fn upper_lacks(path: &Path) -> bool {
    path.symlink_metadata()
        .map_or(true, |metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

/// Refuses what only another kernel's overlay leaves: a file or directory whose content is elsewhere.
fn refuse_marks(path: &Path, marks: &[&[u8]]) -> Result<()> {
    for mark in marks {
        if attribute(path, mark)?.is_some() {
            let why = "renamed by an overlay with redirect_dir or metacopy: use a kernel without them";
            return Err(ArchiveError::refused(path, why));
        }
    }
    Ok(())
}

fn same_directory(upper: &Metadata, lower: &Metadata, upper_path: &Path, lower_path: &Path) -> Result<bool> {
    let owner = |metadata: &Metadata| (metadata.mode(), metadata.uid(), metadata.gid());
    Ok(owner(upper) == owner(lower) && attributes_of(upper_path)? == attributes_of(lower_path)?)
}

/// Whether a file is in the upper directory for nothing.
fn same(upper: &Metadata, lower: &Metadata, upper_path: &Path, lower_path: &Path) -> Result<bool> {
    let of = |metadata: &Metadata| {
        let time = (metadata.mtime(), metadata.mtime_nsec());
        (metadata.mode(), metadata.uid(), metadata.gid(), metadata.rdev(), metadata.size(), time)
    };
    Ok(of(upper) == of(lower)
        && attributes_of(upper_path)? == attributes_of(lower_path)?
        && same_content(upper, upper_path, lower_path)?)
}

/// A time can be set back, so only the content decides.
fn same_content(metadata: &Metadata, upper: &Path, lower: &Path) -> Result<bool> {
    if metadata.is_symlink() {
        let target = |path: &Path| std::fs::read_link(path).on("read the link", path);
        return Ok(target(upper)? == target(lower)?);
    }
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(true);
    }
    let (mut first, mut second) =
        (File::open(upper).on("open", upper)?, File::open(lower).on("open", lower)?);
    let (mut ours, mut theirs) = (vec![0; COMPARE_CHUNK], vec![0; COMPARE_CHUNK]);
    loop {
        let count = first.read(&mut ours).on("read", upper)?;
        if count == 0 {
            return Ok(true);
        }
        let theirs = theirs.get_mut(..count).unwrap_or_default();
        // The sizes were the same, so one that ends early has just been changed.
        if second.read_exact(theirs).is_err() || ours.get(..count) != Some(theirs) {
            return Ok(false);
        }
    }
}
