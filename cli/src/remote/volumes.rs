//! `volume` over the API.

use anyhow::{bail, ensure};
use engine_api::client::{Client, ClientError, encode};
use engine_api::types::{CreateVolume, Pruned, VolumeList, VolumeView};
use serde_json::json;

use crate::lifecycle_commands::{each, labels};
use crate::output::{self, Format};
use crate::system_commands::confirm;
use crate::volume_commands::{CreateArgs, ListArgs, PruneArgs, VolumeCommand, disk_size};

/// Executes one of them.
pub fn execute(client: &Client, command: &VolumeCommand) -> anyhow::Result<u8> {
    match command {
        VolumeCommand::Create(args) => create(client, args)?,
        VolumeCommand::Ls(args) => list(client, args)?,
        VolumeCommand::Inspect(args) => {
            ensure!(args.format == Format::Json, "volumes are only shown as JSON");
            let find = |name: &String| client.get::<VolumeView>(&path(name));
            let found = args.volumes.iter().map(find).collect::<Result<Vec<_>, _>>()?;
            output::print_json(&json!({"schema": "lighter.volume.inspect.v1", "volumes": found}))?;
        }
        VolumeCommand::Rm(args) => {
            return each(&args.volumes, |name| match client.tell("DELETE", &path(name), None::<&()>) {
                Err(ClientError::Problem(problem)) if args.force && problem.status == 404 => Ok(()),
                result => Ok(result?),
            });
        }
        VolumeCommand::Prune(args) => prune(client, args)?,
    }
    Ok(0)
}

fn path(name: &str) -> String {
    format!("/v1/volumes/{}", encode(name))
}

fn create(client: &Client, args: &CreateArgs) -> anyhow::Result<()> {
    ensure!(args.driver == "local", "the driver {:?} is unknown: there is only local", args.driver);
    let (name, disk_bytes) = (args.name.clone(), disk_size(&args.opt)?);
    let body = CreateVolume { name, disk_bytes, labels: labels(&args.label) };
    let made: VolumeView = client.post("/v1/volumes", &body)?;
    output::print(&format!("{}\n", made.name))
}

fn list(client: &Client, args: &ListArgs) -> anyhow::Result<()> {
    let mut query = Vec::new();
    for filter in &args.filter {
        query.push(match filter.split_once('=').unwrap_or((filter, "")) {
            ("name", part) => format!("name={}", encode(part)),
            ("label", label) => format!("label={}", encode(label)),
            ("dangling", "true" | "1") => "unused=true".to_owned(),
            ("dangling", "false" | "0") => "unused=false".to_owned(),
            _ => bail!("--filter {filter:?} is unknown: there are name=, label= and dangling=true|false"),
        });
    }
    let volumes = client.get::<VolumeList>(&format!("/v1/volumes?{}", query.join("&")))?.items;
    match (args.quiet, args.format.format) {
        (true, _) => {
            output::print(&volumes.iter().map(|volume| format!("{}\n", volume.name)).collect::<String>())
        }
        (false, Format::Json) => {
            output::print_json(&json!({"schema": "lighter.volumes.v1", "volumes": volumes}))
        }
        (false, Format::Table) => {
            let mut table = output::table(&["DRIVER", "VOLUME NAME"]);
            table.add_rows(volumes.iter().map(|volume| vec!["local", &volume.name]));
            output::print_table(&table)
        }
    }
}

fn prune(client: &Client, args: &PruneArgs) -> anyhow::Result<()> {
    let what = if args.all { "all volumes" } else { "all volumes without a name of their own" };
    confirm(args.force, "volume prune", &format!("Remove {what} that no container has?"))?;
    let pruned: Pruned = client.post("/v1/volumes/prune", &json!({"all": args.all}))?;
    match args.format {
        Format::Json => output::print_json(&json!({"schema": "lighter.prune.v1", "removed": pruned.removed})),
        Format::Table => {
            output::print(&pruned.removed.iter().map(|name| format!("{name}\n")).collect::<String>())
        }
    }
}
