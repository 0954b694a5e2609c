//! Processes in containers: attach, exec, and what they cost.

use std::time::Duration;

use engine::container::record::{self, Record};
use engine::exec::{self, ExecOptions};
use engine::keeper::client;
use engine::keeper::protocol::Request;
use engine::session::peer::{Peer, Said};
use engine::{TerminalSize, stats};
use hyper::Method;
use hyper::upgrade::OnUpgrade;
use serde_json::json;

use super::containers::TAG;
use super::plain;
use crate::call::Call;
use crate::operation::ParamKind::{Flag, Number};
use crate::operation::{Content, Operation, Param, of, param};
use crate::problem::{Kind, Problem};
use crate::reply::{EVENTS, Reply};
use crate::session::{self, End, Session};
use crate::transfer;
use crate::types::{Exec, Executed, Stats};

/// Between two readings.
const INTERVAL: Duration = Duration::from_secs(1);
/// A process that nobody waits for has to run within this time.
const START: Duration = Duration::from_secs(60);
const SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// What a client that stays says of itself.
pub const ATTACH: &[Param] = &[
    param("stdin", Flag, "Take stdin from the stream, too."),
    param("rows", Number(1, MAX_SIDE), "Height of the client's terminal, if the container has one."),
    param("columns", Number(1, MAX_SIDE), "Its width."),
];
/// More rows or columns no terminal has.
const MAX_SIDE: u64 = u16::MAX as u64;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "Run one more process in a container",
        headers: &[param(
            "upgrade",
            crate::operation::ParamKind::Text,
            "`lighter-frames` makes a stream of the connection.",
        )],
        takes: Content::Json(of::<Exec>),
        gives: &[
            (101, Content::None, "The connection is a stream of frames from here on."),
            (200, Content::Json(of::<Executed>), "It has ended; or it runs, where `detach` said so."),
        ],
        problems: &[Kind::CONFLICT, Kind::UPGRADE],
        ..plain(&Method::POST, "/v1/containers/{container}/exec", "exec", TAG, execute)
    },
    Operation {
        summary: "Stay with a running container: its streams, over a connection that becomes a stream of frames",
        query: ATTACH,
        headers: &[param("upgrade", crate::operation::ParamKind::Text, "`lighter-frames`")],
        gives: &[(101, Content::None, "The connection is a stream of frames from here on.")],
        problems: &[Kind::CONFLICT, Kind::UPGRADE],
        ..plain(&Method::POST, "/v1/containers/{container}/attach", "attach", TAG, |call| {
            let record = call.running()?;
            let upgrade = session::wanted(call)?;
            stay(call, &record, upgrade)
        })
    },
    Operation {
        summary: "What a container costs the host, and what its guest believes",
        query: &[param("stream", Flag, "Once a second, as server-sent events.")],
        gives: &[(200, Content::JsonOrEvents(of::<Stats>), "Figures.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::GET, "/v1/containers/{container}/stats", "getStats", TAG, figures)
    },
];

/// What is asked of a container's keeper for a client that stays.
pub fn attachment(call: &Call, record: &Record) -> Request {
    let side = |name: &str| call.number(name).and_then(|side| u16::try_from(side).ok());
    let own = side("rows").zip(side("columns")).map(|(rows, columns)| TerminalSize { rows, columns });
    let terminal = record.spec.plan.process().terminal;
    Request::Attach { stdin: call.flag("stdin"), size: terminal.map(|size| own.unwrap_or(size)) }
}

/// Makes the connection a stream of the container's process.
pub fn stay(call: &Call, record: &Record, upgrade: OnUpgrade) -> Result<Reply, Problem> {
    let mut link = client::connect(record)?;
    link.send(&attachment(call, record)).map_err(|error| Problem::of(Kind::HOST, &error))?;
    Ok(Session::new(Peer::Keeper(link))?.upgrade(upgrade))
}

fn execute(call: &mut Call) -> Result<Reply, Problem> {
    let wanted: Exec = call.json()?;
    let upgrade = call.header("upgrade").is_some().then(|| session::wanted(call)).transpose()?;
    let alone = upgrade.is_none();
    if wanted.command.is_empty() {
        return Err(Problem::invalid("command is empty: name the program"));
    }
    if alone && (wanted.tty || wanted.stdin) || !alone && (wanted.input.is_some() || wanted.detach) {
        return Err(Problem::invalid(
            "tty and stdin go with an upgrade only, input and detach without one only",
        ));
    }
    let record = call.container()?;
    let options = ExecOptions {
        command: wanted.command,
        environment: super::create::environment(&wanted.environment)?,
        workdir: wanted.working_dir,
        user: wanted.user,
        interactive: wanted.stdin || wanted.input.is_some(),
        terminal: wanted.tty.then_some(SIZE),
        privileged: wanted.privileged,
    };
    let link = exec::start(&record, exec::process(&record, &options)?)?;
    let mut session = Session::new(Peer::Agent(link))?;
    if let Some(upgrade) = upgrade {
        return Ok(session.upgrade(upgrade));
    }
    let (input, detach) = (wanted.input.unwrap_or_default().into_bytes(), wanted.detach);
    Ok(Reply::Later(Box::pin(async move {
        if detach {
            let end = tokio::time::timeout(START, started(&mut session)).await;
            let end =
                end.map_err(|_| Problem::new(Kind::NOT_STARTED, "the process was not started in time"))??;
            let executed =
                Executed { exit_code: end.as_ref().map(|end| end.exit_code), ..Executed::default() };
            return Reply::json(&Executed { error: end.and_then(|end| end.error), ..executed });
        }
        let (end, [stdout, stderr]) = session.collect(input).await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Reply::json(&Executed {
            exit_code: Some(end.exit_code),
            error: end.error,
            stdout: text(stdout),
            stderr: text(stderr),
        })
    })))
}

/// Waits until the process runs; its end, if that came first.
async fn started(session: &mut Session) -> Result<Option<End>, Problem> {
    while let Some(all) = session.said().await? {
        for said in all {
            match said {
                Said::Started => return Ok(None),
                Said::Ended(outcome) => return Ok(Some(End::from(&outcome))),
                _ => {}
            }
        }
    }
    Err(Problem::new(Kind::CONFLICT, "the container ended"))
}

fn figures(call: &mut Call) -> Result<Reply, Problem> {
    let record = call.running()?;
    let gone = || Problem::new(Kind::CONFLICT, "the container does not run any more");
    if !call.flag("stream") && !call.wants_events() {
        return Reply::json(&view(&stats::read(&record).ok_or_else(gone)?, None));
    }
    let (dirs, id) = (call.dirs().clone(), record.spec.id.as_str().to_owned());
    Ok(Reply::Later(Box::pin(async move {
        let (sender, chunks) = tokio::sync::mpsc::channel(crate::body::WAITING);
        tokio::spawn(async move {
            let mut before: Option<stats::Stats> = None;
            loop {
                let (dirs, id) = (dirs.clone(), id.clone());
                let read = tokio::task::spawn_blocking(move || {
                    record::find(&dirs, &id)
                        .ok()
                        .filter(Record::is_running)
                        .and_then(|record| stats::read(&record))
                });
                let Ok(Some(now)) = read.await else { return };
                let data = serde_json::to_string(&view(&now, before.as_ref())).unwrap_or_default();
                let event = format!("event: stats\ndata: {data}\n\n");
                if !matches!(
                    tokio::time::timeout(transfer::STALL, sender.send(Ok(event.into()))).await,
                    Ok(Ok(()))
                ) {
                    return;
                }
                before = Some(now);
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Ok(Reply::stream(EVENTS, None, chunks))
    })))
}

fn view(now: &stats::Stats, before: Option<&stats::Stats>) -> Stats {
    let percent = |before: &stats::Stats| {
        let time = now.time_ns.saturating_sub(before.time_ns).max(1);
        now.cpu_ns.saturating_sub(before.cpu_ns) as f64 * 100.0 / time as f64
    };
    Stats {
        id: now.id.clone(),
        name: now.name.clone(),
        cpu_percent: before.map(percent),
        time_ns: now.time_ns,
        cpu_ns: now.cpu_ns,
        guest: json!(now.guest),
        host: json!(now.host),
        block: json!(now.block),
        net: json!(now.net),
    }
}
