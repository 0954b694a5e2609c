//! The options of `lighter run`, and their translation for the engine.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use engine::GuestLimits;
use engine::container::spec::{Lifetime, MachineSpec, RestartPolicy};
use engine::isolation::Isolation;
use engine::plan::PlanOptions;
use engine::plan::resources;
use engine::run::RunOptions;
use images::pull::{PullOptions, PullPolicy};
use images::registry::RegistryOptions;

use crate::args::RegistryArgs;
use crate::lifecycle_commands::labels;
use crate::lifetime_options::LifetimeArgs;
use crate::options::isolation::IsolationKind;
use crate::options::network::NetworkArgs;
use crate::options::process::ProcessArgs;
use crate::options::resources::ResourceArgs;
use crate::options::signature::SignatureArgs;
use crate::options::volumes::VolumeArgs;
use crate::output::Format;

/// `lighter run`
#[derive(Args)]
#[command(override_usage = "lighter run [OPTIONS] IMAGE [COMMAND] [ARGUMENT]...")]
pub struct RunArgs {
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Do not stay with it: print its ID when its process runs
    #[arg(short, long)]
    pub detach: bool,
    /// Hand signals on
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Write the ID to a new file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// When it begins, ends and begins again.
    #[command(flatten)]
    pub lifetime: LifetimeArgs,
    /// The process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Give the process another group
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Program to run instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Name of the container
    #[arg(long)]
    pub name: Option<String>,
    /// Host name in the container [default: its ID]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Memory, with unit b, k, m or g [default: 512m]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Processor time in CPUs, up to 32, for example 0.5; the machine has as many as that needs [default: one CPU]
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// What it may take of its host.
    #[command(flatten)]
    pub resources: ResourceArgs,
    /// What keeps it apart from its host
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub isolation: IsolationKind,
    /// Guest kernel, an ELF vmlinux or a bzImage [default: what `cargo xtask kernel` built]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for the guest kernel
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Append to the guest kernel's command line
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub kernel_arg: Vec<String>,
    /// Boot the machine instead of cloning the image's template
    #[arg(long)]
    pub cold: bool,
    /// Do not confine the process that runs the machine: a guest that takes it over has the host's user. For debugging
    #[arg(long)]
    pub no_sandbox: bool,
    /// Its network.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// What it sees of its host.
    #[command(flatten)]
    pub volumes: VolumeArgs,
    /// No writable layer
    #[arg(long)]
    pub read_only: bool,
    /// All capabilities
    #[arg(long)]
    pub privileged: bool,
    /// Keep another capability
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// Resource limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// Processes and threads at once; 0 or -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Size of /dev/shm, with unit b, k, m or g [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    /// Give memory that the guest frees back to the host
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub memory_reclaim: bool,
    /// no-new-privileges
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// When to ask the registry
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub pull: PullWhen,
    /// How to talk to the registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Who must have signed the image.
    #[command(flatten)]
    pub signature: SignatureArgs,
    /// Show what each phase of the start took, when the container has ended
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true,
          default_missing_value = "table")]
    pub trace: Option<Format>,
    /// Write the trace to a file instead of stderr
    #[arg(long, value_name = "FILE", requires = "trace")]
    pub trace_file: Option<PathBuf>,
    /// The image, then what to run in it
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true,
          value_name = "IMAGE")]
    pub image_and_command: Vec<String>,
}

/// `--pull`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PullWhen {
    /// Every time
    Always,
    /// If the image is not here
    #[default]
    Missing,
    /// Never
    Never,
}

impl RegistryArgs {
    /// For the image store.
    pub fn pull_options(&self, policy: PullPolicy) -> anyhow::Result<PullOptions> {
        let mut options = PullOptions {
            policy,
            registry: RegistryOptions { tls_verify: self.tls_verify, ..RegistryOptions::default() },
            ..PullOptions::default()
        };
        if let Some(platform) = &self.platform {
            options.platform = platform.parse().context("--platform")?;
        }
        Ok(options)
    }
}

impl RunArgs {
    /// For the engine.
    pub fn run_options(self) -> anyhow::Result<RunOptions> {
        let (image, command) =
            self.image_and_command.split_first().context("no image was named: lighter run IMAGE")?;
        ensure!(!image.starts_with('-'), "unknown option {image}: see `lighter run --help`");
        let policy = match self.pull {
            PullWhen::Always => PullPolicy::Always,
            PullWhen::Missing => PullPolicy::Missing,
            PullWhen::Never => PullPolicy::Never,
        };
        let memory_mib =
            self.memory.as_deref().map_or(Ok(resources::DEFAULT_MEMORY_MIB), resources::parse_memory)?;
        let vcpus = self.cpus.as_deref().map_or(Ok(1), resources::parse_cpus)?;
        let memory = self.memory.is_some().then(|| u64::from(resources::vm_memory_mib(memory_mib)) << 20);
        let limits = self.resources.spec(self.cpus.as_deref(), memory)?;
        let confined = self.privileged || !self.cap_add.is_empty() || !self.cap_drop.is_empty();
        let plan = PlanOptions {
            entrypoint: self.entrypoint,
            command: command.to_vec(),
            environment: self.process.environment(),
            workdir: self.process.workdir,
            user: self.process.user,
            groups: self.group_add,
            hostname: self.hostname,
            interactive: self.process.interactive,
            terminal: self.process.tty.then(terminal_size),
            read_only: self.read_only,
            privileged: self.privileged,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            ulimits: self.ulimit,
            no_new_privileges: no_new_privileges(&self.security_opt)?,
            stop_signal: self.lifetime.stop_signal.clone(),
            limits: guest_limits(self.pids_limit, self.shm_size.as_deref())?,
        };
        if self.no_sandbox {
            crate::output::notice(
                "--no-sandbox: the process that runs the machine is not confined; a guest that breaks out of its machine \
                 has everything that you have",
            );
        }
        let machine = MachineSpec {
            memory_mib,
            vcpus,
            kernel: self.kernel.map(absolute),
            initrd: self.initrd.map(absolute),
            kernel_args: self.kernel_arg,
            cold: self.cold,
            next_memory_mib: None,
            memory_reclaim: self.memory_reclaim,
            no_sandbox: self.no_sandbox,
        };
        let limited = limits.needs_cgroup() || plan.limits != GuestLimits::default();
        let rated = limits.rates != Default::default();
        let isolation = self.isolation.isolation(&machine, (limited, rated), confined)?;
        ensure!(
            isolation == Isolation::Vm || self.volumes.secret.is_empty(),
            "--secret needs --isolation vm: nothing else keeps it in memory alone"
        );
        let options = RunOptions {
            image: image.parse().with_context(|| format!("cannot use the image name {image:?}"))?,
            pull: self.signature.restrict(self.registry.pull_options(policy)?)?,
            plan,
            name: self.name,
            isolation,
            machine,
            network: self.network.spec()?,
            resources: limits,
            mounts: self.volumes.mounts()?,
            lifetime: Lifetime {
                remove: self.rm,
                stdin_once: self.process.interactive && !self.detach,
                ..self.lifetime.lifetime()?
            },
            health: self.lifetime.health()?,
            labels: labels(&self.lifetime.label),
            log: self.lifetime.log()?,
        };
        ensure!(
            !(options.lifetime.remove && options.lifetime.restart != RestartPolicy::No),
            "--rm and --restart exclude each other: what is removed cannot be started again"
        );
        Ok(options)
    }
}

/// How to talk to a registry, for the API.
pub fn registry(args: &RegistryArgs, signature: &SignatureArgs) -> engine_api::types::Registry {
    let key = signature.verify_key.clone().map(absolute);
    engine_api::types::Registry {
        insecure: !args.tls_verify,
        platform: args.platform.clone(),
        verify_key: key.map(|path| path.display().to_string()),
    }
}

fn guest_limits(pids: Option<i64>, shm: Option<&str>) -> anyhow::Result<GuestLimits> {
    let pids = pids.filter(|pids| *pids != -1).unwrap_or(0);
    let pids = u32::try_from(pids)
        .with_context(|| format!("--pids-limit {pids}: write a number of processes, 0 or -1 for no limit"))?;
    let shm_bytes = shm.map_or(Some(0), resources::parse_size);
    let shm_bytes = shm_bytes.with_context(|| {
        format!("--shm-size {:?} is no size: write for example 128m", shm.unwrap_or_default())
    })?;
    Ok(GuestLimits { pids, shm_bytes })
}

/// The same file from any working directory: a container may be started again from another one.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The caller's terminal, or what a terminal without a size is taken for.
fn terminal_size() -> engine::TerminalSize {
    engine::session::terminal::size(std::io::stdout())
        .unwrap_or(engine::TerminalSize { rows: 24, columns: 80 })
}

fn no_new_privileges(options: &[String]) -> anyhow::Result<bool> {
    let mut set = false;
    for option in options {
        set = match option.as_str() {
            "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true" => true,
            "no-new-privileges:false" | "no-new-privileges=false" => false,
            other => bail!("--security-opt {other:?} is unknown: lighter has no-new-privileges"),
        };
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_options_parse_or_are_named() {
        assert!(no_new_privileges(&["no-new-privileges".into()]).unwrap());
        assert!(no_new_privileges(&["seccomp=x".into()]).is_err());
    }
}
