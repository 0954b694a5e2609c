//! What is done to a container as a whole.

use std::time::Duration;

use engine::container::record::Record;
use engine::keeper::client;
use engine::keeper::protocol::Request;
use engine::plan::stop_signal;
use engine::session::peer::{Peer, Said};
use engine::verbs;
use hyper::Method;

use super::containers::TAG;
use super::plain;
use super::processes::{self, ATTACH};
use crate::call::Call;
use crate::operation::ParamKind::Text;
use crate::operation::{Content, Operation, of, param};
use crate::problem::{Kind, Problem};
use crate::reply::Reply;
use crate::session::{self, End, Session};
use crate::types::{CloneOptions, Kill, Made, Rename, Stop, Waited};

/// A keeper notes its container's start within this many pauses, or it has died.
const COUNTED_TRIES: u32 = 2000;
const COUNTED_PAUSE: Duration = Duration::from_millis(5);

/// What changes a container's state.
const fn verb(path: &'static str, id: &'static str, run: crate::operation::Run) -> Operation {
    Operation {
        gives: &[(204, Content::None, "It is done.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, path, id, TAG, run)
    }
}

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "Start a container; one that runs is left alone. With an upgrade, as of attach, nothing that it writes is missed",
        query: ATTACH,
        headers: &[param("upgrade", Text, "`lighter-frames` makes a stream of the connection.")],
        gives: &[
            (101, Content::None, "It starts, and the connection is a stream of frames from here on."),
            (204, Content::None, "It runs."),
        ],
        problems: &[Kind::CONFLICT, Kind::UPGRADE],
        ..verb("/v1/containers/{container}/start", "startContainer", start)
    },
    Operation {
        summary: "Ask a container to end, and end it if it does not; answers when it has ended",
        takes: Content::MaybeJson(of::<Stop>),
        ..verb("/v1/containers/{container}/stop", "stopContainer", |call| {
            let stop: Stop = call.json()?;
            verbs::stop(call.dirs(), &call.container()?, signal(stop.signal.as_deref())?, stop.timeout)?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Stop a container and start it again",
        takes: Content::MaybeJson(of::<Stop>),
        ..verb("/v1/containers/{container}/restart", "restartContainer", |call| {
            let stop: Stop = call.json()?;
            let (record, signal) = (call.container()?, signal(stop.signal.as_deref())?);
            verbs::stop(call.dirs(), &record, signal, stop.timeout)?;
            call.caller.starting(&[machine(&record)], || {
                let record = call.container()?;
                Ok(verbs::start(call.dirs(), &record, &|_| ())?)
            })?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Send a signal to a container's process",
        takes: Content::MaybeJson(of::<Kill>),
        ..verb("/v1/containers/{container}/kill", "killContainer", |call| {
            let kill: Kill = call.json()?;
            let signal = signal(Some(&kill.signal))?.unwrap_or_default();
            verbs::kill(call.dirs(), &call.running()?, signal)?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Stop the processors of a container's machine",
        ..verb("/v1/containers/{container}/pause", "pauseContainer", |call| {
            client::ask(&call.running()?, &Request::Pause)?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Let the processors go on",
        ..verb("/v1/containers/{container}/unpause", "unpauseContainer", |call| {
            client::ask(&call.running()?, &Request::Unpause)?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Give a container another name",
        takes: Content::Json(of::<Rename>),
        ..verb("/v1/containers/{container}/rename", "renameContainer", |call| {
            let rename: Rename = call.json()?;
            verbs::rename(call.dirs(), &call.container()?, &rename.name)?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Wait for the end of a container; of one that does not run, its last end is told",
        gives: &[(200, Content::Json(of::<Waited>), "It has ended.")],
        ..verb("/v1/containers/{container}/wait", "waitContainer", wait)
    },
    Operation {
        summary: "Branch a running container",
        takes: Content::MaybeJson(of::<CloneOptions>),
        gives: &[(201, Content::Json(of::<Made>), "The copies run.")],
        ..verb("/v1/containers/{container}/clone", "cloneContainer", |call| {
            let wanted: CloneOptions = call.json()?;
            if !(1..=10_000).contains(&wanted.count) {
                return Err(Problem::invalid("count is a number from 1 to 10000"));
            }
            let record = call.running()?;
            let mut ids = Vec::new();
            call.caller.disk_left()?;
            call.caller.starting(&vec![machine(&record); wanted.count as usize], || {
                let name = wanted.name.as_deref();
                Ok(verbs::clone(call.dirs(), &record, wanted.count, name, &|_| (), &mut |copy| {
                    ids.push(copy.spec.id.as_str().to_owned());
                })?)
            })?;
            Reply::json_with(201, &Made { ids })
        })
    },
];

fn start(call: &mut Call) -> Result<Reply, Problem> {
    let record = call.container()?;
    let upgrade = call.header("upgrade").is_some().then(|| session::wanted(call)).transpose()?;
    let more = [machine(&record)];
    match (upgrade, record.state.status.is_live()) {
        (Some(upgrade), true) => processes::stay(call, &record, upgrade),
        (Some(upgrade), false) => {
            let attach = [processes::attachment(call, &record)];
            let start = || engine::run::start(call.dirs(), &record, &attach);
            let start = || {
                let link = verbs::open_when_free(start)?;
                if call.caller.tenant.is_some() {
                    wait_until_counted(&record);
                }
                Ok(link)
            };
            let link = call.caller.starting(&more, start)?;
            Ok(Session::new(Peer::Keeper(link))?.upgrade(upgrade))
        }
        (None, live) => {
            let start = || Ok(verbs::start(call.dirs(), &record, &|_| ())?);
            if live {
                start()?
            } else {
                call.caller.starting(&more, start)?
            }
            Ok(Reply::done())
        }
    }
}

/// Waits until the keeper has noted that the container starts, so that the next request counts it.
fn wait_until_counted(before: &Record) {
    let mut now = before.clone();
    for _ in 0..COUNTED_TRIES {
        if now.refresh().is_none() || now.state != before.state {
            return;
        }
        std::thread::sleep(COUNTED_PAUSE);
    }
}

/// vCPUs and MiB of a container's machine.
pub fn machine(record: &Record) -> (u8, u32) {
    (record.spec.machine.vcpus, record.spec.machine.memory_mib)
}

fn signal(text: Option<&str>) -> Result<Option<i32>, Problem> {
    let parse = |text: &str| {
        stop_signal::parse(text).ok_or_else(|| {
            Problem::invalid(format!("{text:?} is no signal: write a name such as TERM, or a number"))
        })
    };
    text.map(parse).transpose()
}

fn wait(call: &mut Call) -> Result<Reply, Problem> {
    let record = call.container()?;
    let ended = |record: &Record| Waited {
        exit_code: record.state.exit_code.unwrap_or_default(),
        error: record.state.error.clone(),
    };
    if !record.state.status.is_live() {
        return Reply::json(&ended(&record));
    }
    let Ok(link) = client::connect(&record) else {
        // It ended just now.
        return Reply::json(&ended(&call.container()?));
    };
    let mut session = Session::new(Peer::Keeper(link))?;
    let (dirs, id) = (call.dirs().clone(), record.spec.id.as_str().to_owned());
    Ok(Reply::Later(Box::pin(async move {
        while let Some(all) = session.said().await? {
            if let Some(Said::Ended(outcome)) = all.into_iter().find(|said| matches!(said, Said::Ended(_))) {
                let End { exit_code, error } = End::from(&outcome);
                return Reply::json(&Waited { exit_code, error });
            }
        }
        Reply::json(&ended(&engine::container::record::find(&dirs, &id)?))
    })))
}
