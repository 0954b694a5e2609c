//! `lighter cp`, both ways, by the rules of `docker cp`.

use std::io::{self, Read, Write};
use std::path::Path;

use agent_protocol::tool::{DIRECTORY, Source, ToolPlan, WritePlan};
use archive::{Incoming, On as _, Options, Owners, Target, Tree, Trust};

use super::tool::{Input, Tool};
use super::{FilesError, Guest};

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
        let name = base_name(source);
        let incoming = match (directory, &name) {
            (true, name) => Incoming::Directory { name: name.as_deref() },
            (false, Some(name)) => Incoming::File { name },
            (false, None) => return Err(FilesError::Guest(format!("{source}: no directory"))),
        };
        let target = Target::find(destination, incoming)?;
        let (owners, set_id) = if options.archive { (Owners::Kept, true) } else { (Owners::Own, false) };
        let options = Options { trust: Trust::Guest { set_id }, owners };
        archive::extract(&mut tool, &target, options, left_out)?;
        // What a tool that failed said last.
        io::copy(&mut tool, &mut io::sink()).map(drop).map_err(FilesError::Transfer)
    }

    /// Writes `source` of the container as a tar stream.
    pub fn copy_out_archive(
        &self,
        source: &str,
        options: CopyOptions,
        out: &mut dyn Write,
    ) -> Result<(), FilesError> {
        let name = base_name(source).unwrap_or_else(|| ".".to_owned());
        let (mut tool, _) = self.read(source, &name, options.follow)?;
        io::copy(&mut tool, out).and_then(|_| out.flush()).map_err(FilesError::Transfer)
    }

    /// Copies `source` of the host to `destination` in the container.
    pub fn copy_in(&self, source: &Path, destination: &str, options: CopyOptions) -> Result<(), FilesError> {
        let text = source.to_string_lossy();
        let tree = Tree::find(source, options.follow || text.ends_with('/') || text.ends_with("/."))?;
        let name = match base_name(&text) {
            // `.` and `..` have a name, but not in themselves.
            None if !ends_with_dot(&text) => real_name(source),
            name => name,
        };
        let source = match (tree.is_directory(), name) {
            (true, name) => Source::Directory { name },
            (false, Some(name)) => Source::File { name },
            (false, None) => return Err(archive::ArchiveError::refused(source, "no directory").into()),
        };
        self.write(source, destination, options, |input| Ok(tree.pack(".", input)?))
    }

    /// Extracts a tar stream, plain, into the directory `destination` of the container.
    pub fn copy_in_archive(
        &self,
        input: &mut dyn Read,
        destination: &str,
        options: CopyOptions,
    ) -> Result<(), FilesError> {
        self.write(Source::Archive, destination, options, |out| {
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
    fn a_dot_at_the_end_means_the_content() {
        assert_eq!(base_name("/etc/"), Some("etc".into()));
        assert_eq!(base_name("etc/passwd"), Some("passwd".into()));
        for path in ["/", ".", "/etc/.", "..", "/.."] {
            assert_eq!(base_name(path), None, "{path}");
        }
    }
}
