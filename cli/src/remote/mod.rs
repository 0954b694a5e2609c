//! Verbs over the API of a server, `--host unix://PATH`. What cannot go over it says why.

mod containers;
mod create;
mod files;
mod images;
mod logs;
mod networks;
mod refused;
mod session;
mod snapshots;
mod system;
#[cfg(test)]
mod tests;
mod volumes;

use anyhow::bail;
use clap::CommandFactory as _;
use engine_api::client::{Client, encode};
use serde_json::{Value, json};

use crate::args::{Cli, Command, ContainerCommand, GenerateCommand, ImageCommand, SystemCommand};
use crate::lifecycle_commands::each;
use crate::stats_command;

/// Does `command` through the server at `host`.
pub fn execute(host: &str, command: Command) -> anyhow::Result<u8> {
    refused::check(&Cli::command().get_matches())?;
    let client = Client::new(host, std::env::var("LIGHTER_TOKEN").ok().filter(|token| !token.is_empty()))?;
    dispatch(&client, command)
}

/// Every verb is here, so none can be added without a way over the API or a reason.
fn dispatch(client: &Client, command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Create(args) => create::create(client, *args)?,
        Command::Run(args) => return session::run(client, *args),
        Command::Start(args) => return session::start(client, &args),
        Command::Attach(args) => return session::attach(client, &args),
        Command::Exec(args) => return session::exec(client, args),
        Command::Stop(args) => {
            let body = json!({"signal": args.signal, "timeout": args.time});
            return each(&args.containers, |name| post(client, name, "stop", &body));
        }
        Command::Restart(args) => {
            let body = json!({"signal": args.signal, "timeout": args.time});
            return each(&args.containers, |name| post(client, name, "restart", &body));
        }
        Command::Kill(args) => {
            let body = json!({"signal": args.signal});
            return each(&args.containers, |name| post(client, name, "kill", &body));
        }
        Command::Pause(args) => return each(&args.containers, |name| act(client, name, "pause")),
        Command::Unpause(args) => return each(&args.containers, |name| act(client, name, "unpause")),
        Command::Rename(args) => post(client, &args.container, "rename", &json!({"name": args.name}))?,
        Command::Ps(args) | Command::Container(ContainerCommand::Ls(args)) => containers::ps(client, &args)?,
        Command::Container(ContainerCommand::Prune(args)) => containers::prune(client, &args)?,
        Command::Rm(args) => return containers::remove(client, &args),
        Command::Wait(args) => return containers::wait(client, &args.containers),
        Command::Update(args) => return containers::update(client, &args),
        Command::Inspect(args) => containers::inspect(client, &args)?,
        Command::Clone(args) => containers::clone(client, &args)?,
        Command::Stats(args) => stats_command::remote(client, &args)?,
        Command::Logs(args) => logs::logs(client, &args)?,
        Command::Console(args) => logs::console(client, &args)?,
        Command::Events(args) => logs::events(client, &args)?,
        Command::Snapshot(command) => return snapshots::execute(client, &command),
        Command::Restore(args) => snapshots::restore(client, &args)?,
        Command::Images(args) => images::list(client, &args)?,
        Command::Image(ImageCommand::Inspect(args)) => images::inspect(client, &args)?,
        Command::Rmi(args) => images::remove(client, &args)?,
        Command::Pull(args) => images::pull(client, &args)?,
        Command::Push(args) => images::push(client, &args)?,
        Command::Tag(args) => images::tag(client, &args)?,
        Command::History(args) => images::history(client, &args)?,
        Command::Save(args) => images::save(client, &args)?,
        Command::Load(args) => images::load(client, &args)?,
        Command::Import(args) => images::import(client, &args)?,
        Command::Commit(args) => images::commit(client, args)?,
        Command::Diff(args) => files::diff(client, &args)?,
        Command::Cp(args) => files::copy(client, &args)?,
        Command::Export(args) => files::export(client, &args)?,
        Command::Network(command) => networks::execute(client, &command)?,
        Command::Volume(command) => return volumes::execute(client, &command),
        Command::System(SystemCommand::Df(args)) => system::disk_usage(client, args.format)?,
        Command::System(SystemCommand::Prune(args)) => system::prune(client, &args)?,
        Command::Doctor(args) => return system::doctor(client, args.format),
        Command::Version(args) => system::version(client, args.format)?,
        Command::Compare(args) => return system::compare(client, &args),
        Command::Generate(GenerateCommand::Systemd(_)) => bail!("--host: {}", refused::SYSTEMD),
        Command::Generate(GenerateCommand::Completion(_) | GenerateCommand::Man(_))
        | Command::Serve(_)
        | Command::Keep(_)
        | Command::Share(_)
        | Command::Intake(_)
        | Command::Warden(_) => unreachable!("these are done here, whatever --host says"),
    }
    Ok(0)
}

fn container(name: &str) -> String {
    format!("/v1/containers/{}", encode(name))
}

fn act(client: &Client, name: &str, verb: &str) -> anyhow::Result<()> {
    Ok(client.tell("POST", &format!("{}/{verb}", container(name)), None::<&()>)?)
}

fn post(client: &Client, name: &str, verb: &str, body: &Value) -> anyhow::Result<()> {
    Ok(client.tell("POST", &format!("{}/{verb}", container(name)), Some(body))?)
}
