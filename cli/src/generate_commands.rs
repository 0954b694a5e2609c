//! `lighter generate`: files for other programs.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use engine::container::record;
use engine::dirs::Dirs;

use crate::args::Cli;
use crate::container_args::SystemdArgs;
use crate::output;

/// `lighter generate completion`
#[derive(Args)]
pub struct CompletionArgs {
    /// The shell
    pub shell: Shell,
}

/// `lighter generate man`
#[derive(Args)]
pub struct ManArgs {
    /// Directory for the pages, which must be there
    pub directory: PathBuf,
}

/// Prints what completes commands, from the same definitions as the commands themselves.
pub fn completion(args: &CompletionArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lighter", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// Writes manual pages, from the same definitions.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let command = Cli::command();
    clap_mangen::generate_to(command, &args.directory)
        .with_context(|| format!("cannot write manual pages to {}", args.directory.display()))
}

/// A unit that starts a container when the host comes up and stops it when the host goes down.
pub fn systemd(dirs: &Dirs, args: &SystemdArgs) -> anyhow::Result<()> {
    let record = record::find(dirs, &args.container)?;
    let program = std::env::current_exe().context("cannot find out where lighter is")?;
    let target = if rustix::process::geteuid().is_root() { "multi-user.target" } else { "default.target" };
    let timeout = record.spec.lifetime.stop_timeout.unwrap_or(10) + 20;
    output::print(&format!(
        "# lighter container {name}; `lighter generate systemd {name}` wrote this.\n\
         [Unit]\n\
         Description=lighter container {name}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         Type=exec\n\
         Environment=LIGHTER_ROOT={data} LIGHTER_RUN={run}\n\
         ExecStart={program} start --attach {id}\n\
         ExecStop={program} stop {id}\n\
         TimeoutStopSec={timeout}\n\
         Restart=no\n\
         KillMode=mixed\n\
         \n\
         [Install]\n\
         WantedBy={target}\n",
        name = record.name,
        id = record.spec.id,
        data = dirs.data.display(),
        run = dirs.run.display(),
        program = program.display(),
    ))
}
