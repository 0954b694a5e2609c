//! `lighter volume`: what outlives containers.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use engine::dirs::Dirs;
use engine::events::{Event, emit};
use engine::plan::resources::parse_size;
use engine::volumes::store::DEFAULT_SIZE;
use engine::volumes::{Volume, VolumeError, VolumeStore};
use serde_json::{Value, json};

use crate::args::FormatArgs;
use crate::lifecycle_commands::labels;
use crate::output::{self, Format};
use crate::system_commands::confirm;

/// `lighter volume ...`
#[derive(Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(CreateArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show all that is known of volumes, as JSON
    Inspect(InspectArgs),
    /// Remove volumes that no container has, with all that is in them
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
    /// Remove the volumes without a name of their own that no container has
    Prune(PruneArgs),
}

/// `lighter volume create`
#[derive(Args)]
pub struct CreateArgs {
    /// Note something about it
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// There is only local
    #[arg(short, long, value_name = "DRIVER", default_value = "local", hide_default_value = true)]
    pub driver: String,
    /// type=disk: a disk of its own, for one container at a time, and size=SIZE [default: 10g]
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub opt: Vec<String>,
    /// Its name [default: one is drawn]
    pub name: Option<String>,
}

/// `lighter volume ls`
#[derive(Args)]
pub struct ListArgs {
    /// Print only names
    #[arg(short, long)]
    pub quiet: bool,
    /// Show only some: name=, label=, dangling=
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// `lighter volume inspect`
#[derive(Args)]
pub struct InspectArgs {
    /// Their names
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
    /// How to print; there is only JSON
    #[arg(long, value_enum, default_value_t = Format::Json, value_name = "FORMAT")]
    pub format: Format,
}

/// `lighter volume rm`
#[derive(Args)]
pub struct RemoveArgs {
    /// It is no error if a volume does not exist
    #[arg(short, long)]
    pub force: bool,
    /// Their names
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
}

/// `lighter volume prune`
#[derive(Args)]
pub struct PruneArgs {
    /// Also those with a name
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Executes one of them.
pub fn execute(dirs: &Dirs, command: &VolumeCommand) -> anyhow::Result<u8> {
    let store = VolumeStore::new(dirs);
    match command {
        VolumeCommand::Create(args) => create(dirs, &store, args)?,
        VolumeCommand::Ls(args) => list(&store, args)?,
        VolumeCommand::Inspect(args) => inspect(&store, args)?,
        VolumeCommand::Rm(args) => return remove(dirs, &store, args),
        VolumeCommand::Prune(args) => prune(dirs, &store, args)?,
    }
    Ok(0)
}

fn create(dirs: &Dirs, store: &VolumeStore, args: &CreateArgs) -> anyhow::Result<()> {
    ensure!(args.driver == "local", "the driver {:?} is unknown: there is only local", args.driver);
    let name = args.name.clone().unwrap_or_else(engine::volumes::random_name);
    let made = match disk_size(&args.opt)? {
        Some(size) => store.create_disk(&name, labels(&args.label), size)?,
        None => store.create(&name, labels(&args.label), args.name.is_none())?,
    };
    if made {
        event(dirs, "create", &name);
    }
    output::print(&format!("{name}\n"))
}

/// Bytes of the disk that `--opt` asks for, if it does.
pub fn disk_size(options: &[String]) -> anyhow::Result<Option<u64>> {
    let (mut is_disk, mut size) = (false, None);
    for option in options {
        match option.split_once('=') {
            Some(("type", "disk")) => is_disk = true,
            Some(("type", "directory")) => is_disk = false,
            Some(("size", text)) => {
                let bytes = parse_size(text);
                size = Some(bytes.with_context(|| format!("--opt size={text}: write it as 512m or 10g"))?);
            }
            _ => bail!("--opt {option:?} is unknown: there are type=disk, type=directory and size=SIZE"),
        }
    }
    ensure!(is_disk || size.is_none(), "--opt size= is for disks: add --opt type=disk");
    Ok(is_disk.then(|| size.unwrap_or(DEFAULT_SIZE)))
}

fn list(store: &VolumeStore, args: &ListArgs) -> anyhow::Result<()> {
    let mut volumes = store.list();
    for filter in &args.filter {
        let (key, value) = filter.split_once('=').unwrap_or((filter, ""));
        match (key, value) {
            ("name", part) => volumes.retain(|volume| volume.name.contains(part)),
            ("label", label) => volumes.retain(|volume| has_label(&volume.labels, label)),
            ("dangling", "true" | "1") => volumes.retain(|volume| store.users(&volume.name).is_empty()),
            ("dangling", "false" | "0") => volumes.retain(|volume| !store.users(&volume.name).is_empty()),
            _ => bail!("--filter {filter:?} is unknown: there are name=, label= and dangling=true|false"),
        }
    }
    if args.quiet {
        let names: String = volumes.iter().map(|volume| format!("{}\n", volume.name)).collect();
        return output::print(&names);
    }
    match args.format.format {
        Format::Json => {
            let volumes: Vec<Value> = volumes.iter().map(|volume| view(store, volume)).collect();
            output::print_json(&json!({"schema": "lighter.volumes.v1", "volumes": volumes}))
        }
        Format::Table => {
            let mut table = output::table(&["DRIVER", "VOLUME NAME"]);
            table.add_rows(volumes.iter().map(|volume| vec!["local", &volume.name]));
            output::print_table(&table)
        }
    }
}

fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|there| there == value),
        None => labels.contains_key(wanted),
    }
}

fn view(store: &VolumeStore, volume: &Volume) -> Value {
    json!({
        "name": volume.name,
        "driver": "local",
        "type": if volume.disk.is_some() { "disk" } else { "directory" },
        "size": volume.disk,
        "mountpoint": store.disk(&volume.name).unwrap_or_else(|| store.content(&volume.name)),
        "created": crate::times::rfc3339(volume.created_ns),
        "labels": volume.labels,
        "anonymous": volume.anonymous,
        "containers": store.users(&volume.name),
    })
}

fn inspect(store: &VolumeStore, args: &InspectArgs) -> anyhow::Result<()> {
    ensure!(args.format == Format::Json, "volumes are only shown as JSON");
    let found: Result<Vec<Volume>, VolumeError> = args.volumes.iter().map(|name| store.find(name)).collect();
    let views: Vec<Value> = found?.iter().map(|volume| view(store, volume)).collect();
    output::print_json(&json!({"schema": "lighter.volume.inspect.v1", "volumes": views}))
}

fn remove(dirs: &Dirs, store: &VolumeStore, args: &RemoveArgs) -> anyhow::Result<u8> {
    crate::lifecycle_commands::each(&args.volumes, |name| {
        match store.remove(name) {
            Err(VolumeError::Missing(_)) if args.force => return Ok(()),
            result => result?,
        }
        event(dirs, "destroy", name);
        Ok(())
    })
}

fn prune(dirs: &Dirs, store: &VolumeStore, args: &PruneArgs) -> anyhow::Result<()> {
    let what = if args.all { "all volumes" } else { "all volumes without a name of their own" };
    confirm(args.force, "volume prune", &format!("Remove {what} that no container has?"))?;
    let removed = store.prune(args.all)?;
    removed.iter().for_each(|name| event(dirs, "destroy", name));
    match args.format {
        Format::Json => output::print_json(&json!({"schema": "lighter.prune.v1", "removed": removed})),
        Format::Table => output::print(&removed.iter().map(|name| format!("{name}\n")).collect::<String>()),
    }
}

fn event(dirs: &Dirs, action: &str, name: &str) {
    emit(dirs, &Event::new("volume", action, name, name));
}
