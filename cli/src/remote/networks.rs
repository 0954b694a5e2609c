//! `network` over the API.

use anyhow::{bail, ensure};
use engine::network::subnet::{Subnet, Subnet6};
use engine_api::client::{Client, ClientError, encode};
use engine_api::types::{Connect, CreateNetwork, Disconnect, NetworkList, NetworkView, Pruned};
use serde_json::json;

use crate::network_commands::{
    ConnectArgs, CreateArgs, InspectArgs, ListArgs, NetworkCommand, RemoveArgs, labels,
};
use crate::output::{self, Format};
use crate::system_commands::confirm;

/// Executes one of them.
pub fn execute(client: &Client, command: &NetworkCommand) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(args) => create(client, args),
        NetworkCommand::Ls(args) => list(client, args),
        NetworkCommand::Inspect(args) => inspect(client, args),
        NetworkCommand::Rm(args) => remove(client, args),
        NetworkCommand::Prune(args) => {
            confirm(args.force, "network prune", "Remove all networks that no container is in?")?;
            let pruned: Pruned = client.send("POST", "/v1/networks/prune", None, &[])?.json()?;
            match args.format {
                Format::Json => {
                    output::print_json(&json!({"schema": "lighter.prune.v1", "networks": pruned.removed}))
                }
                Format::Table => {
                    output::print(&pruned.removed.iter().map(|name| format!("{name}\n")).collect::<String>())
                }
            }
        }
        NetworkCommand::Connect(args) => connect(client, args),
        NetworkCommand::Disconnect(args) => {
            let body = Disconnect { container: args.container.clone() };
            Ok(client.tell("POST", &format!("{}/disconnect", path(&args.network)), Some(&body))?)
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/networks/{}", encode(name))
}

fn create(client: &Client, args: &CreateArgs) -> anyhow::Result<()> {
    ensure!(args.driver == "bridge", "--driver {:?} is unknown: lighter has bridge", args.driver);
    let mut new = CreateNetwork {
        name: args.name.clone(),
        subnet: None,
        gateway: args.gateway,
        ipv6: args.ipv6,
        subnet6: None,
        internal: args.internal,
        labels: labels(&args.label),
    };
    for text in &args.subnet {
        let place = match (text.parse::<Subnet>(), text.parse::<Subnet6>()) {
            (Ok(_), _) => &mut new.subnet,
            (_, Ok(_)) => &mut new.subnet6,
            _ => bail!("--subnet {text:?} is none: write ADDRESS/PREFIX"),
        };
        let taken = place.replace(text.clone()).is_some();
        ensure!(!taken, "--subnet {text:?}: at most one for IPv4 and one for IPv6");
    }
    let made: NetworkView = client.post("/v1/networks", &new)?;
    output::print(&format!("{}\n", made.name))
}

fn list(client: &Client, args: &ListArgs) -> anyhow::Result<()> {
    let networks = client.get::<NetworkList>("/v1/networks")?.items;
    if args.format.format == Format::Json {
        return output::print_json(&json!({"schema": "lighter.networks.v1", "networks": networks}));
    }
    if args.quiet {
        return output::print(&networks.iter().map(|one| format!("{}\n", one.name)).collect::<String>());
    }
    let mut table = output::table(&["NAME", "DRIVER", "SUBNET", "CONTAINERS"]);
    for network in &networks {
        let subnets: Vec<&str> =
            [&network.subnet, &network.subnet6].into_iter().flatten().map(String::as_str).collect();
        let count = network.containers.len().to_string();
        table.add_row([network.name.clone(), "bridge".to_owned(), subnets.join(", "), count]);
    }
    output::print_table(&table)
}

fn inspect(client: &Client, args: &InspectArgs) -> anyhow::Result<()> {
    let find = |name: &String| client.get::<NetworkView>(&path(name));
    let found = args.networks.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    output::print_json(&json!({"schema": "lighter.networks.v1", "networks": found}))
}

fn remove(client: &Client, args: &RemoveArgs) -> anyhow::Result<()> {
    let mut failed = 0;
    for name in &args.networks {
        match client.tell("DELETE", &path(name), None::<&()>) {
            Ok(()) => output::print(&format!("{name}\n"))?,
            Err(ClientError::Problem(problem)) if args.force && problem.status == 404 => {}
            Err(error) => {
                output::problem(&output::error_text(&error.into()));
                failed += 1;
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} networks were not removed", args.networks.len());
    Ok(())
}

fn connect(client: &Client, args: &ConnectArgs) -> anyhow::Result<()> {
    let body = Connect {
        container: args.container.clone(),
        ip: args.ip,
        ip6: args.ip6,
        aliases: args.alias.clone(),
    };
    Ok(client.tell("POST", &format!("{}/connect", path(&args.network)), Some(&body))?)
}
