//! `lighter network`: user-defined networks.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use engine::container::record;
use engine::dirs::Dirs;
use engine::network::definition::{Definition, NewNetwork};
use engine::network::spec::{DEFAULT_NETWORK, Endpoint};
use engine::network::subnet::{Subnet, Subnet6};
use engine::network::{NetworkError, Networks};
use engine::verbs;
use serde_json::{Value, json};

use crate::args::{FormatArgs, PruneArgs};
use crate::output::{self, Format};

/// `lighter network ...`
#[derive(Subcommand)]
pub enum NetworkCommand {
    /// Make a network
    Create(CreateArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show all that is known of networks, as JSON
    Inspect(InspectArgs),
    /// Remove networks that no container is in
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
    /// Remove all networks that no container is in
    Prune(PruneArgs),
    /// Put a container into a network
    Connect(ConnectArgs),
    /// Take a container out of a network
    Disconnect(DisconnectArgs),
}

/// `lighter network create`
#[derive(Args)]
pub struct CreateArgs {
    /// Its subnet, once for IPv4 and once for IPv6 [default: one that is free]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Vec<String>,
    /// The host's IPv4 address in it [default: the first one]
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Option<Ipv4Addr>,
    /// Also IPv6
    #[arg(long)]
    pub ipv6: bool,
    /// Without a way out of the host
    #[arg(long)]
    pub internal: bool,
    /// Note something about it
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// There is only bridge
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge", hide_default_value = true)]
    pub driver: String,
    /// Its name
    pub name: String,
}

/// `lighter network ls`
#[derive(Args)]
pub struct ListArgs {
    /// Print only names
    #[arg(short, long)]
    pub quiet: bool,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// `lighter network inspect`
#[derive(Args)]
pub struct InspectArgs {
    /// Their names
    #[arg(required = true, value_name = "NETWORK")]
    pub networks: Vec<String>,
    /// How to print; there is only JSON
    #[arg(long, value_enum, default_value_t = Format::Json, value_name = "FORMAT")]
    pub format: Format,
}

/// `lighter network rm`
#[derive(Args)]
pub struct RemoveArgs {
    /// Their names
    #[arg(required = true, value_name = "NETWORK")]
    pub networks: Vec<String>,
    /// It is no error if a network does not exist
    #[arg(short, long)]
    pub force: bool,
}

/// `lighter network connect`
#[derive(Args)]
pub struct ConnectArgs {
    /// IPv4 address of the container
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address of the container
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<Ipv6Addr>,
    /// Another name by which the container is found there
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// The network
    pub network: String,
    /// The container
    pub container: String,
}

/// `lighter network disconnect`
#[derive(Args)]
pub struct DisconnectArgs {
    /// The network
    pub network: String,
    /// The container
    pub container: String,
}

/// Executes one of them.
pub fn execute(dirs: &Dirs, command: &NetworkCommand) -> anyhow::Result<()> {
    let networks = Networks::here(dirs)?;
    match command {
        NetworkCommand::Connect(args) => connect(dirs, &networks, args),
        NetworkCommand::Disconnect(args) => {
            let record = record::find(dirs, &args.container)?;
            Ok(verbs::disconnect_network(dirs, &record, &args.network)?)
        }
        NetworkCommand::Create(args) => create(&networks, args),
        NetworkCommand::Ls(args) => list(&networks, args),
        NetworkCommand::Inspect(args) => inspect(&networks, args),
        NetworkCommand::Rm(args) => remove(&networks, args),
        NetworkCommand::Prune(args) => prune(&networks, args),
    }
}

fn create(networks: &Networks, args: &CreateArgs) -> anyhow::Result<()> {
    ensure!(args.driver == "bridge", "--driver {:?} is unknown: lighter has bridge", args.driver);
    let mut new = NewNetwork {
        name: args.name.clone(),
        gateway: args.gateway,
        ipv6: args.ipv6,
        internal: args.internal,
        labels: labels(&args.label),
        ..NewNetwork::default()
    };
    for text in &args.subnet {
        let taken = match (text.parse::<Subnet>(), text.parse::<Subnet6>()) {
            (Ok(subnet), _) => new.subnet.replace(subnet).is_some(),
            (_, Ok(subnet)) => new.subnet6.replace(subnet).is_some(),
            _ => bail!(
                "--subnet {text:?} is none: write ADDRESS/PREFIX, with a prefix of 8 to 30 for IPv4 and 16 to 96 for IPv6"
            ),
        };
        ensure!(!taken, "--subnet {text:?}: at most one for IPv4 and one for IPv6");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let made = networks.definitions().create(new, now)?;
    output::print(&format!("{}\n", made.name))
}

fn connect(dirs: &Dirs, networks: &Networks, args: &ConnectArgs) -> anyhow::Result<()> {
    if args.network != DEFAULT_NETWORK {
        networks.definitions().find(&args.network)?;
    }
    let endpoint = Endpoint {
        network: args.network.clone(),
        ipv4: args.ip,
        ipv6: args.ip6,
        mac: None,
        aliases: args.alias.clone(),
    };
    let record = record::find(dirs, &args.container)?;
    Ok(verbs::connect_network(dirs, &record, &endpoint)?)
}

/// `--label`
pub fn labels(texts: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        text.split_once('=').map_or((text.clone(), String::new()), |(key, value)| (key.into(), value.into()))
    };
    texts.iter().map(pair).collect()
}

fn list(networks: &Networks, args: &ListArgs) -> anyhow::Result<()> {
    let definitions = networks.definitions().list();
    if args.format.format == Format::Json {
        let all = std::iter::once(describe_default(networks))
            .chain(definitions.iter().map(|definition| describe(networks, definition)))
            .collect::<Result<Vec<_>, _>>()?;
        return output::print_json(&json!({"schema": "lighter.networks.v1", "networks": all}));
    }
    if args.quiet {
        let names = std::iter::once(DEFAULT_NETWORK).chain(definitions.iter().map(|one| one.name.as_str()));
        return output::print(&names.map(|name| format!("{name}\n")).collect::<String>());
    }
    let mut table = output::table(&["NAME", "DRIVER", "SUBNET", "CONTAINERS"]);
    let default =
        networks.default_subnet().map_or("chosen when it is used".to_owned(), |subnet| subnet.to_string());
    table.add_row([
        DEFAULT_NETWORK.into(),
        "bridge".into(),
        default,
        networks.guests(DEFAULT_NETWORK)?.len().to_string(),
    ]);
    for definition in &definitions {
        let subnet = match definition.subnet6 {
            None => definition.subnet.to_string(),
            Some(six) => format!("{}, {six}", definition.subnet),
        };
        let count = networks.guests(&definition.name)?.len();
        table.add_row([definition.name.clone(), "bridge".into(), subnet, count.to_string()]);
    }
    for name in ["none", "user"] {
        table.add_row([name, if name == "user" { "passt" } else { "null" }, "", ""]);
    }
    output::print_table(&table)
}

fn inspect(networks: &Networks, args: &InspectArgs) -> anyhow::Result<()> {
    let one = |name: &String| match name.as_str() {
        DEFAULT_NETWORK => describe_default(networks),
        _ => describe(networks, &networks.definitions().find(name)?),
    };
    let found = args.networks.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    output::print_json(&json!({"schema": "lighter.networks.v1", "networks": found}))
}

fn describe(networks: &Networks, definition: &Definition) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(definition)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("driver".into(), "bridge".into());
        fields.insert("bridge".into(), networks.bridge_name(&definition.name).into());
        fields.insert("containers".into(), serde_json::to_value(networks.guests(&definition.name)?)?);
    }
    Ok(value)
}

fn describe_default(networks: &Networks) -> anyhow::Result<Value> {
    Ok(json!({
        "name": DEFAULT_NETWORK,
        "driver": "bridge",
        "subnet": networks.default_subnet(),
        "bridge": networks.bridge_name(DEFAULT_NETWORK),
        "containers": networks.guests(DEFAULT_NETWORK)?,
    }))
}

/// Removes what can be removed, and then says what could not.
fn remove(networks: &Networks, args: &RemoveArgs) -> anyhow::Result<()> {
    let mut failed = 0;
    for name in &args.networks {
        match networks.remove(name) {
            Ok(()) => output::print(&format!("{name}\n"))?,
            Err(NetworkError::Unknown { .. }) if args.force => {}
            Err(error) => {
                output::problem(&output::error_text(&error.into()));
                failed += 1;
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} networks were not removed", args.networks.len());
    Ok(())
}

fn prune(networks: &Networks, args: &PruneArgs) -> anyhow::Result<()> {
    if !args.force {
        ensure!(
            std::io::stdin().is_terminal(),
            "`lighter network prune` asks first; use --force where nobody answers"
        );
        eprint!("Remove all networks that no container is in? [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
        ensure!(answer.trim().eq_ignore_ascii_case("y"), "nothing was removed");
    }
    let mut removed = Vec::new();
    for definition in networks.definitions().list() {
        match networks.remove(&definition.name) {
            Ok(()) => removed.push(definition.name),
            Err(NetworkError::InUse { .. } | NetworkError::Unknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match args.format {
        Format::Json => output::print_json(&json!({"schema": "lighter.prune.v1", "networks": removed})),
        Format::Table => output::print(&removed.iter().map(|name| format!("{name}\n")).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_may_have_no_value() {
        let found = labels(&["a=b=c".to_owned(), "d".to_owned()]);
        assert_eq!((found["a"].as_str(), found["d"].as_str()), ("b=c", ""));
    }
}
