//! `cp`, `export` and `diff` over the API.

use std::io::{IsTerminal as _, stdin};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use engine::files::{self, CopyOptions, Source};
use engine_api::client::{Client, encode};
use engine_api::types::Changes;
use serde_json::json;

use super::container;
use super::images::download;
use crate::change_commands::{CopyArgs, DiffArgs, ExportArgs, Place};
use crate::output::{self, Format};

/// `lighter diff`
pub fn diff(client: &Client, args: &DiffArgs) -> anyhow::Result<()> {
    let found: Changes = client.get(&format!("{}/changes", container(&args.container)))?;
    match args.format {
        Format::Json => output::print_json(&json!({"schema": "lighter.diff.v1", "changes": found.changes})),
        Format::Table => {
            let lines = found.changes.iter();
            let lines = lines.map(|change| format!("{} {}\n", change.kind, change.path.escape_debug()));
            output::print(&lines.collect::<String>())
        }
    }
}

/// `lighter export`
pub fn export(client: &Client, args: &ExportArgs) -> anyhow::Result<()> {
    download(client, &format!("{}/export", container(&args.container)), args.output.as_deref())
}

/// `lighter cp`
pub fn copy(client: &Client, args: &CopyArgs) -> anyhow::Result<()> {
    let options = CopyOptions { archive: args.archive, follow: args.follow_link };
    let path = |name: &str, path: &str| format!("{}/archive?path={}", container(name), encode(path));
    match (Place::parse(&args.source), Place::parse(&args.destination)) {
        (Place::Container(name, source), Place::Host(destination)) => {
            let mut left_out = |path: &Path| {
                if !args.quiet {
                    output::notice(&format!("{} is a device and is left out", path.display()));
                }
            };
            let path = format!("{}&follow={}&name=.", path(name, source), args.follow_link);
            let answer = client.send("GET", &path, None, &[])?;
            Ok(files::unpack(answer, source, destination, options, &mut left_out)?)
        }
        (Place::Container(name, source), Place::Stream) => {
            download(client, &format!("{}&follow={}", path(name, source), args.follow_link), None)
        }
        (Place::Host(source), Place::Container(name, destination)) => {
            let base = format!("{}&owners={}", path(name, destination), args.archive);
            send(client, &base, source, options)
        }
        (Place::Stream, Place::Container(name, destination)) => {
            ensure!(!stdin().is_terminal(), "nothing to copy: - means a tar archive from stdin");
            let path = format!("{}&owners={}", path(name, destination), args.archive);
            let sent = client.upload("PUT", &path, |out| {
                std::io::copy(&mut stdin().lock(), out).context("cannot send the archive").map(drop)
            });
            sent.map(drop)
        }
        (Place::Container(..), Place::Container(..)) => {
            bail!("one side has to be this host: copy through `lighter cp A:PATH - | lighter cp - B:PATH`")
        }
        _ => bail!("neither side is a container: write CONTAINER:PATH"),
    }
}

/// Sends `source` as an archive that says what it is.
fn send(client: &Client, base: &str, source: &Path, options: CopyOptions) -> anyhow::Result<()> {
    let packed = files::Packed::find(source, options)?;
    let name = |name: &str| format!("&name={}", encode(name));
    let query = match packed.source() {
        Source::Archive => String::new(),
        Source::File { name: file } => format!("&source=file{}", name(file)),
        Source::Directory { name: directory } => {
            format!("&source=directory{}", directory.as_deref().map(name).unwrap_or_default())
        }
    };
    let sent =
        client.upload("PUT", &format!("{base}{query}"), |out| Ok::<_, anyhow::Error>(packed.write(out)?));
    sent.map(drop)
}
