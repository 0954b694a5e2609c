//! Verbs that change what containers do: `create start stop kill pause unpause restart rm wait rename`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use engine::container::record::{self, Record};
use engine::container::state::Status;
use engine::container::{Container, ContainerError};
use engine::dirs::Dirs;
use engine::events::{Event, emit};
use engine::keeper::client::{self, AskError};
use engine::keeper::protocol::{Reply, Request};
use engine::plan::stop_signal;
use engine::run::Watcher;
use engine::session::Outcome;
use engine::session::link::Link;
use engine::trace::Trace;
use engine::volumes::VolumeStore;

use crate::container_args::{KillArgs, RenameArgs, RmArgs, StopArgs};
use crate::output;
use crate::progress::Bars;
use crate::run_options::RunArgs;

/// How long a container may take to become free after its end.
const FREE_TIMEOUT: Duration = Duration::from_secs(5);

/// `lighter create`
pub fn create(dirs: &Dirs, args: RunArgs, mut trace: Trace) -> anyhow::Result<u8> {
    let options = args.run_options()?;
    let bars = Bars::new();
    let watcher =
        Watcher { progress: &bars, ready: &|| bars.clear(), notice: &|text: &str| output::notice(text) };
    match engine::run::make(dirs, &options, &watcher, &mut trace)? {
        Err(outcome) => Ok(outcome.exit_code()),
        Ok((made, _signals)) => {
            let id = made.id().clone();
            made.keep(dirs)?;
            output::print(&format!("{id}\n"))?;
            Ok(0)
        }
    }
}

/// Does something to each container; goes on after a failure and tells it at the end.
pub fn each(names: &[String], mut act: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<u8> {
    let mut failed = 0;
    for name in names {
        match act(name) {
            Ok(()) => output::print(&format!("{name}\n"))?,
            Err(error) => {
                output::problem(&output::error_text(&error));
                failed = 1;
            }
        }
    }
    Ok(failed)
}

/// Starts a container in the background; returns when its process runs.
pub fn start_detached(dirs: &Dirs, name: &str) -> anyhow::Result<()> {
    let record = record::find(dirs, name)?;
    if record.state.status.is_live() {
        return Ok(());
    }
    let mut link = open_when_free(|| engine::run::start(dirs, &record, &[]))?;
    wait_until_started(&record, &mut link)
}

/// Tries again for a moment while the last owner of the container is on its way out.
pub fn open_when_free<T>(mut open: impl FnMut() -> Result<T, engine::error::RunError>) -> anyhow::Result<T> {
    let end = Instant::now() + FREE_TIMEOUT;
    loop {
        match open() {
            Err(engine::error::RunError::Container(ContainerError::Busy { .. })) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return Ok(result?),
        }
    }
}

/// Waits until the process runs; its failure to start is ours.
pub fn wait_until_started(record: &Record, link: &mut Link<Request, Reply>) -> anyhow::Result<()> {
    let end = client::wait(record, link, None, |reply| match reply {
        Reply::Started => Some(None),
        Reply::Ended(outcome) => Some(Some(outcome)),
        Reply::Notice(text) => {
            output::notice(&text);
            None
        }
        _ => None,
    })?;
    match end {
        None | Some(Outcome::Exited(_)) => Ok(()),
        Some(outcome) => bail!(
            "container {} was not started: {}",
            record.name,
            outcome.problem().map_or_else(|| format!("exit code {}", outcome.exit_code()), str::to_owned)
        ),
    }
}

/// `lighter stop`
pub fn stop(dirs: &Dirs, args: &StopArgs) -> anyhow::Result<u8> {
    let signal = args.signal.as_deref().map(parse_signal).transpose()?;
    each(&args.containers, |name| stop_one(dirs, name, signal, args.time))
}

fn stop_one(dirs: &Dirs, name: &str, signal: Option<i32>, timeout: Option<u64>) -> anyhow::Result<()> {
    let record = record::find(dirs, name)?;
    if !record.state.status.is_live() {
        return Ok(());
    }
    match client::wait_for_end(&record, Some(&Request::Stop { signal, timeout })) {
        // It ended meanwhile, which is what was wanted.
        Ok(_) | Err(AskError::NotRunning(_)) => {}
        Err(error) => return Err(error.into()),
    }
    emit(dirs, &Event::new("container", "stop", record.spec.id.as_str(), &record.name));
    Ok(())
}

/// `lighter restart`
pub fn restart(dirs: &Dirs, args: &StopArgs) -> anyhow::Result<u8> {
    let signal = args.signal.as_deref().map(parse_signal).transpose()?;
    each(&args.containers, |name| {
        let id = record::find(dirs, name)?.spec.id;
        stop_one(dirs, id.as_str(), signal, args.time)?;
        start_detached(dirs, id.as_str())
    })
}

/// `lighter kill`
pub fn kill(dirs: &Dirs, args: &KillArgs) -> anyhow::Result<u8> {
    let signal = parse_signal(&args.signal)?;
    each(&args.containers, |name| {
        let record = running(dirs, name)?;
        let message = agent_message(signal);
        client::tell(&record, &message)?;
        emit(
            dirs,
            &Event::new("container", "kill", record.spec.id.as_str(), &record.name).with("signal", signal),
        );
        Ok(())
    })
}

fn agent_message(signal: i32) -> Request {
    Request::Process(engine::HostMessage::Signal(signal))
}

/// `lighter pause` and `unpause`
pub fn pause(dirs: &Dirs, names: &[String], request: &Request) -> anyhow::Result<u8> {
    each(names, |name| Ok(client::ask(&running(dirs, name)?, request)?))
}

/// `lighter wait`
pub fn wait(dirs: &Dirs, names: &[String]) -> anyhow::Result<u8> {
    let mut failed = 0;
    for name in names {
        match wait_one(dirs, name) {
            Ok(code) => output::print(&format!("{code}\n"))?,
            Err(error) => {
                output::problem(&output::error_text(&error));
                failed = 1;
            }
        }
    }
    Ok(failed)
}

fn wait_one(dirs: &Dirs, name: &str) -> anyhow::Result<u8> {
    let mut record = record::find(dirs, name)?;
    if record.state.status.is_live() {
        match client::wait_for_end(&record, None) {
            Ok(outcome) => return Ok(outcome.exit_code()),
            Err(AskError::NotRunning(_)) => {
                record.refresh().with_context(|| format!("container {name} is gone"))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(record.state.exit_code.unwrap_or_default())
}

/// `lighter rm`
pub fn remove(dirs: &Dirs, args: &RmArgs) -> anyhow::Result<u8> {
    each(&args.containers, |name| {
        let record = record::find(dirs, name)?;
        remove_one(dirs, &record, args.force)?;
        if args.volumes {
            VolumeStore::new(dirs).remove_anonymous(&record.spec.mounts);
        }
        Ok(())
    })
}

/// Removes a container that does not run, or that shall not.
pub fn remove_one(dirs: &Dirs, record: &Record, force: bool) -> anyhow::Result<()> {
    if record.state.status.is_live() {
        ensure!(
            force,
            "container {} is {}: stop it first, or use `lighter rm -f`",
            record.name,
            record.state.status.name()
        );
        match client::wait_for_end(record, Some(&Request::Kill)) {
            Ok(_) | Err(AskError::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if record.spec.lifetime.remove {
            return Ok(());
        }
    }
    let container = open_when_free(|| Ok(Container::open(dirs, &record.spec.id)?))?;
    container.remove();
    emit(dirs, &Event::new("container", "destroy", record.spec.id.as_str(), &record.name));
    Ok(())
}

/// `lighter container prune`: the containers that were removed.
pub fn prune(dirs: &Dirs) -> anyhow::Result<Vec<String>> {
    let ended = record::list(dirs)
        .into_iter()
        .filter(|record| matches!(record.state.status, Status::Exited | Status::Created));
    ended
        .map(|record| remove_one(dirs, &record, false).map(|()| record.spec.id.as_str().to_owned()))
        .collect()
}

/// `lighter rename`
pub fn rename(dirs: &Dirs, args: &RenameArgs) -> anyhow::Result<()> {
    let record = record::find(dirs, &args.container)?;
    engine::container::rename(dirs, &record.spec.id, &args.name)?;
    let event = Event::new("container", "rename", record.spec.id.as_str(), &args.name);
    emit(dirs, &event.with("oldName", &record.name));
    Ok(())
}

/// The container `name`, which must run.
pub fn running(dirs: &Dirs, name: &str) -> anyhow::Result<Record> {
    let record = record::find(dirs, name)?;
    ensure!(
        record.state.status.is_live(),
        "container {} is not running: it is {}; `lighter start {0}` starts it",
        record.name,
        record.state.status.name()
    );
    Ok(record)
}

fn parse_signal(text: &str) -> anyhow::Result<i32> {
    stop_signal::parse(text)
        .with_context(|| format!("{text:?} is no signal: write a name such as TERM, or a number"))
}

/// `NAME=VALUE` pairs, for `--label`.
pub fn labels(pairs: &[String]) -> BTreeMap<String, String> {
    let split = |pair: &String| match pair.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (pair.clone(), String::new()),
    };
    pairs.iter().map(split).collect()
}
