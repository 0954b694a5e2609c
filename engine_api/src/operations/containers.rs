//! Containers: list, create, look at, change, remove.

use engine::container::id::ContainerId;
use engine::container::record::{self, Record};
use engine::container::state::{Health, Status};
use engine::plan::resources;
use engine::verbs::{self, VerbError};
use hyper::Method;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

use super::{create, plain};
use crate::call::Call;
use crate::convert::familiar;
use crate::exclusive;
use crate::operation::ParamKind::{Choice, Flag, List, Number, Text};
use crate::operation::{Content, Operation, of, param};
use crate::problem::{Kind, Problem};
use crate::reply::Reply;
use crate::types::{
    Container, ContainerList, ContainerSummary, CreateContainer, Created, Pruned, Security, Update,
};

pub const TAG: &str = "containers";
/// Containers of one answer where nothing is said.
const PAGE: u64 = 100;
/// The most of one answer.
const MAX_PAGE: u64 = 1000;
const HEALTHS: &[&str] = &["none", "starting", "healthy", "unhealthy"];
const STATUSES: &[&str] = &["created", "starting", "running", "paused", "restarting", "exited"];

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "List containers, newest first",
        query: &[
            param("limit", Number(1, MAX_PAGE), "At most so many; 100 where nothing is said."),
            param("cursor", Text, "`next` of the page before."),
            param("id", List, "Only those whose ID begins so."),
            param("name", List, "Only those with this in their name."),
            param("label", List, "Only those with this label: NAME or NAME=VALUE. All of several must fit."),
            param("status", Choice(STATUSES), "Only those that are this."),
            param("health", Choice(HEALTHS), "Only those that are so well."),
            param("exited", Number(0, 255), "Only those that ended with this code."),
            param("live", Flag, "Only those that have a keeper: not created and exited ones."),
            param("image", List, "Only those of this image."),
        ],
        gives: &[(200, Content::Json(of::<ContainerList>), "A page of them.")],
        ..plain(&Method::GET, "/v1/containers", "listContainers", TAG, list)
    },
    Operation {
        summary: "Create a container, and start it if wanted",
        headers: &[param(
            "idempotency-key",
            Text,
            "The same request with the same key creates nothing more as long as its container is there.",
        )],
        takes: Content::Json(of::<CreateContainer>),
        gives: &[
            (200, Content::Json(of::<Created>), "It was created by an earlier request with this key."),
            (201, Content::Json(of::<Created>), "It was created; `Location` names it."),
        ],
        problems: &[Kind::CONFLICT, Kind::KEY_REUSED, Kind::DEPENDENCY],
        ..plain(&Method::POST, "/v1/containers", "createContainer", TAG, create::create)
    },
    Operation {
        summary: "All that is known of a container",
        gives: &[(200, Content::Json(of::<Container>), "It, with an `ETag` for what can be changed of it.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/containers/{container}", "getContainer", TAG, |call| {
            let record = call.container()?;
            Ok(Reply::json(&Container::from(&record))?.with("etag", &etag(&record)))
        })
    },
    Operation {
        summary: "What the process that runs a container's machine really holds",
        gives: &[(200, Content::Json(of::<Security>), "Read from the kernel now.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/containers/{container}/security", "getSecurity", TAG, |call| {
            call.caller.owner_only("look at processes of the host")?;
            let report = engine::security::inspect(&call.running()?);
            let report = report.map_err(|error| Problem::of(Kind::CONFLICT, &error))?;
            Reply::json(&Security { report: serde_json::to_value(report).unwrap_or_default() })
        })
    },
    Operation {
        summary: "Change a container's limits and name",
        headers: &[param("if-match", Text, "The `ETag` that it must still have.")],
        takes: Content::Json(of::<Update>),
        gives: &[(200, Content::Json(of::<Container>), "It as it is now, with its new `ETag`.")],
        problems: &[Kind::CONFLICT, Kind::CHANGED],
        ..plain(&Method::PATCH, "/v1/containers/{container}", "updateContainer", TAG, update)
    },
    Operation {
        summary: "Remove a container",
        query: &[
            param("force", Flag, "Also one that runs."),
            param("volumes", Flag, "Its anonymous volumes, too."),
        ],
        gives: &[(204, Content::None, "It is gone.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::DELETE, "/v1/containers/{container}", "removeContainer", TAG, |call| {
            verbs::remove(call.dirs(), &call.container()?, call.flag("force"), call.flag("volumes"))?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Remove all containers that do not run",
        gives: &[(200, Content::Json(of::<Pruned>), "Their IDs.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/containers/prune", "pruneContainers", TAG, |call| {
            Reply::json(&Pruned { removed: verbs::prune(call.dirs())? })
        })
    },
];

fn list(call: &mut Call) -> Result<Reply, Problem> {
    let limit = usize::try_from(call.number("limit").unwrap_or(PAGE)).unwrap_or_default();
    let after = call.text("cursor").map(Cursor::parse).transpose()?;
    let mut records = call.containers();
    let place = |record: &Record| (record.spec.created_ns, record.spec.id.as_str().to_owned());
    records.sort_by_cached_key(|record| std::cmp::Reverse(place(record)));
    let mut found = records.into_iter().filter(|record| {
        after.as_ref().is_none_or(|after| Cursor::of(record) < *after) && fits(call, record)
    });
    let page: Vec<_> = found.by_ref().take(limit).collect();
    let next = found.next().and(page.last()).map(|last| Cursor::of(last).text());
    Reply::json(&ContainerList {
        items: page.iter().map(|record| ContainerSummary::from(&**record)).collect(),
        next,
    })
}

fn fits(call: &Call, record: &Record) -> bool {
    let label = |wanted: &str| match wanted.split_once('=') {
        Some((name, value)) => record.spec.labels.get(name).is_some_and(|found| found == value),
        None => record.spec.labels.contains_key(wanted),
    };
    let any = |name: &str, fits: &dyn Fn(&str) -> bool| {
        let mut wanted = call.list(name).peekable();
        wanted.peek().is_none() || wanted.any(fits)
    };
    let health = match record.state.health {
        None => "none",
        Some(Health::Starting) => "starting",
        Some(Health::Healthy) => "healthy",
        Some(Health::Unhealthy) => "unhealthy",
    };
    let ended = record.state.exit_code.filter(|_| record.state.status == Status::Exited);
    call.list("label").all(label)
        && any("id", &|begin| record.spec.id.as_str().starts_with(begin))
        && any("health", &|wanted| wanted == health)
        && call.number("exited").is_none_or(|code| ended.is_some_and(|ended| u64::from(ended) == code))
        && any("name", &|part| record.name.contains(part))
        && any("status", &|status| record.state.status.name() == status)
        && any("image", &|image| record.spec.image == image || familiar(&record.spec.image) == image)
        && (!call.flag("live") || record.state.status.is_live())
}

/// A place in the list: time of creation, then ID.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor(u64, String);

impl Cursor {
    fn of(record: &Record) -> Self {
        Self(record.spec.created_ns, record.spec.id.as_str().to_owned())
    }

    fn text(&self) -> String {
        format!("{:x}-{}", self.0, self.1)
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let parsed = text.split_once('-').and_then(|(time, id)| {
            Some(Self(u64::from_str_radix(time, 16).ok()?, ContainerId::parse(id)?.as_str().to_owned()))
        });
        parsed.ok_or_else(|| Problem::invalid("the query parameter cursor is not `next` of a page"))
    }
}

/// Stands for everything that [`update`] can change.
pub fn etag(record: &Record) -> String {
    #[derive(Serialize)]
    struct Changeable<'a>(&'a str, &'a engine::container::spec::ContainerSpec);
    let text = serde_json::to_vec(&Changeable(&record.name, &record.spec)).unwrap_or_default();
    let digest = Sha256::digest(text);
    let digits = digest.iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    format!("\"{digits}\"")
}

fn update(call: &mut Call) -> Result<Reply, Problem> {
    let wanted: Update = call.json()?;
    // From reading to writing no other request changes it.
    let _turn = exclusive::turn(call.dirs(), exclusive::UPDATE)?;
    let mut record = call.container()?;
    if let Some(tag) = call.header("if-match")
        && !tag.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag(&record))
    {
        return Err(Problem::new(
            Kind::CHANGED,
            format!("container {} is another one now: read it again", record.name),
        ));
    }
    let cpus = wanted.cpus.map(|cpus| cpus.to_string());
    let invalid = |error: &dyn std::error::Error| Problem::of(Kind::INVALID, error);
    let vcpus = cpus.as_deref().map(resources::parse_cpus).transpose().map_err(|error| invalid(&error))?;
    let memory_mib = wanted.memory_mib.map(create::memory).transpose()?;
    let restart = wanted.restart.as_deref().map(str::parse).transpose();
    let change = verbs::Update {
        resources: create::limits(&wanted.rates, wanted.cpus, memory_mib)?,
        vcpus,
        memory_mib,
        restart: restart.map_err(|error| {
            let error: engine::container::spec::RestartPolicyError = error;
            invalid(&error)
        })?,
    };
    let plain = change.resources == Default::default() && change.restart.is_none();
    if plain && wanted.name.is_none() {
        return Err(Problem::invalid("nothing to change: the body names no member"));
    }
    if !plain {
        let more = change.memory_mib.unwrap_or_default().saturating_sub(record.spec.machine.memory_mib);
        match record.state.status.is_live() {
            true if more > 0 => {
                call.caller.starting(&[(0, more)], || Ok(verbs::update(call.dirs(), &record, &change)?))?
            }
            _ => verbs::update(call.dirs(), &record, &change)?,
        };
    }
    if let Some(name) = wanted.name.as_ref().filter(|name| **name != record.name) {
        verbs::rename(call.dirs(), &record, name)?;
    }
    record = record::find(call.dirs(), record.spec.id.as_str()).map_err(VerbError::from)?;
    Ok(Reply::json(&Container::from(&record))?.with("etag", &etag(&record)))
}
