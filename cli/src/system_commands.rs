//! `lighter system df`, `system prune` and `version`.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, ensure};
use engine::dirs::Dirs;
use engine::template::TemplateStore;
use engine::verbs;
use images::Store;
use serde_json::json;

use crate::args::PruneArgs;
use crate::container_args::PruneContainersArgs;
use crate::output::{self, Format};

/// What takes disk space.
pub fn disk_usage(dirs: &Dirs, format: Format) -> anyhow::Result<()> {
    let usage = Store::open(&dirs.data)?.system_df()?;
    let templates = TemplateStore::new(dirs).usage();
    if format == Format::Json {
        let value = json!({"schema": "lighter.df.v1", "usage": usage, "templates": templates});
        return output::print_json(&value);
    }
    let mut table = output::table(&["TYPE", "FILES", "SIZE", "RECLAIMABLE"]);
    for (kind, usage) in
        [("Blobs", usage.blobs), ("Unfinished", usage.partial), ("Root filesystems", usage.rootfs)]
    {
        table.add_row([
            kind.to_owned(),
            usage.count.to_string(),
            output::human_size(usage.bytes),
            output::human_size(usage.reclaimable),
        ]);
    }
    table.add_row([
        "Templates".to_owned(),
        templates.count.to_string(),
        output::human_size(templates.bytes),
        output::human_size(templates.reclaimable),
    ]);
    output::print_table(&table)
}

/// Asks before something is removed, unless told not to.
pub fn confirm(force: bool, verb: &str, question: &str) -> anyhow::Result<()> {
    if force {
        return Ok(());
    }
    ensure!(std::io::stdin().is_terminal(), "`lighter {verb}` asks first; use --force where nobody answers");
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    ensure!(answer.trim().eq_ignore_ascii_case("y"), "nothing was removed");
    Ok(())
}

/// `lighter container prune`
pub fn prune_containers(dirs: &Dirs, args: &PruneContainersArgs) -> anyhow::Result<()> {
    confirm(args.force, "container prune", "Remove all containers that do not run?")?;
    pruned_containers(&verbs::prune(dirs)?, args.format)
}

/// Prints the IDs of containers that were removed.
pub fn pruned_containers(removed: &[String], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::print_json(&json!({"schema": "lighter.prune.v1", "containers": removed})),
        Format::Table => output::print(&removed.iter().map(|id| format!("{id}\n")).collect::<String>()),
    }
}

/// What `system prune` asks.
pub const PRUNE: &str = "Remove containers that do not run, unfinished downloads, templates and everything that no \
                         image needs?";

/// Removes what no image needs.
pub fn prune(dirs: &Dirs, args: &PruneArgs) -> anyhow::Result<()> {
    confirm(args.force, "system prune", PRUNE)?;
    let containers = verbs::prune(dirs)?;
    let collected = Store::open(&dirs.data)?.prune()?;
    let templates = TemplateStore::new(dirs).prune();
    if collected.deferred {
        output::notice("the store is in use, so nothing was removed; try again when no pull runs");
    }
    match args.format {
        Format::Json => output::print_json(
            &json!({"schema": "lighter.prune.v1", "removed": collected, "templates": templates, "containers": containers}),
        ),
        Format::Table => output::print(&format!(
            "removed {} containers, {} files and {} templates, {}\n",
            containers.len(),
            collected.files,
            templates.count,
            output::human_size(collected.bytes + templates.bytes)
        )),
    }
}

/// Versions, and the VMM programs for those who start them themselves.
pub fn version(dirs: &Dirs, format: Format) -> anyhow::Result<()> {
    let (version, protocol) = (env!("CARGO_PKG_VERSION"), engine::PROTOCOL_VERSION);
    match format {
        Format::Json => output::print_json(&json!({
            "schema": "lighter.version.v1",
            "version": version,
            "agent_protocol": protocol,
            "machine": engine::carried::machine(dirs)?,
            "vmm": engine::carried::vmm(dirs)?,
            "jailer": engine::carried::jailer(dirs)?,
        })),
        Format::Table => output::print(&format!("lighter {version}, agent protocol {protocol}\n")),
    }
}
