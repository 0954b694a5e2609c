//! Volumes.

use engine::events::{Event, emit};
use engine::volumes::{self, Volume, VolumeStore};
use hyper::Method;

use super::plain;
use crate::call::Call;
use crate::convert::rfc3339;
use crate::operation::ParamKind::{Flag, List};
use crate::operation::{Content, Operation, of, param};
use crate::problem::{Kind, Problem};
use crate::reply::Reply;
use crate::types::{CreateVolume, PruneVolumes, Pruned, VolumeList, VolumeView};

const TAG: &str = "volumes";

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "List volumes",
        query: &[
            param("name", List, "Only those with this in their name."),
            param("label", List, "Only those with this label: NAME or NAME=VALUE."),
            param("unused", Flag, "Only those that no container has (true), or that one has (false)."),
        ],
        gives: &[(200, Content::Json(of::<VolumeList>), "By name.")],
        ..plain(&Method::GET, "/v1/volumes", "listVolumes", TAG, list)
    },
    Operation {
        summary: "Make a volume",
        takes: Content::MaybeJson(of::<CreateVolume>),
        gives: &[
            (200, Content::Json(of::<VolumeView>), "It was there."),
            (201, Content::Json(of::<VolumeView>), "It was made."),
        ],
        ..plain(&Method::POST, "/v1/volumes", "createVolume", TAG, |call| {
            let wanted: CreateVolume = call.json()?;
            let store = VolumeStore::new(call.dirs());
            let anonymous = wanted.name.is_none();
            let name = wanted.name.unwrap_or_else(volumes::random_name);
            let made = match wanted.disk_bytes {
                None => store.create(&name, wanted.labels, anonymous)?,
                Some(size) if size > call.caller.disk_left()? => {
                    return Err(Problem::new(
                        Kind::QUOTA,
                        "the tenant's disk quota has no room for this disk",
                    ));
                }
                Some(size) => store.create_disk(&name, wanted.labels, size)?,
            };
            if made {
                event(call, "create", &name);
            }
            Reply::json_with(if made { 201 } else { 200 }, &view(&store, &store.find(&name)?))
        })
    },
    Operation {
        summary: "Remove the volumes that no container has",
        takes: Content::MaybeJson(of::<PruneVolumes>),
        gives: &[(200, Content::Json(of::<Pruned>), "Their names.")],
        ..plain(&Method::POST, "/v1/volumes/prune", "pruneVolumes", TAG, |call| {
            let wanted: PruneVolumes = call.json()?;
            let removed = VolumeStore::new(call.dirs()).prune(wanted.all)?;
            removed.iter().for_each(|name| event(call, "destroy", name));
            Reply::json(&Pruned { removed })
        })
    },
    Operation {
        summary: "All that is known of a volume",
        gives: &[(200, Content::Json(of::<VolumeView>), "It.")],
        ..plain(&Method::GET, "/v1/volumes/{volume}", "getVolume", TAG, |call| {
            let store = VolumeStore::new(call.dirs());
            Reply::json(&view(&store, &store.find(call.name())?))
        })
    },
    Operation {
        summary: "Remove a volume that no container has, with all that is in it",
        gives: &[(204, Content::None, "It is gone.")],
        problems: &[Kind::IN_USE],
        ..plain(&Method::DELETE, "/v1/volumes/{volume}", "removeVolume", TAG, |call| {
            VolumeStore::new(call.dirs()).remove(call.name())?;
            event(call, "destroy", call.name());
            Ok(Reply::done())
        })
    },
];

fn list(call: &mut Call) -> Result<Reply, Problem> {
    let store = VolumeStore::new(call.dirs());
    let unused = call.text("unused").map(|text| text == "true");
    let has = |volume: &Volume, wanted: &str| match wanted.split_once('=') {
        Some((name, value)) => volume.labels.get(name).is_some_and(|there| there == value),
        None => volume.labels.contains_key(wanted),
    };
    let named = |volume: &Volume| {
        let mut names = call.list("name").peekable();
        names.peek().is_none() || names.any(|part| volume.name.contains(part))
    };
    let volumes = store
        .list()
        .into_iter()
        .filter(|volume| named(volume) && call.list("label").all(|wanted| has(volume, wanted)));
    let views = volumes.map(|volume| view(&store, &volume));
    let items =
        views.filter(|view| unused.is_none_or(|unused| unused == view.containers.is_empty())).collect();
    Reply::json(&VolumeList { items })
}

fn view(store: &VolumeStore, volume: &Volume) -> VolumeView {
    VolumeView {
        name: volume.name.clone(),
        mountpoint: store
            .disk(&volume.name)
            .unwrap_or_else(|| store.content(&volume.name))
            .display()
            .to_string(),
        disk_bytes: volume.disk,
        created: rfc3339(volume.created_ns),
        labels: volume.labels.clone(),
        anonymous: volume.anonymous,
        containers: store.users(&volume.name),
    }
}

fn event(call: &Call, action: &str, name: &str) {
    emit(call.dirs(), &Event::new("volume", action, name, name));
}
