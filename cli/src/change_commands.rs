//! What containers changed: `lighter diff`, `cp`, `export` and `commit`.

use std::fs::File;
use std::io::{IsTerminal as _, Write, stdin, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use engine::container::record;
use engine::dirs::Dirs;
use engine::files::{CopyOptions, FilesError, Guest, Source};
use engine::verbs;
use images::Reference;
use serde_json::json;

use crate::exchange_commands::EditArgs;
use crate::output::{self, Format};

/// `lighter diff`
#[derive(Args)]
pub struct DiffArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// Name or ID
    pub container: String,
}

/// `lighter cp`
#[derive(Args)]
pub struct CopyArgs {
    /// Keep owners
    #[arg(short, long)]
    pub archive: bool,
    /// Follow a link that SOURCE is
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
    /// CONTAINER:PATH, a path of the host, or - for a tar archive from stdin
    pub source: String,
    /// CONTAINER:PATH, a path of the host, or - for a tar archive to stdout
    pub destination: String,
}

/// `lighter export`
#[derive(Args)]
pub struct ExportArgs {
    /// Write to this file [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Name or ID
    pub container: String,
}

/// `lighter commit`
#[derive(Args)]
pub struct CommitArgs {
    /// What the new image says of itself.
    #[command(flatten)]
    pub edit: EditArgs,
    /// Who made it
    #[arg(short, long, value_name = "TEXT")]
    pub author: Option<String>,
    /// Name or ID
    pub container: String,
    /// The image's name [default: its ID]
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<Reference>,
}

/// Prints what a container changed in its image.
pub fn diff(dirs: &Dirs, args: &DiffArgs) -> anyhow::Result<()> {
    let changes = with_guest(dirs, &args.container, |guest| guest.changes())?;
    match args.format {
        Format::Json => output::print_json(&json!({"schema": "lighter.diff.v1", "changes": changes})),
        Format::Table => {
            let line = |change: &engine::files::FileChange| {
                format!("{} {}\n", change.kind.letter(), change.path.escape_debug())
            };
            output::print(&changes.iter().map(line).collect::<String>())
        }
    }
}

/// Copies files into or out of a container.
pub fn copy(dirs: &Dirs, args: &CopyArgs) -> anyhow::Result<()> {
    let options = CopyOptions { archive: args.archive, follow: args.follow_link };
    match (Place::parse(&args.source), Place::parse(&args.destination)) {
        (Place::Container(name, path), Place::Host(destination)) => {
            let mut left_out = |path: &Path| {
                if !args.quiet {
                    output::notice(&format!("{} is a device and is left out", path.display()));
                }
            };
            with_guest(dirs, name, |guest| guest.copy_out(path, destination, options, &mut left_out))
        }
        (Place::Container(name, path), Place::Stream) => {
            let mut out = archive_out(None)?;
            with_guest(dirs, name, |guest| guest.copy_out_archive(path, None, options, &mut *out))
        }
        (Place::Host(source), Place::Container(name, path)) => {
            with_guest(dirs, name, |guest| guest.copy_in(source, path, options))
        }
        (Place::Stream, Place::Container(name, path)) => {
            ensure!(!stdin().is_terminal(), "nothing to copy: - means a tar archive from stdin");
            with_guest(dirs, name, |guest| {
                guest.copy_in_archive(&mut stdin().lock(), Source::Archive, path, options)
            })
        }
        (Place::Container(..), Place::Container(..)) => {
            bail!("one side has to be this host: copy through `lighter cp A:PATH - | lighter cp - B:PATH`")
        }
        _ => bail!("neither side is a container: write CONTAINER:PATH"),
    }
}

/// Writes a container's files as a tar archive.
pub fn export(dirs: &Dirs, args: &ExportArgs) -> anyhow::Result<()> {
    let mut out = archive_out(args.output.as_deref())?;
    with_guest(dirs, &args.container, |guest| guest.export(&mut *out))
}

/// Makes an image of what a container changed and prints its ID.
pub fn commit(dirs: &Dirs, args: CommitArgs) -> anyhow::Result<()> {
    let record = record::find(dirs, &args.container)?;
    let mut options = args.edit.commit_options();
    options.author = args.author;
    let image = verbs::commit(dirs, &record, args.name.as_ref(), &options, &output::notice)?;
    output::print(&format!("{}\n", image.config_digest))
}

/// Does something with the files of a container, running or not.
fn with_guest<T>(
    dirs: &Dirs,
    container: &str,
    act: impl FnOnce(&Guest) -> Result<T, FilesError>,
) -> anyhow::Result<T> {
    Ok(verbs::with_guest(dirs, &record::find(dirs, container)?, &output::notice, act)?)
}

/// One side of a copy.
pub enum Place<'a> {
    /// Its name, and the path in it.
    Container(&'a str, &'a str),
    /// A path of this host.
    Host(&'a Path),
    /// An archive from stdin or to stdout.
    Stream,
}

impl<'a> Place<'a> {
    /// As Docker does: a path that begins with a dot or slash is the host's, whatever is in it.
    pub fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((name, path)) if !text.starts_with(['/', '.']) && !name.contains('/') => {
                Self::Container(name, path)
            }
            _ => Self::Host(Path::new(text)),
        }
    }
}

/// Where an archive goes: a file, or stdout if that is no terminal.
pub fn archive_out(path: Option<&Path>) -> anyhow::Result<Box<dyn Write>> {
    match path {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
            Ok(Box::new(file))
        }
        None => {
            ensure!(!stdout().is_terminal(), "an archive is nothing for a terminal: use -o FILE, or a pipe");
            Ok(Box::new(stdout().lock()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart_as_docker_does() {
        for (text, container) in [
            ("c:/etc", Some(("c", "/etc"))),
            ("c:", Some(("c", ""))),
            ("c:a:b", Some(("c", "a:b"))),
            ("./a:b", None),
            ("/a:b", None),
            ("d/a:b", None),
            ("file", None),
        ] {
            let found = match Place::parse(text) {
                Place::Container(name, path) => Some((name, path)),
                _ => None,
            };
            assert_eq!(found, container, "{text}");
        }
        assert!(matches!(Place::parse("-"), Place::Stream));
    }
}
