//! `lighter update`: other limits for containers, running or not.

use anyhow::{Context as _, ensure};
use clap::Args;
use engine::container::record;
use engine::dirs::Dirs;
use engine::events::{Event, emit};
use engine::isolation;
use engine::plan::resources;
use engine::resources::ResourceSpec;
use engine::resources::live::{self, Shrunk};

use crate::lifecycle_commands::each;
use crate::options::resources::ResourceArgs;

/// `lighter update`
#[derive(Args)]
pub struct UpdateArgs {
    /// Processor time in CPUs, at most as many as the machine has
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Memory, with unit b, k, m or g: up to what it was started with while it runs, any size while it does not
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// What it may take of its host.
    #[command(flatten)]
    resources: ResourceArgs,
    /// When it is started again: no, on-failure[:TIMES], always, unless-stopped; counts from its next start on
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
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
    each(&args.containers, |name| {
        let record = record::find(dirs, name)?;
        let has = record.spec.machine.vcpus;
        ensure!(
            vcpus.is_none_or(|wanted| wanted <= has),
            "container {} has a machine of {has} CPUs, which stay as many: --cpus is at most {has}",
            record.name
        );
        let mut spec = record.spec.clone();
        spec.resources = spec.resources.updated(&change);
        spec.lifetime.restart = restart.unwrap_or(spec.lifetime.restart);
        if record.is_running() {
            isolation::vm_only(&spec, &record.name, "changing the limits of what runs")?;
            spec.machine.next_memory_mib = memory_mib.or(spec.machine.next_memory_mib);
            let mut limits = spec.resources.clone();
            if let Some(Shrunk::Partly(missing)) =
                memory_mib.map(|mib| live::set_memory(&record, mib)).transpose()?
            {
                // The host's limit would end the machine.
                limits.memory = record.spec.resources.memory;
                eprintln!(
                    "lighter: {} uses its memory: {missing} MiB of it are still to be given back, as soon as they are free",
                    record.name
                );
            }
            live::apply(&record, &limits, &change)?;
        } else {
            spec.machine.memory_mib = memory_mib.unwrap_or(spec.machine.memory_mib);
        }
        record::write_json(&record.data.join("spec.json"), &spec)
            .context("cannot write the container down")?;
        emit(dirs, &Event::new("container", "update", spec.id.as_str(), &record.name));
        Ok(())
    })
}
