//! Images.

use std::io::Read as _;
use std::str::FromStr;

use engine::intake;
use engine::verbs;
use hyper::Method;
use images::commit::{CommitError, CommitOptions, LayerCompression};
use images::fetch::{self, FetchError, FetchLimits};
use images::pull::LoadFrom;
use images::push::PushOptions;
use images::save::ArchiveKind;
use images::{Platform, Progress, PullOptions, Reference, Silent, Store, history};

use super::archives::TAR;
use super::create::{pull_options, registry_options, source};
use super::plain;
use super::transfer_progress::Teller;
use crate::call::Call;
use crate::convert::familiar;
use crate::operation::ParamKind::{Choice, Flag, List, Text};
use crate::operation::{Content, Operation, of, param};
use crate::problem::{Kind, Problem};
use crate::reply::Reply;
use crate::transfer;
use crate::types::{History, Image, ImageList, ImageSummary, Loaded, Pull, Push, Pushed, Removed, Step, Tag};

const TAG: &str = "images";
const REGISTRY: &[Kind] = &[Kind::CONFLICT, Kind::DEPENDENCY];

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "List images",
        gives: &[(200, Content::Json(of::<ImageList>), "All, by name.")],
        ..plain(&Method::GET, "/v1/images", "listImages", TAG, |call| {
            let images = store(call)?.images()?;
            Reply::json(&ImageList { items: images.iter().map(ImageSummary::from).collect() })
        })
    },
    Operation {
        summary: "Fetch an image; with `Accept: text/event-stream` the progress is told",
        takes: Content::Json(of::<Pull>),
        gives: &[(
            200,
            Content::JsonOrEvents(of::<Image>),
            "The image; or events `progress`, then `done` with the image, or `problem`.",
        )],
        problems: REGISTRY,
        ..plain(&Method::POST, "/v1/images/pull", "pullImage", TAG, pull)
    },
    Operation {
        summary: "Bring the images of an archive into the store",
        query: &[param("platform", Text, "Of several: OS/ARCH[/VARIANT].")],
        takes: Content::Bytes(TAR),
        gives: &[(200, Content::Json(of::<Loaded>), "Their names.")],
        ..plain(&Method::POST, "/v1/images/load", "loadImages", TAG, load)
    },
    Operation {
        summary: "Make an image of a tar archive of a root directory",
        query: &[
            param("name", Text, "Its name; its ID where nothing is said."),
            param("platform", Text, "Of the programs in it."),
            param("message", Text, "Shown by its history."),
            param("change", List, "A Dockerfile instruction that edits its configuration."),
            param(
                "compression",
                Choice(&["gzip", "zstd"]),
                "How the layer is compressed; gzip where nothing is said.",
            ),
            param(
                "url",
                Text,
                "Where the server gets the archive instead: http://… or https://… The body is empty then.",
            ),
        ],
        takes: Content::Bytes(TAR),
        gives: &[(201, Content::Json(of::<Image>), "The image.")],
        problems: &[Kind::DEPENDENCY],
        ..plain(&Method::POST, "/v1/images/import", "importImage", TAG, import)
    },
    Operation {
        summary: "Images as one archive",
        query: &[
            param("image", List, "Names or IDs."),
            param(
                "format",
                Choice(&["docker", "oci"]),
                "What kind of archive; docker where nothing is said.",
            ),
        ],
        gives: &[(200, Content::Bytes(TAR), "The archive.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/images/archive", "saveImages", TAG, |call| {
            let names: Vec<String> = call.list("image").map(str::to_owned).collect();
            if names.is_empty() {
                return Err(Problem::invalid("the query parameter image is missing"));
            }
            let kind =
                if call.text("format") == Some("oci") { ArchiveKind::Oci } else { ArchiveKind::Docker };
            let store = store(call)?;
            Ok(transfer::download(TAR, move |mut out| Ok(store.save(&names, kind, &mut out)?)))
        })
    },
    Operation {
        summary: "All that is known of an image",
        gives: &[(200, Content::Json(of::<Image>), "It.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/images/{image}", "getImage", TAG, |call| {
            Reply::json(&Image::from(&store(call)?.image(call.name())?))
        })
    },
    Operation {
        summary: "Remove an image, and what only it needs",
        query: &[param("force", Flag, "Also where containers are made of it: they keep their files.")],
        gives: &[(200, Content::Json(of::<Removed>), "What went.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::DELETE, "/v1/images/{image}", "removeImage", TAG, |call| {
            let removed = verbs::remove_image(call.dirs(), &store(call)?, call.name(), call.flag("force"))?;
            Reply::json(&Removed { untagged: removed.untagged, bytes: removed.collected.bytes })
        })
    },
    Operation {
        summary: "How an image was built",
        gives: &[(200, Content::Json(of::<History>), "Its steps.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/images/{image}/history", "getHistory", TAG, |call| {
            let steps = history::of(&store(call)?.image(call.name())?);
            let view = |step: history::Step| Step {
                created: step.created,
                created_by: step.created_by,
                comment: step.comment,
                size: step.layer.map_or(0, |layer| layer.size),
            };
            Reply::json(&History { steps: steps.into_iter().map(view).collect() })
        })
    },
    Operation {
        summary: "Give an image one more name",
        takes: Content::Json(of::<Tag>),
        gives: &[(204, Content::None, "It has it.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/images/{image}/tag", "tagImage", TAG, |call| {
            let wanted: Tag = call.json()?;
            store(call)?.tag(call.name(), &parse(&wanted.name)?)?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Put an image into a registry; with `Accept: text/event-stream` the progress is told",
        takes: Content::MaybeJson(of::<Push>),
        gives: &[(
            200,
            Content::JsonOrEvents(of::<Pushed>),
            "What went there; or events `progress`, then `done`, or `problem`.",
        )],
        problems: REGISTRY,
        ..plain(&Method::POST, "/v1/images/{image}/push", "pushImage", TAG, push)
    },
];

fn store(call: &Call) -> Result<Store, Problem> {
    Ok(Store::open(&call.dirs().data)?)
}

/// A text that the client sent, as what it means.
pub fn parse<T: FromStr>(text: &str) -> Result<T, Problem>
where
    T::Err: std::error::Error,
{
    text.parse().map_err(|error: T::Err| Problem::of(Kind::INVALID, &error))
}

fn pull(call: &mut Call) -> Result<Reply, Problem> {
    let wanted: Pull = call.json()?;
    let source = source(&call.caller, &wanted.image)?;
    let options = pull_options(&call.caller, &wanted.registry, wanted.pull)?;
    call.caller.disk_left()?;
    let store = store(call)?;
    let fetch = move |progress: &dyn Progress| {
        let image = intake::pull(&store, &source, &options, progress)?;
        if wanted.unpack {
            intake::ensure_rootfs(&store, &image, progress)?;
        }
        Ok::<_, Problem>(Image::from(&image))
    };
    told(call, fetch)
}

/// Does a transfer, and tells its progress if that is wanted.
pub fn told<T: serde::Serialize>(
    call: &Call,
    transfer: impl FnOnce(&dyn Progress) -> Result<T, Problem> + Send + 'static,
) -> Result<Reply, Problem> {
    if !call.wants_events() {
        return Reply::json(&transfer(&Silent)?);
    }
    Ok(transfer::events(move |outlet| {
        let teller = Teller::new(outlet);
        let done = transfer(&teller)?;
        Ok(teller.into_outlet().event("done", &done)?)
    }))
}

fn load(call: &mut Call) -> Result<Reply, Problem> {
    let mut options = PullOptions::default();
    if let Some(platform) = call.text("platform") {
        options.platform = parse::<Platform>(platform)?;
    }
    let store = store(call)?;
    let upload = call.upload()?;
    let loaded = intake::load(&store, &LoadFrom::Stream("the body"), upload, &options, &Silent);
    match (loaded, upload.broken.take()) {
        (Ok(loaded), _) => {
            Reply::json(&Loaded { names: loaded.iter().map(|image| familiar(&image.name)).collect() })
        }
        (Err(_), Some(problem)) => Err(problem),
        (Err(error), None) => Err(error.into()),
    }
}

fn import(call: &mut Call) -> Result<Reply, Problem> {
    let name: Option<Reference> = call.text("name").map(parse).transpose()?;
    let platform = call.text("platform").map_or_else(|| Ok(Platform::host()), parse)?;
    let options = CommitOptions {
        changes: call.list("change").map(parse).collect::<Result<_, _>>()?,
        message: call.text("message").map(str::to_owned),
        compression: match call.text("compression") {
            Some("zstd") => LayerCompression::Zstd,
            _ => LayerCompression::Gzip,
        },
        ..CommitOptions::default()
    };
    let store = store(call)?;
    if let Some(url) = call.text("url").map(str::to_owned) {
        call.caller.owner_only("let the server fetch from an address")?;
        let mut body = [0];
        if call.upload()?.read(&mut body)? > 0 {
            return Err(Problem::invalid("the archive is in the body, or at url: not both"));
        }
        let mut fetched = fetch::open(&url, FetchLimits::default())?;
        let image = store.import(&mut fetched, name.as_ref(), &platform, &options);
        return Reply::json_with(201, &Image::from(&image.map_err(fetching)?));
    }
    let upload = call.upload()?;
    let imported = store.import(upload, name.as_ref(), &platform, &options);
    match (imported, upload.broken.take()) {
        (Ok(image), _) => Reply::json_with(201, &Image::from(&image)),
        (Err(_), Some(problem)) => Err(problem),
        (Err(error), None) => Err(error.into()),
    }
}

/// An archive that breaks off at its address is no fault of the request.
fn fetching(error: CommitError) -> Problem {
    let fetch = match &error {
        CommitError::Read(source) => source.get_ref().is_some_and(|source| source.is::<FetchError>()),
        _ => false,
    };
    if fetch { Problem::of(Kind::DEPENDENCY, &error) } else { error.into() }
}

fn push(call: &mut Call) -> Result<Reply, Problem> {
    let wanted: Push = call.json()?;
    let destination: Option<Reference> = wanted.destination.as_deref().map(parse).transpose()?;
    let options =
        PushOptions { registry: registry_options(wanted.registry.insecure), ..PushOptions::default() };
    let (store, name) = (store(call)?, call.name().to_owned());
    // Whether it is there is said before anything is told.
    store.image(&name)?;
    told(call, move |progress| {
        Ok(Pushed::from(&store.push(&name, destination.as_ref(), &options, progress)?))
    })
}
