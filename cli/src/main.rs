//! The `lighter` command: a container image in its own microVM.

mod args;
mod doctor;
mod image_commands;
mod output;
mod progress;
mod run_command;
mod run_options;
mod system_commands;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use engine::dirs::Dirs;
use engine::network::Network;
use engine::session::outcome::EXIT_FAILURE;
use engine::template::TemplateStore;
use engine::trace::Trace;

use args::{Cli, Command, ImageCommand, SystemCommand};

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
    let dirs = Dirs::find(cli.root.as_deref())?;
    if let Command::Doctor(options) = &cli.command {
        return doctor::run(&dirs, options);
    }
    dirs.create()?;
    sweep(&dirs)?;
    match cli.command {
        Command::Run(options) => return run_command::run(&dirs, *options, trace),
        Command::Pull(options) => image_commands::pull(&dirs, &options)?,
        Command::Images(options) => image_commands::list(&dirs, &options)?,
        Command::Rmi(options) => image_commands::remove(&dirs, &options)?,
        Command::Image(ImageCommand::Inspect(options)) => image_commands::inspect(&dirs, &options)?,
        Command::System(SystemCommand::Df(options)) => system_commands::disk_usage(&dirs, options.format)?,
        Command::System(SystemCommand::Prune(options)) => system_commands::prune(&dirs, &options)?,
        Command::Version(options) => system_commands::version(&dirs, options.format)?,
        Command::Doctor(_) => {}
    }
    Ok(0)
}

/// Removes what dead containers left.
fn sweep(dirs: &Dirs) -> anyhow::Result<()> {
    engine::container::sweep::sweep(dirs).context("cannot look for dead containers")?;
    TemplateStore::new(dirs).sweep();
    Network::here(dirs)?.sweep();
    Ok(())
}
