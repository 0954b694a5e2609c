//! Verbs that change what containers do: `create start stop kill pause unpause restart rm wait rename`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use engine::container::record;
use engine::dirs::Dirs;
use engine::keeper::client::{self, AskError};
use engine::keeper::protocol::Request;
use engine::plan::stop_signal;
use engine::run::Watcher;
use engine::trace::Trace;
use engine::verbs;

use crate::container_args::{KillArgs, RenameArgs, RmArgs, StopArgs};
use crate::output;
use crate::progress::Bars;
use crate::run_options::RunArgs;

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
    Ok(verbs::start(dirs, &record::find(dirs, name)?, &output::notice)?)
}

/// `lighter stop`
pub fn stop(dirs: &Dirs, args: &StopArgs) -> anyhow::Result<u8> {
    let signal = args.signal.as_deref().map(parse_signal).transpose()?;
    each(&args.containers, |name| Ok(verbs::stop(dirs, &record::find(dirs, name)?, signal, args.time)?))
}

/// `lighter restart`
pub fn restart(dirs: &Dirs, args: &StopArgs) -> anyhow::Result<u8> {
    let signal = args.signal.as_deref().map(parse_signal).transpose()?;
    each(&args.containers, |name| {
        let record = record::find(dirs, name)?;
        Ok(verbs::restart(dirs, &record, signal, args.time, &output::notice)?)
    })
}

/// `lighter kill`
pub fn kill(dirs: &Dirs, args: &KillArgs) -> anyhow::Result<u8> {
    let signal = parse_signal(&args.signal)?;
    each(&args.containers, |name| Ok(verbs::kill(dirs, &verbs::running(dirs, name)?, signal)?))
}

/// `lighter pause` and `unpause`
pub fn pause(dirs: &Dirs, names: &[String], request: &Request) -> anyhow::Result<u8> {
    each(names, |name| Ok(client::ask(&verbs::running(dirs, name)?, request)?))
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
        Ok(verbs::remove(dirs, &record::find(dirs, name)?, args.force, args.volumes)?)
    })
}

/// `lighter rename`
pub fn rename(dirs: &Dirs, args: &RenameArgs) -> anyhow::Result<()> {
    Ok(verbs::rename(dirs, &record::find(dirs, &args.container)?, &args.name)?)
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
