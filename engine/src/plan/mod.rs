//! What runs in the guest: the image's configuration and the user's options merged as Docker does, into the one
//! plan that the agent carries out.

pub mod capabilities;
pub mod command;
pub mod environment;
pub mod resources;
pub mod stop_signal;
pub mod ulimit;

use agent_protocol::message::{
    ContainerPlan, GuestLimits, NetworkPlan, ProcessPlan, ReadAhead, RootPlan, TerminalSize,
};
use oci_spec::image::Config;
use serde::{Deserialize, Serialize};

use environment::EnvironmentOptions;

/// Block device of the image in the guest.
pub(crate) const IMAGE_DEVICE: &str = "/dev/vdb";
/// Block device of the writable layer in the guest.
pub(crate) const WRITABLE_DEVICE: &str = "/dev/vdc";
/// How a container is asked to end where its image says nothing.
const DEFAULT_STOP_SIGNAL: i32 = 15;
/// Longest host name that Linux takes.
const MAX_HOSTNAME: usize = 64;
/// What people run to look around, in nearly every image.
const SHELL: &str = "sh";

/// The user's part of the plan, as options of `lighter run`.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// `--entrypoint`
    pub entrypoint: Option<String>,
    /// What follows the image.
    pub command: Vec<String>,
    /// `-e`, `--env-file`
    pub environment: EnvironmentOptions,
    /// `-w`
    pub workdir: Option<String>,
    /// `-u`
    pub user: Option<String>,
    /// `--group-add`
    pub groups: Vec<String>,
    /// `--hostname`
    pub hostname: Option<String>,
    /// `-i`
    pub interactive: bool,
    /// `-t`, with the size of the caller's terminal.
    pub terminal: Option<TerminalSize>,
    /// `--read-only`
    pub read_only: bool,
    /// `--privileged`
    pub privileged: bool,
    /// `--cap-add`
    pub cap_add: Vec<String>,
    /// `--cap-drop`
    pub cap_drop: Vec<String>,
    /// `--ulimit`
    pub ulimits: Vec<String>,
    /// `--security-opt no-new-privileges`
    pub no_new_privileges: bool,
    /// `--stop-signal`
    pub stop_signal: Option<String>,
    /// `--pids-limit` and `--shm-size`
    pub limits: GuestLimits,
}

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing to run.
    #[error(
        "image {image} has no command of its own: say what to run, for example `lighter run {image} sh`, or with \
         --entrypoint"
    )]
    NoCommand {
        /// The image.
        image: String,
    },
    /// `--hostname` is none.
    #[error("--hostname {0:?} is no host name: use 1 to {MAX_HOSTNAME} letters, digits, '-' and '.'")]
    Hostname(String),
    /// `-w` is relative.
    #[error("the working directory {0:?} is not absolute: write it from the root, for example -w /srv")]
    Workdir(String),
    /// The image's stop signal is none.
    #[error("the stop signal {0:?} is no signal: write a name such as SIGTERM, or a number")]
    StopSignal(String),
    /// The environment.
    #[error(transparent)]
    Environment(#[from] environment::EnvironmentError),
    /// Capabilities.
    #[error(transparent)]
    Capability(#[from] capabilities::CapabilityError),
    /// Resource limits.
    #[error(transparent)]
    Ulimit(#[from] ulimit::UlimitError),
}

/// A plan whose network is still to be filled in.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    process: ProcessPlan,
    hostname: String,
    read_only: bool,
    /// What asks the process to end.
    pub stop_signal: i32,
    #[serde(default)]
    limits: GuestLimits,
    /// By the image alone.
    #[serde(default)]
    read_ahead: ReadAhead,
}

impl Plan {
    /// Merges the options with the configuration of `image`; `default_hostname` is the container's ID.
    pub fn new(
        options: &PlanOptions,
        image: &str,
        config: &Config,
        default_hostname: &str,
    ) -> Result<Self, PlanError> {
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let hostname = options.hostname.clone().unwrap_or_else(|| default_hostname.to_owned());
        if !is_hostname(&hostname) {
            return Err(PlanError::Hostname(hostname));
        }
        let args = command::arguments(
            options.entrypoint.as_deref(),
            &options.command,
            &list(config.entrypoint()),
            &list(config.cmd()),
        );
        let from_image = config.working_dir().clone().filter(|dir| !dir.is_empty());
        let cwd = options.workdir.clone().or(from_image).unwrap_or_else(|| "/".to_owned());
        if !cwd.starts_with('/') {
            return Err(PlanError::Workdir(cwd));
        }
        let process = ProcessPlan {
            args: args.ok_or_else(|| PlanError::NoCommand { image: image.to_owned() })?,
            env: environment::environment(
                &options.environment,
                &list(config.env()),
                &hostname,
                options.terminal.is_some(),
                |name| std::env::var(name).ok(),
            )?,
            cwd,
            user: options.user.clone().or_else(|| config.user().clone()).unwrap_or_default(),
            additional_groups: options.groups.clone(),
            terminal: options.terminal,
            stdin: options.interactive,
            rlimits: ulimit::ulimits(&options.ulimits)?,
            capabilities: capabilities::capabilities(
                options.privileged,
                &options.cap_add,
                &options.cap_drop,
            )?,
            no_new_privs: options.no_new_privileges,
        };
        let from_image = config.stop_signal().as_deref().filter(|signal| !signal.is_empty());
        let stop_signal = match options.stop_signal.as_deref().or(from_image) {
            None => DEFAULT_STOP_SIGNAL,
            Some(text) => stop_signal::parse(text).ok_or_else(|| PlanError::StopSignal(text.to_owned()))?,
        };
        let first = |words: &Option<Vec<String>>| words.iter().flatten().next().cloned();
        let own = [first(config.entrypoint()), first(config.cmd())].into_iter().flatten();
        let path = config.env().iter().flatten().find_map(|entry| entry.strip_prefix("PATH="));
        let read_ahead =
            ReadAhead { programs: own.chain([SHELL.to_owned()]).collect(), path: path.map(str::to_owned) };
        Ok(Self {
            process,
            hostname,
            read_only: options.read_only,
            stop_signal,
            limits: options.limits,
            read_ahead,
        })
    }

    /// Gives the host another name if it is called `old`, as one without a name of its own is.
    pub fn rename_host(&mut self, old: &str, new: &str) {
        if self.hostname == old {
            self.hostname = new.to_owned();
        }
    }

    /// Whether a disk for a writable layer is needed.
    pub fn writable(&self) -> bool {
        !self.read_only
    }

    /// Which disks make the root.
    pub fn root(&self) -> RootPlan {
        RootPlan {
            image_device: IMAGE_DEVICE.to_owned(),
            writable_device: self.writable().then(|| WRITABLE_DEVICE.to_owned()),
        }
    }

    /// What containers of the image are likely to run, for its template.
    pub fn read_ahead(&self) -> &ReadAhead {
        &self.read_ahead
    }

    /// It keeps every capability that there is.
    pub fn is_privileged(&self) -> bool {
        self.process.capabilities.len() == capabilities::count()
    }

    /// The main process.
    pub fn process(&self) -> &ProcessPlan {
        &self.process
    }

    /// Gives the process's terminal, if it has one, the size of a client's.
    pub fn resize(&mut self, size: TerminalSize) {
        if let Some(terminal) = &mut self.process.terminal {
            *terminal = size;
        }
    }

    /// The name that the container has on its network.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The message for the agent, with the time and the entropy of this moment.
    pub fn finish(&self, network: NetworkPlan) -> ContainerPlan {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        ContainerPlan {
            root: self.root(),
            hostname: self.hostname.clone(),
            realtime_ns: u64::try_from(now.as_nanos()).unwrap_or_default(),
            entropy: crate::container::id::random(),
            network: Some(network),
            mounts: Vec::new(),
            process: self.process.clone(),
            power_off_at_exit: true,
            limits: self.limits,
        }
    }
}

fn is_hostname(name: &str) -> bool {
    (1..=MAX_HOSTNAME).contains(&name.len())
        && !name.starts_with(['-', '.'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    const FULL: &str = r#"{"Entrypoint":["/bin/sh","-c"],"Cmd":["echo hi"],"Env":["A=1"],"WorkingDir":"/srv","User":"web:www",
        "StopSignal":"SIGQUIT"}"#;

    #[test]
    fn the_configuration_of_the_image_counts() {
        let plan = Plan::new(&PlanOptions::default(), "i", &config(FULL), "0123456789ab").unwrap();
        let message = plan.finish(NetworkPlan::default());
        assert_eq!(message.process.args, ["/bin/sh", "-c", "echo hi"]);
        assert!(message.process.env.contains(&"A=1".to_owned()));
        assert!(message.process.env.contains(&"HOSTNAME=0123456789ab".to_owned()));
        assert_eq!((message.process.cwd.as_str(), message.process.user.as_str()), ("/srv", "web:www"));
        assert_eq!((plan.stop_signal, message.root.writable_device.as_deref()), (3, Some("/dev/vdc")));
        assert!(message.realtime_ns > 1_700_000_000_000_000_000);
    }

    #[test]
    fn options_override_it() {
        let options = PlanOptions {
            entrypoint: Some("/app".into()),
            command: vec!["x".into()],
            workdir: Some("/tmp".into()),
            user: Some("0".into()),
            hostname: Some("barge".into()),
            read_only: true,
            ..PlanOptions::default()
        };
        let plan = Plan::new(&options, "i", &config(FULL), "id").unwrap();
        let message = plan.finish(NetworkPlan::default());
        assert_eq!(message.process.args, ["/app", "x"]);
        assert_eq!((message.process.cwd.as_str(), message.process.user.as_str()), ("/tmp", "0"));
        assert_eq!((message.hostname.as_str(), message.root.writable_device), ("barge", None));
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_its_reason() {
        let refused = |options: PlanOptions, json: &str| {
            Plan::new(&options, "name", &config(json), "id").unwrap_err().to_string()
        };
        assert!(refused(PlanOptions::default(), "{}").contains("lighter run name"));
        let command = vec!["sh".to_owned()];
        let hostname = Some("a b".to_owned());
        let options = PlanOptions { command: command.clone(), hostname, ..PlanOptions::default() };
        assert!(refused(options, "{}").contains("\"a b\""));
        let workdir = Some("relative".to_owned());
        let options = PlanOptions { command, workdir, ..PlanOptions::default() };
        assert!(refused(options, "{}").contains("relative"));
        assert!(refused(PlanOptions::default(), r#"{"Cmd":["x"],"StopSignal":"NOPE"}"#).contains("NOPE"));
    }
}
