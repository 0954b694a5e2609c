//! `snapshot` and `restore` over the API.

use std::fs::File;

use anyhow::Context as _;
use engine_api::client::{Client, encode};
use engine_api::types::{CreateSnapshot, Made, Pushed, SnapshotList, SnapshotView};
use serde_json::json;

use super::images::{download, told};
use crate::lifecycle_commands::each;
use crate::output::{self, Format};
use crate::snapshot_commands::{ImportArgs, RestoreArgs, SnapshotCommand};

/// Executes one of them.
pub fn execute(client: &Client, command: &SnapshotCommand) -> anyhow::Result<u8> {
    match command {
        SnapshotCommand::Create(args) => {
            let body = CreateSnapshot { container: args.container.clone(), name: args.name.clone() };
            let made: SnapshotView = client.post("/v1/snapshots", &body)?;
            output::notice(&format!("the container stood still for {:.1} ms", made.paused_ms));
            output::print(&format!("{}\n", made.name))?;
        }
        SnapshotCommand::Ls(args) => list(client, args.format)?,
        SnapshotCommand::Inspect(args) => {
            let find = |name: &String| client.get::<SnapshotView>(&path(name));
            let found = args.snapshots.iter().map(find).collect::<Result<Vec<_>, _>>()?;
            output::print_json(&found)?;
        }
        SnapshotCommand::Rm(args) => {
            return each(&args.snapshots, |name| Ok(client.tell("DELETE", &path(name), None::<&()>)?));
        }
        SnapshotCommand::Export(args) => {
            download(client, &format!("{}/archive", path(&args.snapshot)), Some(&args.file))?;
        }
        SnapshotCommand::Import(args) => import(client, args)?,
        SnapshotCommand::Push(args) => {
            let body =
                json!({"reference": args.reference.to_string(), "insecure": !args.registry.tls_verify});
            let pushed: Pushed = told(client, &format!("{}/push", path(&args.snapshot)), &body)?;
            let sent = output::human_size(pushed.sent);
            output::print(&format!("{}: digest: {} sent: {sent}\n", pushed.name, pushed.digest))?;
        }
        SnapshotCommand::Pull(args) => {
            let body = json!({"reference": args.reference.to_string(), "name": args.name,
                "insecure": !args.registry.tls_verify});
            let made: SnapshotView = told(client, "/v1/snapshots/pull", &body)?;
            output::print(&format!("{}\n", made.name))?;
        }
    }
    Ok(0)
}

fn path(name: &str) -> String {
    format!("/v1/snapshots/{}", encode(name))
}

fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    let snapshots = client.get::<SnapshotList>("/v1/snapshots")?.items;
    if format == Format::Json {
        return output::print_json(&json!({"schema": "lighter.snapshots.v1", "snapshots": snapshots}));
    }
    let mut table = output::table(&["NAME", "CONTAINER", "IMAGE", "CREATED", "SIZE"]);
    for snapshot in snapshots {
        let size = output::human_size(snapshot.size);
        table.add_row([snapshot.name, snapshot.container, snapshot.image, snapshot.created, size]);
    }
    output::print_table(&table)
}

fn import(client: &Client, args: &ImportArgs) -> anyhow::Result<()> {
    let mut file = File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let answer =
        client.upload("POST", &format!("/v1/snapshots/import?name={}", encode(&args.name)), |out| {
            std::io::copy(&mut file, out).context("cannot send the snapshot").map(drop)
        })?;
    let made: SnapshotView = answer.json()?;
    output::print(&format!("{}\n", made.name))
}

/// `lighter restore`
pub fn restore(client: &Client, args: &RestoreArgs) -> anyhow::Result<()> {
    let made: Made =
        client.post(&format!("{}/restore", path(&args.snapshot)), &json!({"name": args.name}))?;
    output::print(&made.ids.iter().map(|id| format!("{id}\n")).collect::<String>())
}
