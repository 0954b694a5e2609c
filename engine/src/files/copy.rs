//! `lighter cp`, both ways, by the rules of `docker cp`.

use std::io::{self, Read, Write};
use std::path::Path;

pub use agent_protocol::tool::Source;
use agent_protocol::tool::{DIRECTORY, ToolPlan, WritePlan};
use archive::{Incoming, Inlet, On as _, Options, Outlet, Owners, Target, Tree, Trust};

use super::tool::{Input, Tool};
use super::{FilesError, Guest};

/// Most bytes that may stand before the first entry of an archive: its extended attributes.
const MAX_RECORDS: u64 = 1 << 20;

/// How to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// `-a`: owners stay; else they are root in the container, and whoever runs lighter on the host.
    pub archive: bool,
    /// `-L`: a link given as the source is followed.
    pub follow: bool,
}

impl Guest {
    /// Copies `source` of the container to `destination` on the host. `left_out` is told of devices, which no
    /// container gives to the host.
    pub fn copy_out(
        &self,
        source: &str,
        destination: &Path,
        options: CopyOptions,
        left_out: &mut dyn FnMut(&Path),
    ) -> Result<(), FilesError> {
        let (mut tool, directory) = self.read(source, ".", options.follow)?;
        arrive(&mut tool, source, directory, destination, options, left_out)?;
        // What a tool that failed said last.
        io::copy(&mut tool, &mut io::sink()).map(drop).map_err(FilesError::Transfer)
    }

    /// Writes `source` of the container as a tar stream, in which it is called `name`, or else what it is called there.
    pub fn copy_out_archive(
        &self,
        source: &str,
        name: Option<&str>,
        options: CopyOptions,
        out: &mut dyn Write,
    ) -> Result<(), FilesError> {
        let name = name.map(str::to_owned).or_else(|| base_name(source)).unwrap_or_else(|| ".".to_owned());
        let (mut tool, _) = self.read(source, &name, options.follow)?;
        io::copy(&mut tool, out).and_then(|_| out.flush()).map_err(FilesError::Transfer)
    }

    /// Copies `source` of the host to `destination` in the container.
    pub fn copy_in(&self, source: &Path, destination: &str, options: CopyOptions) -> Result<(), FilesError> {
        let (tree, source) = find(source, options)?;
        self.write(source, destination, options, |input| Ok(tree.pack(".", input)?))
    }

    /// Extracts a tar stream, plain, at `destination` of the container: a [`Source::Archive`] into a directory that is
    /// there, else the `.` in it by the rules of [`Self::copy_in`].
    pub fn copy_in_archive(
        &self,
        input: &mut dyn Read,
        source: Source,
        destination: &str,
        options: CopyOptions,
    ) -> Result<(), FilesError> {
        self.write(source, destination, options, |out| {
            io::copy(input, out).and_then(|_| out.flush()).map_err(FilesError::Transfer)
        })
    }

    /// A tool that sends `source`, and whether that is a directory.
    fn read(&self, source: &str, name: &str, follow: bool) -> Result<(Tool, bool), FilesError> {
        let plan = ToolPlan::Read { path: source.to_owned(), name: name.to_owned(), follow };
        let mut tool = self.tool(&plan)?;
        let mut kind = [0];
        tool.read_exact(&mut kind).map_err(FilesError::Transfer)?;
        Ok((tool, kind == [DIRECTORY]))
    }

    fn write(
        &self,
        source: Source,
        destination: &str,
        options: CopyOptions,
        fill: impl FnOnce(&mut Input<'_>) -> Result<(), FilesError>,
    ) -> Result<(), FilesError> {
        let plan = WritePlan { path: destination.to_owned(), source, keep_ids: options.archive };
        let mut tool = self.tool(&ToolPlan::Write(plan))?;
        fill(&mut Input::new(&mut tool))?;
        tool.finish()
    }
}

/// A file or directory of this host on its way into a container behind a server.
#[derive(Debug)]
pub struct Packed {
    tree: Tree,
    source: Source,
}

impl Packed {
    /// What is at `source`.
    pub fn find(source: &Path, options: CopyOptions) -> Result<Self, FilesError> {
        let (tree, source) = find(source, options)?;
        Ok(Self { tree, source })
    }

    /// What it is, for [`Guest::copy_in_archive`].
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Writes it as a tar stream in which it is called `.`.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), FilesError> {
        let mut out = Plain(out);
        self.tree.pack(".", &mut out)?;
        out.flush().map_err(FilesError::Transfer)
    }
}

/// Extracts what [`Guest::copy_out_archive`] wrote of `source` as `.`, to `destination` on this host.
pub fn unpack(
    mut input: impl Read,
    source: &str,
    destination: &Path,
    options: CopyOptions,
    left_out: &mut dyn FnMut(&Path),
) -> Result<(), FilesError> {
    let (directory, begun) = first_entry(&mut input).map_err(FilesError::Transfer)?;
    let mut input = Plain(io::Cursor::new(begun).chain(input));
    arrive(&mut input, source, directory, destination, options, left_out)?;
    // What broke on the way breaks off behind the last entry.
    io::copy(&mut input.0, &mut io::sink()).map(drop).map_err(FilesError::Transfer)
}

fn find(source: &Path, options: CopyOptions) -> Result<(Tree, Source), FilesError> {
    let text = source.to_string_lossy();
    let tree = Tree::find(source, options.follow || text.ends_with('/') || text.ends_with("/."))?;
    let name = match base_name(&text) {
        // `.` and `..` have a name, but not in themselves.
        None if !ends_with_dot(&text) => real_name(source),
        name => name,
    };
    match (tree.is_directory(), name) {
        (true, name) => Ok((tree, Source::Directory { name })),
        (false, Some(name)) => Ok((tree, Source::File { name })),
        (false, None) => Err(archive::ArchiveError::refused(source, "no directory").into()),
    }
}

fn arrive(
    input: &mut dyn Inlet,
    source: &str,
    directory: bool,
    destination: &Path,
    options: CopyOptions,
    left_out: &mut dyn FnMut(&Path),
) -> Result<(), FilesError> {
    let name = base_name(source);
    let incoming = match (directory, &name) {
        (true, name) => Incoming::Directory { name: name.as_deref() },
        (false, Some(name)) => Incoming::File { name },
        (false, None) => return Err(FilesError::Guest(format!("{source}: no directory"))),
    };
    let target = Target::find(destination, incoming)?;
    let (owners, set_id) = if options.archive { (Owners::Kept, true) } else { (Owners::Own, false) };
    Ok(archive::extract(input, &target, Options { trust: Trust::Guest { set_id }, owners }, left_out)?)
}

/// Whether the first entry of a tar stream is a directory, and what was read of it to know that.
fn first_entry(input: &mut impl Read) -> io::Result<(bool, Vec<u8>)> {
    const BLOCK: usize = 512;
    let mut read = Vec::new();
    loop {
        let mut header = [0; BLOCK];
        input.read_exact(&mut header)?;
        read.extend_from_slice(&header);
        if !matches!(header[156], b'x' | b'g') {
            return Ok((header[156] == b'5', read));
        }
        // Records about the entry that comes.
        let digits = std::str::from_utf8(&header[124..136]).unwrap_or_default();
        let size = u64::from_str_radix(digits.trim_matches(['\0', ' ']), 8).ok();
        let size =
            size.filter(|size| read.len() as u64 + size < MAX_RECORDS).ok_or(io::ErrorKind::InvalidData)?;
        input.take(size.next_multiple_of(BLOCK as u64)).read_to_end(&mut read)?;
    }
}

/// A stream without shortcuts.
struct Plain<T>(T);

impl<T: Read> Read for Plain<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<T: Read> Inlet for Plain<T> {}

impl<T: Write> Write for Plain<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<T: Write> Outlet for Plain<T> {}

/// The last part of a path; `None` for `/`, and for what ends with `.` and so means the content of a directory.
fn base_name(path: &str) -> Option<String> {
    if ends_with_dot(path) {
        return None;
    }
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned())
}

fn ends_with_dot(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

fn real_name(path: &Path) -> Option<String> {
    let real = path.canonicalize().on("find", path).ok()?;
    real.file_name().map(|name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_here_is_unpacked_there_by_the_rules_of_cp() {
        let base = tempfile::tempdir().unwrap();
        let (from, to) = (base.path().join("from"), base.path().join("to"));
        std::fs::create_dir_all(from.join("d")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("d/file"), "text").unwrap();
        let packed = |source: &Path| {
            let stream = base.path().join("tar");
            let packed = Packed::find(source, CopyOptions::default()).unwrap();
            packed.write(&mut std::fs::File::create(&stream).unwrap()).unwrap();
            (packed.source().clone(), std::fs::File::open(&stream).unwrap())
        };
        let (what, tar) = packed(&from);
        assert_eq!(what, Source::Directory { name: Some("from".into()) });
        let put = |tar: std::fs::File, source: &str, to: &Path| {
            unpack(tar, source, to, CopyOptions::default(), &mut |_| ())
        };
        put(tar, "/x/from", &to).unwrap();
        assert_eq!(std::fs::read(to.join("from/d/file")).unwrap(), b"text");
        let (what, tar) = packed(&from.join("d/file"));
        assert_eq!(what, Source::File { name: "file".into() });
        put(tar, "/x/file", &to.join("other")).unwrap();
        assert_eq!(std::fs::read(to.join("other")).unwrap(), b"text");
        // Broken off in the middle.
        let (_, tar) = packed(&from);
        std::fs::OpenOptions::new().write(true).open(base.path().join("tar")).unwrap().set_len(600).unwrap();
        assert!(put(tar, "/x/from", &to).is_err());
        assert!(first_entry(&mut &[0x78; 512][..]).is_err());
    }

    #[test]
    fn a_dot_at_the_end_means_the_content() {
        assert_eq!(base_name("/etc/"), Some("etc".into()));
        assert_eq!(base_name("etc/passwd"), Some("passwd".into()));
        for path in ["/", ".", "/etc/.", "..", "/.."] {
            assert_eq!(base_name(path), None, "{path}");
        }
    }
}
