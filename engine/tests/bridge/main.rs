//! Networks in a network namespace of the test's own: made by the first container, removed with the last, whatever a
//! crash left removed by a sweep, and nobody in them pretending to be somebody else.
//!
//! No guest runs here: its part is played by a packet socket on a veth pair, or by writing to the TAP.

mod isolation;
mod place;
mod ports;

use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use engine::network::definition::NewNetwork;
use engine::network::spec::{Endpoint, NetworkMode, NetworkSpec};
use engine::network::{NetworkError, port};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::run;
use place::{Place, inventory};

const NEEDS: &[Need] = &[Need::Root, Need::Program("ip"), Need::Program("nft")];

fn main() -> ExitCode {
    let mut tests = vec![
        test("the_bridge_lives_from_the_first_container_to_the_last", NEEDS, first_to_last),
        test("subnets_that_the_host_uses_are_avoided", NEEDS, used_subnet),
        test("a_sweep_removes_what_a_crash_left", NEEDS, leftovers),
        test("forwarding_that_was_on_stays_on", NEEDS, forwarding),
        test("a_user_defined_network_has_both_ip_versions_and_its_own_bridge", NEEDS, user_defined),
        test("a_rule_that_is_in_the_way_is_replaced", NEEDS, stale_rules),
        test("two_hundred_containers_leave_nothing", NEEDS, two_hundred),
    ];
    tests.extend(isolation::tests(NEEDS));
    tests.extend(ports::tests(NEEDS));
    run_tests(tests)
}

fn first_to_last() -> anyhow::Result<()> {
    let place = Place::new()?;
    let before = inventory()?;
    let first = place.attach()?;
    let second = place.attach()?;
    let (one, other) = (&first.plan().interfaces[0], &second.plan().interfaces[0]);
    ensure!(one.ipv4 != other.ipv4 && one.mac != other.mac && one.gateway_v4 == other.gateway_v4);
    let now = inventory()?;
    let bridge = place.networks.bridge_name("bridge");
    ensure!(now.contains(&bridge) && now.contains("masquerade") && now.contains("forward 1"), "{now}");
    drop(first);
    let third = place.attach()?;
    ensure!(inventory()?.contains("masquerade"), "the bridge went with the first container");
    drop((second, third));
    let after = inventory()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

fn used_subnet() -> anyhow::Result<()> {
    let place = Place::new()?;
    let gateway = |place: &Place| place.attach()?.plan().interfaces[0].gateway_v4.context("no gateway");
    let by_default = gateway(&place)?;
    run(Command::new("ip").args(["link", "add", "other", "type", "bridge"]))?;
    let used = format!("{by_default}/16");
    run(Command::new("ip").args(["addr", "add", &used, "dev", "other"]))?;
    run(Command::new("ip").args(["link", "set", "other", "up"]))?;
    let other = gateway(&place)?;
    ensure!(other.octets()[..2] != by_default.octets()[..2], "{other} beside {used}");
    let new = NewNetwork { name: "web".into(), subnet: used.parse().ok(), ..NewNetwork::default() };
    let error = place.networks.definitions().create(new, 0).err().context("a used subnet was given away")?;
    ensure!(matches!(error, NetworkError::SubnetInUse { .. }), "{error}");
    Ok(())
}

fn leftovers() -> anyhow::Result<()> {
    let place = Place::new()?;
    let before = inventory()?;
    let bridge = place.networks.bridge_name("bridge");
    let leave = || -> anyhow::Result<()> {
        run(Command::new("ip").args(["link", "add", &bridge, "type", "bridge"]))?;
        run(Command::new("nft").args(["add", "table", "inet", &bridge])).map(drop)
    };
    leave()?;
    place.networks.sweep();
    ensure!(inventory()? == before, "{}", inventory()?);
    // A container that comes before any sweep is not disturbed by it either.
    leave()?;
    let attachment = place.attach()?;
    place.networks.sweep();
    ensure!(inventory()?.contains("masquerade"), "the sweep took a living container's network");
    drop(attachment);
    ensure!(inventory()? == before, "{}", inventory()?);
    Ok(())
}

fn forwarding() -> anyhow::Result<()> {
    let place = Place::new()?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1\n")?;
    drop(place.attach()?);
    ensure!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() == "1");
    Ok(())
}

fn user_defined() -> anyhow::Result<()> {
    let place = Place::new()?;
    let before = inventory()?;
    place.network("web", true)?;
    place.network("db", false)?;
    let mut spec = NetworkSpec { mode: NetworkMode::bridge("web"), ..NetworkSpec::default() };
    spec.connect(Endpoint { network: "db".into(), ..Endpoint::default() })?;
    let attachment = place.attach_as(&spec)?;
    let [web, db] = attachment.plan().interfaces.as_slice() else { anyhow::bail!("{:?}", attachment.plan()) };
    ensure!(web.ipv6.is_some() && web.gateway_v6.is_some() && db.ipv6.is_none());
    ensure!(web.gateway_v4.is_some() && db.gateway_v4.is_none(), "one way out is enough");
    ensure!(inventory()?.contains("forward6 1"), "{}", inventory()?);
    let error = place.networks.remove("web").err().context("a network in use was removed")?;
    ensure!(matches!(error, NetworkError::InUse { .. }), "{error}");
    drop(attachment);
    place.networks.remove("web")?;
    place.networks.remove("db")?;
    ensure!(inventory()? == before, "before:\n{before}\nafter:\n{}", inventory()?);
    let gone = place.attach_as(&spec).err().context("a network that is gone")?;
    ensure!(matches!(gone, NetworkError::Unknown { .. }), "{gone}");
    ensure!(inventory()? == before, "before:\n{before}\nafter:\n{}", inventory()?);
    Ok(())
}

/// The address of a killed container leads elsewhere still; whoever gets its port is not bothered.
fn stale_rules() -> anyhow::Result<()> {
    let place = Place::new()?;
    let first = place.attach()?;
    let bridge = place.networks.bridge_name("bridge");
    let element = "{ tcp . 18080 : 192.0.2.9 . 80 }";
    run(Command::new("nft").args(["add", "element", "inet", &bridge, "ports4", element]))?;
    let spec = NetworkSpec {
        mode: NetworkMode::bridge("bridge"),
        publish: port::parse("18080:80")?,
        ..NetworkSpec::default()
    };
    let second = place.attach_as(&spec)?;
    let rules = run(Command::new("nft").args(["list", "map", "inet", &bridge, "ports4"]))?;
    ensure!(rules.contains("18080") && !rules.contains("192.0.2.9"), "{rules}");
    let sources = run(Command::new("nft").args(["list", "set", "bridge", &bridge, "sources4"]))?;
    let (address, _) = first.plan().interfaces[0].ipv4.context("no address")?;
    ensure!(sources.contains(&address.to_string()), "the first guest was forgotten: {sources}");
    drop(second);
    Ok(())
}

fn two_hundred() -> anyhow::Result<()> {
    let place = Place::new()?;
    let before = inventory()?;
    let held = place.attach()?;
    let spec = NetworkSpec {
        mode: NetworkMode::bridge("bridge"),
        publish: port::parse("80")?,
        egress: Some(vec!["192.0.2.0/24:443".parse()?]),
        ..NetworkSpec::default()
    };
    for _ in 0..100 {
        drop(place.attach_as(&spec)?);
    }
    drop(held);
    ensure!(inventory()? == before, "before:\n{before}\nafter:\n{}", inventory()?);
    for _ in 0..100 {
        drop(place.attach_as(&spec)?);
    }
    ensure!(inventory()? == before, "before:\n{before}\nafter:\n{}", inventory()?);
    ensure!(!place.dirs.run.join("network").exists(), "state is left");
    Ok(())
}
