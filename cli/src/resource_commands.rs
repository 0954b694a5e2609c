//! `lighter update`: other limits for containers, running or not.

use anyhow::ensure;
use clap::Args;
use engine::container::record;
use engine::dirs::Dirs;
use engine::plan::resources;
use engine::resources::ResourceSpec;
use engine::verbs::{self, Update};

use crate::lifecycle_commands::each;
use crate::options::resources::ResourceArgs;

/// `lighter update`
#[derive(Args)]
pub struct UpdateArgs {
    /// Processor time in CPUs, at most as many as the machine has
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// Memory, with unit b, k, m or g: up to what it was started with while it runs, any size while it does not
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// What it may take of its host.
    #[command(flatten)]
    pub resources: ResourceArgs,
    /// When it is started again: no, on-failure[:TIMES], always, unless-stopped; counts from its next start on
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Changes limits.
pub fn update(dirs: &Dirs, args: &UpdateArgs) -> anyhow::Result<u8> {
    let vcpus = args.cpus.as_deref().map(resources::parse_cpus).transpose()?;
    let memory_mib = args.memory.as_deref().map(resources::parse_memory).transpose()?;
    let memory = memory_mib.map(|mib| u64::from(resources::vm_memory_mib(mib)) << 20);
    let change = args.resources.spec(args.cpus.as_deref(), memory)?;
    let restart = args.restart.as_deref().map(str::parse).transpose()?;
    ensure!(
        change != ResourceSpec::default() || restart.is_some(),
        "nothing to change: see `lighter update --help`"
    );
    let change = Update { resources: change, vcpus, memory_mib, restart };
    each(&args.containers, |name| {
        let record = record::find(dirs, name)?;
        if let Some(missing) = verbs::update(dirs, &record, &change)? {
            eprintln!(
                "lighter: {} uses its memory: {missing} MiB of it are still to be given back, as soon as they are free",
                record.name
            );
        }
        Ok(())
    })
}
