//! The options about one process, of a new container or in a running one.

use std::path::PathBuf;

use clap::Args;
use engine::plan::environment::EnvironmentOptions;

/// Options of `run`, `create` and `exec`.
#[derive(Args)]
pub struct ProcessArgs {
    /// Pass stdin on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable, or take the host's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set the variables in a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory [default: the image's, or the container's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and group, of the process [default: the image's, or the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Keys that leave it running
    #[arg(long, value_name = "KEYS", default_value = engine::session::detach::DEFAULT)]
    pub detach_keys: String,
}

impl ProcessArgs {
    /// For the engine.
    pub fn environment(&self) -> EnvironmentOptions {
        EnvironmentOptions { files: self.env_file.clone(), variables: self.env.clone() }
    }
}
