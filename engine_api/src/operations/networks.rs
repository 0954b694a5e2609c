//! Networks.

use engine::container::record;
use engine::network::definition::{Definition, NewNetwork};
use engine::network::spec::{DEFAULT_NETWORK, Endpoint};
use engine::network::{NetworkError, Networks};
use engine::verbs;
use hyper::Method;

use super::plain;
use crate::call::Call;
use crate::convert::rfc3339;
use crate::operation::{Content, Operation, of};
use crate::problem::{Kind, Problem};
use crate::reply::Reply;
use crate::types::{Connect, CreateNetwork, Disconnect, NetworkList, NetworkView, Pruned};

const TAG: &str = "networks";

pub const OPERATIONS: &[Operation] = &[
    Operation {
        summary: "List networks",
        gives: &[(200, Content::Json(of::<NetworkList>), "The default one, then those that were made.")],
        ..plain(&Method::GET, "/v1/networks", "listNetworks", TAG, |call| {
            let networks = Networks::here(call.dirs())?;
            let mut items = vec![default(&networks)?];
            for definition in networks.definitions().list() {
                items.push(view(&networks, &definition)?);
            }
            Reply::json(&NetworkList { items })
        })
    },
    Operation {
        summary: "Make a network",
        takes: Content::Json(of::<CreateNetwork>),
        gives: &[(201, Content::Json(of::<NetworkView>), "It.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/networks", "createNetwork", TAG, create)
    },
    Operation {
        summary: "Remove all networks that no container is in",
        gives: &[(200, Content::Json(of::<Pruned>), "Their names.")],
        ..plain(&Method::POST, "/v1/networks/prune", "pruneNetworks", TAG, |call| {
            let networks = Networks::here(call.dirs())?;
            let mut removed = Vec::new();
            for definition in networks.definitions().list() {
                match networks.remove(&definition.name) {
                    Ok(()) => removed.push(definition.name),
                    Err(NetworkError::InUse { .. } | NetworkError::Unknown { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Reply::json(&Pruned { removed })
        })
    },
    Operation {
        summary: "All that is known of a network",
        gives: &[(200, Content::Json(of::<NetworkView>), "It.")],
        ..plain(&Method::GET, "/v1/networks/{network}", "getNetwork", TAG, |call| {
            let networks = Networks::here(call.dirs())?;
            Reply::json(&match call.name() {
                DEFAULT_NETWORK => default(&networks)?,
                name => view(&networks, &networks.definitions().find(name)?)?,
            })
        })
    },
    Operation {
        summary: "Remove a network that nobody is in",
        gives: &[(204, Content::None, "It is gone.")],
        problems: &[Kind::IN_USE],
        ..plain(&Method::DELETE, "/v1/networks/{network}", "removeNetwork", TAG, |call| {
            Networks::here(call.dirs())?.remove(call.name())?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Put a container into a network",
        takes: Content::Json(of::<Connect>),
        gives: &[(204, Content::None, "It is done.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/networks/{network}/connect", "connectNetwork", TAG, |call| {
            let wanted: Connect = call.json()?;
            let network = call.name().to_owned();
            if network != DEFAULT_NETWORK {
                Networks::here(call.dirs())?.definitions().find(&network)?;
            }
            let endpoint = Endpoint {
                network: network.clone(),
                ipv4: wanted.ip,
                ipv6: wanted.ip6,
                mac: None,
                aliases: wanted.aliases,
            };
            let record = record::find(call.dirs(), &wanted.container)?;
            verbs::connect_network(call.dirs(), &record, &endpoint)?;
            Ok(Reply::done())
        })
    },
    Operation {
        summary: "Take a container out of a network",
        takes: Content::Json(of::<Disconnect>),
        gives: &[(204, Content::None, "It is done.")],
        problems: &[Kind::CONFLICT],
        ..plain(&Method::POST, "/v1/networks/{network}/disconnect", "disconnectNetwork", TAG, |call| {
            let wanted: Disconnect = call.json()?;
            let network = call.name().to_owned();
            let record = record::find(call.dirs(), &wanted.container)?;
            verbs::disconnect_network(call.dirs(), &record, &network)?;
            Ok(Reply::done())
        })
    },
];

fn view(networks: &Networks, definition: &Definition) -> Result<NetworkView, Problem> {
    Ok(NetworkView {
        name: definition.name.clone(),
        bridge: networks.bridge_name(&definition.name),
        subnet: Some(definition.subnet.to_string()),
        subnet6: definition.subnet6.map(|subnet| subnet.to_string()),
        gateway: Some(definition.gateway.to_string()),
        internal: definition.internal,
        labels: definition.labels.clone(),
        created: Some(rfc3339(definition.created.saturating_mul(1_000_000_000))),
        containers: guests(networks, &definition.name)?,
    })
}

fn default(networks: &Networks) -> Result<NetworkView, Problem> {
    let subnet = networks.default_subnet();
    Ok(NetworkView {
        name: DEFAULT_NETWORK.to_owned(),
        bridge: networks.bridge_name(DEFAULT_NETWORK),
        subnet: subnet.map(|subnet| subnet.to_string()),
        subnet6: None,
        gateway: subnet.map(|subnet| subnet.gateway().to_string()),
        internal: false,
        labels: Default::default(),
        created: None,
        containers: guests(networks, DEFAULT_NETWORK)?,
    })
}

fn guests(networks: &Networks, network: &str) -> Result<Vec<String>, Problem> {
    Ok(networks.guests(network)?.into_iter().map(|guest| guest.name).collect())
}

fn create(call: &mut Call) -> Result<Reply, Problem> {
    let wanted: CreateNetwork = call.json()?;
    let bad = |text: &str| {
        Problem::invalid(format!(
            "{text:?} is no subnet: write ADDRESS/PREFIX, with a prefix of 8 to 30 for IPv4 and 16 to 96 for IPv6"
        ))
    };
    let subnet = wanted.subnet.as_deref().map(|text| text.parse().map_err(|_| bad(text))).transpose()?;
    let subnet6 = wanted.subnet6.as_deref().map(|text| text.parse().map_err(|_| bad(text))).transpose()?;
    let networks = Networks::here(call.dirs())?;
    let new = NewNetwork {
        name: wanted.name,
        subnet,
        gateway: wanted.gateway,
        ipv6: wanted.ipv6,
        subnet6,
        internal: wanted.internal,
        labels: wanted.labels,
    };
    let made = networks.definitions().create(new, engine::container::state::now_ns() / 1_000_000_000)?;
    Reply::json_with(201, &view(&networks, &made)?)
}
