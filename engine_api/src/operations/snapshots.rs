//! Snapshots of running containers.

use std::io;

use engine::snapshot::{Snapshot, SnapshotStore, archive, remote};
use engine::verbs;
use hyper::Method;
use images::push::PushOptions;

use super::create::registry_options;
use super::images::{parse, told};
use super::plain;
use crate::call::Call;
use crate::convert::{familiar, rfc3339};
use crate::operation::ParamKind::Required;
use crate::operation::{Content, Operation, of, param};
use crate::problem::{Kind, Problem};
use crate::reply::Reply;
use crate::transfer;
use crate::types::{
    CreateSnapshot, Made, PullSnapshot, PushSnapshot, Pushed, Restore, SnapshotList, SnapshotView,
};

const TAG: &str = "snapshots";
/// Type of a snapshot's archive.
const ARCHIVE: &str = "application/zstd";

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "List snapshots",
        gives: &[(200, Content::Json(of::<SnapshotList>), "Oldest first.")],
        ..plain(&Method::GET, "/v1/snapshots", "listSnapshots", TAG, |call| {
            Reply::json(&SnapshotList { items: store(call).list().iter().map(view).collect() })
        })
    },
    Operation {
        summary: "Save a running container: its processes, memory and files",
        takes: Content::Json(of::<CreateSnapshot>),
        gives: &[(201, Content::Json(of::<SnapshotView>), "It.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/snapshots", "createSnapshot", TAG, |call| {
            let wanted: CreateSnapshot = call.json()?;
            let record = verbs::running(call.dirs(), &wanted.container)?;
            call.caller.disk_left()?;
            let (made, _) = verbs::snapshot(call.dirs(), &record, wanted.name.as_deref())?;
            Reply::json_with(201, &view(&made))
        })
    },
    Operation {
        summary: "Bring a snapshot's archive into the store",
        query: &[param("name", Required, "Its name here.")],
        takes: Content::Bytes(ARCHIVE),
        gives: &[(201, Content::Json(of::<SnapshotView>), "It.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/snapshots/import", "importSnapshot", TAG, import)
    },
    Operation {
        summary: "Get a snapshot out of a registry; with `Accept: text/event-stream` the progress is told",
        takes: Content::Json(of::<PullSnapshot>),
        gives: &[(200, Content::JsonOrEvents(of::<SnapshotView>), "It.")],
        problems: &[Kind::CONFLICT, Kind::DEPENDENCY],
        ..plain(&Method::POST, "/v1/snapshots/pull", "pullSnapshot", TAG, |call| {
            let wanted: PullSnapshot = call.json()?;
            let (store, reference) = (store(call), parse(&wanted.reference)?);
            store.check_free(&wanted.name)?;
            call.caller.disk_left()?;
            told(call, move |progress| {
                let draft = remote::pull(&store, &reference, &registry_options(wanted.insecure), progress)?;
                Ok(view(&store.publish(draft, &wanted.name)?))
            })
        })
    },
    Operation {
        summary: "All that is known of a snapshot",
        gives: &[(200, Content::Json(of::<SnapshotView>), "It.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/snapshots/{snapshot}", "getSnapshot", TAG, |call| {
            Reply::json(&view(&store(call).find(call.name())?))
        })
    },
    Operation {
        summary: "Remove a snapshot",
        gives: &[(204, Content::None, "It is gone.")],
        ..plain(&Method::DELETE, "/v1/snapshots/{snapshot}", "removeSnapshot", TAG, |call| {
            store(call).remove(call.name())?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Go on from a snapshot, in a new container",
        takes: Content::MaybeJson(of::<Restore>),
        gives: &[(201, Content::Json(of::<Made>), "The container runs.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/snapshots/{snapshot}/restore", "restoreSnapshot", TAG, |call| {
            let wanted: Restore = call.json()?;
            let spec = store(call).find(call.name())?.manifest.spec;
            call.caller.disk_left()?;
            let copy = call.caller.starting(&[(spec.machine.vcpus, spec.machine.memory_mib)], || {
                Ok(verbs::restore(call.dirs(), call.name(), wanted.name.as_deref(), &|_| ())?)
            })?;
            Reply::json_with(201, &Made { ids: vec![copy.spec.id.as_str().to_owned()] })
        })
    },
    Operation {
        summary: "A snapshot as one file, for another machine",
        gives: &[(200, Content::Bytes(ARCHIVE), "The archive.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/snapshots/{snapshot}/archive", "exportSnapshot", TAG, |call| {
            let (store, name) = (store(call), call.name().to_owned());
            let found = store.find(&name)?;
            Ok(transfer::download(ARCHIVE, move |out| {
                // A draft's directory goes with the draft.
                let draft = store.draft()?;
                let file = draft.directory().join("archive");
                archive::export(&found.directory, &file)?;
                io::copy(&mut std::fs::File::open(&file)?, out)?;
                Ok(())
            }))
        })
    },
    Operation {
        summary: "Put a snapshot into a registry; with `Accept: text/event-stream` the progress is told",
        takes: Content::Json(of::<PushSnapshot>),
        gives: &[(200, Content::JsonOrEvents(of::<Pushed>), "What went there.")],
        problems: &[Kind::CONFLICT, Kind::DEPENDENCY],
        ..plain(&Method::POST, "/v1/snapshots/{snapshot}/push", "pushSnapshot", TAG, |call| {
            let wanted: PushSnapshot = call.json()?;
            let (store, reference) = (store(call), parse(&wanted.reference)?);
            let found = store.find(call.name())?;
            told(call, move |progress| {
                let options =
                    PushOptions { registry: registry_options(wanted.insecure), ..PushOptions::default() };
                let pushed = remote::push(&store, &found.directory, &reference, &options, progress)?;
                Ok(Pushed::from(&pushed))
            })
        })
    },
];

fn store(call: &Call) -> SnapshotStore {
    SnapshotStore::new(call.dirs())
}

fn view(snapshot: &Snapshot) -> SnapshotView {
    let manifest = &snapshot.manifest;
    SnapshotView {
        name: snapshot.name.clone(),
        container: manifest.container.clone(),
        image: familiar(&manifest.spec.image),
        created: rfc3339(manifest.created_ns),
        paused_ms: manifest.paused_us as f64 / 1e3,
        size: snapshot.bytes(),
    }
}

fn import(call: &mut Call) -> Result<Reply, Problem> {
    let (store, name) = (store(call), call.text("name").unwrap_or_default().to_owned());
    store.check_free(&name)?;
    // What comes is read several times, so it has to be a file; it goes with the draft.
    let spool = store.draft()?;
    let path = spool.directory().join("archive");
    let upload = call.upload()?;
    if let Err(error) = io::copy(upload, &mut std::fs::File::create(&path)?) {
        return Err(upload.broken.take().unwrap_or_else(|| error.into()));
    }
    let draft = archive::import(&store, &path).map_err(|error| Problem::of(Kind::INVALID, &error))?;
    Reply::json_with(201, &view(&store.publish(draft, &name)?))
}
