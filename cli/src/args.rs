//! The command line, as Docker's users know it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::change_commands::{CommitArgs, CopyArgs, DiffArgs, ExportArgs};
use crate::compare_command::CompareArgs;
use crate::container_args::{
    AttachArgs, ConsoleArgs, ContainersArgs, EventsArgs, ExecArgs, InspectContainerArgs, KillArgs, LogsArgs,
    PruneContainersArgs, PsArgs, RenameArgs, RmArgs, StartArgs, StopArgs, SystemdArgs,
};
use crate::exchange_commands::{HistoryArgs, ImportArgs, LoadArgs, PushArgs, SaveArgs, TagArgs};
use crate::generate_commands::{CompletionArgs, ManArgs};
use crate::intake_command::IntakeArgs;
use crate::keep_command::KeepArgs;
use crate::network_commands::NetworkCommand;
use crate::options::signature::SignatureArgs;
use crate::output::Format;
use crate::resource_commands::UpdateArgs;
use crate::run_options::RunArgs;
use crate::serve_command::ServeArgs;
use crate::share_command::ShareArgs;
use crate::snapshot_commands::{CloneArgs, RestoreArgs, SnapshotCommand};
use crate::stats_command::StatsArgs;
use crate::volume_commands::VolumeCommand;
use crate::warden_command::WardenArgs;

/// Runs container images, each in a virtual machine of its own.
#[derive(Parser)]
#[command(name = "lighter", version, propagate_version = false, subcommand_required = true)]
pub struct Cli {
    /// Directory for images and containers [default: /var/lib/lighter, or $XDG_DATA_HOME/lighter for a user]
    #[arg(long, global = true, env = "LIGHTER_ROOT", value_name = "DIR", hide_env_values = true)]
    pub root: Option<PathBuf>,
    /// Do it through the server there, `unix://PATH`, with the token in LIGHTER_TOKEN if it asks for one
    #[arg(long, global = true, env = "LIGHTER_HOST", value_name = "ADDRESS", hide_env_values = true)]
    pub host: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// Make a container without starting it
    Create(Box<RunArgs>),
    /// Start containers
    Start(StartArgs),
    /// Ask containers to end
    Stop(StopArgs),
    /// Stop and start containers
    Restart(StopArgs),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Stop the processors of containers
    Pause(ContainersArgs),
    /// Let the processors go on
    Unpause(ContainersArgs),
    /// Wait for the end of containers and print their exit codes
    Wait(ContainersArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Give a container another name
    Rename(RenameArgs),
    /// Change the limits of containers
    Update(UpdateArgs),
    /// Show what containers cost
    Stats(StatsArgs),
    /// List containers
    Ps(PsArgs),
    /// Show all that is known of containers or images, as JSON
    Inspect(InspectContainerArgs),
    /// Run one more command in a container
    Exec(ExecArgs),
    /// Stay with a running container
    Attach(AttachArgs),
    /// Show what a container wrote
    Logs(LogsArgs),
    /// Show what a container's kernel wrote
    Console(ConsoleArgs),
    /// Show what happens, as it happens
    Events(EventsArgs),
    /// Save and look after machines
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Go on from a snapshot, in a new container
    Restore(RestoreArgs),
    /// Branch a running container
    Clone(CloneArgs),
    /// Look after containers
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Write files for other programs
    #[command(subcommand)]
    Generate(GenerateCommand),
    /// Fetch an image
    Pull(PullArgs),
    /// List images
    Images(ListArgs),
    /// Remove images
    Rmi(RemoveArgs),
    /// Give an image one more name
    Tag(TagArgs),
    /// Show how an image was built
    History(HistoryArgs),
    /// Put an image into a registry
    Push(PushArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Bring the images of an archive into the store
    Load(LoadArgs),
    /// Make an image of a tar archive
    Import(ImportArgs),
    /// Show what a container changed in its image
    Diff(DiffArgs),
    /// Copy files into or out of a container
    Cp(CopyArgs),
    /// Write a container's files as a tar archive
    Export(ExportArgs),
    /// Make an image of what a container changed
    Commit(CommitArgs),
    /// Look at images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Manage volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Look at and free disk space
    #[command(subcommand)]
    System(SystemCommand),
    /// Check what this host lacks
    Doctor(FormatArgs),
    /// Show versions
    Version(FormatArgs),
    /// Serve the API for other programs
    Serve(Box<ServeArgs>),
    /// Own a running container; not for people
    #[command(hide = true)]
    Keep(KeepArgs),
    /// Serve directories to a guest; not for people
    #[command(hide = true)]
    Share(ShareArgs),
    /// Read an image; not for people
    #[command(hide = true)]
    Intake(IntakeArgs),
    /// What a VM costs over a container here, and what it buys, measured with an image of yours
    Compare(CompareArgs),
    /// Be the warden of a container that is no VM
    #[command(hide = true)]
    Warden(WardenArgs),
}

/// `lighter container ...`
#[derive(Subcommand)]
pub enum ContainerCommand {
    /// Remove all that do not run
    Prune(PruneContainersArgs),
    /// List containers
    #[command(visible_alias = "list")]
    Ls(PsArgs),
}

/// `lighter generate ...`
#[derive(Subcommand)]
pub enum GenerateCommand {
    /// A unit that starts a container with the host
    Systemd(SystemdArgs),
    /// What completes commands in a shell
    Completion(CompletionArgs),
    /// Manual pages, one for each command
    Man(ManArgs),
}

/// `lighter image ...`
#[derive(Subcommand)]
pub enum ImageCommand {
    /// Show all that is known of images, as JSON
    Inspect(InspectArgs),
}

/// `lighter system ...`
#[derive(Subcommand)]
pub enum SystemCommand {
    /// Show what takes disk space
    Df(FormatArgs),
    /// Remove what no image needs
    Prune(PruneArgs),
}

/// Commands that only print.
#[derive(Args)]
pub struct FormatArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// How to talk to a registry.
#[derive(Args)]
pub struct RegistryArgs {
    /// Insist on HTTPS with a valid certificate, except on loopback
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub tls_verify: bool,
    /// Platform to choose from a multi-platform image [default: the host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
}

/// `lighter pull`
#[derive(Args)]
pub struct PullArgs {
    /// How to talk to the registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Who must have signed it.
    #[command(flatten)]
    pub signature: SignatureArgs,
    /// Also build the root filesystem, which otherwise the first run does
    #[arg(long)]
    pub unpack: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// The image: a reference, or oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE
    pub image: String,
}

/// `lighter images`
#[derive(Args)]
pub struct ListArgs {
    /// Print only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Print whole IDs
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// `lighter rmi`
#[derive(Args)]
pub struct RemoveArgs {
    /// Also where containers are made of it: they keep their files
    #[arg(short, long)]
    pub force: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// `lighter image inspect`
#[derive(Args)]
pub struct InspectArgs {
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// How to print; there is only JSON
    #[arg(long, value_enum, default_value_t = Format::Json, value_name = "FORMAT")]
    pub format: Format,
}

/// `lighter system prune`
#[derive(Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    fn run(args: &[&str]) -> Box<RunArgs> {
        match Cli::try_parse_from(["lighter", "run"].iter().chain(args)).unwrap().command {
            Command::Run(args) => args,
            _ => panic!("no run"),
        }
    }

    #[test]
    fn everything_behind_the_image_is_the_command() {
        let args = run(&["--rm", "-e", "A=1", "alpine", "ls", "-la", "--rm"]);
        assert_eq!(args.image_and_command, ["alpine", "ls", "-la", "--rm"]);
        let args = run(&["alpine", "-v", "--name", "x"]);
        assert_eq!((args.image_and_command.len(), args.name), (4, None));
    }

    #[test]
    fn the_trace_takes_its_format_only_behind_an_equals_sign() {
        use crate::output::Format;
        assert_eq!(run(&["--trace", "alpine"]).trace, Some(Format::Table));
        assert_eq!(run(&["--trace=json", "alpine"]).trace, Some(Format::Json));
        assert_eq!(run(&["alpine"]).trace, None);
    }

    #[test]
    fn tls_verify_can_be_switched_off() {
        assert!(run(&["alpine"]).registry.tls_verify && run(&["--tls-verify", "alpine"]).registry.tls_verify);
        assert!(!run(&["--tls-verify=false", "alpine"]).registry.tls_verify);
    }
}
