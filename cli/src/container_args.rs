//! The options of the verbs for containers, as Docker's users know them.

use clap::Args;

use crate::options::process::ProcessArgs;

/// Verbs that only name containers.
#[derive(Args)]
pub struct ContainersArgs {
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// `lighter ps`
#[derive(Args)]
pub struct PsArgs {
    /// Show those that do not run, too
    #[arg(short, long)]
    pub all: bool,
    /// Print only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not cut anything off
    #[arg(long)]
    pub no_trunc: bool,
    /// Show the newest one, running or not
    #[arg(short, long)]
    pub latest: bool,
    /// Show the newest N, running or not
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<usize>,
    /// Show only some: id=, name=, label=, status=, health=, ancestor=, exited=
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// How to print: table, json, or a template such as '{{.Names}} {{.Status}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
}

/// `lighter inspect`
#[derive(Args)]
pub struct InspectContainerArgs {
    /// What the process that runs the machine really holds, as a table or with --format json
    #[arg(long)]
    pub security: bool,
    /// How to print: json, which it is anyway, or a template such as '{{.State.Status}}'
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Names or IDs of containers, or else of images
    #[arg(required = true, value_name = "CONTAINER|IMAGE")]
    pub names: Vec<String>,
}

/// `lighter start`
#[derive(Args)]
pub struct StartArgs {
    /// Stay with it: its output, its exit code
    #[arg(short, long)]
    pub attach: bool,
    /// Pass stdin on
    #[arg(short, long)]
    pub interactive: bool,
    /// Keys that leave it running
    #[arg(long, value_name = "KEYS", default_value = engine::session::detach::DEFAULT)]
    pub detach_keys: String,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// `lighter stop` and `restart`
#[derive(Args)]
pub struct StopArgs {
    /// Seconds until it is killed [default: the container's, or 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS")]
    pub time: Option<u64>,
    /// Signal instead of the container's stop signal
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// `lighter kill`
#[derive(Args)]
pub struct KillArgs {
    /// Signal to send
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// `lighter rm`
#[derive(Args)]
pub struct RmArgs {
    /// End it first, if it runs
    #[arg(short, long)]
    pub force: bool,
    /// Remove its anonymous volumes, too
    #[arg(short, long)]
    pub volumes: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// `lighter rename`
#[derive(Args)]
pub struct RenameArgs {
    /// Name or ID
    pub container: String,
    /// The new name
    pub name: String,
}

/// `lighter attach`
#[derive(Args)]
pub struct AttachArgs {
    /// Leave stdin alone
    #[arg(long)]
    pub no_stdin: bool,
    /// Hand signals on
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Keys that leave it running
    #[arg(long, value_name = "KEYS", default_value = engine::session::detach::DEFAULT)]
    pub detach_keys: String,
    /// Name or ID
    pub container: String,
}

/// `lighter exec`
#[derive(Args)]
pub struct ExecArgs {
    /// Do not wait for it
    #[arg(short, long)]
    pub detach: bool,
    /// The process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// All capabilities
    #[arg(long)]
    pub privileged: bool,
    /// Name or ID
    pub container: String,
    /// What to run in it
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `lighter logs`
#[derive(Args)]
pub struct LogsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only what is not older: a time, or a duration such as 10m
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only what is older
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub tail: String,
    /// With the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: crate::output::Format,
    /// Name or ID
    pub container: String,
}

/// `lighter console`
#[derive(Args)]
pub struct ConsoleArgs {
    /// Name or ID
    pub container: String,
}

/// `lighter events`
#[derive(Args)]
pub struct EventsArgs {
    /// From this time on [default: now]
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Until this time, and do not wait for more
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Show only some: type=, event=, container=, image=
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// How to print: json, or a template such as '{{.name}} {{.action}}'
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    pub format: String,
}

/// `lighter container prune`
#[derive(Args)]
pub struct PruneContainersArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: crate::output::Format,
}

/// `lighter generate systemd`
#[derive(Args)]
pub struct SystemdArgs {
    /// Name or ID
    pub container: String,
}
