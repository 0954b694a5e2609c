//! Firecracker's command line.

use std::path::PathBuf;

use api_server::FIRECRACKER_VERSION;
use api_server::wire::{Level, Logger};

/// What the command line looks like.
pub const USAGE: &str = "\
usage: lighter-vmm [--api-sock PATH] [--id ID] [--config-file PATH [--no-api]] [--metadata PATH]
                   [--log-path PATH] [--level LEVEL] [--module NAME] [--show-level] [--show-log-origin]
                   [--metrics-path PATH] [--boot-timer] [--no-seccomp] [--http-api-max-payload-size BYTES]
                   [--mmds-size-limit BYTES] [--version | --snapshot-version | --describe-snapshot PATH]
       lighter-vmm vmm --config-fd N --event-fd M [--parent PID] [--cage root|user|bare] [--no-seccomp]";

/// Where the socket is without `--api-sock`.
const DEFAULT_SOCKET: &str = "/run/firecracker.socket";
/// What a VM is called without `--id`.
const DEFAULT_ID: &str = "anonymous-instance";
/// Most bytes of a request's body.
const DEFAULT_PAYLOAD: usize = 51_200;
/// Largest `--http-api-max-payload-size` and `--mmds-size-limit`: each client may make the VMM hold so much.
const MAX_PAYLOAD: usize = 1 << 20;
/// Longest ID (Firecracker's `validate_instance_id`).
const MAX_ID: usize = 64;

/// A command line that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// No such argument.
    #[error("Found argument '{0}' which wasn't expected, or isn't valid in this context.")]
    Unknown(String),
    /// It stands alone.
    #[error("The argument '{0}' requires a value, but none was supplied.")]
    NoValue(String),
    /// It is there twice.
    #[error("The argument '{0}' was provided more than once.")]
    Twice(String),
    /// It needs another one.
    #[error("Argument 'config-file' required, but not found: 'no-api' needs it.")]
    NoConfig,
    /// A filter of somebody else.
    #[error(
        "'--seccomp-filter' is not offered by lighter: its threads make other system calls than Firecracker's, for which \
         such a file is made. Leave it out: lighter's own filters are on, unless '--no-seccomp' is given."
    )]
    Seccomp,
    /// Its value makes no sense.
    #[error("invalid value {value:?} of '{name}': {why}")]
    Value {
        /// The argument.
        name: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        why: String,
    },
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Serve and run a VM.
    Run(Box<Arguments>),
    /// Print this.
    Print(String),
}

/// How to serve and run a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Path of the API socket, unless there is to be none.
    pub api_socket: Option<PathBuf>,
    /// What the VM is called.
    pub id: String,
    /// A configuration to start with.
    pub config_file: Option<PathBuf>,
    /// Content of the metadata store to start with.
    pub metadata: Option<PathBuf>,
    /// The log.
    pub logger: Logger,
    /// File of the metrics.
    pub metrics_path: Option<String>,
    /// Say how long the start took.
    pub boot_timer: bool,
    /// Let the threads make any system call.
    pub no_seccomp: bool,
    /// Most bytes of a request's body.
    pub max_payload: usize,
    /// Most bytes of the metadata store.
    pub max_metadata: usize,
}

/// Arguments with a value.
const WITH_VALUE: &[&str] = &[
    "--api-sock",
    "--id",
    "--config-file",
    "--metadata",
    "--log-path",
    "--level",
    "--module",
    "--metrics-path",
    "--http-api-max-payload-size",
    "--mmds-size-limit",
    "--describe-snapshot",
    "--seccomp-filter",
    "--start-time-us",
    "--start-time-cpu-us",
    "--parent-cpu-time-us",
];
/// Arguments without.
const FLAGS: &[&str] = &[
    "--no-api",
    "--no-seccomp",
    "--show-level",
    "--show-log-origin",
    "--boot-timer",
    "--enable-pci",
    "--version",
    "--snapshot-version",
    "--help",
];

impl Arguments {
    /// Parses what follows the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Asked, ArgumentError> {
        let given = Given::collect(arguments)?;
        if given.has("--help") {
            return Ok(Asked::Print(USAGE.to_owned()));
        }
        if given.has("--version") {
            let own = env!("CARGO_PKG_VERSION");
            return Ok(Asked::Print(format!("Firecracker v{FIRECRACKER_VERSION}\n\nlighter-vmm {own}")));
        }
        let format = || Asked::Print(format!("v{}.0.0", crate::snapshot::FORMAT_VERSION));
        if given.has("--snapshot-version") {
            return Ok(format());
        }
        if let Some(path) = given.value("--describe-snapshot") {
            // Another version is refused, so there is one only.
            let read = crate::snapshot::Snapshot::read_state(path.as_ref(), path.as_ref());
            return read.map(|_| format()).map_err(|error| ArgumentError::Value {
                name: "--describe-snapshot",
                value: path.to_owned(),
                why: crate::text::with_causes(&error),
            });
        }
        if given.has("--no-api") && !given.has("--config-file") {
            return Err(ArgumentError::NoConfig);
        }
        if given.has("--seccomp-filter") {
            return Err(ArgumentError::Seccomp);
        }
        let max_payload = given.bytes("--http-api-max-payload-size")?.unwrap_or(DEFAULT_PAYLOAD);
        Ok(Asked::Run(Box::new(Arguments {
            api_socket: (!given.has("--no-api"))
                .then(|| given.value("--api-sock").unwrap_or(DEFAULT_SOCKET).into()),
            id: given.id()?,
            config_file: given.value("--config-file").map(PathBuf::from),
            metadata: given.value("--metadata").map(PathBuf::from),
            logger: Logger {
                log_path: given.value("--log-path").map(str::to_owned),
                level: given.level()?,
                show_level: given.has("--show-level").then_some(true),
                show_log_origin: given.has("--show-log-origin").then_some(true),
                module: given.value("--module").map(str::to_owned),
            },
            metrics_path: given.value("--metrics-path").map(str::to_owned),
            boot_timer: given.has("--boot-timer"),
            no_seccomp: given.has("--no-seccomp"),
            max_payload,
            max_metadata: given.bytes("--mmds-size-limit")?.unwrap_or(max_payload),
        })))
    }
}

/// Arguments and their values, as they were given.
struct Given(Vec<(String, String)>);

impl Given {
    fn collect(arguments: impl IntoIterator<Item = String>) -> Result<Self, ArgumentError> {
        let mut given = Given(Vec::new());
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            // What follows is for somebody else, as with Firecracker.
            if argument == "--" {
                break;
            }
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let value = if WITH_VALUE.contains(&name.as_str()) {
                let value = value.or_else(|| arguments.next());
                value.ok_or_else(|| ArgumentError::NoValue(name[2..].to_owned()))?
            } else if FLAGS.contains(&name.as_str()) && value.is_none() {
                String::new()
            } else {
                return Err(ArgumentError::Unknown(name));
            };
            if given.has(&name) {
                return Err(ArgumentError::Twice(name[2..].to_owned()));
            }
            given.0.push((name, value));
        }
        Ok(given)
    }

    fn value(&self, wanted: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    fn has(&self, wanted: &str) -> bool {
        self.value(wanted).is_some()
    }

    fn bytes(&self, name: &'static str) -> Result<Option<usize>, ArgumentError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.parse() {
            Ok(bytes) if bytes <= MAX_PAYLOAD => Ok(Some(bytes)),
            _ => {
                let why = format!("it takes a number of bytes, at most {MAX_PAYLOAD}");
                Err(ArgumentError::Value { name, value: value.to_owned(), why })
            }
        }
    }

    fn level(&self) -> Result<Option<Level>, ArgumentError> {
        let Some(value) = self.value("--level") else { return Ok(None) };
        let why = "it takes Off, Error, Warning, Info, Debug or Trace".to_owned();
        let error = || ArgumentError::Value { name: "--level", value: value.to_owned(), why };
        Level::parse(value).map(Some).ok_or_else(error)
    }

    fn id(&self) -> Result<String, ArgumentError> {
        let id = self.value("--id").unwrap_or(DEFAULT_ID);
        let fits = (1..=MAX_ID).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if fits {
            return Ok(id.to_owned());
        }
        let why = format!("it takes 1 to {MAX_ID} letters, digits and hyphens");
        Err(ArgumentError::Value { name: "--id", value: id.to_owned(), why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Asked, ArgumentError> {
        Arguments::parse(text.split_whitespace().map(str::to_owned))
    }

    fn run(text: &str) -> Arguments {
        match parse(text) {
            Ok(Asked::Run(arguments)) => *arguments,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn defaults_are_firecrackers() {
        let arguments = run("");
        assert_eq!(arguments.api_socket, Some(DEFAULT_SOCKET.into()));
        assert_eq!((arguments.id.as_str(), arguments.max_payload), (DEFAULT_ID, DEFAULT_PAYLOAD));
        assert_eq!(arguments.max_metadata, DEFAULT_PAYLOAD);
    }

    #[test]
    fn what_clients_pass_is_understood() {
        let arguments = run("--api-sock /a.sock --id vm-1 --config-file c.json --boot-timer --no-seccomp \
             --log-path=log --level Debug --show-level --start-time-us 1 --http-api-max-payload-size 100");
        assert_eq!(arguments.api_socket, Some("/a.sock".into()));
        assert_eq!(arguments.config_file, Some("c.json".into()));
        assert_eq!(arguments.logger.level, Some(Level::Debug));
        assert_eq!((arguments.max_payload, arguments.max_metadata, arguments.boot_timer), (100, 100, true));
        assert_eq!(run("--no-api --config-file c").api_socket, None);
        assert_eq!(run("--id a -- --what").id, "a");
    }

    #[test]
    fn the_version_is_in_firecrackers_words() {
        let Ok(Asked::Print(text)) = parse("--version") else { panic!() };
        assert!(text.starts_with(&format!("Firecracker v{FIRECRACKER_VERSION}\n")));
        assert_eq!(parse("--snapshot-version"), Ok(Asked::Print("v2.0.0".into())));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "--api-sock",
            "--unknown",
            "word",
            "--no-api",
            "--seccomp-filter f",
            "--id a --id b",
            "--id a_b",
            "--id=",
            "--level loud",
            "--http-api-max-payload-size -1",
            "--http-api-max-payload-size 99999999999",
            "--version=1",
            "--describe-snapshot /missing",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
