//! The `lighter` command: a container image in its own microVM.

mod args;
mod change_commands;
mod compare_command;
mod container_args;
mod container_view;
mod doctor;
mod exchange_commands;
mod generate_commands;
mod image_commands;
mod intake_command;
#[cfg(test)]
mod json_tests;
mod keep_command;
mod lifecycle_commands;
mod lifetime_options;
mod list_commands;
mod log_commands;
mod network_commands;
mod options;
mod output;
mod progress;
mod remote;
mod resource_commands;
mod run_options;
mod security_command;
mod serve_command;
mod session_commands;
mod share_command;
mod snapshot_commands;
mod stats_command;
mod system_commands;
mod template_format;
mod times;
mod volume_commands;
mod warden_command;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use engine::dirs::Dirs;
use engine::keeper::protocol::Request;
use engine::network::Networks;
use engine::session::outcome::EXIT_FAILURE;
use engine::snapshot::SnapshotStore;
use engine::template::TemplateStore;
use engine::trace::Trace;

use args::{Cli, Command, ContainerCommand, GenerateCommand, ImageCommand, SystemCommand};

fn main() -> ExitCode {
    let trace = Trace::start();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Fails only where there is nobody to tell.
            let _ = usage.print();
            return if usage.use_stderr() { ExitCode::from(EXIT_FAILURE) } else { ExitCode::SUCCESS };
        }
    };
    match execute(cli, trace) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lighter: {}", output::error_text(&error));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn execute(cli: Cli, trace: Trace) -> anyhow::Result<u8> {
    if let Command::Share(options) = &cli.command {
        share_command::share(options)?;
        return Ok(0);
    }
    if let Command::Intake(options) = &cli.command {
        intake_command::intake(options)?;
        return Ok(0);
    }
    if let Command::Warden(options) = &cli.command {
        return Ok(warden_command::run(options));
    }
    let local = matches!(
        cli.command,
        Command::Keep(_)
            | Command::Serve(_)
            | Command::Generate(GenerateCommand::Completion(_) | GenerateCommand::Man(_))
    );
    if let Some(host) = cli.host.as_ref().filter(|host| !host.is_empty() && !local) {
        return remote::execute(host, cli.command);
    }
    let dirs = Dirs::find(cli.root.as_deref())?;
    if let Command::Doctor(options) = &cli.command {
        return doctor::run(&dirs, options);
    }
    dirs.create()?;
    if let Command::Keep(options) = &cli.command {
        keep_command::keep(&dirs, options, trace)?;
        return Ok(0);
    }
    sweep(&dirs)?;
    match cli.command {
        Command::Run(options) => return session_commands::run(&dirs, *options, trace),
        Command::Create(options) => return lifecycle_commands::create(&dirs, *options, trace),
        Command::Start(options) => return session_commands::start(&dirs, &options),
        Command::Stop(options) => return lifecycle_commands::stop(&dirs, &options),
        Command::Restart(options) => return lifecycle_commands::restart(&dirs, &options),
        Command::Kill(options) => return lifecycle_commands::kill(&dirs, &options),
        Command::Pause(options) => {
            return lifecycle_commands::pause(&dirs, &options.containers, &Request::Pause);
        }
        Command::Unpause(options) => {
            return lifecycle_commands::pause(&dirs, &options.containers, &Request::Unpause);
        }
        Command::Wait(options) => return lifecycle_commands::wait(&dirs, &options.containers),
        Command::Rm(options) => return lifecycle_commands::remove(&dirs, &options),
        Command::Rename(options) => lifecycle_commands::rename(&dirs, &options)?,
        Command::Ps(options) | Command::Container(ContainerCommand::Ls(options)) => {
            list_commands::ps(&dirs, &options)?;
        }
        Command::Update(options) => return resource_commands::update(&dirs, &options),
        Command::Stats(options) => stats_command::stats(&dirs, &options)?,
        Command::Inspect(options) => list_commands::inspect(&dirs, &options)?,
        Command::Exec(options) => return session_commands::exec(&dirs, options),
        Command::Attach(options) => return session_commands::attach(&dirs, &options),
        Command::Logs(options) => log_commands::logs(&dirs, &options)?,
        Command::Console(options) => log_commands::console(&dirs, &options)?,
        Command::Events(options) => log_commands::events(&dirs, &options)?,
        Command::Snapshot(command) => return snapshot_commands::snapshot(&dirs, &command),
        Command::Restore(options) => snapshot_commands::restore(&dirs, &options)?,
        Command::Clone(options) => snapshot_commands::clone(&dirs, &options)?,
        Command::Container(ContainerCommand::Prune(options)) => {
            system_commands::prune_containers(&dirs, &options)?;
        }
        Command::Generate(GenerateCommand::Systemd(options)) => {
            generate_commands::systemd(&dirs, &options)?;
        }
        Command::Generate(GenerateCommand::Completion(options)) => generate_commands::completion(&options)?,
        Command::Generate(GenerateCommand::Man(options)) => generate_commands::man(&options)?,
        Command::Volume(command) => return volume_commands::execute(&dirs, &command),
        Command::Pull(options) => image_commands::pull(&dirs, &options)?,
        Command::Images(options) => image_commands::list(&dirs, &options)?,
        Command::Rmi(options) => image_commands::remove(&dirs, &options)?,
        Command::Tag(options) => exchange_commands::tag(&dirs, &options)?,
        Command::History(options) => exchange_commands::history(&dirs, &options)?,
        Command::Push(options) => exchange_commands::push(&dirs, &options)?,
        Command::Save(options) => exchange_commands::save(&dirs, &options)?,
        Command::Load(options) => exchange_commands::load(&dirs, &options)?,
        Command::Import(options) => exchange_commands::import(&dirs, options)?,
        Command::Diff(options) => change_commands::diff(&dirs, &options)?,
        Command::Cp(options) => change_commands::copy(&dirs, &options)?,
        Command::Export(options) => change_commands::export(&dirs, &options)?,
        Command::Commit(options) => change_commands::commit(&dirs, options)?,
        Command::Image(ImageCommand::Inspect(options)) => image_commands::inspect(&dirs, &options)?,
        Command::Network(command) => network_commands::execute(&dirs, &command)?,
        Command::System(SystemCommand::Df(options)) => system_commands::disk_usage(&dirs, options.format)?,
        Command::System(SystemCommand::Prune(options)) => system_commands::prune(&dirs, &options)?,
        Command::Version(options) => system_commands::version(&dirs, options.format)?,
        Command::Serve(options) => serve_command::serve(&dirs, *options)?,
        Command::Compare(options) => return compare_command::compare(&dirs, &options),
        Command::Doctor(_)
        | Command::Keep(_)
        | Command::Share(_)
        | Command::Warden(_)
        | Command::Intake(_) => {}
    }
    Ok(0)
}

/// Removes what dead containers left.
fn sweep(dirs: &Dirs) -> anyhow::Result<()> {
    engine::container::sweep::sweep(dirs).context("cannot look for dead containers")?;
    TemplateStore::new(dirs).sweep();
    SnapshotStore::new(dirs).sweep();
    Networks::here(dirs)?.sweep();
    Ok(())
}
