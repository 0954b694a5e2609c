//! `lighter update`: other limits for containers, running or not.

use anyhow::{Context as _, ensure};
use clap::Args;
use engine::container::record;
use engine::dirs::Dirs;
use engine::events::{Event, emit};
use engine::plan::resources;
use engine::resources::cgroup::Cgroup;

use crate::lifecycle_commands::each;
use crate::options::resources::ResourceArgs;

/// `lighter update`
#[derive(Args)]
pub struct UpdateArgs {
    /// Processor time in CPUs, at most as many as the machine has
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
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
    let change = args.resources.spec(args.cpus.as_deref(), None)?;
    let restart = args.restart.as_deref().map(str::parse).transpose()?;
    ensure!(change.limits() || restart.is_some(), "nothing to change: see `lighter update --help`");
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
        if let Some(vmm) = record.state.vmm.filter(|_| record.is_running() && change.limits()) {
            Cgroup::change(&spec.id, &spec.resources, vmm)?;
        }
        record::write_json(&record.data.join("spec.json"), &spec)
            .context("cannot write the container down")?;
        emit(dirs, &Event::new("container", "update", spec.id.as_str(), &record.name));
        Ok(())
    })
}
