//! The files of a container: copied in and out as tar, compared with its image, made an image.

use engine::files::{CopyOptions, Source};
use engine::verbs;
use hyper::Method;
use images::commit::{CommitOptions, LayerCompression};

use super::containers::TAG;
use super::plain;
use crate::call::Call;
use crate::operation::ParamKind::{Choice, Flag, Required, Text};
use crate::operation::{Content, Operation, Param, of, param};
use crate::problem::{Kind, Problem};
use crate::reply::Reply;
use crate::transfer;
use crate::types::{Change, Changes, Commit, Compression, Image};

/// Type of tar archives.
pub const TAR: &str = "application/x-tar";
const OWNERS: Param = param("owners", Flag, "Keep owners; else they are root's.");

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "Copy a file or directory out of a container",
        query: &[
            param("path", Required, "In the container."),
            param("follow", Flag, "If it is a link, follow it."),
            param(
                "name",
                Text,
                "What it is called in the archive; what it is called there where nothing is said.",
            ),
        ],
        gives: &[(200, Content::Bytes(TAR), "A tar archive of it.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/containers/{container}/archive", "copyOut", TAG, |call| {
            let (dirs, record) = (call.dirs().clone(), call.container()?);
            let path = call.text("path").unwrap_or_default().to_owned();
            let options = CopyOptions { archive: true, follow: call.flag("follow") };
            let name = call.text("name").map(str::to_owned);
            Ok(transfer::download(TAR, move |out| {
                let copy = |guest: &engine::files::Guest| {
                    guest.copy_out_archive(&path, name.as_deref(), options, out)
                };
                Ok(verbs::with_guest(&dirs, &record, &|_| (), copy)?)
            }))
        })
    },
    Operation {
        summary: "Extract a tar archive into a directory of a container, or at a path as `cp` does",
        query: &[
            param("path", Required, "The directory in the container."),
            OWNERS,
            param(
                "source",
                Choice(&["archive", "directory", "file"]),
                "What the archive is: files for a directory (the default), or one directory or file, called `.` in it, \
                 that becomes `path` by the rules of `cp`.",
            ),
            param("name", Text, "What the directory or file is called where `path` is a directory."),
        ],
        takes: Content::Bytes(TAR),
        gives: &[(204, Content::None, "It is there.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::PUT, "/v1/containers/{container}/archive", "copyIn", TAG, |call| {
            let (dirs, record) = (call.dirs().clone(), call.container()?);
            let path = call.text("path").unwrap_or_default().to_owned();
            let options = CopyOptions { archive: call.flag("owners"), follow: false };
            let name = call.text("name").map(str::to_owned);
            let source = match (call.text("source"), name) {
                (Some("directory"), name) => Source::Directory { name },
                (Some("file"), Some(name)) => Source::File { name },
                (Some("file"), None) => return Err(Problem::invalid("source=file needs a name")),
                (_, None) => Source::Archive,
                (_, Some(_)) => return Err(Problem::invalid("name goes with source=directory or file only")),
            };
            let upload = call.upload()?;
            let copy = |guest: &engine::files::Guest| guest.copy_in_archive(upload, source, &path, options);
            let copied = verbs::with_guest(&dirs, &record, &|_| (), copy);
            match (copied, call.upload()?.broken.take()) {
                (Ok(()), _) => Ok(Reply::done()),
                (Err(_), Some(problem)) => Err(problem),
                (Err(error), None) => Err(error.into()),
            }
        })
    },
    Operation {
        summary: "All files of a container",
        gives: &[(200, Content::Bytes(TAR), "A tar archive of its root, without what is mounted in it.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/containers/{container}/export", "exportContainer", TAG, |call| {
            let (dirs, record) = (call.dirs().clone(), call.container()?);
            Ok(transfer::download(TAR, move |out| {
                Ok(verbs::with_guest(&dirs, &record, &|_| (), |guest| guest.export(out))?)
            }))
        })
    },
    Operation {
        summary: "What a container changed in its image",
        gives: &[(200, Content::Json(of::<Changes>), "Each path.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/containers/{container}/changes", "getChanges", TAG, |call| {
            let record = call.container()?;
            let changes = verbs::with_guest(call.dirs(), &record, &|_| (), |guest| guest.changes())?;
            let view = |change: engine::files::FileChange| Change {
                kind: change.kind.letter().to_string(),
                path: change.path,
            };
            Reply::json(&Changes { changes: changes.into_iter().map(view).collect() })
        })
    },
    Operation {
        summary: "Make an image of what a container changed",
        takes: Content::MaybeJson(of::<Commit>),
        gives: &[(201, Content::Json(of::<Image>), "The image.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/containers/{container}/commit", "commitContainer", TAG, commit)
    },
];

/// For the image store.
pub fn compression(wanted: Compression) -> LayerCompression {
    match wanted {
        Compression::Gzip => LayerCompression::Gzip,
        Compression::Zstd => LayerCompression::Zstd,
    }
}

fn commit(call: &mut Call) -> Result<Reply, Problem> {
    let wanted: Commit = call.json()?;
    call.caller.disk_left()?;
    let invalid = |error: &dyn std::error::Error| Problem::of(Kind::INVALID, error);
    let changes = wanted.changes.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>();
    let name = wanted.name.as_deref().map(str::parse).transpose();
    let name: Option<images::Reference> =
        name.map_err(|error: <images::Reference as std::str::FromStr>::Err| invalid(&error))?;
    let options = CommitOptions {
        changes: changes.map_err(|error: images::commit::ChangeError| invalid(&error))?,
        message: wanted.message,
        author: wanted.author,
        compression: compression(wanted.compression),
        ..CommitOptions::default()
    };
    let image = verbs::commit(call.dirs(), &call.container()?, name.as_ref(), &options, &|_| ())?;
    Reply::json_with(201, &Image::from(&image))
}
