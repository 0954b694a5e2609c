//! The system as a whole: health, metrics, versions, events, disk space.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use compare::{Column, Group};
use engine::stats::{self, prometheus};
use engine::template::TemplateStore;
use engine::verbs;
use hyper::Method;
use images::Store;
use serde_json::json;

use super::{OPEN, plain};
use crate::call::Call;
use crate::hub::Filter;
use crate::openapi;
use crate::operation::ParamKind::{List, Text};
use crate::operation::{Content, Operation, of, param};
use crate::problem::{Kind, Problem, ProblemBody};
use crate::reply::{EVENTS, Reply};
use crate::transfer;
use crate::types::{Compare, DiskUsage, Doctor, Event, HealthView, IsolationKind, SystemPruned, Version};

const TAG: &str = "system";
/// Longest comparison where nothing is said, in seconds, whole and quick.
const LIMITS: (u64, u64) = (600, 80);
/// Starts of each column where nothing is said, whole and quick.
const RUNS: (usize, usize) = (10, 3);

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "Whether the server answers",
        gives: &[(200, Content::Json(of::<HealthView>), "It does.")],
        ..plain(&Method::GET, "/healthz", "getHealth", OPEN, |_| {
            Reply::json(&HealthView { status: "ok".to_owned() })
        })
    },
    Operation {
        summary: "This document",
        gives: &[(200, Content::Bytes("application/json"), "OpenAPI 3.1.")],
        ..plain(&Method::GET, "/v1/openapi.json", "getOpenApi", OPEN, |_| {
            Ok(Reply::whole(200, crate::reply::JSON, openapi::text()))
        })
    },
    Operation {
        summary: "What a type of problem means",
        gives: &[(200, Content::Json(of::<ProblemBody>), "An example.")],
        ..plain(&Method::GET, "/v1/problems/{problem}", "getProblem", OPEN, problem)
    },
    Operation {
        summary: "Figures of the server and of all containers that run, for Prometheus",
        gives: &[(200, Content::Bytes("text/plain; version=0.0.4"), "Text exposition format.")],
        ..plain(&Method::GET, "/metrics", "getMetrics", TAG, metrics)
    },
    Operation {
        summary: "Versions",
        gives: &[(200, Content::Json(of::<Version>), "Versions.")],
        ..plain(&Method::GET, "/v1/version", "getVersion", TAG, |call| {
            let (version, api) = (call.service.version.to_owned(), openapi::VERSION.to_owned());
            Reply::json(&Version { version, api, agent_protocol: engine::PROTOCOL_VERSION })
        })
    },
    Operation {
        summary: "What happens, as it happens",
        query: &[
            param(
                "since",
                Text,
                "From this time on: RFC 3339, or seconds since 1970. From now on where it is missing.",
            ),
            param("until", Text, "The stream ends at this time."),
            param("type", List, "Only of this kind."),
            param("action", List, "Only this."),
            param("container", List, "Only of this name or ID."),
            param("image", List, "Only of containers of this image."),
        ],
        headers: &[param("last-event-id", Text, "ID of the last event that was read: goes on behind it.")],
        gives: &[(200, Content::Events(of::<Event>), "Events until the client goes.")],
        ..plain(&Method::GET, "/v1/events", "streamEvents", TAG, events)
    },
    Operation {
        summary: "What takes disk space",
        gives: &[(200, Content::Json(of::<DiskUsage>), "Files and bytes.")],
        ..plain(&Method::GET, "/v1/system/df", "getDiskUsage", TAG, |call| {
            let (store, templates) =
                (Store::open(&call.dirs().data)?, TemplateStore::new(call.dirs()).usage());
            Reply::json(&DiskUsage { images: json!(store.system_df()?), templates: json!(templates) })
        })
    },
    Operation {
        summary: "Remove containers that do not run, templates and everything that no image needs",
        gives: &[(200, Content::Json(of::<SystemPruned>), "What was removed.")],
        ..plain(&Method::POST, "/v1/system/prune", "pruneSystem", TAG, prune)
    },
    Operation {
        summary: "What this host has and lacks",
        gives: &[(200, Content::Json(of::<Doctor>), "Findings.")],
        ..plain(&Method::GET, "/v1/system/doctor", "getDoctor", TAG, |call| {
            call.caller.owner_only("look at the host")?;
            Reply::json(&Doctor { checks: json!(engine::doctor::examine(call.dirs())) })
        })
    },
    Operation {
        summary: "Measure what a VM costs over a container here, and what it buys",
        takes: Content::Json(of::<Compare>),
        gives: &[(
            200,
            Content::Bytes(EVENTS),
            "Events `progress` with a text, then `report` as `lighter compare --format json` prints it.",
        )],
        ..plain(&Method::POST, "/v1/compare", "compare", TAG, measure)
    },
];

fn problem(call: &mut Call) -> Result<Reply, Problem> {
    let kind = Kind::ALL.iter().find(|kind| kind.name == call.name());
    let kind = kind.ok_or_else(|| Problem::new(Kind::NOT_FOUND, "there is no problem of this type"))?;
    Reply::json(&ProblemBody { request_id: None, ..Problem::new(*kind, kind.title).body("") })
}

fn metrics(call: &mut Call) -> Result<Reply, Problem> {
    let mut text = if call.caller.tenant.is_none() { call.service.metrics.text() } else { String::new() };
    let containers = call.containers();
    let running = containers.iter().filter(|record| record.is_running());
    let figures: Vec<_> = running.filter_map(|record| stats::read(record)).collect();
    text += &prometheus::text(&figures.iter().collect::<Vec<_>>());
    Ok(Reply::whole(200, "text/plain; version=0.0.4", text))
}

fn events(call: &mut Call) -> Result<Reply, Problem> {
    let list = |name: &str| call.list(name).map(str::to_owned).collect();
    let seen = call.header("last-event-id").map(|id| {
        id.parse::<u64>().map_err(|_| Problem::invalid("the header Last-Event-ID is none of an event"))
    });
    let since = call.moment("since")?;
    let seen = seen.transpose()?.map(|id| id.saturating_add(1));
    let filter = Filter {
        since: seen.or(since).unwrap_or(0),
        until: call.moment("until")?.unwrap_or(u64::MAX),
        kinds: list("type"),
        actions: list("action"),
        containers: list("container"),
        images: list("image"),
    };
    let chunks = call.service.hub(&call.caller).listen(filter, seen.or(since).is_some())?;
    // Tells the client at once that it listens.
    Ok(Reply::stream(EVENTS, Some(hyper::body::Bytes::from_static(b":\n\n")), chunks))
}

fn prune(call: &mut Call) -> Result<Reply, Problem> {
    let containers = verbs::prune(call.dirs())?;
    let collected = Store::open(&call.dirs().data)?.prune()?;
    let templates = TemplateStore::new(call.dirs()).prune();
    Reply::json(&SystemPruned {
        containers,
        files: collected.files + templates.count,
        bytes: collected.bytes + templates.bytes,
        deferred: collected.deferred,
    })
}

fn measure(call: &mut Call) -> Result<Reply, Problem> {
    call.caller.owner_only("measure the host")?;
    let wanted: Compare = call.json()?;
    let pick = |(whole, quick)| if wanted.quick { quick } else { whole };
    let limit = wanted.limit.unwrap_or(pick(LIMITS));
    let runs = wanted.runs.unwrap_or(if wanted.quick { RUNS.1 } else { RUNS.0 });
    if !(1..=1000).contains(&runs) || !(1..=3600).contains(&limit) {
        return Err(Problem::invalid("runs is a number from 1 to 1000, limit one from 1 to 3600"));
    }
    if let Some(other) = wanted.only.iter().find(|name| Group::ALL.iter().all(|group| group.name() != *name))
    {
        return Err(Problem::invalid(format!(
            "only has {other:?}: there are start, size, speed, isolation, portability"
        )));
    }
    let only = |group: &Group| wanted.only.is_empty() || wanted.only.iter().any(|name| name == group.name());
    let columns = |column: &Column| {
        let kind = match column {
            Column::Process => IsolationKind::Process,
            Column::Container => IsolationKind::Container,
            Column::Vm | Column::VmCold => IsolationKind::Vm,
        };
        wanted.isolation.is_empty() || wanted.isolation.contains(&kind)
    };
    let emulated = vmm::host::emulates_ring0();
    let options = compare::Options {
        program: PathBuf::from("/proc/self/exe"),
        root: call.dirs().data.clone(),
        image: wanted.image.clone(),
        command: wanted.command.clone(),
        columns: Column::ALL.into_iter().filter(columns).collect(),
        runs,
        only: Group::ALL.into_iter().filter(only).collect(),
        quick: wanted.quick,
        limit: Duration::from_secs(limit),
        no_vm: emulated.as_ref().err().map(ToString::to_string),
        emulated: emulated.ok(),
        version: call.service.version.to_owned(),
    };
    Ok(transfer::events(move |outlet| {
        let stop = Arc::new(AtomicBool::new(false));
        let told = std::sync::Mutex::new(outlet);
        let report = compare::run(&options, &stop, &|what| {
            let mut outlet = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if outlet.event("progress", &what).is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        })?;
        let mut outlet = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(outlet.event("report", &report)?)
    }))
}
