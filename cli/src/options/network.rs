//! The options about a container's network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use clap::Args;
use engine::network::egress::EgressRule;
use engine::network::spec::{
    DEFAULT_NETWORK, DnsSpec, Endpoint, MAX_NETWORKS, Mac, NetworkMode, NetworkSpec,
};
use engine::network::{egress, port};

/// Most names and addresses of one kind.
const MAX_ENTRIES: usize = 256;

/// Options of `lighter run` and `lighter create`.
#[derive(Args, Default)]
pub struct NetworkArgs {
    /// Network: none, bridge, user, or a name of `lighter network create`, several times for several networks; options
    /// of one network follow its name: NAME:ip=ADDRESS,alias=NAME [default: bridge where permitted, else user]
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    pub network: Vec<String>,
    /// IPv4 address of the container, in its first network
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address of the container, in its first network
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<Ipv6Addr>,
    /// Hardware address of the container, in its first network
    #[arg(long, value_name = "ADDRESS")]
    pub mac_address: Option<Mac>,
    /// Another name by which the container is found in its networks
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    pub network_alias: Vec<String>,
    /// Publish a port of the container on the host
    #[arg(short, long, value_name = "[[ADDRESS:]PORT:]PORT[/udp]")]
    pub publish: Vec<String>,
    /// Publish every port that the image exposes on a free port of the host
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Name server for the container [default: the host's]
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,
    /// Domain in which names without dots are looked for [default: the host's]
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option of resolv.conf [default: the host's]
    #[arg(long, value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// Name that the container knows an address by; the address host-gateway is the host's
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
    /// Let the container reach only this destination, and others given so
    #[arg(long, value_name = "NAME|CIDR[:PORT]")]
    pub egress_allow: Vec<EgressRule>,
}

impl NetworkArgs {
    /// For the engine.
    pub fn spec(self) -> anyhow::Result<NetworkSpec> {
        let mode = self.mode()?;
        let mut publish = Vec::new();
        for text in &self.publish {
            publish.extend(port::parse(text)?);
        }
        ensure!(
            publish.len() <= port::MAX_PUBLISHED,
            "-p: at most {} ports can be published",
            port::MAX_PUBLISHED
        );
        ensure!(
            publish.is_empty() && !self.publish_all || mode != NetworkMode::None,
            "-p needs a network, but --network is none"
        );
        let few = |option: &str, count: usize| {
            ensure!(
                count <= MAX_ENTRIES,
                "{option} was given {count} times, at most {MAX_ENTRIES} are possible"
            );
            Ok(())
        };
        few("--add-host", self.add_host.len())?;
        few("--dns-search", self.dns_search.len())?;
        few("--dns-option", self.dns_option.len())?;
        ensure!(
            self.egress_allow.len() <= egress::MAX_RULES,
            "--egress-allow: at most {} rules",
            egress::MAX_RULES
        );
        for text in self.dns_search.iter().chain(&self.dns_option) {
            ensure!(is_word(text), "{text:?} cannot stand in resolv.conf: it has spaces or is empty");
        }
        Ok(NetworkSpec {
            mode,
            publish,
            publish_all: self.publish_all,
            dns: DnsSpec { servers: self.dns, search: self.dns_search, options: self.dns_option },
            exposed: Vec::new(),
            extra_hosts: self.add_host.iter().map(|text| add_host(text)).collect::<Result<_, _>>()?,
            egress: (!self.egress_allow.is_empty()).then_some(self.egress_allow),
        })
    }

    fn mode(&self) -> anyhow::Result<NetworkMode> {
        let own = self.ip.is_some()
            || self.ip6.is_some()
            || self.mac_address.is_some()
            || !self.network_alias.is_empty();
        let endpoint = |text: &String| endpoint(text, &self.network_alias);
        let mut endpoints: Vec<Endpoint> = self.network.iter().map(endpoint).collect::<Result<_, _>>()?;
        ensure!(endpoints.len() <= MAX_NETWORKS, "--network: at most {MAX_NETWORKS} networks are possible");
        if endpoints.is_empty() {
            if !own {
                return Ok(NetworkMode::Auto);
            }
            endpoints.push(Endpoint {
                network: DEFAULT_NETWORK.into(),
                aliases: self.network_alias.clone(),
                ..Endpoint::default()
            });
        }
        for special in ["none", "user", "host"] {
            let Some(_) = endpoints.iter().find(|endpoint| endpoint.network == special) else { continue };
            ensure!(
                special != "host",
                "--network host: a container is a machine of its own, so it cannot share the host's network; publish ports with -p"
            );
            ensure!(endpoints.len() == 1, "--network {special} cannot be combined with another network");
            ensure!(
                !own,
                "--ip, --ip6, --mac-address and --network-alias need a bridge, but --network is {special}"
            );
            return Ok(if special == "none" { NetworkMode::None } else { NetworkMode::User });
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            let twice = endpoints.iter().take(index).any(|other| other.network == endpoint.network);
            ensure!(!twice, "--network {} was given twice", endpoint.network);
        }
        if let Some(first) = endpoints.first_mut() {
            first.ipv4 = self.ip.or(first.ipv4);
            first.ipv6 = self.ip6.or(first.ipv6);
            first.mac = self.mac_address.or(first.mac);
        }
        Ok(NetworkMode::Bridges(endpoints))
    }
}

/// A network with its options: `NAME[:KEY=VALUE[,KEY=VALUE]...]`.
fn endpoint(text: &str, aliases: &[String]) -> anyhow::Result<Endpoint> {
    let (name, options) = text.split_once(':').unwrap_or((text, ""));
    let network = if name == "default" { DEFAULT_NETWORK } else { name };
    let mut endpoint =
        Endpoint { network: network.to_owned(), aliases: aliases.to_vec(), ..Endpoint::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let wrong = || format!("--network {text:?}: {option:?} is none of ip=, ip6=, mac= and alias=");
        let (key, value) = option.split_once('=').with_context(wrong)?;
        match key {
            "ip" => endpoint.ipv4 = Some(value.parse().with_context(wrong)?),
            "ip6" => endpoint.ipv6 = Some(value.parse().with_context(wrong)?),
            "mac" | "mac-address" => {
                endpoint.mac = Some(value.parse().map_err(anyhow::Error::msg).with_context(wrong)?)
            }
            "alias" => endpoint.aliases.push(value.to_owned()),
            _ => anyhow::bail!(wrong()),
        }
    }
    for alias in &endpoint.aliases {
        ensure!(is_word(alias) && alias.len() <= 253, "{alias:?} is no name for a container in a network");
    }
    Ok(endpoint)
}

/// Address and name, from `NAME:ADDRESS`.
fn add_host(text: &str) -> anyhow::Result<(String, String)> {
    let (name, address) =
        text.split_once([':', '=']).with_context(|| format!("--add-host {text:?}: write NAME:ADDRESS"))?;
    ensure!(is_word(name), "--add-host {text:?}: no name");
    if address == "host-gateway" {
        return Ok((address.to_owned(), name.to_owned()));
    }
    let plain: IpAddr = address
        .trim_matches(['[', ']'])
        .parse()
        .with_context(|| format!("--add-host {text:?}: {address:?} is no address"))?;
    Ok((plain.to_string(), name.to_owned()))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut NetworkArgs)) -> anyhow::Result<NetworkSpec> {
        let mut args = NetworkArgs::default();
        change(&mut args);
        args.spec()
    }

    fn networks(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn networks_come_with_their_options() {
        assert_eq!(spec(|_| {}).unwrap().mode, NetworkMode::Auto);
        assert_eq!(spec(|args| args.network = networks(&["none"])).unwrap().mode, NetworkMode::None);
        let NetworkMode::Bridges(found) = spec(|args| {
            args.network = networks(&["web", "db:ip=10.0.0.7,alias=store"]);
            args.ip = Some([10, 1, 0, 3].into());
            args.network_alias = networks(&["front"]);
        })
        .unwrap()
        .mode
        else {
            panic!("no bridges")
        };
        assert_eq!((found[0].ipv4, found[1].ipv4), (Some([10, 1, 0, 3].into()), Some([10, 0, 0, 7].into())));
        assert_eq!(found[1].aliases, ["front", "store"]);
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_its_reason() {
        let refused = |change: fn(&mut NetworkArgs)| spec(change).unwrap_err().to_string();
        assert!(refused(|args| args.network = networks(&["none", "web"])).contains("combined"));
        assert!(refused(|args| args.network = networks(&["web", "web"])).contains("twice"));
        assert!(refused(|args| args.network = networks(&["host"])).contains("-p"));
        assert!(refused(|args| args.network = networks(&["web:speed=9"])).contains("speed=9"));
        let none = |args: &mut NetworkArgs| {
            args.network = networks(&["none"]);
            args.publish = networks(&["80"]);
        };
        assert!(refused(none).contains("-p"));
        let user = |args: &mut NetworkArgs| {
            args.network = networks(&["user"]);
            args.ip = Some([10, 0, 0, 1].into());
        };
        assert!(refused(user).contains("bridge"));
        assert!(
            refused(|args| args.dns_search = networks(&["a\nnameserver 1.1.1.1"])).contains("resolv.conf")
        );
    }

    #[test]
    fn hosts_parse_or_are_named() {
        assert_eq!(add_host("db:10.0.0.1").unwrap(), ("10.0.0.1".into(), "db".into()));
        assert_eq!(add_host("v6:[::1]").unwrap(), ("::1".into(), "v6".into()));
        assert_eq!(add_host("host:host-gateway").unwrap().0, "host-gateway");
        for bad in ["db", "db:x", ":10.0.0.1", "a b:10.0.0.1"] {
            assert!(add_host(bad).unwrap_err().to_string().contains("--add-host"), "{bad}");
        }
    }
}
