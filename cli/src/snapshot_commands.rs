//! Verbs about saved machines: `snapshot`, `restore`, `clone`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use engine::dirs::Dirs;
use engine::snapshot::{SnapshotStore, archive, remote};
use engine::verbs;
use images::push::PushOptions;
use images::reference::Reference;
use images::registry::RegistryOptions;
use serde_json::json;

use crate::image_commands::familiar;
use crate::lifecycle_commands::each;
use crate::output::{self, Format};
use crate::progress::Bars;

/// `lighter snapshot ...`
#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Save a running container: its processes, memory and files
    Create(CreateArgs),
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show all that is known of snapshots, as JSON
    Inspect(InspectArgs),
    /// Remove snapshots
    Rm(NamesArgs),
    /// Write a snapshot to one file, for another machine
    Export(ExportArgs),
    /// Read what `export` wrote
    Import(ImportArgs),
    /// Put a snapshot into a registry
    Push(SnapshotPushArgs),
    /// Get a snapshot out of a registry
    Pull(SnapshotPullArgs),
}

/// `lighter snapshot push`
#[derive(Args)]
pub struct SnapshotPushArgs {
    /// How to talk to the registry.
    #[command(flatten)]
    pub registry: TlsArgs,
    /// The snapshot
    pub snapshot: String,
    /// Where to: REGISTRY/NAME:TAG
    pub reference: Reference,
}

/// `lighter snapshot pull`
#[derive(Args)]
pub struct SnapshotPullArgs {
    /// How to talk to the registry.
    #[command(flatten)]
    pub registry: TlsArgs,
    /// Where from: REGISTRY/NAME:TAG
    pub reference: Reference,
    /// Name of the snapshot here
    pub name: String,
}

/// How to talk to a registry, where there are no platforms.
#[derive(Args)]
pub struct TlsArgs {
    /// Insist on HTTPS with a valid certificate, except on loopback
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub tls_verify: bool,
}

impl TlsArgs {
    fn options(&self) -> RegistryOptions {
        RegistryOptions { tls_verify: self.tls_verify, ..RegistryOptions::default() }
    }
}

/// `lighter snapshot create`
#[derive(Args)]
pub struct CreateArgs {
    /// The container
    pub container: String,
    /// Name of the snapshot [default: the container's name]
    pub name: Option<String>,
}

/// `lighter snapshot ls`
#[derive(Args)]
pub struct LsArgs {
    /// Table or JSON
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `lighter snapshot inspect`
#[derive(Args)]
pub struct InspectArgs {
    /// How to print; there is only JSON
    #[arg(long, value_enum, default_value_t = Format::Json, value_name = "FORMAT")]
    pub format: Format,
    /// The snapshots
    #[arg(required = true)]
    pub snapshots: Vec<String>,
}

/// Names of snapshots.
#[derive(Args)]
pub struct NamesArgs {
    /// The snapshots
    #[arg(required = true)]
    pub snapshots: Vec<String>,
}

/// `lighter snapshot export`
#[derive(Args)]
pub struct ExportArgs {
    /// The snapshot
    pub snapshot: String,
    /// The file to make
    pub file: PathBuf,
}

/// `lighter snapshot import`
#[derive(Args)]
pub struct ImportArgs {
    /// What `lighter snapshot export` wrote
    pub file: PathBuf,
    /// Name of the snapshot here
    pub name: String,
}

/// `lighter restore`
#[derive(Args)]
pub struct RestoreArgs {
    /// The snapshot
    pub snapshot: String,
    /// Name of the new container [default: two words]
    #[arg(long)]
    pub name: Option<String>,
}

/// `lighter clone`
#[derive(Args)]
pub struct CloneArgs {
    /// The running container
    pub container: String,
    /// How many copies
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub number: u32,
    /// Name of the copy; of several ones, NAME-1, NAME-2 and so on [default: two words each]
    #[arg(long)]
    pub name: Option<String>,
}

/// `lighter snapshot ...`
pub fn snapshot(dirs: &Dirs, command: &SnapshotCommand) -> anyhow::Result<u8> {
    match command {
        SnapshotCommand::Create(args) => create(dirs, args)?,
        SnapshotCommand::Ls(args) => list(dirs, args.format)?,
        SnapshotCommand::Inspect(args) => inspect(dirs, &args.snapshots)?,
        SnapshotCommand::Export(args) => {
            archive::export(&SnapshotStore::new(dirs).find(&args.snapshot)?.directory, &args.file)?;
        }
        SnapshotCommand::Import(args) => import(dirs, args)?,
        SnapshotCommand::Push(args) => push(dirs, args)?,
        SnapshotCommand::Pull(args) => pull(dirs, args)?,
        SnapshotCommand::Rm(args) => {
            let store = SnapshotStore::new(dirs);
            return each(&args.snapshots, |name| Ok(store.remove(name)?));
        }
    }
    Ok(0)
}

fn create(dirs: &Dirs, args: &CreateArgs) -> anyhow::Result<()> {
    let record = verbs::running(dirs, &args.container)?;
    let (made, taken) = verbs::snapshot(dirs, &record, args.name.as_deref())?;
    output::notice(&format!("container {} stood still for {}", record.name, milliseconds(taken.paused)));
    output::print(&format!("{}\n", made.name))
}

fn import(dirs: &Dirs, args: &ImportArgs) -> anyhow::Result<()> {
    let store = SnapshotStore::new(dirs);
    store.check_free(&args.name)?;
    let draft = archive::import(&store, &args.file)?;
    store.publish(draft, &args.name)?;
    output::print(&format!("{}\n", args.name))
}

fn push(dirs: &Dirs, args: &SnapshotPushArgs) -> anyhow::Result<()> {
    let store = SnapshotStore::new(dirs);
    let found = store.find(&args.snapshot)?;
    let options = PushOptions { registry: args.registry.options(), ..PushOptions::default() };
    let bars = Bars::new();
    let pushed = remote::push(&store, &found.directory, &args.reference, &options, &bars);
    bars.clear();
    let pushed = pushed?;
    output::print(&format!(
        "{}: digest: {} sent: {}\n",
        pushed.name,
        pushed.digest,
        output::human_size(pushed.sent)
    ))
}

fn pull(dirs: &Dirs, args: &SnapshotPullArgs) -> anyhow::Result<()> {
    let store = SnapshotStore::new(dirs);
    store.check_free(&args.name)?;
    let bars = Bars::new();
    let draft = remote::pull(&store, &args.reference, &args.registry.options(), &bars);
    bars.clear();
    store.publish(draft?, &args.name)?;
    output::print(&format!("{}\n", args.name))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn list(dirs: &Dirs, format: Format) -> anyhow::Result<()> {
    let snapshots = SnapshotStore::new(dirs).list();
    match format {
        Format::Json => {
            let lines: Vec<_> = snapshots
                .iter()
                .map(|snapshot| {
                    json!({"name": snapshot.name, "container": snapshot.manifest.container,
                        "image": snapshot.manifest.spec.image, "created_ns": snapshot.manifest.created_ns,
                        "bytes": snapshot.bytes()})
                })
                .collect();
            output::print_json(&json!({"schema": "lighter.snapshots.v1", "snapshots": lines}))
        }
        Format::Table => {
            let mut table = output::table(&["NAME", "CONTAINER", "IMAGE", "CREATED", "SIZE"]);
            for snapshot in &snapshots {
                table.add_row([
                    snapshot.name.clone(),
                    snapshot.manifest.container.clone(),
                    familiar(&snapshot.manifest.spec.image),
                    format!("{} ago", crate::times::age(snapshot.manifest.created_ns)),
                    output::human_size(snapshot.bytes()),
                ]);
            }
            output::print_table(&table)
        }
    }
}

fn inspect(dirs: &Dirs, names: &[String]) -> anyhow::Result<()> {
    let store = SnapshotStore::new(dirs);
    let found = names
        .iter()
        .map(|name| {
            let snapshot = store.find(name)?;
            let machine = vmm::snapshot::Snapshot::read(&snapshot.machine())?;
            Ok(json!({"name": snapshot.name, "bytes": snapshot.bytes(), "id": machine.identity.id.to_string(),
                "vcpus": machine.fingerprint.vcpus, "mem_size_mib": machine.fingerprint.mem_size_mib,
                "realtime_ns": machine.times.realtime_ns, "snapshot": snapshot.manifest}))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    output::print_json(&found)
}

/// `lighter restore`
pub fn restore(dirs: &Dirs, args: &RestoreArgs) -> anyhow::Result<()> {
    let copy = verbs::restore(dirs, &args.snapshot, args.name.as_deref(), &output::notice)?;
    output::print(&format!("{}\n", copy.spec.id))
}

/// `lighter clone`
pub fn clone(dirs: &Dirs, args: &CloneArgs) -> anyhow::Result<()> {
    let record = verbs::running(dirs, &args.container)?;
    verbs::clone(dirs, &record, args.number, args.name.as_deref(), &output::notice, &mut |copy| {
        // The copies run, whether somebody reads their IDs or not.
        let _ = output::print(&format!("{}\n", copy.spec.id));
    })?;
    Ok(())
}
