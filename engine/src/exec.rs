//! `lighter exec`: one more process in a running container, always inside its guest.

use agent_protocol::AGENT_PORT;
use agent_protocol::message::{HostMessage, ProcessPlan, TerminalSize};

use crate::container::record::Record;
use crate::container::state::Status;
use crate::plan::capabilities::{self, CapabilityError};
use crate::plan::environment::{EnvironmentError, EnvironmentOptions, environment};
use crate::session::SessionError;
use crate::session::link::Link;

/// What `exec` was told.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `-e`, `--env-file`, on top of the container's.
    pub environment: EnvironmentOptions,
    /// `-w`
    pub workdir: Option<String>,
    /// `-u`
    pub user: Option<String>,
    /// `-i`
    pub interactive: bool,
    /// `-t`, with the size of the caller's terminal.
    pub terminal: Option<TerminalSize>,
    /// `--privileged`
    pub privileged: bool,
}

/// Why nothing could be executed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// There is nothing to execute it in.
    #[error("container {0} is not running; `lighter start {0}` starts it")]
    NotRunning(String),
    /// Nothing moves in it.
    #[error("container {0} is paused; `lighter unpause {0}` lets it go on")]
    Paused(String),
    /// `-w` is relative.
    #[error("the working directory {0:?} is not absolute: write it from the root, for example -w /srv")]
    Workdir(String),
    /// The environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// Capabilities.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// The agent.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// The process that `options` mean in the container `record`.
pub fn process(record: &Record, options: &ExecOptions) -> Result<ProcessPlan, ExecError> {
    let main = record.spec.plan.process();
    let cwd = options.workdir.clone().unwrap_or_else(|| main.cwd.clone());
    if !cwd.starts_with('/') {
        return Err(ExecError::Workdir(cwd));
    }
    let host = |name: &str| std::env::var(name).ok();
    let has_terminal = options.terminal.is_some();
    Ok(ProcessPlan {
        args: options.command.clone(),
        env: environment(&options.environment, &main.env, record.spec.plan.hostname(), has_terminal, host)?,
        cwd,
        user: options.user.clone().unwrap_or_else(|| main.user.clone()),
        terminal: options.terminal,
        stdin: options.interactive,
        capabilities: match options.privileged {
            true => capabilities::capabilities(true, &[], &[])?,
            false => main.capabilities.clone(),
        },
        ..main.clone()
    })
}

/// Starts `process` in the container `record`: a session with its agent.
pub fn start(record: &Record, process: ProcessPlan) -> Result<Link, ExecError> {
    let name = || record.name.clone();
    match record.state.status {
        Status::Running => {}
        Status::Paused => return Err(ExecError::Paused(name())),
        _ => return Err(ExecError::NotRunning(name())),
    }
    let mut link = Link::dial(&record.vsock(), AGENT_PORT).map_err(|_| ExecError::NotRunning(name()))?;
    link.send(&HostMessage::Exec(Box::new(process)))
        .map_err(|source| SessionError::Link { source, console: String::new() })?;
    Ok(link)
}
